"""Counts by slice: each slice is the table that its rows alone would give, and their sum is the table of all."""

import os
import random
from collections import Counter

import kills
import pmill
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CONTEXTS = {
    "document": [],
    "few features": ["--max-features-per-document", "3"],
    "window": ["--context", "window", "--window", "4", "--weight", "harmonic"],
    "one side": ["--context", "window", "--window", "2", "--side", "right", "--out-of-vocabulary", "gap"],
}
# Texts with a null, an empty one, a quote, spaces, and letters of several bytes.
KEYS = [None, "", "it's", "2023", "2024", "Ünïcødé 雨", "a b"]


def write(path, seed, rows, keys=KEYS):
    draw = random.Random(seed)
    texts = kills.texts(seed, rows)
    values = [draw.choice(keys) for _ in texts]
    table = pa.table({"TEXT": pa.array(texts, pa.string()), "key": pa.array(values, pa.string()), "n": list(range(rows))})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=23)
    return path, list(zip(texts, values))


def vocabulary(folder, size=25):
    words = [f"w{number}" for number in range(size - 2)] + ["s1x0", "never"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "terms.txt").write_text("\n".join(words))
    return ["--vocab", folder / "terms.txt"]


def vocab(job):
    """(slice, token) -> (count, documents), of a job that is counted by slice."""
    return {(r["slice"], r["token"]): (r["count"], r["documents"]) for r in job.table("vocab").to_pylist()}


def pairs(job):
    """slice -> pairs of tokens -> count."""
    rows = job.table("vocab").to_pylist()
    found = {}
    for pair in job.table("pairs").to_pylist():
        left, right = rows[pair["left_id"]], rows[pair["right_id"]]
        assert left["slice"] == right["slice"]
        found.setdefault(left["slice"], {})[left["token"], right["token"]] = pair["count"]
    return found


def ordered(tables, symmetric):
    """Pairs without an order, which is that of ids and so of each vocabulary."""
    return {tuple(sorted(pair)) if symmetric else pair: count for pair, count in tables.items()}


def verified(job):
    report = pmill.run("inspect", "--warehouse", job.warehouse, "--name", job.name, "--verify", "--json").json
    assert report["verified"]["sound"], report["verified"]["violations"]
    return report


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_slice_is_the_job_of_its_rows_and_the_sum_is_the_job_of_all(context, tmp_path):
    path, rows = write(tmp_path / "t.parquet", 1, 300)
    flags = [*vocabulary(tmp_path), *CONTEXTS[context], "--threads", "2"]
    symmetric = context != "one side"
    job = pmill.count(tmp_path / "wh", "j", path, "TEXT", "--slice", "key", *flags)
    whole = pmill.count(tmp_path / "wh", "whole", path, "TEXT", *flags)
    facts = verified(job)["facts"]
    assert [s["slice"] for s in facts["slices"]] == sorted(KEYS, key=lambda k: (k is not None, (k or "").encode()))
    assert facts["pairs"] == sum(map(len, pairs(job).values()))
    found, counts, total, terms = pairs(job), vocab(job), Counter(), Counter()
    for number, key in enumerate(KEYS):
        where = "key IS NULL" if key is None else "key = '{}'".format(key.replace("'", "''"))
        alone = pmill.count(tmp_path / "wh", f"alone{number}", path, "TEXT", "--where", where, *flags)
        (slice_facts,) = [s for s in facts["slices"] if s["slice"] == key]
        assert (slice_facts["rows"], slice_facts["tokens"]) == (alone.facts()["rows"], alone.facts()["tokens"])
        # `few features` prefers by the order of the vocabulary, which is that of its own counts.
        if context != "few features":
            stored = alone.pairs() if symmetric else alone.ordered_pairs()
            assert ordered(found.get(key, {}), symmetric) == ordered(stored, symmetric)
        for row in alone.table("vocab").to_pylist():
            assert counts[key, row["token"]] == (row["count"], row["documents"])
            terms[row["token"]] += row["count"]
        total.update(ordered(found.get(key, {}), symmetric))
    assert dict(total) == ordered(whole.pairs() if symmetric else whole.ordered_pairs(), symmetric)
    assert dict(terms) == {row["token"]: row["count"] for row in whole.table("vocab").to_pylist()}
    assert (facts["rows"], facts["tokens"], facts["units"]) == tuple(whole.facts()[k] for k in ("rows", "tokens", "units"))


