"""`pmill embed`: singular values against SciPy, vectors in gensim and safetensors, similarity lists."""

import json
import math

import gensim.models
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import scipy.sparse.linalg
import scipy.stats

import pmill
from test_export import dense_free


@pytest.fixture(scope="module")
def job(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed")
    table = pq.read_table(data / "documents" / "wikitext2-valid-test.parquet", columns=["text"]).slice(0, 60)
    pq.write_table(table, folder / "articles.parquet")
    flags = ["--context", "window", "--window", 5, "--vocab-size", 1500]
    return pmill.count(folder / "wh", "j", folder / "articles.parquet", "text", *flags)


def embed(job, output, *flags):
    return pmill.run(
        "embed", "--warehouse", job.warehouse, "--name", job.name, "--output", output, *flags, "--json"
    ).json


def ppmi(job, alpha, shift):
    """Levy, Goldberg & Dagan 2015, eq. 3, less the shift."""
    counts = dense_free(job).toarray()
    rows = counts.sum(axis=1)
    context = rows**alpha / (rows**alpha).sum()
    with np.errstate(divide="ignore"):
        pmi = np.log(counts / rows[:, None] / context[None, :]) - math.log(shift)
    return np.maximum(pmi, 0.0)


@pytest.fixture(scope="module")
def vectors(job, tmp_path_factory):
    output = tmp_path_factory.mktemp("vectors") / "v"
    summary = embed(job, output, "--dimensions", 20, "--power-iterations", 8, "--format", "word2vec,word2vec-binary")
    return output, summary


def test_singular_values_are_those_of_scipy(job, vectors):
    matrix = scipy.sparse.csr_matrix(ppmi(job, 0.75, 1.0))
    exact = np.sort(scipy.sparse.linalg.svds(matrix, k=20, return_singular_vectors=False, random_state=0))[::-1]
    assert vectors[1]["entries"] == matrix.nnz
    assert np.allclose(vectors[1]["singular_values"], exact, rtol=0.01)
    shifted = embed_values(job, vectors[0].parent / "shifted", "--alpha", 1, "--shift", 3)
    exact = np.linalg.svd(ppmi(job, 1.0, 3.0), compute_uv=False)[:20]
    assert np.allclose(shifted, exact, rtol=0.01)


def embed_values(job, output, *flags):
    return embed(job, output, "--dimensions", 20, "--power-iterations", 8, *flags)["singular_values"]


def test_vectors_are_left_vectors_times_roots(job, vectors):
    tensors = safetensors.numpy.load_file(vectors[0] / "vectors.safetensors")
    assert json.loads(tensors["terms"].tobytes()) == job.terms()
    rows, sigma = tensors["vectors"], tensors["singular_values"]
    assert rows.shape == (1500, 20) and rows.dtype == np.float32
    # uᵀu = 1, so each column's length is the root of its singular value; 24 bits of mantissa.
    assert np.allclose(np.linalg.norm(rows.astype(float), axis=0), np.sqrt(sigma), rtol=1e-5)
    exact = np.linalg.svd(ppmi(job, 0.75, 1.0))[0][:, :3]
    cosines = np.abs((exact * rows[:, :3]).sum(axis=0)) / np.linalg.norm(rows[:, :3], axis=0)
    assert cosines.min() > 0.99


def test_gensim_reads_both_word2vec_forms(job, vectors):
    rows = safetensors.numpy.load_file(vectors[0] / "vectors.safetensors")["vectors"]
    text = gensim.models.KeyedVectors.load_word2vec_format(vectors[0] / "vectors.txt")
    binary = gensim.models.KeyedVectors.load_word2vec_format(vectors[0] / "vectors.bin", binary=True)
    for model in (text, binary):
        assert model.index_to_key == job.terms()
        assert np.array_equal(model.vectors, rows)
    pmill.run("export", "--vectors", vectors[0], "--format", "word2vec", "--output", vectors[0].parent / "w")
    assert (vectors[0].parent / "w" / "vectors.txt").read_bytes() == (vectors[0] / "vectors.txt").read_bytes()


def test_neighbours_are_those_of_gensim(vectors):
    model = gensim.models.KeyedVectors.load_word2vec_format(vectors[0] / "vectors.bin", binary=True)
    out = pmill.run("embed", "--vectors", vectors[0], "--neighbours", "game", "--nearest", 5).out
    lines = [line.split("\t") for line in out.splitlines()]
    expected = model.most_similar("game", topn=5)
    assert [(term, word) for term, word, _ in lines] == [("game", word) for word, _ in expected]
    assert all(abs(float(line[2]) - cosine) < 1e-4 for line, (_, cosine) in zip(lines, expected))
    result = pmill.run("embed", "--vectors", vectors[0], "--neighbours", "zzz", code=2)
    assert "`zzz` has no vector" in result.err


def test_evaluation_is_scipys_spearman(data, vectors):
    path = data / "vocab" / "wordsim353-similarity.tsv"
    found = pmill.run("embed", "--vectors", vectors[0], "--evaluate", path, "--json").json["evaluation"]
    model = gensim.models.KeyedVectors.load_word2vec_format(vectors[0] / "vectors.bin", binary=True)
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    pairs = [(a.lower(), b.lower(), float(s)) for a, b, s in rows]
    inside = [(a, b, s) for a, b, s in pairs if a in model and b in model]
    expected = scipy.stats.spearmanr([model.similarity(a, b) for a, b, _ in inside], [s for *_, s in inside])
    assert (found["pairs"], found["covered"]) == (len(pairs), len(inside)) and len(inside) > 10
    assert math.isclose(found["spearman"], expected.statistic, abs_tol=1e-6)


def test_threads_and_memory_do_not_change_a_bit(job, vectors):
    first = (vectors[0] / "vectors.safetensors").read_bytes()
    flags = ["--dimensions", 20, "--power-iterations", 8]
    # The largest limit that the matrix does not fit beside the dense blocks.
    base = ["embed", "--warehouse", job.warehouse, "--name", job.name, "--output", vectors[0].parent / "small", *flags]
    for limit in range(12 << 20, 2 << 20, -(1 << 20)):
        small = pmill.run(*base, "--threads", 1, "--memory-limit", limit, "--overwrite", "--json", code=None)
        if small.code == 0 and small.json["scratch_bytes"] > 0:
            break
    assert small.code == 0 and small.json["scratch_bytes"] > 0, "no limit was too small for the matrix"
    assert (vectors[0].parent / "small" / "vectors.safetensors").read_bytes() == first
    other = embed(job, vectors[0].parent / "seed", *flags, "--seed", 2)
    assert (vectors[0].parent / "seed" / "vectors.safetensors").read_bytes() != first
    assert np.allclose(other["singular_values"], vectors[1]["singular_values"], rtol=0.01)


def test_mistakes_are_named(job, tmp_path):
    base = ["embed", "--warehouse", job.warehouse, "--name", job.name, "--output", tmp_path / "out"]
    result = pmill.run(*base, "--dimensions", 1501, code=2)
    assert "1501 dimensions are asked of a matrix of 1500 x 1500; give 1 to 1500" in result.err
    result = pmill.run(*base, "--alpha", 2, code=2)
    assert "--alpha must be 0 to 1, not 2" in result.err
    result = pmill.run(*base, "--shift", 1e9, code=2)
    assert "no pair of `j` has a PMI above ln 1000000000" in result.err
    result = pmill.run(*base, "--memory-limit", "1MiB", code=2)
    assert "fewer --dimensions" in result.err
    (tmp_path / "list").write_text("a b 1\n")
    result = pmill.run(*base, "--evaluate", tmp_path / "list", code=2)
    assert "list`, line 1: there are no three fields with tabs between; expected word, word and score" in result.err
    assert list(tmp_path.iterdir()) == [tmp_path / "list"]
