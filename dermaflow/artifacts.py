"""Artifacts: folders that are either whole or absent, each with a digest of its content.

An artifact folder is built under a temporary name beside its target, synced, and renamed into place; it counts only
once `artifact.json` is in it. That file names the kind, the format version and the SHA-256 of every other file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermaflow.errors import InputError

ARTIFACT_FILE = "artifact.json"
FORMAT_VERSION = 1
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk: its folder, kind, content digest ("sha256:<hex>") and the digest of each file."""

    path: Path
    kind: str
    digest: str
    files: dict[str, str]


def bytes_digest(data: bytes | memoryview) -> str:
    """SHA-256 of bytes, as "sha256:<hex>"."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as "sha256:<hex>"; reads in chunks of 1 MiB."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha.update(chunk)
    return "sha256:" + sha.hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value written with sorted keys and no white space, as "sha256:<hex>"."""
    return bytes_digest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, through a temporary file, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        json.dump(value, file, indent=2, sort_keys=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.chmod(file.name, 0o644)  # mkstemp's 0600 would hide artifacts from other users of a shared volume
    os.replace(file.name, path)


def read_json(path: Path) -> Any:
    """Read a JSON file; raises InputError naming the file when it is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


@contextmanager
def new_artifact(target: Path, kind: str) -> Iterator[Path]:
    """Build an artifact: yields a temporary folder; on success seals it and renames it to `target`.

    Nothing appears at `target` when the body raises. An older artifact at `target` is replaced only at the end.

    Raises
    ------
    InputError
        when the place can not be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.building-", dir=target.parent))
    except OSError as error:
        raise InputError(f"can not write to {target.parent}: {error.strerror}; choose a folder you may write to") from error
    try:
        building.chmod(0o755)
        yield building
        _seal(building, kind)
        _replace_folder(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def open_artifact(path: Path, kind: str) -> Artifact:
    """Open a finished artifact of the given kind.

    Raises
    ------
    InputError
        when there is none, it is of another kind, or a newer Dermaflow wrote it.
    """
    seal = path / ARTIFACT_FILE
    if not seal.is_file():
        raise InputError(f"{path} is not a finished {kind} artifact ({ARTIFACT_FILE} is missing); run the step that writes it")
    value = read_json(seal)
    if value.get("kind") != kind:
        raise InputError(f"{path} is an artifact of kind {value.get('kind')!r}; expected {kind!r}")
    if value.get("format", 0) > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {value['format']}, this Dermaflow reads up to {FORMAT_VERSION}; "
            "use the Dermaflow version that wrote it, or a newer one"
        )
    return Artifact(path=path, kind=kind, digest=value["digest"], files=value["files"])


def changed_files(artifact: Artifact) -> list[str]:
    """Names of files whose bytes no longer match the artifact's seal, or that are missing."""
    return [
        name
        for name, digest in artifact.files.items()
        if not (artifact.path / name).is_file() or file_digest(artifact.path / name) != digest
    ]


def _seal(folder: Path, kind: str) -> None:
    files = {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)
    write_json(folder / ARTIFACT_FILE, {"kind": kind, "format": FORMAT_VERSION, "digest": json_digest(files), "files": files})
    _sync(folder)


def _replace_folder(source: Path, target: Path) -> None:
    if not target.exists():
        os.rename(source, target)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        os.rename(target, old / "artifact")
        os.rename(source, target)
        shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
