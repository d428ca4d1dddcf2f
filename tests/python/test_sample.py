"""`pmill sample`: the same rows for any cut into files, and the right ones."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pmill

ROWS = 20_000


@pytest.fixture(scope="module")
def table():
    random = np.random.default_rng(3)
    log_weight = random.normal(0, 2, ROWS)
    weights = [None if index % 500 == 0 else float(value) for index, value in enumerate(log_weight)]
    return pa.table(
        {
            "id": pa.array([f"row-{index}" for index in range(ROWS)]),
            "w": pa.array(weights, pa.float64()),
            "p": pa.array(random.random(ROWS)),
            "prior": pa.array(np.round(random.normal(-7, 1, ROWS), 2)),
        }
    )


def cut(table, folder, sizes, order=None):
    """The table in files of these sizes, in another order of rows if one is given."""
    folder.mkdir()
    table = table if order is None else table.take(order)
    start = 0
    for number, size in enumerate(sizes):
        pq.write_table(table.slice(start, size), folder / f"{number:03}.parquet", row_group_size=1700)
        start += size
    assert start == table.num_rows
    return folder


@pytest.fixture(scope="module")
def corpora(table, tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora")
    shuffled = np.random.default_rng(1).permutation(ROWS)
    return [
        cut(table, root / "one", [ROWS]),
        cut(table, root / "many", [1, 0, 4999, 10000, 5000]),
        cut(table, root / "shuffled", [ROWS // 4] * 4, shuffled),
    ]


def sample(inputs, output, *flags, **options):
    return pmill.run("sample", "--input", inputs, "--output", output, "--id", "id", *flags, "--json", **options)


def chosen(output):
    return pa.concat_tables(pq.read_table(path) for path in sorted((output / "data").iterdir()))


@pytest.mark.parametrize(
    "flags",
    [
        ["--log-weight", "w", "--rows", 1000],
        ["--log-weight", "w", "--rows", 700, "--temperature", 3, "--middle", "prior=0.5"],
        ["--probability", "p"],
        ["--middle", "prior=0.8"],
    ],
)
def test_any_cut_order_and_number_of_threads_gives_the_same_rows(corpora, tmp_path, flags):
    found = []
    for number, (corpus, threads) in enumerate(zip(corpora, (1, 3, 2))):
        sample(corpus, tmp_path / str(number), *flags, "--threads", threads)
        found.append(chosen(tmp_path / str(number))["id"].to_pylist())
    assert found[0] == found[1], "the order of the input is kept"
    assert sorted(found[0]) == sorted(found[2])
    assert 0 < len(found[0]) < ROWS
    sample(corpora[0], tmp_path / "seed", *flags, "--seed", 2)
    same = set(chosen(tmp_path / "seed")["id"].to_pylist()) == set(found[0])
    assert same == (flags[0] == "--middle"), "a seed changes what is drawn, and nothing else"


def test_importance_draws_in_proportion_to_the_weights(corpora, table, tmp_path):
    summary = sample(corpora[0], tmp_path / "out", "--log-weight", "w", "--rows", 1000).json
    assert summary["chosen"] == 1000 and summary["left_out"] == ROWS // 500
    ids = set(chosen(tmp_path / "out")["id"].to_pylist())
    rows = [row for row in table.to_pylist() if row["w"] is not None]
    weights = np.exp([row["w"] for row in rows])
    taken = np.array([row["id"] in ids for row in rows])
    # Poisson view: P(chosen) = 1 - exp(-weight * s), with s such that 1000 are expected.
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - np.exp(-weights * middle)).sum() < 1000 else (low, middle)
    expected = 1 - np.exp(-weights * low)
    for part in np.array_split(np.argsort(weights), 10):
        deviation = np.sqrt((expected[part] * (1 - expected[part])).sum()) + 1
        assert abs(taken[part].sum() - expected[part].sum()) < 5 * deviation


def test_probabilities_are_kept(corpora, table, tmp_path):
    sample(corpora[0], tmp_path / "out", "--probability", "p")
    ids = set(chosen(tmp_path / "out")["id"].to_pylist())
    p = np.array(table["p"].to_pylist())
    taken = np.array([f"row-{index}" in ids for index in range(ROWS)])
    for part in np.array_split(np.argsort(p), 10):
        deviation = np.sqrt((p[part] * (1 - p[part])).sum()) + 1
        assert abs(taken[part].sum() - p[part].sum()) < 5 * deviation


def test_the_middle_is_that_of_sorting_and_shards_keep_all_columns(corpora, table, tmp_path):
    summary = sample(corpora[1], tmp_path / "out", "--middle", "prior=0.8", "--format", "shards").json
    prior = np.sort(table["prior"].to_numpy())
    low, high = prior[ROWS // 10], prior[ROWS - 1 - ROWS // 10]
    assert summary["middle"] == [low, high]
    expected = table.filter([low <= value <= high for value in table["prior"].to_pylist()])
    assert chosen(tmp_path / "out").equals(expected)
    assert len(list((tmp_path / "out" / "data").iterdir())) == 5, "one shard for one input"


def test_weights_are_of_all_rows_and_the_largest_is_one(corpora, table, tmp_path):
    sample(corpora[0], tmp_path / "out", "--log-weight", "w", "--rows", 10, "--format", "weights")
    found = chosen(tmp_path / "out")
    weights = np.array([row["w"] for row in table.to_pylist() if row["w"] is not None])
    assert np.allclose(found["weight"].to_numpy(), np.exp(weights - weights.max()), rtol=1e-12)


def test_more_rows_than_there_are_and_mistakes(corpora, tmp_path):
    summary = sample(corpora[0], tmp_path / "all", "--log-weight", "w", "--rows", ROWS).json
    assert summary["chosen"] == ROWS - ROWS // 500 and "all were taken" in summary["notes"][0]
    result = sample(corpora[0], tmp_path / "out", "--log-weight", "W", "--rows", 5, code=2)
    assert "no column `W` (did you mean `w`?)" in result.err
    result = sample(corpora[0], tmp_path / "out", "--probability", "w", code=2)
    assert "expected probabilities from 0 to 1" in result.err
    result = sample(corpora[0], tmp_path / "out", code=2)
    assert "nothing says which rows to choose" in result.err
    assert not (tmp_path / "out").exists()
