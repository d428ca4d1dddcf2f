"""cooccur, neighbours, drift and matrix_rows against the tables and against slow, obvious versions."""

import math
from collections import Counter, defaultdict

import pytest

import pmill

np = pytest.importorskip("numpy")

DOCUMENTS = [
    ["a dog runs", "a dog sleeps", "the cat sleeps", "a cat and a dog", "the sun", "sun and moon and sun", "dog dog moon"],
    ["a dog sleeps", "the cat runs", "cat and moon", "sun and moon", "a dog and the sun", "the moon", "a cat", "runs runs"],
]
WINDOW = ["--context", "window", "--window", 3, "--weight", "harmonic"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    return [pmill.write(folder / f"{number}.parquet", texts) for number, texts in enumerate(DOCUMENTS)]


@pytest.fixture(scope="module")
def jobs(corpora, tmp_path_factory):
    """Jobs d0, d1 (documents) and w0, w1 (windows) of the two corpora; d0 is scored."""
    warehouse = tmp_path_factory.mktemp("jobs") / "wh"
    for number, corpus in enumerate(corpora):
        job = pmill.count(warehouse, f"d{number}", corpus, "TEXT")
        if number == 0:
            pmill.score(job, "--measure", "pmi,npmi,confidence")
        pmill.count(warehouse, f"w{number}", corpus, "TEXT", *WINDOW)
    directed = pmill.count(warehouse, "directed", corpora[0], "TEXT", *WINDOW, "--side", "right")
    pmill.score(directed)
    return warehouse


def rows(found):
    return sorted((row["left"], row["right"], row["n_xy"], row["n_x"], row["n_y"], row["n"]) for row in found)


@pytest.mark.parametrize(
    "flags, arguments",
    [
        ([], ""),
        (["--min-count", 2, "--stop-words", "english"], ", min_count => 2, stop_words => 'english'"),
        (WINDOW, ", 'window', 3, 'harmonic'"),
        ([*WINDOW, "--side", "right"], ", context => 'window', window => 3, weight => 'harmonic', side => 'right'"),
    ],
)
def test_cooccur_gives_the_counts_of_a_job(corpora, warehouse, flags, arguments):
    job = pmill.count(warehouse, "j", corpora, "TEXT", *flags)
    pmill.score(job)
    files = "[" + ", ".join(f"'{path}'" for path in corpora) + "]"
    found = pmill.sql(warehouse, f"SELECT * FROM COOCCUR({files}, 'TEXT'{arguments})")
    expected = pmill.sql(warehouse, "SELECT * FROM j.pmi")
    assert rows(found) == rows(expected) and len(found) > 5


def test_cooccur_on_real_captions_within_a_small_limit(data, warehouse, tmp_path):
    corpus = data / "captions" / "laion-10000.parquet"
    job = pmill.count(warehouse, "j", corpus, "TEXT")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    query = f"SELECT count(*) AS c, sum(n_xy) AS s FROM cooccur('{corpus.parent}/laion-10000*', 'TEXT')"
    found = pmill.sql(
        warehouse, query, "--memory-limit", "160MiB", env=pmill.environment(TMPDIR=scratch)
    )
    counts = job.table("pairs")["count"].to_pylist()
    assert found == [{"c": len(counts), "s": float(sum(counts))}]
    assert list(scratch.iterdir()) == []


def test_cooccur_leaves_no_files_after_an_error_and_sweeps_those_of_the_dead(corpora, warehouse, tmp_path):
    scratch = tmp_path / "scratch"
    dead, other = scratch / "pmill-query-dead", scratch / "other"
    for folder in (dead, other):
        folder.mkdir(parents=True)
        (folder / "lock").touch()
    env = pmill.environment(TMPDIR=scratch)
    result = pmill.run("sql", "--warehouse", warehouse, f"SELECT * FROM cooccur('{corpora[0]}', 'TXT')", code=2, env=env)
    assert "no column `TXT`" in result.err and "did you mean `TEXT`" in result.err
    assert [path.name for path in scratch.iterdir()] == ["other"]


@pytest.mark.parametrize(
    "call, words",
    [
        ("cooccur('FILE')", ["`column` is missing"]),
        ("cooccur('nowhere.parquet', 'TEXT')", ["nowhere.parquet", "no such file"]),
        ("cooccur('FILE', 'TEXT', contxt => 'window')", ["no argument `contxt`", "did you mean `context`"]),
        ("cooccur('FILE', 'TEXT', context => 'windo')", ["`context` is 'windo'", "`document` or `window`"]),
        ("cooccur('FILE', 'TEXT', window => 5)", ["`window` goes with context => 'window'"]),
        ("cooccur('FILE', 'TEXT', 'window', -5)", ["`window` is -5"]),
        ("cooccur('FILE', 'TEXT', 'window', 2.5)", ["`window` is 2.5", "whole number"]),
        ("cooccur('FILE', 'TEXT', 'window', window => 5, window => 6)", ["`window` is given twice"]),
        ("cooccur('FILE', column => 'TEXT', 'window')", ["without a name stands after"]),
        ("cooccur('FILE', 'TEXT', marginals => 'documents', context => 'window')", ["`documents` go with"]),
        ("cooccur('FILE', \"TEXT\")", ["TEXT"]),
        ("neighbours('d0', 'dgo')", ["vocabulary of job `d0` has no `dgo`"]),
        ("neighbours('d9', 'dog')", ["no job `d9`", "d0, d1"]),
        ("neighbours('d0', 'dog', measure => 'npm')", ["no measure `npm`", "did you mean `npmi`"]),
        ("neighbours('d0', 'dog', 2, 'sppmi(q=1)')", ["no parameter `q`"]),
        ("neighbours('d0', NULL)", ["`word` is missing"]),
        ("drift('d0', 'w0')", ["different settings", "context.kind"]),
        ("matrix_rows([1.0, 2.0])", ["list of lists"]),
    ],
)
def test_wrong_arguments_are_named(jobs, corpora, call, words):
    result = pmill.run("sql", "--warehouse", jobs, f"SELECT * FROM {call.replace('FILE', str(corpora[0]))}", code=2)
    for word in words:
        assert word in result.err


def partners(found, word, turned=True):
    """(other, n_xy, n_x of the word, n_y of the other, n) of every pair that holds the word."""
    for row in found:
        if row["left"] == word:
            yield row["right"], row["n_xy"], row["n_x"], row["n_y"], row["n"]
        elif turned and row["right"] == word:
            yield row["left"], row["n_xy"], row["n_y"], row["n_x"], row["n"]


def npmi(n_xy, n_x, n_y, n):
    return math.log(n_xy * n / (n_x * n_y)) / -math.log(n_xy / n)


def best(pairs, measure, k):
    scored = [(measure(*counts), counts[0], other, counts) for other, *counts in pairs]
    scored.sort(key=lambda row: (-round(row[0], 12), -row[1], row[2].encode()))
    return scored[:k]


@pytest.mark.parametrize("job, corpus, flags", [("d0", 0, ""), ("d1", 1, ""), ("w1", 1, ", 'window', 3, 'harmonic'")])
@pytest.mark.parametrize("name, measure", [("npmi", npmi), ("confidence", lambda a, x, y, n: a / x)])
def test_neighbours_are_the_best_pairs_of_a_word(jobs, corpora, job, corpus, flags, name, measure):
    found = pmill.sql(jobs, f"SELECT * FROM neighbours('{job}', 'dog', 4, '{name}') ORDER BY rank")
    table = pmill.sql(jobs, f"SELECT * FROM cooccur('{corpora[corpus]}', 'TEXT'{flags})")
    expected = best(partners(table, "dog"), measure, 4)
    assert [row["rank"] for row in found] == list(range(1, len(found) + 1))
    assert [row["neighbour"] for row in found] == [row[2] for row in expected]
    for row, (score, _, _, counts) in zip(found, expected):
        assert math.isclose(row["score"], score, rel_tol=1e-12)
        assert [row["n_xy"], row["n_x"], row["n_y"], row["n"]] == list(counts)


def test_neighbours_of_a_directed_window_stand_on_the_right(jobs):
    table = pmill.sql(jobs, "SELECT * FROM directed.pmi")
    found = pmill.sql(jobs, "SELECT * FROM neighbours('directed', 'a', 3, 'npmi') ORDER BY rank")
    assert [row["neighbour"] for row in found] == [row[2] for row in best(partners(table, "a", False), npmi, 3)]


def test_neighbours_take_the_scores_of_the_job(corpora, warehouse):
    job = pmill.count(warehouse, "j", corpora, "TEXT")
    pmill.score(job, "--measure", "pmi", "--pair-smoothing", 1, "--unigram-smoothing", 2, "--base", 2)
    stored = {(row["left"], row["right"]): row["pmi"] for row in pmill.sql(warehouse, "SELECT * FROM j.pmi")}
    found = pmill.sql(warehouse, "SELECT * FROM neighbours('j', 'dog', measure => 'pmi', min_pair_count => 2)")
    assert found and all(row["n_xy"] >= 2 for row in found)
    for row in found:
        pair = ("dog", row["neighbour"])
        assert row["score"] == stored.get(pair, stored.get(pair[::-1]))


def natural(table):
    return {tuple(sorted((row["left"], row["right"]))): row["n_xy"] for row in table}


@pytest.mark.parametrize("kind, flags", [("d", ""), ("w", ", 'window', 3, 'harmonic'")])
def test_drift_against_its_formulas(jobs, corpora, kind, flags):
    distance = pytest.importorskip("scipy.spatial.distance")
    tables = [pmill.sql(jobs, f"SELECT * FROM cooccur('{corpus}', 'TEXT'{flags})") for corpus in corpora]
    vocabularies = [set(), set()]
    margins = [{}, {}]
    for number in (0, 1):
        vocabularies[number] = {row["token"] for row in pmill.sql(jobs, f"SELECT token FROM {kind}{number}.vocab")}
        for row in tables[number]:
            margins[number][row["left"]], margins[number][row["right"]] = row["n_x"], row["n_y"]
    both = vocabularies[0] & vocabularies[1]
    counts = [{pair: c for pair, c in natural(table).items() if set(pair) <= both} for table in tables]
    n = [table[0]["n"] for table in tables]
    pairs = sorted(counts[0].keys() | counts[1].keys())
    found = {tuple(sorted((row["left"], row["right"]))): row for row in pmill.sql(jobs, f"SELECT * FROM drift('{kind}0', '{kind}1')")}
    assert sorted(found) == pairs and len(pairs) > 10
    p, q = (np.array([side.get(pair, 0.0) for pair in pairs]) for side in counts)
    assert math.isclose(sum(row["js"] for row in found.values()), distance.jensenshannon(p, q) ** 2, rel_tol=1e-9)
    (whole,) = pmill.sql(jobs, f"SELECT js_divergence(n_xy_a, n_xy_b) AS js FROM drift('{kind}0', '{kind}1')")
    assert math.isclose(whole["js"], distance.jensenshannon(p, q) ** 2, rel_tol=1e-9)
    in_both = 0
    for pair in pairs:
        row, (a, b) = found[pair], (side.get(pair, 0.0) for side in counts)
        assert (row["n_xy_a"], row["n_xy_b"], row["n_a"], row["n_b"]) == (a, b, *n)
        odds = [math.log((c + 0.5) / (size - c + 0.5)) for c, size in ((a, n[0]), (b, n[1]))]
        error = math.sqrt(sum(1 / (c + 0.5) + 1 / (size - c + 0.5) for c, size in ((a, n[0]), (b, n[1]))))
        assert math.isclose(row["log_odds_difference"], odds[1] - odds[0], rel_tol=1e-9, abs_tol=1e-12)
        assert math.isclose(row["log_odds_z"], (odds[1] - odds[0]) / error, rel_tol=1e-9, abs_tol=1e-12)
        if a > 0 and b > 0:
            in_both += 1
            x, y = row["left"], row["right"]
            pmi = [math.log(c * size / (m[x] * m[y])) for c, size, m in ((a, n[0], margins[0]), (b, n[1], margins[1]))]
            assert math.isclose(row["pmi_difference"], pmi[1] - pmi[0], rel_tol=1e-9, abs_tol=1e-12)
            assert row["pmi_z"] is None or (row["pmi_z"] >= 0) == (row["pmi_difference"] >= 0)
        else:
            assert row["pmi_difference"] is None and row["pmi_z"] is None
    assert in_both > 3
    some = pmill.sql(jobs, f"SELECT n_xy_a + n_xy_b AS c FROM drift('{kind}0', '{kind}1', min_pair_count => 2)")
    assert len(some) == sum(1 for a, b in zip(p, q) if a + b >= 2) and all(row["c"] >= 2 for row in some)


def test_drift_of_equal_corpora_is_null_and_of_chance_is_small(warehouse, tmp_path):
    """Two halves of one source: the z of frequent pairs has standard deviation about 1; a planted change stands out."""
    draw = np.random.default_rng(17)
    words = np.array([f"w{number}" for number in range(12)])

    def texts(planted):
        made = [" ".join(words[draw.random(12) < 0.3]) for _ in range(4000)]
        return made + (["w0 w1"] * 400 if planted else [])

    for name, planted in (("a", False), ("b", False), ("c", True)):
        pmill.count(warehouse, name, pmill.write(tmp_path / f"{name}.parquet", texts(planted)), "TEXT")
    chance = pmill.sql(warehouse, "SELECT log_odds_z, pmi_z FROM drift('a', 'b')")
    for column in ("log_odds_z", "pmi_z"):
        spread = math.sqrt(sum(row[column] ** 2 for row in chance) / len(chance))
        assert 0.7 < spread < 1.3, (column, spread)
    top = pmill.sql(warehouse, 'SELECT "left", "right" FROM drift(\'a\', \'c\') ORDER BY log_odds_z DESC LIMIT 1')
    assert sorted(top[0].values()) == ["w0", "w1"]
    same = pmill.sql(warehouse, "SELECT max(abs(log_odds_z)) AS z, max(abs(pmi_z)) AS p, sum(js) AS js FROM drift('a', 'a')")
    assert same == [{"z": 0.0, "p": 0.0, "js": 0.0}]


def test_matrix_rows_of_a_query(warehouse):
    query = "SELECT * FROM matrix_rows((SELECT {} FROM (VALUES ([1.0, 5.0]), ([2.0, 3.0]), ([4.0, 4.0])) t(v)))"
    expected = np.cov(np.array([[1, 5], [2, 3], [4, 4]]).T)
    found = pmill.sql(warehouse, query.format("moments(v)['covariance']"))
    assert [(row["row"], row["column"]) for row in found] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert np.allclose([row["value"] for row in found], expected.ravel(), rtol=1e-12)
    result = pmill.run("sql", "--warehouse", warehouse, query.format("[v]"), code=2)
    assert "more than one row" in result.err


def test_the_reference_is_printed_and_is_complete():
    whole = pmill.run("functions", "--json").json["functions"]
    names = [entry["name"] for entry in whole]
    assert len(set(names)) == len(names)
    by_kind = Counter(entry["kind"] for entry in whole)
    assert by_kind["measure"] >= 25 and by_kind["aggregate"] >= 20 and by_kind["table"] == 6
    for entry in whole:
        assert all(entry[key] for key in ("title", "signature", "formula", "limits")), entry["name"]
        assert entry["range"] or entry["kind"] == "table"
    page = (pmill.REPO / "docs" / "functions.md").read_text()
    assert [line[4:] for line in page.splitlines() if line.startswith("### ")] == names
    one = pmill.run("functions", "NPMI").out
    assert "npmi(n_xy, n_x, n_y, n)" in one and "Bouma 2009" in one and "pmi_k" not in one
    listed = pmill.run("functions").out
    assert all(f"  {name} " in listed for name in names)
    assert "did you mean `npmi`" in pmill.run("functions", "nmpi", code=2).err


def test_score_writes_every_measure_as_the_sql_function_gives_it(corpora, warehouse):
    job = pmill.count(warehouse, "j", corpora, "TEXT")
    needed = {"cpmi": "(smoothed_total=50,alpha=0.75)", "gensim_default": None}
    measures = []
    for entry in pmill.run("functions", "--json").json["functions"]:
        if entry["kind"] != "measure":
            continue
        required = [row["name"] for row in entry["arguments"] if row["text"].endswith("default required")]
        given = needed.get(entry["name"]) or ("(" + ",".join(f"{name}=40" for name in required) + ")" if required else "")
        measures.append(entry["name"] + given)
    assert len(measures) >= 25
    pmill.score(job, "--measure", ",".join(measures))
    report = pmill.run("inspect", "--warehouse", warehouse, "--name", "j", "--json").json
    columns = report["score"]["columns"]
    assert len(columns) == len(measures)
    stored = pmill.sql(warehouse, "SELECT * FROM j.pmi")
    asked = pmill.sql(warehouse, "SELECT " + ", ".join(f"{sql} AS c{place}" for place, (_, sql) in enumerate(columns)) + " FROM j.pmi")
    values = defaultdict(list)
    for place, (name, _) in enumerate(columns):
        values[name] = sorted(repr(row[f"c{place}"]) for row in asked)
        assert sorted(repr(row[name]) for row in stored) == values[name], name
    # The event space, where a person and a program look for it: inspect, and the table's own metadata.
    space = report["score"]["event_space"]
    assert "one event is one row" in space and "n rows in all" in space
    assert space in pmill.run("inspect", "--warehouse", warehouse, "--name", "j").out
    metadata = [action["metaData"] for version in pmill.log(job.folder("pmi")) for action in version if "metaData" in action]
    assert space in metadata[-1]["configuration"]["pmill.settings"]


@pytest.mark.parametrize("job, itself, both", [("d0", False, False), ("w0", True, False), ("directed", True, True)])
def test_absent_pairs_are_all_pairs_but_those_that_met(jobs, job, itself, both):
    tokens = [row["token"] for row in pmill.sql(jobs, f"SELECT token FROM {job}.vocab ORDER BY id")]
    names = f"SELECT l.token AS l, r.token AS r FROM {job}.pairs p JOIN {job}.vocab l ON l.id = left_id"
    met = {(row["l"], row["r"]) for row in pmill.sql(jobs, f"{names} JOIN {job}.vocab r ON r.id = right_id")}
    every = {
        (a, b)
        for at, a in enumerate(tokens)
        for other, b in enumerate(tokens)
        if other > at or (itself and other == at) or (both and other < at)
    }
    found = pmill.sql(jobs, f"SELECT * FROM absent_pairs('{job}')")
    assert {(row["left"], row["right"]) for row in found} == every - met
    assert len(found) == len(every - met) > 3 and len(met) > 3
    # The marginals are those of the pairs that did meet.
    sides = defaultdict(set)
    for row in pmill.sql(jobs, f"SELECT neighbour, n_y, n FROM neighbours('{job}', 'dog', 100)"):
        sides[row["neighbour"]].add((row["n_y"], row["n"]))
    for row in found:
        if row["right"] in sides:
            assert (row["n_y"], row["n"]) in sides[row["right"]]
    assert pmill.sql(jobs, f"SELECT count(*) AS n FROM absent_pairs('{job}')") == [{"n": len(found)}]
    assert len(pmill.sql(jobs, f"SELECT \"right\" FROM absent_pairs('{job}') LIMIT 2")) == 2
