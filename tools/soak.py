#!/usr/bin/env python3
"""Kills pmill a thousand times in the middle of counting, recounting, retracting and merging, and compares with undisturbed runs.

Each kill is followed by three looks: a reader sees the table before or after, the command run again gives the table
after byte for byte with nothing lying around, and once more changes nothing. See tests/python/kills.py.

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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
import kills  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    began, done = time.monotonic(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        changes = kills.changes(Path(folder))
        for change in changes:
            if not change.points:
                sys.exit("this build has no kill points: give a debug build")
        # Every step of every change first, then random moments until there are enough.
        for change in changes:
            for number in range(1, len(change.points) + 1):
                if sum(done.values()) < arguments.kills:
                    change.kill_at(number)
                    done[change.name, "at a step"] += 1
        for change in itertools.cycle(changes):
            if sum(done.values()) >= arguments.kills:
                break
            if change.kill_after(draw.uniform(0, 1.05) * change.seconds):
                done[change.name, "by the system"] += 1
            if sys.stderr.isatty():
                print(f"\r{sum(done.values())} kills", end="", file=sys.stderr)
    for (name, how), number in sorted(done.items()):
        print(f"{number:5} kills of `{name}` {how}")
    print(
        f"{sum(done.values())} kills, seed {arguments.seed}, {time.monotonic() - began:.0f} s: "
        "0 tables differ from the undisturbed run, 0 files counted twice, 0 orphans after the next run"
    )


if __name__ == "__main__":
    os.environ.setdefault("PMILL_BIN", str(Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "debug" / "pmill"))
    main()
