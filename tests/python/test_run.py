"""`pmill run`: pipeline files, --set, --dry-run, refused keys."""

import pytest

import pmill

QUICKSTART = pmill.REPO / "pipelines" / "quickstart.toml"
CAPTIONS = pmill.REPO / "pipelines" / "captions.toml"


def flags(corpus, *more):
    return ["--set", f'input.paths=["{corpus}"]', *more]


def test_the_quickstart_pipeline_shows_the_planted_pairs_first(sample, warehouse):
    result = pmill.run(
        "run", QUICKSTART, "--warehouse", warehouse, *flags(sample, "--set", "score.min_pair_count=10"), "--json"
    )
    assert result.json["count"]["status"] == result.json["score"]["status"] == "counted"
    top = pmill.sql(warehouse, 'SELECT "left", "right" FROM quickstart.pmi ORDER BY npmi DESC LIMIT 10')
    planted = pmill.run("sample-corpus", "--output", warehouse.parent / "tiny", "--rows", 10, "--json").json["planted"]
    assert {tuple(sorted(row.values())) for row in top} == {tuple(sorted(pair)) for pair in planted}


def test_a_pipeline_gives_what_its_commands_give(sample, warehouse):
    pmill.run("run", QUICKSTART, "--warehouse", warehouse, *flags(sample))
    job = pmill.count(warehouse, "by_hand", sample, "TEXT", "--vocab-size", 20000, "--min-count", 5)
    pmill.score(job, "--min-pair-count", 20)
    for table in ("vocab", "pairs", "pmi"):
        assert pmill.Job(warehouse, "quickstart").content(table) == job.content(table), table


def test_a_second_run_changes_nothing(sample, warehouse):
    pmill.run("run", QUICKSTART, "--warehouse", warehouse, *flags(sample))
    before = {path: path.read_bytes() for path in warehouse.rglob("*") if path.is_file()}
    again = pmill.run("run", QUICKSTART, "--warehouse", warehouse, *flags(sample), "--json").json
    assert again["count"]["status"] == again["score"]["status"] == "unchanged"
    assert {path: path.read_bytes() for path in warehouse.rglob("*") if path.is_file()} == before


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(sample, warehouse, wordnet):
    for pipeline in (QUICKSTART, CAPTIONS):
        more = flags(sample) + (["--set", f"features.lemma=wordnet:{wordnet}"] if pipeline == CAPTIONS else [])
        plan = pmill.run("run", pipeline, "--warehouse", warehouse, *more, "--dry-run", "--json").json
        assert [file for file, _ in plan["inputs"]] == [str(path) for path in sorted(sample.iterdir())]
        assert [size for _, size in plan["inputs"]] == [path.stat().st_size for path in sorted(sample.iterdir())]
        assert plan["rows"] == 20000 and plan["units"] == 1
        assert len(plan["outputs"]) == 3
        said = pmill.run("run", pipeline, "--warehouse", warehouse, *more, "--dry-run")
        assert said.raw == b""
        for word in ("nothing is written", "part-00000.parquet", "20,000 rows", "unit(s)", "then: score by pmi"):
            assert word in said.err
        assert pmill.nothing_left(warehouse) == []


def test_a_dry_run_names_the_files_that_would_be_skipped(data, warehouse):
    folder = data / "parquet-variety" / "bad-derived"
    plan = pmill.run(
        "count", "--warehouse", warehouse, "--name", "j", "--input", folder, "--text", "TEXT", "--on-bad-file", "skip",
        "--dry-run", "--json",
    ).json  # fmt: skip
    assert len(plan["skipped"]) == 8 and len(plan["inputs"]) == 2
    assert pmill.nothing_left(warehouse) == []


def test_flags_beat_set_and_set_beats_the_file(sample, tmp_path):
    pipeline = tmp_path / "p.toml"
    pipeline.write_text(
        f'name = "a"\nwarehouse = "{tmp_path}/file"\n[input]\npaths = ["{sample}"]\ntext = "TEXT"\n'
        "[vocabulary]\nsize = 10\nmin_count = 2\n[limits]\nmemory_limit = '512MiB'\nthreads = 1\n"
    )
    plan = pmill.run("run", pipeline, "--dry-run", "--json").json
    assert plan["settings"]["vocabulary"] == {"size": 10, "min_count": 2}
    assert (plan["threads"], plan["memory_limit"]) == (1, 512 << 20)
    assert plan["outputs"][0].startswith(f"{tmp_path}/file/a/")
    plan = pmill.run(
        "run", pipeline, "--dry-run", "--json", "--set", "vocabulary.size=20", "--set", "name=b",
        "--set", f"warehouse={tmp_path}/set", "--set", "limits.threads=4", "--warehouse", f"{tmp_path}/flag",
        "--threads", "2",
    ).json  # fmt: skip
    assert plan["settings"]["vocabulary"] == {"size": 20, "min_count": 2}
    assert plan["threads"] == 2
    assert plan["outputs"][0].startswith(f"{tmp_path}/flag/b/")


def test_exports_are_written_whole(sample, warehouse, tmp_path):
    pipeline = tmp_path / "p.toml"
    pipeline.write_text(
        f'name = "e"\n[input]\npaths = ["{sample}"]\ntext = "TEXT"\n[vocabulary]\nsize = 50\n'
        f'[score]\nmeasures = ["npmi"]\n[[export]]\nsql = "SELECT * FROM e.pmi ORDER BY npmi DESC LIMIT 5"\n'
        f'output = "{tmp_path}/top.csv"\nformat = "csv"\n'
    )
    pmill.run("run", pipeline, "--warehouse", warehouse)
    assert len((tmp_path / "top.csv").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    "text, settings, words",
    [
        ("[context]\nwindw = 5\n", [], ["line 2", "unknown field `windw`", "did you mean `window`?"]),
        ("naem = 'x'\n", [], ["unknown field `naem`", "did you mean `name`?"]),
        ("[score]\nmeasure = ['pmi']\n", [], ["unknown field `measure`", "did you mean `measures`?"]),
        ("[vocabulary]\nsize = 'many'\n", [], ["line 2", "invalid type"]),
        ("[context]\nkind = 'windows'\n", [], ["`windows`", "document", "window"]),
        ("[features]\ntokenizer = 'word'\n", [], ["unknown tokenizer `word`"]),
        ("name = \n", [], ["line 1"]),
        ("", ["vocabulary.sice=5"], ["did you mean `size`?"]),
        ("", ["vocabulary"], ["expected key=value"]),
        ("", ["name=a"], ["`warehouse` is not set"]),
        ("", ["name=a", "warehouse=w"], ["`input.text` is not set"]),
        ("[input]\ntext = 't'\n", ["name=a", "warehouse=w"], ["`input.paths` is not set"]),
        ("", [], ["`name` is not set"]),
    ],
)
def test_a_pipeline_that_is_wrong_is_refused_and_says_where(text, settings, words, tmp_path):
    pipeline = tmp_path / "p.toml"
    pipeline.write_text(text)
    arguments = [part for setting in settings for part in ("--set", setting)]
    result = pmill.run("run", pipeline, *arguments, code=2, cwd=tmp_path)
    assert str(pipeline) in result.err
    for word in words:
        assert word in result.err, result
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.toml"]


def test_a_pipeline_that_is_not_there_is_named(tmp_path):
    assert "missing.toml" in pmill.run("run", tmp_path / "missing.toml", code=2).err
