"""A bucket on loopback, in place of one far away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def served_bucket(name: str) -> Iterator[Any]:
    """A bucket that boto3 finds, and a client for it; skips where there is no moto."""
    boto3 = pytest.importorskip("boto3", reason='needs boto3: pip install -e ".[shards]"')
    moto = pytest.importorskip("moto.server", reason='needs moto: pip install -e ".[dev]"')
    from llava.data.features import remote

    with pytest.MonkeyPatch.context() as patch:
        server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "test")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            remote._client.cache_clear()
            client = boto3.client("s3")
            client.create_bucket(Bucket=name)
            yield client
        finally:
            server.stop()
            remote._client.cache_clear()
