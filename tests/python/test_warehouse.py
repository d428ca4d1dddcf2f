"""Batches add up, retractions take out, merges sum: a table depends on what is in it, not on the way there."""

import random
import shutil
from collections import Counter

import kills
import pmill
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TABLES = ("vocab", "outside", "pairs")


def bytes_of(job, tables=TABLES):
    seen = kills.visible(job)
    return {table: seen[table] for table in tables}


def corpus(folder, numbers, rows=60):
    return [pmill.write(folder / f"{number}.parquet", kills.texts(number, rows)) for number in numbers]


def retract(job, *inputs, **options):
    flags = options.pop("flags", [])
    return pmill.run(
        "retract", "--warehouse", job.warehouse, "--name", job.name, "--input", *inputs, *flags, "--json", **options
    ).json


def oracle(job, rows):
    """The tables counted slowly from rows of words, with the job's own vocabulary; contexts are documents."""
    terms = job.terms()
    known = set(terms)
    tokens, documents = Counter(), Counter()
    for row in rows:
        tokens.update(row)
        documents.update(set(row))
    vocab = [(term, tokens[term], documents[term]) for term in terms]
    outside = sorted((t, tokens[t], documents[t]) for t in tokens if t not in known)
    return vocab, outside, pmill.document_counts([[word for word in row if word in known] for row in rows])


def tables(job):
    seen = kills.visible(job)
    facts = seen["facts"]
    vocab = [tuple(row.values())[1:] for row in job.table("vocab").to_pylist()]
    outside = [tuple(row.values()) for row in job.table("outside").to_pylist()]
    assert facts["types"] == sum(count > 0 for _, count, _ in vocab) + len(outside)
    assert facts["tokens"] == sum(count for _, count, _ in vocab) + sum(count for _, count, _ in outside)
    pairs = job.pairs()
    assert facts["pairs"] == len(pairs) and facts["units"] == str(sum(pairs.values()))
    return vocab, outside, pairs


