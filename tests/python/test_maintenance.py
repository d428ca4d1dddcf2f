"""Checking, time travel, compaction and vacuum: nothing but what was asked for changes, whenever the process dies."""

import json
import os
import shutil
import time

import duckdb
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

import pmill
from kills import split


def inspect(job, *flags, **options):
    return pmill.run("inspect", "--warehouse", job.warehouse, "--name", job.name, *flags, "--json", **options).json


def verified(job, *flags):
    return inspect(job, "--verify", *flags)["verified"]


@pytest.fixture(scope="module")
def counted(sample, tmp_path_factory):
    """Two batches, scored after each."""
    files = sorted(sample.glob("*.parquet"))
    job = pmill.count(tmp_path_factory.mktemp("m") / "wh", "j", files[:2], "TEXT", "--vocab-size", 500)
    pmill.score(job)
    pmill.count(job.warehouse, "j", files, "TEXT", "--vocab-size", 500)
    pmill.score(job)
    return job


@pytest.fixture
def job(counted, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(counted.warehouse, tmp_path / "wh")
    return pmill.Job(tmp_path / "wh", "j")


def rewrite(job, change, table="pairs"):
    """Puts other rows into the newest version's one file; the log names its new size and rows."""
    (path,) = job.files(table)
    rows = change(pq.read_table(path))
    pq.write_table(rows, path)
    entry = sorted((job.folder(table) / "_delta_log").glob("*.json"))[-1]
    lines = [json.loads(line) for line in entry.read_text().splitlines()]
    for line in lines:
        if "add" in line:
            line["add"]["size"] = path.stat().st_size
            stats = json.loads(line["add"]["stats"])
            stats["numRecords"] = rows.num_rows
            line["add"]["stats"] = json.dumps(stats)
    entry.write_text("\n".join(map(json.dumps, lines)))


def changed(column, row, value):
    def change(table):
        values = table[column].to_pylist()
        values[row] = value
        index = table.column_names.index(column)
        return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))

    return change


