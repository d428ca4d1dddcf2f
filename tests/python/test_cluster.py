"""A cluster on loopback: the bytes of one process, whoever dies, and whenever."""

import os
import shutil
import signal
import subprocess

import pytest

import certificates
import cluster
import pmill

FLAGS = ["--vocab-size", "5000", "--context", "window", "--window", "5"]
CUT = ["--unit-size", "300KiB"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster") / "corpus"
    pmill.run("sample-corpus", "--output", folder, "--rows", 30_000, "--files", 8)
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    return pmill.count(tmp_path_factory.mktemp("undisturbed"), "j", corpus, "TEXT", *FLAGS)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with cluster.Cluster(tmp_path_factory.mktemp("roles"), executors=2, slots=1) as running:
        yield running


def count(running, warehouse, corpus, *flags):
    return cluster.drive(running.url, warehouse, corpus, *FLAGS, *CUT, *flags)


def finished(driver, warehouse, undisturbed, status=("counted",)):
    code, summary, err = cluster.finish(driver)
    assert code == 0, err
    assert summary["status"] in status
    cluster.same(pmill.Job(warehouse, "j"), undisturbed)
    return summary


@pytest.mark.parametrize("phase", ["terms-", "vocabulary", "count-", "runs", "range-"])
def test_an_executor_killed_in_any_phase_changes_nothing(phase, running, corpus, undisturbed, warehouse):
    driver = count(running, warehouse, corpus)
    cluster.reach(driver, warehouse, phase)
    running.executors[0].kill()
    running.executors[0] = running.start_executor()
    finished(driver, warehouse, undisturbed)
    running.executors[0].ready()


def test_an_executor_that_hangs_is_worked_around(running, corpus, undisturbed, warehouse):
    driver = count(running, warehouse, corpus)
    cluster.reach(driver, warehouse, "terms-")
    running.executors[0].signal(signal.SIGSTOP)
    finished(driver, warehouse, undisturbed)
    running.executors[0].signal(signal.SIGCONT)


def test_a_driver_that_was_killed_goes_on_from_its_manifests(running, corpus, undisturbed, warehouse):
    driver = count(running, warehouse, corpus)
    ended = not cluster.reach(driver, warehouse, "terms-", count=3)
    driver.kill()
    driver.wait()
    assert ended or cluster.manifests(warehouse)
    finished(count(running, warehouse, corpus), warehouse, undisturbed, status=("counted", "unchanged"))


def test_of_two_drivers_the_newer_wins(running, corpus, undisturbed, warehouse):
    older = count(running, warehouse, corpus)
    cluster.reach(older, warehouse, "terms-")
    newer = count(running, warehouse, corpus)
    code, _, err = cluster.finish(older)
    # It may also have ended just before the newer one came.
    assert code in (0, 75), err
    assert code == 0 or "started later has taken it over" in err
    finished(newer, warehouse, undisturbed, status=("counted", "unchanged"))


def test_a_scheduler_that_was_killed_and_started_again_is_found(running, corpus, undisturbed, warehouse):
    driver = count(running, warehouse, corpus)
    cluster.reach(driver, warehouse, "terms-")
    running.scheduler.kill()
    running.start_scheduler()
    finished(driver, warehouse, undisturbed)


@pytest.fixture
def held(running):
    """Executors that do nothing while the test looks."""
    for executor in running.executors:
        executor.signal(signal.SIGSTOP)
    yield
    for executor in running.executors:
        executor.signal(signal.SIGCONT)


def planned(driver, warehouse):
    assert cluster.wait_for(lambda: list(warehouse.glob(".pmill/j.units/plan-*/plan.json")))
    assert driver.poll() is None


def test_ctrl_c_ends_the_job_on_the_cluster(held, running, corpus, warehouse):
    driver = count(running, warehouse, corpus)
    planned(driver, warehouse)
    driver.send_signal(signal.SIGINT)
    code, _, err = cluster.finish(driver, wait=60)
    assert (code, err) == (75, "pmill: interrupted; nothing was committed\n")


def test_jobs_are_listed_and_cancelled_and_a_rerun_goes_on(held, running, corpus, undisturbed, warehouse):
    driver = count(running, warehouse, corpus)
    planned(driver, warehouse)
    listed = pmill.run("jobs", "--warehouse", warehouse, "--cluster", running.url, "--json").json
    assert [(job["job"], job["phase"]) for job in listed["jobs"]] == [("j", "terms")]
    pmill.run("jobs", "--warehouse", warehouse, "--cancel", "j")
    code, _, err = cluster.finish(driver, wait=60)
    assert code == 75 and "it was cancelled" in err, err
    for executor in running.executors:
        executor.signal(signal.SIGCONT)
    finished(count(running, warehouse, corpus), warehouse, undisturbed)


def test_sigterm_drains_an_executor(running, corpus, undisturbed, warehouse):
    driver = count(running, warehouse, corpus)
    cluster.reach(driver, warehouse, "terms-")
    drained = running.executors[1]
    assert drained.terminate() == 0
    running.executors[1] = running.start_executor()
    finished(driver, warehouse, undisturbed)
    assert "executor ends" in drained.log.read_text() and "panicked" not in drained.log.read_text()


def test_a_batch_is_added_to_a_job_and_a_pipeline_counts_on_the_cluster(running, corpus, warehouse, tmp_path):
    files = sorted(corpus.glob("*.parquet"))
    pmill.count(warehouse, "j", files[:3], "TEXT", *FLAGS)
    shutil.copytree(warehouse, tmp_path / "one")
    whole = pmill.count(tmp_path / "one", "j", files, "TEXT", *FLAGS)
    summary = finished(count(running, warehouse, corpus), warehouse, whole)
    assert summary["files"] == 5
    again = finished(count(running, warehouse, corpus), warehouse, whole, status=("unchanged",))
    assert again["version"] == summary["version"]
    pipeline = tmp_path / "p.toml"
    pipeline.write_text(
        f"""
        name = "j"
        input = {{ paths = ["{files[0]}"], text = "upper(\\"TEXT\\")", where = "\\"SAMPLE_ID\\" % 2 = 0" }}
        vocabulary = {{ size = 300 }}
        score = {{ measures = ["pmi"] }}
        """
    )
    made = [pmill.run("run", pipeline, "--warehouse", tmp_path / "a", "--json").json]
    made.append(pmill.run("run", pipeline, "--warehouse", tmp_path / "b", "--cluster", running.url, "--json").json)
    assert made[0]["score"]["pairs"] == made[1]["score"]["pairs"] > 0
    cluster.same(pmill.Job(tmp_path / "b", "j"), pmill.Job(tmp_path / "a", "j"), ("vocab", "pairs", "outside", "pmi"))


def test_scores_are_those_of_one_process_whoever_dies(running, undisturbed, tmp_path):
    flags = ["--min-pair-count", 2, "--measure", "pmi,npmi"]
    shutil.copytree(undisturbed.warehouse, tmp_path / "one")
    shutil.copytree(undisturbed.warehouse, tmp_path / "wh")
    one = pmill.Job(tmp_path / "one", "j")
    alone = pmill.score(one, *flags)
    command = ["score", "--warehouse", tmp_path / "wh", "--name", "j", *flags, "--cluster", running.url, "--json"]
    driver = subprocess.Popen([pmill.binary(), *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=pmill.environment())
    folder = tmp_path / "wh" / ".pmill" / "j.scores"
    assert cluster.wait_for(lambda: driver.poll() is not None or list(folder.glob("plan-*/done/*.json")))
    running.executors[0].kill()
    running.executors[0] = running.start_executor()
    code, summary, err = cluster.finish(driver)
    assert code == 0, err
    assert (summary["status"], summary["pairs"]) == ("counted", alone["pairs"])
    job = pmill.Job(tmp_path / "wh", "j")
    assert job.content("pmi") == one.content("pmi")
    assert job.orphans() == [] and not folder.exists()
    assert pmill.run(*command).json["status"] == "unchanged"
    running.executors[0].ready()


def test_an_executor_without_room_gives_its_units_to_others(held, running, corpus, undisturbed, warehouse, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=40", "pmill-test", place]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    full = running.start_executor(scratch=place)
    try:
        full.ready()
        for number in range(100):
            try:
                (place / str(number)).write_bytes(b"")
            except OSError:
                break
        driver = count(running, warehouse, corpus)
        # The others are held until it has failed.
        assert cluster.wait_for(lambda: "No space left on device" in full.log.read_text(), seconds=60)
        for executor in running.executors:
            executor.signal(signal.SIGCONT)
        finished(driver, warehouse, undisturbed)
    finally:
        full.kill()
        subprocess.run(["umount", "-l", place], check=True)


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
    code, _, err = cluster.finish(cluster.drive(running.url, warehouse, bad, *FLAGS))
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
        message = pmill.run(*command, "--token-file", token, code=2).err
        assert "may not use" in message and "--allow" in message
        # Nothing of how the engine wraps a reason is left around it.
        assert "Execution(" not in message and "\"))" not in message, message


def test_tls_with_certificates_of_both_sides_between_all_roles(corpus, tmp_path):
    keys = certificates.make(tmp_path / "keys", "scheduler", "worker")
    strangers = certificates.make(tmp_path / "strangers", "worker")
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123\n")

    def client(keys, name="worker"):
        return ["--tls-ca", keys / "authority.pem", "--tls-client-cert", keys / f"{name}.pem", "--tls-client-key", keys / f"{name}.key"]

    small = min(corpus.glob("*.parquet"))
    server = ["--tls-cert", keys / "scheduler.pem", "--tls-key", keys / "scheduler.key"]
    own = [*client(keys), "--token-file", token]
    with cluster.Cluster(
        tmp_path / "c",
        executors=1,
        scheme="https",
        scheduler_flags=(*server, "--tls-client-ca", keys / "authority.pem", "--token-file", token),
        executor_flags=own,
    ) as closed:
        command = [*cluster.arguments(tmp_path / "wh", small, *FLAGS), "--cluster", closed.url]
        pmill.run(*command, *own)
        undisturbed = pmill.count(tmp_path / "one", "j", small, "TEXT", *FLAGS)
        cluster.same(pmill.Job(tmp_path / "wh", "j"), undisturbed)
        command = [*cluster.arguments(tmp_path / "no", small, *FLAGS), "--cluster"]
        for flags, words in [
            ([], "give --tls-ca"),
            (client(keys), "token is missing or wrong"),
            ([*client(strangers), "--token-file", token], "certificate"),
        ]:
            assert words in pmill.run(*command, closed.url, *flags, code=2).err
        # Who has no certificate is told so, or just finds the door closed.
        bare = pmill.run(*command, closed.url, "--tls-ca", keys / "authority.pem", "--token-file", token, code=None)
        assert (bare.code == 2 and "CertificateRequired" in bare.err) or (bare.code == 75 and "--tls-client-cert" in bare.err)
        mixed = client(strangers)
        mixed[1] = keys / "authority.pem"
        stranger = ("executor", "--scheduler", closed.url, *mixed, "--token-file", token, "--patience", 1)
        assert pmill.run(*stranger, code=None).code in (2, 75)
        plain = f"http://{closed.listen}"
        assert "is not there" in pmill.run(*command, plain, "--token-file", token, code=75).err
        assert not (tmp_path / "no" / "j").exists()
