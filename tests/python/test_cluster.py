"""Units on shards and on a cluster: the same bytes as in one process, whoever dies."""

import signal

import pytest

import cluster
import pmill

FLAGS = ["--vocab-size", "1500", "--context", "window", "--window", "5"]
CUT = ["--unit-size", "300KiB"]
TABLES = ("vocab", "pairs")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("units") / "corpus"
    pmill.run("sample-corpus", "--output", folder, "--rows", 60_000, "--files", 16)
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    return pmill.count(tmp_path_factory.mktemp("undisturbed"), "j", corpus, "TEXT", *FLAGS)


def same(job, undisturbed):
    for table in TABLES:
        assert job.content(table) == undisturbed.content(table), table
    assert job.table("sources").drop_columns(["batch"]).equals(undisturbed.table("sources").drop_columns(["batch"]))
    assert job.facts() == undisturbed.facts()
    assert job.orphans() == []
    assert not (job.warehouse / ".pmill" / "j.units").exists()


def shard(warehouse, corpus, index, count, *flags, start=pmill.start):
    return start(
        *cluster.arguments(warehouse, corpus, *FLAGS, *CUT),
        *("--shard-index", index, "--shard-count", count, "--threads", 1, *flags),
    )


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_shards_gives_the_tables_of_one_process(count, corpus, undisturbed, warehouse):
    shards = [shard(warehouse, corpus, index, count) for index in range(count)]
    assert [process.wait(timeout=60) for process in shards] == [0] * count
    summary = pmill.run("commit", "--warehouse", warehouse, "--name", "j", "--json").json
    assert summary["units"] > 8
    same(pmill.Job(warehouse, "j"), undisturbed)
    again = pmill.run("commit", "--warehouse", warehouse, "--name", "j", "--json").json
    assert again["status"] == "unchanged"
    late = shard(warehouse, corpus, 0, count, "--json", start=pmill.run)
    assert late.json["status"] == "unchanged"


def test_phases_run_one_by_one_without_waiting(corpus, undisturbed, warehouse):
    for phase in ("terms", "count", "reduce"):
        early = pmill.run("commit", "--warehouse", warehouse, "--name", "j", code=None)
        assert early.code in (2, 75), early
        for index in (1, 0):
            flags = ("--phase", phase, "--take-over-after", 1)
            shard(warehouse, corpus, index, 2, *flags, start=pmill.run)
    pmill.run("commit", "--warehouse", warehouse, "--name", "j")
    same(pmill.Job(warehouse, "j"), undisturbed)


def test_a_shard_that_died_is_run_again_or_its_units_are_taken_over(corpus, undisturbed, warehouse):
    died = shard(warehouse, corpus, 1, 3, "--take-over-after", 1)
    assert cluster.wait_for(lambda: cluster.manifests(warehouse, "terms-"))
    died.kill()
    died.wait()
    # Shard 2 never comes at all.
    shard(warehouse, corpus, 0, 3, "--take-over-after", 1, start=pmill.run)
    pmill.run("commit", "--warehouse", warehouse, "--name", "j")
    same(pmill.Job(warehouse, "j"), undisturbed)


def test_a_shard_knows_its_number_from_kubernetes_or_slurm(corpus, warehouse):
    command = [*cluster.arguments(warehouse, corpus, *FLAGS), "--shard-count", 2, "--phase", "terms", "--json"]
    result = pmill.run(*command, env=pmill.environment(JOB_COMPLETION_INDEX=0))
    assert result.json["shard"] == 0
    env = pmill.environment(SLURM_ARRAY_TASK_ID=4, SLURM_ARRAY_TASK_MIN=3)
    assert pmill.run(*command, env=env).json["shard"] == 1
    assert "JOB_COMPLETION_INDEX" in pmill.run(*command, code=2).err


def test_a_bad_file_is_left_out_everywhere_or_ends_the_job(corpus, tmp_path):
    folder = tmp_path / "bad"
    for number in range(4):
        texts = [f"red fox {row % 97} and hen {row % 89 + number}" for row in range(20_000)]
        pmill.write(folder / f"{number}.parquet", texts, compression="none", use_dictionary=False)
    bad = folder / "2.parquet"
    content = bytearray(bad.read_bytes())
    content[4:40_000] = bytes(39_996)
    bad.write_bytes(content)
    skip = [*FLAGS, "--on-bad-file", "skip"]
    whole = pmill.count(tmp_path / "one", "j", folder, "TEXT", *skip)
    assert whole.summary["skipped"] == 1
    warehouse = tmp_path / "shards"
    command = [*cluster.arguments(warehouse, folder, *skip), *CUT, "--shard-count", 2, "--take-over-after", 1]
    pmill.run(*command, "--shard-index", 0)
    pmill.run("commit", "--warehouse", warehouse, "--name", "j")
    same(pmill.Job(warehouse, "j"), whole)
    command = cluster.arguments(tmp_path / "fail", folder, *FLAGS)
    message = pmill.run(*command, *CUT, "--shard-count", 1, "--shard-index", 0, code=2).err
    assert bad.name in message


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with cluster.Cluster(tmp_path_factory.mktemp("cluster"), executors=2, slots=1) as running:
        yield running


def count(running, warehouse, corpus):
    return cluster.drive(running, warehouse, corpus, *FLAGS, *CUT)