def test_a_sound_job_is_found_sound(counted):
    report = inspect(counted, "--verify")
    assert report["verified"] == {
        "sound": True,
        "violations": [],
        "violations_in_all": 0,
        "rows": {table: counted.table(table).num_rows for table in ("outside", "pairs", "pmi", "sources", "vocab")},
    }
    # The skew against a slow count.
    partners = {}
    for left, right in counted.pairs():
        partners[left] = partners.get(left, 0) + 1
        partners[right] = partners.get(right, 0) + 1
    largest = sorted(partners.values(), reverse=True)
    assert [row["partners"] for row in report["skew"]["largest"]] == largest[:5]
    top = -(-len(largest) // 100)
    assert report["skew"]["top_percent_share"] == pytest.approx(sum(largest[:top]) / sum(largest))
    assert [version["version"] for version in report["versions"]] == [0, 1]
    assert report["versions"][1]["pairs"] == counted.facts()["pairs"]


@pytest.mark.parametrize(
    "flags",
    [["--weight", "uniform"], ["--weight", "harmonic"], ["--side", "left", "--window", "2"]],
    ids=["uniform", "harmonic", "left"],
)
def test_window_tables_are_found_sound(flags, sample, warehouse):
    first = min(sample.glob("*.parquet"))
    job = pmill.count(warehouse, "j", first, "TEXT", "--vocab-size", 300, "--context", "window", *flags)
    pmill.score(job)
    assert verified(job)["sound"]


@pytest.mark.parametrize(
    "rule, change",
    [
        ("no pair is there twice", lambda t: pa.concat_tables([t.slice(0, 1), t])),
        ("pairs are sorted", lambda t: pa.concat_tables([t.slice(5, 1), t.slice(0, 5), t.slice(6)])),
        ("every count is above zero", changed("count", 3, 0)),
        ("ids are those of the vocabulary", changed("right_id", -1, 500)),
        ("a symmetric pair is stored once, smaller id first", changed("left_id", -1, 499)),
        ("no more rows with both terms than with either", changed("count", 3, 1_000_000)),
        ("as many pairs as counted", lambda t: t.slice(0, t.num_rows - 1)),
        ("counts add up to what was counted", lambda t: changed("count", 0, t["count"][0].as_py() - 1)(t)),
        ("the log's statistics are those of the file", lambda t: t.slice(t.num_rows // 2)),
        ("columns and types are those of the table", lambda t: t.drop_columns(["count"])),
    ],
)
def test_a_wrong_table_of_pairs_is_told(rule, change, job):
    rewrite(job, change)
    result = pmill.run("inspect", "--warehouse", job.warehouse, "--name", "j", "--verify", "--json", code=2)
    report = result.json["verified"]
    assert not report["sound"]
    assert rule in [violation["rule"] for violation in report["violations"] if violation["table"] == "pairs"], report
    assert "are not what they promise" in result.err


@pytest.mark.parametrize(
    "table, rule, change",
    [
        ("vocab", "no term is there twice", lambda t: changed("token", 1, t["token"][0].as_py())(t)),
        ("vocab", "ids are 0, 1, 2, …", changed("id", 4, 7)),
        ("vocab", "a term is in no more rows than it occurs and than there are", changed("documents", 0, 10**9)),
        ("sources", "rows add up to those of the corpus", changed("rows", 0, 1)),
        ("sources", "no file is counted twice", lambda t: changed("uri", 1, t["uri"][0].as_py())(t)),
        ("outside", "with the vocabulary, all features of the corpus", lambda t: t.slice(1)),
        ("pmi", "terms are those of the vocabulary", changed("left", 0, "no such term")),
        ("pmi", "every count is a number above zero", changed("n_xy", 0, 0.0)),
        ("pmi", "rows stand in the order of the pairs, none twice", lambda t: pa.concat_tables([t, t.slice(0, 1)])),
    ],
)
def test_other_wrong_tables_are_told(table, rule, change, job):
    rewrite(job, change, table)
    report = inspect(job, "--verify", code=2)["verified"]
    assert (table, rule) in [(violation["table"], violation["rule"]) for violation in report["violations"]], report


def test_a_term_both_inside_and_outside_the_vocabulary_is_told(job):
    rewrite(job, changed("token", 0, job.terms()[0]), "outside")
    report = inspect(job, "--verify", code=2)["verified"]
    assert "no term is in the vocabulary" in [violation["rule"] for violation in report["violations"]]


def test_lost_cut_and_broken_files_are_told(job):
    (pairs,), (vocab,), (pmi,) = job.files("pairs"), job.files("vocab"), job.files("pmi")
    pairs.unlink()
    pmi.write_bytes(pmi.read_bytes()[:-1])
    broken = bytearray(vocab.read_bytes())
    broken[20:200] = bytes(180)
    vocab.write_bytes(broken)
    report = inspect(job, "--verify", code=2)["verified"]
    rules = {(violation["table"], violation["rule"]) for violation in report["violations"]}
    assert ("pairs", "every file that the log names is there") in rules
    assert ("pmi", "a file has the size that the log names") in rules
    assert ("vocab", "every file decodes") in rules


def test_an_older_version_is_read_whole(counted):
    def numbers(where, *flags):
        query = f"SELECT (SELECT count(*) FROM {where('pairs')}) p, (SELECT sum(rows) FROM {where('sources')}) r, (SELECT max(n) FROM {where('pmi')}) n"
        (row,) = pmill.sql(counted.warehouse, query, *flags)
        return row

    versions = inspect(counted)["versions"]
    for version in versions:
        expected = {"p": version["pairs"], "r": version["rows"], "n": version["rows"]}
        assert numbers(lambda table: f"j.{table} VERSION AS OF {version['version']}") == expected
        assert numbers(lambda table: f"j.{table}", "--version", f"j={version['version']}") == expected
    assert numbers(lambda table: f"j.{table}")["p"] == versions[-1]["pairs"]
    result = pmill.run("sql", "--warehouse", counted.warehouse, "SELECT 1 FROM j.pairs VERSION AS OF 7", code=2)
    assert "job `j` has no version 7; it has versions 0 to 1" in result.err
    result = pmill.run("sql", "--warehouse", counted.warehouse, "--version", "j=7", "SELECT 1", code=2)
    assert "it has versions 0 to 1" in result.err
    assert verified(counted, "--version", "0")["sound"]


def command(job, name, *flags, **options):
    return pmill.run(name, "--warehouse", job.warehouse, "--name", job.name, *flags, **options)


def test_compaction_gives_the_files_that_one_count_would_have_written(job, counted):
    split(job)
    assert len(job.files("pairs")) == 5 and verified(job)["sound"]
    assert command(job, "compact", "--dry-run", "--json").json["status"] == "would compact"
    assert job.version() == 1
    summary = command(job, "compact", "--json").json
    assert (summary["status"], summary["version"], summary["files_before"], summary["files"]) == ("compacted", 2, 5, 1)
    assert job.content("pairs") == counted.content("pairs")
    report = inspect(job, "--verify")
    assert report["verified"]["sound"] and not report["score_is_stale"]
    assert report["versions"][2]["compaction_of"] == 1
    # Nothing to do a second time, nor to score again; a batch may follow.
    assert command(job, "compact", "--json").json["status"] == "unchanged"
    assert pmill.score(job)["status"] == "unchanged"
    assert job.version() == 2 and job.orphans() == []
    (row,) = pmill.sql(job.warehouse, "SELECT count(*) c FROM j.pmi VERSION AS OF 2")
    assert row["c"] == job.facts()["pairs"]


def test_other_readers_read_a_compacted_and_vacuumed_table(job):
    split(job)
    command(job, "compact")
    command(job, "vacuum", "--keep-versions", 1)
    expected = sorted(tuple(row.values()) for row in pmill.sql(job.warehouse, "SELECT * FROM j.pairs"))
    table = DeltaTable(str(job.folder("pairs")))
    assert table.version() == 2

    def rows(found):
        return sorted(tuple(row.values()) for row in found)

    assert rows(pa.table(table.to_pyarrow_table()).to_pylist()) == expected
    assert rows(polars.read_delta(str(job.folder("pairs"))).to_dicts()) == expected
    files = [str(path) for path in job.files("pairs")]
    assert rows(duckdb.sql(f"SELECT * FROM read_parquet({files})").to_arrow_table().to_pylist()) == expected
    assert rows(pa.dataset.dataset(files).to_table().to_pylist()) == expected


def test_vacuum_gives_up_old_versions_and_nothing_else(job):
    before = {table: job.content(table) for table in ("vocab", "pairs", "sources", "outside", "pmi")}
    orphan = job.folder("pairs") / "part-00009-0123456789abcdef.parquet"
    orphan.write_bytes(b"left by a dead process")
    everything = sorted(path for path in job.warehouse.rglob("*") if path.is_file())
    plan = command(job, "vacuum", "--keep-versions", 1, "--dry-run", "--json").json
    assert (plan["status"], plan["oldest"], plan["newest"]) == ("would vacuum", 1, 1)
    assert sorted(path for path in job.warehouse.rglob("*") if path.is_file()) == everything
    done = command(job, "vacuum", "--keep-versions", 1, "--json").json
    assert (done["status"], done["files"]) == ("vacuumed", plan["files"])
    assert not orphan.exists()
    for table, content in before.items():
        left = sorted(path.name for path in job.folder(table).glob("*.parquet"))
        assert [number for number, _ in content] == [name.split("-")[1] for name in left]
        assert DeltaTable(str(job.folder(table))).to_pyarrow_table().num_rows == pq.read_table(job.folder(table) / left[0]).num_rows
    report = inspect(job, "--verify")
    assert report["verified"]["sound"] and [version["version"] for version in report["versions"]] == [1]
    result = pmill.run("sql", "--warehouse", job.warehouse, "SELECT 1 FROM j.pairs VERSION AS OF 0", code=2)
    assert "job `j` has no version 0; it has version 1 only" in result.err
    assert command(job, "vacuum", "--keep-versions", 1, "--json").json["status"] == "unchanged"


def test_vacuum_by_age_keeps_what_was_the_newest_within_it(job):
    assert command(job, "vacuum", "--keep", "1h", "--json").json["status"] == "unchanged"
    # The clock of the second commit was ahead by a day: the first stays until that day is over.
    entry = job.folder("pairs") / "_delta_log" / f"{1:020}.json"
    text = entry.read_text()
    ahead = int((time.time() + 86_400) * 1000)
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        if "commitInfo" in line:
            line["commitInfo"]["timestamp"] = ahead
    entry.write_text("\n".join(map(json.dumps, lines)))
    os.utime(entry, (ahead / 1000, ahead / 1000))
    assert command(job, "vacuum", "--keep", "0s", "--json").json["status"] == "unchanged"
    entry.write_text(text)
    os.utime(entry, (ahead / 1000, ahead / 1000))
    # By age alone, and with a file that seems to be of tomorrow, the first goes now.
    assert command(job, "vacuum", "--keep", "0s", "--json").json["oldest"] == 1
    assert verified(job)["sound"]
    for wrong in ("7", "7 days", "-1d"):
        assert "write 90d" in command(job, "vacuum", f"--keep={wrong}", code=2).err


@pytest.mark.parametrize(
    "name, flags, step, at_least", [("compact", [], 1, 2), ("vacuum", ["--keep-versions", "1"], 4, 3)]
)
def test_killed_at_a_step_the_job_is_whole_and_the_next_run_ends_it(name, flags, step, at_least, job, counted, tmp_path):
    split(job)
    kills, at, expected = 0, 1, counted.content("pairs") if name == "compact" else job.content("pairs")
    while True:
        wh = tmp_path / f"at{at}"
        shutil.copytree(job.warehouse, wh)
        copy = pmill.Job(wh, "j")
        result = command(copy, name, *flags, code=None, env=pmill.environment(PMILL_KILL_AT=at), noise=())
        if result.code == 0:
            break
        assert result.code < 0, result
        assert verified(copy)["sound"]
        command(copy, name, *flags)
        assert copy.content("pairs") == expected
        assert copy.facts() == counted.facts()
        named = {add for table in ("pairs", "vocab", "sources", "outside", "pmi") for add in live_or_old(copy, table)}
        assert {path.name for path in (wh / "j").glob("*/*.parquet")} == named
        kills, at = kills + 1, at + step
        shutil.rmtree(wh)
    assert verified(copy)["sound"]
    assert kills >= at_least


def live_or_old(job, table):
    """Names of the files of all versions that the Delta library can open."""
    newest = DeltaTable(str(job.folder(table)))
    names = set()
    for version in range(newest.version() + 1):
        if (job.folder(table) / "_delta_log" / f"{version:020}.json").exists():
            opened = DeltaTable(str(job.folder(table)), version=version)
            names |= {uri.rsplit("/", 1)[1] for uri in opened.file_uris()}
    return names


def test_a_thousand_versions_are_swept_in_one_pass_over_the_log(job):
    """Opening each version for itself would read half a million entries."""
    folder = job.folder("pmi") / "_delta_log"
    newest = sorted(folder.glob("*.json"))[-1]
    lines = [json.loads(line) for line in newest.read_text().splitlines()]
    text = "\n".join(json.dumps(line) for line in lines if "add" not in line and "remove" not in line)
    first = int(newest.stem) + 1
    for version in range(first, first + 1000):
        (folder / f"{version:020}.json").write_text(text)
    orphan = job.folder("pmi") / "part-00009-0123456789abcdef.parquet"
    orphan.write_bytes(b"left by a dead process")
    began = time.monotonic()
    command(job, "compact")
    assert not orphan.exists()
    assert time.monotonic() - began < 60
    done = command(job, "vacuum", "--keep-versions", 1, "--json").json
    (pmi,) = [table for table in done["tables"] if table["table"] == "pmi"]
    assert pmi["oldest"] == first - 1 or pmi["versions"] >= 1
    assert verified(job)["sound"]
