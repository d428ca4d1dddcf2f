"""Warehouses and inputs in an S3 store on loopback (moto), also when the store misbehaves."""

import concurrent.futures
import os
import subprocess
import time

import pytest

import cluster
import pmill
from s3 import KEY, SECRET

FLAGS = ["--vocab-size", "300"]
TABLES = ("vocab", "pairs", "sources", "outside", "pmi")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3") / "corpus"
    pmill.run("sample-corpus", "--output", folder, "--rows", 4000, "--files", 4)
    return sorted(folder.glob("*.parquet"))


@pytest.fixture(scope="module")
def local(corpus, tmp_path_factory):
    job = pmill.count(tmp_path_factory.mktemp("local") / "wh", "j", corpus, "TEXT", *FLAGS)
    pmill.score(job)
    return job


def upload(store, corpus, folder="corpus"):
    for path in corpus:
        store.client.put_object(Bucket=store.bucket, Key=f"{folder}/{path.name}", Body=path.read_bytes())


def count(store, *inputs, code=0, work="work", **options):
    return pmill.run(
        "count", "--warehouse", f"{store.uri}/wh", "--name", "j", "--input", *inputs, "--text", "TEXT", *FLAGS,
        "--json", code=code, env=store.env(work), **options,
    )  # fmt: skip


def parquet(store, table):
    """Bytes of a table's files that lie in the bucket, by number."""
    return [(key.rsplit("/", 1)[1].split("-")[1], store.body(key)) for key in store.keys(f"wh/j/{table}/part-")]


def sound(store, **options):
    report = pmill.run(
        "inspect", "--warehouse", f"{store.uri}/wh", "--name", "j", "--verify", "--json", env=store.env(), **options
    )
    assert report.json["verified"]["sound"], report.json["verified"]
    return report.json


CUT = ["--unit-size", "40KiB"]


