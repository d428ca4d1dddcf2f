#!/usr/bin/env python3
"""Deaths on a cluster: every kind at random moments of a job, each compared with the undisturbed tables, byte for byte.

A scheduler and 3 executors on loopback, a job of 64 units or more. In each run one thing dies, hangs, is cut off or has no room at a
random moment; what died is started again, as a supervisor would. A driver that gave up with exit code 75 is run again.

    tools/soak_cluster.py --runs 10                needs a debug build (PMILL_BIN, else target/debug/pmill)
    tools/soak_cluster.py --runs 3 --kinds 'executor killed' 'store away'
"""

import argparse
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "python"))
import cluster  # noqa: E402
import pmill  # noqa: E402

FLAGS = ["--vocab-size", "4000", "--context", "window", "--window", "5", "--unit-size", "1KiB"]
EXECUTORS = 3
# A driver may be run again this often, and each run may take so long.
RERUNS, PATIENCE = 4, 120


class Cable:
    """Carries bytes between an executor and the scheduler, until it is cut: then nothing goes through, and nothing is refused."""

    def __init__(self, target):
        self.target, self.whole, self.open = target, threading.Event(), True
        self.whole.set()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.server.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while self.open:
            try:
                near, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(near,), daemon=True).start()

    def carry(self, near):
        self.whole.wait()
        try:
            host, port = self.target.split(":")
            far = socket.create_connection((host, int(port)), timeout=5)
        except OSError:
            near.close()
            return
        other = {near: far, far: near}
        with near, far:
            while self.open:
                ready, _, _ = select.select([near, far], [], [], 0.2)
                self.whole.wait()
                try:
                    for side in ready:
                        data = side.recv(1 << 16)
                        if not data:
                            return
                        other[side].sendall(data)
                except OSError:
                    return

    def close(self):
        self.open = False
        self.whole.set()
        self.server.close()


class Run:
    """One job with one disturbance."""

    def __init__(self, soak, draw):
        self.soak, self.draw = soak, draw
        self.running = soak.running
        self.warehouse = soak.folder / "wh"
        shutil.rmtree(self.warehouse, ignore_errors=True)
        self.driver = self.start()
        self.after = []

    def start(self, *flags):
        return cluster.drive(self.running.url, self.warehouse, self.soak.corpus, *FLAGS, *flags)

    def any_moment(self, earliest=0.0, latest=1.0):
        """Waits for a random moment of the job's usual time."""
        until = time.monotonic() + self.draw.uniform(earliest, latest) * self.soak.seconds
        cluster.wait_for(lambda: time.monotonic() > until or self.driver.poll() is not None, pause=0.01)

    def reach(self, prefix, least=1):
        cluster.reach(self.driver, self.warehouse, prefix, self.draw.randint(1, least))

    def executor(self):
        return self.draw.randrange(EXECUTORS)

    def restart(self, index, **how):
        self.running.executors[index].kill()
        self.running.executors[index] = self.running.start_executor(**how)

    def hold(self, role):
        role.signal(signal.SIGSTOP)
        self.after.append(lambda: role.signal(signal.SIGCONT))

    def end(self):
        """The driver's end, run again as long as it says that this helps. Gives how often it was run again."""
        reruns = 0
        while True:
            code, _, err = cluster.finish(self.driver, wait=PATIENCE)
            for undo in self.after:
                undo()
            self.after.clear()
            if code == 0:
                break
            killed = code is not None and code < 0
            assert code == 75 or killed, f"exit code {code}: {err}"
            assert reruns < RERUNS, f"still exit code {code} after {reruns} reruns: {err}"
            reruns += 1
            self.driver = self.start()
        cluster.same(pmill.Job(self.warehouse, "j"), self.soak.undisturbed)
        return reruns


KINDS = {}


def kind(name):
    def note(function):
        KINDS[name] = function
        return function

    return note


@kind("executor killed")
def _(run):
    run.any_moment()
    run.restart(run.executor())


@kind("executor killed in reduce")
def _(run):
    run.reach("range-", 3)
    run.restart(run.executor())


@kind("two of three executors killed")
def _(run):
    run.any_moment()
    first = run.executor()
    run.restart(first)
    run.restart((first + 1) % EXECUTORS)


@kind("all executors killed")
def _(run):
    run.any_moment()
    for index in range(EXECUTORS):
        run.restart(index)


@kind("executor frozen to the end")
def _(run):
    run.any_moment()
    run.hold(run.running.executors[run.executor()])


@kind("executor frozen for a while")
def _(run):
    run.any_moment(0, 0.6)
    role = run.running.executors[run.executor()]
    role.signal(signal.SIGSTOP)
    time.sleep(run.draw.uniform(0.2, 12))
    role.signal(signal.SIGCONT)


@kind("executor cut off from the network")
def _(run):
    index, address = run.executor(), run.running.listen
    cable = Cable(address)
    run.running.executors[index].terminate()
    run.running.listen = cable.address
    run.restart(index)
    run.running.listen = address
    run.running.executors[index].ready()
    run.after.append(cable.close)
    run.after.append(lambda: run.restart(index))
    run.any_moment()
    cable.whole.clear()
    if run.draw.random() < 0.5:
        threading.Timer(run.draw.uniform(0.5, 15), cable.whole.set).start()


@kind("executor asked to end")
def _(run):
    run.any_moment()
    index = run.executor()
    code = run.running.executors[index].terminate()
    assert code == 0, f"a drained executor ended with {code}"
    run.restart(index)


@kind("scheduler killed")
def _(run):
    run.any_moment()
    run.running.scheduler.kill()
    run.running.start_scheduler()


