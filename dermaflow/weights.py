"""Initial weights of a backbone: found, fetched and checked before any work is done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dermaflow import places
from dermaflow.architectures import ARCHITECTURES, build_model, load_backbone_weights
from dermaflow.artifacts import file_digest, json_digest
from dermaflow.errors import InputError
from dermaflow.params import TrainParams
from dermaflow.storage import S3, Bucket, StoredObjectError, split_uri

NONE, IMAGENET = "none", "imagenet"
_PATIENCE = 300.0  # seconds for which a store that does not answer is asked


@dataclass(frozen=True)
class Weights:
    """Where initial weights come from: origin as params name it, the file (None: random) and its digest."""

    origin: str
    path: Path | None
    digest: str | None


def weights_of(train: TrainParams, architecture: str) -> Weights:
    """Find an architecture's initial weights; what is not at hand is fetched into the cache, once.

    Raises
    ------
    InputError
        when there is no such file or object, or it can not be had.
    """
    origin = train.weights_origin(architecture)
    if origin == NONE:
        return Weights(NONE, None, None)
    if origin == IMAGENET:
        path = _published(architecture)
    elif origin.startswith(S3):
        path = _stored(architecture, origin)
    else:
        path = Path(origin)
        if not path.is_file():
            raise InputError(
                f"train.weights.{architecture}: {origin} is not a file; give the 'notop' .h5 file of keras.applications, "
                f"{IMAGENET} for the one that Keras publishes, s3://bucket/key, or {NONE}"
            )
    return Weights(origin, path, file_digest(path))


def require_fit(train: TrainParams, architecture: str) -> Weights:
    """As `weights_of`, and refuse a file that does not fit the architecture; a file that did is not looked into again."""
    weights = weights_of(train, architecture)
    if weights.path is None or weights.digest is None:
        return weights
    fits = _cache() / f"{weights.digest.removeprefix('sha256:')}.fits-{architecture}"
    if not fits.exists():
        size = ARCHITECTURES[architecture].minimum_size
        load_backbone_weights(build_model(architecture, classes=2, size=size, dropout=0, seed=0), weights.path)
        fits.parent.mkdir(parents=True, exist_ok=True)
        fits.touch()
    return weights


def digests(train: TrainParams) -> Mapping[str, str]:
    """The digest of each trained architecture's initial weights, or none."""
    return {name: weights_of(train, name).digest or NONE for name in sorted(train.architectures)}


def _cache() -> Path:
    return places.cache() / "weights"


def _published(architecture: str) -> Path:
    """The file that Keras publishes: from Keras' own cache where it is there, else fetched; its MD5 is checked."""
    import pooch

    published = ARCHITECTURES[architecture].published
    assert published is not None, "params refuse weights of an architecture without published ones"
    name, known = published.url.rsplit("/", 1)[1], f"md5:{published.md5}"
    kept = Path.home() / ".keras/models" / name
    if kept.is_file() and pooch.file_hash(str(kept), alg="md5") == published.md5:
        return kept
    try:
        return Path(pooch.retrieve(published.url, known, fname=name, path=_cache()))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; another checksum is a ValueError
        raise InputError(
            f"train.weights.{architecture}: {published.url} can not be had ({str(error).splitlines()[0][:200]}); give a "
            f"copy of it as a path or s3://bucket/key, or place it at {kept}"
        ) from error


def _stored(architecture: str, uri: str) -> Path:
    """The object as a file of the cache; it is fetched once for each version of it that the store tells."""
    name, key = split_uri(uri)
    bucket = Bucket(name, _PATIENCE, 1)
    item = next((item for item in bucket.objects(key) if item.key == key), None)
    if item is None:
        raise InputError(f"train.weights.{architecture}: {uri}: there is no such object; correct the key")
    version = json_digest([bucket.endpoint, uri, item.etag, item.size, item.modified]).removeprefix("sha256:")
    path = _cache() / version / Path(key).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            part.write_bytes(bucket.read(item))
        except StoredObjectError as error:
            raise InputError(f"train.weights.{architecture}: {uri}: {error.detail}") from error
        part.replace(path)
    return path
