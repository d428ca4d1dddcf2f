"""A cluster of several hosts on one machine: network namespaces with addresses of their own, whose links are cut."""

import json
import os
import shutil
import subprocess
import time

import pytest

import certificates
import cluster
import pmill

FLAGS = ["--vocab-size", "3000", "--context", "window", "--window", "5", "--unit-size", "300KiB"]
PORT = 50050


class Network:
    """Hosts on one switch. The switch is a namespace too, so that the machine's own network is not touched."""

    def __init__(self, hosts):
        self.prefix = f"pmill{os.getpid()}"
        self.made = []
        try:
            self.add("switch")
            self.ip("switch", "link", "add", "switch", "type", "bridge")
            self.ip("switch", "link", "set", "switch", "up")
            for number, host in enumerate(hosts, 1):
                self.add(host)
                self.ip("switch", "link", "add", f"to{host}", "type", "veth", "peer", "eth0", "netns", self.name(host))
                self.ip("switch", "link", "set", f"to{host}", "master", "switch", "up")
                self.ip(host, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
                self.ip(host, "link", "set", "eth0", "up")
                self.ip(host, "link", "set", "lo", "up")
                run = subprocess.run([*self.on(host), "true"], capture_output=True, text=True)
                if run.returncode != 0:
                    pytest.skip(f"nothing can be run in a network namespace here: {run.stderr.strip()}")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def address(number):
        return f"10.77.0.{number}"

    def name(self, host):
        return f"{self.prefix}-{host}"

    def add(self, host):
        run = subprocess.run(["ip", "netns", "add", self.name(host)], capture_output=True, text=True)
        if run.returncode != 0:
            pytest.skip(f"network namespaces cannot be made here: {run.stderr.strip()}")
        self.made.append(host)

    def ip(self, host, *arguments):
        run = subprocess.run(["ip", "-n", self.name(host), *arguments], capture_output=True, text=True)
        if run.returncode != 0:
            pytest.skip(f"`ip {' '.join(arguments)}` is not possible here: {run.stderr.strip()}")

    def on(self, host):
        """What a command begins with to run there."""
        return ["ip", "netns", "exec", self.name(host)]

    def cut(self, host):
        self.ip("switch", "link", "set", f"to{host}", "down")

    def mend(self, host):
        self.ip("switch", "link", "set", f"to{host}", "up")

    def close(self):
        for host in self.made:
            subprocess.run(["ip", "netns", "del", self.name(host)], capture_output=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts") / "corpus"
    pmill.run("sample-corpus", "--output", folder, "--rows", 30_000, "--files", 8)
    return folder


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    return pmill.count(tmp_path_factory.mktemp("undisturbed"), "j", corpus, "TEXT", *FLAGS[:-2])


@pytest.fixture(scope="module")
def network():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    network = Network(["scheduler", "first", "second", "driver"])
    yield network
    network.close()


@pytest.fixture(scope="module")
def hosts(network, tmp_path_factory):
    """A scheduler and two executors, one a host, with TLS and a token; gives how a driver comes to them."""
    folder = tmp_path_factory.mktemp("roles")
    address = network.address(1)
    keys = certificates.make(folder / "keys", "scheduler", address=address)
    token = folder / "token"
    token.write_text("0123456789abcdef0123\n")
    own = ["--tls-ca", keys / "authority.pem", "--token-file", token]
    url = f"https://{address}:{PORT}"
    roles = []
    try:
        scheduler = [
            *("scheduler", "--listen", f"{address}:{PORT}", "--executor-timeout", 8, "--token-file", token),
            *("--tls-cert", keys / "scheduler.pem", "--tls-key", keys / "scheduler.key"),
        ]
        roles.append(cluster.Role(folder, "scheduler", *scheduler, prefix=network.on("scheduler")).ready())
        for host in ("first", "second"):
            command = ["executor", "--scheduler", url, "--slots", 1, "--scratch", folder / host, *own]
            roles.append(cluster.Role(folder, host, *command, prefix=network.on(host)).ready())
        yield url, own
    finally:
        for role in roles:
            role.kill()


def executors(network, url, own, warehouse):
    command = [*network.on("driver"), pmill.binary(), "jobs", "--warehouse", warehouse, "--cluster", url, *own]
    listed = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True, timeout=60)
    return len(json.loads(listed.stdout)["executors"]) if listed.returncode == 0 else None


@pytest.mark.parametrize("host", ["first", "scheduler", "driver"])
def test_a_host_cut_off_from_the_network_changes_nothing(host, network, hosts, corpus, undisturbed, warehouse):
    url, own = hosts
    assert cluster.wait_for(lambda: executors(network, url, own, warehouse) == 2, seconds=90, pause=0.5)
    driver = cluster.drive(url, warehouse, corpus, *FLAGS, *own, prefix=network.on("driver"))
    cluster.reach(driver, warehouse, "terms-", count=2)
    network.cut(host)
    try:
        if host == "first":
            code, _, err = cluster.finish(driver, wait=200)
        else:
            # Not a wait for something: it is how long the link is down.
            time.sleep(3)
    finally:
        network.mend(host)
    if host != "first":
        code, _, err = cluster.finish(driver, wait=200)
    assert code == 0, err
    cluster.same(pmill.Job(warehouse, "j"), undisturbed)