def test_the_vocabulary_is_chosen_over_all_slices_and_the_rest_is_kept_outside(tmp_path):
    path, rows = write(tmp_path / "t.parquet", 2, 200)
    flags = ["--vocab-size", "12", "--threads", "2"]
    job = pmill.count(tmp_path / "wh", "j", path, "TEXT", "--slice", "key", *flags)
    whole = pmill.count(tmp_path / "wh", "whole", path, "TEXT", *flags)
    terms = [row["token"] for row in job.table("vocab").to_pylist()]
    assert terms == whole.terms() * len(KEYS)
    assert job.content("outside") == whole.content("outside")
    assert job.facts()["types"] == whole.facts()["types"]
    drift = pmill.run("vocab", "--warehouse", tmp_path / "wh", "--name", "j", "--refresh", "--json").json
    assert (drift["entering"], drift["leaving"], drift["moved"]) == (0, 0, 0)


@pytest.mark.parametrize("context", ["document", "window", "subsampled"])
def test_batches_retractions_and_merges_leave_no_trace(context, tmp_path):
    flags = {"subsampled": ["--context", "window", "--window", "5", "--subsample", "0.01"]}.get(context) or CONTEXTS[context]
    flags = ["--slice", "key", "--vocab-size", "25", *flags, "--threads", "2"]
    a, _ = write(tmp_path / "a.parquet", 1, 120, ["m", "x", None])
    b, _ = write(tmp_path / "b.parquet", 2, 120, ["x", "b", "zz"])
    c, _ = write(tmp_path / "c.parquet", 3, 120, ["é", "m", "b"])

    def seen(job):
        return {t: kills.visible(job)[t] for t in kills.TABLES}, kills.visible(job)["facts"]

    def retract(job, *paths, flags=()):
        pmill.run("retract", "--warehouse", job.warehouse, "--name", "j", "--input", *paths, *flags)

    job = pmill.count(tmp_path / "wh", "j", a, "TEXT", *flags)
    first = seen(job)
    pmill.count(tmp_path / "wh", "j", [a, b], "TEXT", *flags)
    with_b = seen(job)
    pmill.count(tmp_path / "wh", "j", [a, b, c], "TEXT", *flags)
    assert [s["slice"] for s in job.facts()["slices"]] == [None, "b", "m", "x", "zz", "é"]
    verified(job)
    all_three = seen(job)
    retract(job, c)
    assert seen(job) == with_b
    retract(job, b)
    assert seen(job) == first
    # In another order, and at once; then single rows: a slice goes with its last.
    other = pmill.count(tmp_path / "other", "j", a, "TEXT", *flags)
    pmill.count(tmp_path / "other", "j", [c, b], "TEXT", *flags)
    assert seen(other) == all_three
    retract(other, a, b, c, flags=["--where", "key = 'b' OR n < 20"])
    assert "b" not in [s["slice"] for s in other.facts()["slices"]]
    verified(other)
    # Tables of the same vocabulary with other slices are summed.
    parts = tmp_path / "parts"
    part = pmill.count(parts, "j", a, "TEXT", *flags)
    pmill.count(parts, "j", [b, c], "TEXT", *flags)
    retract(part, a)
    verified(part)
    pmill.run("merge", "--warehouse", tmp_path / "sum", "--name", "j", "--from", tmp_path / "wh" / "j", parts / "j")
    assert seen(pmill.Job(tmp_path / "sum", "j")) == all_three
    # Nothing is left, but the vocabulary; and it may grow again.
    retract(job, a)
    assert job.facts()["rows"] == 0 and "slices" not in job.facts() and job.table("pairs").num_rows == 0
    assert len(job.terms()) == 25
    verified(job)
    pmill.count(tmp_path / "wh", "j", [a, b, c], "TEXT", *flags)
    assert seen(job) == all_three


