#!/usr/bin/env python3
"""Kills pmill a thousand times while it counts, recounts, retracts, merges or compacts, and compares with undisturbed runs.

Each kill is followed by three looks: a reader sees the table before or after, the command run again gives the table
after byte for byte with nothing lying around, and once more changes nothing (asked once for every set of files that
is met). See tests/python/kills.py.

    tools/soak.py --kills 1000            needs a debug build (PMILL_BIN, else target/debug/pmill)
"""

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
import kills  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end earlier, after so long")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="so many at once")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    began, done = time.monotonic(), Counter()
    with ProcessPoolExecutor(arguments.processes) as pool:
        for part in pool.map(soak, [(arguments, number) for number in range(arguments.processes)]):
            done += part
    for (name, how), number in sorted(done.items()):
        print(f"{number:5} kills of `{name}` {how}")
    print(
        f"{sum(done.values())} kills, seed {arguments.seed}, {time.monotonic() - began:.0f} s: "
        "0 tables differ from the undisturbed run, 0 files counted twice, 0 orphans after the next run"
    )


def soak(given):
    """One process's share: kills by change and kind. Whatever is not as it should be is an AssertionError."""
    arguments, process = given
    draw = random.Random(f"{arguments.seed} {process}")
    began, done = time.monotonic(), Counter()
    share = len(range(process, arguments.kills, arguments.processes))

    def enough():
        return sum(done.values()) >= share or time.monotonic() - began > 60 * arguments.minutes

    with tempfile.TemporaryDirectory() as folder:
        changes = kills.changes(Path(folder))
        for change in changes:
            if not change.points:
                raise SystemExit("this build has no kill points: give a debug build")
        # Every step of every change first, then random moments until there are enough.
        steps = [(change, number) for change in changes for number in range(1, len(change.points) + 1)]
        for change, number in steps[process :: arguments.processes]:
            if not enough():
                change.kill_at(number)
                done[change.name, "at a step"] += 1
        for change in itertools.cycle(changes):
            if enough():
                return done
            if change.kill_after(draw.uniform(0, 1.05) * change.seconds):
                done[change.name, "by the system"] += 1


if __name__ == "__main__":
    os.environ.setdefault("PMILL_BIN", str(Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "debug" / "pmill"))
    main()
