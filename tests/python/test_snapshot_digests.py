"""Digests as anybody can compute them: XXH3 by the xxhash package, from the description in docs/snapshots.md."""

import json
import struct

import numpy
import pytest
import xxhash
from safetensors.numpy import save_file

import pmill

SLICE = 1 << 20


def hash_of(data):
    return xxhash.xxh3_128_digest(data)


def tensor_digest(array):
    data, step = array.tobytes(), SLICE * array.itemsize
    return hash_of(b"".join(hash_of(data[at : at + step]) for at in range(0, len(data), step)))


def snapshot_digest(tensors):
    names = {"float32": "F32", "float16": "F16", "int64": "I64"}
    whole = b""
    for name, array in sorted(tensors.items()):
        whole += struct.pack("<Q", len(name)) + name.encode() + names[str(array.dtype)].encode()
        whole += struct.pack(f"<{array.ndim + 1}Q", array.ndim, *array.shape) + tensor_digest(array)
    return hash_of(whole)


@pytest.fixture
def agents(tmp_path):
    """Two agents of several slices, and tensors of every length that XXH3 has a way of its own for."""
    made = []
    for agent in range(2):
        numbers = numpy.random.default_rng(agent)
        tensors = {"w": numbers.standard_normal((1100, 1000), numpy.float32), "ids": numpy.arange(7)}
        tensors |= {f"t{length:04}": numbers.standard_normal(length).astype(numpy.float16) for length in (1, 3, 8, 60, 121, 700)}
        folder = tmp_path / f"agent{agent}"
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        made.append((folder, tensors))
    return made


def merge(agents, output, *flags, **options):
    return pmill.run("snapshot", "merge", *(folder for folder, _ in agents), "-o", output, "--json", *flags, **options)


def test_manifest_and_inspect_say_what_another_program_computes(agents, tmp_path):
    merge(agents, tmp_path / "merged")
    manifest = json.loads((tmp_path / "merged" / "pmill-merge.json").read_text())
    assert manifest["format"] == "pmill-merge/2"
    for record, (folder, tensors) in zip(manifest["inputs"], agents, strict=True):
        assert record["digest"] == f"xxh3-128:{snapshot_digest(tensors).hex()}"
        found = pmill.run("snapshot", "inspect", folder, "--data", "--json").json
        assert found["digest"] == record["digest"]
        for entry in found["tensors"]:
            assert entry["digest"] == f"xxh3-128:{tensor_digest(tensors[entry['name']]).hex()}", entry["name"]


def test_the_hash_can_be_chosen(agents, tmp_path):
    inspected = lambda folder: pmill.run("snapshot", "inspect", folder, "--data", "--digest", "blake3", "--json").json  # noqa: E731
    done = merge(agents, tmp_path / "b", "--digest", "blake3").json
    assert [one["digest"] for one in done["inputs"]] == [inspected(folder)["digest"] for folder, _ in agents]
    assert all(len(one["digest"]) == len("blake3:") + 64 for one in done["inputs"])
    assert done["outputs"][0]["digest"] == inspected(tmp_path / "b")["digest"]
    for flags in (["--digest", "none"], ["--no-digests"]):
        none = merge(agents, tmp_path / flags[-1], *flags).json
        assert [one["digest"] for one in none["inputs"]] == [None, None]
        assert none["outputs"][0]["digest"].startswith("xxh3-128:")
    weights = (tmp_path / "b" / "model.safetensors").read_bytes()
    assert (tmp_path / "none" / "model.safetensors").read_bytes() == weights
    assert "possible values: xxh3, blake3, none" in merge(agents, tmp_path / "x", "--digest", "md5", code=2).err
    both = merge(agents, tmp_path / "x", "--digest", "none", "--no-digests", code=2).err
    assert "cannot be used with" in both
    assert "--data" in pmill.run("snapshot", "inspect", agents[0][0], "--digest", "blake3", code=2).err


def test_a_manifest_without_names_of_hashes_still_reads(agents, tmp_path):
    """As they were written when BLAKE3 was all there was."""
    output = tmp_path / "merged"
    done = merge(agents, output, "--digest", "blake3").json
    manifest = output / "pmill-merge.json"
    manifest.write_text(manifest.read_text().replace("blake3:", "").replace("pmill-merge/2", "pmill-merge/1"))
    again = merge(agents, output, "--digest", "blake3").json
    assert again["outputs"] == done["outputs"] and again["seconds"] == 0
