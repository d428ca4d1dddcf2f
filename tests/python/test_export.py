"""`pmill export`: each format read by the library it is made for, against the table's own counts."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.io
import scipy.sparse

import pmill

WINDOW = ["--context", "window", "--tokenizer", "whitespace", "--window", 10, "--weight", "harmonic"]


@pytest.fixture(scope="module")
def job(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    table = pq.read_table(data / "documents" / "wikitext2-valid-test.parquet", columns=["text"]).slice(0, 30)
    pq.write_table(table, folder / "articles.parquet")
    return pmill.count(folder / "wh", "j", folder / "articles.parquet", "text", *WINDOW, "--vocab-size", 4000)


@pytest.fixture(scope="module")
def matrix(job):
    """The full matrix of natural counts, straight from the files of `pairs`."""
    return dense_free(job)


def dense_free(job):
    table, unit, size = job.table("pairs"), job.facts()["weight_unit"], len(job.terms())
    left, right = table["left_id"].to_numpy(), table["right_id"].to_numpy()
    half = scipy.sparse.csr_matrix((table["count"].to_numpy() / unit, (left, right)), shape=(size, size))
    return (half + half.T).tocsr()  # the diagonal is twice in the full matrix


def export(job, output, form, *flags, **options):
    return pmill.run(
        "export", "--warehouse", job.warehouse, "--name", job.name, "--format", form, "--output", output,
        *flags, "--json", **options,
    ).json  # fmt: skip


def same(found, expected):
    found.sort_indices()
    expected.sort_indices()
    assert found.shape == expected.shape
    assert np.array_equal(found.indptr, expected.indptr)
    assert np.array_equal(found.indices, expected.indices)
    # Both are a count divided by the unit, in 64 bits.
    assert np.array_equal(found.data, expected.data)


def test_checksums_hold_and_the_summary_lists_the_files(job, matrix, tmp_path):
    summary = export(job, tmp_path / "out", "csv")
    lines = (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert {file["name"]: file["sha256"] for file in summary["files"]} == listed
    for name, digest in listed.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert sorted(listed) == ["pairs.csv", "pmill.json", "vocab.tsv"]
    assert summary["entries"] == matrix.nnz == len((tmp_path / "out" / "pairs.csv").read_text().splitlines()) - 1


def read_glove(folder, size):
    records = (folder / "cooccurrence.bin").read_bytes()
    rows = list(struct.iter_unpack("<iid", records))
    left, right, value = (np.array(column) for column in zip(*rows))
    assert left.min() >= 1 and right.min() >= 1
    return scipy.sparse.coo_matrix((value, (left - 1, right - 1)), shape=(size, size)).tocsr()


def test_glove_records_equal_the_counts(job, matrix, tmp_path):
    export(job, tmp_path / "g", "glove")
    same(read_glove(tmp_path / "g", matrix.shape[0]), matrix)
    vocab = [line.split(" ") for line in (tmp_path / "g" / "vocab.txt").read_text().splitlines()]
    assert [token for token, _ in vocab] == job.terms()
    assert [int(count) for _, count in vocab] == job.table("vocab")["count"].to_pylist()


def glove(name):
    folder = os.environ.get("GLOVE")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip("no folder of GloVe's binaries (set GLOVE)")
    return Path(folder) / name


def test_glove_itself_counts_the_same_and_trains_on_it(data, tmp_path):
    """GloVe's vocab_count and cooccur over the same text, then its trainer over our file."""
    table = pq.read_table(data / "documents" / "wikitext2-valid-test.parquet", columns=["text"]).slice(0, 10)
    # GloVe's trainer refuses a vocabulary with `<unk>`, its own word.
    texts = [" ".join(text.replace("<unk>", "unk").split()) for text in table["text"].to_pylist()]
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(texts) + "\n")
    pmill.write(tmp_path / "c.parquet", texts)
    job = pmill.count(tmp_path / "wh", "j", tmp_path / "c.parquet", "TEXT", *WINDOW, "--min-count", 2)
    export(job, tmp_path / "g", "glove")
    ours = read_glove(tmp_path / "g", len(job.terms()))
    vocab = tmp_path / "g" / "vocab.txt"
    with corpus.open() as text, (tmp_path / "theirs").open("wb") as out:
        subprocess.run(
            [glove("cooccur"), "-vocab-file", vocab, "-window-size", "10", "-symmetric", "1", "-verbose", "0"],
            stdin=text, stdout=out, check=True, cwd=tmp_path, timeout=100,
        )  # fmt: skip
    (tmp_path / "t").mkdir()
    shutil.move(tmp_path / "theirs", tmp_path / "t" / "cooccurrence.bin")
    theirs = read_glove(tmp_path / "t", len(job.terms()))
    theirs.sort_indices()
    ours.sort_indices()
    assert np.array_equal(theirs.indices, ours.indices) and np.array_equal(theirs.indptr, ours.indptr)
    # GloVe adds thousands of rounded 1/d. Its merge takes the first record twice when everything fitted
    # its dense table (the overflow file is empty, and the record read before it is read for it again).
    assert theirs.data[0] in (pytest.approx(ours.data[0]), pytest.approx(2 * ours.data[0]))
    assert np.allclose(theirs.data[1:], ours.data[1:], rtol=1e-9)
    with (tmp_path / "g" / "cooccurrence.bin").open("rb") as text, (tmp_path / "shuffled").open("wb") as out:
        subprocess.run([glove("shuffle"), "-verbose", "0"], stdin=text, stdout=out, check=True, cwd=tmp_path)
    subprocess.run(
        [glove("glove"), "-input-file", tmp_path / "shuffled", "-vocab-file", vocab, "-save-file", tmp_path / "vectors",
         "-vector-size", "10", "-iter", "5", "-threads", "1", "-verbose", "0"],
        check=True, cwd=tmp_path, timeout=100,
    )  # fmt: skip
    lines = (tmp_path / "vectors.txt").read_text().splitlines()
    assert len(lines) >= len(job.terms()) and len(lines[0].split(" ")) == 11


