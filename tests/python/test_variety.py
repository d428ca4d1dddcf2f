"""Parquet files of many writers give the counts of their content; how a corpus is cut changes no byte."""

from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pmill
import rules
import variety
from conftest import shared_folder

# Files of written-here that hold the same 2,000 captions in the column TEXT.
SAME_CAPTIONS = """
pa-none pa-snappy pa-gzip pa-brotli pa-lz4 pa-zstd pa-nodict-plain pa-delta-byte-array pa-delta-length pa-v2-pages
pa-page-checksum pa-page-index-bloomless pa-large-string pa-string-view pa-binary pa-dictionary-type
duckdb-uncompressed duckdb-snappy duckdb-gzip duckdb-brotli duckdb-lz4_raw duckdb-zstd duckdb-v2
""".split()
# Good files that the decoder is known to refuse (other readers take them): an error that names the file is right too.
REFUSED = {
    "good-foreign/ARROW-17100",
    "good-foreign/dict-page-offset-zero",
    "good-foreign/fp-empty",
    "good-foreign/fp-nation.dict",
    "good-foreign/fp-no_columns_new",
    "good-foreign/fp-non-std-kvm.fp-0.8.2",
    "good-foreign/hy-strings",
}


@pytest.fixture(scope="module")
def written(data):
    return data / "parquet-variety" / "written-here"


@pytest.fixture(scope="module")
def captions(written, tmp_path_factory):
    """The job counted from one of the files, and checked."""
    job = pmill.count(tmp_path_factory.mktemp("captions"), "reference", written / "pa-none.parquet", "TEXT")
    rows = [rules.words(text) for text in pq.read_table(written / "pa-none.parquet")["TEXT"].to_pylist()]
    assert job.pairs() == pmill.document_counts(rows)
    return job


@pytest.mark.parametrize("file", [*SAME_CAPTIONS, "pa-struct"])
def test_the_same_captions_give_the_same_bytes(file, written, captions, warehouse):
    column = "doc.TEXT" if file == "pa-struct" else "TEXT"
    job = pmill.count(warehouse, "j", written / f"{file}.parquet", column)
    assert job.content("pairs") == captions.content("pairs")
    assert job.content("vocab") == captions.content("vocab")
    assert job.table("pairs").equals(captions.table("pairs"))


def test_the_list_of_same_files_is_whole(written, captions):
    # A file that was added to the folder and holds the captions belongs into the list.
    texts = pq.read_table(written / "pa-none.parquet")["TEXT"].to_pylist()
    for path in written.glob("*.parquet"):
        schema = pq.read_schema(path)
        if path.stem in SAME_CAPTIONS or schema.names.count("TEXT") != 1:
            continue
        assert pq.read_table(path)["TEXT"].to_pylist() != texts, path.name


def test_order_and_name_of_columns_do_not_matter(written, warehouse):
    upper = pmill.count(warehouse, "upper", written / "pa-laion-schema-order.parquet", "TEXT")
    lower = pmill.count(warehouse, "lower", written / "pa-text-lowercase-name.parquet", "text")
    assert upper.content("pairs") == lower.content("pairs")


@pytest.mark.parametrize("file", ["pa-one-row-groups", "pa-text-nulls", "pa-one-huge-value", "pa-v2-pages"])
def test_odd_layouts_count_as_their_text(file, written, warehouse):
    path = written / f"{file}.parquet"
    texts = pq.read_table(path)["TEXT"].to_pylist()
    job = pmill.count(warehouse, "j", path, "TEXT", "--tokenizer", "whitespace", "--vocab-size", 2000)
    rows = [text.split() for text in texts if text is not None]
    keep = rules.most_frequent(rows, 2000)
    assert job.pairs() == pmill.document_counts([[word for word in row if word in keep] for row in rows])
    assert job.summary["rows"] == len(texts)


FOREIGN = [
    row
    for row in variety.manifest("good-foreign")
    if row is None or "string" in row["columns"] or "binary" in row["columns"]
]


