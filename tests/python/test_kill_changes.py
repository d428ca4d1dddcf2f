"""A batch, a retraction, a merge and a compaction, killed at every step of them: before or after, never between, and nothing twice.

`make soak` does the same at a thousand points and random moments.
"""

import random

import kills
import pmill
import pytest


@pytest.mark.parametrize("name", kills.NAMES)
def test_a_change_killed_at_any_step_ends_as_if_it_had_not_been(name, tmp_path):
    (change,) = kills.changes(tmp_path, [name])
    if not change.points:
        pytest.skip("this build has no kill points: they are in debug builds")
    committed = ("vocab is committed", "outside is committed", "sources is committed", "pairs is committed")
    for point in ("compacted pairs are committed",) if name == "compact" else committed:
        assert point in change.points
    for number in range(1, len(change.points) + 1):
        change.kill_at(number)


def test_a_change_killed_by_the_system_ends_as_if_it_had_not_been(tmp_path):
    (change,) = kills.changes(tmp_path, ["recount"])
    moments = random.Random(5)
    killed = 0
    for _ in range(40):
        killed += change.kill_after(moments.uniform(0.02, 1.1) * change.seconds)
        if killed == 5:
            return
    pytest.fail(f"killed {killed} times in 40 tries")


def test_two_batches_at_once_both_land(tmp_path, warehouse):
    first, second = (pmill.write(tmp_path / f"{n}.parquet", kills.texts(n, 3000)) for n in (1, 2))
    flags = ["--vocab-size", "25"]
    pmill.count(warehouse, "j", pmill.write(tmp_path / "0.parquet", kills.texts(0, 50)), "TEXT", *flags)
    refused = 0

    def command(path):
        return ["count", "--warehouse", warehouse, "--name", "j", "--input", path, "--text", "TEXT", *flags]

    for number in range(3):
        processes = {path: pmill.start(*command(path)) for path in (first, second)}
        codes = {path: process.wait(timeout=60) for path, process in processes.items()}
        assert set(codes.values()) <= {0, 75} and 0 in codes.values()
        for path, code in codes.items():
            if code == 75:
                refused += 1
                # What a scheduler does with 75: the same command again.
                pmill.run(*command(path))
        job = pmill.Job(warehouse, "j")
        counted = [row for row in job.table("sources").to_pylist() if row["status"] == "counted"]
        assert len(counted) == 3 and job.facts()["rows"] == 6050 == sum(row["rows"] for row in counted)
        assert job.orphans() == []
        seen = kills.visible(job)
        if number == 0:
            after = seen
        assert {table: seen[table] for table in kills.TABLES} == {table: after[table] for table in kills.TABLES}
        pmill.run("retract", "--warehouse", warehouse, "--name", "j", "--input", first, second)
    assert refused > 0, "the two never met"
