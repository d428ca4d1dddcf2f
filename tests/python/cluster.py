"""A cluster on loopback: real processes of the binary, ports of the system's choice, each ended by its own handle."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pmill


class Role:
    """A scheduler or an executor that was started here."""

    def __init__(self, folder, name, *arguments, env=None, prefix=()):
        self.name, self.log = name, Path(folder) / f"{name}.log"
        self.process = subprocess.Popen(
            [*prefix, pmill.binary(), *map(str, arguments), "--json", "-v"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.log.open("ab"),
            env=env or pmill.environment(),
        )
        self.info = None

    def ready(self, seconds=60):
        """Waits for the line that says so."""
        if self.info:
            return self
        os.set_blocking(self.process.stdout.fileno(), False)
        deadline, text = time.monotonic() + seconds, b""
        while not text.endswith(b"\n"):
            assert self.process.poll() is None, f"{self.name} ended: {self.log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{self.name} is not ready after {seconds} s"
            text += self.process.stdout.read() or b""
            time.sleep(0.01)
        self.info = json.loads(text)
        return self

    def signal(self, number):
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self):
        self.signal(signal.SIGCONT)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=30)
        self.process.stdout.close()

    def terminate(self, wait=40):
        """SIGTERM; gives the exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(timeout=wait)


class Cluster:
    """A scheduler with executors. A role that is killed can be started again under the same name."""

    def __init__(
        self, folder, executors=2, slots=1, scheduler_flags=(), executor_flags=(), timeout=8, scheme="http", listen="127.0.0.1:0"
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.slots, self.executor_flags = slots, list(map(str, executor_flags))
        self.scheduler_flags = ["--executor-timeout", timeout, *scheduler_flags]
        self.roles, self.number = [], 0
        self.scheme, self.listen = scheme, listen
        self.scheduler = self.start_scheduler()
        self.executors = [self.start_executor() for _ in range(executors)]
        for executor in self.executors:
            executor.ready()

    @property
    def url(self):
        return f"{self.scheme}://{self.listen}"

    def start_scheduler(self):
        role = Role(self.folder, "scheduler", "scheduler", "--listen", self.listen, *self.scheduler_flags)
        self.roles.append(role)
        role.ready()
        self.listen = role.info["listen"]
        self.scheduler = role
        return role

    def start_executor(self, *flags, scratch=None, env=None):
        self.number += 1
        scratch = scratch or self.folder / "scratch"
        role = Role(
            self.folder,
            f"executor-{self.number}",
            *("executor", "--scheduler", self.url, "--slots", self.slots, "--scratch", scratch),
            *("--memory-limit", "256MiB", *self.executor_flags, *flags),
            env=env,
        )
        self.roles.append(role)
        return role

    def close(self):
        for role in self.roles:
            role.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def arguments(warehouse, corpus, *flags, name="j", text="TEXT"):
    corpus = corpus if isinstance(corpus, list) else [corpus]
    return ["count", "--warehouse", warehouse, "--name", name, "--input", *corpus, "--text", text, *flags]


def drive(url, warehouse, corpus, *flags, prefix=()):
    """Starts a driver and leaves it running; its output is read with `finish`."""
    command = [*arguments(warehouse, corpus, *flags), "--cluster", url, "--json", "--cluster-patience", 60]
    return subprocess.Popen(
        [*prefix, pmill.binary(), *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=pmill.environment(),
    )


def finish(driver, wait=120):
    """(exit code, summary or None, messages) of a driver; it is killed when it takes too long."""
    try:
        out, err = driver.communicate(timeout=wait)
    except subprocess.TimeoutExpired:
        driver.kill()
        out, err = driver.communicate()
        return None, None, err.decode()
    return driver.returncode, json.loads(out) if driver.returncode == 0 else None, err.decode()


def manifests(warehouse, prefix=""):
    """Manifests of the plan under way."""
    return list(Path(warehouse).glob(f".pmill/j.units/plan-*/done/{prefix}*.json"))


def wait_for(condition, seconds=60, pause=0.003):
    """Waits for a condition with a deadline; gives whether it came."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(pause)
    return False


def reach(driver, warehouse, prefix, count=1):
    """Waits until a driver has so many manifests of a kind. `False` when it ended before that was seen."""
    assert wait_for(lambda: driver.poll() is not None or len(manifests(warehouse, prefix)) >= count)
    return driver.poll() is None


def same(job, undisturbed, tables=("vocab", "pairs", "outside")):
    """The same bytes in all tables, the same facts, and nothing left behind."""
    for table in tables:
        assert job.exists(table) == undisturbed.exists(table), table
        if job.exists(table):
            assert job.content(table) == undisturbed.content(table), table
    assert job.table("sources").drop_columns(["batch"]).equals(undisturbed.table("sources").drop_columns(["batch"]))
    assert job.facts() == undisturbed.facts()
    assert job.orphans() == []
    assert not (job.warehouse / ".pmill" / f"{job.name}.units").exists()
