"""Tables are read by other programs as `pmill sql` reads them."""

import duckdb
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
from deltalake import DeltaTable

import pmill

TABLES = {
    "vocab": ["id", "token", "count", "documents"],
    "pairs": ["left_id", "right_id", "count"],
    "pmi": ["left", "right", "n_xy", "n_x", "n_y", "n", "pmi", "npmi", "ppmi"],
    "sources": ["uri", "size", "etag", "rows", "tokens", "batch", "status", "message"],
}


@pytest.fixture(scope="module")
def job(sample, tmp_path_factory):
    job = pmill.count(tmp_path_factory.mktemp("job") / "wh", "j", sample, "TEXT", "--vocab-size", 300)
    pmill.score(job)
    # A second version: readers must not see the files of the first.
    pmill.score(job, "--min-pair-count", 2)
    return job


@pytest.fixture(scope="module")
def asked(job):
    """Rows as `pmill sql` gives them."""
    return {table: rows(pmill.sql(job.warehouse, f"SELECT * FROM j.{table}"), table) for table in TABLES}


def rows(objects, table):
    return sorted(tuple(row[column] for column in TABLES[table]) for row in objects)


@pytest.mark.parametrize("table", TABLES)
def test_the_delta_library_reads_the_same_rows(table, job, asked):
    found = pa.table(DeltaTable(str(job.folder(table))).to_pyarrow_table())
    assert found.column_names == TABLES[table]
    assert rows(found.to_pylist(), table) == asked[table]


@pytest.mark.parametrize("table", TABLES)
def test_pyarrow_duckdb_and_polars_read_the_same_rows(table, job, asked):
    files = [str(path) for path in job.files(table)]
    assert sorted(files) == sorted(DeltaTable(str(job.folder(table))).file_uris())
    assert rows(pa.dataset.dataset(files).to_table().to_pylist(), table) == asked[table]
    found = duckdb.sql(f"SELECT * FROM read_parquet({files})").to_arrow_table()
    assert rows(found.to_pylist(), table) == asked[table]
    assert rows(polars.read_delta(str(job.folder(table))).to_dicts(), table) == asked[table]


def test_the_statistics_of_the_log_are_those_of_the_files(job):
    for table in ("vocab", "pairs"):
        actions = DeltaTable(str(job.folder(table))).get_add_actions(flatten=True)
        for action in pa.table(actions).to_pylist():
            content = pyarrow.parquet.read_table(job.folder(table) / action["path"])
            assert action["num_records"] == content.num_rows
            for column in content.column_names:
                if f"min.{column}" in action and action[f"min.{column}"] is not None:
                    values = content[column].to_pylist()
                    assert (action[f"min.{column}"], action[f"max.{column}"]) == (min(values), max(values))


def test_the_types_are_delta_types_that_every_reader_has(job):
    schema = {field.name: str(field.type.type) for field in DeltaTable(str(job.folder("pairs"))).schema().fields}
    assert schema == {"left_id": "integer", "right_id": "integer", "count": "long"}
    schema = {field.name: str(field.type.type) for field in DeltaTable(str(job.folder("vocab"))).schema().fields}
    assert schema == {"id": "integer", "token": "string", "count": "long", "documents": "long"}


def test_the_settings_that_made_a_table_stand_in_its_metadata(job):
    configuration = DeltaTable(str(job.folder("pairs"))).metadata().configuration
    assert configuration["pmill.format"] == "1"
    settings = job.settings()
    assert settings["given"]["vocabulary"] == {"size": 300, "min_count": 1}
    assert settings["features"]["tokenizer"] == "words"
    assert settings["weight_unit"] == 1
    assert settings["program"].startswith("pmill ")


def test_an_older_version_can_still_be_read(job):
    old = DeltaTable(str(job.folder("pmi")), version=0)
    assert old.version() == 0
    assert old.to_pyarrow_table().num_rows == job.facts()["pairs"]
