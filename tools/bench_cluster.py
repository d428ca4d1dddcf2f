#!/usr/bin/env python3
"""What a cluster costs and how it scales on one machine: CPU seconds against one process, 1, 2 and 4 executors, planning of many units.

CPU seconds are user and system time of all processes (driver, scheduler, executors), from the job's start to its end.

    tools/bench_cluster.py --pmill target/demo/pmill --rows 400000
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
import cluster  # noqa: E402
import pmill  # noqa: E402

FLAGS = ["--vocab-size", "20000", "--context", "window", "--window", "10"]
TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pid):
    """CPU seconds of a process that lives."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak(pid):
    """Most memory that a process held, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def command_cost(command):
    """(CPU seconds, wall seconds, most MiB, output) of a command."""
    began = time.monotonic()
    process = subprocess.Popen(
        [pmill.binary(), *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=pmill.environment()
    )
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return usage.ru_utime + usage.ru_stime, time.monotonic() - began, usage.ru_maxrss / 1024, out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pmill", type=Path)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--unit-size", default="4MiB")
    parser.add_argument("--memory", default="256MiB", help="of the process that the cluster is compared with")
    parser.add_argument("--layouts", default="1x2,1x1,2x1,4x1", help="executors x slots of each")
    parser.add_argument("--plan-units", type=int, default=10_000)
    arguments = parser.parse_args()
    if arguments.pmill:
        os.environ["PMILL_BIN"] = str(arguments.pmill.resolve())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        corpus = folder / "corpus"
        pmill.run("sample-corpus", "--output", corpus, "--rows", arguments.rows, "--files", arguments.files, timeout=600)
        layouts = [tuple(map(int, layout.split("x"))) for layout in arguments.layouts.split(",")]
        result, whole = {}, None
        for memory in (None, arguments.memory):
            alone = []
            for number in range(arguments.repeat):
                command = cluster.arguments(folder / f"one-{memory}-{number}", corpus, *FLAGS, "--threads", 2, "--json")
                alone.append(command_cost([*command, *(["--memory-limit", memory] if memory else [])]))
            whole = statistics.median(run[0] for run in alone)
            units = json.loads(alone[0][3])["units"]
            print(
                f"one process, 2 threads, {memory or 'default memory'}, {units} units: {whole:.2f} s of CPU, "
                f"{statistics.median(run[1] for run in alone):.2f} s, {max(run[2] for run in alone):.0f} MiB",
                flush=True,
            )
        for executors, slots in layouts:
            with cluster.Cluster(folder / f"c-{executors}-{slots}", executors=executors, slots=slots) as running:
                costs = []
                for number in range(arguments.repeat):
                    roles = [role.process.pid for role in running.roles]
                    before = {pid: cpu(pid) for pid in roles}
                    warehouse = folder / f"wh-{executors}-{slots}-{number}"
                    command = [*cluster.arguments(warehouse, corpus, *FLAGS, "--unit-size", arguments.unit_size)]
                    driver, wall, most, out = command_cost([*command, "--cluster", running.url, "--json"])
                    costs.append((driver + sum(cpu(pid) - before[pid] for pid in roles), wall, driver, most))
                units = json.loads(out)["units"]
                scheduler = peak(running.scheduler.process.pid)
            total, wall, driver, most = (statistics.median(column) for column in zip(*costs))
            result[f"{executors}x{slots}"] = {"cpu": total, "wall": wall, "driver_cpu": driver, "units": units}
            print(
                f"{executors} executors of {slots} slots, {units} units: {total:.2f} s of CPU ({total / whole:.2f} times), "
                f"{wall:.2f} s; driver {driver:.2f} s of CPU, {most:.0f} MiB; scheduler {scheduler:.0f} MiB",
                flush=True,
            )
        plan(folder, arguments.plan_units)


def plan(folder, units):
    """How long it takes, and how much memory, to plan so many units."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    corpus = folder / "many"
    corpus.mkdir()
    table = pa.table({"TEXT": [f"red fox {row}" for row in range(100)]})
    for number in range(units // 100):
        pq.write_table(table, corpus / f"{number:05}.parquet", row_group_size=1)
    with cluster.Cluster(folder / "planner", executors=0) as running:
        command = [*cluster.arguments(folder / "planned", corpus, "--unit-size", "1"), "--cluster", running.url]
        began = time.monotonic()
        driver = subprocess.Popen(
            [pmill.binary(), *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=pmill.environment()
        )
        glob = ".pmill/j.units/plan-*/plan.json"
        assert cluster.wait_for(lambda: list((folder / "planned").glob(glob)), seconds=120)
        seconds, most = time.monotonic() - began, peak(driver.pid)
        planned = json.loads(next((folder / "planned").glob(glob)).read_text())["units"]
        driver.kill()
        driver.wait()
    print(f"{planned} units planned in {seconds:.2f} s, {most:.0f} MiB at most")


if __name__ == "__main__":
    main()
