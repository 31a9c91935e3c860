"""Building the images that steps run in, pushing them, and saying what became of them: by Docker's own command, from a commit.

What goes into an image is what is committed. Labels say which commit it was, and which code of its steps (`code_of`), so that
an image of other code than is at hand is known as such wherever it lies.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermaflow.artifacts import file_digest, json_digest
from dermaflow.errors import DermaflowError, InputError, shown
from dermaflow.lineage import git_state
from pipelines import image_registry
from pipelines.code import ROOT, code_digest
from pipelines.images import (
    GROUPS,
    LOCAL,
    LOCK,
    REFERENCE,
    RELEASE,
    ImagesLock,
    LockedImage,
    name_of,
    read_lock,
    require_lock,
    write_lock,
)

FOLDER = ROOT / "infra" / "images"
DOCKERFILE = FOLDER / "Dockerfile"
REVISION, SOURCE = "org.opencontainers.image.revision", "org.opencontainers.image.source"
CODE, WHEELS, BUILDER = "io.dermaflow.code", "io.dermaflow.wheels", "io.dermaflow.builder"
_CONTEXT = ("dermaflow", "components", "infra/images")
_MADE_OF = (*_CONTEXT, "requirements/runtime.txt", ":(exclude)infra/images/lock.yaml", ":(exclude)*.md")
_REBUILD = "build it anew: `dermaflow images build`"


class DockerError(DermaflowError):
    """Docker could not do what it was asked for: says what, and its own last words."""


@dataclass(frozen=True)
class Built:
    """An image of this machine: its group, name, id, size in bytes, and labels."""

    group: str
    name: str
    id: str
    bytes: int
    labels: dict[str, str]


@dataclass(frozen=True)
class Fault:
    """What is wrong with the image of a group, and what to do, in one line."""

    group: str
    detail: str


def wheels_of(group: str, *, cpu: bool = False) -> str:
    """The name of the file of locked requirements, in infra/images, that a group's image is made of.

    Parameters
    ----------
    cpu: without CUDA, where there are two.
    """
    without_cuda = f"{group}-cpu"
    return without_cuda if cpu and (FOLDER / f"{without_cuda}.txt").is_file() else group


def steps_of(group: str) -> list[str]:
    """The folders in components/ whose steps run in a group's image, as their components say."""
    folder = ROOT / "components"
    return sorted({path.relative_to(folder).parts[0] for path in folder.rglob("component.py") if _group_in(path) == group})


def code_of(group: str, wheels: str) -> str:
    """Digest of what a group's image is made of, its base aside: the code of its steps, the wheels, the Dockerfile."""
    files = (DOCKERFILE, FOLDER / f"{wheels}.txt")
    made_of = {path.name: file_digest(path) if path.is_file() else "" for path in files}
    return json_digest({**made_of, **{step: code_digest(step) for step in steps_of(group)}})


def difference(group: str, labels: dict[str, str]) -> str | None:
    """What speaks against an image of a group by its labels: None where it was made of the code that is here."""
    if not labels.get(CODE) or not labels.get(WHEELS):
        return f"was not built by `dermaflow images build`, so that nobody knows what is in it; {_REBUILD}"
    if labels[CODE] != code_of(group, labels[WHEELS]):
        return f"is of commit {labels.get(REVISION, '')[:12]}: code, wheels or Dockerfile are others here; {_REBUILD}"
    return None


