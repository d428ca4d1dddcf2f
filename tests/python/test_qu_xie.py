"""The caption rule of Qu and Xie: counts and scores against the reference script, pair by pair."""

import math
from collections import Counter

import pyarrow.parquet as pq
import pytest

import pmill

# Files under shared/data/captions, and their text column.
CORPORA = {
    "laion-1000.parquet": "TEXT",
    "laion-10000.parquet": "TEXT",
    "flickr8k/part-00000.parquet": "TEXT",
    "flickr8k/part-00001.parquet": "TEXT",
    "flickr8k/part-00002.parquet": "TEXT",
    "flickr8k/part-00003.parquet": "TEXT",
    "flickr8k": "TEXT",
    "imagereward-prompts/train.parquet": "Prompt",
    "imagereward-prompts/validation.parquet": "Prompt",
    "imagereward-prompts/test.parquet": "Prompt",
}


def reference(oracle, shared, wordnet, corpus, column, output, size):
    oracle(
        "oracle_captions.py", corpus, output, "--column", column, "--wordnet", wordnet, "--max-vocab", size,
        "--stop", shared / "data" / "vocab" / "english-stopwords.txt",
    )  # fmt: skip
    table = pq.read_table(output)
    keys = list(zip(table["left"].to_pylist(), table["right"].to_pylist()))
    return dict(zip(keys, table["count"].to_pylist())), dict(zip(keys, table["pmi"].to_pylist()))


def compare(job, counts, scores):
    """Counts to the last pair; n_x and n_y are f(w); qu_xie to 1e-9."""
    assert job.pairs() == counts
    pmill.score(job, "--preset", "qu-xie")
    f = Counter()
    for (left, right), count in counts.items():
        f[left] += count
        f[right] += count
    columns = job.table("pmi").to_pydict()
    assert columns["n"] == [float(sum(f.values()))] * len(counts)
    seen = set()
    for index, (left, right) in enumerate(zip(columns["left"], columns["right"])):
        key = (left, right) if left <= right else (right, left)
        seen.add(key)
        assert columns["n_xy"][index] == counts[key]
        assert columns["n_x"][index] == f[left]
        assert columns["n_y"][index] == f[right]
        assert math.isclose(columns["qu_xie"][index], scores[key], rel_tol=0, abs_tol=1e-9), key
    assert seen == counts.keys()


@pytest.mark.parametrize("name", CORPORA)
def test_counts_and_scores_equal_the_reference_to_the_last_pair(
    name, data, shared, wordnet, oracle, warehouse, tmp_path
):
    column = CORPORA[name]
    counts, scores = reference(
        oracle, shared, wordnet, data / "captions" / name, column, tmp_path / "reference.parquet", 1_000_000
    )
    job = pmill.count(
        warehouse,
        "captions",
        data / "captions" / name,
        column,
        "--tokenizer",
        "qu-xie",
        "--lemma",
        f"wordnet:{wordnet}",
    )
    assert len(counts) > 10_000
    compare(job, counts, scores)


def test_a_limited_vocabulary_equals_the_reference(data, shared, wordnet, oracle, warehouse, tmp_path):
    # Ties at the border are broken by code point in the script and by UTF-8 bytes in pmill: the same order.
    corpus = data / "captions" / "laion-10000.parquet"
    counts, scores = reference(oracle, shared, wordnet, corpus, "TEXT", tmp_path / "reference.parquet", 5000)
    job = pmill.count(
        warehouse, "captions", corpus, "TEXT", "--tokenizer", "qu-xie", "--lemma", f"wordnet:{wordnet}",
        "--vocab-size", 5000,
    )  # fmt: skip
    assert job.summary["types"] > job.summary["terms"] == 5000
    compare(job, counts, scores)


def test_a_vocabulary_file_counts_as_the_vocabulary_that_it_lists(data, wordnet, warehouse, tmp_path):
    corpus = data / "captions" / "laion-10000.parquet"
    flags = ["--tokenizer", "qu-xie", "--lemma", f"wordnet:{wordnet}"]
    chosen = pmill.count(warehouse, "chosen", corpus, "TEXT", *flags, "--vocab-size", 3000)
    listed = tmp_path / "terms.txt"
    # Any order will do: ids go by frequency.
    listed.write_text("\n".join(sorted(chosen.terms())) + "\n", encoding="utf-8")
    given = pmill.count(warehouse, "given", corpus, "TEXT", *flags, "--vocab", listed)
    assert given.table("vocab").equals(chosen.table("vocab"))
    assert given.content("pairs") == chosen.content("pairs")


def test_the_captions_pipeline_gives_the_same_tables_as_the_two_commands(data, wordnet, warehouse):
    corpus = data / "captions" / "flickr8k" / "part-00002.parquet"
    summary = pmill.run(
        "run", pmill.REPO / "pipelines" / "captions.toml", "--warehouse", warehouse, "--json",
        "--set", f'input.paths=["{corpus}"]', "--set", f"features.lemma=wordnet:{wordnet}",
    ).json  # fmt: skip
    assert summary["count"]["status"] == "counted"
    assert "qu_xie" in summary["score"]["measures"]
    other = pmill.count(
        warehouse,
        "other",
        corpus,
        "TEXT",
        "--tokenizer",
        "qu-xie",
        "--lemma",
        f"wordnet:{wordnet}",
        "--vocab-size",
        20_000,
    )
    pmill.score(other, "--preset", "qu-xie")
    piped = pmill.Job(warehouse, "captions")
    for table in ("vocab", "pairs", "pmi"):
        assert piped.content(table) == other.content(table), table
