"""Document counts of every kind of text column against scikit-learn and against plain Python."""

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import triu
from sklearn.feature_extraction.text import CountVectorizer

import pmill
import rules


def sklearn_counts(texts, analyzer):
    """The product of the binary document-term matrix with itself, above the diagonal."""
    vectorizer = CountVectorizer(analyzer=analyzer, binary=True, dtype=numpy.int64)
    matrix = vectorizer.fit_transform(texts)
    terms = vectorizer.get_feature_names_out()
    product = triu(matrix.T @ matrix, k=1).tocoo()
    pairs = {(terms[i], terms[j]): int(n) for i, j, n in zip(product.row, product.col, product.data)}
    documents = dict(zip(terms, numpy.asarray(matrix.sum(axis=0)).ravel().tolist()))
    return pairs, documents


def compare(job, texts, analyzer):
    pairs, documents = sklearn_counts(texts, analyzer)
    vocab = job.table("vocab")
    assert dict(zip(vocab["token"].to_pylist(), vocab["documents"].to_pylist())) == documents
    assert job.pairs() == pairs


@pytest.mark.parametrize(
    "corpus, column",
    [
        ("captions/laion-10000.parquet", "TEXT"),
        ("captions/flickr8k/part-00001.parquet", "TEXT"),
        ("captions/imagereward-prompts/test.parquet", "Prompt"),
    ],
)
def test_words_count_as_scikit_learn_multiplies(corpus, column, data, warehouse):
    texts = [text for text in pq.read_table(data / corpus)[column].to_pylist() if text is not None]
    job = pmill.count(warehouse, "j", data / corpus, column)
    compare(job, texts, rules.words)


def test_whitespace_counts_as_scikit_learn_multiplies(data, warehouse):
    corpus = data / "captions" / "laion-10000.parquet"
    texts = [text for text in pq.read_table(corpus)["TEXT"].to_pylist() if text is not None]
    compare(pmill.count(warehouse, "j", corpus, "TEXT", "--tokenizer", "whitespace"), texts, str.split)


@pytest.mark.parametrize(
    "file", ["pa-tokens-list", "pa-tokens-large-list", "pa-tokens-list-nulls", "duckdb-tokens-list"]
)
def test_a_list_of_tokens_counts_as_it_is(file, data, warehouse):
    corpus = data / "parquet-variety" / "written-here" / f"{file}.parquet"
    rows = [
        [token for token in row if token is not None]
        for row in pq.read_table(corpus)["tokens"].to_pylist()
        if row is not None
    ]
    job = pmill.count(warehouse, "j", corpus, "tokens")
    assert job.pairs() == pmill.document_counts(rows)
    assert job.summary["tokens"] == sum(map(len, rows))
    assert job.summary["rows"] == pq.read_metadata(corpus).num_rows, "a null is a row too"


def test_masc_documents_of_tokens_count_within_a_limited_vocabulary(data, warehouse):
    corpus = data / "documents" / "masc-tokens.parquet"
    rows = pq.read_table(corpus)["tokens"].to_pylist()
    keep = rules.most_frequent(rows, 500)
    job = pmill.count(warehouse, "j", corpus, "tokens", "--vocab-size", 500)
    assert job.pairs() == pmill.document_counts([[word for word in row if word in keep] for row in rows])


def test_vocabulary_ids_go_by_falling_count_then_bytes(sample, warehouse):
    vocab = pmill.count(warehouse, "j", sample, "TEXT", "--min-count", 3).table("vocab").to_pydict()
    order = [(-count, token.encode()) for count, token in zip(vocab["count"], vocab["token"])]
    assert order == sorted(order)
    assert min(vocab["count"]) == 3


def test_filters_of_words_apply_in_the_order_that_is_documented(warehouse, tmp_path):
    texts = ["The 12 dogs ran", "a dog barked at 7 cats", "cats and dogs"]
    corpus = pmill.write(tmp_path / "t.parquet", texts)
    lemmas = tmp_path / "lemmas.tsv"
    lemmas.write_text("dogs\tdog\ncats\tcat\n")
    job = pmill.count(
        warehouse, "j", corpus, "TEXT", "--stop-words", "english", "--min-length", 2, "--drop-numeric",
        "--lemma", f"file:{lemmas}",
    )  # fmt: skip
    assert job.pairs() == {
        ("dog", "ran"): 1,
        ("barked", "dog"): 1,
        ("barked", "cat"): 1,
        ("cat", "dog"): 2,
    }


def test_phrases_become_one_feature_and_concepts_the_only_ones(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", ["see the statue of liberty", "new york city", "liberty in new york"])
    terms = tmp_path / "terms.txt"
    terms.write_text("statue of liberty\nnew york\nliberty\n")
    phrases = pmill.count(warehouse, "phrases", corpus, "TEXT", "--phrases", terms)
    assert set(phrases.terms()) == {"see", "the", "statue of liberty", "new york", "city", "liberty", "in"}
    concepts = pmill.count(warehouse, "concepts", corpus, "TEXT", "--concepts", terms)
    assert concepts.pairs() == {("liberty", "new york"): 1}


def test_at_most_n_features_of_a_document_keeps_the_most_frequent(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", ["a b c d", "a b c", "a b", "a"])
    job = pmill.count(warehouse, "j", corpus, "TEXT", "--max-features-per-document", 2)
    assert job.pairs() == {("a", "b"): 3}
    assert job.summary["dropped_features"] == 3


def test_token_ids_are_not_text_and_are_refused(data, warehouse):
    corpus = data / "parquet-variety" / "written-here" / "pa-token-ids-int32.parquet"
    result = pmill.run(
        "count", "--warehouse", warehouse, "--name", "j", "--input", corpus, "--text", "input_ids", code=2
    )
    assert "column `input_ids` has type" in result.err
    assert "expected text or a list of text" in result.err


def test_every_arrow_text_type_counts_the_same(warehouse, tmp_path):
    texts = ["red fox", None, "red hen and fox", "", "hen", "red fox"] * 300
    kinds = {
        "string": pa.string(),
        "large_string": pa.large_string(),
        "string_view": pa.string_view(),
        "binary": pa.binary(),
        "large_binary": pa.large_binary(),
        "dictionary": pa.dictionary(pa.int16(), pa.string()),
    }
    contents = set()
    for name, kind in kinds.items():
        path = pmill.write(tmp_path / f"{name}.parquet", texts, kind=kind)
        job = pmill.count(warehouse, name, path, "TEXT")
        assert job.summary["rows"] == len(texts)
        contents.add((str(job.content("vocab")), str(job.content("pairs"))))
    assert len(contents) == 1