@pytest.mark.parametrize("row", FOREIGN, ids=variety.name)
def test_files_of_other_writers_count_as_pyarrow_reads_them(row, data, tmp_path):
    if row is None:
        pytest.skip("the shared data is not here (set PMILL_SHARED)")
    path = data / "parquet-variety" / row["file"]
    names = text_columns(row, path)
    if not names:
        pytest.skip("no column of text, or pyarrow refuses the file")
    for number, column in enumerate(names):
        values = pq.read_table(path, columns=[column])[column].to_pylist()
        rows = [tokens(value) for value in values if value is not None]
        flags = ["--tokenizer", "whitespace"]
        arguments = ["count", "--warehouse", tmp_path / "wh", "--name", f"j{number}", "--input", path, "--text", column]
        if None in rows:
            # Bytes that are no text: the row is named.
            result = pmill.run(*arguments, *flags, code=2)
            assert path.name in result.err and "is not UTF-8" in result.err
            continue
        result = pmill.run(*arguments, *flags, code=None)
        if result.code != 0 and row["file"].removesuffix(".parquet") in REFUSED:
            assert result.code == 2 and path.name in result.err, result
            continue
        assert result.code == 0, result
        job = pmill.Job(tmp_path / "wh", f"j{number}")
        assert job.pairs() == pmill.document_counts(rows), column
        assert job.facts()["rows"] == len(values)


def text_columns(row, path):
    """As pyarrow names them; the manifest cuts long lists of columns."""
    try:
        schema = pq.read_schema(path)
    except pa.ArrowInvalid:
        return []
    return [field.name for field in schema if is_text(field.type) and schema.names.count(field.name) == 1]


def is_text(kind):
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary))


def tokens(value):
    """The row's words; None when it is not UTF-8."""
    if isinstance(value, list):
        return [token for token in value if token is not None]
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    return value.split()


@cache
def shared_texts():
    """30,000 texts: real ones when they are here, else made ones."""
    shared = shared_folder()
    if shared is not None:
        table = pq.read_table(shared / "data" / "captions" / "flickr8k")
        return table["TEXT"].to_pylist()[:30_000]
    return [f"w{row % 7} w{row % 101} w{row * row % 997} w{row % 1013}" for row in range(30_000)]


CUTS = {
    "one file": dict(files=1, group=30_000, flags=[]),
    "one thread": dict(files=1, group=30_000, flags=["--threads", "1"]),
    "two threads": dict(files=1, group=1000, flags=["--threads", "2"]),
    "eight threads": dict(files=3, group=500, flags=["--threads", "8"]),
    "seven files": dict(files=7, group=2500, flags=["--threads", "2"]),
    "small row groups": dict(files=2, group=97, flags=["--threads", "2"]),
    "64 MiB": dict(files=7, group=1000, flags=["--threads", "1", "--memory-limit", "64MiB"]),
    "1 GiB": dict(files=7, group=1000, flags=["--threads", "2", "--memory-limit", "1GiB"]),
}


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """The bytes of every context's tables, counted from one file."""
    folder = tmp_path_factory.mktemp("uncut")
    path = pmill.write(folder / "all.parquet", shared_texts())
    return {name: tables(pmill.count(folder / "wh", name, path, "TEXT", *flags)) for name, flags in CONTEXTS.items()}


CONTEXTS = {
    "document": ["--min-count", "2"],
    "glove": ["--context", "window", "--window", "5", "--weight", "harmonic", "--vocab-size", "2000"],
}


def tables(job):
    return {table: job.content(table) for table in ("vocab", "pairs")}


@pytest.mark.parametrize("cut", CUTS)
def test_how_the_corpus_is_cut_changes_no_byte(cut, uncut, warehouse, tmp_path):
    how, texts = CUTS[cut], shared_texts()
    step = -(-len(texts) // how["files"])
    for number in range(how["files"]):
        part = texts[number * step : (number + 1) * step]
        pmill.write(tmp_path / "in" / f"{number}.parquet", part, row_group_size=how["group"])
    for name, flags in CONTEXTS.items():
        job = pmill.count(warehouse, name, tmp_path / "in", "TEXT", *flags, *how["flags"])
        assert tables(job) == uncut[name]


def test_a_corpus_beyond_the_memory_limit_gives_the_same_bytes(large, tmp_path):
    flags = ["--vocab-size", "3000", "--threads", "2"]
    small = pmill.count(tmp_path / "wh", "small", large, "TEXT", *flags, "--memory-limit", "68MiB")
    whole = pmill.count(tmp_path / "wh", "whole", large, "TEXT", *flags, "--memory-limit", "4GiB")
    assert small.summary["units"] > 1 and small.summary["spilled_bytes"] > 0, "the limit must bite"
    assert whole.summary["units"] == 1
    assert tables(small) == tables(whole)
    # The promise: 1.25 × the limit and 300 MiB.
    assert small.result.peak_bytes <= 1.25 * (68 << 20) + (300 << 20)
    assert small.orphans() == [] and whole.orphans() == []
