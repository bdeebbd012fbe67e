"""A server that speaks S3, on the loopback."""

import urllib.request

import pytest


@pytest.fixture(scope="session")
def s3_address():
    """Yield the address of a server that runs as long as the tests."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_address, monkeypatch):
    """Return the name of an empty bucket that the environment leads to."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3

    urllib.request.urlopen(f"{s3_address}/moto-api/reset", data=b"").close()
    boto3.client("s3").create_bucket(Bucket="archive")
    return "archive"