def build(
    groups: Sequence[str],
    *,
    base: str | None = None,
    cpu: bool = False,
    ca: Path | None = None,
    registry: str | None = None,
    tag: str | None = None,
) -> list[Built]:
    """Build images from HEAD, and name them as components do; with a registry also as they are pushed.

    Parameters
    ----------
    base: the image to build on; None is the Dockerfile's own.
    cpu: TensorFlow without CUDA.
    ca: certificates, in PEM, that pip shall trust; they do not come into the image.
    tag: with a registry; None is the commit.

    Raises
    ------
    InputError
        when there is no Docker, no git, no base, no such file, or changes are not committed.
    DockerError
        when a build fails.
    """
    if ca is not None and not ca.is_file():
        raise InputError(f"--ca {ca} is not a file; give the certificates that pip shall trust, in PEM")
    names = _pushed_names(groups, registry, tag) if registry else {}
    given = {"REVISION": committed(), "SOURCE": _source(), "BUILDER": f"docker {server_version()}"}
    if base is not None:
        _require_base(base)
        given["BASE"] = base
    context = subprocess.run(
        ["git", "-C", str(ROOT), "archive", given["REVISION"], *_CONTEXT], capture_output=True, check=True
    ).stdout
    with daemon() as client:
        network = [] if client.networks.list(names=["bridge"]) else ["--network", "host"]  # a daemon without its own
    secret = [] if ca is None else ["--secret", f"id=pip_ca,src={ca}"]
    for group in groups:
        wheels = wheels_of(group, cpu=cpu)
        arguments = {**given, "GROUP": group, "WHEELS": wheels, "CODE": code_of(group, wheels)}
        words = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        file = DOCKERFILE.relative_to(ROOT).as_posix()
        options = ("--file", file, "--tag", name_of(group), "--progress", "plain")
        done = _docker("build", *options, *words, *secret, *network, "-", given=context, told=True)
        if done.returncode:
            raise DockerError(f"{group}: docker build ended with exit code {done.returncode}; its last words are above")
        if registry:
            _must("tag", name_of(group), names[group])
    return [built(group) for group in groups]


def built(group: str) -> Built:
    """The image of a group on this machine; raises InputError where there is none."""
    from docker.errors import ImageNotFound

    with daemon() as client:
        try:
            image = client.images.get(name_of(group))
        except ImageNotFound:
            raise InputError(f"there is no image {name_of(group)} here; `dermaflow images build --group {group}`") from None
        return Built(group, name_of(group), str(image.id), int(image.attrs["Size"]), dict(image.labels))


def push(groups: Sequence[str], registry: str, tag: str | None = None, path: Path = LOCK) -> ImagesLock:
    """Push the images of this machine, and write the lock by what the registry then has.

    Raises
    ------
    InputError
        when an image is not there or of other code than HEAD, changes are not committed, or the registry does not take it.
    """
    committed()
    names = _pushed_names(groups, registry, tag)
    for group, name in names.items():
        image = built(group)
        if wrong := difference(group, image.labels):
            raise InputError(f"{image.name} {wrong}")
        _must("tag", image.name, name)
    for name in names.values():
        done = _docker("push", name, told=True)
        if done.returncode:
            raise InputError(
                f"--registry {registry}: docker push ended with exit code {done.returncode} (its words are above); "
                f"`docker login {registry.partition('/')[0]}`, or correct the name"
            )
    return lock(groups, registry, tag, path)


def lock(groups: Sequence[str], registry: str, tag: str | None = None, path: Path = LOCK) -> ImagesLock:
    """Write the lock by what a registry has under a tag: the digest, and by labels revision and builder. None is invented.

    Raises
    ------
    InputError
        when the registry has no such image, or one that `dermaflow images build` did not make.
    """
    entries = {group: _locked(reference_of(registry, group), tag or committed()) for group in groups}
    before = read_lock(path)
    made = ImagesLock(version=1, images={**(before.images if before else {}), **entries})
    write_lock(made, path)
    return made


def check(path: Path = LOCK) -> list[Fault]:
    """Hold each image of the lock against its registry and against the code that is here.

    Raises
    ------
    InputError
        when there is no lock.
    """
    known = require_lock(path)
    missing = [group for group in GROUPS if group not in known.images]
    faults = [Fault(group, "is not in the lock; `dermaflow images build` and `push` it") for group in missing]
    for group, image in known.images.items():
        try:
            labels = image_registry.labels(image.reference, image_registry.manifest(image.reference, image.digest)[1])
        except InputError as error:
            faults.append(Fault(group, str(error)))
            continue
        told = labels.get(REVISION, "no commit")
        if told != image.revision:
            wrong: str | None = f"says that it is of {told}, the lock says of {image.revision}; `dermaflow images push` it anew"
        else:
            wrong = difference(group, labels)
        if wrong:
            faults.append(Fault(group, f"{image.pinned} {wrong}"))
    return faults


@contextmanager
def daemon() -> Iterator[Any]:
    """A client of the Docker daemon that DOCKER_HOST names; raises InputError where none answers."""
    import docker

    try:
        client = docker.from_env()
    except docker.errors.DockerException as error:
        raise InputError(_silent(str(error))) from None
    try:
        yield client
    finally:
        client.close()


