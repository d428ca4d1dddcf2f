#!/usr/bin/env python3
"""What a cluster costs and how it scales on one machine: CPU seconds against one process, 1, 2 and 4 executors, planning of many units.

CPU seconds are user and system time of all processes (driver, scheduler, executors), from the job's start to its end.

    tools/bench_cluster.py --pmill target/demo/pmill --rows 400000
    tools/bench_cluster.py --pmill target/demo/pmill --corpus captions/ --model figures.json    then: tools/cluster_model.py --figures
"""

import argparse
import json
import math
import os
import re
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
    parser.add_argument("--plan-units", type=int, default=10_000, help="0: none")
    parser.add_argument("--corpus", type=Path, help="files with a column TEXT; else a corpus is made")
    parser.add_argument("--model", type=Path, help="measure what tools/cluster_model.py asks for, into this file")
    arguments = parser.parse_args()
    if arguments.pmill:
        os.environ["PMILL_BIN"] = str(arguments.pmill.resolve())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        corpus = arguments.corpus or folder / "corpus"
        if not arguments.corpus:
            pmill.run("sample-corpus", "--output", corpus, "--rows", arguments.rows, "--files", arguments.files, timeout=600)
        layouts = [tuple(map(int, layout.split("x"))) for layout in arguments.layouts.split(",")]
        planned = json.loads(command_cost([*cluster.arguments(folder / "none", corpus, *FLAGS), "--dry-run", "--json"])[3])
        text, runs, whole = planned["text_bytes"], [], None
        print(f"{text / 1e6:.0f} MB of text, {planned['row_groups']} row groups", flush=True)
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
                summary = json.loads(out)
                units = summary["units"]
                scheduler = peak(running.scheduler.process.pid)
                spent = unit_seconds(running, [f"wh-{executors}-{slots}-{number}" for number in range(arguments.repeat)])
            total, wall, driver, most = (statistics.median(column) for column in zip(*costs))
            runs.append(
                {
                    **{"executors": executors, "slots": slots, "units": units, "wall": wall, "cpu": total, "driver_cpu": driver},
                    **{"text": text, "unit_size": text / units, "vocabulary": summary["terms"]},
                    **{"ranges": spent["range"][0] / arguments.repeat, "unit_seconds": spent},
                }
            )
            print(
                f"{executors} executors of {slots} slots, {units} units: {total:.2f} s of CPU ({total / whole:.2f} times), "
                f"{wall:.2f} s; driver {driver:.2f} s of CPU, {most:.0f} MiB; scheduler {scheduler:.0f} MiB",
                flush=True,
            )
        if arguments.model:
            figures = model(folder, corpus, arguments, text, runs)
            arguments.model.write_text(json.dumps(figures, indent=2) + "\n")
            print(json.dumps(figures["rates"], indent=2))
        if arguments.plan_units:
            plan(folder, arguments.plan_units)


def unit_seconds(running, warehouses):
    """By kind of unit: how many were done, and the seconds that they took, as the executors' logs have it."""
    found = {kind: [0, 0.0] for kind in ("terms", "fold", "count", "combine", "range")}
    for log in {role.log for role in running.roles if role.name.startswith("executor")}:
        for line in log.read_text().splitlines():
            match = re.search(r"unit done unit=([a-z]+)-.* plan=(\S+) .*seconds=([0-9.e-]+) ran=true", line)
            if match and any(f"/{name}/" in match[2] for name in warehouses):
                found[match[1]][0] += 1
                found[match[1]][1] += float(match[3])
    return found


class Shard:
    """A job as one shard of one thread, phase by phase: CPU seconds, and what it leaves before its reduce."""

    def __init__(self, warehouse, corpus, unit_size):
        self.warehouse = warehouse
        self.command = [*cluster.arguments(warehouse, corpus, *FLAGS, "--unit-size", unit_size, "--threads", 1)]
        self.command += ["--shard-count", 1, "--shard-index", 0]

    def cost(self, phase):
        """CPU seconds of a phase; what starting, planning and listing take is what the same costs when all is done."""
        whole = command_cost([*self.command, "--phase", phase])[0]
        return max(whole - command_cost([*self.command, "--phase", phase])[0], 1e-3)

    def manifests(self, prefix):
        plan = next(self.warehouse.glob(".pmill/j.units/plan-*"))
        return [json.loads(path.read_text()) for path in sorted((plan / "done").glob(f"{prefix}-*.json"))]

    def bytes(self, suffix):
        plan = next(self.warehouse.glob(".pmill/j.units/plan-*"))
        return sum(path.stat().st_size for path in (plan / "data").glob(f"*{suffix}"))


