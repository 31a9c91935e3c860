"""Fixtures that cost seconds or minutes, once a session: synthetic images, a finished run of the pipeline, an S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.s3_server import S3Server, s3_server
from tests.workspace import TINY, Workspace, make_workspace, sets


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """84 synthetic images in HAM10000's layout; not to be changed."""
    from dermaflow.phantom import draw_phantoms

    folder = tmp_path_factory.mktemp("source") / "phantom"
    draw_phantoms(folder, images=84, seed=7)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, phantoms: Path) -> Workspace:
    """A fresh working folder whose data/phantom are the session's phantoms."""
    made = make_workspace(tmp_path / "workspace")
    (made.path / "data").mkdir()
    (made.path / "data" / "phantom").symlink_to(phantoms)
    return made


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> tuple[Workspace, dict[str, Any]]:
    """A working folder in which the whole pipeline has run, and what the command printed as JSON."""
    made = make_workspace(tmp_path_factory.mktemp("finished") / "workspace")
    (made.path / "data").mkdir()
    (made.path / "data" / "phantom").symlink_to(phantoms)
    return made, made.json("run", "--profile", "phantom", *sets(*TINY))


@pytest.fixture(scope="session")
def finished_run(finished: tuple[Workspace, dict[str, Any]]) -> Path:
    """The folder of the finished run; not to be changed."""
    made, result = finished
    return made.path / "runs" / str(result["run_id"])


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; each test uses buckets of its own, and leaves the server running."""
    with s3_server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server
