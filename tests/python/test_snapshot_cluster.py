"""`pmill snapshot merge --cluster`: slices averaged by executors, the bytes of a merge in one process."""

import json
import subprocess
import time

import numpy
import pytest
from safetensors.numpy import save

import pmill
from cluster import Cluster

VALUES = 6_000_000


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    """Three agents of 26 MB: seven slices each."""
    root = tmp_path_factory.mktemp("agents")
    for agent in range(3):
        numbers = numpy.random.default_rng(agent)
        place = root / f"agent{agent}"
        place.mkdir()
        tensors = {
            "a": numbers.standard_normal(VALUES, numpy.float32),
            "b": numbers.standard_normal(500_001, numpy.float32),
            "ids": numpy.arange(9),
        }
        (place / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
        (place / "config.json").write_text('{"model_type": "x"}')
    return [root / f"agent{agent}" for agent in range(3)]


@pytest.fixture(scope="module")
def merged(agents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("here") / "merged"
    pmill.run("snapshot", "merge", *agents, "-o", folder, "--weights", "1/2,1/4,1/4")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def command(cluster, agents, output, *flags):
    return [
        *("snapshot", "merge", *agents, "-o", output, "--weights", "1/2,1/4,1/4", "--unit-size", "1MiB", "--json"),
        *("--cluster", cluster.url, "--cluster-patience", 60, *flags),
    ]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_executors_make_the_bytes_of_one_process(cluster, agents, merged, tmp_path):
    output = tmp_path / "merged"
    done = pmill.run(*command(cluster, agents, output)).json
    assert content(output) == merged
    assert done["target"] == str(output)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    # Again it is there already; another one is not replaced.
    assert pmill.run(*command(cluster, agents, output)).json["outputs"] == done["outputs"]
    refused = pmill.run(*command(cluster, agents, output, "--digest", "none"), code=2)
    assert "exists already" in refused.err


def test_a_merge_on_a_cluster_onto_s3(cluster, agents, merged, store, tmp_path):
    """Executors read ranges of objects and upload the parts."""
    for place in agents:
        for path in place.iterdir():
            store.client.put_object(Bucket=store.bucket, Key=f"{place.name}/{path.name}", Body=path.read_bytes())
    with Cluster(tmp_path / "cluster", executors=0) as ours:
        for _ in range(2):
            ours.start_executor(env=store.env()).ready()
        places = [f"{store.uri}/{place.name}" for place in agents]
        flags = command(ours, places, f"{store.uri}/out/merged")
        asked = pmill.run(*flags, env=store.env(), code=2)
        assert "--units-folder" in asked.err
        pmill.run(*flags, "--units-folder", tmp_path / "units", env=store.env())
    found = {key.split("/")[-1]: store.body(key) for key in store.keys("out/")}
    assert sorted(found) == sorted(merged) and found["model.safetensors"] == merged["model.safetensors"]
    outputs = [json.loads(files["pmill-merge.json"])["outputs"] for files in (found, merged)]
    assert outputs[0] == outputs[1]
    # A unit that was begun a second time removes what it left when it sees that the merge has ended.
    until = time.monotonic() + 60
    while [key for key in store.keys() if "staging" in key]:
        assert time.monotonic() < until, store.keys()
        time.sleep(0.1)
    assert "Uploads" not in store.client.list_multipart_uploads(Bucket=store.bucket)
    assert list((tmp_path / "units").iterdir()) == []


def test_an_executor_that_is_killed_changes_no_byte(agents, merged, tmp_path):
    output = tmp_path / "merged"
    # The first executor to begin this unit dies with it.
    killed = pmill.environment(PMILL_KILL_UNIT="average-0-1")
    with Cluster(tmp_path / "cluster", executors=0) as ours:
        victim = ours.start_executor(env=killed).ready()
        driver = subprocess.Popen(
            [pmill.binary(), *map(str, command(ours, agents, output))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=pmill.environment(),
        )
        assert victim.process.wait(timeout=60) != 0
        ours.start_executor().ready()
        out, err = driver.communicate(timeout=100)
        assert driver.returncode == 0, err.decode()
    assert content(output) == merged
    assert json.loads(out)["target"] == str(output)


def test_a_driver_that_is_killed_is_gone_on_from(cluster, agents, merged, tmp_path):
    output = tmp_path / "merged"
    driver = subprocess.Popen(
        [pmill.binary(), *map(str, command(cluster, agents, output))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=pmill.environment(),
    )
    units, until = tmp_path / ".merged.pmill-units", time.monotonic() + 60
    while not list(units.glob("plan-*/done/*.json")) and driver.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    driver.kill()
    driver.wait(timeout=30)
    pmill.run(*command(cluster, agents, output))
    assert content(output) == merged
    assert not units.exists()


def test_a_nan_is_named_and_nothing_is_left(cluster, agents, tmp_path):
    bad = numpy.zeros(VALUES, numpy.float32)
    bad[5_000_000] = numpy.nan
    place = tmp_path / "bad"
    place.mkdir()
    tensors = {"a": bad, "b": numpy.zeros(500_001, numpy.float32), "ids": numpy.arange(9)}
    (place / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    (place / "config.json").write_text('{"model_type": "x"}')
    output = tmp_path / "merged"
    refused = pmill.run(*command(cluster, [*agents[:2], place], output), code=2)
    assert "NaN at index 5000000" in refused.err and str(place) in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]
    gate = pmill.run(*command(cluster, agents, output, "--evaluate", "true"), code=2)
    assert "--evaluate" in gate.err