CONTEXTS = {
    "document": ["--vocab-size", "30"],
    "few features": ["--vocab-size", "30", "--max-features-per-document", "3"],
    "window": ["--vocab-size", "30", "--context", "window", "--window", "4", "--weight", "harmonic"],
    "one side": ["--min-count", "9", "--context", "window", "--window", "2", "--side", "right", "--out-of-vocabulary", "gap"],
    "subsampled": ["--vocab-size", "30", "--context", "window", "--window", "5", "--subsample", "0.01"],
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_adding_and_taking_out_leaves_no_trace(context, tmp_path):
    a, b, c = corpus(tmp_path, [1, 2, 3], rows=150)
    flags = [*CONTEXTS[context], "--threads", "2"]
    job = pmill.count(tmp_path / "wh", "j", a, "TEXT", *flags)
    first = bytes_of(job)
    ab = pmill.count(tmp_path / "wh", "j", [a, b], "TEXT", *flags)
    assert (ab.summary["files"], ab.summary["rows"], ab.summary["total_rows"]) == (1, 150, 300)
    with_b = bytes_of(job)
    assert with_b != first
    pmill.count(tmp_path / "wh", "j", [a, b, c], "TEXT", *flags)
    assert retract(job, c)["status"] == "retracted"
    assert bytes_of(job) == with_b
    gone = retract(job, b)
    assert (gone["rows"], gone["files"], gone["total_rows"]) == (150, 1, 150)
    assert bytes_of(job) == first
    # Two batches at once or one after the other, in any order: the same bytes.
    other = pmill.count(tmp_path / "other", "j", a, "TEXT", *flags)
    pmill.count(tmp_path / "other", "j", [c, b, a], "TEXT", *flags)
    retract(other, c)
    assert bytes_of(other) == with_b
    # Taking out all leaves an empty table with its vocabulary.
    retract(job, a)
    assert job.table("pairs").num_rows == 0 and sum(job.table("vocab")["count"].to_pylist()) == 0
    assert job.table("vocab")["token"].to_pylist() == other.terms()
    assert job.table("outside").num_rows == 0


def test_a_job_with_a_given_vocabulary_grows_and_shrinks_too(tmp_path):
    a, b = corpus(tmp_path, [1, 2])
    (tmp_path / "terms.txt").write_text("w1\nw3\nw5\nnever\n")
    flags = ["--vocab", tmp_path / "terms.txt"]
    job = pmill.count(tmp_path / "wh", "j", a, "TEXT", *flags)
    first = bytes_of_given(job)
    pmill.count(tmp_path / "wh", "j", [a, b], "TEXT", *flags)
    rows = [text.split() for number in (1, 2) for text in kills.texts(number, 60)]
    vocab, _, pairs = oracle(job, rows)
    assert [tuple(row.values())[1:] for row in job.table("vocab").to_pylist()] == vocab
    assert job.pairs() == pairs
    retract(job, b)
    assert bytes_of_given(job) == first


def bytes_of_given(job):
    assert not job.exists("outside")
    return [job.content("vocab")[-1], job.content("pairs")]


def test_terms_outside_the_vocabulary_are_kept_and_a_recount_is_foretold(tmp_path):
    a = pmill.write(tmp_path / "a.parquet", ["fox hen", "fox hen cow", "fox"])
    b = pmill.write(tmp_path / "b.parquet", ["yak emu", "yak emu fox", "yak", "emu"])
    job = pmill.count(tmp_path / "wh", "j", a, "TEXT", "--vocab-size", "2")
    assert job.table("outside").to_pylist() == [{"token": "cow", "count": 1, "documents": 1}]
    summary = pmill.count(tmp_path / "wh", "j", [a, b], "TEXT", "--vocab-size", "2").summary
    assert (summary["outside_tokens"], summary["terms"], summary["types"]) == (6, 2, 5)
    assert pmill.sql(tmp_path / "wh", "SELECT token, count FROM j.outside ORDER BY count DESC, token") == [
        {"token": "emu", "count": 3},
        {"token": "yak", "count": 3},
        {"token": "cow", "count": 1},
    ]
    drift = pmill.run("vocab", "--warehouse", tmp_path / "wh", "--name", "j", "--refresh", "--json").json
    # fox 4; emu and yak 3, of which emu is first by its bytes; hen 2 goes.
    assert [term["token"] for term in drift["entering_first"]] == ["emu"]
    assert [term["token"] for term in drift["leaving_first"]] == ["hen"]
    assert (drift["entering"], drift["leaving"], drift["moved"]) == (1, 1, 0)
    again = pmill.count(tmp_path / "again", "j", [a, b], "TEXT", "--vocab-size", "2")
    assert set(again.terms()) == {"fox", "emu"} and len(again.terms()) == drift["recount_terms"]
    text = pmill.run("vocab", "--warehouse", tmp_path / "wh", "--name", "j", "--refresh").out
    assert "in  emu (3 times, in 3 rows)" in text and "out hen (2 times, in 2 rows)" in text
    assert "outside" in pmill.run("inspect", "--warehouse", tmp_path / "wh", "--name", "j").out


def test_rows_are_taken_out_by_a_condition_or_by_ids_and_only_once(tmp_path):
    texts = kills.texts(1, 200)
    path = tmp_path / "t.parquet"
    table = pa.table({"TEXT": texts, "SAMPLE_ID": list(range(200)), "url": [f"https://x/{n}" for n in range(200)]})
    pq.write_table(table, path, row_group_size=37)
    job = pmill.count(tmp_path / "wh", "j", path, "TEXT", "--vocab-size", "20")
    left = {number: text.split() for number, text in enumerate(texts)}

    def gone(numbers):
        for number in numbers:
            del left[number]
        assert tables(job) == oracle(job, left.values())

    done = retract(job, path, flags=["--where", "SAMPLE_ID IN (3, 5, 150) OR SAMPLE_ID BETWEEN 70 AND 80"])
    assert (done["status"], done["rows"]) == ("retracted", 14)
    gone([3, 5, 150, *range(70, 81)])
    rows = job.table("sources").to_pylist()
    assert [(row["status"], row["rows"], row["message"]) for row in rows] == [
        ("counted", 186, None),
        ("retracted", 14, "rows 3, 5, 70-80, 150"),
    ]
    # The same again, and some that are new.
    again = retract(job, path, flags=["--where", "SAMPLE_ID IN (3, 5)"])
    assert again["status"] == "unchanged" and "taken out before" in again["notes"][0]
    (tmp_path / "ids.txt").write_text("https://x/5\n\n https://x/6 \nhttps://x/199\nhttps://y/1\n")
    some = retract(job, path, flags=["--ids", tmp_path / "ids.txt", "--id-column", "url"])
    assert some["rows"] == 2 and "1 of the 3 rows" in some["notes"][0]
    gone([6, 199])
    plan = ["retract", "--warehouse", job.warehouse, "--name", "j", "--input", path, "--where", "\"TEXT\" LIKE '%w1%'", "--dry-run"]
    before = kills.visible(job)
    planned = pmill.run(*plan, "--json").json["files"]
    assert planned == [[str(path), sum("w1" in text for n, text in enumerate(texts) if n in left)]]
    assert kills.visible(job) == before
    # The file is still counted, so counting it again changes nothing; the rest of it goes as a whole.
    assert pmill.count(tmp_path / "wh", "j", path, "TEXT", "--vocab-size", "20").summary["status"] == "unchanged"
    whole = retract(job, path)
    assert whole["rows"] == 184 and tables(job) == oracle(job, [])
    assert retract(job, path)["status"] == "unchanged"
    # Taken out whole, it may be counted again, all of it.
    again = pmill.count(tmp_path / "wh", "j", path, "TEXT", "--vocab-size", "20").summary
    assert "had been retracted and is counted again" in again["notes"][0]
    assert tables(job) == oracle(job, [text.split() for text in texts])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--where", "SAMPLE IN (1)"], "SAMPLE"),
        (["--where", "n + 1"], "is of type Int64, expected a condition"),
        (["--where", "n >"], "is not a condition over the file's columns"),
        (["--ids", "IDS", "--id-column", "nn"], "did you mean `n`?"),
        (["--ids", "EMPTY", "--id-column", "n"], "holds no id"),
    ],
)
def test_a_choice_of_rows_that_is_none_is_refused(flags, message, tmp_path):
    (tmp_path / "ids").write_text("1\n")
    (tmp_path / "empty").write_text("\n")
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"TEXT": ["red fox", "red hen"], "n": [1, 2]}), path)
    job = pmill.count(tmp_path / "wh", "j", path, "TEXT")
    flags = [{"IDS": tmp_path / "ids", "EMPTY": tmp_path / "empty"}.get(flag, flag) for flag in flags]
    before = kills.visible(job)
    result = pmill.run("retract", "--warehouse", job.warehouse, "--name", "j", "--input", path, *flags, code=2)
    assert message in result.err
    assert kills.visible(job) == before


