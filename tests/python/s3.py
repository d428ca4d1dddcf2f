"""An S3 store on loopback (moto) behind a proxy that spoils answers."""

import logging
import random
from types import SimpleNamespace

import pytest

import pmill
from faults import FaultyProxy

KEY, SECRET = "AKIAEXAMPLEKEY", "a-secret-that-nobody-may-see"


@pytest.fixture(scope="module")
def s3_server():
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


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
