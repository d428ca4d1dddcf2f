"""What changes a job, or reads it, on a cluster: the bytes of one process, whoever dies; and what is listed meanwhile."""

import shutil
import signal
import subprocess

import pyarrow.parquet as pq
import pytest

import cluster
import pmill

FLAGS = ["--vocab-size", "1500", "--context", "window", "--window", "3"]
CUT = ["--unit-size", "60KiB"]
TABLES = ("vocab", "pairs", "outside")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("changes") / "corpus"
    pmill.run("sample-corpus", "--output", folder, "--rows", 8000, "--files", 4)
    return sorted(folder.glob("*.parquet"))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with cluster.Cluster(tmp_path_factory.mktemp("roles"), executors=2, slots=1) as running:
        yield running


@pytest.fixture(scope="module")
def counted(corpus, tmp_path_factory):
    return pmill.count(tmp_path_factory.mktemp("counted") / "wh", "j", corpus, "TEXT", *FLAGS)


@pytest.fixture
def both(counted, tmp_path):
    """The same job twice: to be changed in process, and on the cluster."""
    return [pmill.Job(shutil.copytree(counted.warehouse, tmp_path / way), "j") for way in ("alone", "cluster")]


def drive(*command):
    """Starts a command and leaves it running."""
    command = [pmill.binary(), *map(str, command), "--json"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, env=pmill.environment(), **streams)


def with_a_death(running, *command):
    """Runs a driver, one of whose executors is killed while the units run. Gives the summary."""
    driver = drive(*command, "--cluster", running.url)
    running.executors[0].kill()
    running.executors[0] = running.start_executor()
    code, summary, err = cluster.finish(driver)
    assert code == 0, err
    running.executors[0].ready()
    return summary


def without_times(summary):
    return {key: value for key, value in summary.items() if key not in ("seconds", "peak_memory_bytes", "annotating_seconds", "output")}


def retract(job, *flags):
    return ["retract", "--warehouse", job.warehouse, "--name", "j", *flags]


def test_files_and_rows_are_taken_out_whoever_dies(both, running, corpus):
    alone, on_cluster = both
    steps = [
        ["--input", corpus[1], corpus[2], "--where", '"SAMPLE_ID" % 3 = 0'],
        ["--input", corpus[1]],
        ["--input", *corpus],
    ]
    for step in steps:
        expected = pmill.run(*retract(alone, *step), "--json").json
        assert expected["status"] == "retracted" and expected["rows"] > 0
        made = with_a_death(running, *retract(on_cluster, *step), *CUT)
        assert without_times(made) == without_times(expected)
        cluster.same(on_cluster, alone, TABLES)
    assert pmill.run(*retract(on_cluster, *step), "--cluster", running.url, "--json").json["status"] == "unchanged"


def test_what_was_never_counted_is_not_taken_out(both, running, corpus, tmp_path):
    other = pmill.write(tmp_path / "other.parquet", ["red fox"] * 50)
    command = retract(both[1], "--input", other)
    alone = pmill.run(*command, code=2).err
    assert pmill.run(*command, "--cluster", running.url, code=2).err == alone
    # The same number of rows, the same size as the log says, and other words.
    swapped = shutil.copy(corpus[1], tmp_path / "swapped.parquet")
    command = retract(both[1], "--input", corpus[0], "--old", swapped)
    alone = pmill.run(*command, code=2).err
    assert "it is not the content that was counted" in alone or "was never counted" in alone or "is not the content" in alone
    before = both[1].content("pairs")
    message = pmill.run(*command, "--cluster", running.url, *CUT, code=2).err
    assert "not the content" in message or "never counted" in message
    assert both[1].content("pairs") == before


@pytest.mark.parametrize("way", ["cluster", "shards"])
def test_a_changed_file_is_counted_again(way, both, running, corpus, tmp_path):
    alone, other = both
    files = [shutil.copy2(path, tmp_path / path.name) for path in corpus[:2]]
    command = ["--input", *files, "--text", "TEXT", *FLAGS, "--name", "again"]
    for job in both:
        pmill.run("count", "--warehouse", job.warehouse, *command)
    old = shutil.copy2(files[0], tmp_path / "old.parquet")
    table = pq.read_table(files[0])
    pq.write_table(table.slice(100), files[0])
    again = [*command, "--recount", files[0], "--old", old]
    pmill.run("count", "--warehouse", alone.warehouse, *again)
    if way == "cluster":
        made = pmill.run("count", "--warehouse", other.warehouse, *again, "--cluster", running.url, *CUT, "--json").json
    else:
        shards = [drive("count", "--warehouse", other.warehouse, *again, "--shard-count", 2, "--shard-index", i, *CUT) for i in (0, 1)]
        for shard in shards:
            code, _, err = cluster.finish(shard)
            assert code == 0, err
        made = pmill.run("commit", "--warehouse", other.warehouse, "--name", "again", "--json").json
    assert (made["status"], made["retracted_rows"], made["rows"]) == ("counted", table.num_rows, table.num_rows - 100)
    cluster.same(pmill.Job(other.warehouse, "again"), pmill.Job(alone.warehouse, "again"), TABLES)