def test_a_changed_file_is_counted_again_only_with_the_bytes_that_were_counted(tmp_path):
    a, b = corpus(tmp_path, [1, 2])
    flags = ["--vocab-size", "20"]
    job = pmill.count(tmp_path / "wh", "j", [a, b], "TEXT", *flags)
    copy = shutil.copy(b, tmp_path / "copy.parquet")
    pmill.write(b, kills.texts(7, 40))
    command = ["count", "--warehouse", tmp_path / "wh", "--name", "j", "--text", "TEXT", *flags]
    before = kills.visible(job)
    # Not asked for; no old bytes; bytes that are not those.
    changed = pmill.run(*command, "--input", a, b, code=2).err
    assert "2.parquet` was counted before and has changed since" in changed and "--recount" in changed
    assert "give --old COPY" in pmill.run(*command, "--recount", b, code=2).err
    assert "is not the content that was counted" in pmill.run(*command, "--recount", b, "--old", a, code=2).err
    assert "has changed since it was counted" in pmill.run(
        "retract", "--warehouse", tmp_path / "wh", "--name", "j", "--input", b, code=2
    ).err
    assert "is not in job `j`" in pmill.run(*command, "--recount", copy, "--old", copy, code=2).err
    assert kills.visible(job) == before
    done = pmill.run(*command, "--input", a, "--recount", b, "--old", copy, "--json").json
    assert (done["rows"], done["retracted_rows"], done["total_rows"]) == (40, 60, 100)
    rows = [text.split() for number, n in ((1, 60), (7, 40)) for text in kills.texts(number, n)]
    assert tables(job) == oracle(job, rows)
    assert job.version() == 1
    assert pmill.count(tmp_path / "wh", "j", [a, b], "TEXT", *flags).summary["status"] == "unchanged"
    # A changed file is taken out by its old bytes, too.
    now = shutil.copy(b, tmp_path / "now.parquet")
    b.unlink()
    retract(job, b, flags=["--old", now])
    assert tables(job) == oracle(job, [text.split() for text in kills.texts(1, 60)])


