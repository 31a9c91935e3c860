"""The stack's parts started as their manifests say, on this machine: an S3 server with the identities of infra/secrets.sh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.infra.checkers import INFRA, KUBERNETES, documents
from tests.infra.manifests import of_kind
from tests.s3_server import free_ports

JOBS = KUBERNETES / "base" / "jobs"
_STARTS_WITHIN = 60  # seconds


@dataclass(frozen=True)
class Stack:
    """A running S3 server and the folder of its secrets."""

    endpoint: str
    secrets: Path

    def environment(self, identity: str) -> dict[str, str]:
        """What a pod has that is given the secret of an identity."""
        lines = (self.secrets / "s3" / f"{identity}.env").read_text().splitlines()
        names = next(item for item in documents((KUBERNETES / "base" / "endpoints.yaml").read_text())
                     if item["metadata"]["name"] == "dermaflow-buckets")["data"]  # fmt: skip
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith("AWS_")},
            **dict(line.split("=", 1) for line in lines),
            **names,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, identity: str) -> Any:
        """S3 as an identity sees it."""
        import boto3

        given = self.environment(identity)
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
        )

    def job(self, script: str, identity: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """One of the scripts of kubernetes/base/jobs, as its pod would run it."""
        return subprocess.run(
            [sys.executable, str(JOBS / script)],
            capture_output=True, text=True, check=False, env={**self.environment(identity), **environment},
        )  # fmt: skip


def container_of(manifest: str, kind: str) -> dict[str, Any]:
    """A manifest's first container."""
    workload = of_kind(documents((KUBERNETES / "base" / manifest).read_text()), kind)[0]
    return dict(workload["spec"]["template"]["spec"]["containers"][0])


@contextmanager
def running_stack(folder: Path) -> Iterator[Stack]:
    """S3 started as its manifest says; only folders and ports are this machine's. The disk has room for a volume a bucket."""
    secrets, data = folder / "secrets", folder / "data"
    data.mkdir(parents=True)
    subprocess.run([str(INFRA / "secrets.sh"), str(secrets)], check=True, capture_output=True)
    s3, master, volume, filer = free_ports(4)
    placed = {
        "-dir": data, "-s3.config": secrets / "s3" / "s3.json", "-s3.port": s3, "-s3.ip.bind": "127.0.0.1", "-volume.max": 4,
    }  # fmt: skip
    container, arguments = container_of("s3/s3.yaml", "StatefulSet"), []
    for argument in container["args"]:
        name, equals, value = argument.partition("=")
        arguments.append(f"{name}{equals}{placed.get(name, value)}")
    for name, port in (("s3", s3), ("master", master), ("volume", volume), ("filer", filer)):
        arguments += [f"-{name}.port={port}"] if name != "s3" else []
        arguments.append(f"-{name}.port.grpc={port + 10_000}")
    weed = Path(sys.executable).with_name("weed")
    log = (folder / "weed.log").open("wb")
    with log, subprocess.Popen(
        [str(weed), "server", *arguments], stdout=log, stderr=log, cwd=folder, start_new_session=True,
        env={**os.environ, **{item["name"]: item["value"] for item in container["env"]}, "HOME": str(folder)},
    ) as process:  # fmt: skip
        try:
            stack = Stack(f"http://127.0.0.1:{s3}", secrets)
            _wait(stack, process, folder / "weed.log")
            yield stack
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(stack: Stack, process: subprocess.Popen[bytes], log: Path) -> None:
    import urllib.error
    import urllib.request

    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + _STARTS_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{stack.endpoint}/healthz", timeout=5).close()  # noqa: S310 - the probe of the manifest
            stack.client("admin").list_buckets()
        except (OSError, urllib.error.URLError, BotoCoreError, ClientError):
            time.sleep(0.2)
        else:
            return
    raise RuntimeError("the S3 server did not start:\n" + log.read_text()[-3000:])
