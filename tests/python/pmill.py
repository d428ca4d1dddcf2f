"""Drives the binary, and reads its tables by replaying the Delta log: no Delta library is trusted here."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

REPO = Path(__file__).resolve().parents[2]
# Text that no person should see, whatever the input.
NOISE = ("panicked", "RUST_BACKTRACE", "stack backtrace", "backtrace::", "src/main.rs", "Os {", "Some(")


def binary():
    """The binary under test: PMILL_BIN, else the debug build."""
    given = os.environ.get("PMILL_BIN")
    if given:
        return Path(given)
    target = Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target"))
    return target / "debug" / "pmill"


def environment(**more):
    """The environment without pmill's own variables; help is 100 wide, and a backtrace would be printed if made."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PMILL_")}
    return kept | {"RUST_BACKTRACE": "1", "COLUMNS": "100"} | {key: str(value) for key, value in more.items()}


class Result:
    """What a finished process left."""

    def __init__(self, arguments, code, out, err, seconds, peak_bytes):
        self.arguments, self.code, self.seconds, self.peak_bytes = arguments, code, seconds, peak_bytes
        self.raw = out
        self.err = err.decode("utf-8", "replace")

    @property
    def out(self):
        return self.raw.decode("utf-8")

    @property
    def json(self):
        return json.loads(self.raw)

    def __repr__(self):
        return f"pmill {' '.join(self.arguments)}\nexit {self.code} after {self.seconds:.1f} s\n{self.err}"