def test_pairs_that_outlive_their_slice_were_never_counted_so(tmp_path):
    """The same words in the same number of rows, in pairs that are too few: the last rows of a slice may not go."""
    path = tmp_path / "t.parquet"
    flags = ["--slice", "key"]

    def put(texts):
        table = pa.table({"TEXT": [*texts, "a b"], "key": ["x", "x", "y"]})
        pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
        os.utime(path, (1_700_000_000, 1_700_000_000))
        return path.stat().st_size

    size = put(["a b c d", ""])
    job = pmill.count(tmp_path / "wh", "j", path, "TEXT", *flags)
    before = kills.visible(job)
    retract = ["retract", "--warehouse", tmp_path / "wh", "--name", "j", "--input", path]
    assert put(["a b ", "c d"]) == size
    refused = pmill.run(*retract, "--where", "key = 'x'", code=2).err
    assert "all rows of slice `x` would be taken out, and pairs of it would be left" in refused
    assert put(["a b d", "c "]) == size
    refused = pmill.run(*retract, code=2).err
    assert "all rows of slice `x` would be taken out, and pairs of it would be left" in refused
    assert kills.visible(job) == before
    put(["a b c d", ""])
    pmill.run(*retract)
    assert job.facts()["pairs"] == 0 and "slices" not in job.facts()


def test_the_same_terms_in_another_order_are_summed_by_slice(tmp_path):
    (a, _), (b, _) = write(tmp_path / "a.parquet", 1, 150), write(tmp_path / "b.parquet", 2, 150)
    flags = ["--slice", "key", *vocabulary(tmp_path)]
    x = pmill.count(tmp_path / "wh", "x", a, "TEXT", *flags)
    y = pmill.count(tmp_path / "wh", "y", b, "TEXT", *flags)
    assert x.terms() != y.terms()
    pmill.run("merge", "--warehouse", tmp_path / "wh", "--name", "n", "--from", "x", "y")
    both = pmill.count(tmp_path / "wh", "both", [a, b], "TEXT", *flags)
    merged = pmill.Job(tmp_path / "wh", "n")
    assert vocab(merged) == vocab(both)
    assert {k: ordered(v, True) for k, v in pairs(merged).items()} == {k: ordered(v, True) for k, v in pairs(both).items()}
    verified(merged)
    p = pmill.count(tmp_path / "wh", "p", a, "TEXT", "--slice", "key", "--vocab-size", "9")
    pmill.count(tmp_path / "wh", "q", b, "TEXT", "--slice", "key", "--vocab-size", "9")
    refused = pmill.run("merge", "--warehouse", tmp_path / "wh", "--name", "r", "--from", "p", "q", "--remap", code=2)
    assert "summed only over the same terms" in refused.err
    plain = pmill.count(tmp_path / "wh", "plain", a, "TEXT", "--vocab-size", "9")
    refused = pmill.run("merge", "--warehouse", tmp_path / "wh", "--name", "r", "--from", "p", "plain", code=2)
    assert "slice: key here" in refused.err or "slice: not set here" in refused.err
    assert p.facts()["rows"] == plain.facts()["rows"]


@pytest.mark.parametrize("limit", ["80M", "4G"])
def test_threads_cut_and_memory_do_not_change_a_byte(limit, tmp_path):
    path, _ = write(tmp_path / "t.parquet", 5, 4000)
    flags = ["--slice", "key", "--vocab-size", "30", "--context", "window", "--window", "3"]
    one = pmill.count(tmp_path / "one", "j", path, "TEXT", *flags, "--threads", "1")
    two = pmill.count(tmp_path / "two", "j", path, "TEXT", *flags, "--threads", "2", "--memory-limit", limit)
    for table in kills.TABLES:
        assert one.content(table) == two.content(table)


def test_scores_are_of_each_slice(tmp_path):
    path, rows = write(tmp_path / "t.parquet", 7, 300, ["x", "y", None])
    flags = ["--vocab-size", "20"]
    job = pmill.count(tmp_path / "wh", "j", path, "TEXT", "--slice", "key", *flags)
    pmill.score(job)
    verified(job)
    documents, pair_rows, n = Counter(), Counter(), Counter()
    known = set(job.terms())
    for text, key in rows:
        n[key] += 1
        words = known.intersection(text.split())
        documents.update((key, word) for word in words)
        pair_rows.update((key, *sorted((x, y))) for x in words for y in words if x < y)
    scores = pmill.sql(tmp_path / "wh", "SELECT * FROM j.pmi")
    assert len(scores) == len(pair_rows)
    for row in scores:
        key, x, y = row.get("slice"), row["left"], row["right"]
        assert row["n_xy"] == pair_rows[(key, *sorted((x, y)))]
        assert (row["n_x"], row["n_y"], row["n"]) == (documents[key, x], documents[key, y], n[key])
    windows = ["--context", "window", "--window", "2", *flags]
    w = pmill.count(tmp_path / "wh", "w", path, "TEXT", "--slice", "key", *windows)
    pmill.score(w)
    verified(w)
    totals = pmill.sql(tmp_path / "wh", "SELECT slice, count(DISTINCT n) c, max(n) n, sum(n_xy) s FROM w.pmi WHERE \"left\" <> \"right\" GROUP BY slice")
    loops = pmill.sql(tmp_path / "wh", "SELECT slice, sum(n_xy) s FROM w.pmi WHERE \"left\" = \"right\" GROUP BY slice")
    loops = {row.get("slice"): row["s"] for row in loops}
    for row in totals:
        assert row["c"] == 1 and row["n"] == 2 * row["s"] + loops.get(row.get("slice"), 0)


