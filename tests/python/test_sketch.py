"""Jobs with a sketch: pairs of the most frequent terms are exact, all others are estimated from a count-min sketch.

What the sketch must hold is computed here from the rows, with another implementation of the hash.
"""

import json
import math
import random
import shutil
import struct
from collections import Counter

import cluster
import duckdb
import kills
import pmill
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

MASK = (1 << 64) - 1
EXACT, BUCKETS, HASHES = 60, 2000, 4
SKETCH = ["--exact-terms", EXACT, "--sketch-buckets", BUCKETS, "--sketch-hashes", HASHES]
CONTEXTS = {
    "document": [],
    "window": ["--context", "window", "--window", "4", "--weight", "harmonic"],
    "one side": ["--context", "window", "--window", "2", "--side", "right", "--out-of-vocabulary", "gap"],
}


def rotate(value, bits):
    return ((value << bits) | (value >> (64 - bits))) & MASK


def finish(value):
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = ((value ^ (value >> 33)) * factor) & MASK
    return value ^ (value >> 33)


def murmur(number, seed):
    """The first half of MurmurHash3 x64 128 of 8 bytes."""
    mixed = (number * 0x87C37B91114253D5) & MASK
    mixed = (rotate(mixed, 31) * 0x4CF5AD432745937F) & MASK
    first, second = seed ^ mixed ^ 8, seed ^ 8
    first = (first + second) & MASK
    second = (second + first) & MASK
    return (finish(first) + finish(second)) & MASK


def described(job):
    """What the property of `tail` says."""
    newest = [action["metaData"] for version in pmill.log(job.folder("tail")) for action in version if "metaData" in action]
    return json.loads(newest[-1]["configuration"]["pmill.sketch"])


def sketch_rows(job):
    rows = job.table("tail").to_pylist()
    hashes = sorted((row for row in rows if row["kind"] == "count-min"), key=lambda row: row["hash"])
    (distinct,) = [row for row in rows if row["kind"] == "hyperloglog"]
    assert [row["hash"] for row in hashes] == list(range(len(hashes))) and distinct["hash"] is None
    return hashes, distinct


def cells(image):
    """Total and cells of a count-min image of DataSketches."""
    preamble, version, family, flags, _, buckets, hashes, _, _ = struct.unpack_from("<BBBBIIBHB", image)
    assert (preamble, version, family, hashes) == (2, 1, 18, 1)
    if flags & 1:
        return 0, [0] * buckets
    numbers = struct.unpack_from(f"<{buckets + 1}Q", image, 16)
    return numbers[0], list(numbers[1:])


def all_pairs(warehouse, inputs, *flags):
    """(left id, right id) -> units, of the same job without a sketch, and its terms."""
    whole = pmill.count(warehouse, "whole", inputs, "TEXT", *flags)
    table = whole.table("pairs")
    keys = zip(table["left_id"].to_pylist(), table["right_id"].to_pylist())
    return whole, dict(zip(keys, table["count"].to_pylist()))


def is_exact(pair, exact=EXACT):
    return pair[0] < exact and pair[1] < exact


def head(job):
    table = job.table("pairs")
    return dict(zip(zip(table["left_id"].to_pylist(), table["right_id"].to_pylist()), table["count"].to_pylist()))


def verified(job):
    report = pmill.run("inspect", "--warehouse", job.warehouse, "--name", job.name, "--verify", "--json").json
    assert report["verified"]["sound"], report["verified"]["violations"]
    return report


def content(job, distinct=True):
    """All that is stored; without the distinct pairs, which a retraction leaves as they are."""
    found = {table: job.content(table) for table in ("vocab", "outside", "pairs", "tail")}
    if not distinct:
        found["tail"] = found["tail"][:-1]
    return found


def literal(words):
    return "[" + ", ".join("'" + word.replace("'", "''") + "'" for word in words) + "]"


