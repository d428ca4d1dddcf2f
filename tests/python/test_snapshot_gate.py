"""A merge behind a gate: by flag and by pipeline file; the model appears only when it is good enough."""

import numpy
import pytest
from safetensors.numpy import load_file, save_file

import pmill

# The loss is the distance of the weights from 1; safetensors' header is skipped by its length.
EVALUATE = """
import struct, sys, pathlib
place = pathlib.Path(sys.argv[-1])
data = (place / "model.safetensors" if place.is_dir() else place).read_bytes()
start = 8 + struct.unpack("<Q", data[:8])[0]
values = struct.unpack(f"<{(len(data) - start) // 4}f", data[start:])
print("judging", place)
print(sum(abs(value - 1) for value in values) / len(values))
"""


@pytest.fixture
def agents(tmp_path):
    """Three agents around 1, and one far away."""
    folders = []
    for number, value in enumerate((0.5, 1.5, 1.0, 9.0)):
        folder = tmp_path / f"agent{number}"
        folder.mkdir()
        save_file({"w": numpy.full((4, 8), value, numpy.float32)}, folder / "model.safetensors")
        folders.append(folder)
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    return folders


@pytest.fixture
def evaluate(tmp_path):
    return ["--evaluate", f"python3 '{tmp_path / 'evaluate.py'}'"]


def clean(folder):
    assert not [path.name for path in folder.iterdir() if "pmill" in path.name or path.name == "merged"]


def test_a_merge_that_is_better_than_the_mean_passes(agents, evaluate, tmp_path):
    output = tmp_path / "merged"
    done = pmill.run("snapshot", "merge", *agents[:3], "-o", output, *evaluate, "--leave-one-out", "--json").json
    gate = done["gate"]
    assert gate["passed"] and gate["merged_loss"] == 0
    assert [judged["loss"] for judged in gate["locals"]] == [0.5, 0.5, 0]
    assert gate["mean_local_loss"] == pytest.approx(1 / 3)
    assert [judged["loss"] for judged in gate["leave_one_out"]] == [0.25, 0.25, 0]
    assert gate["better_without"] == []
    assert done["target"] == str(output)
    assert (load_file(output / "model.safetensors")["w"] == 1).all()
    assert (output / "pmill-merge.json").exists()
    assert sorted(path.name for path in tmp_path.glob(".*")) == []
    # The same again: it is there, and passes again.
    again = pmill.run("snapshot", "merge", *agents[:3], "-o", output, *evaluate, "--json").json
    assert again["gate"]["passed"]


def test_a_merge_that_is_worse_is_refused_and_says_who_spoils_it(agents, tmp_path):
    # Worse than the mean: agents 0 and 1 are good alone (their distance to 0.5 or 1.5), their middle is not.
    script = EVALUATE.replace("abs(value - 1)", "min(abs(value - 0.5), abs(value - 1.5))")
    (tmp_path / "evaluate.py").write_text(script)
    evaluate = ["--evaluate", f"python3 {tmp_path / 'evaluate.py'}"]
    output = tmp_path / "merged"
    refusal = pmill.run("snapshot", "merge", *agents[:2], "-o", output, *evaluate, "--leave-one-out", code=2).err
    assert "loss 0.5 is above the mean loss 0 of the 2 snapshots" in refusal
    assert "better without" in refusal and "was not written" in refusal
    clean(tmp_path)
    flags = [*evaluate, "--gate", "report", "--json"]
    done = pmill.run("snapshot", "merge", *agents[:2], "-o", output, *flags).json
    assert not done["gate"]["passed"] and (output / "model.safetensors").exists()
    # What is there already is neither replaced nor removed.
    taken = pmill.run("snapshot", "merge", *agents[:3], "-o", output, *evaluate, code=2).err
    assert "exists already" in taken
    refused = pmill.run("snapshot", "merge", *agents[:2], "-o", output, *evaluate, code=2).err
    assert "is there from before" in refused and (load_file(output / "model.safetensors")["w"] == 1).all()


def test_a_command_without_a_loss_stops_the_merge_before_it_appears(agents, tmp_path):
    output = tmp_path / "merged.safetensors"
    for command, words in (("false", "exit status: 1"), ("echo good #", "printed `good`"), ("echo nan #", "is NaN")):
        message = pmill.run("snapshot", "merge", *agents[:2], "-o", output, "--evaluate", command, code=2).err
        assert words in message
        assert not output.exists()
    # After a merge that was only judged, the file comes with its manifest, and replaces when asked to.
    pmill.run("snapshot", "merge", *agents[:2], "-o", output, "--evaluate", "echo 1 #")
    pmill.run("snapshot", "merge", *agents[1:3], "-o", output, "--evaluate", "echo 1 #", "--overwrite")
    assert (load_file(output)["w"] == 1.25).all()
    assert (tmp_path / "merged.safetensors.pmill-merge.json").exists()
    assert not [path for path in tmp_path.glob(".*")]


def test_the_pipeline_file_runs_distance_merge_and_gate(agents, tmp_path):
    flags = ["--set", f"merge.gate.evaluate=python3 '{tmp_path}/evaluate.py'", "--set", "merge.gate.leave_one_out=true"]
    pipeline = pmill.REPO / "pipelines" / "single-merge.toml"
    snapshots = ["--set", 'merge.snapshots=["agent[012]"]']
    dry = pmill.run("run", pipeline, *flags, *snapshots, "--dry-run", cwd=tmp_path)
    assert "would merge 3 snapshots" in dry.err
    clean(tmp_path)
    done = pmill.run("run", pipeline, *flags, *snapshots, "--json", cwd=tmp_path).json
    assert done["distance"]["consensus"] == pytest.approx(32 * (0.25 + 0.25 + 0) / 3)
    assert done["merge"]["gate"]["passed"]
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert "<svg" in (tmp_path / "distance.html").read_text() or "<table" in (tmp_path / "distance.html").read_text()
    wrong = pmill.run("run", pipeline, "--set", "merge.gate.evalute=x", cwd=tmp_path, code=2).err
    assert "did you mean `evaluate`" in wrong
    nothing = pmill.run("run", pipeline, "--set", 'merge.snapshots=["none*"]', cwd=tmp_path, code=2).err
    assert "matches nothing" in nothing
