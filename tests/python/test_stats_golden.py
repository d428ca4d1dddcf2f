"""Statistics of pmill against the libraries that people use: NLTK, gensim, SciPy, scikit-learn, NumPy.

Each test writes a Parquet file of counts, asks pmill in SQL, and compares with what the library says of the same counts:
1e-9 relative, and 1e-12 absolute where the library's own subtraction leaves no more.

PMILL_BIN names the pmill binary; PMILL_SQL may name a command instead that takes one SQL text as its last argument and
prints CSV with a header. PMILL_SHARED names a folder with `data/`; without it the tests make their own text.
"""

import collections
import csv
import io
import math
import os
import pathlib
import random
import shlex
import subprocess

import pytest

np = pytest.importorskip("numpy")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
stats = pytest.importorskip("scipy.stats")

RELATIVE = 1e-9
ABSOLUTE = 1e-12
MOST_PAIRS = 3000


def command(statement, warehouse):
    if os.environ.get("PMILL_SQL"):
        return shlex.split(os.environ["PMILL_SQL"]) + [statement]
    binary = os.environ.get("PMILL_BIN")
    if not binary:
        pytest.skip("neither PMILL_BIN nor PMILL_SQL is set")
    return [binary, "sql", "--warehouse", str(warehouse), "--format", "csv", statement]