def test_what_was_never_counted_cannot_be_taken_out_and_the_pair_is_named(tmp_path):
    old = pmill.write(tmp_path / "t.parquet", ["red fox", "blue hen"])
    job = pmill.count(tmp_path / "wh", "j", old, "TEXT")
    # As many bytes, rows and words, and each word as often; the pairs are others.
    other = pmill.write(tmp_path / "o.parquet", ["red hen", "blue fox"])
    assert other.stat().st_size == old.stat().st_size
    before = kills.visible(job)
    result = pmill.run(
        "retract", "--warehouse", job.warehouse, "--name", "j", "--input", old, "--old", other, code=2
    )
    assert "the pair (`" in result.err and "has count 0 in weight units, and 1 would be taken out" in result.err
    assert "nothing was changed" in result.err
    words = pmill.write(tmp_path / "w.parquet", ["red cow", "blue hen"])
    result = pmill.run(
        "retract", "--warehouse", job.warehouse, "--name", "j", "--input", old, "--old", words, code=2
    )
    assert "`cow` has count 0, and 1 would be taken out" in result.err
    missing = pmill.run("retract", "--warehouse", job.warehouse, "--name", "j", "--input", words, code=2)
    assert "w.parquet` is not in job `j`" in missing.err
    assert kills.visible(job) == before
    assert job.orphans() == []


def test_tables_of_one_vocabulary_sum_to_the_table_of_all(tmp_path):
    a, b, c = corpus(tmp_path, [1, 2, 3])
    flags = ["--vocab-size", "25", "--context", "window", "--window", "3", "--weight", "harmonic", "--threads", "2"]
    whole = pmill.count(tmp_path / "whole", "j", a, "TEXT", *flags)
    pmill.count(tmp_path / "whole", "j", [a, b, c], "TEXT", *flags)
    parts = tmp_path / "parts"
    pmill.count(parts, "one", a, "TEXT", *flags)
    for name, path in (("two", b), ("three", c)):
        # The vocabulary of `a`, without `a`.
        job = pmill.count(parts, name, a, "TEXT", *flags)
        pmill.count(parts, name, [a, path], "TEXT", *flags)
        retract(job, a)
    merge = ["merge", "--warehouse", tmp_path / "wh", "--name", "j", "--json", "--from"]
    done = pmill.run(*merge, parts / "one", f"{parts}/two", parts / "three").json
    merged = pmill.Job(tmp_path / "wh", "j")
    assert bytes_of(merged) == bytes_of(whole)
    assert kills.visible(merged)["facts"] == kills.visible(whole)["facts"]
    assert (done["status"], done["tables"], done["rows"], done["dropped_pairs"]) == ("merged", 3, 180, 0)
    # All of it was merged before; a part of it would be counted twice.
    assert pmill.run(*merge, parts / "three", parts / "two").json["status"] == "unchanged"
    pmill.count(parts, "two", corpus(tmp_path, [4]), "TEXT", *flags)
    twice = pmill.run(*merge, parts / "two", code=2).err
    assert "2.parquet` is in `j` and in `" in twice and "counted twice" in twice
    # Into a job that exists, from the same warehouse by name.
    pmill.run(*["merge", "--warehouse", parts, "--name", "one", "--json", "--from"], "three")
    retract(pmill.Job(tmp_path / "wh", "j"), b)
    assert bytes_of(pmill.Job(parts, "one")) == bytes_of(merged)


def test_tables_that_were_counted_otherwise_are_not_summed(tmp_path):
    a, b = corpus(tmp_path, [1, 2])
    pmill.count(tmp_path / "wh", "x", a, "TEXT", "--vocab-size", "20")
    pmill.count(tmp_path / "wh", "y", b, "TEXT", "--vocab-size", "21")
    pmill.count(tmp_path / "wh", "z", b, "TEXT", "--vocab-size", "20")

    def refused(*tables):
        result = pmill.run("merge", "--warehouse", tmp_path / "wh", "--name", "n", "--from", *tables, code=2)
        assert not (tmp_path / "wh" / "n").exists() and not (tmp_path / "wh" / ".pmill" / "n").exists()
        return result.err

    assert "vocabulary.size: 21 here, 20 there" in refused("x", "y")
    assert "have different vocabularies" in refused("x", "z") and "--remap" in refused("x", "z")
    assert "no job `q`" in refused("x", "q")
    itself = pmill.run("merge", "--warehouse", tmp_path / "wh", "--name", "x", "--from", "x", code=2).err
    assert "is the job that is merged into" in itself


