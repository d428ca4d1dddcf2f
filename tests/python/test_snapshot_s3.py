"""Snapshots in an S3 store on loopback (moto): read by ranges, written in parts, also when the store or pmill stops."""

import json
import signal
import subprocess
import time

import numpy
import pytest
from safetensors.numpy import load, save

import pmill

ROWS = 1_300_000


def tensors(agent, rows=ROWS):
    numbers = numpy.random.default_rng(agent)
    return {
        "a": numbers.standard_normal((rows, 4), numpy.float32),
        "b": numbers.standard_normal((rows // 4, 8), numpy.float32),
        "ids": numpy.arange(5),
    }


@pytest.fixture(scope="module")
def agents(tmp_path_factory):
    """Three agents of 31 MB on disk; two weight files each, so that the index counts."""
    root = tmp_path_factory.mktemp("snapshots")
    for agent in range(3):
        place = root / f"agent{agent}"
        place.mkdir()
        all_tensors = tensors(agent)
        index = {"metadata": {"total_size": sum(t.nbytes for t in all_tensors.values())}, "weight_map": {}}
        for number, names in enumerate((["a"], ["b", "ids"]), 1):
            file = f"model-{number:05}-of-00002.safetensors"
            (place / file).write_bytes(save({name: all_tensors[name] for name in names}, {"format": "pt"}))
            index["weight_map"] |= {name: file for name in names}
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
        (place / "config.json").write_text('{"model_type": "x"}')
    return [root / f"agent{agent}" for agent in range(3)]


@pytest.fixture(scope="module")
def merged(agents, tmp_path_factory):
    """What the same merge writes to disk."""
    folder = tmp_path_factory.mktemp("merged") / "merged"
    pmill.run("snapshot", "merge", *agents, "-o", folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def upload(store, agents):
    for place in agents:
        for path in place.iterdir():
            key = f"runs/{place.name}/{path.name}"
            store.client.put_object(Bucket=store.bucket, Key=key, Body=path.read_bytes())
    return [f"{store.uri}/runs/{place.name}" for place in agents]


def small(store, count=3):
    """Agents of a few bytes."""
    for agent in range(count):
        body = save({"w": numpy.full((4, 8), agent + 0.5, numpy.float32)})
        store.client.put_object(Bucket=store.bucket, Key=f"small/{agent}/model.safetensors", Body=body)
    return [f"{store.uri}/small/{agent}" for agent in range(count)]


def snapshot(store, *arguments, **options):
    return pmill.run("snapshot", *arguments, "--json", env=store.env(), **options)


def weights(store, key):
    return load(store.body(key))


def output(store, folder="out/merged"):
    return {key[len(folder) + 1 :]: store.body(key) for key in store.keys(f"{folder}/")}


def same(found, expected):
    """All files alike; the manifests but for the places and versions of the inputs."""
    assert sorted(found) == sorted(expected)
    for name in found:
        if name != "pmill-merge.json":
            assert found[name] == expected[name], name
    ours, theirs = json.loads(found["pmill-merge.json"]), json.loads(expected["pmill-merge.json"])
    assert ours["outputs"] == theirs["outputs"]
    assert [one["digest"] for one in ours["inputs"]] == [one["digest"] for one in theirs["inputs"]]


def nothing_left(store):
    assert not [key for key in store.keys() if "pmill-staging" in key]
    assert "Uploads" not in store.client.list_multipart_uploads(Bucket=store.bucket)


def test_all_commands_take_uris(store, agents, tmp_path):
    places = small(store)
    found = snapshot(store, "inspect", places[0], "--data").json
    assert found["tensors"][0]["name"] == "w" and found["digest"]
    assert snapshot(store, "inspect", f"{places[0]}/model.safetensors", "--data").json["digest"] == found["digest"]
    far = snapshot(store, "distance", *places, "--html", tmp_path / "d.html").json
    assert far["consensus"] == pytest.approx(32 * 2 / 3)
    snapshot(store, "mix", *places, "--topology", "ring", "-o", f"{store.uri}/mixed")
    assert (weights(store, "mixed/agent-001/model.safetensors")["w"] == 1.5).all()
    snapshot(store, "interpolate", *places[:2], "--steps", 4, "-o", f"{store.uri}/between")
    assert (weights(store, "between/point-001/model.safetensors")["w"] == 0.75).all()
    # From the store to disk and back, and one file.
    snapshot(store, "merge", *places, "-o", tmp_path / "local")
    one = snapshot(store, "merge", tmp_path / "local", places[2], "-o", f"{store.uri}/one.safetensors", "--weights", "1/2,1/2")
    assert (weights(store, "one.safetensors")["w"] == 2).all()
    assert one.json["target"] == f"{store.uri}/one.safetensors"
    assert "one.safetensors.pmill-merge.json" in store.keys()
    nothing_left(store)


def test_a_merge_on_s3_has_the_bytes_of_one_on_disk(store, agents, merged):
    places = upload(store, agents)
    limited = ["--memory-limit", "64MiB"]
    done = snapshot(store, "merge", *places, "-o", f"{store.uri}/out/merged", *limited)
    same(output(store), merged)
    nothing_left(store)
    assert done.peak_bytes < 300 << 20
    # The same again is there already; another merge is refused by name, and takes its place when asked to.
    snapshot(store, "merge", *places, "-o", f"{store.uri}/out/merged")
    refused = snapshot(store, "merge", *places[:2], "-o", f"{store.uri}/out/merged", code=2)
    assert f"`{store.uri}/out/merged` exists already" in refused.err
    snapshot(store, "merge", *places[:2], "-o", f"{store.uri}/out/merged", "--overwrite")
    found = json.loads(output(store)["pmill-merge.json"])
    assert found["outputs"][0]["weights"] == ["1/2", "1/2"]
    nothing_left(store)


def test_a_merge_killed_in_the_middle_goes_on(store, agents, merged):
    places = upload(store, agents)
    command = ["snapshot", "merge", *places, "-o", f"{store.uri}/out/merged", "--json", "--threads", "1"]
    # After two parts the store answers no more, so that there is a middle to be killed in.
    parts = []

    def fault(number, method, path):
        if "partNumber" in path:
            parts.append(path)
            return "hang" if len(parts) > 2 else None
        return None

    store.proxy.fault = fault
    process = subprocess.Popen(
        [pmill.binary(), *map(str, command)], env=store.env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not [key for key in store.keys() if "/.merged.pmill-staging/group-" in f"/{key}"]:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert store.keys("out/merged/") == []
    store.proxy.fault = lambda *_: None
    # Nothing of it loads, and the next run has less to do.
    refused = snapshot(store, "inspect", f"{store.uri}/out/merged", code=2)
    assert "holds no snapshot" in refused.err
    done = snapshot(store, *command[1:-3])
    assert done.json["resumed_slices"] > 0
    same(output(store), merged)
    nothing_left(store)


@pytest.mark.parametrize(
    "fault",
    [
        lambda number, *_: "slow down" if number % 3 == 1 else None,
        lambda number, *_: "gone" if number % 4 == 2 else None,
        lambda number, method, path: "lost" if method == "POST" and "uploadId" in path and not number % 2 else None,
    ],
    ids=["throttled", "connections cut", "completion's answer lost"],
)
def test_a_store_that_stumbles_changes_nothing(fault, store, agents, merged):
    places = upload(store, agents)
    store.proxy.fault = fault
    snapshot(store, "merge", *places, "-o", f"{store.uri}/out/merged")
    same(output(store), merged)
    nothing_left(store)


def test_a_store_that_goes_away_ends_with_try_again_and_no_model(store):
    places = small(store)
    expected = None
    for after in range(4, 60, 8):
        store.proxy.fault = lambda number, *_, first=store.proxy.seen, after=after: (
            "gone" if number - first >= after else None
        )
        command = ["snapshot", "merge", *places, "-o", f"{store.uri}/out{after}/merged", "--json"]
        stopped = pmill.run(*command, code=None, env=store.env() | {"PMILL_RETRY_SECONDS": "1"})
        store.proxy.fault = lambda *_: None
        if stopped.code == 0:
            break
        assert stopped.code == 75, stopped
        # A model is there whole, or none that loads.
        there = snapshot(store, "inspect", f"{store.uri}/out{after}/merged", "--data", code=None)
        done = snapshot(store, *command[1:-1])
        digest = done.json["outputs"][0]["digest"]
        expected = expected or digest
        assert digest == expected and (there.code == 2 or there.json["digest"] == expected)
    assert stopped.code == 0 and after > 10
    nothing_left(store)


def test_what_is_not_there_or_changes_is_named(store, tmp_path):
    places = small(store, 2)
    missing = snapshot(store, "merge", places[0], f"{store.uri}/none", "-o", tmp_path / "m", code=2)
    assert f"`{store.uri}/none` holds no snapshot" in missing.err
    bucket = snapshot(store, "merge", *places, "-o", "s3://", code=2)
    assert "expected s3://BUCKET/KEY" in bucket.err
    scheme = snapshot(store, "inspect", "http://host/x", code=2)
    assert "s3://BUCKET/KEY" in scheme.err

    def fault(number, method, path, changed=[]):
        # The second read of data finds another object.
        if method == "GET" and "small/1/model.safetensors" in path:
            changed.append(path)
            if len(changed) == 3:
                body = save({"w": numpy.full((4, 8), 9.0, numpy.float32)})
                store.client.put_object(Bucket=store.bucket, Key="small/1/model.safetensors", Body=body)
        return None

    store.proxy.fault = fault
    changed = snapshot(store, "merge", *places, "-o", f"{store.uri}/m", code=75)
    assert f"`{places[1]}/model.safetensors` changed while it was being read" in changed.err
    assert store.keys("m/") == []


def test_a_nan_is_named_and_leaves_nothing(store):
    places = small(store, 2)
    bad = numpy.zeros((4, 8), numpy.float32)
    bad[2, 3] = numpy.nan
    store.client.put_object(Bucket=store.bucket, Key="small/1/model.safetensors", Body=save({"w": bad}))
    refused = snapshot(store, "merge", *places, "-o", f"{store.uri}/m", code=2)
    assert "NaN at index 19" in refused.err and places[1] in refused.err
    assert store.keys("m") == []
    nothing_left(store)


# The loss is the distance of the weights from 1; only a path on disk can be read.
EVALUATE = """
import os, pathlib, struct, sys
place = pathlib.Path(sys.argv[-1])
assert str(place) == os.environ["PMILL_SNAPSHOT"] and place.exists(), place
data = (place / "model.safetensors" if place.is_dir() else place).read_bytes()
start = 8 + struct.unpack("<Q", data[:8])[0]
values = struct.unpack(f"<{(len(data) - start) // 4}f", data[start:])
with open(os.environ["JUDGED"], "a") as log:
    log.write(f"{place} {sorted(path.name for path in place.iterdir()) if place.is_dir() else ''}\\n")
print(sum(abs(value - 1) for value in values) / len(values))
"""


@pytest.fixture
def gate(store, tmp_path, monkeypatch):
    """Agents at 0.5, 1.5 and 2.5, with more beside them than a model needs, and flags of a gate."""
    monkeypatch.setenv("JUDGED", str(tmp_path / "judged"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    places = small(store)
    for agent in range(3):
        for name, body in (("config.json", b'{"model_type": "x"}'), ("optimizer.pt", b"much")):
            store.client.put_object(Bucket=store.bucket, Key=f"small/{agent}/{name}", Body=body)
    flags = ["--evaluate", f"python3 '{tmp_path}/evaluate.py'", "--scratch", tmp_path / "scratch"]
    return places, flags


def test_a_gate_judges_what_is_in_a_store(store, gate, tmp_path):
    places, flags = gate
    target = f"{store.uri}/gated/model"
    done = snapshot(store, "merge", *places[:2], "-o", target, *flags, "--leave-one-out").json
    assert done["target"] == target and done["gate"]["passed"] and done["gate"]["merged_loss"] == 0
    assert [judged["snapshot"] for judged in done["gate"]["locals"]] == places[:2]
    assert [judged["loss"] for judged in done["gate"]["locals"]] == [0.5, 0.5]
    assert [judged["loss"] for judged in done["gate"]["leave_one_out"]] == [0.5, 0.5]
    assert (weights(store, "gated/model/model.safetensors")["w"] == 1).all()
    # What the command saw: models on disk, without what is no part of one.
    judged = (tmp_path / "judged").read_text().splitlines()
    assert len(judged) == 5 and all("['config.json', 'model.safetensors'" in line for line in judged), judged
    assert not any("optimizer.pt" in line for line in judged)
    # The files are those of a merge without a gate.
    snapshot(store, "merge", *places[:2], "-o", f"{store.uri}/plain/model")
    assert output(store, "gated/model") == output(store, "plain/model")
    # The same again is there, and is judged where it is; another one is refused.
    again = snapshot(store, "merge", *places[:2], "-o", target, *flags).json
    assert again["gate"]["passed"] and again["gate"]["merged_loss"] == 0
    assert "exists already" in snapshot(store, "merge", *places, "-o", target, *flags, code=2).err
    snapshot(store, "merge", *places[1:], "-o", target, *flags, "--overwrite")
    assert (weights(store, "gated/model/model.safetensors")["w"] == 2).all()
    snapshot(store, "merge", *places[:2], "-o", f"{store.uri}/one.safetensors", *flags)
    assert (weights(store, "one.safetensors")["w"] == 1).all()
    assert "one.safetensors.pmill-merge.json" in store.keys()
    # From a store to disk.
    snapshot(store, "merge", *places[:2], "-o", tmp_path / "local", *flags)
    assert (load((tmp_path / "local" / "model.safetensors").read_bytes())["w"] == 1).all()
    assert list((tmp_path / "scratch").iterdir()) == [] and not list(tmp_path.glob(".*"))
    nothing_left(store)


def test_a_gate_that_stays_shut_leaves_nothing_in_the_store(store, gate, tmp_path):
    places, flags = gate
    script = EVALUATE.replace("abs(value - 1)", "min(abs(value - 0.5), abs(value - 1.5))")
    (tmp_path / "evaluate.py").write_text(script)
    target = f"{store.uri}/gated/model"
    refused = snapshot(store, "merge", *places[:2], "-o", target, *flags, code=2).err
    assert "loss 0.5 is above the mean loss 0 of the 2 snapshots" in refused and "was not written" in refused
    assert store.keys("gated/") == []
    broken = snapshot(store, "merge", *places[:2], "-o", target, "--evaluate", "false", code=2).err
    assert f"of `{places[0]}` ended with exit status: 1" in broken
    assert store.keys("gated/") == [] and list((tmp_path / "scratch").iterdir()) == []
    done = snapshot(store, "merge", *places[:2], "-o", target, *flags, "--gate", "report").json
    assert not done["gate"]["passed"] and (weights(store, "gated/model/model.safetensors")["w"] == 1).all()
    nothing_left(store)


def test_a_gated_model_of_many_parts_survives_a_store_that_stumbles(store, agents, merged, tmp_path):
    places = upload(store, agents)
    flags = ["--evaluate", "echo 1 #", "--scratch", tmp_path]
    store.proxy.fault = lambda number, *_: "slow down" if number % 5 == 1 else None
    snapshot(store, "merge", *places, "-o", f"{store.uri}/out/merged", *flags)
    same(output(store), merged)
    nothing_left(store)
    # Away for good: try again, and nothing that loads.
    fault = lambda number, method, path: "gone" if "partNumber" in path else None  # noqa: E731
    store.proxy.fault = fault
    command = ["snapshot", "merge", *places, "-o", f"{store.uri}/out/other", *flags]
    stopped = pmill.run(*command, code=75, env=store.env() | {"PMILL_RETRY_SECONDS": "1"})
    assert "out/other" in stopped.err
    store.proxy.fault = lambda *_: None
    assert store.keys("out/other") == []
    snapshot(store, *command[1:])
    same(output(store, "out/other"), merged)
    nothing_left(store)
