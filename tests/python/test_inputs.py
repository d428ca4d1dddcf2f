"""What is named as input, which column is meant, and what is said when either is wrong."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pmill
import rules

TEXTS = ["red fox", "red hen", "hen and fox"]


def refuse(warehouse, inputs, *flags, text="TEXT", code=2, cwd=None):
    inputs = inputs if isinstance(inputs, list) else [inputs]
    result = pmill.run(
        "count", "--warehouse", warehouse, "--name", "j", "--input", *inputs, "--text", text, *flags, code=code, cwd=cwd
    )
    assert pmill.nothing_left(warehouse) == []
    return result.err


def test_an_unknown_column_lists_the_columns_and_the_nearest(data, warehouse):
    path = data / "captions" / "flickr8k" / "part-00000.parquet"
    for column in ("text", "TEXTS", "TXT"):
        message = refuse(warehouse, path, text=column)
        assert f"no column `{column}` (did you mean `TEXT`?); it has: key, image, caption_no, TEXT" in message
    assert "did you mean" not in refuse(warehouse, path, text="embedding_vector")


def test_a_file_without_the_column_is_named(data, warehouse):
    path = data / "parquet-variety" / "written-here" / "pa-missing-text-column.parquet"
    assert f"cannot read `{path}`: no column `TEXT`; it has: key" in refuse(warehouse, path)


def test_an_unknown_field_of_a_struct_lists_its_fields(data, warehouse):
    path = data / "parquet-variety" / "written-here" / "pa-struct.parquet"
    assert "no column `doc.TEX` (did you mean `TEXT`?); it has: meta, TEXT" in refuse(warehouse, path, text="doc.TEX")
    assert "expected text or a list of text" in refuse(warehouse, path, text="doc")
    job = pmill.count(warehouse, "deep", path, "doc.meta.key")
    assert job.summary["tokens"] > 0


def test_a_column_that_is_no_text_is_refused_with_its_type(data, warehouse):
    path = data / "parquet-variety" / "written-here" / "pa-text-is-int.parquet"
    assert "column `TEXT` has type Int64, expected text or a list of text" in refuse(warehouse, path)


def test_a_column_that_is_there_twice_is_refused(data, warehouse):
    path = data / "parquet-variety" / "written-here" / "pa-duplicate-column.parquet"
    assert "column `TEXT` occurs 2 times" in refuse(warehouse, path)


def test_an_empty_folder_gives_an_empty_table_and_a_note(warehouse, tmp_path):
    (tmp_path / "in").mkdir()
    job = pmill.count(warehouse, "j", tmp_path / "in", "TEXT")
    empty(job, rows=0)


def empty(job, rows):
    """Tables that exist, hold nothing, can be read and scored; and a note."""
    assert job.table("vocab").num_rows == job.table("pairs").num_rows == 0
    assert job.summary["rows"] == rows
    assert any("the tables are empty" in note for note in job.summary["notes"])
    assert pmill.sql(job.warehouse, f"SELECT count(*) AS n FROM {job.name}.pairs") == [{"n": 0}]
    pmill.score(job)
    assert pmill.sql(job.warehouse, f"SELECT * FROM {job.name}.pmi") == []


def test_zero_rows_give_an_empty_table_and_a_note(warehouse, tmp_path):
    empty(pmill.count(warehouse, "j", pmill.write(tmp_path / "t.parquet", []), "TEXT"), rows=0)


@pytest.mark.parametrize("file, rows", [("pa-zero-rows", 0), ("duckdb-zero-rows", 0), ("pa-all-null-text", 50)])
def test_files_without_text_give_an_empty_table_and_a_note(file, rows, data, warehouse):
    path = data / "parquet-variety" / "written-here" / f"{file}.parquet"
    empty(pmill.count(warehouse, "j", path, "TEXT"), rows)


@pytest.mark.parametrize("texts", [[None] * 5, [""] * 5, [" ", ".", "\u200b", None, "!?"]])
def test_rows_without_features_are_rows_all_the_same(texts, warehouse, tmp_path):
    empty(pmill.count(warehouse, "j", pmill.write(tmp_path / "t.parquet", texts), "TEXT"), rows=5)


def test_nulls_are_rows_of_the_event_space(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", ["a b", None, "", "a b"])
    job = pmill.count(warehouse, "j", corpus, "TEXT")
    pmill.score(job)
    assert job.table("pmi").select(["n_xy", "n_x", "n_y", "n"]).to_pylist() == [{"n_xy": 2, "n_x": 2, "n_y": 2, "n": 4}]


def test_paths_globs_folders_and_uris_name_the_same_files(warehouse, tmp_path):
    for number, text in enumerate(TEXTS):
        pmill.write(tmp_path / "in" / f"part {number}.parquet", [text])
    folder = tmp_path / "in"
    forms = {
        "files": sorted(folder.iterdir()),
        "glob": [f"{folder}/*.parquet"],
        "folder": [folder],
        "slash": [f"{folder}/"],
        "uri": [folder.as_uri()],
        "uris": [path.as_uri() for path in folder.iterdir()],
        "twice": [folder, f"{folder}/part*", *folder.iterdir()],
        "question": [f"{folder}/part ?.parquet"],
        "relative": ["in"],
    }
    for name, inputs in forms.items():
        job = pmill.count(warehouse, name, inputs, "TEXT", cwd=tmp_path)
        assert job.summary["files"] == 3, name
        assert job.pairs() == pmill.document_counts(text.split() for text in TEXTS), name
        assert [row["uri"] for row in job.table("sources").to_pylist()] == [
            path.as_uri() for path in sorted(folder.iterdir())
        ]


def test_hive_folders_are_searched_and_side_files_left_out(data, warehouse, tmp_path):
    root = tmp_path / "in"
    pmill.write(root / "lang=en" / "year=2024" / "a.parquet", TEXTS[:1])
    pmill.write(root / "lang=de" / "year=2025" / "b.parquet", TEXTS[1:])
    for side in ("_metadata", "_SUCCESS", ".a.parquet.crc", "_tmp.parquet", ".hidden.parquet", "notes.txt"):
        (root / "lang=en" / side).write_bytes(b"not a parquet file")
    pmill.write(root / "_temporary" / "c.parquet", ["never seen"])
    job = pmill.count(warehouse, "j", root, "TEXT")
    assert job.summary["files"] == 2
    assert job.pairs() == pmill.document_counts(text.split() for text in TEXTS)


def test_a_partitioned_folder_of_spark_is_listed_without_its_side_files(data, warehouse):
    folder = data / "parquet-variety" / "dataset-spark-partitioned"
    plan = pmill.run(
        "count", "--warehouse", warehouse, "--name", "j", "--input", folder, "--text", "num", "--dry-run", code=2
    )
    assert "column `num` has type Int64" in plan.err
    assert "/_metadata" not in plan.err and "/_common_metadata" not in plan.err


@pytest.mark.parametrize(
    "inputs, words",
    [
        (["missing.parquet"], "input `missing.parquet`: no such file or folder"),
        (["in/*.pq"], "input `in/*.pq`: the glob matches no file"),
        (["file://relative"], "expected file:///absolute/path"),
        (["in/t.parquet", "missing"], "input `missing`: no such file or folder"),
    ],
)
def test_an_input_that_names_nothing_is_refused(inputs, words, warehouse, tmp_path):
    pmill.write(tmp_path / "in" / "t.parquet", TEXTS)
    assert words in refuse(warehouse, inputs, cwd=tmp_path)


def test_a_list_of_inputs_with_a_bad_name_needs_no_column(warehouse):
    assert "--text" in pmill.run("count", "--warehouse", warehouse, "--name", "j", "--input", "x", code=2).err


@pytest.mark.parametrize("name", ["Captions", "a-b", "1st", "", "a.b", "../x", "information_schema", "public"])
def test_a_name_that_sql_could_not_say_is_refused(name, warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", TEXTS)
    result = pmill.run("count", "--warehouse", warehouse, f"--name={name}", "--input", corpus, "--text", "TEXT", code=2)
    assert f"`{name}`" in result.err
    assert pmill.nothing_left(warehouse) == []


def test_the_same_job_twice_changes_nothing_and_says_so(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "in" / "t.parquet", TEXTS).parent
    first = pmill.count(warehouse, "j", corpus, "TEXT")
    before = everything(warehouse)
    again = pmill.count(warehouse, "j", corpus, "TEXT")
    assert (first.summary["status"], again.summary["status"]) == ("counted", "unchanged")
    assert again.summary["version"] == first.summary["version"] == 0
    for key in ("rows", "tokens", "types", "terms", "pairs"):
        assert again.summary[key] == first.summary[key]
    assert everything(warehouse) == before
    said = pmill.run("count", "--warehouse", warehouse, "--name", "j", "--input", corpus, "--text", "TEXT").err
    assert "unchanged j" in said and "all 1 files were counted before; nothing changed" in said


def everything(warehouse):
    return {path: path.read_bytes() for path in warehouse.rglob("*") if path.is_file()}


def test_other_settings_are_refused_with_what_differs(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", TEXTS)
    pmill.count(warehouse, "j", corpus, "TEXT", "--vocab-size", 100)
    before = everything(warehouse)
    result = pmill.run(
        "count", "--warehouse", warehouse, "--name", "j", "--input", corpus, "--text", "TEXT", "--vocab-size", 50,
        "--tokenizer", "whitespace", "--context", "window", "--window", 5, code=2,
    )  # fmt: skip
    assert "job `j` was counted with other settings" in result.err
    for line in (
        "vocabulary.size: 50 here, 100 there",
        'features.tokenizer: "whitespace" here, "words" there',
        'context.kind: "window" here, "document" there',
        "context.window: 5 here, 10 there",
    ):
        assert line in result.err
    assert everything(warehouse) == before


def test_a_file_that_changed_since_is_named(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "in" / "t.parquet", TEXTS)
    pmill.count(warehouse, "j", corpus, "TEXT")
    before = everything(warehouse)
    os.utime(corpus, ns=(1, 1))
    result = pmill.run("count", "--warehouse", warehouse, "--name", "j", "--input", corpus, "--text", "TEXT", code=2)
    assert f"`{corpus}` was counted before and has changed since" in result.err
    pmill.write(corpus, [*TEXTS, "another row of text"])
    result = pmill.run("count", "--warehouse", warehouse, "--name", "j", "--input", corpus, "--text", "TEXT", code=2)
    assert f"`{corpus}` was counted before and has changed since" in result.err
    assert everything(warehouse) == before


def test_new_files_join_a_counted_job(warehouse, tmp_path):
    folder = pmill.write(tmp_path / "in" / "a.parquet", TEXTS).parent
    pmill.count(warehouse, "j", folder, "TEXT")
    pmill.write(folder / "b.parquet", TEXTS)
    plan = ["count", "--warehouse", warehouse, "--name", "j", "--input", folder, "--text", "TEXT", "--dry-run", "--json"]
    assert [path.split("/")[-1] for path, _ in pmill.run(*plan).json["inputs"]] == ["b.parquet"]
    assert pmill.count(warehouse, "j", folder, "TEXT").summary["files"] == 1


def test_a_vocabulary_file_that_is_not_there_is_named(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", TEXTS)
    assert "missing.txt" in refuse(warehouse, corpus, "--vocab", tmp_path / "missing.txt")
    assert "nowhere" in refuse(warehouse, corpus, "--lemma", "wordnet:nowhere")
    assert "stop.txt" in refuse(warehouse, corpus, "--stop-words", "stop.txt")


def test_a_vocabulary_file_lists_terms_that_need_not_occur(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", TEXTS)
    terms = tmp_path / "terms.txt"
    terms.write_text("fox\nzebra\nhen\n")
    job = pmill.count(warehouse, "j", corpus, "TEXT", "--vocab", terms)
    vocab = job.table("vocab").to_pylist()
    assert {row["token"]: row["count"] for row in vocab} == {"fox": 2, "hen": 2, "zebra": 0}
    assert job.pairs() == {("fox", "hen"): 1}


def test_tables_with_the_same_column_in_other_places_are_one_corpus(warehouse, tmp_path):
    pq.write_table(pa.table({"id": [1], "TEXT": ["red fox"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"TEXT": pa.array([b"red hen"]), "x": [0.5], "y": [1]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"TEXT": [["hen", "and", "fox"]]}), tmp_path / "c.parquet")
    job = pmill.count(warehouse, "j", sorted(tmp_path.glob("*.parquet")), "TEXT")
    assert job.pairs() == pmill.document_counts(text.split() for text in TEXTS)


@pytest.mark.parametrize("rule, count", [("words", rules.words), ("whitespace", str.split)])
def test_languages_of_the_world_count_by_the_documented_rule(rule, count, data, warehouse, tmp_path):
    # Every ninth of 532 translations of one text: scripts with marks, joiners, no blanks, letters beyond 16 bits.
    table = pq.read_table(data / "multilingual" / "udhr.parquet", columns=["text"])
    table = table.take(list(range(0, table.num_rows, 9)))
    pq.write_table(table, tmp_path / "udhr.parquet")
    rows = [count(text) for text in table["text"].to_pylist()]
    job = pmill.count(warehouse, "j", tmp_path / "udhr.parquet", "text", "--tokenizer", rule, "--vocab-size", 400)
    keep = rules.most_frequent(rows, 400)
    assert set(job.terms()) == keep
    assert job.summary["tokens"] == sum(map(len, rows))
    assert job.pairs() == pmill.document_counts([[word for word in row if word in keep] for row in rows])


def test_chinese_is_cut_into_words_by_icu(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "t.parquet", ["我喜欢北京", "北京很大"])
    job = pmill.count(warehouse, "j", corpus, "TEXT", "--tokenizer", "icu")
    assert {row["token"]: row["documents"] for row in job.table("vocab").to_pylist()}["北京"] == 2


def test_a_corpus_that_is_moved_is_not_counted_twice(warehouse, tmp_path):
    corpus = pmill.write(tmp_path / "a" / "t.parquet", TEXTS)
    pmill.count(warehouse, "j", corpus, "TEXT")
    moved = tmp_path / "b"
    shutil.copytree(corpus.parent, moved)
    result = pmill.run("count", "--warehouse", warehouse, "--name", "j", "--input", moved, "--text", "TEXT", code=2)
    assert f"`{moved / 't.parquet'}` is `{corpus}`, which was counted before, under another path" in result.err