def test_npz_is_read_by_scipy(job, matrix, tmp_path):
    export(job, tmp_path / "out", "npz")
    same(scipy.sparse.load_npz(tmp_path / "out" / "matrix.npz"), matrix)


def test_bands_do_not_change_a_byte(job, tmp_path):
    """A limit far below the matrix: many bands, the same bytes."""
    whole = export(job, tmp_path / "a", "npz")
    assert whole["entries"] * 16 > 3 * (1 << 20)
    export(job, tmp_path / "b", "npz", "--memory-limit", "3MiB", "--threads", 1)
    assert (tmp_path / "a" / "matrix.npz").read_bytes() == (tmp_path / "b" / "matrix.npz").read_bytes()


def test_csr_is_mapped_by_numpy(job, matrix, tmp_path):
    export(job, tmp_path / "out", "csr", "--precision", "single")
    header = json.loads((tmp_path / "out" / "header.json").read_text())
    indptr, indices, values = (
        np.load(tmp_path / "out" / header[name], mmap_mode="r") for name in ("indptr", "indices", "data")
    )
    assert header["shape"] == list(matrix.shape) and header["entries"] == matrix.nnz == len(values)
    assert np.array_equal(indptr, matrix.indptr) and np.array_equal(indices, matrix.indices)
    assert np.array_equal(values, matrix.data.astype(np.float32))


def test_matrix_market_is_read_by_scipy(job, matrix, tmp_path):
    export(job, tmp_path / "out", "matrix-market")
    same(scipy.io.mmread(tmp_path / "out" / "matrix.mtx").tocsr(), matrix)