def estimates(job, pairs, terms, columns="*"):
    left, right = (literal(terms[pair[side]] for pair in pairs) for side in (0, 1))
    return pmill.sql(job.warehouse, f"SELECT {columns} FROM estimate('{job.name}', {left}, {right})")


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_sketch_is_the_one_that_the_documentation_describes(context, sample, tmp_path):
    files = sorted(sample.glob("*.parquet"))[:1]
    flags = ["--vocab-size", 400, *CONTEXTS[context]]
    job = pmill.count(tmp_path / "wh", "j", files, "TEXT", *flags, *SKETCH)
    whole, truth = all_pairs(tmp_path / "wh", files, *flags)
    assert job.terms() == whole.terms()
    assert head(job) == {pair: n for pair, n in truth.items() if is_exact(pair)}
    tail = {pair: n for pair, n in truth.items() if not is_exact(pair)}
    total = sum(tail.values())
    hashes, distinct = sketch_rows(job)
    assert len(hashes) == HASHES
    for row in hashes:
        seed = murmur(0, row["seed"])
        expected = [0] * BUCKETS
        for (left, right), n in tail.items():
            expected[murmur(left << 32 | right, seed) % BUCKETS] += n
        assert cells(row["sketch"]) == (total, expected)
    left, right = Counter(), Counter()
    for (x, y), n in tail.items():
        left[x] += n
        right[y] += n
    vocab = job.table("vocab")
    assert vocab["tail_left"].to_pylist() == [left[id] for id in range(vocab.num_rows)]
    assert vocab["tail_right"].to_pylist() == [right[id] for id in range(vocab.num_rows)]
    facts, property = job.facts()["tail"], described(job)
    assert facts["units"] == str(total) and int(facts["most_over"]) == math.ceil(math.e / BUCKETS * total)
    assert facts["confidence"] == pytest.approx(1 - math.exp(-HASHES))
    assert facts["distinct_error"] == pytest.approx(1.04 / 128)
    assert abs(facts["distinct"] - len(tail)) <= 3 * facts["distinct_error"] * len(tail)
    assert not facts["distinct_is_upper_bound"]
    assert property | facts == property
    assert (property["exact_terms"], property["buckets"], property["hashes"]) == (EXACT, BUCKETS, HASHES)
    verified(job)


@pytest.fixture(scope="module")
def captions(request):
    """Real captions when the shared data is here, made ones otherwise."""
    from conftest import shared_folder

    folder = shared_folder()
    path = folder and folder / "data" / "captions" / "laion-10000.parquet"
    return path if path and path.is_file() else request.getfixturevalue("sample")


@pytest.mark.parametrize("context", CONTEXTS)
def test_estimates_are_never_below_the_truth_and_within_the_bound_for_its_share(context, captions, tmp_path):
    flags = ["--vocab-size", 2000, *CONTEXTS[context]]
    sketch = ["--exact-terms", 100, "--sketch-buckets", 20000, "--sketch-hashes", 3]
    job = pmill.count(tmp_path / "wh", "j", captions, "TEXT", *flags, *sketch)
    whole, truth = all_pairs(tmp_path / "wh", captions, *flags)
    terms, unit = whole.terms(), whole.facts()["weight_unit"]
    facts = job.facts()["tail"]
    tail = [pair for pair in truth if not is_exact(pair, 100)]
    assert abs(facts["distinct"] - len(tail)) <= 3 * facts["distinct_error"] * len(tail)
    draw = random.Random(3)
    # Some that met, and some that perhaps never did; both orders of a pair without direction.
    asked = draw.sample(tail, min(1500, len(tail)))
    never = ((draw.randrange(100, len(terms)), draw.randrange(len(terms))) for _ in range(400))
    asked += [pair for pair in never if pair[0] != pair[1]]
    heads = draw.sample([pair for pair in truth if is_exact(pair, 100)], 200)
    symmetric = context != "one side"
    turned = [pair[::-1] if symmetric and draw.random() < 0.5 else pair for pair in asked + heads]
    most_over, within = int(facts["most_over"]), 0
    pmill.score(whole)
    marginals = {}
    for row in pmill.sql(job.warehouse, 'SELECT "left", "right", n_x, n_y, n FROM whole.pmi'):
        marginals[row["left"], 0], marginals[row["right"], 1] = row["n_x"], row["n_y"]
        marginals["n"] = row["n"]
    for pair, row in zip(turned, estimates(job, turned, terms)):
        stored = tuple(sorted(pair)) if symmetric else pair
        twice = 2 if symmetric and pair[0] == pair[1] else 1
        exact = truth.get(stored, 0)
        assert (row["left"], row["right"]) == (terms[pair[0]], terms[pair[1]])
        assert row["approximate"] == (not is_exact(pair, 100))
        found, low = round(row["n_xy"] * unit / twice), round(row["n_xy_low"] * unit / twice)
        if row["approximate"]:
            assert found >= exact, (pair, row)
            assert low == max(0, found - most_over)
            within += low <= exact
        else:
            assert found == low == exact
        # Marginals are exact whatever is sketched.
        for side, name in ((0, "n_x"), (1, "n_y")):
            known = marginals.get((row[("left", "right")[side]], side))
            assert known is None or row[name] == pytest.approx(known, rel=1e-12)
        assert row["n"] == pytest.approx(marginals["n"], rel=1e-12)
    assert within >= facts["confidence"] * len(asked), (within, len(asked))