def ask(statement, warehouse):
    """Rows of the answer as dictionaries."""
    done = subprocess.run(command(statement, warehouse), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def number(text):
    return math.nan if text in ("", "NULL") else float(text)


def close(found, expected, absolute=ABSOLUTE, relative=RELATIVE):
    if math.isinf(expected) or math.isinf(found):
        return found == expected
    return math.isclose(found, expected, rel_tol=relative, abs_tol=absolute)


def check(rows, column, expected, **tolerance):
    """Each row's value against the expected one; says where the first difference is."""
    assert len(rows) == len(expected)
    for place, (row, value) in enumerate(zip(rows, expected)):
        found = number(row[column])
        assert close(found, float(value), **tolerance), f"{column}, row {place}: {found!r}, expected {value!r}"


def shared():
    folder = os.environ.get("PMILL_SHARED") or pathlib.Path(__file__).resolve().parents[3] / "shared"
    data = pathlib.Path(folder) / "data"
    return data if data.is_dir() else None


def documents():
    """Token lists: real captions if they are there, else a seeded text with Zipf words."""
    data = shared()
    file = data and data / "captions" / "laion-1000.parquet"
    if file and file.exists():
        texts = pq.read_table(file, columns=["TEXT"])["TEXT"].to_pylist()
        return [text.lower().split() for text in texts if text]
    print("shared data is not there: using made-up text")
    draw = random.Random(5)
    words = [f"w{rank}" for rank in range(1, 400)]
    weights = [1 / rank for rank in range(1, 400)]
    return [draw.choices(words, weights, k=draw.randint(3, 20)) for _ in range(1000)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("golden")


def write(folder, name, columns):
    file = folder / f"{name}.parquet"
    pq.write_table(pa.table(columns), file)
    return file


@pytest.fixture(scope="module")
def pairs(folder):
    """Document counts of pairs: n_xy, n_x, n_y, n."""
    texts = [sorted(set(tokens)) for tokens in documents()]
    single = collections.Counter(token for tokens in texts for token in tokens)
    double = collections.Counter()
    for tokens in texts:
        kept = [token for token in tokens if single[token] >= 3]
        double.update((x, y) for place, x in enumerate(kept) for y in kept[place + 1 :])
    chosen = random.Random(1).sample(sorted(double), min(MOST_PAIRS, len(double)))
    rows = [(double[pair], single[pair[0]], single[pair[1]], len(texts)) for pair in chosen]
    # Also pairs that never meet, and larger counts than 1,000 captions have.
    rows += [(0, x, y, n) for _, x, y, n in rows[:50] if x + y <= n]
    rows += [tuple(1000 * value for value in row) for row in rows[:200]]
    columns = {name: [int(row[place]) for row in rows] for place, name in enumerate(["n_xy", "n_x", "n_y", "n"])}
    return rows, write(folder, "pairs", columns)


def score(pairs, expressions, folder):
    rows, file = pairs
    columns = ", ".join(f"{expression} AS {name}" for name, expression in expressions.items())
    found = ask(f"SELECT n_xy, n_x, n_y, n, {columns} FROM '{file}'", folder)
    found.sort(key=lambda row: tuple(int(row[name]) for name in ("n_xy", "n_x", "n_y", "n")))
    return sorted(rows), found


def test_nltk_bigram_measures(pairs, folder):
    measures = pytest.importorskip("nltk.metrics").BigramAssocMeasures
    counts = "n_xy, n_x, n_y, n"
    rows, found = score(
        pairs,
        {
            "t": f"t_score({counts})",
            "chi": f"chi_squared({counts})",
            "phi": f"power(phi({counts}), 2)",
            "pmi": f"pmi({counts}, 2)",
            "g2": f"log_likelihood_ratio({counts})",
            "ps": f"poisson_stirling({counts}, 2)",
            "jaccard": f"jaccard({counts})",
            "dice": f"dice({counts})",
            "cube": f"exp(lfmd({counts})) * n",
            "fisher": f"exp(fisher_exact({counts}, 'less'))",
        },
        folder,
    )
    reference = {
        "t": measures.student_t,
        "chi": measures.chi_sq,
        "phi": measures.phi_sq,
        "pmi": measures.pmi,
        "g2": measures.likelihood_ratio,
        "ps": measures.poisson_stirling,
        "jaccard": measures.jaccard,
        "dice": measures.dice,
        "cube": measures.mi_like,
        "fisher": measures.fisher,
    }
    seen = [(row, answer) for row, answer in zip(rows, found) if row[0] > 0]
    assert len(seen) > 500
    for name, measure in reference.items():
        subset = seen[:400] if name == "fisher" else seen
        expected = [measure(a, (x, y), n) for (a, x, y, n), _ in subset]
        answers = [answer for _, answer in subset]
        if name == "g2":
            # NLTK adds four terms of the size of n that cancel near independence: there its own digits are gone.
            kept = [place for place, value in enumerate(expected) if value > 1e-3]
            assert len(kept) > 500
            expected, answers = [expected[place] for place in kept], [answers[place] for place in kept]
            check(answers, name, expected, absolute=1e-9)
        else:
            check(answers, name, expected)


def test_gensim_scorers(pairs, folder):
    phrases = pytest.importorskip("gensim.models.phrases")
    types, least = 4321, 5
    rows, found = score(
        pairs,
        {
            "npmi": "npmi(n_xy, n_x, n_y, n)",
            "score": f"gensim_default(n_xy, n_x, n_y, n, {types}, {least})",
        },
        folder,
    )
    kept = [(row, answer) for row, answer in zip(rows, found) if 0 < row[0] < row[3]]
    check(
        [answer for _, answer in kept],
        "npmi",
        [phrases.npmi_scorer(x, y, a, types, 0, n) for (a, x, y, n), _ in kept],
    )
    check(
        [answer for _, answer in kept],
        "score",
        [phrases.original_scorer(x, y, a, types, least, n) for (a, x, y, n), _ in kept],
    )


def two_by_two(row):
    a, x, y, n = row
    return [[a, x - a], [y - a, n - x - y + a]]


def test_scipy_chi2_contingency(pairs, folder):
    counts = "n_xy, n_x, n_y, n"
    rows, found = score(pairs, {"chi": f"chi_squared({counts})", "g2": f"log_likelihood_ratio({counts})"}, folder)
    chosen = list(zip(rows, found))[::3]
    for power, name in ((1, "chi"), (0, "g2")):
        expected = [stats.chi2_contingency(two_by_two(row), correction=False, lambda_=power)[0] for row, _ in chosen]
        check([answer for _, answer in chosen], name, expected, absolute=1e-9)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_scipy_fisher_exact(pairs, folder, alternative):
    rows, found = score(pairs, {"ln_p": f"fisher_exact(n_xy, n_x, n_y, n, '{alternative}')"}, folder)
    chosen = list(zip(rows, found))[::9]
    compared = 0
    for row, answer in chosen:
        expected = stats.fisher_exact(two_by_two(row), alternative)[1]
        if expected < 1e-290:
            continue  # SciPy's p leaves f64 here, which is why pmill gives logarithms
        compared += 1
        assert close(math.exp(float(answer["ln_p"])), expected, absolute=0), (row, answer, expected)
    assert compared > 100


def test_scipy_entropy_and_divergences(folder):
    draw = np.random.default_rng(3)
    p = draw.integers(1, 5000, 500)
    q = draw.integers(1, 5000, 500)
    file = write(folder, "divergence", {"p": p, "q": q, "f": p / p.sum()})
    row = ask(
        "SELECT entropy(p) AS h, entropy(p, 2) AS bits, entropy(f) AS hf, kl_divergence(p, q) AS kl, "
        f"js_divergence(p, q) AS js, cauchy_schwarz_divergence(p, q) AS cs FROM '{file}'",
        folder,
    )
    distance = pytest.importorskip("scipy.spatial.distance")
    check(row, "h", [stats.entropy(p)])
    check(row, "bits", [stats.entropy(p, base=2)])
    check(row, "hf", [stats.entropy(p)])
    check(row, "kl", [stats.entropy(p, q)])
    check(row, "js", [distance.jensenshannon(p, q) ** 2])
    check(row, "cs", [-math.log(np.dot(p, q) / math.sqrt(float(np.dot(p, p)) * float(np.dot(q, q))))])


@pytest.fixture(scope="module")
def labels(folder):
    """Two columns of categories: real ones if they are there."""
    data = shared()
    file = data and data / "sentiment" / "airline-tweets.parquet"
    if file and file.exists():
        table = pq.read_table(file, columns=["sentiment", "airline"])
        x, y = (table[name].cast(pa.string()).to_pylist() for name in ("sentiment", "airline"))
    else:
        draw = random.Random(9)
        x = [draw.choice("abc") for _ in range(5000)]
        y = [value if draw.random() < 0.3 else draw.choice("defgh") for value in x]
    return x, y, write(folder, "labels", {"x": x, "y": y})


def test_scikit_learn_mutual_information(labels, folder):
    metrics = pytest.importorskip("sklearn.metrics")
    x, y, file = labels
    averages = ["arithmetic", "geometric", "min", "max"]
    columns = ", ".join(f"normalized_mutual_information(x, y, NULL, '{average}') AS {average}" for average in averages)
    row = ask(f"SELECT mutual_information(x, y) AS mi, {columns} FROM '{file}'", folder)
    check(row, "mi", [metrics.mutual_info_score(x, y)])
    for average in averages:
        check(row, average, [metrics.normalized_mutual_info_score(x, y, average_method=average)])
    counted = ask(
        f"SELECT mutual_information(x, y, c) AS mi FROM (SELECT x, y, count(*) AS c FROM '{file}' GROUP BY x, y)",
        folder,
    )
    assert counted[0]["mi"] == row[0]["mi"]


def test_scipy_entropies_of_a_table(labels, folder):
    x, y, file = labels
    cells = collections.Counter(zip(x, y))
    joint = stats.entropy(list(cells.values()))
    h_x = stats.entropy(list(collections.Counter(x).values()))
    h_y = stats.entropy(list(collections.Counter(y).values()))
    row = ask(
        "SELECT joint_entropy(x, y) AS joint, conditional_entropy(x, y) AS x_given_y, "
        "variation_of_information(x, y) AS vi, cramers_v(x, y) AS v, joint_entropy(x, y, NULL, 'e', 'miller-madow') AS mm "
        f"FROM '{file}'",
        folder,
    )
    check(row, "joint", [joint])
    check(row, "x_given_y", [joint - h_y])
    check(row, "vi", [2 * joint - h_x - h_y])
    check(row, "mm", [joint + (len(cells) - 1) / (2 * len(x))])
    table = np.array([[cells[a, b] for b in sorted(set(y))] for a in sorted(set(x))])
    check(row, "v", [stats.contingency.association(table, method="cramer")])


def test_scipy_correlations(folder):
    draw = np.random.default_rng(8)
    x = draw.normal(100.0, 2.0, 3000)
    y = 0.3 * x + draw.normal(0.0, 1.0, 3000)
    tied = np.round(x)
    flag = x > 101.0
    file = write(folder, "correlation", {"x": x, "y": y, "tied": tied, "flag": flag})
    row = ask(
        "SELECT pearson(x, y) AS r, spearman(x, y) AS rho, spearman(tied, y) AS ties, point_biserial(flag, y) AS pb "
        f"FROM '{file}'",
        folder,
    )
    check(row, "r", [stats.pearsonr(x, y)[0]])
    check(row, "rho", [stats.spearmanr(x, y)[0]])
    check(row, "ties", [stats.spearmanr(tied, y)[0]])
    check(row, "pb", [stats.pointbiserialr(flag, y)[0]])


def test_scipy_bootstrap_has_the_same_width(folder):
    draw = np.random.default_rng(21)
    x = draw.normal(size=400)
    y = 0.5 * x + draw.normal(size=400)
    file = write(folder, "bootstrap", {"x": x, "y": y})
    row = ask(
        "SELECT b['estimate'] AS estimate, b['lower'] AS low, b['upper'] AS high FROM "
        f"(SELECT bootstrap_ci(x, y, 'pearson', 0.95, 4000, 1) AS b FROM '{file}')",
        folder,
    )[0]
    reference = stats.bootstrap(
        (x, y),
        lambda a, b: stats.pearsonr(a, b)[0],
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert close(number(row["estimate"]), stats.pearsonr(x, y)[0])
    # Two bootstraps with other draws: the ends agree to a tenth of the width.
    width = reference.high - reference.low
    assert abs(number(row["low"]) - reference.low) < width / 10
    assert abs(number(row["high"]) - reference.high) < width / 10


def test_scipy_benjamini_hochberg(folder):
    p = np.random.default_rng(4).uniform(size=500) ** 3
    file = write(folder, "p", {"i": list(range(500)), "p": p})
    rows = ask(f"SELECT benjamini_hochberg(p) OVER () AS q FROM '{file}' ORDER BY i", folder)
    check(rows, "q", stats.false_discovery_control(p))


def test_numpy_moments(folder):
    vectors = np.random.default_rng(6).normal(size=(700, 5)) @ np.diag([1, 2, 3, 4, 0.1])
    file = write(folder, "vectors", {"v": pa.array(vectors.tolist())})
    entries = "SELECT unnest(matrix_entries({})) AS e FROM '" + str(file) + "'"
    query = "SELECT e['value'] AS value FROM ({}) ORDER BY e['row'], e['column']"
    covariance = ask(query.format(entries.format("moments(v)['covariance']")), folder)
    check(covariance, "value", np.cov(vectors.T).ravel())
    correlation = ask(query.format(entries.format("correlation_matrix(v)")), folder)
    check(correlation, "value", np.corrcoef(vectors.T).ravel())
    eigenvalues = np.linalg.eigvalsh(np.cov(vectors.T))
    entropy = stats.entropy(eigenvalues)
    row = ask(
        "SELECT von_neumann_entropy(c) AS s, effective_rank(c) AS rank FROM "
        f"(SELECT moments(v)['covariance'] AS c FROM '{file}')",
        folder,
    )
    check(row, "s", [entropy])
    check(row, "rank", [math.exp(entropy)])


@pytest.fixture(scope="module")
def activations(folder):
    """Two layers of a made-up network, labels, and predicted probabilities."""
    draw = np.random.default_rng(12)
    label = draw.integers(0, 4, 900)
    layer = np.round(np.maximum(draw.normal(size=(900, 6)) + label[:, None] * np.linspace(0, 1, 6), 0), 3)
    next_layer = layer @ draw.normal(size=(6, 3)) + draw.normal(size=(900, 3))
    logits = draw.normal(size=(900, 5)) + 2 * np.eye(5)[label]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    columns = {
        "i": list(range(900)),
        "label": label,
        "v": pa.array(layer.tolist(), pa.list_(pa.float32())),
        "w": pa.array(next_layer.tolist()),
        "p": pa.array(probabilities.tolist()),
    }
    return layer.astype(np.float32).astype(float), next_layer, label, probabilities, write(folder, "activations", columns)


def test_numpy_quantiles(activations, folder):
    layer, _, label, _, file = activations
    for share in (0, 0.05, 0.5, 0.9371, 1):
        row = ask(f"SELECT exact_quantile(w[1], {share}) AS one FROM '{file}'", folder)
        check(row, "one", [np.quantile(activations[1][:, 0], share)])
        units = ask(f"SELECT unnest(unit_quantile(v, {share})) AS q FROM '{file}'", folder)
        check(units, "q", np.quantile(layer, share, axis=0))
    grouped = ask(f"SELECT label, exact_quantile(w[2], 0.25) AS q FROM '{file}' GROUP BY label ORDER BY label", folder)
    check(grouped, "q", [np.quantile(activations[1][label == k, 1], 0.25) for k in range(4)])


def test_numpy_top_k_of_each_unit(activations, folder):
    layer, next_layer, _, _, file = activations
    units = ask(
        "SELECT t[1]['label'] AS first, t[3]['value'] AS third FROM "
        f"(SELECT unnest(unit_top_k(w, i, 3)) AS t FROM '{file}')",
        folder,
    )
    order = np.argsort(-next_layer, axis=0)
    assert [int(row["first"]) for row in units] == order[0].tolist()
    check(units, "third", np.sort(next_layer, axis=0)[-3])


def test_numpy_cross_correlation_of_two_layers(activations, folder):
    layer, next_layer, _, _, file = activations
    rows = ask(
        "SELECT e['value'] AS value FROM (SELECT unnest(matrix_entries(correlation_matrix(v, w))) AS e "
        f"FROM '{file}') ORDER BY e['row'], e['column']",
        folder,
    )
    check(rows, "value", np.corrcoef(layer.T, next_layer.T)[:6, 6:].ravel())


@pytest.mark.parametrize("bins", [3, 30])
def test_binned_mutual_information_of_a_layer(activations, folder, bins):
    metrics = pytest.importorskip("sklearn.metrics")
    layer, _, label, _, file = activations
    distinct = np.unique(layer)
    edges = [distinct[number * len(distinct) // bins] for number in range(1, bins)]
    found = ask(f"SELECT unnest(equal_count_edges(v, {bins})) AS e FROM '{file}'", folder)
    check(found, "e", edges)
    states = [",".join(map(str, row)) for row in np.digitize(layer, edges)]
    row = ask(
        f"WITH e AS (SELECT equal_count_edges(v, {bins}) AS edges FROM '{file}') "
        "SELECT mutual_information(bin_vector(v, edges), label) AS label_mi, "
        f"mutual_information(bin_vector(v, edges), i) AS input_mi FROM '{file}', e",
        folder,
    )
    check(row, "label_mi", [metrics.mutual_info_score(states, label)])
    # A deterministic layer: its information on the input is the entropy of its states.
    check(row, "input_mi", [stats.entropy(list(collections.Counter(states).values()))])


def test_scipy_attention_entropy_by_head(folder):
    draw = np.random.default_rng(14)
    attention = draw.dirichlet(np.full(16, 0.3), size=200)
    head = np.arange(200) % 4
    file = write(folder, "attention", {"head": head, "a": pa.array(attention.tolist())})
    rows = ask(f"SELECT avg(vector_entropy(a, 2)) AS h FROM '{file}' GROUP BY head ORDER BY head", folder)
    check(rows, "h", [stats.entropy(attention[head == k], base=2, axis=1).mean() for k in range(4)])


def test_numpy_class_conditional_mi(activations, folder):
    _, _, label, probabilities, file = activations
    within = sum((label == k).sum() * stats.entropy(probabilities[label == k].mean(axis=0)) for k in range(4))
    expected = (within - stats.entropy(probabilities, axis=1).sum()) / len(label)
    row = ask(f"SELECT class_conditional_mi(label, p) AS mi FROM '{file}'", folder)
    check(row, "mi", [expected])


def test_conditional_mutual_information_is_the_mean_of_the_groups(folder):
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(15)
    z = draw.integers(0, 3, 4000)
    x = (draw.integers(0, 5, 4000) + z) % 6
    y = np.where(draw.random(4000) < 0.4, x, draw.integers(0, 6, 4000))
    file = write(folder, "three", {"x": x, "y": y, "z": z})
    row = ask(f"SELECT conditional_mutual_information(x, y, z) AS mi FROM '{file}'", folder)
    check(row, "mi", [sum((z == k).mean() * metrics.mutual_info_score(x[z == k], y[z == k]) for k in range(3))])


def test_a_join_of_pmi_with_accuracy_over_20_bins_and_the_gap(folder):
    draw = np.random.default_rng(16)
    pmi = np.round(draw.normal(size=2000), 9)
    accuracy = (draw.random(2000) < 1 / (1 + np.exp(-pmi))).astype(int)
    scores = write(folder, "scores", {"id": list(range(2000)), "pmi": pmi})
    answers = write(folder, "answers", {"id": list(range(2000)), "right": accuracy})
    row = ask(
        "SELECT bootstrap_ci(pmi, \"right\", 'binned_pearson', 0.95, 200, 7)['estimate'] AS binned, "
        "bootstrap_ci(pmi, \"right\", 'gap', 0.95, 200, 7)['estimate'] AS gap, pearson(pmi, \"right\") AS raw, "
        "bootstrap_ci(pmi, \"right\", 'gap', 0.95, 200, 7)['lower'] AS low "
        f"FROM '{scores}' JOIN '{answers}' USING (id)",
        folder,
    )
    order = np.argsort(pmi, kind="stable")
    bins = np.array_split(order, 20)
    means = np.array([[pmi[b].mean(), accuracy[b].mean()] for b in bins]).T
    check(row, "binned", [np.corrcoef(means)[0, 1]])
    check(row, "raw", [stats.pearsonr(pmi, accuracy)[0]])
    gap = accuracy[order[-100:]].mean() - accuracy[order[:100]].mean()
    check(row, "gap", [gap])
    assert 0 < number(row[0]["low"]) < gap