@pytest.mark.parametrize("context", ["document", "window"])
def test_drift_between_slices_is_that_between_jobs_of_their_rows(context, tmp_path):
    path, _ = write(tmp_path / "t.parquet", 8, 400, ["2023", "2024", "it's"])
    flags = [*vocabulary(tmp_path), *CONTEXTS[context]]
    pmill.count(tmp_path / "wh", "j", path, "TEXT", "--slice", "key", *flags)
    for name, key in (("a", "2023"), ("b", "it''s")):
        # A condition would be a setting that differs: rows of one slice in a file of their own.
        table = pq.read_table(path)
        keep = [value == key.replace("''", "'") for value in table["key"].to_pylist()]
        pq.write_table(table.filter(pa.array(keep)), tmp_path / f"{name}.parquet")
        pmill.count(tmp_path / "wh", name, tmp_path / f"{name}.parquet", "TEXT", *flags)

    def rows(call):
        columns = "least(\"left\", \"right\") x, greatest(\"left\", \"right\") y, n_xy_a, n_a, n_xy_b, n_b, log_odds_z, pmi_z, js"
        found = pmill.sql(tmp_path / "wh", f"SELECT {columns} FROM {call} ORDER BY x, y")
        return [{k: round(v, 9) if isinstance(v, float) else v for k, v in row.items()} for row in found]

    expected = rows("drift('a', 'b')")
    assert len(expected) > 50
    assert rows("drift('j', '2023', 'it''s')") == expected
    assert rows("drift('j', 'j', slice_a => '2023', slice_b => 'it''s')") == expected
    least = rows("drift('a', 'b', 5)")
    assert 0 < len(least) < len(expected)
    assert rows("drift('j', '2023', 'it''s', min_pair_count => 5)") == least
    (divergence,) = pmill.sql(tmp_path / "wh", "SELECT sum(js) s FROM drift('j', '2023', '2023')")
    assert abs(divergence["s"]) < 1e-12
    near = "neighbours('{}', 'w1', 5, measure => 'log_likelihood_ratio'{})"
    columns = "rank, neighbour, round(score, 9) s, n_xy, n_x, n_y, n"
    of_slice = pmill.sql(tmp_path / "wh", f"SELECT {columns} FROM " + near.format("j", ", slice => '2023'"))
    assert of_slice == pmill.sql(tmp_path / "wh", f"SELECT {columns} FROM " + near.format("a", ""))
    for call, message in [
        ("drift('j', '2023', '2025')", "it has no slice `2025`; its slices: 2023, 2024, it's"),
        ("drift('j', 'a')", "which slice is not said"),
        ("drift('a', 'x', 'y')", "is not counted by slice"),
        ("neighbours('j', 'w1')", "which slice is not said"),
        ("drift('j', '2023', '2024', slice_a => 'x')", "leave slice_a and slice_b out"),
    ]:
        assert message in pmill.run("sql", "--warehouse", tmp_path / "wh", f"SELECT * FROM {call}", code=2).err


def test_drift_between_two_versions_of_a_job(tmp_path):
    (a, _), (b, _) = write(tmp_path / "a.parquet", 1, 200), write(tmp_path / "b.parquet", 2, 200)
    flags = vocabulary(tmp_path)
    pmill.count(tmp_path / "wh", "j", a, "TEXT", *flags)
    pmill.count(tmp_path / "wh", "j", [a, b], "TEXT", *flags)
    before, after = "SELECT sum(\"count\") s FROM j.pairs VERSION AS OF {}".format(0), "SELECT sum(\"count\") s FROM j.pairs"
    (row,) = pmill.sql(tmp_path / "wh", "SELECT sum(n_xy_a) a, sum(n_xy_b) b FROM drift('j@0', 'j')")
    assert (row["a"], row["b"]) == (pmill.sql(tmp_path / "wh", before)[0]["s"], pmill.sql(tmp_path / "wh", after)[0]["s"])
    assert "no version 7" in pmill.run("sql", "--warehouse", tmp_path / "wh", "SELECT * FROM drift('j@7', 'j')", code=2).err