def test_a_cluster_without_a_shared_file_system_counts_into_s3(store, corpus, local, tmp_path):
    """Driver and executors share the store only: each has temporary folders of its own, and one dies."""
    upload(store, corpus)
    warehouse = f"{store.uri}/wh"

    def run(command, *flags, **options):
        flags = [*flags, "--cluster", running.url, "--json"]
        return pmill.run(command, "--warehouse", warehouse, *flags, env=store.env("driver"), **options).json

    with cluster.Cluster(tmp_path / "roles", executors=0) as running:
        running.executors = [running.start_executor(env=store.env(f"work-{i}"), scratch=tmp_path / f"scratch-{i}") for i in (0, 1)]
        for executor in running.executors:
            executor.ready()
        counted = ["--name", "j", "--text", "TEXT", *FLAGS, *CUT, "--input"]
        driver = subprocess.Popen(
            [pmill.binary(), "count", "--warehouse", warehouse, *map(str, counted), f"{store.uri}/corpus/", "--cluster", running.url, "--json"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=store.env("driver"),
        )  # fmt: skip
        assert cluster.wait_for(lambda: driver.poll() is not None or any("/done/terms-" in key for key in store.keys()), pause=0.05)
        running.executors[0].kill()
        code, summary, err = cluster.finish(driver)
        assert code == 0, err
        assert (summary["status"], summary["rows"]) == ("counted", 4000) and summary["units"] > 3
        assert run("score", "--name", "j")["status"] == "counted"
        for table in ("vocab", "pairs", "outside", "pmi"):
            assert parquet(store, table) == local.content(table), table
        assert sound(store)["facts"] == local.facts()
        query = "SELECT left_id % 10 AS g, sum(count) AS n, count(*) AS pairs FROM j.pairs WHERE count > 1 GROUP BY g ORDER BY g"
        assert run("sql", "--cluster-bytes", 1, query) == pmill.run("sql", "--warehouse", local.warehouse, "--json", query).json
        assert "unit=query-0-" in running.executors[1].log.read_text()
        assert not any("/.pmill/" in key for key in store.keys()), store.keys("wh/.pmill")
        assert run("count", *counted, f"{store.uri}/corpus/")["status"] == "unchanged"
        taken = run("retract", "--name", "j", *CUT, "--input", f"{store.uri}/corpus/{corpus[0].name}")
        assert (taken["status"], taken["total_rows"]) == ("retracted", 3000)
        assert sound(store)["facts"]["rows"] == 3000
        assert run("merge", "--name", "sum", "--from", "j")["status"] == "merged"
        for way in ("cluster", "alone"):
            command = ["export", "--warehouse", warehouse, "--name", "sum", "--format", "csv", "--output", tmp_path / way]
            pmill.run(*command, *(["--cluster", running.url] if way == "cluster" else []), env=store.env("driver"))
        assert (tmp_path / "cluster" / "pairs.csv").read_bytes() == (tmp_path / "alone" / "pairs.csv").read_bytes()
        assert not any("/.pmill/" in key for key in store.keys()), store.keys("wh/.pmill")
        log = "".join(role.log.read_text() for role in running.roles)
        assert SECRET not in log and SECRET not in err


def test_shards_meet_in_s3(store, corpus, local):
    command = ["count", "--warehouse", f"{store.uri}/wh", "--name", "j", "--text", "TEXT", *FLAGS, *CUT, "--shard-count", "2"]
    command += ["--input", *map(str, corpus)]
    shards = [
        subprocess.Popen([pmill.binary(), *command, "--shard-index", str(i)], stderr=subprocess.PIPE, env=store.env(f"shard-{i}"))
        for i in (0, 1)
    ]
    for shard in shards:
        _, err = shard.communicate(timeout=120)
        assert shard.returncode == 0, err
    pmill.run("commit", "--warehouse", f"{store.uri}/wh", "--name", "j", env=store.env("commit"))
    for table in ("vocab", "pairs", "outside"):
        assert parquet(store, table) == local.content(table), table
    assert not any("/.pmill/" in key for key in store.keys())


def test_a_warehouse_on_s3_holds_the_same_bytes_as_one_on_disk(store, corpus, local):
    upload(store, corpus)
    done = count(store, f"{store.uri}/corpus/")
    assert done.json["rows"] == 4000
    pmill.run("score", "--warehouse", f"{store.uri}/wh", "--name", "j", env=store.env())
    for table in ("vocab", "pairs", "outside", "pmi"):
        assert parquet(store, table) == local.content(table), table
    report = sound(store)
    assert report["facts"] == local.facts()
    query = 'SELECT "left", "right", npmi FROM j.pmi ORDER BY npmi DESC, "left", "right" LIMIT 20'
    rows = pmill.sql(f"{store.uri}/wh", query, env=store.env())
    assert rows == pmill.sql(local.warehouse, query) and len(rows) == 20
    assert pmill.run("inspect", "--warehouse", f"{store.uri}/wh", env=store.env()).out == "j\n"
    assert count(store, f"{store.uri}/corpus/*.parquet").json["status"] == "unchanged"


def test_batches_versions_and_vacuum_on_s3(store, corpus):
    upload(store, corpus)
    first = f"{store.uri}/corpus/{corpus[0].name}"
    count(store, first)
    count(store, f"{store.uri}/corpus/*.parquet")
    (row,) = pmill.sql(
        f"{store.uri}/wh",
        "SELECT (SELECT sum(rows) FROM j.sources VERSION AS OF 0) old, (SELECT sum(rows) FROM j.sources) new",
        env=store.env(),
    )
    assert row == {"old": 1000, "new": 4000}
    store.client.put_object(Bucket=store.bucket, Key="wh/j/pairs/part-00009-0123456789abcdef.parquet", Body=b"young")
    arguments = ["vacuum", "--warehouse", f"{store.uri}/wh", "--name", "j", "--keep-versions", "1", "--json"]
    done = pmill.run(*arguments, env=store.env()).json
    assert done["oldest"] == 1
    # What lies there for less than a day may be an upload of someone else.
    assert "wh/j/pairs/part-00009-0123456789abcdef.parquet" in store.keys()
    assert [version["version"] for version in sound(store)["versions"]] == [1]


def test_an_object_that_changed_is_named(store, corpus):
    upload(store, corpus[:1])
    key = f"corpus/{corpus[0].name}"
    count(store, f"{store.uri}/{key}")
    store.client.put_object(Bucket=store.bucket, Key=key, Body=corpus[1].read_bytes())
    result = count(store, f"{store.uri}/{key}", code=2)
    assert f"{store.uri}/{key}" in result.err and "changed" in result.err


@pytest.mark.parametrize("place", ["nothing/here", "corpus/*.csv", "corpus/none.parquet"])
def test_inputs_that_are_not_there_are_named(place, store, corpus):
    upload(store, corpus[:1])
    result = count(store, f"{store.uri}/{place}", code=2)
    assert f"input `{store.uri}/{place}`" in result.err
    assert store.keys("wh") == []


def test_no_credential_is_logged_or_stored(store, corpus):
    upload(store, corpus[:1])
    result = pmill.run(
        "count", "-vv", "--warehouse", f"{store.uri}/wh", "--name", "j", "--input", f"{store.uri}/corpus/",
        "--text", "TEXT", *FLAGS, env=store.env(), noise=(),
    )  # fmt: skip
    assert SECRET not in result.err + result.out and KEY not in result.err + result.out
    for key in store.keys("wh"):
        content = store.body(key)
        assert SECRET.encode() not in content and KEY.encode() not in content, key


def test_of_two_writers_one_is_told_to_try_again(store, corpus):
    """Two machines (two work folders) count two batches at once: none is lost, none is there twice."""
    upload(store, corpus)
    count(store, f"{store.uri}/corpus/{corpus[0].name}")

    def write(number):
        path = f"{store.uri}/corpus/{corpus[number].name}"
        return count(store, path, code=None, work=f"work{number}")

    # What goes wrong in a thread is raised here.
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        codes = dict(zip((1, 2, 3), pool.map(write, (1, 2, 3))))
    assert 0 in [result.code for result in codes.values()]
    for number, result in codes.items():
        assert result.code in (0, 75), result
        if result.code == 75:
            assert "someone else committed" in result.err
            again = count(store, f"{store.uri}/corpus/{corpus[number].name}", work=f"work{number}")
            assert again.json["status"] == "counted"
    report = sound(store)
    assert report["facts"]["rows"] == 4000 and report["sources_counted"] == 4


def reads(method, path):
    """Whether a request reads rows (and not a log or a listing, whose reads are not tried again half-way)."""
    return method == "GET" and ".parquet" in path


@pytest.mark.parametrize(
    "fault",
    [
        lambda number, *_: "slow down" if number % 3 == 1 else None,
        lambda number, *_: "gone" if number % 4 == 2 else None,
        lambda number, method, path: "reset" if number % 2 and reads(method, path) else None,
        lambda number, *_: "slow" if number % 25 == 5 else None,
    ],
    ids=["throttled", "connections cut", "answers cut", "slow"],
)
def test_a_store_that_stumbles_changes_nothing(fault, store, corpus, local):
    upload(store, corpus)
    store.proxy.fault = fault
    count(store, f"{store.uri}/corpus/")
    assert store.proxy.spoiled > 2
    assert parquet(store, "pairs") == local.content("pairs")
    sound(store)


@pytest.mark.parametrize("what", ["list-type", "_last_checkpoint"])
def test_a_listing_or_log_that_is_cut_ends_with_try_again(what, store, corpus, local):
    upload(store, corpus)
    store.proxy.fault = lambda number, method, path: "reset" if number > 3 and what in path else None
    result = count(store, f"{store.uri}/corpus/", code=75)
    assert "try again" in result.err and "ERROR" not in result.err
    store.proxy.fault = lambda *_: None
    count(store, f"{store.uri}/corpus/")
    assert parquet(store, "pairs") == local.content("pairs")


def test_a_lost_answer_to_a_commit_does_not_count_twice(store, corpus, local):
    """The commit was made, its answer lost: the retry finds the version taken, by itself."""
    upload(store, corpus)

    def fault(number, method, path, lost=[]):
        if method == "PUT" and "pairs/_delta_log" in path and not lost:
            lost.append(number)
            return "lost"
        return None

    store.proxy.fault = fault
    result = count(store, f"{store.uri}/corpus/", code=None)
    assert store.proxy.spoiled == 1
    assert result.code in (0, 75), result
    again = count(store, f"{store.uri}/corpus/")
    assert again.json["status"] == "unchanged"
    assert parquet(store, "pairs") == local.content("pairs")
    assert sound(store)["facts"] == local.facts()


@pytest.mark.parametrize("after", [3, 9, 14, 19, 24, 30])
def test_a_store_that_goes_away_ends_the_job_with_try_again(after, store, corpus, local):
    upload(store, corpus)
    store.proxy.fault = lambda number, *_: "gone" if number >= after else None
    result = pmill.run(
        "count", "--warehouse", f"{store.uri}/wh", "--name", "j", "--input", f"{store.uri}/corpus/", "--text", "TEXT",
        *FLAGS, "--json", code=None, env=store.env() | {"PMILL_RETRY_SECONDS": "1"},
    )  # fmt: skip
    assert result.code == 75, result
    assert SECRET not in result.err
    store.proxy.fault = lambda *_: None
    # Nothing is half there: no table, or the whole one.
    if store.keys("wh/j/pairs/_delta_log"):
        sound(store)
    else:
        assert "no job `j`" in pmill.run(
            "inspect", "--warehouse", f"{store.uri}/wh", "--name", "j", env=store.env(), code=2
        ).err
    count(store, f"{store.uri}/corpus/")
    assert parquet(store, "pairs") == local.content("pairs")
    assert sound(store)["facts"] == local.facts()


def test_a_store_that_is_away_for_seconds_is_waited_for(store, corpus, local):
    upload(store, corpus)
    began = []

    def fault(number, method, path):
        if method in ("PUT", "POST") and not began:
            began.append(time.monotonic())
        return "gone" if began and time.monotonic() - began[0] < 4 else None

    store.proxy.fault = fault
    count(store, f"{store.uri}/corpus/")
    assert store.proxy.spoiled > 0
    assert parquet(store, "pairs") == local.content("pairs")


@pytest.mark.skipif("PMILL_S3S_FS" in os.environ, reason="s3s-fs 0.14 does not list the uploads that are begun")
@pytest.mark.parametrize("what", ["partNumber=", "POST"])
def test_an_upload_that_fails_leaves_no_parts_behind(what, store, corpus):
    """Parts of an upload that never ended are invisible, and charged for."""
    upload(store, corpus[:1])
    begun = []

    def fault(number, method, path):
        if method == "POST" and "uploads" in path:
            begun.append(path)
        elif what == "POST" and method == "POST" or method == "PUT" and what in path:
            return "gone"
        return None

    store.proxy.fault = fault
    result = pmill.run(
        "count", "--warehouse", f"{store.uri}/wh", "--name", "j", "--input", f"{store.uri}/corpus/", "--text", "TEXT",
        *FLAGS, code=75, env=store.env() | {"PMILL_RETRY_SECONDS": "1"},
    )  # fmt: skip
    assert "pmill: " in result.err and begun
    assert store.client.list_multipart_uploads(Bucket=store.bucket).get("Uploads", []) == []
    store.proxy.fault = lambda *_: None
    count(store, f"{store.uri}/corpus/")
    assert store.client.list_multipart_uploads(Bucket=store.bucket).get("Uploads", []) == []


def test_a_store_that_was_never_there_is_told(store, corpus):
    store.proxy.fault = lambda *_: "gone"
    result = pmill.run(
        "count", "--warehouse", f"{store.uri}/wh", "--name", "j", "--input", corpus[0], "--text", "TEXT", *FLAGS,
        code=75, env=store.env() | {"PMILL_RETRY_SECONDS": "1"},
    )  # fmt: skip
    assert "pmill: " in result.err and "panicked" not in result.err
    result = pmill.run("sql", "--warehouse", "s3://", "SELECT 1", code=2, env=store.env())
    assert "s3://BUCKET/KEY" in result.err