@pytest.mark.parametrize("context", CONTEXTS)
def test_scores_of_exact_pairs_are_those_of_the_whole_job(context, sample, tmp_path):
    flags = ["--vocab-size", 500, *CONTEXTS[context]]
    job = pmill.count(tmp_path / "wh", "j", sample, "TEXT", *flags, *SKETCH)
    whole = pmill.count(tmp_path / "wh", "whole", sample, "TEXT", *flags)
    for marginals in ("documents", "pairs") if context == "document" else ("pairs",):
        for one in (job, whole):
            summary = pmill.score(one, "--marginals", marginals)
        columns = '"left", "right", n_xy, n_x, n_y, n, pmi, npmi'
        mine = pmill.sql(job.warehouse, f"SELECT {columns}, approximate FROM j.pmi")
        theirs = {(row["left"], row["right"]): row for row in pmill.sql(job.warehouse, f"SELECT {columns} FROM whole.pmi")}
        ids = {term: id for id, term in enumerate(job.terms())}
        assert mine and not any(row.pop("approximate") for row in mine)
        assert {(row["left"], row["right"]): row for row in mine} == {
            pair: row for pair, row in theirs.items() if is_exact((ids[pair[0]], ids[pair[1]]))
        }
        assert "notes" in summary
    verified(job)
    # Another reader sees the Boolean column too.
    assert not any(pa.table(DeltaTable(str(job.folder("pmi"))).to_pyarrow_table())["approximate"].to_pylist())


def test_the_way_to_a_sketch_does_not_show(sample, tmp_path):
    files = sorted(sample.glob("*.parquet"))
    flags = ["--vocab-size", 3000, "--context", "window", "--window", 5, *SKETCH]
    at_once = pmill.count(tmp_path / "wh", "a", files, "TEXT", *flags, "--threads", 1)
    # Other threads, other files, other order of them.
    rows = pa.concat_tables(pq.read_table(path) for path in files[::-1])
    other = tmp_path / "other"
    for number in range(3):
        part = rows.slice(number * 7001, 7001)
        other.mkdir(exist_ok=True)
        pq.write_table(part, other / f"{number}.parquet", row_group_size=1000)
    cut = pmill.count(tmp_path / "wh", "b", other, "TEXT", *flags, "--threads", 3)
    assert content(cut) == content(at_once)
    # The first batch freezes ids; after it, one by one or all at once.
    for path in files:
        batches = pmill.count(tmp_path / "wh", "c", [path], "TEXT", *flags)
    pmill.count(tmp_path / "wh", "d", files[0], "TEXT", *flags)
    two = pmill.count(tmp_path / "wh", "d", files[::-1], "TEXT", *flags, "--threads", 3)
    assert content(batches) == content(two)
    verified(batches)


