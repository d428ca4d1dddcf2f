"""Fixtures: the shared data, WordNet's noun files, and a check that there is a binary."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pmill

pytest_plugins = ["s3"]


def pytest_configure(config):
    path = pmill.binary()
    if not path.exists():
        pytest.exit(f"no binary at {path}: run `cargo build -p pmill-cli`, or set PMILL_BIN", returncode=2)


def shared_folder():
    """The folder of shared data: PMILL_SHARED, else `shared` beside the repository."""
    path = Path(os.environ.get("PMILL_SHARED", pmill.REPO.parent / "shared"))
    return path if (path / "data").is_dir() else None


def wordnet_folder():
    """WordNet's noun files: PMILL_WORDNET, the package unpacked by make, or the package installed."""
    places = [
        os.environ.get("PMILL_WORDNET"),
        pmill.REPO / ".cache" / "wordnet" / "usr" / "share" / "wordnet",
        "/usr/share/wordnet",
    ]
    for place in filter(None, places):
        if all((Path(place) / name).is_file() for name in ("index.noun", "noun.exc")):
            return Path(place)
    return None


@pytest.fixture(scope="session")
def shared():
    folder = shared_folder()
    if folder is None:
        pytest.skip("the shared data is not here (set PMILL_SHARED)")
    return folder


@pytest.fixture(scope="session")
def data(shared):
    return shared / "data"


@pytest.fixture(scope="session")
def wordnet():
    folder = wordnet_folder()
    if folder is None:
        pytest.skip("WordNet's noun files are not here (apt-get install wordnet-base, or set PMILL_WORDNET)")
    return folder


@pytest.fixture(scope="session")
def oracle(shared):
    """Runs a reference script; its last argument but flags is the output file."""

    def call(script, *arguments):
        folder = shared / "oracles"
        subprocess.run(
            [sys.executable, folder / script, *map(str, arguments)],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=300,
        )

    return call


@pytest.fixture
def warehouse(tmp_path):
    return tmp_path / "wh"


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """A sample corpus of 20,000 captions in 4 files."""
    folder = tmp_path_factory.mktemp("sample") / "corpus"
    pmill.run("sample-corpus", "--output", folder, "--rows", 20000)
    return folder


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """650,000 captions in 64 files: three units within 68 MiB and two threads."""
    folder = tmp_path_factory.mktemp("large") / "corpus"
    pmill.run("sample-corpus", "--output", folder, "--rows", 650_000, "--files", 64)
    return folder
