"""A disk that is full or read-only, a path that is too long: a clear error, exit 2, nothing half-visible."""

import os
import subprocess

import pytest

import pmill


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; `resize(size)` changes how much it holds."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "pmill-test", place], capture_output=True
        ).returncode

    if os.geteuid() != 0 or mount("size=64m") != 0:
        pytest.skip("mounting a small file system needs root")
    yield place, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "-l", place], check=True)


def count(warehouse, corpus, **options):
    return pmill.run(
        "count", "--warehouse", warehouse, "--name", "j", "--input", corpus, "--text", "TEXT", "--json", **options
    )


@pytest.mark.parametrize("size", ["64k", "800k"])
def test_a_full_disk_leaves_no_table_and_room_makes_it_whole(size, sample, small_disk, tmp_path):
    place, resize = small_disk
    assert resize(f"size={size}") == 0
    result = count(place / "wh", sample, code=2)
    assert "No space left on device" in result.err and "part-" in result.err
    job = pmill.Job(place / "wh", "j")
    assert not job.exists("pairs")
    assert resize("size=256m") == 0
    count(place / "wh", sample)
    undisturbed = pmill.count(tmp_path / "wh", "j", sample, "TEXT")
    assert job.content("pairs") == undisturbed.content("pairs")
    assert job.orphans() == []


def test_a_disk_that_is_full_at_a_batch_or_scoring_keeps_the_table(sample, small_disk):
    place, resize = small_disk
    first = min(sample.glob("*.parquet"))
    job = pmill.count(place / "wh", "j", first, "TEXT")
    before = job.content("pairs")
    used = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    assert resize(f"size={used + 300_000}") == 0
    arguments = ["--warehouse", place / "wh", "--name", "j"]
    assert "No space left on device" in count(place / "wh", sample, code=2).err
    assert "No space left on device" in pmill.run("score", *arguments, code=2).err
    assert job.content("pairs") == before and not job.exists("pmi")
    assert resize("size=256m") == 0
    assert pmill.run("inspect", *arguments, "--verify", "--json").json["verified"]["sound"]
    count(place / "wh", sample)
    pmill.run("score", *arguments)
    assert pmill.run("inspect", *arguments, "--verify", "--json").json["verified"]["sound"]
    assert job.orphans() == []


def test_a_read_only_disk_can_be_read_and_says_so_when_written(sample, small_disk):
    place, resize = small_disk
    first = min(sample.glob("*.parquet"))
    job = pmill.count(place / "wh", "j", first, "TEXT")
    assert resize("ro") == 0
    arguments = ["--warehouse", place / "wh", "--name", "j"]
    for command in (["score", *arguments], ["compact", *arguments], ["vacuum", *arguments, "--keep-versions", "1"]):
        result = pmill.run(*command, code=2)
        assert "Read-only file system" in result.err and str(place) in result.err
    assert "Read-only file system" in count(place / "wh", sample, code=2).err
    assert "Read-only file system" in count(place / "other", sample, code=2).err
    assert pmill.run("inspect", *arguments, "--verify", "--json").json["verified"]["sound"]
    (row,) = pmill.sql(job.warehouse, "SELECT count(*) c FROM j.pairs")
    assert row["c"] == job.facts()["pairs"]


def test_a_path_that_is_too_long_is_named(sample, tmp_path):
    result = count(tmp_path / ("x" * 300), sample, code=2)
    assert "File name too long" in result.err
    result = count("/".join([str(tmp_path), *["y" * 200] * 25]), sample, code=2)
    assert "File name too long" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_named(sample, tmp_path):
    if os.geteuid() == 0:
        user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        if subprocess.run([*user, "true"], capture_output=True).returncode != 0:
            pytest.skip("setpriv is not here to drop root's rights")
    else:
        user = []
    place = tmp_path / "closed"
    place.mkdir(mode=0o555)
    for parent in tmp_path.parents:
        if not os.stat(parent).st_mode & 0o001 and user:
            pytest.skip("the test's folder is closed to other users")
    result = subprocess.run(
        [*user, pmill.binary(), "count", "--warehouse", place / "wh", "--name", "j", "--input", sample, "--text", "TEXT"],
        capture_output=True,
        env=pmill.environment(),
    )
    text = result.stderr.decode()
    if "cannot execute" in text or result.returncode == 126:
        pytest.skip("the binary is closed to other users")
    assert result.returncode == 2 and "ermission denied" in text, text
    assert list(place.iterdir()) == []
