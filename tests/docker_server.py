"""A Docker daemon and a registry of images of their own: started for tests that ask for containers, and ended after them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.s3_server import free_ports
from tests.server_process import is_well, server_process

ASKED = "DERMAFLOW_TEST_CONTAINERS"
_PACKAGES = {"dockerd": "docker.io", "mmdebstrap": "mmdebstrap", "docker-registry": "docker-registry"}
_STARTS_WITHIN = 120  # seconds; 3 on a free machine
# Flags that leave the machine's network alone: no bridge, no rule, no forwarding.
_ALONE = ("--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false")


@dataclass(frozen=True)
class Docker:
    """A daemon that answers, and what a command is given that shall use it."""

    host: str

    @property
    def environment(self) -> dict[str, str]:
        """Debian's own docker first: another of that name may stand before it on PATH."""
        return {"DOCKER_HOST": self.host, "PATH": f"/usr/bin:/usr/sbin:{os.environ['PATH']}"}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`docker WORDS`."""
        given = {**os.environ, **self.environment}
        return subprocess.run(["docker", *words], capture_output=True, text=True, check=False, env=given)

    def says(self, *words: str) -> str:
        """What `docker WORDS` prints; it has to succeed."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def require_containers() -> None:
    """Skip unless containers are asked for, and what they need can be had here."""
    if os.environ.get(ASKED) != "1":
        pytest.skip(f"containers take half an hour and 10 GB: `make test-containers` runs this ({ASKED}=1)")
    if os.environ.get("DOCKER_HOST"):
        return
    if os.getuid() != 0:
        pytest.skip("only root may start a Docker daemon; or let DOCKER_HOST name one that runs")
    missing = [package for program, package in _PACKAGES.items() if not shutil.which(program)]
    if missing and shutil.which("apt-get"):
        for words in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            subprocess.run(
                ["apt-get", "-q", *words],
                check=False,
                capture_output=True,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
        missing = [package for program, package in _PACKAGES.items() if not shutil.which(program)]
    if missing:
        pytest.skip(f"{', '.join(missing)} can not be installed here by apt-get")


@contextmanager
def docker_daemon() -> Iterator[Docker]:
    """A daemon that leaves the machine's network alone; or the one that DOCKER_HOST names, which is left running."""
    if host := os.environ.get("DOCKER_HOST"):
        yield Docker(host)
        return
    folder = Path(tempfile.mkdtemp(prefix="dermaflow-docker-"))  # pytest's own folders are too long for a socket
    docker = Docker(f"unix://{folder}/docker.sock")
    places = ("--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", folder / "pid")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["dockerd", "--host", docker.host, *map(str, places), *_ALONE],
            stdout=log, stderr=log, start_new_session=True, env={**os.environ, **docker.environment},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _STARTS_WITHIN
        while docker.run("info").returncode:
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield docker
    finally:
        process.send_signal(signal.SIGTERM)  # it ends its containers, and containerd
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def image_registry(folder: Path) -> Iterator[str]:
    """Debian's registry on 127.0.0.1, as HOST:PORT, with its images below a folder."""
    (port,) = free_ports(1)
    host = f"127.0.0.1:{port}"
    folder.mkdir(parents=True)
    settings = folder / "registry.yaml"
    settings.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder / 'images'}}}}}\n"
        f"http: {{addr: {host}}}\n"
    )
    command = ["docker-registry", "serve", str(settings)]
    with server_process(command, folder / "log", lambda: is_well(f"http://{host}/v2/"), _STARTS_WITHIN):
        yield host