def peak_memory(pid):
    """The most memory that a running process has held. (What wait4 gives holds this process's memory too.)"""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def run(*arguments, code=0, timeout=120, cwd=None, stdin=b"", env=None, noise=NOISE):
    """Runs pmill to its end and checks its exit code, and that no noise is in its messages."""
    arguments = [str(argument) for argument in arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as given:
        given.write(stdin)
        given.seek(0)
        began = time.monotonic()
        process = subprocess.Popen(
            [binary(), *arguments], stdin=given, stdout=out, stderr=err, cwd=cwd, env=env or environment()
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, peak_memory(process.pid))
            if time.monotonic() - began > timeout:
                process.kill()
                process.wait()
                raise AssertionError(f"still running after {timeout} s: pmill {' '.join(arguments)}")
            time.sleep(0.003)
        out.seek(0)
        err.seek(0)
        result = Result(
            arguments,
            process.returncode,
            out.read(),
            err.read(),
            time.monotonic() - began,
            peak,
        )
    for text in noise:
        assert text not in result.err, result
    if code is not None:
        assert result.code == code, result
    return result


def start(*arguments):
    """Starts pmill and leaves it running; messages are thrown away."""
    return subprocess.Popen(
        [binary(), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )


def interrupt(process, wait):
    """Sends Ctrl-C and gives the exit code and the seconds until it ended."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    return process.wait(timeout=wait), time.monotonic() - began


def log(folder):
    """The actions of a Delta table, version by version."""
    return [
        [json.loads(line) for line in path.read_text().splitlines() if line]
        for path in sorted((folder / "_delta_log").glob("*.json"))
    ]


class Job:
    """A job's tables as they lie on disk."""

    def __init__(self, warehouse, name):
        self.warehouse, self.name = Path(warehouse), name

    def folder(self, table):
        return self.warehouse / self.name / table

    def exists(self, table="pairs"):
        return (self.folder(table) / "_delta_log").exists()

    def version(self, table="pairs"):
        return len(log(self.folder(table))) - 1

    def files(self, table):
        """Files of the newest version, in the order of their names."""
        live = {}
        for version in log(self.folder(table)):
            for action in version:
                if "add" in action:
                    live[action["add"]["path"]] = action["add"]
                if "remove" in action:
                    live.pop(action["remove"]["path"], None)
        for name, add in live.items():
            path = self.folder(table) / name
            assert path.stat().st_size == add["size"], name
            assert pq.read_metadata(path).num_rows == json.loads(add["stats"])["numRecords"], name
        return [self.folder(table) / name for name in sorted(live)]

    def every_file_ever(self, table):
        """Names of all files that any version added."""
        return {action["add"]["path"] for version in log(self.folder(table)) for action in version if "add" in action}

    def table(self, table):
        return pa.concat_tables(pq.read_table(path) for path in self.files(table))

    def content(self, table):
        """The bytes of a table: each file's number and bytes, without the digest in its name."""
        return [(path.name.split("-")[1], path.read_bytes()) for path in self.files(table)]

    def terms(self):
        vocab = self.table("vocab")
        assert vocab["id"].to_pylist() == list(range(vocab.num_rows))
        return vocab["token"].to_pylist()

    def pairs(self):
        """(smaller word, larger word) by code point → stored count; for tables with left_id <= right_id."""
        terms = self.terms()
        table = self.table("pairs")
        left, right = table["left_id"].to_pylist(), table["right_id"].to_pylist()
        assert all(x <= y for x, y in zip(left, right)), "a pair is stored the wrong way round"
        keys = list(zip(left, right))
        assert all(a < b for a, b in zip(keys, keys[1:])), "pairs are not sorted, or one is stored twice"
        words = [(terms[x], terms[y]) for x, y in keys]
        words = [pair if pair[0] <= pair[1] else pair[::-1] for pair in words]
        return dict(zip(words, table["count"].to_pylist()))

    def ordered_pairs(self):
        """(left word, right word) → stored count, as stored."""
        terms = self.terms()
        table = self.table("pairs")
        keys = list(zip(table["left_id"].to_pylist(), table["right_id"].to_pylist()))
        assert all(a < b for a, b in zip(keys, keys[1:])), "pairs are not sorted, or one is stored twice"
        return {(terms[x], terms[y]): n for (x, y), n in zip(keys, table["count"].to_pylist())}

    def settings(self):
        return self._property("pmill.settings")

    def facts(self):
        return self._property("pmill.facts")

    def _property(self, key):
        newest = [
            action["metaData"] for version in log(self.folder("pairs")) for action in version if "metaData" in action
        ]
        return json.loads(newest[-1]["configuration"][key])

    def orphans(self):
        """Table files that no version names, and whatever lies in the work folder beside the lock."""
        found = []
        for table in ("vocab", "pairs", "sources", "pmi", "outside", "tail"):
            if not self.folder(table).exists():
                continue
            known = self.every_file_ever(table)
            for path in self.folder(table).rglob("*"):
                # A commit that was not finished lies under its name and a `#`.
                inside_log = path.is_relative_to(self.folder(table) / "_delta_log") and "#" not in path.name
                if path.is_file() and not inside_log and path.name not in known:
                    found.append(path)
        work = self.warehouse / ".pmill" / self.name
        if work.exists():
            found += [path for path in work.rglob("*") if path.name != "lock"]
        return found


def count(warehouse, name, inputs, text, *flags, **options):
    """Counts and gives the job; its summary is in `.summary`."""
    inputs = [inputs] if isinstance(inputs, (str, Path)) else inputs
    result = run(
        "count",
        "--warehouse",
        warehouse,
        "--name",
        name,
        "--input",
        *inputs,
        "--text",
        text,
        *flags,
        "--json",
        **options,
    )
    job = Job(warehouse, name)
    job.summary, job.result = result.json, result
    return job


def score(job, *flags, **options):
    return run("score", "--warehouse", job.warehouse, "--name", job.name, *flags, "--json", **options).json


def sql(warehouse, query, *flags, **options):
    """Rows as a list of objects."""
    return run("sql", "--warehouse", warehouse, "--format", "json", query, *flags, **options).json


def document_counts(rows):
    """The slow, obvious count: how many rows hold both words, each row once."""
    counts = Counter()
    for row in rows:
        words = sorted(set(row))
        for index, left in enumerate(words):
            for right in words[index + 1 :]:
                counts[left, right] += 1
    return dict(counts)


def nothing_left(warehouse):
    """Files in a warehouse folder that a refused job must not leave."""
    warehouse = Path(warehouse)
    return [path for path in warehouse.rglob("*")] if warehouse.exists() else []


def write(path, texts, column="TEXT", kind=None, **options):
    """A Parquet file of one text column."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: pa.array(texts, kind or pa.string())}), path, **options)
    return path
