"""Real servers of MLflow on 127.0.0.1: the tracking server, over SQLite, without accounts; and one that serves a model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.s3_server import free_ports

_STARTS_WITHIN = 180  # seconds; 15 to 35 on a free machine


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The tracking server's address, while it runs; its data lie below `folder`."""
    with _running(
        folder, "server", "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ) as url:  # fmt: skip
        yield url


@contextmanager
def model_server(folder: Path, model: str, tracking_uri: str) -> Iterator[str]:
    """The address of `mlflow models serve` for a registered model, while it runs in this environment."""
    options = ("--model-uri", model, "--env-manager", "local", "--workers", "1")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it looks for uvicorn there
    with _running(folder, "models", "serve", *options, MLFLOW_TRACKING_URI=tracking_uri, PATH=path) as url:
        yield url


@contextmanager
def _running(folder: Path, *command: str, **environment: str) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    set_here = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", **environment}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **set_here}, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(process, url, folder / "server.log")
        yield url
    finally:
        with suppress(ProcessLookupError):  # it ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _STARTS_WITHIN
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310 - of 127.0.0.1
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("MLflow did not start:\n" + log.read_text()[-3000:]) from None
            time.sleep(0.3)