def test_tables_of_other_vocabularies_are_summed_by_term(tmp_path):
    a, b = corpus(tmp_path, [1, 2], rows=200)
    flags = ["--vocab-size", "20"]
    x = pmill.count(tmp_path / "wh", "x", a, "TEXT", *flags)
    y = pmill.count(tmp_path / "wh", "y", b, "TEXT", *flags)
    merge = ["merge", "--warehouse", tmp_path / "wh", "--name", "n", "--from", "x", "y", "--remap", "--json"]
    plan = pmill.run(*merge, "--dry-run").json
    assert not plan["exists"] and [row[2] for row in plan["from"]] == [len(x.pairs()), len(y.pairs())]
    done = pmill.run(*merge).json
    job = pmill.Job(tmp_path / "wh", "n")
    assert job.terms() == x.terms()
    known = set(x.terms())
    expected = Counter(x.pairs())
    kept = {pair: count for pair, count in y.pairs().items() if known.issuperset(pair)}
    expected.update(kept)
    assert job.pairs() == dict(expected)
    assert done["dropped_terms"] == len(set(y.terms()) - known) > 0
    assert done["dropped_pairs"] == len(y.pairs()) - len(kept) > 0
    assert any("hold a term without a place" in note for note in done["notes"])
    # The counts of terms are those of both, whatever vocabulary they were in.
    rows = [text.split() for number in (1, 2) for text in kills.texts(number, 200)]
    vocab, outside, _ = oracle(job, rows)
    assert [tuple(row.values())[1:] for row in job.table("vocab").to_pylist()] == vocab
    assert [tuple(row.values()) for row in job.table("outside").to_pylist()] == outside


def test_the_same_terms_in_another_order_are_summed_without_asking(tmp_path):
    a, b = corpus(tmp_path, [1, 2], rows=200)
    (tmp_path / "terms.txt").write_text("\n".join(f"w{n}" for n in range(12)))
    flags = ["--vocab", tmp_path / "terms.txt", "--context", "window", "--window", "2"]
    x = pmill.count(tmp_path / "wh", "x", a, "TEXT", *flags)
    y = pmill.count(tmp_path / "wh", "y", b, "TEXT", *flags)
    assert x.terms() != y.terms()
    pmill.run("merge", "--warehouse", tmp_path / "wh", "--name", "n", "--from", "x", "y")
    both = pmill.count(tmp_path / "both", "j", [a, b], "TEXT", *flags)
    assert pmill.Job(tmp_path / "wh", "n").pairs() == both.pairs()


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_changes_equals_the_count_of_what_remains(seed, tmp_path):
    draw = random.Random(seed)
    texts = {number: kills.texts(number, 40) for number in range(8)}
    files = {}
    for number, rows in texts.items():
        files[number] = tmp_path / "in" / f"{number}.parquet"
        files[number].parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"TEXT": rows, "n": list(range(40))}), files[number], row_group_size=11)
    flags = ["--vocab-size", "22", "--threads", "2"]
    job = pmill.count(tmp_path / "wh", "j", files[0], "TEXT", *flags)
    left = {0: set(range(40))}
    for step in range(9):
        away = [number for number in files if number not in left]
        kind = draw.choice(["count", "merge", "retract", "rows", "rows", "compact"])
        if kind == "count" and away:
            new = draw.sample(away, draw.randint(1, len(away)))
            pmill.count(tmp_path / "wh", "j", [files[n] for n in [*left, *new]], "TEXT", *flags)
            left |= {number: set(range(40)) for number in new}
        elif kind == "merge" and away and 0 in left:
            # A table of this vocabulary: counted from file 0, then file 0 taken out.
            new = draw.sample(away, draw.randint(1, min(3, len(away))))
            other = pmill.count(tmp_path / f"other{step}", "o", files[0], "TEXT", *flags)
            pmill.count(other.warehouse, "o", [files[n] for n in new], "TEXT", *flags)
            retract(other, files[0])
            pmill.run("merge", "--warehouse", tmp_path / "wh", "--name", "j", "--from", other.warehouse / "o")
            left |= {number: set(range(40)) for number in new}
        elif kind == "retract" and left:
            out = draw.sample(sorted(left), draw.randint(1, len(left)))
            retract(job, *[files[number] for number in out])
            left = {number: rows for number, rows in left.items() if number not in out}
        elif kind == "rows" and left:
            low, high = sorted(draw.sample(range(40), 2))
            some = draw.sample(sorted(left), draw.randint(1, len(left)))
            retract(job, *[files[number] for number in some], flags=["--where", f"n >= {low} AND n < {high}"])
            for number in some:
                left[number] -= set(range(low, high))
        elif kind == "compact" and len(job.pairs()) > 9:
            kills.split(job, draw.randint(2, 4))
            done = pmill.run("compact", "--warehouse", tmp_path / "wh", "--name", "j", "--json").json
            assert (done["status"], done["files"]) == ("compacted", 1)
        rows = [texts[number][row].split() for number, kept in left.items() for row in sorted(kept)]
        assert tables(job) == oracle(job, rows), f"step {step}: {kind}"
        assert job.facts()["rows"] == len(rows)
