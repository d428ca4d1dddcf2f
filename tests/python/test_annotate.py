"""`pmill annotate`: equal to a slow Python computation on real captions; kills, changed inputs, layout."""

import json
import math
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pmill

QUANTILES = (0.1, 0.5)


@pytest.fixture(scope="module")
def captions(data, tmp_path_factory):
    """2,000 real captions in three files, as a folder, with their rows of words."""
    folder = tmp_path_factory.mktemp("captions")
    table = pq.read_table(data / "captions" / "laion-10000.parquet").slice(0, 2000)
    column = next(name for name in table.column_names if name.upper() in ("TEXT", "CAPTION"))
    texts = table[column].to_pylist()
    texts[7] = None
    table = pa.table({"id": pa.array(range(2000)), "TEXT": pa.array(texts), "score": pa.array(np.arange(2000) / 7)})
    for number, (start, length) in enumerate(((0, 900), (900, 1000), (1900, 100))):
        pq.write_table(table.slice(start, length), folder / f"part-{number}.parquet", row_group_size=256)
    return folder


@pytest.fixture(scope="module")
def job(captions, tmp_path_factory):
    """Counted on the first file only, so that the others hold pairs that were never seen."""
    flags = ["--tokenizer", "whitespace", "--vocab-size", 3000]
    warehouse = tmp_path_factory.mktemp("wh")
    job = pmill.count(warehouse, "j", captions / "part-0.parquet", "TEXT", *flags)
    pmill.score(job, "--min-pair-count", 2)
    pmill.count(warehouse, "target", captions / "part-2.parquet", "TEXT", *flags)
    return job


def annotate(job, inputs, output, *flags, **options):
    arguments = ["annotate", "--warehouse", job.warehouse, "--name", job.name, "--input", *inputs]
    return pmill.run(*arguments, "--output", output, *flags, "--json", **options)


def read(output):
    return pa.concat_tables(pq.read_table(path) for path in sorted((output / "data").iterdir()))


def close(found, expected, tolerance):
    if expected is None:
        assert found is None
    else:
        assert math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance), (found, expected)


def scores(job):
    return {(r["left"], r["right"]): (r["pmi"], r["n_xy"]) for r in job.table("pmi").to_pylist()}


def brute_force(words, pairs, known, counts, target, documents, balance):
    """The numbers of one document, from dictionaries of words."""
    total, size, theirs = sum(counts.values()), len(counts), sum(target.values())
    tokens = [word for word in words if word in counts]
    seen = sorted((known[pair][1], order, pair) for order, pair in pairs if pair in known)
    values = np.array([known[pair][0] for *_, pair in seen])
    priors = np.array([math.log(counts[word] / total) for word in tokens])
    weight = sum(
        math.log((target.get(w, 0) + 1) / (theirs + size)) - math.log((counts[w] + 1) / (total + size)) for w in tokens
    )
    kept = math.prod(1 - min(1.0, balance / documents[word]) for word in set(tokens))
    pair_kept = math.prod(1 - min(1.0, balance / count) for count, *_ in seen)
    return {
        "tokens": len(tokens),
        "pairs": len(pairs),
        "pairs_seen": len(seen),
        "unseen_share": (len(pairs) - len(seen)) / len(pairs) if pairs else None,
        "pmi_mean": values.mean() if len(seen) else None,
        "pmi_min": values.min() if len(seen) else None,
        "pmi_max": values.max() if len(seen) else None,
        "pmi_q10": np.quantile(values, 0.1) if len(seen) else None,
        "pmi_q50": np.quantile(values, 0.5) if len(seen) else None,
        "rarest_left": seen[0][2][0] if seen else None,
        "rarest_right": seen[0][2][1] if seen else None,
        "prior_mean": priors.mean() if tokens else None,
        "prior_std": priors.std() if tokens else None,
        "log_weight": weight,
        "concept_probability": 1 - kept,
        "pair_probability": 1 - pair_kept,
    }