def test_a_job_of_several_units_killed_on_its_way_has_the_same_sketch(large, tmp_path):
    flags = ["--vocab-size", 3000, "--threads", 2, *SKETCH]
    whole = pmill.count(tmp_path / "a", "j", large, "TEXT", *flags, "--memory-limit", "1GiB")
    small = [*flags, "--memory-limit", "68MiB"]
    units = pmill.count(tmp_path / "b", "j", large, "TEXT", *small)
    assert units.summary["units"] >= 3 and whole.summary["units"] == 1
    assert content(units) == content(whole)
    arguments = ["count", "--warehouse", tmp_path / "c", "--name", "j", "--input", large, "--text", "TEXT", *small]
    log = tmp_path / "points"
    first = pmill.run(*arguments, env=pmill.environment(PMILL_KILL_LOG=log, PMILL_KILL_AT=10**6))
    points = log.read_text().splitlines() if log.exists() else []
    assert first.code == 0
    if not points:
        pytest.skip("this build has no kill points: they are in debug builds")
    assert "a sketch is kept" in points and "tail is committed" in points
    wanted = [n for n, point in enumerate(points, 1) if point in ("a sketch is kept", "a unit is counted", "tail is committed")]
    for point in wanted:
        job = pmill.Job(tmp_path / f"killed{point}", "j")
        command = [str(part).replace(str(tmp_path / "c"), str(job.warehouse)) for part in arguments]
        assert pmill.run(*command, env=pmill.environment(PMILL_KILL_AT=point), code=None).code == -6
        pmill.run(*command)
        assert content(job) == content(whole), points[point - 1]
        assert job.orphans() == []


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_is_retracted_leaves_every_cell_as_it_was(context, sample, tmp_path):
    files = sorted(sample.glob("*.parquet"))
    flags = ["--vocab-size", 800, *CONTEXTS[context], *SKETCH]
    job = pmill.count(tmp_path / "wh", "j", files[:2], "TEXT", *flags)
    before = content(job)
    pmill.count(tmp_path / "wh", "j", files, "TEXT", *flags)
    assert content(job) != before
    retract = ["retract", "--warehouse", job.warehouse, "--name", "j"]
    pmill.run(*retract, "--input", files[2], "--where", "\"SAMPLE_ID\" % 3 = 0")
    verified(job)
    for path in files[2:]:
        pmill.run(*retract, "--input", path)
    after = content(job)
    for table in ("vocab", "outside", "pairs"):
        assert after[table] == before[table], table
    assert after["tail"][:-1] == before["tail"][:-1]
    facts = verified(job)["facts"]["tail"]
    assert facts["distinct_is_upper_bound"]
    shown = pmill.run("inspect", "--warehouse", job.warehouse, "--name", "j").out
    assert "at most about" in shown and f"pairs of the first {EXACT} terms" in shown
    # Nothing is left: every cell is zero.
    for path in files[:2]:
        pmill.run(*retract, "--input", path)
    hashes, _ = sketch_rows(job)
    assert all(cells(row["sketch"]) == (0, [0] * BUCKETS) for row in hashes)
    verified(job)


def test_what_was_never_counted_is_refused_by_the_sketch_alone(tmp_path):
    # The terms have the same counts in both files, the exact pairs too; the others do not.
    common = ["a b"] * 9
    old = pmill.write(tmp_path / "in" / "t.parquet", [*common, "c e", "d f"])
    flags = ["--exact-terms", 2, "--sketch-buckets", 1000, "--context", "window", "--window", 1]
    job = pmill.count(tmp_path / "wh", "j", old, "TEXT", *flags)
    other = pmill.write(tmp_path / "other" / "t.parquet", [*common, "c f", "d e"])
    assert other.stat().st_size == old.stat().st_size
    before = content(job)
    retract = ["retract", "--warehouse", job.warehouse, "--name", "j", "--input", old, "--old", other]
    message = pmill.run(*retract, code=2).err
    assert "hash row 0 of the sketch" in message and "nothing was changed" in message
    assert content(job) == before and job.orphans() == []
    third = pmill.write(tmp_path / "third" / "t.parquet", [*common, "c d", "e f"])
    message = pmill.run(*retract[:-1], third, code=2).err
    assert "the sketched pairs of `" in message and "nothing was changed" in message


