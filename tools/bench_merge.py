#!/usr/bin/env python3
"""Merges N tables of P pairs each and states the throughput as a share of the sequential read rate.

    make bench-merge                         # 8 tables of 50 M pairs
    make bench-merge TABLES=4 PAIRS=5e6      # smaller

The tables are made (seeded) with the layout of a real job: sorted pairs over one vocabulary, delta-packed, in row
groups of 2^20. The read rate is that of the same files read from end to end by one thread, past the page cache where
the system lets us. CPU is user + system of pmill; memory is its largest resident set.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 1 << 20


def template(pmill, work, terms):
    """A real job with the vocabulary w00000…: what its first commits say is reused for the made tables."""
    corpus = work / "corpus.parquet"
    names = [f"w{number:06}" for number in range(terms)]
    pq.write_table(pa.table({"TEXT": [" ".join(names[at : at + 50]) for at in range(0, terms, 50)]}), corpus)
    shutil.rmtree(work / "template", ignore_errors=True)
    command = [pmill, "count", "--warehouse", work / "template", "--name", "t", "--input", corpus, "--text", "TEXT"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return work / "template" / "t"


def first_commit(folder):
    (path,) = (folder / "_delta_log").glob("*.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_commit(folder, actions):
    (folder / "_delta_log").mkdir(parents=True)
    (folder / "_delta_log" / f"{0:020}.json").write_text("".join(json.dumps(action) + "\n" for action in actions))


def make_table(job, like, number, pairs, terms):
    """One job's tables; gives its pairs and the sum of their counts."""
    draw = np.random.default_rng(number)
    # Keys left * terms + right rise by random steps, about one in two stands for a pair with left < right.
    step = max(2.0, terms * terms / 2 / pairs)
    folder = job / "pairs"
    folder.mkdir(parents=True)
    schema = pa.schema([pa.field(name, kind, False) for name, kind in
                        (("left_id", pa.int32()), ("right_id", pa.int32()), ("count", pa.int64()))])
    encoding = {name: "DELTA_BINARY_PACKED" for name in schema.names}
    path = folder / "part-00000-0000000000000000.parquet"
    key, written, units, first = -1, 0, 0, None
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, column_encoding=encoding) as writer:
        left, right = np.empty(0, np.int64), np.empty(0, np.int64)
        while True:
            keys = key + np.cumsum(draw.geometric(1 / step, 4 * ROW_GROUP))
            key = int(keys[-1])
            keys = keys[keys < terms * terms]
            more_left, more_right = keys // terms, keys % terms
            kept = more_left < more_right
            left, right = np.concatenate([left, more_left[kept]]), np.concatenate([right, more_right[kept]])
            last = key >= terms * terms
            while len(left) >= ROW_GROUP or (last and len(left)):
                size = min(ROW_GROUP, len(left))
                counts = draw.zipf(1.7, size).clip(1, 1 << 30)
                writer.write_table(pa.table([left[:size].astype(np.int32), right[:size].astype(np.int32), counts], schema=schema))
                written, units = written + size, units + int(counts.sum())
                first = int(left[0]) if first is None else first
                highest = int(left[size - 1])
                left, right = left[size:], right[size:]
            if last:
                break
    stats = {"numRecords": written, "minValues": {"left_id": first}, "maxValues": {"left_id": highest}, "nullCount": {}}
    for table in ("vocab", "outside", "sources", "pairs"):
        actions = first_commit(like / table)
        target = job / table
        for action in actions:
            if "add" in action:
                name = action["add"]["path"]
                if table == "pairs":
                    action["add"] |= {"path": path.name, "size": path.stat().st_size, "stats": json.dumps(stats)}
                elif table == "sources":
                    target.mkdir()
                    rows = pq.read_table(like / table / name)
                    uri = pa.array([f"file:///made/{number}.parquet"] * rows.num_rows)
                    pq.write_table(rows.set_column(0, rows.schema.field(0), uri), target / name)
                    action["add"]["size"] = (target / name).stat().st_size
                else:
                    target.mkdir()
                    shutil.copy(like / table / name, target / name)
            if "metaData" in action and table == "pairs":
                facts = json.loads(action["metaData"]["configuration"]["pmill.facts"])
                # Rows and tokens decide how many pairs a file of the result is planned for.
                facts |= {"pairs": written, "units": str(units), "rows": 1000, "tokens": 1000 * terms}
                action["metaData"]["configuration"]["pmill.facts"] = json.dumps(facts)
        write_commit(target, actions)
    return written, units


def read_rate(paths):
    """Bytes a second of one thread that reads the files from end to end."""
    total, began = 0, time.monotonic()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := file.read(8 << 20):
                total += len(chunk)
    return total, total / (time.monotonic() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pmill", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tables", type=int, default=8)
    parser.add_argument("--pairs", type=float, default=50e6)
    parser.add_argument("--terms", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory-limit", default="1GiB")
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    like = template(arguments.pmill, work, arguments.terms)
    made = work / f"{arguments.tables}x{int(arguments.pairs)}"
    facts = made / "made.json"
    if not facts.exists():
        shutil.rmtree(made, ignore_errors=True)
        done = [make_table(made / f"t{n}", like, n, arguments.pairs, arguments.terms) for n in range(arguments.tables)]
        facts.write_text(json.dumps(done))
    done = json.loads(facts.read_text())
    total_pairs, units = (sum(values) for values in zip(*done))
    files = sorted(made.glob("t*/pairs/*.parquet"))
    size, rate = read_rate(files)
    shutil.rmtree(work / "wh", ignore_errors=True)
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [arguments.pmill, "merge", "--warehouse", work / "wh", "--name", "j", "--json", "--memory-limit",
               arguments.memory_limit, "--threads", str(arguments.threads)]
    command += ["--from", *[made / f"t{n}" for n in range(arguments.tables)]]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads(result.stdout)
    log = "".join(path.read_text() for path in (work / "wh" / "j" / "pairs" / "_delta_log").glob("*.json"))
    if json.dumps(str(units))[1:-1] not in log:
        sys.exit("the merged counts do not add up to those of the tables")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    seconds = summary["seconds"]
    print(f"tables            {arguments.tables} of {total_pairs / arguments.tables / 1e6:.1f} M pairs, {size / 1e9:.2f} GB in all ({size / total_pairs:.2f} bytes a pair)")
    print(f"merged            {summary['pairs'] / 1e6:.1f} M pairs in {seconds:.1f} s, {arguments.threads} threads, {cpu:.1f} s of CPU")
    print(f"throughput        {total_pairs / seconds / 1e6:.1f} M pairs/s; {total_pairs / cpu / 1e6:.1f} M pairs a second of CPU; {size / seconds / 1e6:.0f} MB/s of table files")
    print(f"sequential read   {rate / 1e6:.0f} MB/s; the merge does {100 * size / seconds / rate:.0f} % of it")
    print(f"memory            {summary['peak_memory_bytes'] / (1 << 20):.0f} MiB at most, limit {arguments.memory_limit}")


if __name__ == "__main__":
    main()
