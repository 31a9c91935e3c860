"""Real servers of MLflow on 127.0.0.1: the tracking server, over SQLite, without accounts; and one that serves a model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.s3_server import free_ports
from tests.server_process import is_well, server_process

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
    places = dict.fromkeys(("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"), tracking_uri)  # MLflow's client leaves both behind
    with _running(folder, "models", "serve", *options, PATH=path, **places) as url:
        yield url


@contextmanager
def _running(folder: Path, *command: str, **environment: str) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    set_here = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", **environment}
    words = [sys.executable, "-m", "mlflow", *command, "--host", "127.0.0.1", "--port", str(port)]
    with server_process(words, folder / "server.log", lambda: is_well(f"{url}/health"), _STARTS_WITHIN, set_here):
        yield url
