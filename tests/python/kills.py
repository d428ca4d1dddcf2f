"""Kills pmill in the middle of a change and checks what is left: shared by the tests and by tools/soak.py.

A change is tried on a copy of a warehouse. Whatever the moment of the kill, a reader then sees the table before or
the table after; running the command once more gives the table after, byte for byte, with nothing lying around; and
running it a third time changes nothing.
"""

import json
import shutil
import subprocess
import time

import pmill

TABLES = ("vocab", "outside", "pairs")
SOURCES = ["uri", "size", "etag", "rows", "tokens", "status", "message"]
NAMES = ("count", "recount", "retract", "retract rows", "merge", "remap", "compact")


def version_files(folder, version):
    """Files of a table at a version, by name."""
    live = {}
    for actions in pmill.log(folder)[: version + 1]:
        # Delta does not say in which order the actions of one commit count: a path must not be in it twice.
        paths = [action[kind]["path"] for action in actions for kind in ("add", "remove") if kind in action]
        assert len(paths) == len(set(paths)), f"{folder}: one commit names a file twice"
        for action in actions:
            if "add" in action:
                live[action["add"]["path"]] = action["add"]["size"]
            if "remove" in action:
                live.pop(action["remove"]["path"], None)
    for name, size in live.items():
        assert (folder / name).stat().st_size == size, f"{folder / name} is not the file that was committed"
    return sorted(live)


def visible(job):
    """What a reader sees, table by table: the newest version of `pairs`, and the versions that it names."""
    versions = pmill.log(job.folder("pairs"))
    properties = [action["metaData"]["configuration"] for actions in versions for action in actions if "metaData" in action]
    newest = properties[-1]
    seen = {"facts": json.loads(newest["pmill.facts"]), "settings": newest["pmill.settings"]}
    for table in ("vocab", "outside", "pairs", "sources", "tail"):
        if f"pmill.{table}_version" not in newest and table != "pairs":
            continue
        number = len(versions) - 1 if table == "pairs" else int(newest[f"pmill.{table}_version"])
        folder = job.folder(table)
        files = version_files(folder, number)
        if table == "sources":
            rows = [row for name in files for row in pmill.pq.read_table(folder / name, columns=SOURCES).to_pylist()]
            seen[table] = rows
        else:
            seen[table] = [(name.split("-")[1], (folder / name).read_bytes()) for name in files]
    return seen


