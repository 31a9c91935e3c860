"""A real S3 server (SeaweedFS) on 127.0.0.1, with identities; it can be stopped and started again on the same data and port."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ADMIN = ("dermaflow-admin", "an-admin-secret-of-tests")
READER = ("dermaflow-reader", "a-reader-secret-of-tests")  # may read and list the bucket "images", nothing else
LISTER = ("dermaflow-lister", "a-lister-secret-of-tests")  # may list the bucket "images" and read nothing
PORTS = ("s3.port", "filer.port", "master.port", "volume.port", "admin.port")
_STARTS_WITHIN = 60  # seconds; 1 to 3 on a free machine


class S3Server:
    """The server's process, its data below `folder`, and how to speak with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.endpoint = f"http://127.0.0.1:{self._ports['s3.port']}"
        self.environment = self.environment_of(*ADMIN)
        (folder / "data").mkdir(parents=True)
        (folder / "s3.json").write_text(json.dumps(_IDENTITIES))
        (folder / "no-aws-config").touch()

    def environment_of(self, key: str, secret: str) -> dict[str, str]:
        """Variables under which the AWS tools speak with this server, as one of its users."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": str(self._folder / "no-aws-config"),  # /dev/null is no file to botocore's asynchronous sister
            "AWS_SHARED_CREDENTIALS_FILE": str(self._folder / "no-aws-config"),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        """Start it, and wait until it answers; data that is there stays."""
        assert self._process is None, "it is running"
        with (self._folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                env={**os.environ, "HOME": str(self._folder)},
            )
        deadline = time.monotonic() + _STARTS_WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("the S3 server did not start:\n" + (self._folder / "weed.log").read_text()[-3000:])
            time.sleep(0.1)

    def stop(self) -> None:
        """Kill it, as a power cut would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def client(self) -> Any:
        """A boto3 client with all rights."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=ADMIN[0],
            aws_secret_access_key=ADMIN[1],
            region_name="us-east-1",
            config=Config(max_pool_connections=16),
        )

    def make_bucket(self, bucket: str) -> None:
        """Make a bucket unless it is there."""
        client = self.client()
        if bucket not in {known["Name"] for known in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=bucket)

    def upload(self, folder: Path, bucket: str, prefix: str) -> None:
        """Upload all files of a folder under a prefix."""
        client = self.client()
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        with ThreadPoolExecutor(8) as pool:
            for future in [
                pool.submit(client.upload_file, str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")
                for path in files
            ]:
                future.result()

    def sizes(self, bucket: str, prefix: str) -> dict[str, int]:
        """Bytes of each object below a prefix, by key."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", ())}

    def _command(self) -> list[str]:
        weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
        ports = [f"-{name}={port}" for name, port in self._ports.items()]
        ports += [f"-{name}.grpc={port + 10_000}" for name, port in self._ports.items()]
        return [
            weed,
            "mini",
            f"-dir={self._folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.config={self._folder / 's3.json'}",
            *("-s3.autoCreateBucket=false", "-s3.allowDeleteBucketNotEmpty=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *("-master.telemetry=false", "-admin.ui=false", "-webdav=false"),
            *ports,
        ]

    def _answers(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        if not _is_open(self._ports["s3.port"]):
            return False
        try:
            self.client().list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A running server whose data lie below `folder`; it is ended at the end."""
    server = S3Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def free_ports(count: int) -> list[int]:
    """Ports that can be bound, each with the one 10,000 above it: SeaweedFS speaks gRPC there. All lie below those that Linux
    gives to outgoing connections (32,768 on)."""
    found: list[int] = []
    candidate = 10_000 + 97 * os.getpid() % 12_000  # far from a server that a process started beside this one is starting
    while len(found) < count:
        candidate = candidate + 1 if candidate < 22_000 else 10_000
        if _is_free(candidate) and _is_free(candidate + 10_000):
            found.append(candidate)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: connections that are closing do not matter
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


_IDENTITIES = {
    "identities": [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for name, (key, secret), actions in (
            ("admin", ADMIN, ["Admin", "Read", "List", "Tagging", "Write"]),
            ("reader", READER, ["Read:images", "List:images"]),
            ("lister", LISTER, ["List:images"]),
        )
    ]
}
