"""`export` and `embed` on a cluster: the files of one process, byte for byte, whoever dies."""

import hashlib
import shutil
import signal
import subprocess

import pytest

import cluster
import pmill

JOBS = {
    "document": ["--vocab-size", "20000"],
    "window": ["--vocab-size", "20000", "--context", "window", "--window", "4", "--weight", "harmonic"],
    "right": ["--vocab-size", "20000", "--context", "window", "--window", "3", "--side", "right"],
}
FLAGS = ["--unit-attempts", "5", "--cluster-patience", "60"]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with cluster.Cluster(tmp_path_factory.mktemp("roles"), executors=2, slots=1) as running:
        yield running


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix")
    pmill.run("sample-corpus", "--output", folder / "corpus", "--rows", 40000, "--files", 3)
    for name, flags in JOBS.items():
        pmill.count(folder / "wh", name, sorted((folder / "corpus").glob("*.parquet")), "TEXT", *flags)
        assert len(list((folder / "wh" / name / "pairs").glob("part-*.parquet"))) > 1, "several units"
    return folder / "wh"


def files(folder):
    """Digests of all files but pmill.json, which names the program and the settings alike."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def no_plan(warehouse):
    return not list((warehouse / ".pmill").glob("*.matrix"))


@pytest.mark.parametrize(
    ("name", "format", "flags"),
    [
        ("document", "glove", []),
        ("document", "npz", ["--value", "npmi"]),
        ("window", "csr", ["--value", "ppmi", "--min-pair-count", "2"]),
        ("window", "parquet", []),
        ("right", "matrix-market", ["--value", "pmi"]),
        ("right", "csv", []),
    ],
)
def test_an_export_is_that_of_one_process(running, warehouse, tmp_path, name, format, flags):
    command = ["export", "--warehouse", warehouse, "--name", name, "--format", format, *flags, "--json"]
    alone = pmill.run(*command, "--output", tmp_path / "alone").json
    made = pmill.run(*command, "--output", tmp_path / "cluster", "--cluster", running.url, *FLAGS).json
    assert made["entries"] == alone["entries"] > 0
    assert files(tmp_path / "cluster") == files(tmp_path / "alone")
    assert no_plan(warehouse)


@pytest.mark.parametrize(("name", "flags"), [("window", []), ("document", ["--alpha", "1"]), ("right", ["--shift", "2"])])
def test_vectors_are_those_of_one_process(running, warehouse, tmp_path, name, flags):
    command = ["embed", "--warehouse", warehouse, "--name", name, "--dimensions", 16, *flags, "--json"]
    alone = pmill.run(*command, "--output", tmp_path / "alone").json
    made = pmill.run(*command, "--output", tmp_path / "cluster", "--cluster", running.url, *FLAGS).json
    assert made["entries"] == alone["entries"] > 0 and made["singular_values"] == alone["singular_values"]
    assert files(tmp_path / "cluster") == files(tmp_path / "alone")
    assert no_plan(warehouse)


def drive(running, *command):
    command = [pmill.binary(), *map(str, command), "--cluster", running.url, *FLAGS, "--json"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, env=pmill.environment(), **streams)


def test_an_executor_dies_and_a_driver_goes_on(running, warehouse, tmp_path):
    command = ["export", "--warehouse", warehouse, "--name", "window", "--format", "npz", "--value", "pmi"]
    pmill.run(*command, "--output", tmp_path / "alone")
    running.executors[0].signal(signal.SIGSTOP)
    driver = drive(running, *command, "--output", tmp_path / "cluster")
    begun = lambda: list((warehouse / ".pmill").glob("*.matrix/plan-*/done/turn-*"))  # noqa: E731
    assert cluster.wait_for(lambda: begun() or driver.poll() is not None)
    driver.kill()
    driver.wait()
    assert not (tmp_path / "cluster").exists()
    listed = pmill.run("jobs", "--warehouse", warehouse, "--json").json
    assert [job["job"] for job in listed["jobs"]] == ["window"] and listed["jobs"][0]["phase"] in ("turn", "rows")
    kept, plan = [path.stem for path in begun()], begun()[0].parents[1].name
    running.executors[0].kill()
    running.executors[0] = running.start_executor()
    again = drive(running, *command, "--output", tmp_path / "cluster")
    # The one that did it all so far dies as soon as rows are made.
    rows = lambda: list((warehouse / ".pmill").glob("*.matrix/plan-*/done/rows-*"))  # noqa: E731
    cluster.wait_for(lambda: rows() or again.poll() is not None)
    running.executors[1].kill()
    running.executors[1] = running.start_executor()
    code, _, err = cluster.finish(again)
    assert code == 0, err
    assert files(tmp_path / "cluster") == files(tmp_path / "alone")
    assert no_plan(warehouse)
    for executor in running.executors:
        executor.ready()
    logs = "".join(role.log.read_text() for role in running.roles).splitlines()
    ran = [line for line in logs if "unit done" in line and "ran=true" in line and plan in line]
    for name in kept:
        assert sum(f"unit={name} " in line for line in ran) == 1, "what the first driver's units did was gone on with"


def test_other_commands_of_a_job_do_not_end_each_other(running, warehouse, tmp_path):
    commands = [
        ["export", "--warehouse", warehouse, "--name", "document", "--format", "csv", "--output", tmp_path / "csv"],
        ["export", "--warehouse", warehouse, "--name", "document", "--format", "npz", "--value", "pmi", "--output", tmp_path / "npz"],
        ["embed", "--warehouse", warehouse, "--name", "document", "--dimensions", 8, "--output", tmp_path / "vectors"],
    ]
    for driver in [drive(running, *command) for command in commands]:
        code, _, err = cluster.finish(driver)
        assert code == 0, err
    assert no_plan(warehouse)


def test_a_damaged_table_and_a_cluster_that_is_away_are_named(running, warehouse, tmp_path):
    broken = shutil.copytree(warehouse, tmp_path / "wh")
    part = next((broken / "right" / "pairs").rglob("*.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 400] = bytes(400)
    part.write_bytes(content)
    command = ["export", "--warehouse", broken, "--name", "right", "--format", "csv", "--output", tmp_path / "out"]
    message = pmill.run(*command, "--cluster", running.url, *FLAGS, code=2, noise=()).err
    assert part.name in message, message
    assert not (tmp_path / "out").exists()
    message = pmill.run(*command, "--cluster", "http://127.0.0.1:1", code=75).err
    assert "127.0.0.1:1" in message
