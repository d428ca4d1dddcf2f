"""Every ready pipeline in process and, unchanged, with --cluster: the same tables, byte for byte, and the same files."""

import json
import math
import random

import numpy
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

import cluster
import pmill
from test_pipelines import labelled, log_table, planted, sentences
from test_snapshot_gate import EVALUATE

PIPELINES = pmill.REPO / "pipelines"
COUNTED = ("vocab", "pairs", "outside", "pmi")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with cluster.Cluster(tmp_path_factory.mktemp("roles"), executors=1, slots=2) as running:
        yield running


# Inputs: each writes what a pipeline reads into a folder, and gives its settings. ----------------


def captions(folder):
    corpus = folder / "captions"
    if not corpus.exists():
        pmill.run("sample-corpus", "--output", corpus, "--rows", 3000, "--files", 3)
    return [inputs(corpus)]


def inputs(*paths):
    return f"input.paths={json.dumps([str(path) for path in paths])}"


def texts(folder):
    lines = sentences(1, 900)
    halves = [lines[:400], lines[400:]]
    return [inputs(*(pmill.write(folder / f"texts-{n}.parquet", half, "text") for n, half in enumerate(halves)))]


def log(folder):
    pq.write_table(log_table(planted(3, 300)), folder / "log.parquet", row_group_size=400)
    return [inputs(folder / "log.parquet"), 'parameters.negative=["so"]']


def activations(folder):
    draw, units, rows = numpy.random.default_rng(5), 3, 200
    frame = {"unit": numpy.repeat(numpy.arange(units), rows), "row": numpy.tile(numpy.arange(rows), units)}
    pq.write_table(pa.table({**frame, "activation": draw.normal(size=units * rows)}), folder / "activations.parquet")
    described = {"row": numpy.repeat(numpy.arange(rows), 2), "description": ["a", "b"] * rows}
    pq.write_table(pa.table({**described, "p": draw.uniform(0.01, 1, rows * 2)}), folder / "probabilities.parquet")
    shown = numpy.flatnonzero(draw.random(rows) < 0.3)
    pq.write_table(pa.table({"row": shown, "concept": ["x"] * len(shown)}), folder / "concepts.parquet")
    return [inputs(folder / "activations.parquet")]


def posts(folder):
    draw = random.Random(7)
    moods = {"positive": ["good", "nice", "fun"], "negative": ["bad", "poor", "rain"], "neutral": ["day", "sea", "sky"]}
    labels = [draw.choice(list(moods)) for _ in range(600)]
    lines = [" ".join(draw.choices(moods[label] + ["the", "a", "of", "good", "bad"], k=6)) for label in labels]
    for part, rows in (("train", slice(0, 450)), ("test", slice(450, None))):
        labelled(folder / f"{part}.parquet", lines[rows], labels[rows])
    return [inputs(folder / "train.parquet")]


def agents(folder):
    for number, value in enumerate((0.5, 1.5, 1.0)):
        place = folder / f"agent{number}"
        place.mkdir()
        save_file({"w": numpy.full((4, 8), value, numpy.float32)}, place / "model.safetensors")
    (folder / "evaluate.py").write_text(EVALUATE)
    return ['merge.snapshots=["agent*"]', f"merge.gate.evaluate=python3 '{folder}/evaluate.py'"]