def finished(driver, warehouse, undisturbed):
    code, summary, err = cluster.finish(driver)
    assert code == 0, err
    assert summary["status"] == "counted"
    same(pmill.Job(warehouse, "j"), undisturbed)


@pytest.mark.parametrize("phase", ["terms-", "count-", "vocabulary", "runs"])
def test_an_executor_killed_in_any_phase_changes_nothing(phase, running, corpus, undisturbed, warehouse):
    driver = count(running, warehouse, corpus)
    assert cluster.wait_for(lambda: cluster.manifests(warehouse, phase) or driver.poll() is not None)
    running.executors[0].kill()
    running.executors[0] = running.start_executor()
    finished(driver, warehouse, undisturbed)
    running.executors[0].ready()


def test_a_driver_that_was_killed_goes_on_from_its_manifests(running, corpus, undisturbed, warehouse):
    driver = count(running, warehouse, corpus)
    assert cluster.wait_for(lambda: len(cluster.manifests(warehouse, "terms-")) >= 3)
    driver.kill()
    driver.wait()
    kept = {path.name for path in cluster.manifests(warehouse)}
    assert kept
    finished(count(running, warehouse, corpus), warehouse, undisturbed)


def test_of_two_drivers_the_newer_wins(running, corpus, undisturbed, warehouse):
    older = count(running, warehouse, corpus)
    assert cluster.wait_for(lambda: cluster.manifests(warehouse, "terms-"))
    newer = count(running, warehouse, corpus)
    code, _, err = cluster.finish(older)
    # It may also have ended just before the newer one came.
    assert code in (0, 75), err
    assert code == 0 or "started later has taken it over" in err
    code, summary, err = cluster.finish(newer)
    assert code == 0, err
    same(pmill.Job(warehouse, "j"), undisturbed)


def test_a_scheduler_that_was_killed_and_started_again_is_found(running, corpus, undisturbed, warehouse):
    driver = count(running, warehouse, corpus)
    assert cluster.wait_for(lambda: cluster.manifests(warehouse, "terms-"))
    running.scheduler.kill()
    running.start_scheduler()
    finished(driver, warehouse, undisturbed)


def test_ctrl_c_ends_the_job_on_the_cluster_and_a_rerun_goes_on(running, corpus, undisturbed, warehouse):
    driver = count(running, warehouse, corpus)
    assert cluster.wait_for(lambda: cluster.manifests(warehouse, "terms-"))
    driver.send_signal(signal.SIGINT)
    code, _, err = cluster.finish(driver, wait=20)
    assert (code, err) == (75, "pmill: interrupted; nothing was committed\n")
    finished(count(running, warehouse, corpus), warehouse, undisturbed)


def test_jobs_are_listed_and_cancelled(running, corpus, warehouse):
    driver = count(running, warehouse, corpus)
    assert cluster.wait_for(lambda: cluster.manifests(warehouse, "terms-"))
    listed = pmill.run("jobs", "--warehouse", warehouse, "--cluster", running.url, "--json").json
    assert [job["job"] for job in listed["jobs"]] == ["j"]
    assert listed["executors"]
    pmill.run("jobs", "--warehouse", warehouse, "--cancel", "j")
    code, _, err = cluster.finish(driver, wait=20)
    assert code == 75 and "it was cancelled" in err, err


def test_sigterm_drains_an_executor(running, corpus, undisturbed, warehouse):
    driver = count(running, warehouse, corpus)
    assert cluster.wait_for(lambda: cluster.manifests(warehouse, "terms-"))
    drained = running.executors[1]
    assert drained.terminate() == 0
    running.executors[1] = running.start_executor()
    finished(driver, warehouse, undisturbed)
    assert "executor ends" in drained.log.read_text() and "panicked" not in drained.log.read_text()


def test_what_is_wrong_is_said(running, corpus, warehouse, tmp_path):
    command = cluster.arguments(warehouse, corpus, *FLAGS)
    message = pmill.run(*command, "--cluster", "http://127.0.0.1:1", code=75).err
    assert "the scheduler at http://127.0.0.1:1 is not there" in message
    assert "write http://HOST:PORT" in pmill.run(*command, "--cluster", "localhost", code=2).err
    assert "can be reached from other machines" in pmill.run("scheduler", "--listen", "0.0.0.0:0", code=2).err
    bad = tmp_path / "bad"
    bad.mkdir()
    path = pmill.write(bad / "x.parquet", [f"red fox {i}" * 9 for i in range(40_000)])
    content = bytearray(path.read_bytes())
    content[100:20_000] = bytes(19_900)
    path.write_bytes(content)
    code, _, err = cluster.finish(cluster.drive(running, warehouse, bad, *FLAGS))
    assert code == 2 and str(path) in err, err


def test_an_executor_uses_allowed_folders_only_and_a_token_keeps_strangers_out(corpus, tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123\n")
    with cluster.Cluster(
        tmp_path / "c",
        executors=1,
        scheduler_flags=("--token-file", token),
        executor_flags=("--token-file", token, "--allow", tmp_path / "elsewhere"),
    ) as closed:
        command = [*cluster.arguments(tmp_path / "wh", corpus, *FLAGS), "--cluster", closed.url]
        assert "token is missing or wrong" in pmill.run(*command, code=2).err
        assert "token is missing or wrong" in pmill.run("executor", "--scheduler", closed.url, code=2).err
        message = pmill.run(*command, "--token-file", token, code=75).err
        assert "may not use" in message and "--allow" in message