@kind("scheduler frozen for a while")
def _(run):
    run.any_moment(0, 0.6)
    run.running.scheduler.signal(signal.SIGSTOP)
    time.sleep(run.draw.uniform(0.2, 15))
    run.running.scheduler.signal(signal.SIGCONT)


@kind("driver killed")
def _(run):
    run.any_moment()
    run.driver.kill()


@kind("driver killed around the commit")
def _(run):
    cluster.reach(run.driver, run.warehouse, "range-", run.soak.ranges)
    time.sleep(run.draw.uniform(0, 0.4))
    run.driver.kill()


@kind("driver interrupted")
def _(run):
    run.any_moment()
    run.driver.send_signal(signal.SIGINT)


@kind("two drivers")
def _(run):
    run.any_moment()
    older = run.driver
    run.driver = run.start()
    code, _, err = cluster.finish(older, wait=PATIENCE)
    assert code in (0, 75), err


@kind("driver and all executors killed")
def _(run):
    run.any_moment()
    run.driver.kill()
    for index in range(EXECUTORS):
        run.restart(index)


@kind("scheduler and an executor killed")
def _(run):
    run.any_moment()
    run.running.scheduler.kill()
    run.running.executors[0].kill()
    run.running.start_scheduler()
    run.restart(0)


@kind("no room on one executor")
def _(run):
    place = run.soak.folder / "disk"
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=40", "pmill-soak", place]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        raise Skipped("mounting a small file system needs root")
    index = run.executor()
    run.restart(index, scratch=place)
    run.after.append(lambda: subprocess.run(["umount", "-l", place], check=True))
    run.after.append(lambda: run.restart(index))
    run.any_moment()
    for number in range(100):
        try:
            (place / str(number)).write_bytes(b"")
        except OSError:
            return


@kind("store away for seconds")
def _(run):
    run.any_moment()
    work, away = run.warehouse / ".pmill", run.warehouse / "away"
    try:
        work.rename(away)
    except OSError:
        return
    time.sleep(run.draw.uniform(0.1, 5))
    # Whoever came meanwhile made a new, empty folder: it is the mount point under a store that is away.
    shutil.rmtree(work, ignore_errors=True)
    away.rename(work)


@kind("a unit that ends its executor")
def _(run):
    name = f"{run.draw.choice(['terms', 'count'])}-{run.draw.randrange(run.soak.units):05}"
    index = run.executor()
    # Two of three: who takes the unit is chance.
    for number in (index, (index + 1) % EXECUTORS):
        run.running.executors[number].terminate()
        run.restart(number, env=pmill.environment(PMILL_KILL_UNIT=name))
        run.after.append(lambda number=number: run.restart(number))


@kind("a unit that holds its thread")
def _(run):
    name = f"{run.draw.choice(['terms', 'count'])}-{run.draw.randrange(run.soak.units):05}"
    index = run.executor()
    # Two of three: who takes the unit is chance.
    for number in (index, (index + 1) % EXECUTORS):
        run.running.executors[number].terminate()
        run.restart(number, env=pmill.environment(PMILL_HANG_UNIT=name))
        run.after.append(lambda number=number: run.restart(number))


class Skipped(Exception):
    pass


class Soak:
    def __init__(self, folder, rows, files):
        self.folder = folder
        self.corpus = folder / "corpus"
        pmill.run("sample-corpus", "--output", self.corpus, "--rows", rows, "--files", files)
        self.undisturbed = pmill.count(folder / "undisturbed", "j", self.corpus, "TEXT", *FLAGS[:-2])
        self.running = cluster.Cluster(folder / "roles", executors=EXECUTORS, slots=1)
        self.seconds = self.units = self.ranges = 0
        began = time.monotonic()
        run = Run(self, random.Random(0))
        while run.driver.poll() is None:
            self.units = max(self.units, len(cluster.manifests(run.warehouse, "count-")))
            self.ranges = max(self.ranges, len(cluster.manifests(run.warehouse, "range-")))
            time.sleep(0.002)
        assert run.end() == 0
        self.seconds = time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10, help="runs of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--files", type=int, default=66)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), arguments.rows, arguments.files)
        print(f"undisturbed: {soak.units} units, {soak.ranges} ranges, {soak.seconds:.1f} s; seed {arguments.seed}", flush=True)
        print("| kind | runs | right | of them run again | seconds (median, most) |\n| --- | --- | --- | --- | --- |", flush=True)
        for name in arguments.kinds:
            right, again, times, problems = 0, 0, [], []
            for number in range(arguments.runs):
                draw = random.Random(f"{arguments.seed} {name} {number}")
                for executor in soak.running.executors:
                    executor.ready()
                began = time.monotonic()
                run = Run(soak, draw)
                try:
                    KINDS[name](run)
                    again += run.end() > 0
                    right += 1
                except Skipped as reason:
                    problems.append(str(reason))
                    run.end()
                    break
                except Exception as error:  # noqa: BLE001
                    wrong += 1
                    problems.append(f"run {number}: {type(error).__name__}: {error}")
                    run.driver.kill()
                    soak.running.close()
                    soak.running = cluster.Cluster(soak.folder / f"roles-{name}-{number}", executors=EXECUTORS, slots=1)
                times.append(time.monotonic() - began)
            times.sort()
            took = f"{times[len(times) // 2]:.1f}, {times[-1]:.1f}" if times else ""
            print(f"| {name} | {len(times)} | {right} | {again} | {took} |", flush=True)
            for problem in problems:
                print(f"  {problem}", flush=True)
        soak.running.close()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    os.environ.setdefault("PMILL_BIN", str(Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "debug" / "pmill"))
    main()