# What each reads and writes: the input, more settings, jobs, files, the pipeline that comes before it.
CASES = {
    "quickstart": (captions, ["score.min_pair_count=3"], ["quickstart"], [], None),
    "captions": (captions, ["vocabulary.size=400", "WORDNET"], ["captions"], [], None),
    "captions-pairs": (
        lambda folder: [],
        ['parameters.concepts=["dog", "red car"]', "WORDNET"],
        ["captions"],
        ["captions-xor.parquet", "captions-absent.parquet"],
        "captions",
    ),
    "experts": (log, [], ["experts"], ["experts-ranked.parquet", "experts.json"], None),
    "experts-weights": (log, [], [], ["experts-ranked.parquet", "experts.json"], None),
    "neurons": (activations, [], [], ["neurons-tops.parquet", "neurons-wpmi.parquet", "neurons-concepts.parquet"], None),
    "windows": (texts, [], ["windows"], ["windows-sppmi.parquet"], None),
    "phrases": (texts, ["parameters.npmi=0.4"], ["phrases_1", "phrases_2", "phrases_3"], ["phrases.txt"], None),
    "pmi-masking": (texts, ["parameters.column=text"], [], ["pmi-masking.parquet", "pmi-masking.txt"], None),
    "sentiment": (posts, [], ["sentiment"], ["sentiment-lexicon.csv", "sentiment-predictions.parquet"], None),
    "sentiment-seeds": (posts, [], ["seeds"], ["seeds-lexicon.csv"], None),
    "single-merge": (agents, [], [], ["merged/model.safetensors", "distance.html"], None),
}


def test_no_pipeline_is_left_out():
    assert set(CASES) == {path.stem for path in PIPELINES.glob("*.toml")}


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_gives_the_same_with_cluster(name, request, running, tmp_path):
    make, settings, jobs, files, before = CASES[name]
    if "WORDNET" in settings:
        settings = [*settings[:-1], f'features.lemma="wordnet:{request.getfixturevalue("wordnet")}"']
    settings = [*make(tmp_path), *settings]
    # Single-threaded queries sum in one order.
    ways = {"alone": [], "cluster": ["--cluster", running.url]}
    for way, flags in ways.items():
        place = tmp_path / way
        place.mkdir()
        for link in tmp_path.glob("*"):
            if link.name not in ways:
                (place / link.name).symlink_to(link)
        if before:
            made = [*captions(tmp_path), *(CASES[before][1][:-1]), settings[-1]]
            execute(before, place, made, *flags)
        execute(name, place, settings, *flags)
    alone, on_cluster = tmp_path / "alone", tmp_path / "cluster"
    for job in jobs:
        cluster.same(pmill.Job(on_cluster / "wh", job), pmill.Job(alone / "wh", job), COUNTED)
        assert pmill.Job(alone / "wh", job).table("pairs").num_rows > 0
    for file in files:
        same_file(alone / file, on_cluster / file)
        assert (alone / file).stat().st_size > 0
    units = [log.read_text().count("unit done") for log in running.folder.glob("executor-*.log")]
    assert sum(units) > 0 or not jobs


def execute(name, place, settings, *flags):
    sets = [word for setting in settings for word in ("--set", setting)]
    warehouse = [] if name == "single-merge" else ["--warehouse", "wh"]
    cut = ["--unit-size", "20KiB"] if flags else []
    return pmill.run("run", PIPELINES / f"{name}.toml", *warehouse, *sets, "--threads", 1, *flags, *cut, cwd=place)


def same_file(one, other):
    """The same bytes; or the same rows in another order, with sums of floats that were added in another order."""
    if one.read_bytes() == other.read_bytes():
        return
    assert one.suffix in (".parquet", ".csv"), f"{one} and {other} differ"
    read = pq.read_table if one.suffix == ".parquet" else pyarrow.csv.read_csv
    tables = [read(one), read(other)]
    assert tables[0].schema == tables[1].schema
    floats = [field.name for field in tables[0].schema if pa.types.is_floating(field.type)]
    rows = [{}, {}]
    for table, found in zip(tables, rows):
        for row in table.to_pylist():
            key = tuple(value for name, value in row.items() if name not in floats)
            found.setdefault(key, []).append([row[name] for name in floats])
    assert rows[0].keys() == rows[1].keys(), one
    for key, several in rows[0].items():
        assert len(several) == len(rows[1][key]), (one, key)
        for mine, theirs in zip(sorted(several), sorted(rows[1][key])):
            for a, b in zip(mine, theirs):
                assert a == b or math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-12), (one, key, a, b)