def test_tables_are_merged_also_by_term_whoever_dies(running, corpus, tmp_path):
    for number, path in enumerate(corpus):
        pmill.count(tmp_path / "parts", f"p{number}", path, "TEXT", *FLAGS)
    parts = [f"{tmp_path}/parts/p{number}" for number in range(len(corpus))]
    ways = [("alone", []), ("cluster", ["--cluster", running.url])]
    # Into a new job; then more into it. All of them have vocabularies of their own.
    for some in (parts[:2], parts[2:]):
        made = []
        for way, flags in ways:
            command = ["merge", "--warehouse", tmp_path / way, "--name", "j", "--from", *some, "--remap"]
            made.append(with_a_death(running, *command) if flags else pmill.run(*command, "--json").json)
        assert made[0]["status"] == "merged" and made[0]["dropped_pairs"] > 0
        assert without_times(made[0]) == without_times(made[1])
        cluster.same(pmill.Job(tmp_path / "cluster", "j"), pmill.Job(tmp_path / "alone", "j"), TABLES)
        assert not list((tmp_path / "cluster" / ".pmill").glob("*.merges"))
    again = pmill.run(*command, "--cluster", running.url, "--json").json
    assert again["status"] == "unchanged"


def test_tables_of_one_vocabulary_are_merged_as_one_count(running, counted, corpus, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("\n".join(counted.terms()) + "\n")
    flags = ["--context", "window", "--window", "3", "--vocab", words]
    whole = pmill.count(tmp_path / "whole", "j", corpus, "TEXT", *flags)
    for number, some in enumerate((corpus[:1], corpus[1:])):
        pmill.count(tmp_path / "wh", f"p{number}", some, "TEXT", *flags)
    command = ["merge", "--warehouse", tmp_path / "wh", "--name", "j", "--from", "p0", "p1", "--cluster", running.url, "--remap"]
    assert pmill.run(*command, "--json").json["pairs"] == whole.facts()["pairs"]
    assert pmill.Job(tmp_path / "wh", "j").pairs() == whole.pairs()


def test_files_are_annotated_whoever_dies(both, running, corpus, tmp_path):
    pmill.score(both[0], "--min-pair-count", 2)
    command = ["annotate", "--warehouse", both[0].warehouse, "--name", "j", "--input", *corpus, "--quantiles", 0.1]
    expected = pmill.run(*command, "--output", tmp_path / "one", "--json").json
    made = with_a_death(running, *command, "--output", tmp_path / "other")
    assert without_times(made) == without_times(expected)
    content = [
        {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        for root in (tmp_path / "one", tmp_path / "other")
    ]
    assert content[0] == content[1] and len(content[0]) > len(corpus)
    again = pmill.run(*command, "--output", tmp_path / "other", "--cluster", running.url, "--json").json
    assert again["status"] == "unchanged"
    assert not list((both[0].warehouse / ".pmill").glob("*.elsewhere"))


@pytest.fixture
def held(running):
    """Executors that do nothing while the test looks."""
    for executor in running.executors:
        executor.signal(signal.SIGSTOP)
    yield
    for executor in running.executors:
        executor.signal(signal.SIGCONT)


@pytest.mark.parametrize("what", ["retract", "score", "merge", "annotate"])
def test_every_kind_of_job_is_listed_and_goes_on(what, held, both, running, corpus, tmp_path):
    job = both[1]
    place = ["--warehouse", job.warehouse, "--name", "j"]
    if what == "annotate":
        pmill.score(job)
    commands = {
        "retract": (["retract", *place, "--input", corpus[0]], "terms"),
        "score": (["score", *place], "sum"),
        "merge": (["merge", "--warehouse", job.warehouse, "--name", "sum", "--from", "j"], "merge"),
        "annotate": (["annotate", *place, "--input", *corpus, "--output", tmp_path / "out"], "annotate"),
    }
    command, phase = commands[what]
    driver = drive(*command, "--cluster", running.url)

    def listed():
        return pmill.run("jobs", "--warehouse", job.warehouse, "--json").json["jobs"]

    assert cluster.wait_for(lambda: driver.poll() is not None or listed(), pause=0.1)
    found = [(one["job"], one["phase"], one["done"]) for one in listed()]
    name = "sum" if what == "merge" else "j"
    assert found == [(name, phase, 0)]
    if what in ("merge", "annotate"):
        pmill.run("jobs", "--warehouse", job.warehouse, "--cancel", name)
        code, _, err = cluster.finish(driver, wait=60)
        assert code == 75 and "it was cancelled" in err, err
        driver = drive(*command, "--cluster", running.url)
    for executor in running.executors:
        executor.signal(signal.SIGCONT)
    code, _, err = cluster.finish(driver)
    assert code == 0, err
    assert listed() == []


def test_why_a_unit_failed_is_listed_with_its_input(running, both, corpus, tmp_path):
    pmill.score(both[1])
    files = [shutil.copy2(path, tmp_path / path.name) for path in corpus]
    content = bytearray(files[2].read_bytes())
    content[4:20_000] = bytes(19_996)
    files[2].write_bytes(content)
    command = ["annotate", "--warehouse", both[1].warehouse, "--name", "j", "--input", *files, "--output", tmp_path / "out"]
    message = pmill.run(*command, "--cluster", running.url, code=2).err
    assert str(files[2]) in message
