"""The images of the steps without Docker: Dockerfile, locks of wheels, commands and what they refuse. With it: tests/e2e."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from pipelines import image_builds
from pipelines.code import _closure
from pipelines.images import GROUPS, ImagesLock, read_lock, require_released
from pipelines.provision import read_table
from tests.infra.checkers import INFRA, checker, passes
from tests.kube_stub import RegistryStub
from tests.local_server import running
from tests.workspace import ROOT, Workspace

IMAGES = INFRA / "images"
LOCKS = (*GROUPS, "train-cpu")
PINNED = re.compile(r"^([a-z0-9-]+)==(\S+) \\$", re.MULTILINE)
RUNTIME = dict(PINNED.findall((ROOT / "requirements" / "runtime.txt").read_text()))
# Modules that a group's code names within functions that its steps never call.
NEVER_CALLED = {
    "data": {"keras"},  # dermaflow.architectures, whose table of sizes and names is read
    "validate": {"keras"},
}


def pinned(name: str) -> dict[str, str]:
    """Version by package of a group's lock."""
    return dict(PINNED.findall((IMAGES / f"{name}.txt").read_text()))


@pytest.mark.parametrize("name", LOCKS)
def test_wheels_are_those_that_the_project_is_tested_with(name: str):
    expected = RUNTIME | {"tensorflow": RUNTIME["tensorflow-cpu"]}
    versions = pinned(name)
    others = {package for package in versions if not package.startswith("nvidia-") or name != "train"}
    assert others
    assert {package: versions[package] for package in others} == {package: expected.get(package) for package in others}


@pytest.mark.parametrize("name", [*LOCKS, "builder"])
def test_every_wheel_has_a_hash_and_no_address(name: str):
    text = (IMAGES / f"{name}.txt").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert entries
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


@pytest.mark.parametrize("group", GROUPS)
def test_an_image_has_what_its_steps_import(group: str):
    """Also what they import within functions: a container has no way to fetch what is missing."""
    distributions = packages_distributions()
    steps = [ROOT / "components" / step for step in image_builds.steps_of(group)]
    cores = [path for step in steps for path in (step / "core.py", *step.rglob("component.py"))]
    files = {file for core in cores for file in _closure(core)}
    assert files
    wheels = set(pinned(image_builds.wheels_of(group, cpu=True)))
    for file in files:
        for module in _imported(file) - NEVER_CALLED.get(group, set()):
            there = {name.lower().replace("_", "-") for name in distributions[module]}
            assert there & wheels, f"{file.relative_to(ROOT)} imports {module}, which {group} has not"


def _imported(file: Path) -> set[str]:
    """Modules of packages that a file imports at any place; not those for type checkers alone."""
    tree = ast.parse(file.read_text())
    unread = {
        id(node)
        for guarded in ast.walk(tree)
        if isinstance(guarded, ast.If) and ast.unparse(guarded.test) == "TYPE_CHECKING"
        for node in ast.walk(guarded)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"dermaflow", "components", "pipelines"}


def test_tensorflow_is_where_models_are_and_cuda_where_they_are_trained():
    has_tensorflow = {name for name in LOCKS if {"tensorflow", "tensorflow-cpu"} & set(pinned(name))}
    assert has_tensorflow == {"train", "train-cpu", "judge", "registry"}
    assert {name for name in LOCKS if any(package.startswith("nvidia-") for package in pinned(name))} == {"train"}
    assert "great-expectations" in pinned("validate")
    assert [name for name in LOCKS if "great-expectations" in pinned(name)] == ["validate"]


def test_dockerfile_passes():
    passes(checker("hadolint"), IMAGES / "Dockerfile")


def test_the_image_is_as_the_table_of_tasks_has_it():
    lines = [line.split() for line in (IMAGES / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    run = read_table().run
    assert [words[0] for words in lines if words[0] in ("ENTRYPOINT", "CMD", "VOLUME", "EXPOSE", "ADD")] == []
    assert [words[1] for words in lines if words[0] == "USER"] == [f"{run.user}:{run.user}"]
    last_stage = lines[max(index for index, words in enumerate(lines) if words[0] == "FROM") :]
    assert [words for words in last_stage if words[0] == "RUN"] == [], "what is made is copied from the other stages"
    assert f"/image{run.scratch.path}" in (IMAGES / "Dockerfile").read_text()


def test_base_says_what_is_missing(tmp_path: Path):
    done = subprocess.run(
        ["/bin/bash", str(IMAGES / "base.sh")], capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)}
    )
    assert done.returncode == 2
    assert "mmdebstrap is not installed; on Debian: apt-get install mmdebstrap docker.io" in done.stderr


# What the commands refuse.


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """An empty folder to call the command in."""
    return Workspace(tmp_path)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    return " ".join(done.stderr.split())


def test_a_group_that_there_is_not_is_named(place: Workspace):
    assert "--group trian: there is no such group of steps; allowed: data, validate" in refused(
        place.call("images", "build", "--group", "trian")
    )


def test_without_docker_it_is_said(place: Workspace, monkeypatch: pytest.MonkeyPatch):
    git = shutil.which("git")
    assert git
    (place.path / "git").symlink_to(git)
    monkeypatch.setattr(image_builds, "committed", lambda: "c" * 40)
    monkeypatch.setenv("PATH", str(place.path))
    assert "there is no docker command here; install Docker" in refused(place.call("images", "build"))


def test_a_daemon_that_does_not_answer_is_said(place: Workspace, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place.path}/no.sock")
    with pytest.raises(image_builds.InputError, match=r"the Docker daemon does not answer .*; start it, or let DOCKER_HOST"):
        image_builds.built("data")