def check(job, rows, found, pairs_of):
    terms = job.terms()
    ids = {term: index for index, term in enumerate(terms)}
    vocab = job.table("vocab")
    counts = dict(zip(terms, vocab["count"].to_pylist()))
    documents = dict(zip(terms, vocab["documents"].to_pylist()))
    other = pmill.Job(job.warehouse, "target").table("vocab").to_pylist()
    # The target's words outside this vocabulary have no part in the comparison.
    target = {row["token"]: row["count"] for row in other if row["token"] in counts}
    known = scores(job)
    different = Counter()
    for words, row in zip(rows, found, strict=True):
        pairs = [((ids[a], ids[b]), (a, b)) for a, b in pairs_of(words, ids)]
        expected = brute_force(words, pairs, known, counts, target, documents, 5.0)
        for name, value in expected.items():
            got = row[f"pmill_{name}"]
            if isinstance(value, (str, int)) or value is None:
                assert got == value, (name, words)
            else:
                # Single precision of each PMI; sums of up to some hundred logarithms.
                close(got, float(value), 1e-5 if name.startswith("pmi") else 1e-9)
            different[name] += value not in (None, 0, 1)
    assert min(different.values()) > 20, different  # not all of them plain


def test_captions_equal_the_slow_computation(job, captions, tmp_path):
    """The text is split at blanks and lower-cased by the tokenizer; each pair counts once a row."""
    summary = annotate(
        job, [captions], tmp_path / "out", "--quantiles", "0.1,0.5", "--target", "target", "--balance", 5
    ).json  # fmt: skip
    table = read(tmp_path / "out")
    assert summary["rows"] == 2000 == table.num_rows
    assert table["id"].to_pylist() == list(range(2000)), "rows are not in their order"
    assert table.column_names[:3] == ["id", "TEXT", "score"]
    assert [path.name for path in sorted((tmp_path / "out" / "data").iterdir())] == [
        f"train-{number:05}-of-00003.parquet" for number in range(3)
    ]

    def pairs_of(words, ids):
        inside = sorted({word for word in words if word in ids}, key=ids.get)
        return [(a, b) for index, a in enumerate(inside) for b in inside[index + 1 :]]

    rows = [(text or "").split() for text in table["TEXT"].to_pylist()]
    check(job, rows, table.to_pylist(), pairs_of)


@pytest.mark.parametrize("side", ["symmetric", "left", "right"])
def test_windows_equal_the_slow_computation(captions, tmp_path, side):
    flags = ["--tokenizer", "whitespace", "--vocab-size", 800, "--context", "window", "--window", 3, "--side", side]
    job = pmill.count(tmp_path / "wh", "j", captions / "part-0.parquet", "TEXT", *flags)
    pmill.count(tmp_path / "wh", "target", captions / "part-1.parquet", "TEXT", *flags)
    pmill.score(job)
    flags = ["--quantiles", "0.1,0.5", "--target", "target", "--balance", 5, "--keep", "id"]
    annotate(job, [captions / "part-1.parquet"], tmp_path / "out", *flags)
    table = read(tmp_path / "out")
    assert table.column_names[0] == "id" and "TEXT" not in table.column_names

    def pairs_of(words, ids):
        inside = [word for word in words if word in ids]
        found = set()
        for place, later in enumerate(inside):
            for earlier in inside[max(0, place - 3) : place]:
                if side == "left":
                    found.add((later, earlier))
                elif side == "right":
                    found.add((earlier, later))
                else:
                    found.add(tuple(sorted((earlier, later), key=ids.get)))
        return found

    texts = pq.read_table(captions / "part-1.parquet")["TEXT"].to_pylist()
    check(job, [(text or "").split() for text in texts], table.to_pylist(), pairs_of)


def test_a_measure_with_a_direction_is_that_of_the_pmi_table(captions, tmp_path):
    """P(right | left): the left term of a stored pair is the more frequent one, here as there."""
    flags = ["--tokenizer", "whitespace", "--vocab-size", 800]
    job = pmill.count(tmp_path / "wh", "j", captions / "part-0.parquet", "TEXT", *flags)
    pmill.score(job, "--measure", "confidence")
    annotate(job, [captions / "part-0.parquet"], tmp_path / "out", "--measure", "confidence", "--quantiles", "0.5")
    known = {(r["left"], r["right"]): r["confidence"] for r in job.table("pmi").to_pylist()}
    ids = {term: index for index, term in enumerate(job.terms())}
    compared = 0
    for row in read(tmp_path / "out").to_pylist():
        inside = sorted({word for word in (row["TEXT"] or "").split() if word in ids}, key=ids.get)
        values = [known[a, b] for index, a in enumerate(inside) for b in inside[index + 1 :]]
        compared += len(values)
        for name, get in (("mean", np.mean), ("min", min), ("max", max), ("q50", np.median)):
            close(row[f"pmill_confidence_{name}"], float(get(values)) if values else None, 1e-6)
    assert compared > 1000


