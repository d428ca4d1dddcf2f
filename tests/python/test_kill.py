"""Killed at any moment and started again: as if it had never been killed. Ctrl-C: exit 75, nothing half-written."""

import random
import subprocess
import time

import pytest

import pmill

FLAGS = ["--vocab-size", "1000", "--threads", "2", "--memory-limit", "68MiB"]
TABLES = ("vocab", "pairs")


@pytest.fixture(scope="module")
def undisturbed(large, tmp_path_factory):
    job = pmill.count(tmp_path_factory.mktemp("undisturbed"), "j", large, "TEXT", *FLAGS)
    assert job.summary["units"] >= 3
    pmill.score(job)
    return job


def arguments(warehouse, corpus):
    return ["count", "--warehouse", warehouse, "--name", "j", "--input", corpus, "--text", "TEXT", *FLAGS]


def whole_or_absent(job):
    """What a reader sees: no table, or a whole one."""
    if not job.exists("pairs"):
        message = pmill.run("sql", "--warehouse", job.warehouse, "SELECT * FROM j.pairs", code=2).err
        assert "no table `j.pairs`" in message or "no job `j`" in message
        return
    facts = job.facts()
    assert job.table("pairs").num_rows == facts["pairs"]
    assert job.table("vocab").num_rows == facts["terms"]
    assert sum(row["rows"] for row in job.table("sources").to_pylist()) == facts["rows"]


def test_a_job_killed_at_any_moment_ends_as_if_it_had_not_been(large, undisturbed, tmp_path):
    moments = random.Random(20251)
    seconds = undisturbed.summary["seconds"]
    kills, finished, number = 0, [], 0
    deadline = time.monotonic() + 240
    while kills < 12:
        assert time.monotonic() < deadline, "too slow to kill it twelve times"
        job = pmill.Job(tmp_path / f"wh{number}", "j")
        process = pmill.start(*arguments(job.warehouse, large))
        try:
            code = process.wait(timeout=moments.uniform(0.02, 0.7) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            whole_or_absent(job)
            continue
        assert code == 0
        finished.append(job)
        number += 1
    last = pmill.count(tmp_path / f"wh{number}", "j", large, "TEXT", *FLAGS)
    assert last.summary["status"] in ("counted", "unchanged")
    for job in [*finished, last]:
        for table in TABLES:
            assert job.content(table) == undisturbed.content(table)
        # Running it once more also sweeps what a kill after the commit left.
        assert pmill.count(job.warehouse, "j", large, "TEXT", *FLAGS).summary["status"] == "unchanged"
        assert job.version() == 0
        assert job.orphans() == []
        assert job.table("sources").drop_columns(["batch"]).equals(undisturbed.table("sources").drop_columns(["batch"]))


def test_a_job_goes_on_where_it_was_killed(large, undisturbed, warehouse):
    # Killed once the first unit has been read: the second run must not read it again.
    process = pmill.start(*arguments(warehouse, large))
    wait_for(lambda: list(warehouse.glob(".pmill/j/plan-*/terms-*.json")), process)
    process.kill()
    process.wait()
    kept = [path.name for path in warehouse.glob(".pmill/j/plan-*/terms-*.json")]
    assert kept
    job = pmill.count(warehouse, "j", large, "TEXT", *FLAGS)
    assert job.content("pairs") == undisturbed.content("pairs")
    assert job.orphans() == []


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("moment", ["begun", "first unit read", "counting"])
def test_ctrl_c_stops_within_seconds_and_commits_nothing(moment, large, undisturbed, warehouse):
    process = subprocess.Popen(
        [pmill.binary(), *map(str, arguments(warehouse, large))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=pmill.environment(),
    )
    pattern = {
        "begun": ".pmill/j/scratch",
        "first unit read": ".pmill/j/plan-*/terms-*.json",
        "counting": ".pmill/j/plan-*/unit-*.json",
    }[moment]
    wait_for(lambda: list(warehouse.glob(pattern)), process)
    if moment == "begun":
        # The folder is made before the handler is set; without reading there is nothing to see here.
        wait_for(lambda: list(warehouse.glob(".pmill/j/plan-*")), process)
    code, seconds = pmill.interrupt(process, wait=30)
    out, err = process.stdout.read(), process.stderr.read().decode()
    assert (code, out, err) == (75, b"", "pmill: interrupted; nothing was committed\n")
    assert seconds < 10
    job = pmill.Job(warehouse, "j")
    assert not job.exists("pairs") and not job.exists("vocab")
    assert list(warehouse.rglob("scratch")) == []
    if moment == "counting":
        again = pmill.count(warehouse, "j", large, "TEXT", *FLAGS)
        assert again.content("pairs") == undisturbed.content("pairs")
        assert again.orphans() == []


def test_what_a_dead_process_left_goes_away_at_the_next_run(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", ["red fox", "red hen"])
    job = pmill.count(warehouse, "j", corpus, "TEXT")
    pmill.score(job)
    # As a kill leaves it between the commit and the clearing away, or in the middle of writing.
    for table in ("vocab", "pairs", "sources", "pmi"):
        (job.folder(table) / "part-00000-0123456789abcdef.parquet").write_bytes(b"half a fi")
    (job.folder("pairs") / "_delta_log" / "00000000000000000001.json#1").write_bytes(b"half a commit")
    plan = warehouse / ".pmill" / "j" / "plan-0123456789abcdef"
    plan.mkdir()
    (plan / "unit-00000-000.run").write_bytes(b"half a run")
    (warehouse / ".pmill" / "j" / "scratch").mkdir()
    assert len(job.orphans()) == 8
    assert pmill.count(warehouse, "j", corpus, "TEXT").summary["status"] == "unchanged"
    assert pmill.score(job)["status"] == "unchanged"
    assert job.orphans() == []


def test_scoring_killed_at_any_moment_leaves_the_old_scores_or_the_new(undisturbed, tmp_path):
    moments = random.Random(7)
    job = undisturbed
    before = job.content("pmi")
    reference = pmill.run("score", "--warehouse", job.warehouse, "--name", "j", "--json").json
    assert reference["status"] == "unchanged"
    kills = 0
    for attempt in range(40):
        process = pmill.start("score", "--warehouse", job.warehouse, "--name", "j", "--min-pair-count", 2 + attempt)
        try:
            process.wait(timeout=moments.uniform(0.01, 0.25))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        rows = pmill.sql(job.warehouse, "SELECT count(*) AS n, min(n_xy) AS least FROM j.pmi")[0]
        assert rows["n"] > 0
        if kills == 8:
            break
    assert kills == 8
    pmill.score(job)
    assert job.content("pmi") == before
    assert job.orphans() == []


def test_two_processes_cannot_write_one_job_at_once(large, warehouse):
    process = pmill.start(*arguments(warehouse, large))
    wait_for(lambda: list(warehouse.glob(".pmill/j/plan-*")), process)
    second = pmill.run(*arguments(warehouse, large), code=75)
    assert "another pmill process is writing job `j`; try again when it is done" in second.err
    process.kill()
    process.wait()