def test_a_merge_is_the_count_of_all(sample, tmp_path):
    files = sorted(sample.glob("*.parquet"))
    words = pmill.count(tmp_path / "wh", "words", sample, "TEXT", "--vocab-size", 600).terms()
    terms = tmp_path / "terms.txt"
    terms.write_text("\n".join(words))
    flags = ["--vocab", terms, "--context", "window", "--window", 3, *SKETCH]
    for number, path in enumerate(files):
        pmill.count(tmp_path / f"wh{number}", "part", path, "TEXT", *flags)
    merge = ["merge", "--warehouse", tmp_path / "wh", "--name", "j", "--from"]
    # Ids are by falling count in each, so the order of the terms is another.
    message = pmill.run(*merge, tmp_path / "wh0" / "part", tmp_path / "wh1" / "part", code=2).err
    assert "have a sketch, and other vocabularies" in message
    message = pmill.run(*merge, tmp_path / "wh0" / "part", tmp_path / "wh1" / "part", "--remap", code=2).err
    assert "--remap does not go with jobs that have a sketch" in message
    # The same ids: jobs that began with the same batch and gave it back.
    parts = []
    for number, path in enumerate(files):
        job = pmill.count(tmp_path / "same", f"part{number}", files[0], "TEXT", *flags)
        if number > 0:
            pmill.count(tmp_path / "same", f"part{number}", [files[0], path], "TEXT", *flags)
            pmill.run("retract", "--warehouse", job.warehouse, "--name", job.name, "--input", files[0])
        parts.append(job.warehouse / job.name)
    pmill.run(*merge, *parts)
    job = pmill.Job(tmp_path / "wh", "j")
    batches = None
    for path in files:
        batches = pmill.count(tmp_path / "batches", "j", path, "TEXT", *flags)
    assert content(job, distinct=False) == content(batches, distinct=False)
    # The parts' numbers of distinct pairs still hold the batch that they gave back, which is in the sum.
    assert content(job)["tail"] == content(batches)["tail"]
    verified(job)
    # Other sizes of the sketch do not add up, and the difference is told.
    pmill.count(tmp_path / "wh", "wide", files[0], "TEXT", *flags[:-3], BUCKETS + 1, *flags[-2:])
    message = pmill.run(*merge, tmp_path / "wh" / "wide", code=2).err
    assert f"sketch.buckets: {BUCKETS + 1} here, {BUCKETS} there" in message
    pmill.count(tmp_path / "wh", "plain", files[0], "TEXT", *flags[:-6])
    message = pmill.run(*merge, tmp_path / "wh" / "plain", code=2).err
    assert f"sketch.exact_terms: not set here, {EXACT} there" in message


@pytest.mark.parametrize("name", ["count", "recount", "retract rows", "merge", "compact"])
def test_a_change_killed_at_any_step_ends_as_if_it_had_not_been(name, tmp_path):
    more = ["--exact-terms", "5", "--sketch-buckets", "50", "--sketch-hashes", "2"]
    names = [name]
    (change,) = kills.changes(tmp_path, names, more)
    if not change.points:
        pytest.skip("this build has no kill points: they are in debug builds")
    assert name == "compact" or "tail is committed" in change.points
    for number in range(1, len(change.points) + 1):
        change.kill_at(number)


