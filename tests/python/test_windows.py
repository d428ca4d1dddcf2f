"""Window counts against the reference script, NLTK, gensim, and exact fractions."""

import math
from fractions import Fraction

import pyarrow.parquet as pq
import pytest

import pmill
import rules

WINDOW = ["--context", "window", "--tokenizer", "whitespace"]


@pytest.fixture(scope="module")
def articles(data, tmp_path_factory):
    """30 WikiText-2 articles, as a file and as rows of words."""
    table = pq.read_table(data / "documents" / "wikitext2-valid-test.parquet", columns=["text"]).slice(0, 30)
    path = tmp_path_factory.mktemp("articles") / "articles.parquet"
    pq.write_table(table, path, row_group_size=16)
    return path, [text.split() for text in table["text"].to_pylist()]


def natural(job, ordered=False):
    unit = job.facts()["weight_unit"]
    pairs = job.ordered_pairs() if ordered else job.pairs()
    return {key: Fraction(count, unit) for key, count in pairs.items()}


def full_matrix(half):
    """Both orders; the diagonal, stored once, is twice in the full matrix."""
    matrix = {}
    for (left, right), value in half.items():
        matrix[left, right] = value * (2 if left == right else 1)
        matrix[right, left] = matrix[left, right]
    return matrix


def close(exact, floats):
    assert exact.keys() == floats.keys()
    for key, value in floats.items():
        # The script adds thousands of rounded 1/d: some 1e-16 each.
        assert math.isclose(float(exact[key]), value, rel_tol=1e-11), key


def read_oracle(path):
    table = pq.read_table(path)
    return dict(zip(zip(table["left"].to_pylist(), table["right"].to_pylist()), table["count"].to_pylist()))


def test_glove_counts_equal_the_reference(articles, oracle, warehouse, tmp_path):
    path, rows = articles
    oracle("oracle_window.py", path, tmp_path / "reference.parquet", "--window", 10)
    job = pmill.count(warehouse, "j", path, "text", *WINDOW, "--window", 10, "--weight", "harmonic")
    assert job.facts()["weight_unit"] == 2520
    counts = natural(job)
    assert counts == rules.window_counts(rows, 10, "harmonic")
    close(full_matrix(counts), read_oracle(tmp_path / "reference.parquet"))


def test_words_outside_a_limited_vocabulary_are_taken_out_first(articles, oracle, warehouse, tmp_path):
    path, rows = articles
    oracle("oracle_window.py", path, tmp_path / "reference.parquet", "--window", 5, "--max-vocab", 1000)
    job = pmill.count(
        warehouse, "j", path, "text", *WINDOW, "--window", 5, "--weight", "harmonic", "--vocab-size", 1000
    )
    counts = natural(job)
    assert counts == rules.window_counts(rows, 5, "harmonic", keep=rules.most_frequent(rows, 1000))
    close(full_matrix(counts), read_oracle(tmp_path / "reference.parquet"))


def test_a_gap_keeps_the_place_of_words_outside_the_vocabulary(articles, warehouse):
    path, rows = articles
    job = pmill.count(
        warehouse, "j", path, "text", *WINDOW, "--window", 4, "--weight", "dynamic", "--vocab-size", 500,
        "--out-of-vocabulary", "gap",
    )  # fmt: skip
    keep = rules.most_frequent(rows, 500)
    assert natural(job) == rules.window_counts(rows, 4, "dynamic", keep=keep, out_of_vocabulary="gap")
    assert natural(job) != rules.window_counts(rows, 4, "dynamic", keep=keep)


def test_a_directed_window_keeps_the_order_of_words(articles, oracle, warehouse, tmp_path):
    path, rows = articles
    flags = ["--window", 3, "--weight", "uniform", "--min-count", 5]
    oracle(
        "oracle_window.py", path, tmp_path / "reference.parquet", "--window", 3, "--weight", "flat", "--asymmetric",
        "--min-count", 5,
    )  # fmt: skip
    right = pmill.count(warehouse, "right", path, "text", *WINDOW, *flags, "--side", "right")
    counts = natural(right, ordered=True)
    assert counts == read_oracle(tmp_path / "reference.parquet")
    left = pmill.count(warehouse, "left", path, "text", *WINDOW, *flags, "--side", "left")
    assert natural(left, ordered=True) == {(second, first): value for (first, second), value in counts.items()}


@pytest.mark.parametrize("weight", ["uniform", "harmonic", "dynamic"])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_brown_lists_of_tokens_give_exact_fractions(size, weight, data, warehouse, tmp_path):
    table = pq.read_table(data / "documents" / "brown-tokens.parquet", columns=["tokens"]).slice(100, 12)
    path = tmp_path / "brown.parquet"
    pq.write_table(table, path)
    rows = table["tokens"].to_pylist()
    job = pmill.count(warehouse, "j", path, "tokens", "--context", "window", "--window", size, "--weight", weight)
    assert natural(job) == rules.window_counts(rows, size, weight)


def test_adjacent_pairs_equal_nltk_and_gensim(articles, oracle, warehouse, tmp_path):
    path, _ = articles
    job = pmill.count(warehouse, "j", path, "text", *WINDOW, "--window", 1, "--side", "right")
    counts = natural(job, ordered=True)
    oracle("oracle_nltk.py", path, tmp_path / "nltk.parquet", "--window", 2)
    assert counts == read_oracle(tmp_path / "nltk.parquet")
    oracle("oracle_npmi.py", path, tmp_path / "gensim.parquet")
    assert counts == read_oracle(tmp_path / "gensim.parquet")


def test_windows_stop_at_the_ends_of_rows(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", ["a b", "c", None, "d e"])
    job = pmill.count(warehouse, "j", corpus, "TEXT", *WINDOW, "--window", 10)
    assert job.pairs() == {("a", "b"): 1, ("d", "e"): 1}


def test_a_harmonic_window_beyond_the_integers_is_refused(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", ["a b"])
    result = pmill.run(
        "count", "--warehouse", warehouse, "--name", "j", "--input", corpus, "--text", "TEXT", *WINDOW,
        "--window", 23, "--weight", "harmonic", code=2,
    )  # fmt: skip
    assert "22" in result.err, "the message says the largest"
    assert pmill.nothing_left(warehouse) == []


@pytest.mark.parametrize("flag", [["--window", "5"], ["--weight", "harmonic"], ["--side", "left"]])
def test_window_settings_do_not_go_with_documents(flag, warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", ["a b"])
    result = pmill.run(
        "count", "--warehouse", warehouse, "--name", "j", "--input", corpus, "--text", "TEXT", *flag, code=2
    )
    assert f"{flag[0]} goes with --context window" in result.err
