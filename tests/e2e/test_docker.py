"""The pipeline in containers, whole: images are built, pushed and locked, and a run in them is held against a local one.

It takes half an hour and more: `make test-containers` alone runs it. The daemon and the registry are the tests' own.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dermaflow.artifacts import ARTIFACT_FILE, read_json
from dermaflow.errors import InputError
from dermaflow.params import load_params
from pipelines import containers, image_builds
from pipelines.images import GROUPS, name_of, read_lock, require_released
from pipelines.provision import read_table
from tests.docker_server import Docker, docker_daemon, image_registry, require_containers
from tests.versions import copy_project
from tests.workspace import ROOT, TINY, Workspace, make_workspace, sets

pytestmark = pytest.mark.timeout(7200)

BASE = "dermaflow-base:local"
RUN = ("run", "--profile", "phantom", *sets(*TINY, "train.architectures=[cnn]"))
# Files of artifacts that tell where and when they were made: the same in content, not in bytes.
TOLD = {"model.json": "the environment: libraries, Python", "history.json": "the same, and times"}


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    """A daemon, in the environment of this process too."""
    require_containers()
    with docker_daemon() as daemon, pytest.MonkeyPatch.context() as patch:
        for name, value in daemon.environment.items():
            patch.setenv(name, value)
        yield daemon


@pytest.fixture(scope="module")
def images(docker: Docker) -> dict[str, image_builds.Built]:
    """The images of this commit without CUDA, on a base of Debian's packages."""
    if docker.run("image", "inspect", BASE).returncode:
        made = subprocess.run([ROOT / "infra/images/base.sh", BASE], capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr
    ca = os.environ.get("PIP_CERT")
    done = image_builds.build(GROUPS, base=BASE, cpu=True, ca=Path(ca) if ca else None)
    return {image.group: image for image in done}


@dataclass(frozen=True)
class Runs:
    """The same run twice: in processes, and in containers."""

    local: Path
    docker: Path
    workspace: Workspace
    told: dict[str, Any]


@pytest.fixture(scope="module")
def runs(images: dict[str, image_builds.Built], phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Both runs, each in a working folder of its own."""
    folders, told = [], {}
    for on in ("local", "docker"):
        made = make_workspace(tmp_path_factory.mktemp(f"on-{on}") / "workspace")
        (made.path / "data").mkdir()
        (made.path / "data" / "phantom").symlink_to(phantoms)
        told = made.json(*RUN, "--on", on)
        folders.append(made.path / "runs" / str(told["run_id"]))
    return Runs(*folders, made, told)


def test_images_are_pushed_and_locked_by_what_the_registry_has(images: dict[str, image_builds.Built], tmp_path: Path):
    path = tmp_path / "lock.yaml"
    with image_registry(tmp_path / "registry") as host:
        image_builds.push(GROUPS, f"{host}/dermaflow", path=path)
        lock = read_lock(path)
        assert lock is not None
        assert image_builds.check(path) == []
        commit = image_builds.committed()
        for group, image in lock.images.items():
            assert (image.reference, image.mark, image.revision) == (f"{host}/dermaflow/{group}", "local", commit)
            assert image.builder == f"docker {image_builds.server_version()}"
        with pytest.raises(InputError, match="only this machine has them"):
            require_released(GROUPS, path)
        path.write_text(path.read_text().replace(lock.images["data"].digest, "sha256:" + 64 * "0"))
        (fault,) = image_builds.check(path)
        assert f"has no dermaflow/data with sha256:{64 * '0'}; `dermaflow images push` it" in fault.detail


@pytest.mark.parametrize("group", GROUPS)
def test_an_image_is_of_one_user_and_has_nothing_to_build_with(
    docker: Docker, images: dict[str, image_builds.Built], group: str
):
    told = json.loads(docker.says("image", "inspect", name_of(group)))[0]["Config"]
    assert told["User"] == "10001:10001"
    assert not told["Entrypoint"]
    assert told["Labels"][image_builds.REVISION] == image_builds.committed()
    look = (
        "for tool in gcc cc make pip pip3; do command -v $tool && exit 1; done; "
        "python3 -c 'import importlib.util as i; assert not i.find_spec(\"pip\")' && "
        "test ! -e /root/.cache && test ! -e /wheels && test ! -e /installer && id -u"
    )
    found = docker.says("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "sh", name_of(group), "-c", look)
    assert found == "0"


def test_results_are_those_of_a_local_run(runs: Runs):
    """Every artifact of a step that is not registered or told: each of its files, by digest."""
    compared = 0
    for seal in sorted(runs.local.rglob(ARTIFACT_FILE)):
        place = seal.parent.relative_to(runs.local)
        if place.parts[0] in ("register", "promote", "notify", "compare"):
            continue
        here, there = read_json(seal)["files"], read_json(runs.docker / place / ARTIFACT_FILE)["files"]
        assert here.keys() == there.keys(), place
        for name in here.keys() - TOLD.keys():
            assert there[name] == here[name], f"{place}/{name}"
            compared += 1
    assert compared > 30


def test_the_model_is_registered_and_has_a_page(runs: Runs):
    assert runs.told["outcome"] != "failed"
    versions = runs.workspace.versions()
    assert [version["name"] for version in versions].count("dermaflow-candidate") == 1
    assert runs.workspace.call("verify").returncode == 0


def test_what_steps_write_is_not_roots(runs: Runs):
    table = read_table()
    owners = {path.stat().st_uid for path in (runs.docker / "ingest" / "dataset").iterdir()}
    assert owners == {table.run.user if os.getuid() == 0 else os.getuid()}


def test_no_container_is_left(runs: Runs, docker: Docker):
    assert docker.says("ps", "--all", "--quiet") == ""
    assert docker.says("volume", "ls", "--quiet") == ""


PROBE = """
import json, os, pathlib, socket
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
def may(path):
    try:
        pathlib.Path(path).write_text("")
        return True
    except OSError:
        return False
cgroup = [pathlib.Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes")]
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(),
    "capabilities": [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privileges": int(status["NoNewPrivs"]),
    "writes": [path for path in ("/probe", "/opt/dermaflow/probe", "/etc/probe", "/tmp/probe", "/scratch/probe") if may(path)],
    "networks": sorted(name for _, name in socket.if_nameindex()),
    "memory": next(int(path.read_text()) for path in cgroup if path.exists()),
}))
"""


@pytest.mark.parametrize(
    "task", ["ingest", "segment", "split", "validate", "augment", "train", "evaluate", "explain", "promote"]
)
def test_a_container_has_what_its_task_needs_and_no_more(
    docker: Docker, images: dict[str, image_builds.Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
):
    """Asked of a container that was started with the task's own arguments."""
    place = make_workspace(tmp_path / "workspace").path
    monkeypatch.chdir(place)
    table = read_table()
    given = containers.Containers("probe", load_params("phantom"), table, {group: image.id for group, image in images.items()})
    for folder in given.written(table.tasks[task]):
        containers.give(folder, table)
    with image_builds.daemon() as client:
        image = given.images[table.tasks[task].group]
        container = client.containers.create(image, ["python3", "-c", PROBE], **given.arguments(task))
        try:
            container.start()
            assert container.wait()["StatusCode"] == 0, container.logs().decode()
            told = json.loads(container.logs())
        finally:
            container.remove(v=True, force=True)
    assert (told["uid"], told["gid"]) == containers.user(table)
    assert told["uid"] != 0
    assert told["capabilities"] == [0, 0, 0, 0, 0]
    assert told["no_new_privileges"] == 1
    assert told["writes"] == ["/tmp/probe", "/scratch/probe"]  # noqa: S108 - of the container
    assert told["networks"] == ["lo"]
    assert told["memory"] == given.arguments(task)["mem_limit"]


def test_a_step_that_is_ended_for_its_memory_is_told_so_with_the_remedy(
    images: dict[str, image_builds.Built], phantoms: Path, tmp_path: Path, docker: Docker
):
    """By a copy of the code in which ingest has too little: its answer is not asked for again."""
    copy = tmp_path / "code"
    copy_project(copy)
    table = copy / "infra" / "tasks.yaml"
    text = table.read_text()
    small = text.replace("memory: [1Gi, 4Gi], minutes: 240", "memory: [16Mi, 48Mi], minutes: 240")
    assert small != text
    table.write_text(small)
    place = make_workspace(tmp_path / "workspace")
    (place.path / "data").mkdir()
    (place.path / "data" / "phantom").symlink_to(phantoms)
    done = place.run(*RUN, "--on", "docker", "--json", PYTHONPATH=str(copy))
    assert done.returncode == 1, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["step"] == "ingest"
    assert (
        "it reached its memory limit of 48Mi, and the kernel ended it; raise tasks.ingest.memory in infra/tasks.yaml"
        in error["message"]
    )
    tasks = read_json(next((place.path / "runs").glob("2*")) / "tasks.json")
    assert [task["task"] for task in tasks].count("ingest") == 1
    assert docker.says("ps", "--all", "--quiet") == ""
