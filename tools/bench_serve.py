#!/usr/bin/env python3
"""Load on `pmill serve`: many clients, mixed look-ups, against DuckDB on the same Parquet files in one process.

    make bench-serve                     # 64 clients for 60 s on about 50 M pairs
    make bench-serve TOKENS=2e6          # a smaller table

Makes a corpus and a scored table with the binary's own commands unless they are there, then asks both the same questions
in the same order: the 20 strongest neighbours of a word, one pair, and now and then a batch of pairs that the client
brings along. Words are drawn as often as they stand in the table, so frequent ones are asked for most. The answers are
compared first. Prints one JSON object: errors, p50 and p99 in ms, answers a second of each, CPU seconds, and the
server's memory over the run.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import duckdb
import numpy as np
import psycopg
import pyarrow.parquet as pq

NEIGHBOURS = 'SELECT "right", n_xy, npmi FROM {} WHERE "left" = {} ORDER BY npmi DESC, "right" LIMIT 20'
PAIR = 'SELECT n_xy, pmi, npmi FROM {} WHERE "left" = {} AND "right" = {}'
BATCH = 'SELECT count(*), sum(npmi) FROM {} AS p JOIN (VALUES {}) AS q(l, r) ON p."left" = q.l AND p."right" = q.r'


# The run is cut into so many parts; the server's memory is read after each.
PARTS = 4


def quote(word):
    return "'" + word.replace("'", "''") + "'"


def live_files(folder):
    """Files of the newest version of a Delta table."""
    live = set()
    for path in sorted((folder / "_delta_log").glob("*.json")):
        for line in path.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                live.add(action["add"]["path"])
            if "remove" in action:
                live.discard(action["remove"]["path"])
    return [str(folder / name) for name in sorted(live)]


def sample(files, seed):
    """Pairs of the table, drawn from a few row groups of each file, 5,000 of each."""
    source = np.random.default_rng(seed)
    pairs = []
    for file in files:
        reader = pq.ParquetFile(file)
        for group in source.permutation(reader.num_row_groups)[:4]:
            rows = reader.read_row_group(int(group), columns=["left", "right"])
            rows = rows.take(source.choice(rows.num_rows, min(5000, rows.num_rows), replace=False))
            pairs += zip(rows["left"].to_pylist(), rows["right"].to_pylist())
    return pairs


def questions(pairs, seed, batch, every):
    """An endless mix: half neighbours, half pairs, and one batch in `every`."""
    source = random.Random(seed)
    while True:
        draw = source.random()
        if draw < 1 / every:
            chosen = source.choices(pairs, k=batch)
            yield "batch", BATCH, [", ".join(f"({quote(l)}, {quote(r)})" for l, r in chosen)]
        elif draw < 0.5:
            yield "neighbours", NEIGHBOURS, [quote(source.choice(pairs)[0])]
        else:
            left, right = source.choice(pairs)
            yield "pair", PAIR, [quote(left), quote(right)]


class Load:
    """Clients that ask until the time is over."""

    def __init__(self, clients, seconds, make_client, mix):
        self.times, self.errors, self.lock = [], [], threading.Lock()
        self.until = time.monotonic() + seconds
        threads = [threading.Thread(target=self.client, args=(make_client, mix(n))) for n in range(clients)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.seconds = time.monotonic() - began

    def client(self, make_client, mix):
        try:
            ask, close = make_client()
            times = []
            while time.monotonic() < self.until:
                kind, query, values = next(mix)
                began = time.monotonic()
                ask(query, values)
                times.append((kind, time.monotonic() - began))
            close()
            with self.lock:
                self.times += times
        except Exception as error:
            with self.lock:
                self.errors.append(repr(error)[:200])

    def figures(self):
        def of(times):
            times = sorted(times)
            at = lambda share: round(1000 * times[min(len(times) - 1, int(share * len(times)))], 2)
            return {"answers": len(times), "p50_ms": at(0.5), "p99_ms": at(0.99)} if times else {"answers": 0}

        kinds = sorted({kind for kind, _ in self.times})
        return {
            "errors": len(self.errors),
            "first_errors": self.errors[:3],
            "per_second": round(len(self.times) / self.seconds, 1),
            "all": of([seconds for _, seconds in self.times]),
        } | {kind: of([seconds for of_kind, seconds in self.times if of_kind == kind]) for kind in kinds}


def make_table(pmill, warehouse, name, tokens):
    """A window job over a seeded corpus, scored, unless it is there."""
    if (warehouse / name / "pmi" / "_delta_log").is_dir():
        return
    corpus = warehouse.with_name(warehouse.name + "-corpus")
    if not corpus.is_dir():
        part = corpus.with_name(corpus.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        command = [pmill, "sample-corpus", "--style", "documents", "--tokens", str(tokens), "--files", "8", "--words", "400000"]
        subprocess.run([*command, "--output", part], check=True)
        part.rename(corpus)
    job = ["--warehouse", warehouse, "--name", name]
    count = ["count", *job, "--input", corpus, "--text", "TEXT", "--tokenizer", "whitespace", "--vocab-size", "50000"]
    subprocess.run([pmill, *count, "--context", "window", "--window", "10", "--weight", "harmonic"], check=True)
    subprocess.run([pmill, "score", *job, "--measure", "pmi,npmi"], check=True)


def cpu_seconds(process):
    """User and system time of a running process."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pmill", required=True)
    parser.add_argument("--warehouse", required=True, help="with a scored job, or where one is made")
    parser.add_argument("--name", default="bench")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--batch-every", type=int, default=1000, help="one question in so many is a batch")
    parser.add_argument("--tokens", type=float, default=30e6, help="of the corpus, when there is no table yet")
    given = parser.parse_args()
    make_table(given.pmill, Path(given.warehouse), given.name, int(given.tokens))
    files = live_files(Path(given.warehouse) / given.name / "pmi")
    pairs = sample(files, 1)
    mix = lambda seed: questions(pairs, seed, given.batch, given.batch_every)
    rows = sum(pq.read_metadata(file).num_rows for file in files)

    command = [given.pmill, "serve", "--warehouse", given.warehouse, "--json", "--quiet"]
    command += ["--postgres", "127.0.0.1:0", "--health", "127.0.0.1:0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE)
    addresses = json.loads(server.stdout.readline())
    host, port = addresses["postgres"].rsplit(":", 1)
    table = f"{given.name}.pmi"

    def resident():
        text = urllib.request.urlopen(f"http://{addresses['health']}/metrics", timeout=60).read().decode()
        return int(float(next(line for line in text.splitlines() if line.startswith("pmill_resident_bytes ")).split()[1]))

    def pmill_client():
        connection = psycopg.connect(f"host={host} port={port} user=bench dbname=wh", autocommit=True)
        connection.prepare_threshold = None
        return lambda query, values: connection.execute(query.format(table, *values)).fetchall(), connection.close

    parquet = duckdb.connect()
    names = ", ".join(quote(file) for file in files)

    def duckdb_client():
        cursor = parquet.cursor()
        return lambda query, values: cursor.execute(query.format(f"read_parquet([{names}])", *values)).fetchall(), cursor.close

    try:
        # The same answers first, which also waits until the index is there.
        ask, close = pmill_client()
        other, other_close = duckdb_client()
        first = mix(12345)
        for _ in range(10):
            _, query, values = next(first)
            mine, theirs = ask(query, values), other(query, values)
            assert len(mine) == len(theirs), (query, values)
            for a, b in zip(mine, theirs):
                assert all(x == y or abs(x - y) <= 1e-9 * abs(y) for x, y in zip(a, b)), (query, values, a, b)
        close()
        other_close()
        Load(given.clients, min(10, given.seconds), pmill_client, mix)
        memory, used = [resident()], cpu_seconds(server.pid)
        parts = []
        for part in range(PARTS):
            parts.append(Load(given.clients, given.seconds / PARTS, pmill_client, lambda n: mix(n + 1000 * part)))
            memory.append(resident())
        used = cpu_seconds(server.pid) - used
        whole = parts[0]
        for part in parts[1:]:
            whole.times += part.times
            whole.errors += part.errors
            whole.seconds += part.seconds
        theirs = Load(given.clients, given.seconds, duckdb_client, mix)
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=90)
    mine = whole.figures()
    print(
        json.dumps(
            {
                "pairs": rows,
                "clients": given.clients,
                "seconds": given.seconds,
                "pmill": mine,
                "duckdb": theirs.figures(),
                "times_duckdb": round(mine["per_second"] / max(theirs.figures()["per_second"], 1e-9), 2),
                "server_cpu_seconds": round(used, 1),
                "resident_mib": [size >> 20 for size in memory],
                "exit_code": code,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
