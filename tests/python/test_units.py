"""A job in units, shared out among processes that know only their number: the bytes of one process."""

import shutil

import pytest

import cluster
import pmill

FLAGS = ["--vocab-size", "5000", "--context", "window", "--window", "5"]
CUT = ["--unit-size", "300KiB"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("units") / "corpus"
    pmill.run("sample-corpus", "--output", folder, "--rows", 30_000, "--files", 8)
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    return pmill.count(tmp_path_factory.mktemp("undisturbed"), "j", corpus, "TEXT", *FLAGS)


def shard(warehouse, corpus, index, count, *flags, start=pmill.start, env=None):
    cut = [] if "--unit-size" in flags else CUT
    command = [
        *cluster.arguments(warehouse, corpus, *FLAGS, *cut),
        *("--shard-index", index, "--shard-count", count, "--threads", 1, *flags),
    ]
    return start(*command) if env is None else pmill.run(*command, env=pmill.environment(**env), code=None)


def commit(warehouse, **options):
    return pmill.run("commit", "--warehouse", warehouse, "--name", "j", "--json", **options)


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_shards_gives_the_tables_of_one_process(count, corpus, undisturbed, warehouse):
    shards = [shard(warehouse, corpus, index, count) for index in range(count)]
    assert [process.wait(timeout=100) for process in shards] == [0] * count
    assert len(cluster.manifests(warehouse, "range-")) > 2
    summary = commit(warehouse).json
    assert summary["units"] >= 8
    same = {"status", "files", "skipped", "rows", "tokens", "types", "terms", "pairs", "total_rows", "outside_tokens"}
    assert {key: summary[key] for key in same} == {key: undisturbed.summary[key] for key in same}
    cluster.same(pmill.Job(warehouse, "j"), undisturbed)
    assert commit(warehouse).json["status"] == "unchanged"
    late = shard(warehouse, corpus, 0, count, "--json", start=pmill.run)
    assert late.json["status"] == "unchanged"


def test_phases_run_one_by_one_without_waiting(corpus, undisturbed, warehouse):
    for phase in ("terms", "count", "reduce"):
        early = commit(warehouse, code=None)
        assert early.code in (2, 75), early
        for index in (1, 0):
            flags = ("--phase", phase, "--take-over-after", 1)
            shard(warehouse, corpus, index, 2, *flags, start=pmill.run)
    commit(warehouse)
    cluster.same(pmill.Job(warehouse, "j"), undisturbed)


def test_a_shard_that_died_is_run_again_or_its_units_are_taken_over(corpus, undisturbed, warehouse):
    died = shard(warehouse, corpus, 1, 3, "--take-over-after", 1)
    cluster.reach(died, warehouse, "terms-")
    died.kill()
    died.wait()
    # Shard 2 never comes at all.
    shard(warehouse, corpus, 0, 3, "--take-over-after", 1, start=pmill.run)
    commit(warehouse)
    cluster.same(pmill.Job(warehouse, "j"), undisturbed)


def test_very_many_units_are_summed_in_rounds(warehouse, tmp_path):
    folder = tmp_path / "many"
    pmill.run("sample-corpus", "--output", folder, "--rows", 140 * 30, "--files", 140)
    whole = pmill.count(tmp_path / "one", "j", folder, "TEXT", *FLAGS)
    shards = [shard(warehouse, folder, index, 2, "--unit-size", 1) for index in range(2)]
    assert [process.wait(timeout=100) for process in shards] == [0, 0]
    assert len(cluster.manifests(warehouse, "fold-")) == 3
    assert len(cluster.manifests(warehouse, "combine-")) == 18
    assert commit(warehouse).json["units"] == 140
    cluster.same(pmill.Job(warehouse, "j"), whole)


VARIANTS = {
    "expressions": (
        "concat(lower(\"TEXT\"), ' mod', \"SAMPLE_ID\" % 7)",
        ["--where", '"SAMPLE_ID" % 3 <> 0', "--vocab-size", 700],
    ),
    "subsample": ("TEXT", ["--context", "window", "--weight", "harmonic", "--subsample", "1e-3", "--vocab-size", 700]),
    "given": ("TEXT", ["--vocab", "terms.txt", "--context", "window", "--window", 3]),
    "document": ("TEXT", ["--min-count", 20, "--max-features-per-document", 6]),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_setting_and_every_batch_gives_the_tables_of_one_process(variant, tmp_path):
    text, flags = VARIANTS[variant]
    folder = tmp_path / "corpus"
    pmill.run("sample-corpus", "--output", folder, "--rows", 6000, "--files", 8)
    files = sorted(folder.glob("*.parquet"))
    if variant == "given":
        words = pmill.count(tmp_path / "words", "j", folder, "TEXT", "--vocab-size", 300).terms()
        (tmp_path / "terms.txt").write_text("\n".join([*words[::2], "nowhere"]))

    def in_units(warehouse, inputs):
        command = [*cluster.arguments(warehouse, inputs, *flags, text=text), "--unit-size", "60KiB"]
        pmill.run(*command, "--shard-count", 1, "--shard-index", 0, cwd=tmp_path)
        return commit(warehouse).json

    first = pmill.count(tmp_path / "one", "j", files[:4], text, *flags, cwd=tmp_path)
    assert in_units(tmp_path / "units", files[:4])["units"] == 4
    cluster.same(pmill.Job(tmp_path / "units", "j"), first)
    shutil.copytree(tmp_path / "one", tmp_path / "batch")
    # The batch's settings are those of the first commit, whoever makes it.
    whole = pmill.count(tmp_path / "one", "j", files, text, *flags, cwd=tmp_path)
    summary = in_units(tmp_path / "batch", files)
    assert (summary["files"], summary["version"]) == (4, whole.summary["version"])
    assert summary["outside_tokens"] == whole.summary["outside_tokens"]
    cluster.same(pmill.Job(tmp_path / "batch", "j"), whole)


def test_a_job_that_changed_after_its_units_were_planned_is_not_committed(corpus, warehouse):
    files = sorted(corpus.glob("*.parquet"))
    pmill.count(warehouse, "j", files[:1], "TEXT", *FLAGS)
    shard(warehouse, files[:3], 0, 1, start=pmill.run)
    other = pmill.count(warehouse, "j", files[:2], "TEXT", *FLAGS)
    late = commit(warehouse, code=75)
    assert "has changed since its units were planned" in late.err
    assert pmill.Job(warehouse, "j").facts() == other.facts()
    # The shards again, and the plan of the version that is there now is the one.
    shard(warehouse, files[:3], 0, 1, start=pmill.run)
    assert commit(warehouse).json["files"] == 1
    assert not (warehouse / ".pmill" / "j.units").exists()


def test_a_shard_knows_its_number_from_kubernetes_or_slurm(corpus, warehouse):
    command = [*cluster.arguments(warehouse, corpus, *FLAGS), "--shard-count", 2, "--phase", "terms", "--json"]
    result = pmill.run(*command, env=pmill.environment(JOB_COMPLETION_INDEX=0))
    assert result.json["shard"] == 0
    env = pmill.environment(SLURM_ARRAY_TASK_ID=4, SLURM_ARRAY_TASK_MIN=3)
    assert pmill.run(*command, env=env).json["shard"] == 1
    assert "JOB_COMPLETION_INDEX" in pmill.run(*command, code=2).err


def test_a_bad_file_is_left_out_everywhere_or_ends_the_job(tmp_path):
    folder = tmp_path / "bad"
    for number in range(4):
        texts = [f"red fox {row % 97} and hen {row % 89 + number}" for row in range(20_000)]
        pmill.write(folder / f"{number}.parquet", texts, compression="none", use_dictionary=False)
    bad = folder / "2.parquet"
    content = bytearray(bad.read_bytes())
    content[4:40_000] = bytes(39_996)
    bad.write_bytes(content)
    skip = [*FLAGS, "--on-bad-file", "skip"]
    whole = pmill.count(tmp_path / "one", "j", folder, "TEXT", *skip)
    assert whole.summary["skipped"] == 1
    warehouse = tmp_path / "shards"
    command = [*cluster.arguments(warehouse, folder, *skip), *CUT, "--shard-count", 2, "--take-over-after", 1]
    pmill.run(*command, "--shard-index", 0)
    commit(warehouse)
    cluster.same(pmill.Job(warehouse, "j"), whole)
    command = cluster.arguments(tmp_path / "fail", folder, *FLAGS)
    message = pmill.run(*command, *CUT, "--shard-count", 1, "--shard-index", 0, code=2).err
    assert bad.name in message


@pytest.mark.parametrize("on_bad_file", ["fail", "skip"])
def test_a_unit_that_ends_every_process_is_named_and_left_out_if_bad_files_are(on_bad_file, corpus, warehouse, tmp_path):
    flags = ("--unit-attempts", 2, "--on-bad-file", on_bad_file)
    for _ in range(2):
        died = shard(warehouse, corpus, 0, 1, *flags, env={"PMILL_KILL_UNIT": "terms-00002"})
        assert died.code == -6, died
    last = shard(warehouse, corpus, 0, 1, *flags, env={})
    files = sorted(corpus.glob("*.parquet"))
    if on_bad_file == "fail":
        assert last.code == 2 and "begun 2 times and each time its process died" in last.err
        assert ".parquet" in last.err
        return
    assert last.code == 0, last
    summary = commit(warehouse).json
    sources = pmill.Job(warehouse, "j").table("sources").to_pylist()
    out = [row["uri"].rsplit("/", 1)[1] for row in sources if row["status"] == "skipped"]
    assert 0 < len(out) == summary["skipped"] < len(files)
    left = [path for path in files if path.name not in out]
    whole = pmill.count(tmp_path / "left", "j", left, "TEXT", *FLAGS)
    for table in ("vocab", "pairs", "outside"):
        assert pmill.Job(warehouse, "j").content(table) == whole.content(table)


def test_what_units_cannot_do_is_refused(corpus, warehouse):
    command = cluster.arguments(warehouse, corpus, *FLAGS)
    both = ("--cluster", "http://127.0.0.1:1", "--shard-count", 2)
    assert "give one" in pmill.run(*command, *both, code=2).err
    for command in ("compact", "vacuum", "snapshot"):
        assert "runs in one process only" in pmill.run(command, "--cluster", "http://127.0.0.1:1", code=2).err, command