def bytes_of(output):
    return [path.read_bytes() for path in sorted((output / "data").iterdir())]


def test_threads_do_not_change_a_byte_and_a_second_run_changes_nothing(job, captions, tmp_path):
    annotate(job, [captions], tmp_path / "a", "--threads", 1)
    annotate(job, [captions], tmp_path / "b", "--threads", 5)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    again = annotate(job, [captions], tmp_path / "a").json
    assert again["status"] == "unchanged" and again["rows"] == 2000
    result = annotate(job, [captions], tmp_path / "a", "--quantiles", "0.9", code=2)
    assert "was made with other settings" in result.err


@pytest.fixture(scope="module")
def many(captions, tmp_path_factory):
    """Thirty files, so that a kill finds some done and some not."""
    folder = tmp_path_factory.mktemp("many")
    table = pa.concat_tables(pq.read_table(captions / f"part-{n}.parquet") for n in range(3))
    table = pa.concat_tables([table] * 8)
    for number in range(30):
        pq.write_table(table, folder / f"{number:02}.parquet")
    return folder


def test_killed_and_started_again_gives_the_same_shards(job, many, tmp_path):
    annotate(job, [many], tmp_path / "whole")
    arguments = ["annotate", "--warehouse", job.warehouse, "--name", job.name, "--input", many]
    process = pmill.start(*arguments, "--output", tmp_path / "out", "--threads", 1)
    done = tmp_path / ".out.pmill-annotate" / "done"
    deadline = time.monotonic() + 60
    while process.poll() is None and len(list(done.glob("done-*.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    finished = len(list(done.glob("done-*.json")))
    assert 4 <= finished < 30
    summary = annotate(job, [many], tmp_path / "out").json
    assert summary["resumed"] == finished
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_changed_or_missing_input_is_named(job, captions, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.parquet").write_bytes((captions / f"part-{number}.parquet").read_bytes())
    annotate(job, [folder], tmp_path / "out")
    (folder / "1.parquet").write_bytes((captions / "part-2.parquet").read_bytes())
    result = annotate(job, [folder], tmp_path / "out", code=2)
    assert f"`{folder}/1.parquet` changed since" in result.err and "--overwrite begins again" in result.err
    (folder / "1.parquet").unlink()
    result = annotate(job, [folder], tmp_path / "out", code=2)
    assert f"`{folder}/1.parquet` is missing: it was an input when" in result.err
    assert annotate(job, [folder], tmp_path / "out", "--overwrite").json["rows"] == 1000
    assert len(list((tmp_path / "out" / "data").iterdir())) == 2


def test_mistakes_are_named(job, captions, data, tmp_path):
    inputs = [captions / "part-0.parquet"]
    result = annotate(job, inputs, tmp_path / "out", "--measure", "lmi", code=2)
    assert "was not scored by `lmi`; it has pmi, npmi, ppmi" in result.err
    target = pmill.Job(job.warehouse, "target")
    result = annotate(target, inputs, tmp_path / "out", code=2)
    assert "has no scores yet; run `pmill score --name target` first" in result.err
    result = annotate(job, inputs, tmp_path / "out", "--keep", "ids", code=2)
    assert "no column `ids` (did you mean `id`?)" in result.err
    result = annotate(job, inputs, tmp_path / "out", "--prefix", "", "--text", "TXT", code=2)
    assert "no column `TXT` (did you mean `TEXT`?)" in result.err
    result = annotate(job, inputs, tmp_path / "out", "--quantiles", "2", code=2)
    assert "a quantile is 0 to 1, not 2" in result.err
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(inputs[0].read_bytes()[:-100])
    result = annotate(job, [inputs[0], bad], tmp_path / "out", code=2)
    assert str(bad) in result.err
    assert not (tmp_path / "out").exists()
    manifest = annotate(job, inputs, tmp_path / "ok").json
    assert json.loads((tmp_path / "ok" / "pmill.json").read_text())["shards"] == manifest["shards"]
    again = annotate(job, [tmp_path / "ok" / "data"], tmp_path / "twice", code=2)
    assert "has a column `pmill_tokens` already; give another --prefix" in again.err
