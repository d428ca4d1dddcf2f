"""The seeded corpus: same seed same bytes, Zipf's law, planted pairs on top, no row twice by construction."""

from collections import Counter

import pyarrow.parquet as pq

import pmill


def make(folder, *flags):
    return pmill.run("sample-corpus", "--output", folder, *flags, "--json").json


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    flags = ["--rows", 3000, "--files", 3]
    make(tmp_path / "a", *flags, "--threads", 1)
    make(tmp_path / "b", *flags, "--threads", 3)
    make(tmp_path / "c", *flags, "--seed", 2)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a").keys() == content(tmp_path / "c").keys()
    assert all(content(tmp_path / "a")[name] != content(tmp_path / "c")[name] for name in content(tmp_path / "a"))


def test_the_columns_are_those_of_laion(sample):
    for path in sample.iterdir():
        schema = pq.read_schema(path)
        assert {field.name: str(field.type) for field in schema} == {
            "SAMPLE_ID": "int64",
            "URL": "string",
            "TEXT": "string",
        }
    assert pq.read_table(sample)["SAMPLE_ID"].to_pylist() == list(range(20000))


def test_rows_do_not_repeat_within_or_across_files(sample):
    texts = pq.read_table(sample)["TEXT"].to_pylist()
    # Five words or more of a large vocabulary: equal captions are rare.
    assert len(set(texts)) > 0.99 * len(texts)


def test_seeds_do_not_share_rows(sample, tmp_path):
    make(tmp_path / "other", "--rows", 20000, "--seed", 2)
    ours = set(pq.read_table(sample)["TEXT"].to_pylist())
    others = set(pq.read_table(tmp_path / "other")["TEXT"].to_pylist())
    assert len(ours & others) < 0.01 * len(ours)


def test_the_summary_counts_what_was_written(tmp_path):
    summary = make(tmp_path / "c", "--rows", 1001, "--files", 4)
    table = pq.read_table(tmp_path / "c")
    assert summary["rows"] == table.num_rows == 1001
    assert summary["tokens"] == sum(len(text.split()) for text in table["TEXT"].to_pylist())
    assert summary["files"] == len(list((tmp_path / "c").iterdir())) == 4


def test_documents_are_longer_and_come_by_tokens(tmp_path):
    summary = make(tmp_path / "d", "--style", "documents", "--tokens", 200_000, "--files", 2)
    lengths = [len(text.split()) for text in pq.read_table(tmp_path / "d")["TEXT"].to_pylist()]
    assert abs(summary["tokens"] - 200_000) < 20_000
    assert 50 <= min(lengths) and max(lengths) <= 2002


def test_planted_words_stand_together_and_nowhere_else(sample, tmp_path):
    planted = make(tmp_path / "tiny", "--rows", 10)["planted"]
    words = {word for pair in planted for word in pair}
    counts, alone = Counter(), Counter()
    for text in pq.read_table(sample)["TEXT"].to_pylist():
        row = text.split()
        for index, word in enumerate(row):
            if word in words:
                alone[word] += 1
                if [word, row[index + 1] if index + 1 < len(row) else None] in planted:
                    counts[word] += 1
    for left, right in planted:
        assert counts[left] == alone[left] == alone[right] > 0
    # One row in 50 has one of the ten pairs: 40 of each, with a standard deviation of 6.3.
    assert all(40 - 25 <= counts[left] <= 40 + 25 for left, _ in planted), counts


def test_planted_pairs_are_the_top_by_npmi(sample, warehouse, tmp_path):
    planted = {tuple(sorted(pair)) for pair in make(tmp_path / "tiny", "--rows", 10)["planted"]}
    job = pmill.count(warehouse, "s", sample, "TEXT")
    pmill.score(job, "--min-pair-count", 5)
    top = pmill.sql(warehouse, f'SELECT "left", "right", npmi FROM s.pmi ORDER BY npmi DESC LIMIT {len(planted)}')
    assert {tuple(sorted((row["left"], row["right"]))) for row in top} == planted
    assert all(abs(row["npmi"] - 1) < 1e-12 for row in top)


def test_words_follow_zipf(sample, warehouse):
    counts = pmill.count(warehouse, "s", sample, "TEXT").table("vocab")["count"].to_pylist()
    # Ten times the rank, about a tenth of the count; topics bend it a little.
    for rank in (20, 100):
        assert 4 < counts[rank] / counts[rank * 10] < 25


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    result = pmill.run("sample-corpus", "--output", tmp_path, code=2)
    assert "is not empty; give a new folder" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
