"""The recipes of docs/training.md, run as they stand there, on folders made by its commands."""

import json
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pmill

PAGE = pmill.REPO / "docs" / "training.md"
RECIPES = dict(re.findall(r"```python\n# ([^\n]*)\n(.*?)```", PAGE.read_text(), re.DOTALL))


def recipe(start):
    return next(code for title, code in RECIPES.items() if title.startswith(start))


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """The commands of the page, on 2,000 captions with an id."""
    folder = tmp_path_factory.mktemp("recipes")
    table = pq.read_table(data / "captions" / "laion-10000.parquet").slice(0, 2000)
    column = next(name for name in table.column_names if name.upper() in ("TEXT", "CAPTION"))
    table = pa.table({"id": pa.array(range(2000)), "TEXT": table[column]})
    (folder / "captions").mkdir()
    pq.write_table(table.slice(0, 1200), folder / "captions" / "a.parquet")
    pq.write_table(table.slice(1200), folder / "captions" / "b.parquet")
    block = re.search(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    for line in block.splitlines():
        words = line.split()
        assert words[0] == "pmill"
        pmill.run(*words[1:], cwd=folder)
    pmill.run(
        "sample", "--input", "captions-scored/data", "--id", "id", "--probability", "pmill_concept_probability",
        "--format", "weights", "--output", "weights", cwd=folder,
    )  # fmt: skip
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HOME", str(folder / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(start, old="", new=""):
        names = {}
        code = recipe(start)
        assert old in code
        exec(compile(code.replace(old, new) if old else code, f"{PAGE.name}: {start}", "exec"), names)  # noqa: S102
        return names

    return run


def test_scipy(run):
    matrix = run("SciPy")["matrix"]
    assert matrix.shape[0] == matrix.shape[1] > 1000 and matrix.nnz > 1000 and matrix.data.min() > 0


def test_datasets(run):
    names = run("Hugging Face")
    assert names["rows"]["id"][:] == list(range(2000))
    assert 0 < len(names["good"]) < 2000 and min(names["good"]["pmill_pmi_mean"]) > 1


def test_gensim(run):
    vectors = run("gensim")["vectors"]
    assert vectors.vector_size == 100 and "dog" in vectors


def test_duckdb(run):
    assert run("DuckDB")["pmi"].num_rows > 1000


def test_polars(run):
    assert run("Polars")


def test_adbc(run, folder):
    serve = [pmill.binary(), "serve", "--warehouse", str(folder / "wh"), "--flight-sql", "127.0.0.1:0", "--json"]
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, env=pmill.environment())
    try:
        address = json.loads(server.stdout.readline())["flight_sql"]
        pairs = run("ADBC", "127.0.0.1:47470", address)["pairs"]
        expected = pmill.sql(folder / "wh", "SELECT npmi FROM captions.pmi ORDER BY npmi DESC LIMIT 20")
        assert list(pairs.columns) == ["left", "right", "n_xy", "pmi"] and len(pairs) == len(expected) == 20
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_the_balanced_sample_is_smaller_and_even(folder):
    table = pa.concat_tables(pq.read_table(path) for path in sorted((folder / "balanced" / "data").iterdir()))
    assert 0 < table.num_rows <= 2000 and table.column_names == ["id"]


@pytest.mark.skipif(not os.environ.get("PMILL_TORCH"), reason="torch is heavy: `make test-all` installs it")
def test_torch(run):
    drawn = list(run("PyTorch")["sampler"])
    assert len(drawn) == 1000 and max(drawn) < 2000
    assert "torch" in sys.modules