def test_batches_agree_on_the_sketch(sample, tmp_path):
    files = sorted(sample.glob("*.parquet"))
    pmill.count(tmp_path / "wh", "j", files[0], "TEXT", "--vocab-size", 300, *SKETCH)
    command = ["count", "--warehouse", tmp_path / "wh", "--name", "j", "--input", *files, "--text", "TEXT", "--vocab-size", 300]
    message = pmill.run(*command, code=2).err
    assert f"sketch.exact_terms: not set here, {EXACT} there" in message
    message = pmill.run(*command, "--exact-terms", 61, "--sketch-buckets", 9, "--sketch-hashes", HASHES, code=2).err
    assert f"sketch.exact_terms: 61 here, {EXACT} there" in message
    assert f"sketch.buckets: 9 here, {BUCKETS} there" in message
    assert "sketch.hashes" not in message


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--exact-terms", "10", "--sketch-buckets", "2"], "2 buckets of the sketch are outside 3 to 67108864"),
        (["--exact-terms", "10", "--sketch-buckets", "67108865"], "outside 3 to 67108864"),
        (["--exact-terms", "10", "--sketch-hashes", "0"], "0 hashes of the sketch are outside 1 to 32"),
        (["--exact-terms", "10", "--sketch-hashes", "33"], "33 hashes of the sketch are outside 1 to 32"),
        (["--exact-terms=-1"], "invalid value '-1'"),
        (["--exact-terms", "many"], "invalid value 'many'"),
        (["--sketch-buckets", "100"], "--exact-terms <H>"),
        (["--exact-terms", "10", "--slice", "TEXT"], "a sketch does not go with slices"),
        (["--exact-terms", "10", "--sketch-buckets", "67108864", "--memory-limit", "1GiB"], "--sketch-buckets"),
        (["--exact-terms", "10", "--shard-count", "2", "--shard-index", "0"], "goes with one process as yet"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(flags, expected, tmp_path):
    path = pmill.write(tmp_path / "in" / "t.parquet", ["a b", "b c"])
    command = ["count", "--warehouse", tmp_path / "wh", "--name", "j", "--input", path, "--text", "TEXT"]
    result = pmill.run(*command, *flags, code=2)
    assert expected in result.err, result
    assert not (tmp_path / "wh" / "j").exists()


def test_the_borders_exact_for_all_and_for_none(tmp_path):
    path = pmill.write(tmp_path / "in" / "t.parquet", ["a b c", "b c", "", "a"])
    plain = pmill.count(tmp_path / "wh", "plain", path, "TEXT")
    every = pmill.count(tmp_path / "wh", "every", path, "TEXT", "--exact-terms", 1000, "--sketch-buckets", 10)
    assert every.content("pairs") == plain.content("pairs")
    assert every.facts()["tail"]["units"] == "0" and every.facts()["tail"]["distinct"] == 0
    none = pmill.count(tmp_path / "wh", "none", path, "TEXT", "--exact-terms", 0, "--sketch-buckets", 1000)
    assert none.table("pairs").num_rows == 0 and none.facts()["tail"]["units"] == "4"
    for job in (every, none):
        verified(job)
        pmill.score(job)
        verified(job)
    rows = pmill.sql(tmp_path / "wh", "SELECT n_xy, n_x, n_y, n, approximate FROM estimate('none', ['c', 'a'], 'b')")
    assert rows == [
        {"n_xy": 2.0, "n_x": 2.0, "n_y": 2.0, "n": 4.0, "approximate": True},
        {"n_xy": 1.0, "n_x": 2.0, "n_y": 2.0, "n": 4.0, "approximate": True},
    ]
    # Terms, and no pair at all.
    lonely = pmill.write(tmp_path / "in" / "lonely.parquet", ["a", "b"])
    verified(pmill.count(tmp_path / "wh", "lonely", lonely, "TEXT", "--exact-terms", 0, "--sketch-buckets", 3))
    empty = pmill.write(tmp_path / "in" / "empty.parquet", [])
    verified(pmill.count(tmp_path / "wh", "empty", empty, "TEXT", "--exact-terms", 1, "--sketch-buckets", 3))


@pytest.fixture(scope="module")
def scored(sample, tmp_path_factory):
    job = pmill.count(tmp_path_factory.mktemp("scored") / "wh", "j", sample, "TEXT", "--vocab-size", 400, *SKETCH)
    pmill.score(job)
    return job


def test_estimate_says_what_is_wrong_with_its_arguments(scored):
    first, last = scored.terms()[0], scored.terms()[-1]

    def refused(arguments):
        return pmill.run("sql", "--warehouse", scored.warehouse, f"SELECT * FROM estimate({arguments})", code=2).err

    assert "has no `nowhere`" in refused(f"'j', '{first}', 'nowhere'")
    assert "two lists of the same length" in refused(f"'j', ['{first}', '{last}'], ['{last}', '{last}', '{first}']")
    assert "no job `k`" in refused(f"'k', '{first}', '{last}'")
    assert "`right` is missing" in refused(f"'j', '{first}'")
    assert "with itself" in refused(f"'j', '{last}', '{last}'")
    # One word goes with all of a list, and by name.
    rows = pmill.sql(scored.warehouse, f"SELECT * FROM estimate('j', right => '{last}', \"left\" => {literal(scored.terms()[:3])})")
    assert [row["left"] for row in rows] == scored.terms()[:3] and all(row["approximate"] for row in rows)


def test_estimate_answers_for_jobs_without_a_sketch(scored, sample):
    plain = pmill.count(scored.warehouse, "plain", sample, "TEXT", "--vocab-size", 50)
    pairs = plain.pairs()
    (left, right), count = next(iter(pairs.items()))
    row = pmill.sql(plain.warehouse, f"SELECT * FROM estimate('plain', {literal([left])}, {literal([right])})")[0]
    assert row["n_xy"] == row["n_xy_low"] == count and not row["approximate"]


def test_nothing_takes_the_exact_pairs_for_all(scored, sample, tmp_path):
    terms = scored.terms()
    warehouse = ["--warehouse", scored.warehouse]
    absent = pmill.sql(scored.warehouse, "SELECT * FROM absent_pairs('j')")
    words = set(terms[:EXACT])
    found = {(row["left"], row["right"]) for row in absent}
    assert found == {
        (terms[x], terms[y]) for x in range(EXACT) for y in range(x + 1, EXACT) if (x, y) not in head(scored)
    }
    best = pmill.sql(scored.warehouse, f"SELECT neighbour FROM neighbours('j', '{terms[0]}', 20)")
    assert best and {row["neighbour"] for row in best} <= words
    refused = pmill.run("sql", *warehouse, f"SELECT * FROM neighbours('j', '{terms[EXACT]}')", code=2).err
    assert "are in the sketch of job `j`" in refused
    refused = pmill.run("sql", *warehouse, "SELECT * FROM drift('j', 'j')", code=2).err
    assert "drift needs every pair" in refused
    refused = pmill.run("embed", *warehouse, "--name", "j", "--dimensions", 5, "--output", tmp_path / "v", code=2).err
    assert "embed needs every pair" in refused and f"--vocab-size {EXACT}" in refused
    annotate = ["annotate", *warehouse, "--name", "j", "--input", sample, "--text", "TEXT", "--output", tmp_path / "a"]
    assert "annotate needs every pair" in pmill.run(*annotate, code=2).err
    export = ["export", *warehouse, "--name", "j", "--format", "csv", "--output", tmp_path / "e", "--json"]
    assert any(f"pairs of the first {EXACT} terms" in note for note in pmill.run(*export).json["notes"])


def test_other_readers_read_the_sketch(scored):
    mine = pmill.sql(scored.warehouse, "SELECT kind, hash, seed FROM j.tail ORDER BY hash")
    found = pa.table(DeltaTable(str(scored.folder("tail"))).to_pyarrow_table()).to_pylist()
    assert len(found) == HASHES + 1 == len(mine)
    files = [str(path) for path in scored.files("tail")]
    read = duckdb.sql(f"SELECT kind, hash, seed, sketch FROM read_parquet({files})").fetchall()
    assert sorted(map(repr, read)) == sorted(repr(tuple(row.values())) for row in found)
    _, distinct = sketch_rows(scored)
    sketches = pytest.importorskip("datasketches", reason="the package datasketches is not here")
    estimate = sketches.hll_sketch.deserialize(distinct["sketch"]).get_estimate()
    assert round(estimate) == scored.facts()["tail"]["distinct"]


def test_a_pipeline_file_sets_the_sketch(sample, tmp_path):
    pipeline = tmp_path / "p.toml"
    text = f"""
name = "j"
warehouse = "{tmp_path / 'wh'}"
[input]
paths = ["{sample}"]
text = "TEXT"
[vocabulary]
size = 300
[sketch]
exact_terms = {EXACT}
buckets = {BUCKETS}
hashes = {HASHES}
[score]
"""
    pipeline.write_text(text)
    pmill.run("run", pipeline)
    flags = pmill.count(tmp_path / "wh", "flags", sample, "TEXT", "--vocab-size", 300, *SKETCH)
    assert content(pmill.Job(tmp_path / "wh", "j")) == content(flags)
    pipeline.write_text(text.replace("buckets", "bucket"))
    assert "did you mean `buckets`?" in pmill.run("run", pipeline, code=2).err


def test_older_versions_and_compaction_keep_their_sketch(sample, tmp_path):
    files = sorted(sample.glob("*.parquet"))
    flags = ["--vocab-size", 300, *SKETCH]
    job = pmill.count(tmp_path / "wh", "j", files[0], "TEXT", *flags)
    terms, first = job.terms(), job.facts()["tail"]
    pmill.count(tmp_path / "wh", "j", files[1], "TEXT", *flags)
    name = ["--warehouse", job.warehouse, "--name", "j"]
    pmill.run("compact", *name)
    assert verified(job)["facts"]["tail"]["units"] == job.facts()["tail"]["units"] != first["units"]
    pair = f"'{terms[0]}', '{terms[200]}'"
    now, then = (pmill.sql(job.warehouse, f"SELECT n_xy, n FROM estimate('{j}', {pair})")[0] for j in ("j", "j@0"))
    assert then["n"] == 5000 and now["n"] == 10000 and then["n_xy"] <= now["n_xy"]
    old = pmill.run("inspect", *name, "--version", 0, "--verify", "--json").json
    assert old["verified"]["sound"] and old["facts"]["tail"] == first
    before = len(list(job.folder("tail").glob("*.parquet")))
    pmill.run("vacuum", *name, "--keep-versions", 1)
    after = list(job.folder("tail").glob("*.parquet"))
    assert len(after) == HASHES + 1 < before
    verified(job)


def test_verify_finds_a_damaged_sketch(sample, tmp_path):
    job = pmill.count(tmp_path / "wh", "j", sorted(sample.glob("*.parquet"))[0], "TEXT", "--vocab-size", 200, *SKETCH)
    path = job.files("tail")[1]
    rows = pq.read_table(path)
    image = bytearray(rows["sketch"][0].as_py())
    # One unit more in a cell.
    place = 24 + 8 * 77
    number = struct.unpack_from("<Q", image, place)[0]
    struct.pack_into("<Q", image, place, number + 1)
    rows = rows.set_column(3, rows.schema.field("sketch"), pa.array([bytes(image)], pa.binary()))
    size = path.stat().st_size
    pq.write_table(rows, path)
    log = sorted((job.folder("tail") / "_delta_log").glob("*.json"))[-1]
    log.write_text(log.read_text().replace(f'"size":{size}', f'"size":{path.stat().st_size}'))
    report = pmill.run("inspect", "--warehouse", job.warehouse, "--name", "j", "--verify", "--json", code=2).json
    found = [(each["table"], each["rule"]) for each in report["verified"]["violations"]]
    assert ("tail", "the cells of every hash row add up to the sketched counts") in found, found


def test_a_cluster_scores_a_sketched_job_and_refuses_to_change_it(sample, tmp_path):
    files = sorted(sample.glob("*.parquet"))
    flags = ["--vocab-size", 300, "--context", "window", "--window", 3, *SKETCH]
    job = pmill.count(tmp_path / "wh", "j", files[:2], "TEXT", *flags)
    alone = pmill.Job(shutil.copytree(job.warehouse, tmp_path / "alone"), "j")
    pmill.score(alone)
    name = ["--warehouse", job.warehouse, "--name", "j"]
    with cluster.Cluster(tmp_path / "roles", executors=1) as running:
        there = ["--cluster", running.url]
        pmill.run("score", *name, *there)
        assert job.content("pmi") == alone.content("pmi")
        before = content(job)
        count = ["count", *name, "--input", *files, "--text", "TEXT", *flags]
        retract = ["retract", *name, "--input", files[0]]
        merge = ["merge", "--warehouse", tmp_path / "sum", "--name", "k", "--from", job.warehouse / "j"]
        for command in (count, retract, merge):
            message = pmill.run(*command, *there, code=2).err
            assert "one process" in message, message
        assert content(job) == before
        assert not (tmp_path / "sum" / "k").exists()
