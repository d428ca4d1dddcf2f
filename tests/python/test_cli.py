"""A person's manners: help, completions, summaries, quiet, JSON."""

import json
import os
import subprocess

import pytest

import pmill

COMMANDS = ["count", "score", "merge", "retract", "vocab", "run", "sql", "inspect", "sample-corpus", "completions"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = pmill.run(command, "--help")
    assert result.err == ""
    assert f"Usage: pmill {command}" in result.out
    if command not in ("completions", "inspect"):
        assert "Example" in result.out and f"pmill {command}" in result.out


def test_the_help_names_all_commands_and_exit_codes():
    out = pmill.run("--help").out
    for command in COMMANDS:
        assert f"\n  {command}" in out
    assert "Exit codes: 0 done; 2 something that you can fix; 75 not now, try again; 1 a bug of ours." in out


@pytest.mark.parametrize("shell, check", [("bash", "bash"), ("zsh", None), ("fish", None)])
def test_completions_are_a_script_of_the_shell(shell, check):
    script = pmill.run("completions", shell).raw
    assert b"sample-corpus" in script and b"--memory-limit" in script.replace(b"-l memory-limit", b"--memory-limit")
    if check:
        subprocess.run([check, "-n"], input=script, check=True, timeout=20)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "Usage: pmill"),
        (["cuont"], "some similar subcommands exist: 'commit', 'count'"),
        (["inspcet"], "a similar subcommand exists: 'inspect'"),
        (["count", "--warehouze", "x"], "--warehouse"),
        (["count", "--tokenizer", "word"], "unknown tokenizer `word`, expected words"),
        (["count", "--memory-limit", "much"], "`much` is not a size; write 512MiB, 4GiB, 2GB or bytes"),
        (["count", "--threads", "0"], "--threads"),
        (["count", "--context", "sentence"], "possible values: document, window"),
        (["count", "--vocab", "a", "--vocab-size", "3"], "cannot be used with"),
        (["count", "--lemma", "porter"], "expected wordnet:DIR or file:PATH"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2_and_says_why(arguments, words):
    result = pmill.run(*arguments, code=2)
    assert words in result.err and result.raw == b""


@pytest.fixture
def corpus(tmp_path):
    return pmill.write(tmp_path / "t.parquet", ["red fox", "red hen", None])


def test_the_closing_summary_goes_to_stderr_and_nothing_to_stdout(corpus, warehouse):
    result = pmill.run("count", "--warehouse", warehouse, "--name", "j", "--input", corpus, "--text", "TEXT")
    assert result.raw == b""
    assert "counted j: 3 rows, 4 tokens, 3 types, 3 terms, 2 pairs\n  1 files, " in result.err
    assert "of memory at most" in result.err
    assert "\r" not in result.err and "\x1b" not in result.err, "no bar when nobody watches"


def test_a_bar_with_bytes_rows_and_time_left_is_drawn_on_a_terminal(sample, warehouse):
    controller, terminal = os.openpty()
    process = subprocess.Popen(
        [pmill.binary(), "count", "--warehouse", warehouse, "--name", "j", "--input", sample, "--text", "TEXT"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal,
        env=pmill.environment(TERM="xterm"),
    )
    os.close(terminal)
    seen = b""
    while True:
        try:
            part = os.read(controller, 65536)
        except OSError:
            # The other end is closed.
            break
        if not part:
            break
        seen += part
    os.close(controller)
    assert (process.wait(timeout=60), process.stdout.read()) == (0, b"")
    text = seen.decode()
    assert "rows/s" in text and " left" in text and "MiB" in text
    assert "counted j: 20,000 rows" in text


def test_quiet_says_nothing(corpus, warehouse):
    flags = ["--warehouse", warehouse, "--name", "j", "--quiet"]
    for command in (["count", *flags, "--input", corpus, "--text", "TEXT"], ["score", *flags]):
        result = pmill.run(*command)
        assert (result.raw, result.err) == (b"", "")


def test_json_is_one_object_with_the_fields_of_the_contract(corpus, warehouse):
    flags = ["--warehouse", warehouse, "--name", "j", "--json"]
    result = pmill.run("count", *flags, "--input", corpus, "--text", "TEXT")
    assert result.err == ""
    assert result.json.keys() == {
        "status", "job", "version", "files", "skipped", "rows", "tokens", "types", "terms", "pairs",
        "total_rows", "retracted_rows", "outside_tokens", "dropped_features", "units", "spilled_bytes", "seconds", "peak_memory_bytes", "notes",
    }  # fmt: skip
    assert result.out.count("\n") == 1
    scored = pmill.run("score", *flags).json
    assert scored.keys() >= {"status", "job", "version", "pairs", "measures", "event_space", "seconds", "notes"}
    assert isinstance(pmill.run("inspect", *flags).json, dict)


def test_an_error_with_json_leaves_stdout_empty(warehouse):
    result = pmill.run(
        "count", "--warehouse", warehouse, "--name", "j", "--input", "missing", "--text", "TEXT", "--json", code=2
    )
    assert result.raw == b"" and "input `missing`" in result.err


def test_the_summary_reports_the_peak_that_the_system_saw(corpus, warehouse):
    job = pmill.count(warehouse, "j", corpus, "TEXT")
    assert 0.5 < job.summary["peak_memory_bytes"] / job.result.peak_bytes < 2


def test_flags_come_from_the_environment_too(corpus, warehouse):
    environment = pmill.environment(PMILL_WAREHOUSE=warehouse, PMILL_MEMORY_LIMIT="10MiB", PMILL_THREADS=1)
    result = pmill.run("count", "--name", "j", "--input", corpus, "--text", "TEXT", code=2, env=environment)
    assert "memory limit of 10.0 MiB is too small" in result.err


def test_inspect_lists_jobs_and_shows_one(corpus, warehouse):
    job = pmill.count(warehouse, "first_job", corpus, "TEXT", "--vocab-size", 7)
    pmill.count(warehouse, "second_job", corpus, "TEXT")
    out = pmill.run("inspect", "--warehouse", warehouse).out
    assert "first_job" in out and "second_job" in out
    out = pmill.run("inspect", "--warehouse", warehouse, "--name", job.name).out
    assert "3 rows, 4 tokens, 3 types, 3 terms, 2 pairs" in out
    shown = json.loads(out[out.index("{") : out.rindex("}") + 1])
    assert shown["vocabulary"] == {"size": 7, "min_count": 1}
    assert "first_job" in pmill.run("inspect", "--warehouse", warehouse, "--name", "third_job", code=2).err


def test_logs_go_to_stderr_without_colours_and_hold_no_text(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", ["zanzibar secretword"])
    flags = ["--warehouse", warehouse, "--name", "j", "--input", corpus, "--text", "TEXT", "-vv"]
    result = pmill.run("count", *flags, noise=())
    assert result.raw == b"" and "DEBUG" in result.err
    assert "secretword" not in result.err
    assert "\x1b" not in result.err, "stderr is no terminal here"
