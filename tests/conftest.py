"""Fixtures that cost seconds or minutes, once a session: synthetic images, a finished run of the pipeline, an S3 server."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dermaflow.progress import set_environment
from tests.s3_server import S3Server, s3_server
from tests.workspace import ROOT, TINY, Workspace, make_workspace, sets

if TYPE_CHECKING:
    from components.register.core import Evidence
    from tests.registries import Registry

pytest.register_assert_rewrite("tests.browser")  # its assertions tell what they saw, as those of a test do
set_environment()  # as every command does: without it MLflow would tell its makers of the tests too

_TAKES_FINISHED = re.compile(
    r"\b(finished\w*|continued|two_champions|used): "
)  # a fixture below that rests on the finished run, as an argument


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where several processes share the tests: those of a module stay together, and those of a folder with the finished run.

    The first of these folders makes the run, while other processes have other things to do; the later ones find it.
    """
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):  # not groups by xdist_group: xdist 3.8 loses them with pytest 9.2
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            takes = _TAKES_FINISHED.search((ROOT / file).read_text())
            return f"finished, {Path(file).parent}" if takes else file

    return Together(config, log)


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
    with _once_for_all(tmp_path_factory, "finished") as folder:
        made, told = Workspace(folder / "workspace"), folder / "told.json"
        if not told.exists():
            shutil.rmtree(made.path, ignore_errors=True)  # of an attempt that took too long
            make_workspace(made.path)
            (made.path / "data").mkdir()
            shutil.copytree(phantoms, made.path / "data" / "phantom")
            told.write_text(json.dumps(made.json("run", "--profile", "phantom", *sets(*TINY))))
    return made, json.loads(told.read_text())


@contextmanager
def _once_for_all(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that all processes of this session share, for one of them at a time."""
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture
def continued(workspace: Workspace, finished: tuple[Workspace, dict[str, Any]]) -> Workspace:
    """A fresh working folder that goes on from the finished run: the cache answers what it has done; the registry is empty."""
    for place in ("cache/steps", "state"):
        shutil.copytree(finished[0].path / ".dermaflow" / place, workspace.path / ".dermaflow" / place, symlinks=True)
    return workspace


@pytest.fixture(scope="session")
def finished_run(finished: tuple[Workspace, dict[str, Any]]) -> Path:
    """The folder of the finished run; not to be changed."""
    made, result = finished
    return made.path / "runs" / str(result["run_id"])


@pytest.fixture(scope="session")
def finished_evidence(finished_run: Path) -> Evidence:
    """What the finished run's version was registered with."""
    from tests.registries import evidence_of

    return evidence_of(finished_run)


@pytest.fixture(scope="session")
def new_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a registry that holds nothing: MLflow takes 3 s to make one."""
    from dermaflow import registry

    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    registry.connect(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def two_champions(tmp_path_factory: pytest.TempPathFactory, new_registry: Path, finished_evidence: Evidence) -> Registry:
    """A registry in which the finished run's candidate was champion, and then a better one; not to be changed: copy it."""
    from dataclasses import replace

    from tests.registries import COMMIT, answering, make_registry, run_promotions

    folder = tmp_path_factory.mktemp("two-champions")
    first = replace(finished_evidence, commit=COMMIT)
    better = replace(answering(first, folder / "better", right=1.0), run_id="better")
    made = make_registry(new_registry, folder / "registry")
    assert [told["outcome"] for told in run_promotions(made, [first, better], folder)] == ["promoted", "promoted"]
    return made


@pytest.fixture
def used(tmp_path: Path, two_champions: Registry) -> Registry:
    """A copy of `two_champions` that the test may change."""
    return two_champions.copy(tmp_path / "registry")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; each test uses buckets of its own, and leaves the server running."""
    with s3_server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server
