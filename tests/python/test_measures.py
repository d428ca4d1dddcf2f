"""PMI, NPMI and PPMI against exact rational arithmetic; logarithms have 50 digits."""

from collections import Counter
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

import pytest

import pmill

TOLERANCE = 1e-12


@lru_cache(maxsize=None)
def logarithm(value):
    """The natural logarithm of a fraction, to 50 digits."""
    with localcontext() as context:
        context.prec = 50
        return (Decimal(value.numerator) / Decimal(value.denominator)).ln()


def expected(n_xy, n_x, n_y, n, base=1):
    pmi = logarithm(Fraction(n_xy * n, n_x * n_y))
    npmi = float(pmi / -logarithm(Fraction(n_xy, n)))
    pmi = float(pmi / base)
    return pmi, npmi, max(pmi, 0.0)


def compare(columns, marginal, n, counts, base=1):
    keys = {}
    for index, (left, right) in enumerate(zip(columns["left"], columns["right"])):
        key = (left, right) if left <= right else (right, left)
        assert key not in keys
        keys[key] = None
        n_xy, n_x, n_y = counts[key], marginal[left], marginal[right]
        assert [columns[name][index] for name in ("n_xy", "n_x", "n_y", "n")] == [n_xy, n_x, n_y, n]
        for name, value in zip(("pmi", "npmi", "ppmi"), expected(n_xy, n_x, n_y, n, base)):
            error = abs(columns[name][index] - value)
            assert error <= TOLERANCE * max(1.0, abs(value)), (key, name, columns[name][index], value)
    return keys


@pytest.fixture
def captions(data, warehouse):
    return pmill.count(warehouse, "captions", data / "captions" / "laion-1000.parquet", "TEXT")


def documents(job):
    vocab = job.table("vocab")
    return dict(zip(vocab["token"].to_pylist(), vocab["documents"].to_pylist()))


def test_scores_over_documents_agree_with_exact_arithmetic(captions):
    counts = captions.pairs()
    pmill.score(captions)
    keys = compare(captions.table("pmi").to_pydict(), documents(captions), 1000, counts)
    assert keys.keys() == counts.keys()


def test_scores_over_pairs_agree_with_exact_arithmetic(captions):
    counts = captions.pairs()
    pmill.score(captions, "--marginals", "pairs")
    marginal = Counter()
    for (left, right), count in counts.items():
        marginal[left] += count
        marginal[right] += count
    keys = compare(captions.table("pmi").to_pydict(), marginal, sum(marginal.values()), counts)
    assert keys.keys() == counts.keys()


def test_base_2_and_a_least_count(captions):
    counts = captions.pairs()
    pmill.score(captions, "--base", 2, "--min-pair-count", 3)
    keys = compare(captions.table("pmi").to_pydict(), documents(captions), 1000, counts, logarithm(Fraction(2)))
    assert keys.keys() == {key for key, count in counts.items() if count >= 3}


def test_smoothing_changes_the_score_and_not_the_counts(captions):
    counts = captions.pairs()
    pmill.score(captions, "--pair-smoothing", 2, "--unigram-smoothing", 10, "--measure", "pmi")
    marginal, columns = documents(captions), captions.table("pmi").to_pydict()
    for index, (left, right) in enumerate(zip(columns["left"], columns["right"])):
        n_xy, n_x, n_y = counts[min(left, right), max(left, right)], marginal[left], marginal[right]
        assert (columns["n_xy"][index], columns["n_x"][index], columns["n_y"][index]) == (n_xy, n_x, n_y)
        value = float(logarithm(Fraction((n_xy + 2) * 1000, (n_x + 10) * (n_y + 10))))
        assert abs(columns["pmi"][index] - value) <= TOLERANCE * max(1.0, abs(value))


def test_window_scores_see_the_full_symmetric_matrix(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", ["a a b", "b c a", "c c"])
    job = pmill.count(
        warehouse, "w", corpus, "TEXT", "--context", "window", "--window", 2, "--weight", "harmonic",
        "--tokenizer", "whitespace",
    )  # fmt: skip
    # Events: aa 1, ab 1/2, ab 1 | bc 1, ba 1/2, ca 1 | cc 1. The full matrix holds each twice, aa and cc too.
    pmill.score(job, "--measure", "pmi")
    columns = job.table("pmi").to_pydict()
    matrix = {("a", "a"): 2, ("a", "b"): 2, ("b", "c"): 1, ("a", "c"): 1, ("c", "c"): 2}
    sums = {"a": 5, "b": 3, "c": 4}
    found = {}
    for index, key in enumerate(zip(columns["left"], columns["right"])):
        found[tuple(sorted(key))] = columns["n_xy"][index]
        assert (columns["n_x"][index], columns["n_y"][index]) == (sums[key[0]], sums[key[1]])
        assert columns["n"][index] == 12
        value = float(logarithm(Fraction(int(columns["n_xy"][index]) * 12, sums[key[0]] * sums[key[1]])))
        assert abs(columns["pmi"][index] - value) <= TOLERANCE
    assert found == matrix


def test_the_same_score_twice_changes_nothing_and_another_replaces_it(captions):
    assert pmill.score(captions)["status"] == "counted"
    before = captions.content("pmi")
    again = pmill.score(captions)
    assert (again["status"], again["version"]) == ("unchanged", 0)
    assert captions.content("pmi") == before
    other = pmill.score(captions, "--measure", "npmi", "--min-pair-count", 2)
    assert (other["status"], other["version"]) == ("counted", 1)
    assert captions.table("pmi").column_names == ["left", "right", "n_xy", "n_x", "n_y", "n", "npmi"]
    assert captions.orphans() == []


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--measure", "pnmi"], ["no measure `pnmi`", "did you mean"]),
        (["--base", "1"], ["`1` is not a base", "e, 2 or 10"]),
        (["--min-pair-count", "-1"], ["must be 0 or more"]),
        (["--measure", "pmi,pmi"], ["measure `pmi` is named twice"]),
        (["--measure", "sppmi(shift)"], ["is not parameter=value"]),
    ],
)
def test_wrong_score_settings_are_refused_and_say_why(flags, words, sample, warehouse, tmp_path):
    job = pmill.count(warehouse, "j", pmill.write(tmp_path / "t.parquet", ["a b", "a c"]), "TEXT")
    arguments = ["score", "--warehouse", warehouse, "--name", "j"]
    arguments += [f"{flags[0]}={flags[1]}"]
    result = pmill.run(*arguments, code=2)
    for word in words:
        assert word in result.err
    assert not job.exists("pmi")


def test_scoring_a_job_that_is_not_there_names_those_that_are(sample, warehouse, tmp_path):
    pmill.count(warehouse, "flickr", pmill.write(tmp_path / "t.parquet", ["a b"]), "TEXT")
    result = pmill.run("score", "--warehouse", warehouse, "--name", "flicker", code=2)
    assert "no job `flicker`; it has: flickr" in result.err