def model(folder, corpus, arguments, text, runs):
    """The figures of tools/cluster_model.py: rates of units in CPU seconds, sizes of what they leave, cost of a small unit."""
    shard = Shard(folder / "model", corpus, arguments.unit_size)
    terms_cost, terms, unit_terms = shard.cost("terms"), shard.manifests("terms"), shard.bytes(".terms")
    count_cost, counts = shard.cost("count"), shard.manifests("count")
    reduce_cost, units = shard.cost("reduce"), len(terms)
    tokens = sum(tally["tokens"] for unit in terms for _, tally in unit["files"])
    types = sum(number for unit in terms for _, number in unit["dictionaries"])
    pairs = sum(run["pairs"] for unit in counts for run in unit["runs"])
    run_bytes = sum(run["bytes"] for unit in counts for run in unit["runs"])
    # The same job in more units than are summed at once differs by the lists that are folded.
    many = Shard(folder / "model-fold", corpus, math.ceil(text / 80))
    many.cost("terms")
    lists, many_terms = len(many.manifests("terms")), many.bytes(".terms")
    if lists <= 64:
        sys.exit(f"{lists} row groups are too few for --model: lists of terms are folded beyond 64; give --files 80 or more")
    folded_cost = many.cost("count")
    folded = many.bytes(".terms") - many_terms
    rates = {
        "terms_rate": text / terms_cost,
        "fold_rate": (many_terms + folded - unit_terms) / max(folded_cost - count_cost, 0.05),
        "reduce_rate": run_bytes / reduce_cost,
        "tokens_share": shard.bytes(".tokens") / text,
        "token_bytes": text / tokens,
        "term_bytes": unit_terms / types,
        "terms_scale": types / units / (tokens / units) ** 0.67,
        "pairs_scale": pairs / units / (tokens / units) ** 0.92,
        "pair_bytes": run_bytes / pairs,
    }
    rates["count_rate"] = text / max(count_cost - unit_terms / rates["fold_rate"], 1e-3)
    print(f"CPU of units: terms {terms_cost:.2f} s, vocabulary and counts {count_cost:.2f} s, reduce {reduce_cost:.2f} s", flush=True)
    print(f"with {lists} lists of terms, {many_terms / 1e6:.1f} MB, in place of {units}, {unit_terms / 1e6:.1f} MB: {folded_cost:.2f} s", flush=True)
    # Units so small that nothing is left of their work but what every unit costs.
    small = folder / "small"
    pmill.run("sample-corpus", "--output", small, "--rows", 3000, "--files", 100)
    with cluster.Cluster(folder / "c-small", executors=1, slots=1) as running:
        roles = [role.process.pid for role in running.roles]
        before = sum(map(cpu, roles))
        command = [*cluster.arguments(folder / "wh-small", small, *FLAGS, "--unit-size", "1"), "--cluster", running.url]
        driver, wall, _, _ = command_cost(command)
        number = sum(count for count, _ in unit_seconds(running, ["wh-small"]).values())
        rates["unit_overhead"] = (sum(map(cpu, roles)) - before) / number
        rates["submit"] = driver / number
        print(f"{number} small units: {wall:.1f} s, {wall / number * 1000:.0f} ms each on one slot; driver {driver:.1f} s of CPU", flush=True)
    rates["fixed"] = max(runs[0]["driver_cpu"] - 2 * units * rates["submit"], 0.0) if runs else 0.5
    return {"rates": rates, "runs": runs, "disk": disk(folder), "cores": os.cpu_count()}


def disk(folder):
    """Bytes a second that are written and synced."""
    block, began = os.urandom(1 << 24), time.monotonic()
    with (folder / "disk").open("wb") as file:
        for _ in range(16):
            file.write(block)
        os.fsync(file.fileno())
    return 16 * len(block) / (time.monotonic() - began)


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
