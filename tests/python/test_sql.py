"""`pmill sql`: formats, catalog, files in FROM, refused writes, closed pipes."""

import csv
import io
import subprocess

import pyarrow.parquet as pq
import pytest

import pmill

TEXTS = ["red fox", "red hen", "hen and fox", "red fox"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    corpus = pmill.write(folder / "corpus.parquet", TEXTS)
    job = pmill.count(folder / "wh", "animals", corpus, "TEXT")
    pmill.score(job)
    job.corpus = corpus
    return job


QUERY = 'SELECT "left", "right", n_xy, pmi FROM animals.pmi ORDER BY pmi DESC, "left", "right"'


def rows(job):
    return pmill.sql(job.warehouse, QUERY)


def test_json_is_an_array_of_objects(scored):
    found = rows(scored)
    table = scored.table("pmi").select(["left", "right", "n_xy", "pmi"]).to_pylist()
    assert sorted(map(str, found)) == sorted(map(str, table))
    assert pmill.sql(scored.warehouse, "SELECT 1 AS one WHERE false") == []


def test_the_json_flag_is_the_json_format(scored):
    assert pmill.run("sql", "--warehouse", scored.warehouse, "--json", QUERY).json == rows(scored)


def test_nulls_are_written_and_nothing_is_left_out(scored):
    found = pmill.sql(scored.warehouse, "SELECT message FROM animals.sources")
    assert found == [{"message": None}]


def test_csv_has_a_header_also_without_rows(scored):
    out = pmill.run("sql", "--warehouse", scored.warehouse, "--format", "csv", QUERY).out
    lines = list(csv.DictReader(io.StringIO(out)))
    assert [(line["left"], float(line["pmi"])) for line in lines] == [(row["left"], row["pmi"]) for row in rows(scored)]
    empty = pmill.run(
        "sql", "--warehouse", scored.warehouse, "--format", "csv", QUERY.replace("ORDER", "WHERE false ORDER")
    )
    assert empty.out == "left,right,n_xy,pmi\n"


def test_a_table_is_drawn_with_its_header(scored):
    out = pmill.run("sql", "--warehouse", scored.warehouse, QUERY).out
    assert out.splitlines()[1].split("|")[1].strip() == "left"
    assert len(out.splitlines()) == len(rows(scored)) + 4


def test_parquet_goes_to_a_file_that_appears_whole(scored, tmp_path):
    path = tmp_path / "out.parquet"
    result = pmill.run("sql", "--warehouse", scored.warehouse, "--format", "parquet", "--output", path, QUERY)
    assert result.raw == b""
    assert pq.read_table(path).to_pylist() == rows(scored)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.parquet"]
    for wrong in ("SELECT * FROM nowhere.x", "SELECT 1 / (n - n) FROM (VALUES (1)) AS t(n)"):
        pmill.run("sql", "--warehouse", scored.warehouse, "--output", tmp_path / "no.csv", wrong, code=2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.parquet"]


def test_parquet_on_a_pipe_is_a_parquet_file(scored):
    result = pmill.run("sql", "--warehouse", scored.warehouse, "--format", "parquet", QUERY)
    assert pq.read_table(io.BytesIO(result.raw)).to_pylist() == rows(scored)


def test_a_query_is_read_from_stdin(scored):
    result = pmill.run("sql", "--warehouse", scored.warehouse, "--format", "json", "-", stdin=QUERY.encode())
    assert result.json == rows(scored)


def test_information_schema_lists_tables_and_columns(scored):
    tables = pmill.sql(
        scored.warehouse,
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'animals' ORDER BY table_name",
    )
    assert [row["table_name"] for row in tables] == ["outside", "pairs", "pmi", "sources", "vocab"]
    columns = pmill.sql(
        scored.warehouse,
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'animals' AND table_name = 'pmi' "
        "ORDER BY ordinal_position",
    )
    assert [row["column_name"] for row in columns] == [
        "left",
        "right",
        "n_xy",
        "n_x",
        "n_y",
        "n",
        "pmi",
        "npmi",
        "ppmi",
    ]


def test_pairs_and_vocabulary_join(scored):
    query = """
        SELECT l.token AS a, r.token AS b, p.count AS n FROM animals.pairs p
        JOIN animals.vocab l ON l.id = p.left_id JOIN animals.vocab r ON r.id = p.right_id
    """
    found = {tuple(sorted((row["a"], row["b"]))): row["n"] for row in pmill.sql(scored.warehouse, query)}
    assert found == scored.pairs() == pmill.document_counts(text.split() for text in TEXTS)


def test_the_corpus_is_asked_by_its_path(scored):
    query = f'SELECT "TEXT", count(*) AS n FROM \'{scored.corpus}\' GROUP BY "TEXT" ORDER BY n DESC LIMIT 1'
    assert pmill.sql(scored.warehouse, query) == [{"TEXT": "red fox", "n": 2}]


def test_measures_are_functions(scored):
    query = "SELECT max(abs(pmi(n_xy, n_x, n_y, n) - pmi)) AS d FROM animals.pmi"
    assert pmill.sql(scored.warehouse, query)[0]["d"] < 1e-15


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO animals.vocab VALUES (9, 'x', 1, 1)",
        "CREATE TABLE t AS SELECT 1",
        "CREATE VIEW v AS SELECT 1",
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '/nowhere'",
        "DROP TABLE animals.pairs",
        "DELETE FROM animals.pairs",
        "UPDATE animals.vocab SET count = 0",
        "COPY (SELECT 1) TO '{folder}/out.parquet'",
    ],
)
def test_statements_that_change_anything_are_refused(statement, scored, tmp_path):
    before = {path: path.read_bytes() for path in scored.warehouse.rglob("*") if path.is_file()}
    result = pmill.run("sql", "--warehouse", scored.warehouse, statement.format(folder=tmp_path), code=2)
    assert result.raw == b""
    assert len(result.err) > 20
    assert {path: path.read_bytes() for path in scored.warehouse.rglob("*") if path.is_file()} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "query, words",
    [
        ("SELECT * FROM animals.pmy", "no table `animals.pmy` (did you mean `animals.pmi`?)"),
        ("SELECT * FROM animal.pmi", "(did you mean `animals.pmi`?)"),
        ("SELECT * FROM zoo.keepers", "the warehouse has: animals.outside, animals.pairs, animals.pmi, animals.sources, animals.vocab"),
        ("SELECT lef FROM animals.pmi", "lef"),
        ("SELEC 1", "SELEC"),
        ("SELECT * FROM 'missing.parquet'", "missing.parquet"),
    ],
)
def test_a_query_that_cannot_be_answered_says_why(query, words, scored):
    assert words in pmill.run("sql", "--warehouse", scored.warehouse, query, code=2).err