def test_numbers_dates_and_expressions_are_slices_and_what_is_none_is_refused(tmp_path):
    import datetime

    path = tmp_path / "t.parquet"
    days = [datetime.date(2023, 1, 2), datetime.date(2024, 5, 6), None]
    table = {"TEXT": ["red fox", "red hen", "fox"], "day": days, "Year": [2023, 2024, None], "score": [0.5, 1.5, 2.5], "l": [[1], [2], [3]]}
    pq.write_table(pa.table(table), path)

    def keys(slice_by, name):
        job = pmill.count(tmp_path / "wh", name, path, "TEXT", "--slice", slice_by)
        return [s["slice"] for s in job.facts()["slices"]]

    assert keys("Year", "a") == keys("left(CAST(day AS VARCHAR), 4)", "b") == [None, "2023", "2024"]
    assert keys("day", "c") == [None, "2023-01-02", "2024-05-06"]
    assert keys("score > 1", "d") == ["false", "true"]
    assert keys("coalesce(\"Year\", 0)", "e") == ["0", "2023", "2024"]
    count = ["count", "--warehouse", tmp_path / "wh", "--name", "f", "--input", path, "--text", "TEXT", "--slice"]
    for slice_by, message in [
        ("score", "it gives Float64, expected text, a whole number"),
        ("l", "expected text, a whole number"),
        ("yeer", "yeer"),
        ("Year +", "`slice`"),
        ("random() < 0.5", "in another run"),
    ]:
        assert message in pmill.run(*count, slice_by, code=2).err
        assert not (tmp_path / "wh" / "f").exists()
    other = pmill.run("count", "--warehouse", tmp_path / "wh", "--name", "a", "--input", path, "--text", "TEXT", code=2)
    assert "slice: not set here, Year there" in other.err
    for command in (["export", "--format", "csv", "--output", tmp_path / "o.csv"], ["embed", "--output", tmp_path / "o"]):
        refused = pmill.run(command[0], "--warehouse", tmp_path / "wh", "--name", "a", *command[1:], code=2).err
        assert "is counted by slice" in refused


def test_too_many_slices_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"TEXT": ["red fox"] * 1001, "n": list(range(1001))}), path)
    count = ["count", "--warehouse", tmp_path / "wh", "--name", "j", "--input", path, "--text", "TEXT", "--slice"]
    refused = pmill.run(*count, "n", code=2).err
    assert "more than 1000 slices" in refused and not (tmp_path / "wh" / "j").exists()
    job = pmill.count(tmp_path / "wh", "j", path, "TEXT", "--slice", "n % 1000")
    assert len(job.facts()["slices"]) == 1000 and job.facts()["pairs"] == 1000


def test_a_job_of_slices_killed_at_any_step_ends_as_if_it_had_not_been(tmp_path):
    paths = [write(tmp_path / f"{n}.parquet", n, 80)[0] for n in range(3)]
    flags = ["--text", "TEXT", "--slice", "key", "--vocab-size", "25", "--threads", "2"]
    pmill.run("count", "--warehouse", tmp_path / "wh", "--name", "j", "--input", paths[0], *flags)
    command = ["count", "--warehouse", "WAREHOUSE", "--name", "j", "--input", paths[1], paths[2], *flags]
    (tmp_path / "scratch").mkdir()
    change = kills.Change("count by slice", tmp_path / "wh", command, tmp_path / "scratch")
    if not change.points:
        pytest.skip("this build has no kill points: they are in debug builds")
    for number in range(1, len(change.points) + 1):
        change.kill_at(number)


def test_shards_do_not_take_slices_yet(tmp_path):
    path, _ = write(tmp_path / "t.parquet", 1, 20)
    shard = ["count", "--warehouse", tmp_path / "wh", "--name", "j", "--input", path, "--text", "TEXT", "--slice", "key"]
    assert "--slice goes with one process as yet" in pmill.run(*shard, "--shard-count", "2", "--shard-index", "0", code=2).err