def split(job, parts=5):
    """Cuts the newest file of pairs into several, as a count of a large corpus leaves them."""
    (path,) = job.files("pairs")
    rows = pmill.pq.read_table(path)
    lefts = rows["left_id"].to_numpy()
    cuts = {int((lefts < lefts[rows.num_rows * part // parts]).sum()) for part in range(1, parts)}
    bounds = sorted({0, *cuts, rows.num_rows})
    entry = sorted((job.folder("pairs") / "_delta_log").glob("*.json"))[-1]
    lines = [json.loads(line) for line in entry.read_text().splitlines()]
    lines, (add,) = [line for line in lines if "add" not in line], [line["add"] for line in lines if "add" in line]
    for number, (start, end) in enumerate(zip(bounds, bounds[1:])):
        part = rows.slice(start, end - start)
        name = f"part-{number:05}-{'f' * 16}.parquet"
        pmill.pq.write_table(part, path.parent / name)
        values = {column: [part[column].to_numpy().min(), part[column].to_numpy().max()] for column in part.column_names}
        stats = {
            "numRecords": part.num_rows,
            "minValues": {column: int(low) for column, (low, _) in values.items()},
            "maxValues": {column: int(high) for column, (_, high) in values.items()},
            "nullCount": {column: 0 for column in values},
        }
        size = (path.parent / name).stat().st_size
        lines.append({"add": add | {"path": name, "size": size, "stats": json.dumps(stats)}})
    entry.write_text("\n".join(map(json.dumps, lines)))
    path.unlink()


class Change:
    """A command, the warehouse that it changes, and what it must come to."""

    def __init__(self, name, warehouse, arguments, scratch):
        self.name, self.before, self.arguments, self.scratch = name, warehouse, arguments, scratch
        # Logs that were seen to stay as they are when the finished command is run once more.
        self.settled = set()
        self.old = visible(pmill.Job(warehouse, "j"))
        done = self.copy("undisturbed")
        log = scratch / "points"
        began = time.monotonic()
        self.run(done, PMILL_KILL_LOG=log)
        self.seconds = time.monotonic() - began
        self.points = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        self.new = visible(done)
        assert self.new != self.old
        assert done.orphans() == []
        shutil.rmtree(done.warehouse)

    def copy(self, name):
        target = self.scratch / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.before, target)
        return pmill.Job(target, "j")

    def command(self, job):
        return [str(argument).replace("WAREHOUSE", str(job.warehouse)) for argument in [*self.arguments, "--json"]]

    def run(self, job, **environment):
        return pmill.run(*self.command(job), env=pmill.environment(**environment)).json

    def kill_at(self, point):
        """Ends the process at the point with this number, from 1."""
        job = self.copy("killed")
        done = subprocess.run(
            [pmill.binary(), *self.command(job)],
            env=pmill.environment(PMILL_KILL_AT=point),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert done.returncode == -6, f"{self.name}: not killed at point {point} but exit {done.returncode}"
        self.check(job, f"at {self.points[point - 1]}")

    def kill_after(self, seconds):
        """SIGKILL after so many seconds; False when it had ended by then."""
        job = self.copy("killed")
        process = pmill.start(*self.command(job))
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.check(job, f"after {seconds:.3f} s")
            return True
        assert code == 0
        return False

    def check(self, job, moment):
        where = f"{self.name}, killed {moment}"
        assert visible(job) in (self.old, self.new), f"{where}: a reader sees neither the old table nor the new"
        self.run(job)
        assert visible(job) == self.new, f"{where}: run again, the table is another than the undisturbed one"
        assert job.orphans() == [], f"{where}: files are left over"
        logs = tuple(sorted(str(path.relative_to(job.warehouse)) for path in job.warehouse.rglob("*")))
        if logs not in self.settled:
            assert self.run(job)["status"] == "unchanged", where
            assert visible(job) == self.new, where
            self.settled.add(logs)


def texts(seed, rows):
    """Rows of a few words each; words of a higher seed are partly new."""
    import random

    draw = random.Random(seed)
    words = [f"w{number}" for number in range(40)] + [f"s{seed}x{number}" for number in range(8)]
    return [" ".join(draw.choices(words, weights=[1 / (1 + n) for n in range(48)], k=draw.randint(0, 9))) for _ in range(rows)]


def changes(folder, names=NAMES, more=()):
    """The changes to kill, each on a warehouse of its own in `folder`; `more` flags for every count."""
    inputs = [pmill.write(folder / "in" / f"{number}.parquet", texts(number, 60)) for number in range(4)]
    a, b, c, d = inputs
    settings = ["--text", "TEXT", "--vocab-size", "25", "--context", "window", "--window", "3", "--weight", "harmonic", "--threads", "2", *more]
    old = folder / "old" / "1.parquet"
    old.parent.mkdir()
    shutil.copy2(b, old)

    def count(warehouse, name, *inputs):
        pmill.run("count", "--warehouse", warehouse, "--name", name, "--input", *inputs, *settings)

    def retract(warehouse, name, *inputs):
        pmill.run("retract", "--warehouse", warehouse, "--name", name, "--input", *inputs)

    two = folder / "two"
    count(two, "j", a)
    count(two, "j", b)
    # A table of the same vocabulary with other files, and one of another vocabulary.
    parts = folder / "parts"
    count(parts, "same", a)
    count(parts, "same", c)
    retract(parts, "same", a)
    count(parts, "other", c, d)
    # Counted before `b` changes; what the changes see is the new `b`.
    pmill.write(b, texts(9, 50))
    job = ["--warehouse", "WAREHOUSE", "--name", "j"]
    commands = {
        "count": ["count", *job, "--input", c, d, *settings],
        "recount": ["count", *job, "--recount", b, "--old", old, "--input", c, *settings],
        "retract": ["retract", *job, "--input", a],
        "retract rows": ["retract", *job, "--input", a, "--where", "\"TEXT\" LIKE '%w1%'"],
        "merge": ["merge", *job, "--from", parts / "same"],
        "remap": ["merge", *job, "--from", parts / "other", "--remap"],
        "compact": ["compact", *job],
    }
    # What a large corpus leaves: more than one file of pairs.
    many = folder / "many"
    shutil.copytree(two, many)
    split(pmill.Job(many, "j"), 3)
    scratch = folder / "scratch"
    scratch.mkdir()
    return [Change(name, many if name == "compact" else two, commands[name], scratch) for name in names]