def test_certificates_that_are_no_file_are_named(place: Workspace):
    assert "--ca no.pem is not a file; give the certificates" in refused(place.call("images", "build", "--ca", "no.pem"))


@pytest.mark.parametrize("registry", ["https://ghcr.io/me", "ghcr.io/Me/images", "ghcr.io/me/images:v1", "x"])
def test_a_registry_is_a_host_and_a_path(place: Workspace, registry: str):
    if registry == "x":  # of one word: the group is its path
        assert image_builds.reference_of(registry, "data") == "x/data"
        return
    assert "must be HOST[:PORT][/PATH] in lower case" in refused(place.call("images", "push", "--registry", registry))


def test_what_is_not_committed_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    monkeypatch.setattr(image_builds, "ROOT", tmp_path)
    with pytest.raises(image_builds.InputError, match="is no git checkout"):
        image_builds.committed()
    git("init", "--quiet")
    for name in ("dermaflow/a.py", "docs/notes.md", "infra/images/lock.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "all")
    commit = image_builds.committed()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    for name in ("docs/notes.md", "infra/images/lock.yaml", "infra/images/README.md"):
        (tmp_path / name).write_text("changed")
    assert image_builds.committed() == commit, "these do not come into an image"
    (tmp_path / "dermaflow" / "b.py").write_text("")
    with pytest.raises(image_builds.InputError, match=r"1 files .* are not committed \(first: dermaflow/b.py\); commit them"):
        image_builds.committed()


@pytest.mark.parametrize(
    ("remote", "source"),
    [
        ("https://user:a-token@example.org/owner/repository.git", "https://example.org/owner/repository"),
        ("git@example.org:owner/repository.git", "https://example.org/owner/repository"),
        ("ssh://git@example.org:22/owner/repository", "https://example.org/owner/repository"),
        ("/a/path/of/this/machine", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_source_names_no_secret_and_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: str | None, source: str
):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    if remote:
        subprocess.run(["git", "-C", str(tmp_path), "remote", "add", "origin", remote], check=True)
    monkeypatch.setattr(image_builds, "ROOT", tmp_path)
    assert image_builds._source() == source


# The lock, by what a registry has (a stub: tests/e2e/test_docker.py has a real one).


def labels(group: str, **changes: str) -> dict[str, str]:
    made = {
        image_builds.REVISION: "d" * 40,
        image_builds.WHEELS: group,
        image_builds.CODE: image_builds.code_of(group, group),
        image_builds.BUILDER: "docker 20.10.24",
    }
    return {**made, **{getattr(image_builds, name): value for name, value in changes.items()}}


def test_the_lock_is_what_the_registry_has(tmp_path: Path):
    path = tmp_path / "lock.yaml"
    with running(RegistryStub(("images/data",), labels("data"))) as stub:
        image_builds.lock(["data"], f"{stub.host}/images", "v1", path)
        known = read_lock(path)
        assert known is not None
        image = known.images["data"]
        assert (image.pinned, image.revision) == (f"{stub.host}/images/data@{stub.digest}", "d" * 40)
        assert image.mark == "local"
        with pytest.raises(image_builds.InputError, match="marks data as local: only this machine has them"):
            require_released(["data"], path)
        assert [fault.group for fault in image_builds.check(path)] == ["validate", "train", "judge", "registry"]
        with pytest.raises(image_builds.InputError, match=r"has no images/data with v2; `dermaflow images push` it"):
            image_builds.lock(["data"], f"{stub.host}/images", "v2", path)
        assert read_lock(path) == known
    (fault, *_) = [fault.detail for fault in image_builds.check(path) if fault.group == "data"]
    assert "does not answer" in fault


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"CODE": "sha256:" + 64 * "0"}, "code, wheels or Dockerfile are others here; build it anew"),
        (
            {"REVISION": "e" * 40},
            f"says that it is of {40 * 'e'}, the lock says of {40 * 'd'}; `dermaflow images push` it anew",
        ),
    ],
)
def test_check_holds_the_image_against_lock_and_code(tmp_path: Path, changes: dict[str, str], told: str | None):
    path = tmp_path / "lock.yaml"
    with running(RegistryStub(("images/data",), labels("data", **changes))) as stub:
        image = {"reference": f"{stub.host}/images/data", "digest": stub.digest, "revision": "d" * 40}
        image |= {"builder": "docker", "mark": "release"}
        path.write_text(yaml.safe_dump({"version": 1, "images": {"data": image}}))
        faults = [fault.detail for fault in image_builds.check(path) if fault.group == "data"]
    assert len(faults) == (0 if told is None else 1)
    assert all(told in fault and "\n" not in fault for fault in faults if told)


def test_an_image_of_somebody_else_does_not_get_into_the_lock(tmp_path: Path):
    with (
        running(RegistryStub(("images/data",), None)) as stub,
        pytest.raises(image_builds.InputError, match="was not built by"),
    ):
        image_builds.lock(["data"], f"{stub.host}/images", "v1", tmp_path / "lock.yaml")
    assert not (tmp_path / "lock.yaml").exists()


def test_the_lock_that_is_committed_is_whole():
    known = read_lock()
    if known is None:
        pytest.skip("infra/images/lock.yaml is not there: no image was pushed yet")
    assert isinstance(known, ImagesLock)
    assert set(known.images) <= set(GROUPS)


def test_the_code_of_an_image_is_that_of_its_own_steps():
    assert image_builds.steps_of("data") == ["fold", "ingest", "segment", "split"]
    assert sorted(step for group in GROUPS for step in image_builds.steps_of(group)) == sorted(
        {path.parent.name for path in (ROOT / "components").glob("*/component.py")}
    )
    assert image_builds.code_of("train", "train") != image_builds.code_of("train", "train-cpu")
