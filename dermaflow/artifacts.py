"""Artifacts: folders that are either whole or absent, each with a digest of its content.

An artifact folder is built under a temporary name beside its target, synced, and renamed into place; it counts only
once `artifact.json` is in it. That file names the kind, the format version and the digest of every other file: its
SHA-256, or for image shards `rows_digest`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermaflow.errors import InputError

ARTIFACT_FILE = "artifact.json"
FORMAT_VERSION = 3  # 2: a Dataset's manifest has tombstones, which a reader of 1 would take for images; 3: rows_digest
_ROWS = "sha256-rows:"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk: its folder, kind, content digest ("sha256:<hex>") and the digest of each file by its name."""

    path: Path
    kind: str
    digest: str
    files: dict[str, str]


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until the bytes of files are on the disk; `new_artifact` does so with all that it seals."""
    for path in paths:
        _sync(path)


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


def rows_digest(header: bytes, rows: Iterable[str]) -> str:
    """Digest of an .npy file by its header and the digest of each of its rows, as "sha256-rows:<hex>".

    Whoever knows the rows' digests need not read the file again: a shard's seal follows from the manifest's pixel digests.
    It is the SHA-256 of the header followed by the rows' SHA-256, 32 bytes each.

    Parameters
    ----------
    rows: `bytes_digest` of each.
    """
    sha = hashlib.sha256(header)
    for row in rows:
        sha.update(bytes.fromhex(row.removeprefix("sha256:")))
    return _ROWS + sha.hexdigest()


def npy_rows_digest(path: Path) -> str:
    """`rows_digest` of an .npy file, all of it read; raises ValueError when it is none."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        length = max(1, math.prod(shape[1:]) * dtype.itemsize)
        header_bytes = file.tell()
        file.seek(0)
        header = file.read(header_bytes)
        return rows_digest(header, map(bytes_digest, iter(lambda: file.read(length), b"")))


def has_digest(path: Path, digest: str) -> bool:
    """Whether a file is the one whose digest, by `file_digest` or `rows_digest`, is given."""
    try:
        return (npy_rows_digest(path) if digest.startswith(_ROWS) else file_digest(path)) == digest
    except ValueError:  # its header is damaged
        return False


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value written with sorted keys and no white space, as "sha256:<hex>"."""
    return bytes_digest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 through a temporary file: a reader sees what was there before, or all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", encoding="utf-8", delete=False) as file:
        file.write(text)
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
def new_artifact(target: Path, kind: str, known: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Build an artifact: yields a temporary folder; on success seals it and renames it to `target`.

    Nothing appears at `target` when the body raises. An older artifact at `target` is replaced only at the end; anything
    else that stands there is left alone. What a killed process left beside `target` is removed.

    Parameters
    ----------
    known: digests of files that the body need not have computed again, by name; it may fill them in as it goes.

    Raises
    ------
    InputError
        when the place can not be written, or holds something that is no artifact.
    """
    _refuse_foreign(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        building = Path(tempfile.mkdtemp(prefix=f".{target.name}.building-", dir=target.parent))
    except OSError as error:
        raise InputError(f"can not write to {target.parent}: {error.strerror}; choose a folder you may write to") from error
    try:
        building.chmod(0o755)
        with _held(building):
            yield building
            _seal(building, kind, known or {})
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
    if not isinstance(value, dict) or not {"kind", "format", "digest", "files"} <= value.keys():
        raise InputError(f"{seal} is damaged: it must name kind, format, digest and files; run the step that writes it again")
    if value["kind"] != kind:
        raise InputError(f"{path} is an artifact of kind {value['kind']!r}; expected {kind!r}")
    if value["format"] > FORMAT_VERSION:
        raise InputError(
            f"{path} has format {value['format']}, this Dermaflow reads up to {FORMAT_VERSION}; "
            "use the Dermaflow version that wrote it, or a newer one"
        )
    return Artifact(path=path, kind=kind, digest=value["digest"], files=value["files"])


def changed_files(artifact: Artifact) -> list[str]:
    """Names of files that are missing, that were added, or whose bytes no longer match the artifact's seal.

    A list of files that was itself rewritten shows as ARTIFACT_FILE.
    """
    present = {path.relative_to(artifact.path).as_posix() for path in artifact.path.rglob("*") if path.is_file()}
    changed = (present - {ARTIFACT_FILE}) ^ artifact.files.keys()
    changed |= {name for name in present & artifact.files.keys() if not has_digest(artifact.path / name, artifact.files[name])}
    if json_digest(artifact.files) != artifact.digest:
        changed.add(ARTIFACT_FILE)
    return sorted(changed)


def _refuse_foreign(target: Path) -> None:
    """Only an artifact, or an empty folder, may be replaced: everything else belongs to somebody."""
    if not target.name:
        raise InputError(f"{target} is the working folder itself; name a folder for the artifact")
    empty = target.is_dir() and not any(target.iterdir())
    if target.exists() and not empty and not (target / ARTIFACT_FILE).is_file():
        raise InputError(f"{target} exists and is not an artifact of Dermaflow; choose another folder, or remove it yourself")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder; the system lets go of it when the process ends, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(target: Path) -> None:
    """Remove half-built folders beside a target that no process holds any more."""
    for folder in target.parent.glob(f".{target.name}.building-*"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(descriptor)


def _seal(folder: Path, kind: str, known: Mapping[str, str]) -> None:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in paths]
    files = {name: known.get(name) or file_digest(path) for name, path in zip(names, paths, strict=True)}
    sync_files(paths)
    write_json(folder / ARTIFACT_FILE, {"kind": kind, "format": FORMAT_VERSION, "digest": json_digest(files), "files": files})
    _sync(folder)


def _replace_folder(source: Path, target: Path) -> None:
    if not target.exists():
        os.rename(source, target)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        os.rename(target, old / "artifact")
        try:
            os.rename(source, target)
        except OSError:
            os.rename(old / "artifact", target)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
