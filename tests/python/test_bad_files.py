"""Broken, hostile and encrypted files: one message, exit code 2, nothing left behind; or skipped and listed."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pmill
import variety

BAD = variety.manifest("bad", "bad-derived", "bomb", "encrypted")
LIMIT = 256 << 20
# Columns that decode as if nothing had happened: the damage is in another column, or the page has no checksum.
UNDETECTABLE = {
    ("bad-derived/checksum-flip.parquet", "TEXT"): "the flipped bytes are in the column `key`",
    ("bad-derived/flipped-bytes-in-page.parquet", "TEXT"): "the flipped bytes are in the column `key`",
    ("bad-derived/flipped-bytes-in-page.parquet", "key"): "the damaged page has no checksum",
}


def cases():
    """Every text column of every bad file; a file without one is asked for its first column, or for TEXT."""
    for row in BAD:
        if row is None:
            yield pytest.param(None, None, id="absent")
            continue
        for column in variety.text_columns(row) or list(variety.columns(row))[:1] or ["TEXT"]:
            if (row["file"], column) not in UNDETECTABLE:
                yield pytest.param(row["file"], column, id=f"{variety.name(row)}-{column}")


def refused(result, path):
    """One message that names the file and a reason, quickly and within memory."""
    assert result.code == 2, result
    assert result.raw == b""
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result
    assert lines[0].startswith(f"pmill: cannot read `{path}`: "), result
    reason = lines[0].split("`: ", 1)[1]
    assert len(reason) > 10, result
    assert result.seconds < 30
    # The promise is 1.25 × the limit and 300 MiB.
    assert result.peak_bytes <= 1.25 * LIMIT + (300 << 20), result.peak_bytes
    return reason


@pytest.mark.parametrize("file, column", cases())
def test_a_bad_file_ends_the_job_and_leaves_nothing(file, column, data, warehouse):
    if file is None:
        pytest.skip("the shared data is not here (set PMILL_SHARED)")
    path = data / "parquet-variety" / file
    arguments = ["count", "--warehouse", warehouse, "--name", "j", "--input", path, "--text", column]
    result = pmill.run(*arguments, "--memory-limit", LIMIT, code=None, timeout=60)
    reason = refused(result, path)
    assert pmill.nothing_left(warehouse) == []
    if file.startswith("encrypted/") or "encrypted" in path.stem:
        assert "encrypted" in reason


@pytest.mark.parametrize("file, column", cases())
def test_a_bad_file_is_skipped_and_listed_and_the_good_one_counted(file, column, data, warehouse, tmp_path):
    if file is None:
        pytest.skip("the shared data is not here (set PMILL_SHARED)")
    bad = data / "parquet-variety" / file
    texts = ["red fox", "red hen", "fox and hen", None]
    good = pmill.write(tmp_path / "good.parquet", texts, column=column)
    job = pmill.count(warehouse, "j", [bad, good], column, "--on-bad-file", "skip", "--memory-limit", LIMIT, timeout=60)
    assert job.pairs() == pmill.document_counts(text.split() for text in texts if text)
    alone = pmill.count(warehouse, "alone", good, column)
    assert job.content("pairs") == alone.content("pairs") and job.content("vocab") == alone.content("vocab")
    assert (job.summary["files"], job.summary["skipped"], job.summary["rows"]) == (1, 1, 4)
    rows = {row["uri"].split("/")[-1]: row for row in job.table("sources").to_pylist()}
    assert (rows["good.parquet"]["status"], rows["good.parquet"]["message"]) == ("counted", None)
    skipped = rows.pop(next(name for name in rows if name != "good.parquet"))
    assert skipped["status"] == "skipped"
    assert bad.name in skipped["message"]
    assert (skipped["rows"], skipped["tokens"]) == (0, 0)
    assert [note for note in job.summary["notes"] if note == f"skipped: {skipped['message']}"]
    assert job.orphans() == []


@pytest.mark.parametrize("file", [file for file, column in UNDETECTABLE if column == "TEXT"])
def test_damage_elsewhere_in_a_file_does_not_change_the_counts(file, data, warehouse):
    folder = data / "parquet-variety"
    damaged = pmill.count(warehouse, "damaged", folder / file, "TEXT")
    good = pmill.count(warehouse, "good", folder / "written-here" / "pa-none.parquet", "TEXT")
    assert damaged.content("pairs") == good.content("pairs")


def test_all_bad_files_at_once_are_skipped_and_said_at_the_end(data, warehouse, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for row in BAD:
        if (row["file"], "TEXT") not in UNDETECTABLE:
            path = data / "parquet-variety" / row["file"]
            shutil.copyfile(path, folder / path.name.removesuffix(".encrypted"))
    bad = len(list(folder.iterdir()))
    shutil.copyfile(data / "parquet-variety" / "written-here" / "pa-zstd.parquet", folder / "good.parquet")
    result = pmill.run(
        "count", "--warehouse", warehouse, "--name", "j", "--input", folder, "--text", "TEXT", "--on-bad-file", "skip"
    )
    assert f"1 files ({bad} skipped)" in result.err
    assert result.err.count("note: skipped: cannot read `") == bad
    alone = pmill.count(warehouse, "alone", folder / "good.parquet", "TEXT")
    assert pmill.Job(warehouse, "j").content("pairs") == alone.content("pairs")


def test_only_bad_files_give_an_empty_table_and_a_note(data, warehouse):
    path = data / "parquet-variety" / "bad-derived" / "truncated-half.parquet"
    job = pmill.count(warehouse, "j", path, "TEXT", "--on-bad-file", "skip")
    assert job.pairs() == {}
    assert "no file was counted: the tables are empty" in job.summary["notes"]


def made_bomb(kind, path):
    """Small files that decode to far more than they hold."""
    if kind == "one huge value":
        table, options = pa.table({"TEXT": ["a" * (300 << 20)]}), {"compression": "brotli", "use_dictionary": False}
    elif kind == "many large values":
        table = pa.table({"TEXT": ["ab " * 40_000] * 3000})
        options = {"compression": "zstd", "use_dictionary": False, "data_page_size": 1 << 20}
    else:
        # One dictionary entry of 8 MB, which 50 rows name: 400 MB if each were copied.
        table, options = pa.table({"TEXT": ["a" * (8 << 20)] * 50}), {"compression": "zstd", "use_dictionary": True}
        options["dictionary_pagesize_limit"] = 64 << 20
    pq.write_table(table, path, **options)
    assert path.stat().st_size < 1 << 20, "it must be small"
    return path


@pytest.mark.parametrize("kind", ["one huge value", "many large values"])
def test_a_bomb_ends_in_an_error_within_the_memory_limit(kind, warehouse, tmp_path):
    path = made_bomb(kind, tmp_path / "bomb.parquet")
    arguments = ["count", "--warehouse", warehouse, "--name", "j", "--input", path, "--text", "TEXT"]
    result = pmill.run(*arguments, "--memory-limit", LIMIT, code=None, timeout=60)
    reason = refused(result, path)
    assert "more than the memory limit" in reason
    assert pmill.nothing_left(warehouse) == []


def test_a_value_that_many_rows_share_is_counted_within_the_memory_limit(warehouse, tmp_path):
    path = made_bomb("one shared value", tmp_path / "shared.parquet")
    job = pmill.count(
        warehouse, "j", path, "TEXT", "--tokenizer", "whitespace", "--memory-limit", LIMIT, "--threads", 1
    )
    assert job.table("vocab").select(["count", "documents"]).to_pylist() == [{"count": 50, "documents": 50}]
    assert job.result.peak_bytes <= 1.25 * LIMIT + (300 << 20)


def varint(number, length=1):
    """Thrift's variable-length integer, filled up to `length` bytes."""
    groups = []
    while number or len(groups) < length:
        groups.append(number & 127)
        number >>= 7
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def test_a_bomb_whose_footer_lies_ends_in_an_error_within_the_memory_limit(warehouse, tmp_path):
    path = tmp_path / "liar.parquet"
    table = pa.table({"TEXT": ["a" * (400 << 20)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    del table
    # The footer says 2,000 bytes; the page holds 400 MiB.
    true = pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    whole = path.read_bytes()
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    said = varint(2 * true)
    footer = whole[start:].replace(said, varint(2 * 2000, len(said)))
    path.write_bytes(whole[:start] + footer)
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 2000
    arguments = ["count", "--warehouse", warehouse, "--name", "j", "--input", path, "--text", "TEXT"]
    refused(pmill.run(*arguments, "--memory-limit", LIMIT, code=None), path)
    assert pmill.nothing_left(warehouse) == []


def test_a_file_with_invalid_utf8_is_named_with_its_row(data, warehouse):
    for name in ("invalid-utf8-binary", "invalid-utf8-string"):
        path = data / "multilingual" / f"{name}.parquet"
        arguments = ["count", "--warehouse", warehouse, "--name", "j", "--input", path, "--text", "text"]
        result = pmill.run(*arguments, code=2)
        assert path.name in result.err
        assert "utf-8" in result.err.lower() or "utf8" in result.err.lower(), result
        assert pmill.nothing_left(warehouse) == []


def test_the_row_that_is_not_utf8_is_the_one_that_is_named(warehouse, tmp_path):
    values = [b"good text"] * 9000 + [b"bad \xff text"] + [b"good"] * 10
    path = pmill.write(tmp_path / "t.parquet", values, kind=pa.binary(), row_group_size=4000)
    arguments = ["count", "--warehouse", warehouse, "--name", "j", "--input", path, "--text", "TEXT"]
    result = pmill.run(*arguments, code=2)
    assert "row 1000 of row group 2 is not UTF-8" in result.err


def test_a_file_that_is_cut_anywhere_is_refused(warehouse, tmp_path):
    whole = pmill.write(tmp_path / "whole.parquet", ["red fox and hen"] * 500).read_bytes()
    for length in range(0, len(whole), len(whole) // 12):
        path = tmp_path / f"cut-{length}.parquet"
        path.write_bytes(whole[:length])
        arguments = ["count", "--warehouse", warehouse, "--name", "j", "--input", path, "--text", "TEXT"]
        refused(pmill.run(*arguments, code=None), path)
    assert pmill.nothing_left(warehouse) == []


def test_flipped_bytes_are_found_by_checksums_or_give_the_counts(warehouse, tmp_path):
    good = pmill.write(
        tmp_path / "good.parquet", [f"w{row % 50} w{row % 7}" for row in range(2000)], write_page_checksum=True
    )
    whole = good.read_bytes()
    expected = pmill.count(warehouse, "good", good, "TEXT").pairs()
    found = 0
    for number, place in enumerate(range(4, len(whole) - 8, max(1, len(whole) // 40))):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path = tmp_path / f"flip-{place}.parquet"
        path.write_bytes(damaged)
        name = f"j{number}"
        arguments = ["count", "--warehouse", warehouse, "--name", name, "--input", path, "--text", "TEXT"]
        result = pmill.run(*arguments, code=None)
        if result.code == 0:
            # The byte was one that says nothing about the text (statistics, the writer's name).
            assert pmill.Job(warehouse, name).pairs() == expected, place
        else:
            refused(result, path)
            found += 1
    assert found > 10


def test_a_warehouse_that_is_a_file_is_refused(tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", ["a b"])
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = pmill.run("count", "--warehouse", blocked, "--name", "j", "--input", corpus, "--text", "TEXT", code=2)
    assert "it is a file; give a folder" in result.err


def test_a_memory_limit_too_small_is_an_error_with_the_least(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", ["a b"])
    arguments = ["count", "--warehouse", warehouse, "--name", "j", "--input", corpus, "--text", "TEXT"]
    result = pmill.run(*arguments, "--memory-limit", "10MiB", code=2)
    assert "memory limit of 10.0 MiB is too small: pmill needs 64.0 MiB at least" in result.err
    assert pmill.nothing_left(warehouse) == []