def server_version() -> str:
    """The version of the Docker daemon; raises InputError where there is no Docker, or none that answers."""
    done = _docker("version", "--format", "{{.Server.Version}}")
    if done.returncode or not done.stdout.strip():
        raise InputError(_silent(done.stderr.decode(errors="replace")))
    return done.stdout.decode().strip()


def reference_of(registry: str, group: str) -> str:
    """What a group's image is called in a registry, without a tag; raises InputError where that is no name."""
    reference = f"{registry.rstrip('/')}/{group}"
    if not re.fullmatch(REFERENCE, reference):
        raise InputError(
            f"--registry {shown(registry)}: must be HOST[:PORT][/PATH] in lower case, without scheme and tag, such as "
            "ghcr.io/owner/dermaflow"
        )
    return reference


def _pushed_names(groups: Sequence[str], registry: str, tag: str | None) -> dict[str, str]:
    """What each group's image is called where it is pushed to, its tag included."""
    return {group: f"{reference_of(registry, group)}:{tag or committed()}" for group in groups}


def committed() -> str:
    """HEAD, if what images are made of is as it is there; raises InputError where it is not, or there is no git."""
    commit = git_state(ROOT)["commit"]
    if commit is None:
        raise InputError(f"{ROOT} is no git checkout, so that no image could say of which commit it is; clone the repository")
    changed = _git("status", "--porcelain", "--", *_MADE_OF).splitlines()
    if changed:
        raise InputError(
            f"{len(changed)} files that images are made of are not committed (first: {changed[0][3:]}); commit them: an image "
            "is made of a commit, which its labels name"
        )
    return str(commit)


def _locked(reference: str, tag: str) -> LockedImage:
    digest, content = image_registry.manifest(reference, tag)
    labels = image_registry.labels(reference, content)
    if not (labels.get(CODE) and labels.get(REVISION) and labels.get(BUILDER)):
        raise InputError(f"{reference}:{tag} was not built by `dermaflow images build`: its labels name no commit")
    return LockedImage(
        reference=reference,
        digest=digest,
        revision=labels[REVISION],
        builder=labels[BUILDER],
        mark=LOCAL if image_registry.is_this_machine(reference) else RELEASE,
    )


def _source() -> str:
    """Where the repository lies for others, without a user or a password; unknown where its remote is on no other machine."""
    try:
        url = _git("remote", "get-url", "origin").strip()
    except subprocess.CalledProcessError:
        return "unknown"
    found = re.fullmatch(r"(?:https://|ssh://|(?=git@))(?:[^@/]*@)?([^/:]+)(?::\d+/|[/:])(.+?)(?:\.git)?/?", url)
    return f"https://{found[1]}/{found[2]}" if found else "unknown"


def _require_base(base: str) -> None:
    """Whether the base is here or can be had."""
    if _docker("image", "inspect", base).returncode == 0:
        return
    done = _docker("pull", base)
    if done.returncode:
        raise InputError(
            f"--base {base}: is not here and can not be pulled ({_last(done.stderr.decode(errors='replace'))}); name another, "
            "or make one of Debian's packages: infra/images/base.sh"
        )


def _must(*words: str) -> None:
    done = _docker(*words)
    if done.returncode:
        raise DockerError(f"docker {' '.join(words)}: {_last(done.stderr.decode(errors='replace'))}")


def _docker(*words: str, given: bytes | None = None, told: bool = False) -> subprocess.CompletedProcess[bytes]:
    """Docker's command; what it says goes to stderr where it is to be told, and is kept where not."""
    kept: dict[str, Any] = {"stdout": sys.stderr.fileno()} if told else {"capture_output": True}
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}  # older Dockers have to be asked for the builder that knows secrets
    try:
        return subprocess.run(["docker", *words], input=given, check=False, env=environment, **kept)
    except FileNotFoundError:
        raise InputError("there is no docker command here; install Docker (on Debian: apt-get install docker.io)") from None


def _silent(said: str) -> str:
    return f"the Docker daemon does not answer ({_last(said)}); start it, or let DOCKER_HOST name one that runs"


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["it said nothing"])[-1][:300]


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout


def _group_in(path: Path) -> str:
    """The group that a component names: base_image is a name of dermaflow.images, in capitals."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "base_image" and isinstance(node.value, ast.Name):
            return node.value.id.lower()
    raise ValueError(f"{path} names no base_image of dermaflow.images")