def test_a_job_without_scores_has_no_table_of_them(tmp_path):
    job = pmill.count(tmp_path / "wh", "raw", pmill.write(tmp_path / "t.parquet", TEXTS), "TEXT")
    message = pmill.run("sql", "--warehouse", job.warehouse, "SELECT * FROM raw.pmi", code=2).err
    assert "no table `raw.pmi`" in message
    assert "raw.pairs, raw.sources, raw.vocab" in message


def test_an_empty_warehouse_has_no_tables_and_says_so(tmp_path):
    message = pmill.run("sql", "--warehouse", tmp_path / "wh", "SELECT * FROM a.pmi", code=2).err
    assert "no table `a.pmi`; the warehouse has: none" in message
    assert not (tmp_path / "wh").exists()


def test_a_bad_file_in_from_is_named(data, scored):
    path = data / "parquet-variety" / "bad" / "ARROW-RS-GH-6229-DICTHEADER.parquet"
    pmill.run("sql", "--warehouse", scored.warehouse, f"SELECT * FROM '{path}'", code=2)


@pytest.mark.parametrize("form", ["table", "csv", "json", "parquet"])
def test_a_closed_pipe_is_no_error(form, scored):
    query = "SELECT * FROM generate_series(1, 100000)"
    process = subprocess.Popen(
        [pmill.binary(), "sql", "--warehouse", scored.warehouse, "--format", form, query],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=pmill.environment(),
    )
    process.stdout.read(1)
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (0, b"")


def test_head_reads_one_line_without_noise(scored):
    command = f"'{pmill.binary()}' sql --warehouse '{scored.warehouse}' --format csv '{QUERY}' | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, timeout=60, env=pmill.environment()
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"left,right,n_xy,pmi\n", b"")


def test_numbers_keep_their_last_digit(scored):
    values = {(row["left"], row["right"]): row["pmi"] for row in scored.table("pmi").to_pylist()}
    assert all(row["pmi"] == values[row["left"], row["right"]] for row in rows(scored))
