"""An S3 store on loopback (moto, or s3s-fs where PMILL_S3S_FS names its binary) behind a proxy that spoils answers."""

import logging
import os
import random
import re
import subprocess
import time
from types import SimpleNamespace

import pytest

import pmill
from faults import FaultyProxy

KEY, SECRET = "AKIAEXAMPLEKEY", "a-secret-that-nobody-may-see"


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory):
    """Host and port."""
    if "PMILL_S3S_FS" in os.environ:
        yield from s3s_fs(tmp_path_factory.mktemp("s3s"))
        return
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


def s3s_fs(folder):
    """The server of the crate s3s-fs, on a port of its own choice."""
    (folder / "root").mkdir()
    log = folder / "log"
    command = [os.environ["PMILL_S3S_FS"], "--host", "127.0.0.1", "--port", "0", "--access-key", KEY, "--secret-key", SECRET]
    with open(log, "wb") as out:
        process = subprocess.Popen([*command, folder / "root"], stdout=out, stderr=out, env={"RUST_LOG": "s3s_fs=info"})
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"server is running at http://127\.0\.0\.1:(\d+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield "127.0.0.1", int(found[1])
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def store(s3_server, tmp_path):
    """A bucket of its own, behind a proxy that forwards everything until told otherwise."""
    import boto3

    proxy = FaultyProxy(*s3_server)
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{s3_server[0]}:{s3_server[1]}",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    )
    bucket = f"bucket-{random.getrandbits(48):012x}"
    client.create_bucket(Bucket=bucket)

    def environment(work="work", **more):
        return pmill.environment(
            AWS_ACCESS_KEY_ID=KEY,
            AWS_SECRET_ACCESS_KEY=SECRET,
            AWS_REGION="us-east-1",
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}",
            AWS_ALLOW_HTTP="true",
            PMILL_WORK_DIR=tmp_path / work,
            PMILL_RETRY_SECONDS=20,
            **more,
        )

    def keys(prefix=""):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return sorted(item["Key"] for page in pages for item in page.get("Contents", []))

    def body(key):
        return client.get_object(Bucket=bucket, Key=key)["Body"].read()

    yield SimpleNamespace(
        proxy=proxy, client=client, bucket=bucket, uri=f"s3://{bucket}", env=environment, keys=keys, body=body
    )
    proxy.stop()