def test_parquet_shards_hold_whole_left_ids_and_their_words(job, matrix, tmp_path):
    export(job, tmp_path / "out", "parquet", "--shard-rows", 100000)
    shards = sorted((tmp_path / "out" / "data").iterdir())
    assert len(shards) > 1
    assert [path.name for path in shards] == [f"train-{i:05}-of-{len(shards):05}.parquet" for i in range(len(shards))]
    tables = [pq.read_table(path) for path in shards]
    for before, after in zip(tables, tables[1:]):
        assert before["left_id"].to_pylist()[-1] < after["left_id"].to_pylist()[0]
    rows = [row for table in tables for row in table.to_pylist()]
    terms = job.terms()
    assert all(terms[row["left_id"]] == row["left"] and terms[row["right_id"]] == row["right"] for row in rows[::997])
    cells = ([row["value"] for row in rows], ([row["left_id"] for row in rows], [row["right_id"] for row in rows]))
    same(scipy.sparse.coo_matrix(cells, shape=matrix.shape).tocsr(), matrix)


def test_ppmi_is_that_of_the_formula(job, matrix, tmp_path):
    export(job, tmp_path / "out", "npz", "--value", "ppmi", "--base", "2")
    found = scipy.sparse.load_npz(tmp_path / "out" / "matrix.npz").toarray()
    counts = matrix.toarray()
    rows = counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        pmi = np.log2(counts * rows.sum() / np.outer(rows, rows))
    # Sums in another order: some units of 2^-52 in the argument of a logarithm.
    assert np.allclose(found, np.maximum(np.nan_to_num(pmi, neginf=0.0), 0.0), atol=1e-11)


def test_one_sided_windows_keep_their_direction(data, tmp_path):
    texts = ["a b c", "b a", "c c a"]
    pmill.write(tmp_path / "c.parquet", texts)
    flags = ["--context", "window", "--tokenizer", "whitespace", "--window", 2, "--side", "right"]
    job = pmill.count(tmp_path / "wh", "j", tmp_path / "c.parquet", "TEXT", *flags)
    export(job, tmp_path / "out", "csv")
    rows = [line.split(",") for line in (tmp_path / "out" / "pairs.csv").read_text().splitlines()[1:]]
    found = {(left, right): float(value) for _, _, left, right, value in rows}
    assert found == {pair: float(count) for pair, count in job.ordered_pairs().items()}
    assert found[("a", "b")] == 1 and found[("b", "a")] == 1 and found[("c", "a")] == 2


def test_an_output_that_is_there_stays_unless_told(job, tmp_path):
    export(job, tmp_path / "out", "csv")
    before = (tmp_path / "out" / "SHA256SUMS").read_bytes()
    result = pmill.run(
        "export", "--warehouse", job.warehouse, "--name", job.name, "--format", "npz", "--output", tmp_path / "out",
        code=2,
    )  # fmt: skip
    assert "exists already; give another --output, or --overwrite" in result.err
    assert (tmp_path / "out" / "SHA256SUMS").read_bytes() == before
    export(job, tmp_path / "out", "npz", "--overwrite")
    assert not (tmp_path / "out" / "pairs.csv").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_killed_export_leaves_nothing_to_see_and_the_next_one_cleans_up(job, tmp_path):
    arguments = ["export", "--warehouse", job.warehouse, "--name", job.name, "--format", "csv", "--output"]
    process = pmill.start(*arguments, tmp_path / "out", "--memory-limit", "1MiB")
    part = tmp_path / ".out.pmill-part"
    deadline = time.monotonic() + 20
    while not (part / "pairs.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    export(job, tmp_path / "out", "csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_mistakes_are_named(job, tmp_path):
    base = ["export", "--warehouse", job.warehouse, "--output", tmp_path / "out"]
    result = pmill.run(*base, "--name", job.name, "--format", "npz", "--value", "nmpi", code=2)
    assert "no measure `nmpi` (did you mean `npmi`?)" in result.err
    result = pmill.run(*base, "--name", "other", "--format", "npz", code=2)
    assert "has no job `other`; it has: j" in result.err
    result = pmill.run(*base, "--name", job.name, "--format", "word2vec", code=2)
    assert "make them with `pmill embed`" in result.err
    assert not (tmp_path / "out").exists()
    plan = export(job, tmp_path / "out", "npz", "--dry-run")
    assert plan["status"] == "planned" and not (tmp_path / "out").exists()
