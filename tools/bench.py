#!/usr/bin/env python3
"""Measures pmill against its peers on the same files in one run, and writes one page of tables.

    make bench                                  # everything; about half an hour on two cores
    make bench DOCUMENTS=10e6 CAPTIONS=5e6      # smaller
    make bench GLOVE=~/GloVe/build              # with GloVe's own binaries, built by you

CPU is user + system of the process and its children; memory is its largest resident set. Peers run as they are
installed from PyPI (tests/python/requirements.txt). A peer that fails or takes over --limit seconds is listed so.
"""
import argparse
import datetime
import glob
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))


TEXT_LINES = """
import glob, os, sys
import pyarrow.parquet as pq
for path in sorted(glob.glob(os.path.join(sys.argv[1], "*.parquet"))):
    for batch in pq.ParquetFile(path).iter_batches(columns=["TEXT"]):
        for line in batch.column(0).to_pylist():
            sys.stdout.buffer.write(line.encode() + b"\\n")
"""


class Run:
    """One finished command: wall and CPU seconds, peak memory in MiB, stdout."""

    def __init__(self, name, command, limit, cwd=None, stdin=None, stdout=None):
        self.name = name
        out = tempfile.TemporaryFile() if stdout is None else open(stdout, "wb")
        source = open(stdin, "rb") if stdin else subprocess.DEVNULL
        err = tempfile.TemporaryFile()
        started = time.monotonic()
        child = subprocess.Popen(command, stdout=out, stderr=err, stdin=source, cwd=cwd)
        killer = None
        try:
            while True:
                pid, status, usage = os.wait4(child.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() - started > limit:
                    child.kill()
                    killer = f"over {limit:.0f} s"
                time.sleep(0.01)
        finally:
            child.returncode = 0
        self.wall = time.monotonic() - started
        self.cpu = usage.ru_utime + usage.ru_stime
        self.peak = usage.ru_maxrss / 1024
        err.seek(0)
        message = err.read().decode(errors="replace").strip().splitlines()
        self.failure = killer or (None if status == 0 else f"failed: {message[-1] if message else status}")
        self.text = ""
        if stdout is None:
            out.seek(0)
            self.text = out.read().decode(errors="replace")
        print(f"{name}: {self.failure or ''} {self.wall:.1f} s wall, {self.cpu:.1f} s CPU, {self.peak:.0f} MiB",
              file=sys.stderr, flush=True)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def digest(warehouse, job):
    """One digest of a job's pairs and vocabulary, by the bytes of their files in order."""
    whole = hashlib.sha256()
    for name in ("vocab", "pairs"):
        for path in sorted(glob.glob(os.path.join(warehouse, job, name, "part-*.parquet"))):
            with open(path, "rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:12]


class Bench:
    def __init__(self, options):
        self.options = options
        self.work = os.path.abspath(options.work)
        os.makedirs(self.work, exist_ok=True)
        self.page = []

    def corpus(self, style, tokens, words):
        folder = os.path.join(self.work, f"{style}-{tokens}-{words}")
        if not os.path.exists(os.path.join(folder, ".whole")):
            shutil.rmtree(folder, ignore_errors=True)
            self.check(Run(f"corpus {style} {tokens}", [
                self.options.pmill, "sample-corpus", "--output", folder, "--style", style, "--tokens", str(tokens),
                "--words", str(words), "--files", "8"], 3600))
            open(os.path.join(folder, ".whole"), "w").close()
        # Read once, so that every program finds the files in the page cache.
        for path in glob.glob(os.path.join(folder, "*.parquet")):
            with open(path, "rb") as file:
                while file.read(1 << 24):
                    pass
        return folder

    def check(self, run):
        if run.failure:
            sys.exit(f"{run.name}: {run.failure}")
        return run

    def count(self, name, folder, *flags, threads=None, memory="4GiB"):
        """One `pmill count` into a fresh warehouse: the run, its summary, the digest of its tables."""
        warehouse = os.path.join(self.work, "warehouse")
        shutil.rmtree(warehouse, ignore_errors=True)
        run = Run(name, [self.options.pmill, "count", "--warehouse", warehouse, "--name", "j", "--input", folder,
                         "--text", "TEXT", "--tokenizer", "whitespace", "--memory-limit", memory, "--json",
                         "--threads", str(threads or self.options.threads), *flags], self.options.limit)
        if run.failure:
            return run, None, None
        return run, json.loads(run.text), digest(warehouse, "j")

    # ---- parts of the page ----

    def window(self, tokens):
        folder = self.corpus("documents", tokens, 400_000)
        flags = ["--vocab-size", "50000", "--context", "window", "--window", "10", "--weight", "harmonic"]
        runs = []
        for threads in (self.options.threads, 1):
            run, summary, _ = self.count(f"pmill, {threads} thread(s)", folder, *flags, threads=threads)
            self.check(run)
            runs.append((run, f"{summary['pairs']:,} pairs"))
        glove = self.glove(folder)
        rows = []
        for run, note in runs:
            ratio = [f"1/{glove.cpu / run.cpu:.1f}", f"1/{glove.wall / run.wall:.1f}"] if glove else ["", ""]
            rows.append([run.name, f"{run.cpu:.1f}", f"{run.wall:.1f}", f"{run.peak:.0f}",
                         f"{tokens / run.cpu / 1e6:.1f} M", *ratio, note])
        if glove:
            rows.append([glove.name, f"{glove.cpu:.1f}", f"{glove.wall:.1f}", f"{glove.peak:.0f}",
                         f"{tokens / glove.cpu / 1e6:.1f} M", "1", "1", "text in, 16-byte records out"])
        self.page.append(f"## Window: {tokens / 1e6:.0f} M tokens, window 10, harmonic, vocabulary 50,000\n\n"
                         "Parquet in to committed table out; GloVe: text in to binary out.\n\n" +
                         table(["program", "CPU s", "wall s", "peak MiB", "tokens/s a CPU second", "CPU ratio",
                                "wall ratio", ""], rows))
        one, two = runs[1][0], runs[0][0]
        self.page.append(f"{self.options.threads} threads are {one.wall / two.wall:.2f} × one in wall time.\n")

    def glove(self, folder):
        if not self.options.glove:
            return None
        text = os.path.join(self.work, "glove.txt")
        # In a process of its own: a child's largest resident set begins with its parent's.
        self.check(Run("text for GloVe", [sys.executable, "-c", TEXT_LINES, folder], self.options.limit, stdout=text))
        vocab, pairs = os.path.join(self.work, "glove.vocab"), os.path.join(self.work, "glove.bin")
        first = self.check(Run("GloVe vocab_count", [os.path.join(self.options.glove, "vocab_count"), "-max-vocab",
                                                     "50000", "-min-count", "1", "-verbose", "0"],
                               self.options.limit, stdin=text, stdout=vocab))
        second = self.check(Run("GloVe cooccur", [os.path.join(self.options.glove, "cooccur"), "-vocab-file", vocab,
                                                  "-window-size", "10", "-memory", "4", "-verbose", "0",
                                                  "-overflow-file", os.path.join(self.work, "overflow")],
                                self.options.limit, stdin=text, stdout=pairs))
        second.name = "GloVe vocab_count + cooccur"
        second.cpu += first.cpu
        second.wall += first.wall
        second.peak = max(first.peak, second.peak)
        os.remove(pairs)
        os.remove(text)
        return second

    def document(self, tokens):
        folder = self.corpus("captions", tokens, 400_000)
        flags = ["--vocab-size", "50000"]
        mine, summary, _ = self.count("pmill", folder, *flags)
        self.check(mine)
        peers = []
        for peer in ("sklearn", "gensim", "duckdb", "polars"):
            out = os.path.join(self.work, f"{peer}.parquet")
            peers.append(Run(peer, [sys.executable, os.path.join(HERE, "bench_peers.py"), peer, folder, out,
                                    os.path.join(self.work, "peer-spill")], self.options.limit))
        done = [peer for peer in peers if not peer.failure]
        for peer in done:
            pairs = int(peer.text.split()[-1])
            if pairs != summary["pairs"]:
                # Peers break ties at the end of the vocabulary in their own ways.
                peer.text = f"{pairs:,} pairs"
            else:
                peer.text = f"{pairs:,} pairs, as pmill"
        rows = [["pmill", f"{mine.cpu:.1f}", f"{mine.wall:.1f}", f"{mine.peak:.0f}", "1", "1", f"{summary['pairs']:,} pairs"]]
        for peer in peers:
            if peer.failure:
                rows.append([peer.name, f"{peer.cpu:.1f}", f"{peer.wall:.1f}", f"{peer.peak:.0f}", "", "", peer.failure])
            else:
                rows.append([peer.name, f"{peer.cpu:.1f}", f"{peer.wall:.1f}", f"{peer.peak:.0f}",
                             f"{peer.cpu / mine.cpu:.1f}", f"{peer.wall / mine.wall:.1f}", peer.text])
        self.page.append(f"## Documents: captions, {tokens / 1e6:.1f} M tokens, vocabulary 50,000\n\n"
                         "Every pair of words of one row, counted once a row; Parquet in and out.\n\n" +
                         table(["program", "CPU s", "wall s", "peak MiB", "CPU, times pmill", "wall, times pmill", ""], rows))

    def annotate(self, tokens):
        """Counting, and annotating the same files with the scores of what was counted, on one thread and on all."""
        folder = self.corpus("captions", tokens, 400_000)
        warehouse, out = os.path.join(self.work, "warehouse"), os.path.join(self.work, "annotated")
        rows = []
        for threads in sorted({1, self.options.threads}):
            counted, summary, _ = self.count(f"count, {threads} thread(s)", folder, "--vocab-size", "50000",
                                             threads=threads)
            self.check(counted)
            self.check(Run("score", [self.options.pmill, "score", "--warehouse", warehouse, "--name", "j"],
                           self.options.limit))
            shutil.rmtree(out, ignore_errors=True)
            annotated = self.check(Run(f"annotate, {threads} thread(s)", [
                self.options.pmill, "annotate", "--warehouse", warehouse, "--name", "j", "--input", folder, "--output",
                out, "--threads", str(threads), "--memory-limit", "4GiB", "--json"], self.options.limit))
            found = json.loads(annotated.text)
            reading = found["seconds"] - found["annotating_seconds"]
            notes = (f"{summary['pairs']:,} pairs", f"{counted.cpu / annotated.cpu:.2f} × the counting rate, "
                     f"{reading:.1f} s of it before the first row")
            for run, note in zip((counted, annotated), notes):
                rows.append([run.name, f"{run.cpu:.1f}", f"{run.wall:.1f}", f"{run.peak:.0f}",
                             f"{tokens / run.cpu / 1e6:.1f} M", note])
        shutil.rmtree(out, ignore_errors=True)
        self.page.append(f"## Annotate: captions, {tokens / 1e6:.1f} M tokens, vocabulary 50,000\n\n"
                         "The same files counted, and written again with the numbers of each row; Parquet in and out.\n\n" +
                         table(["program", "CPU s", "wall s", "peak MiB", "tokens/s a CPU second", ""], rows))

    def memory(self, tokens):
        folder = self.corpus("documents", tokens, 400_000)
        rows = []
        for limit, mebibytes in (("512MiB", 512), ("1GiB", 1024), ("4GiB", 4096)):
            run, summary, same = self.count(f"limit {limit}", folder, "--vocab-size", "400000", "--context", "window",
                                            "--window", "10", "--weight", "harmonic", memory=limit)
            self.check(run)
            allowed = 1.25 * mebibytes + 300
            rows.append([limit, f"{run.cpu:.1f}", f"{run.wall:.1f}", f"{run.peak:.0f}", f"{allowed:.0f}",
                         "yes" if run.peak <= allowed else "**no**", summary["units"],
                         f"{summary['spilled_bytes'] / 2**30:.2f} GiB", same])
        self.page.append(f"## Memory: {tokens / 1e6:.0f} M tokens, window 10, vocabulary 400,000\n\n" +
                         table(["limit", "CPU s", "wall s", "peak MiB", "allowed MiB", "within", "units", "spilled",
                                "digest of the tables"], rows))

    def growth(self, sizes):
        rows = []
        for tokens in sizes:
            folder = self.corpus("documents", tokens, 400_000)
            for vocabulary, window in ((50_000, 10), (400_000, 10), (20_000, 10), (50_000, 2), (50_000, 20)):
                run, summary, _ = self.count(f"growth {tokens} {vocabulary} {window}", folder, "--vocab-size",
                                             str(vocabulary), "--context", "window", "--window", str(window))
                self.check(run)
                rows.append([f"{tokens / 1e6:.0f} M", f"{vocabulary:,}", window, f"{run.cpu:.1f}", f"{run.wall:.1f}",
                             f"{tokens / run.wall / 1e6:.1f} M", f"{summary['pairs']:,}", f"{run.peak:.0f}"])
        self.page.append("## How cost grows: uniform windows, limit 4 GiB\n\n" +
                         table(["tokens", "vocabulary", "window", "CPU s", "wall s", "tokens/s", "pairs", "peak MiB"], rows))

    def text(self):
        """One thread, one file of the captions: decode, and decode with each tokenizer."""
        if not self.options.text_path:
            return
        folder = self.corpus("captions", int(self.options.captions), 400_000)
        file = sorted(glob.glob(os.path.join(folder, "*.parquet")))[0]
        lemma = [f"wordnet:{self.options.wordnet}"] if self.options.wordnet else []
        run = self.check(Run("text path", [self.options.text_path, file, "TEXT", "whitespace", "words", "qu-xie", *lemma],
                             self.options.limit))
        self.page.append("## Text in, on one thread\n\nParquet decode alone; then with tokenizing and counting of terms (the "
                         f"first pass), or with looking ids up.\n\n```\n{run.text.strip()}\n```\n")

    def parts(self):
        for name, command in self.options.part or []:
            run = Run(name, command.split(), self.options.limit)
            self.page.append(f"## {name}\n\n```\n{(run.failure or run.text).strip()}\n```\n")

    def write(self):
        cpu = platform.processor() or platform.machine()
        try:
            with open("/proc/cpuinfo") as info:
                cpu = next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
        except (OSError, StopIteration):
            pass
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        head = (f"# Benchmarks\n\nWritten by `make bench` on {datetime.date.today()}: {cpu}, {os.cpu_count()} cores, "
                f"{memory:.0f} GiB, load {os.getloadavg()[0]:.1f} at the end. pmill is built with the profile `demo`. "
                "Corpora come from `pmill sample-corpus`; files are in the page cache. Compare ratios, not seconds.\n\n")
        with open(self.options.out, "w") as out:
            out.write(head + "\n".join(self.page))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pmill", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--documents", type=float, default=100e6)
    parser.add_argument("--captions", type=float, default=50e6)
    parser.add_argument("--glove", default="")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=float, default=1200)
    parser.add_argument("--part", nargs=2, action="append", metavar=("NAME", "COMMAND"),
                        help="a further program whose output is put on the page")
    parser.add_argument("--text-path", default="", help="the example text_path of pmill-engine")
    parser.add_argument("--wordnet", default="", help="folder with index.noun and noun.exc")
    parser.add_argument("--growth", default="0.1,0.3,1",
                        help="sizes of the growth table, times --documents; 0.1,0.3,1,3 goes on to 300 M tokens")
    parser.add_argument("--only", default="window,document,annotate,memory,growth,text")
    options = parser.parse_args()
    options.pmill = os.path.abspath(options.pmill)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bench = Bench(options)
    documents, captions = int(options.documents), int(options.captions)
    for part in options.only.split(","):
        if part == "window":
            bench.window(documents)
        elif part == "document":
            bench.document(captions)
        elif part == "annotate":
            bench.annotate(captions)
        elif part == "memory":
            bench.memory(documents)
        elif part == "growth":
            bench.growth([round(documents * float(times)) for times in options.growth.split(",")])
        elif part == "text":
            bench.text()
        else:
            parser.error(f"no part {part}")
    bench.parts()
    bench.write()


if __name__ == "__main__":
    main()
