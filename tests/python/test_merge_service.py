"""The merge service: real gRPC clients (grpcio), every rule and refusal, restarts and kills, tokens and TLS."""

import importlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import grpc
import numpy
import pytest
from safetensors.numpy import load_file, save_file

import certificates
import pmill
from cluster import Cluster

EXAMPLE = Path(__file__).parent / "examples" / "merge_agent.py"


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """A folder with the messages and stubs that grpcio-tools makes."""
    folder = tmp_path_factory.mktemp("stubs")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{pmill.REPO / 'proto'}"]
    outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}", "snapshot.proto"]
    subprocess.run(command + outputs, check=True, timeout=60)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def messages(stubs):
    return importlib.import_module("snapshot_pb2")


class Service:
    """A service in its own process."""

    def __init__(self, folder, *flags, listen="127.0.0.1:0", env=None):
        self.folder, self.flags, self.listen, self.env = Path(folder), flags, listen, env
        self.start()

    def start(self):
        self.log = open(self.folder / "service.log", "ab")
        self.process = subprocess.Popen(
            [pmill.binary(), "snapshot", "serve", "--warehouse", self.folder / "wh", "--root", self.folder, "--listen"]
            + [self.listen, *map(str, self.flags)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=self.env or pmill.environment(),
        )
        self.url = self.process.stdout.readline().decode().strip()
        assert self.url.startswith("http"), (self.folder / "service.log").read_text()
        self.address = self.url.split("://")[1]
        # The same port again after a restart, so that clients find it.
        self.listen = self.address
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=20)
        self.process.stdout.close()
        self.log.close()
        return code

    def stub(self):
        return importlib.import_module("snapshot_pb2_grpc").MergingStub(grpc.insecure_channel(self.address))

    def pmill(self, command, *arguments, **options):
        return pmill.run("snapshot", command, *arguments, "--server", self.url, **options)


@pytest.fixture
def service(stubs, tmp_path):
    service = Service(tmp_path)
    yield service
    assert service.stop() == 0
    log = (tmp_path / "service.log").read_text()
    assert not any(noise in log for noise in pmill.NOISE), log


