"""The lock of images: which bytes each group of steps runs in on a cluster. Only a push writes infra/images/lock.yaml."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from dermaflow import images
from dermaflow.artifacts import write_text
from dermaflow.checked_yaml import read_settings
from dermaflow.errors import InputError
from dermaflow.params import Section
from pipelines.code import ROOT

LOCK = ROOT / "infra" / "images" / "lock.yaml"
GROUPS = ("data", "validate", "train", "judge", "registry")
RELEASE: Literal["release"] = "release"
LOCAL: Literal["local"] = "local"
REFERENCE = r"^[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$"  # of an image in a registry, without a tag
_HEADER = """\
# Which bytes each group of steps runs in: written by `dermaflow images push` and `lock` from what a registry answered, and by
# nobody's hand. `release` is in a registry that a cluster can pull from, `local` in one of the machine that it was built on.
"""
_BUILD = "build and push them (`dermaflow images build`, `dermaflow images push`), which writes the lock"


class LockedImage(Section):
    """One image: where it is pulled from, and what made it."""

    reference: Annotated[str, Field(pattern=REFERENCE)]
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]  # commit of the source
    builder: Annotated[str, Field(min_length=1)]  # program and version
    mark: Literal["local", "release"]  # local: pushed to a registry of this machine alone

    @property
    def pinned(self) -> str:
        """What a container runtime is told: the image by its digest."""
        return f"{self.reference}@{self.digest}"


class ImagesLock(Section):
    """Group -> image; a group that was never built is missing."""

    version: Annotated[int, Field(ge=1, le=1)]
    images: Mapping[str, LockedImage]


def read_lock(path: Path = LOCK) -> ImagesLock | None:
    """The lock, or None where nothing was built yet; raises InputError naming the field that is wrong."""
    if not path.is_file():
        return None
    return read_settings(path, ImagesLock, name=_named(path), remedy=f"{_BUILD} anew")


def require_lock(path: Path = LOCK) -> ImagesLock:
    """The lock; raises InputError where nothing was pushed yet."""
    lock = read_lock(path)
    if lock is None:
        raise InputError(f"{_named(path)} does not exist, so no image has a digest that a cluster could pull; {_BUILD}")
    return lock


def write_lock(lock: ImagesLock, path: Path = LOCK) -> None:
    """Write the lock, groups in their order; a reader sees what was there before, or all of it."""
    entries = {group: lock.images[group].model_dump() for group in GROUPS if group in lock.images}
    write_text(path, _HEADER + yaml.safe_dump({"version": lock.version, "images": entries}, sort_keys=False, width=128))


def require_released(groups: Iterable[str], path: Path = LOCK) -> ImagesLock:
    """The lock, if a cluster can pull each of the groups by it.

    Raises
    ------
    InputError
        when there is no lock, a group is missing from it, or its image was pushed to no registry but this machine's.
    """
    lock = require_lock(path)
    wanted = list(dict.fromkeys(groups))
    missing = [group for group in wanted if group not in lock.images]
    local = [group for group in wanted if group in lock.images and lock.images[group].mark == LOCAL]
    faults = [f"{_named(path)} has no digest for {', '.join(missing)}; {_BUILD}"] if missing else []
    if local:
        faults.append(
            f"{_named(path)} marks {', '.join(local)} as local: only this machine has them; `dermaflow images push` to a "
            "registry that the cluster pulls from, which marks them release"
        )
    if faults:
        raise InputError("\n".join(faults))
    return lock


def name_of(group: str) -> str:
    """The name that a group's image is built under, which its components ask for."""
    return str(getattr(images, group.upper()))


def group_of(image: str) -> str:
    """The group that a component's image name, as in dermaflow.images, stands for."""
    return image.rpartition("/")[2].partition(":")[0]


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