def snapshot(folder, seed, shape=(40, 50), dtype=numpy.float32):
    """A model folder with one matrix, a bias and a config."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = numpy.random.default_rng(seed)
    weights = numbers.standard_normal(shape).astype(dtype)
    save_file({"w": weights, "b": weights[0].copy()}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "toy", "hidden_size": 50}')
    return folder


def agents(folder, count, **options):
    return [snapshot(folder / f"agent{number}", number, **options) for number in range(count)]


def announce(messages, stub, run, count, **more):
    rule = more.pop("rule", messages.Rule(all=messages.All()))
    return stub.Announce(messages.AnnounceRequest(run=run, agents=count, rule=rule, **more))


def publish(messages, stub, run, agent, place, step=1, **more):
    request = messages.PublishRequest(run=run, agent=str(agent), uri=str(place), step=step, **more)
    return stub.Publish(request, timeout=60)


def ended(messages, stub, run, timeout=60):
    """The last state of a run."""
    return list(stub.Watch(messages.GetRequest(run=run), timeout=timeout))[-1]


def refused(code, call, *words):
    with pytest.raises(grpc.RpcError) as error:
        call()
    assert error.value.code() == code, error.value
    for word in words:
        assert word in error.value.details(), error.value.details()


def test_the_python_example_leads_three_agents_to_one_exact_merge(service, messages, stubs, tmp_path):
    folders = agents(tmp_path, 3)
    environment = pmill.environment(PYTHONPATH=stubs)
    processes = [
        subprocess.Popen(
            [sys.executable, EXAMPLE, service.address, "run-1", str(number), "3", str(folder)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for number, folder in enumerate(folders)
    ]
    outputs = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    merged = Path(outputs[0][-1])
    assert {lines[-1] for lines in outputs} == {str(merged)}
    inputs = [load_file(folder / "model.safetensors")["w"].ravel().tolist() for folder in folders]
    result = load_file(merged / "model.safetensors")["w"].ravel()
    for values, found in zip(zip(*inputs), result):
        # 100, 200 and 300 examples; the nearest float to the exact sum.
        exact = sum(Fraction(value) * (number + 1) for number, value in enumerate(values)) / 6
        errors = [abs(Fraction(float(numpy.nextafter(found, side))) - exact) for side in (-numpy.inf, numpy.inf)]
        assert abs(Fraction(float(found)) - exact) <= min(errors)
    assert (merged / "config.json").read_text() == (folders[0] / "config.json").read_text()
    state = service.stub().Get(messages.GetRequest(run="run-1"))
    assert list(state.merged_weights) == ["1/6", "1/3", "1/2"] or list(state.merged_weights) == ["1/6", "2/6", "3/6"]
    digest = lambda place: pmill.run("snapshot", "inspect", "--data", "--digest", "blake3", place, "--json").json["digest"]  # noqa: E731
    assert digest(merged) == state.merged_digest
    assert [record.digest for record in state.published] == [digest(folder) for folder in folders]


def test_a_quorum_merges_at_once_and_late_and_unknown_agents_are_told(service, messages, tmp_path):
    stub, folders = service.stub(), agents(tmp_path, 4)
    rule = messages.Rule(quorum=messages.Quorum(agents=2))
    announce(messages, stub, "q", 4, rule=rule)
    publish(messages, stub, "q", 3, folders[3])
    publish(messages, stub, "q", 1, folders[1])
    state = ended(messages, stub, "q")
    assert state.phase == messages.Run.PHASE_MERGED
    assert list(state.merged_agents) == ["1", "3"]
    code = grpc.StatusCode
    refused(code.FAILED_PRECONDITION, lambda: publish(messages, stub, "q", 0, folders[0]), "`0` is not in it", "quorum")
    later = lambda: publish(messages, stub, "q", 1, folders[1], step=2)  # noqa: E731
    refused(code.FAILED_PRECONDITION, later, "step 1 of agent `1` is in the merge")
    refused(code.NOT_FOUND, lambda: publish(messages, stub, "q", 9, folders[0]), "no agent `9`", "0, 1, 2, 3")
    refused(code.NOT_FOUND, lambda: publish(messages, stub, "none", 0, folders[0]), "no run `none`")
    # Saying it again is no error, even now.
    again = publish(messages, stub, "q", 1, folders[1])
    assert again.outcome == messages.PublishReply.OUTCOME_REPEATED
    assert again.run.phase == messages.Run.PHASE_MERGED


def test_a_deadline_merges_who_is_there_or_says_that_too_few_were(service, messages, tmp_path):
    stub, folders = service.stub(), agents(tmp_path, 3)
    deadline = lambda at_least: messages.Rule(deadline=messages.Deadline(seconds=2, at_least=at_least))  # noqa: E731
    announce(messages, stub, "some", 3, rule=deadline(2))
    announce(messages, stub, "few", 3, rule=deadline(3))
    for run in ("some", "few"):
        for agent in (0, 2):
            publish(messages, stub, run, agent, folders[agent])
    state = ended(messages, stub, "some")
    assert state.phase == messages.Run.PHASE_MERGED and list(state.merged_agents) == ["0", "2"]
    state = ended(messages, stub, "few")
    assert state.phase == messages.Run.PHASE_FAILED
    assert state.message == "the deadline has passed with 2 of 3 agents, and at least 3 were asked for"
    assert service.pmill("watch", "--run", "few", code=2).err.endswith(state.message + "\n")


def test_a_snapshot_that_would_spoil_the_merge_is_refused_on_arrival(service, messages, tmp_path):
    stub, folders = service.stub(), agents(tmp_path, 2)
    announce(messages, stub, "r", 3)
    publish(messages, stub, "r", 0, folders[0])
    bad = grpc.StatusCode.INVALID_ARGUMENT

    def attempt(place, *words, **more):
        refused(bad, lambda: publish(messages, stub, "r", 1, place, **more), *words)

    attempt(snapshot(tmp_path / "wide", 7, shape=(40, 51)), "`w`", "[40, 51]", "[40, 50]")
    attempt(snapshot(tmp_path / "half", 7, dtype=numpy.float16), "`w`", "F16", "F32")
    other = snapshot(tmp_path / "other", 8)
    (other / "config.json").write_text('{"model_type": "other", "hidden_size": 50}')
    attempt(other, "model_type")
    sick = load_file(folders[1] / "model.safetensors")
    sick["w"][3, 4] = numpy.nan
    (tmp_path / "sick").mkdir()
    save_file(sick, tmp_path / "sick" / "model.safetensors")
    attempt(tmp_path / "sick" / "model.safetensors", "`w`", "1 NaN")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((folders[1] / "model.safetensors").read_bytes()[:-7])
    attempt(cut, "cut.safetensors")
    attempt(folders[1], "digest", "ab" * 32, digest="ab" * 32)
    attempt(folders[1], "64 hex digits", digest="abc")
    attempt(folders[1], "expected blake3:", digest="xxh3-128:" + "ab" * 16)
    attempt(tmp_path / "nothing", "nothing")
    attempt("/etc/passwd", "outside of the folders")
    attempt(folders[1] / ".." / ".." / "elsewhere", "outside of the folders")
    attempt("http://example.invalid/x", "not `http`")
    twin = lambda: publish(messages, stub, "r", 1, folders[0])  # noqa: E731
    refused(bad, twin, "agent0")
    state = stub.Get(messages.GetRequest(run="r"))
    assert [record.agent for record in state.published] == ["0"]
    assert state.message == "1 of 3 agents have published; not yet: 1, 2"


def test_publishing_again_replaces_only_by_a_later_step(service, messages, tmp_path):
    stub, folders = service.stub(), agents(tmp_path, 3)
    reply = messages.PublishReply
    announce(messages, stub, "r", 2)
    assert publish(messages, stub, "r", 0, folders[0], step=5).outcome == reply.OUTCOME_ACCEPTED
    assert publish(messages, stub, "r", 0, folders[0], step=5).outcome == reply.OUTCOME_REPEATED
    clash = grpc.StatusCode.ALREADY_EXISTS
    refused(clash, lambda: publish(messages, stub, "r", 0, folders[2], step=4), "step 5 already")
    refused(clash, lambda: publish(messages, stub, "r", 0, folders[2], step=5), "as a later step")
    assert publish(messages, stub, "r", 0, folders[2], step=6).outcome == reply.OUTCOME_REPLACED
    assert announce(messages, stub, "r", 2).published[0].step == 6
    refused(clash, lambda: announce(messages, stub, "r", 3), "announced with other settings")
    publish(messages, stub, "r", 1, folders[1])
    state = ended(messages, stub, "r")
    expected = tmp_path / "expected"
    pmill.run("snapshot", "merge", folders[2], folders[1], "-o", expected)
    name = "model.safetensors"
    assert (Path(state.merged_uri) / name).read_bytes() == (expected / name).read_bytes()


def test_an_announcement_that_cannot_be_met_is_refused(service, messages):
    stub, bad = service.stub(), grpc.StatusCode.INVALID_ARGUMENT
    quorum = messages.Rule(quorum=messages.Quorum(agents=4))
    refused(bad, lambda: announce(messages, stub, "r", 3, rule=quorum), "asks for 4 agents")
    refused(bad, lambda: announce(messages, stub, "r", 3, rule=messages.Rule()), "no rule")
    refused(bad, lambda: announce(messages, stub, "../r", 3), "letters, digits")
    refused(bad, lambda: announce(messages, stub, "r", 0), "0 agents")
    refused(bad, lambda: announce(messages, stub, "r", 4_000_000_000), "1 to 1024")
    refused(bad, lambda: announce(messages, stub, "r", 2, agent_names=["a"]), "1 agent names for 2 agents")
    refused(bad, lambda: announce(messages, stub, "r", 2, mixing=messages.Mixing(topology="star")), "`star`")
    options = messages.MergeOptions(rules=["w"])
    refused(bad, lambda: announce(messages, stub, "r", 2, options=options), "`w` is not a rule")
    assert not stub.List(messages.ListRequest()).runs


def test_a_snapshot_changed_after_it_was_published_never_becomes_a_model(service, messages, tmp_path):
    stub, folders = service.stub(), agents(tmp_path, 2)
    announce(messages, stub, "r", 2)
    publish(messages, stub, "r", 0, folders[0])
    snapshot(folders[0], 77)
    publish(messages, stub, "r", 1, folders[1])
    state = ended(messages, stub, "r")
    assert state.phase == messages.Run.PHASE_FAILED
    assert "agent `0` changed after it was published" in state.message
    left = [path.name for path in (tmp_path / "wh" / "merge-runs" / "r").iterdir()]
    assert sorted(left) == ["agents", "decision.json", "outcome.json", "run.json"]


def test_the_peer_table_is_that_of_mix(service, messages, tmp_path):
    stub = service.stub()
    edges = tmp_path / "edges.txt"
    edges.write_text("0 1\n1 2\n")
    names = ["--run", "e", "--agents", "anna,ben,cleo", "--edges", edges]
    assert service.pmill("announce", *names, "--json").json["agents"] == ["anna", "ben", "cleo"]
    table = service.pmill("peers", "--run", "e", "--round", 0, "--json").json
    assert table["rows"][0] == {
        "agent": "anna",
        "own_weight": pytest.approx(2 / 3),
        "peers": [{"agent": "ben", "weight": pytest.approx(1 / 3)}],
    }
    flags = ["--topology", "random", "--peers", 2.5, "--seed", 4, "--schedule", "linear", "--rounds", 10]
    service.pmill("announce", "--run", "r", "--agents", 6, *flags)
    agent = tmp_path / "agent0"
    snapshot(agent, 0)
    for number in (0, 3, 9):
        table = stub.Peers(messages.PeersRequest(run="r", round=number))
        same = pmill.run("snapshot", "mix", *[agent] * 6, *flags, "--round", number, "--json").json
        rows = [[0.0] * 6 for _ in range(6)]
        for row in table.rows:
            rows[int(row.agent)][int(row.agent)] = row.own_weight
            for peer in row.peers:
                rows[int(row.agent)][int(peer.agent)] = peer.weight
        assert rows == same["rows"]
        assert table.spectral_gap == same["matrix"]["spectral_gap"]
    announce(messages, stub, "plain", 2)
    refused(
        grpc.StatusCode.INVALID_ARGUMENT,
        lambda: stub.Peers(messages.PeersRequest(run="plain")),
        "announced without mixing",
    )


def test_state_outlives_kills_at_any_moment(stubs, messages, tmp_path):
    """Agents publish while the service is killed again and again; in the end there is one merge, as undisturbed."""
    folders = agents(tmp_path, 6, shape=(1000, 2000))
    expected = tmp_path / "expected"
    pmill.run("snapshot", "merge", *folders, "-o", expected)
    service = Service(tmp_path)
    moments, over = random.Random(9), threading.Event()

    def agent(number):
        flags = ["--run", "r", "--agent", number, "--step", 3, "--server", service.url, "--timeout", 100]
        return pmill.run("snapshot", "publish", folders[number], *flags, code=None)

    service.pmill("announce", "--run", "r", "--agents", 6)
    results = [None] * 6

    def publish_all():
        for number in (3, 0, 5, 1, 4, 2):
            results[number] = agent(number)
        over.set()

    publisher = threading.Thread(target=publish_all)
    publisher.start()
    kills = 0
    # Publishing is disturbed four times, the merge itself too.
    while kills < 4 or not over.is_set():
        time.sleep(moments.uniform(0.05, 0.6))
        service.kill()
        kills += 1
        service.start()
        if over.is_set() and kills >= 4:
            break
        assert kills < 200
    publisher.join(timeout=120)
    for _ in range(3):
        time.sleep(moments.uniform(0.0, 0.1))
        service.kill()
        service.start()
    assert [result.code for result in results] == [0] * 6, [result.err for result in results]
    state = service.pmill("watch", "--run", "r", "--timeout", 60, "--json").json
    assert state["phase"] == "merged" and state["merged_agents"] == ["0", "1", "2", "3", "4", "5"]
    name = "model.safetensors"
    assert (Path(state["merged"]) / name).read_bytes() == (expected / name).read_bytes()
    folder = tmp_path / "wh" / "merge-runs" / "r"
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["agents", "decision.json", "merged", "outcome.json", "run.json"]
    assert service.stop() == 0


def test_agents_publish_uris_of_a_store(stubs, messages, store, tmp_path):
    """The service reads snapshots from S3; a store that stumbles is tried again."""
    folders = agents(tmp_path, 3)
    for folder in folders:
        for path in folder.iterdir():
            store.client.put_object(Bucket=store.bucket, Key=f"runs/{folder.name}/{path.name}", Body=path.read_bytes())
    service = Service(tmp_path, "--root", f"{store.uri}/runs/", env=store.env())
    try:
        stub = service.stub()
        announce(messages, stub, "s3", 3)
        outside = lambda uri: publish(messages, stub, "s3", 0, uri)  # noqa: E731
        for uri in (f"{store.uri}/other", f"{store.uri}/runs/../other", "s3://other/runs"):
            refused(grpc.StatusCode.INVALID_ARGUMENT, lambda uri=uri: outside(uri), "outside of the folders")
        refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: outside(f"{store.uri}/runs/none"), "holds no snapshot")
        store.proxy.fault = lambda number, *_: "slow down" if number % 3 == 1 else None
        uris = [f"{store.uri}/runs/{folder.name}" for folder in folders]
        for number, uri in enumerate(uris[:2]):
            assert publish(messages, stub, "s3", number, uri).outcome == messages.PublishReply.OUTCOME_ACCEPTED
        # By the command, which reads the snapshot itself first.
        service.pmill("publish", uris[2], "--run", "s3", "--agent", "2", "--step", "1", env=store.env())
        state = ended(messages, stub, "s3")
        assert state.phase == messages.Run.PHASE_MERGED, state.message
        assert [record.uri for record in state.published] == uris
        pmill.run("snapshot", "merge", *folders, "-o", tmp_path / "expected")
        merged = Path(state.merged_uri) / "model.safetensors"
        assert merged.read_bytes() == (tmp_path / "expected" / "model.safetensors").read_bytes()
    finally:
        assert service.stop() == 0


def test_the_merge_of_a_run_is_done_on_a_cluster(stubs, messages, tmp_path):
    folders = agents(tmp_path, 3)
    with Cluster(tmp_path / "cluster", executors=1) as cluster:
        service = Service(tmp_path, "--cluster", cluster.url)
        try:
            stub = service.stub()
            announce(messages, stub, "far", 3)
            for number, folder in enumerate(folders):
                publish(messages, stub, "far", number, folder)
            state = ended(messages, stub, "far", timeout=100)
            assert state.phase == messages.Run.PHASE_MERGED, state.message
        finally:
            assert service.stop() == 0
        log = cluster.executors[0].log.read_text()
        assert "average-0-" in log, log
    pmill.run("snapshot", "merge", *folders, "-o", tmp_path / "expected")
    merged = Path(state.merged_uri) / "model.safetensors"
    assert merged.read_bytes() == (tmp_path / "expected" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("moment", ["run.json", "agents", "decision.json", "merged"])
def test_a_restart_goes_on_from_each_state_on_disk(stubs, messages, tmp_path, moment):
    """What a kill right after each write leaves is made by hand, from the folder of a finished run."""
    folders = agents(tmp_path, 2)
    service = Service(tmp_path)
    stub = service.stub()
    announce(messages, stub, "r", 2)
    for number, folder in enumerate(folders):
        publish(messages, stub, "r", number, folder)
    first = ended(messages, stub, "r")
    service.kill()
    folder = tmp_path / "wh" / "merge-runs" / "r"
    order = ["merged", "decision.json", "agents", "run.json"]
    (folder / "outcome.json").unlink()
    for name in order[: order.index(moment)]:
        if name == "merged":
            subprocess.run(["rm", "-r", folder / "merged"], check=True)
        elif name == "agents":
            for path in (folder / "agents").iterdir():
                path.unlink()
        else:
            (folder / name).unlink()
    (folder / ".outcome.json.part").write_text('{"merg')
    service.start()
    stub = service.stub()
    if moment == "run.json":
        assert stub.Get(messages.GetRequest(run="r")).message.startswith("0 of 2")
        for number, place in enumerate(folders):
            publish(messages, stub, "r", number, place)
    last = ended(messages, stub, "r")
    assert (last.phase, last.merged_digest) == (first.phase, first.merged_digest)
    assert service.stop() == 0


def test_a_run_has_its_model_appear_in_a_store(stubs, messages, store, tmp_path):
    """Announced with an output: the merged snapshot is on S3 whole, or not at all, with the bytes of one on disk."""
    folders = agents(tmp_path, 3)
    for folder in folders:
        for path in folder.iterdir():
            store.client.put_object(Bucket=store.bucket, Key=f"runs/{folder.name}/{path.name}", Body=path.read_bytes())
    uris = [f"{store.uri}/runs/{folder.name}" for folder in folders]
    roots = ["--root", f"{store.uri}/runs/", "--output-root", f"{store.uri}/merged"]
    service = Service(tmp_path, *roots, env=store.env())
    invalid, exists = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS
    try:
        stub = service.stub()
        open_run = lambda run, output: announce(messages, stub, run, 3, output=output)  # noqa: E731
        for outside in ("/tmp/x", f"{store.uri}/runs/agent0", f"{store.uri}/merged", f"{store.uri}/merged/../runs/x"):
            refused(invalid, lambda place=outside: open_run("out", place), f"below {store.uri}/merged")
        output = f"{store.uri}/merged/one"
        service.pmill("announce", "--run", "one", "--agents", 3, "--output", f"{output}/", env=store.env())
        refused(exists, lambda: open_run("two", output), "that of run `one`")
        refused(exists, lambda: open_run("two", f"{output}/deeper"), "that of run `one`")
        # The answers to some requests are lost, also those that complete the upload.
        store.proxy.fault = lambda number, method, path: "lost" if method == "POST" and number % 2 else None
        for number, uri in enumerate(uris):
            publish(messages, stub, "one", number, uri)
        state = ended(messages, stub, "one")
        store.proxy.fault = lambda *_: None
        assert (state.phase, state.merged_uri) == (messages.Run.PHASE_MERGED, output), state.message
        local = tmp_path / "local"
        pmill.run("snapshot", "merge", *folders, "-o", local, "--digest", "blake3")
        names = sorted(path.name for path in local.iterdir())
        assert sorted(store.keys("merged/")) == [f"merged/one/{name}" for name in names]
        for name in names:
            if name != "pmill-merge.json":
                assert store.body(f"merged/one/{name}") == (local / name).read_bytes(), name
        manifest = json.loads(store.body("merged/one/pmill-merge.json"))
        assert manifest["outputs"] == json.loads((local / "pmill-merge.json").read_text())["outputs"]
        assert manifest["outputs"][0]["digest"] == state.merged_digest
        assert not (tmp_path / "wh" / "merge-runs" / "one" / "merged").exists()
        assert open_run("one", output).merged_uri == output
        refused(exists, lambda: open_run("late", f"{store.uri}/merged/one/"), "exists already")

        # An input that changes after it was published: no model, and nothing is left.
        open_run("three", f"{store.uri}/merged/three")
        publish(messages, stub, "three", 0, uris[0])
        publish(messages, stub, "three", 1, uris[1])
        other = snapshot(tmp_path / "other", 9) / "model.safetensors"
        store.client.put_object(Bucket=store.bucket, Key="runs/agent0/model.safetensors", Body=other.read_bytes())
        publish(messages, stub, "three", 2, uris[2])
        state = ended(messages, stub, "three")
        assert state.phase == messages.Run.PHASE_FAILED
        assert "of agent `0` changed after it was published" in state.message
        assert store.keys("merged/three") == [] and not [key for key in store.keys() if "pmill-staging" in key]
        assert "Uploads" not in store.client.list_multipart_uploads(Bucket=store.bucket)
    finally:
        assert service.stop() == 0
    plain = Service(tmp_path, env=store.env())
    try:
        where = lambda: announce(messages, plain.stub(), "four", 3, output=f"{store.uri}/merged/four")  # noqa: E731
        refused(invalid, where, "--output-root")
    finally:
        assert plain.stop() == 0


@pytest.mark.parametrize("after", [0, 2])
def test_a_service_killed_while_it_writes_to_a_store_goes_on(after, stubs, messages, store, tmp_path):
    folders = agents(tmp_path, 2, shape=(2500, 2000))
    service = Service(tmp_path, "--output-root", store.uri, env=store.env())
    announce(messages, service.stub(), "r", 2, output=f"{store.uri}/deep/model")
    parts = []

    def fault(number, method, path):
        if "partNumber" in path:
            parts.append(path)
            return "hang" if len(parts) > after else None
        return None

    store.proxy.fault = fault
    for number, folder in enumerate(folders):
        publish(messages, service.stub(), "r", number, folder)
    until = time.monotonic() + 60
    while len(parts) <= after and time.monotonic() < until:
        time.sleep(0.05)
    service.kill()
    # Nothing of it loads.
    assert store.keys("deep/model/") == []
    store.proxy.fault = lambda *_: None
    service.start()
    state = ended(messages, service.stub(), "r")
    assert state.phase == messages.Run.PHASE_MERGED, state.message
    here = tmp_path / "here"
    pmill.run("snapshot", "merge", *folders, "-o", here)
    assert store.body("deep/model/model.safetensors") == (here / "model.safetensors").read_bytes()
    assert not [key for key in store.keys() if "pmill-staging" in key]
    assert service.stop() == 0


def test_a_stopping_service_lets_its_watchers_go_and_a_client_finds_it_again(stubs, messages, tmp_path):
    folders = agents(tmp_path, 1)
    service = Service(tmp_path)
    announce(messages, service.stub(), "r", 1)
    states = service.stub().Watch(messages.GetRequest(run="r"), timeout=30)
    assert next(states).phase == messages.Run.PHASE_OPEN
    watcher = subprocess.Popen(
        [pmill.binary(), "snapshot", "watch", "--run", "r", "--server", service.url, "--timeout", "60", "--json"],
        stdout=subprocess.PIPE,
        env=pmill.environment(),
    )
    assert service.stop() == 0
    refused(grpc.StatusCode.UNAVAILABLE, lambda: next(states), "watch again")
    service.start()
    service.pmill("publish", folders[0], "--run", "r", "--agent", 0, "--step", 1)
    out, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == 0 and json.loads(out)["phase"] == "merged"
    # A second service on the same warehouse would tear the state.
    busy = pmill.run(
        "snapshot", "serve", "--warehouse", tmp_path / "wh", "--root", tmp_path, "--listen", "127.0.0.1:0", code=75
    )
    assert "another merge service" in busy.err
    assert service.stop() == 0
    away = service.pmill("watch", "--run", "r", "--timeout", 1, code=75)
    assert "within 1 s" in away.err
    assert "cannot reach" in service.pmill("announce", "--run", "r", "--agents", 1, "--timeout", 1, code=75).err


def test_tokens_and_tls_keep_strangers_out(stubs, messages, tmp_path):
    keys = certificates.make(tmp_path, "server", "client")
    tokens = tmp_path / "tokens"
    tokens.write_text("# agents\nfirst-token-0123456789\nsecond-token-0123456789 # of the second team\n")
    command = ["snapshot", "serve", "--warehouse", tmp_path / "wh", "--root", tmp_path, "--listen"]
    assert "--token-file" in pmill.run(*command, "0.0.0.0:0", code=2).err
    tokens.chmod(0o644)
    assert "chmod 600" in pmill.run(*command, "127.0.0.1:0", "--token-file", tokens, code=2).err
    tokens.chmod(0o600)
    assert "--tls-cert" in pmill.run(*command, "0.0.0.0:0", "--token-file", tokens, code=2).err
    assert "both" in pmill.run(*command, "127.0.0.1:0", "--tls-cert", keys / "server.pem", code=2).err

    tls = ["--tls-cert", keys / "server.pem", "--tls-key", keys / "server.key"]
    service = Service(tmp_path, *tls, "--tls-client-ca", keys / "authority.pem", "--token-file", tokens)
    assert service.url.startswith("https://127.0.0.1:")
    stub_class = importlib.import_module("snapshot_pb2_grpc").MergingStub
    read = lambda name: (keys / name).read_bytes()  # noqa: E731
    target = service.address.replace("127.0.0.1", "localhost")

    def stub(*client):
        credentials = grpc.ssl_channel_credentials(read("authority.pem"), *client)
        return stub_class(grpc.secure_channel(target, credentials))

    request, code = messages.ListRequest(), grpc.StatusCode
    own = (read("client.key"), read("client.pem"))
    token = lambda text: (("authorization", f"Bearer {text}"),)  # noqa: E731
    assert not stub(*own).List(request, metadata=token("second-token-0123456789"), timeout=20).runs
    refused(code.UNAUTHENTICATED, lambda: stub(*own).List(request, timeout=20), "no valid token")
    for wrong in ("first-token-012345678", "first-token-0123456789x", "", "# agents"):
        refused(code.UNAUTHENTICATED, lambda: stub(*own).List(request, metadata=token(wrong), timeout=20))
    refused(code.UNAVAILABLE, lambda: stub().List(request, metadata=token("first-token-0123456789"), timeout=20))
    plain = stub_class(grpc.insecure_channel(target))
    refused(code.UNAVAILABLE, lambda: plain.List(request, timeout=20))

    folders = agents(tmp_path, 2)
    flags = ["--server", f"https://{target}", "--tls-ca", keys / "authority.pem", "--token-file", tokens]
    own = ["--tls-cert", keys / "client.pem", "--tls-key", keys / "client.key"]
    pmill.run("snapshot", "announce", "--run", "r", "--agents", 2, *flags, *own)
    for number, folder in enumerate(folders):
        publication = ["--run", "r", "--agent", number, "--step", 1]
        pmill.run("snapshot", "publish", folder, *publication, *flags, *own)
    merged = pmill.run("snapshot", "watch", "--run", "r", *flags, *own).out.strip()
    assert (Path(merged) / "model.safetensors").exists()
    pmill.run("snapshot", "announce", "--run", "s", "--agents", 2, *flags, "--timeout", 1, code=75)
    assert service.stop() == 0
