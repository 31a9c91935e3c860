"""Which earlier Splits a run goes on from: those of the newest registered version that was made from the same source."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaflow import places, registry
from dermaflow.artifacts import ARTIFACT_FILE, open_artifact
from dermaflow.contracts import SPLITS
from dermaflow.params import Params

if TYPE_CHECKING:
    from mlflow import MlflowClient

NONE = ""


def earlier_splits(params: Params, source_digest: str) -> str:
    """The pipeline's parameter `previous`: JSON of folder and digest of the Splits to go on from, or NONE.

    With split.previous=auto these are the Splits of the newest version in the registry whose data.source and promotable
    strategy are the same. Where that version was made from the very same files and split parameters, it is what that
    version itself went on from: the same question then has the same answer, from the cache.

    Raises
    ------
    InputError
        when the registry does not answer, or split.previous names a folder that is no Splits artifact.
    """
    asked = params.split.previous
    if params.split.strategy == "random" or asked == "none":
        return NONE
    return _newest_of(params, source_digest) if asked == "auto" else _told(Path(asked))


def _newest_of(params: Params, source_digest: str) -> str:
    uri, source = params.register_.tracking_uri, params.data.source
    if uri.startswith(registry.SQLITE) and not Path(uri.removeprefix(registry.SQLITE)).exists():
        return NONE
    client = registry.connect(uri)
    found = client.search_model_versions(f"name = '{registry.CANDIDATE_MODEL}'")
    versions = [one for one in found if _tag(one, "data.source") == source and _tag(one, "test_set.digest") != "none"]
    newest = max(versions, key=lambda version: int(version.version), default=None)
    if newest is None:
        return NONE
    if (_tag(newest, "data.source_digest"), _tag(newest, "splits.question")) != (source_digest, params.split.question):
        return _fetched(client, newest)
    before = _tag(newest, "splits.previous")
    if before == "none":
        return NONE
    same = [version for version in versions if _tag(version, "splits.artifact") == before]
    return _fetched(client, same[0] if same else newest)


def _fetched(client: MlflowClient, version: Any) -> str:
    """The Splits of a version in a folder that is named by their digest and kept."""
    target = places.state() / "splits" / _tag(version, "splits.artifact").removeprefix("sha256:")[:32]
    if not (target / ARTIFACT_FILE).exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            folder = registry.evidence(client, version, "splits", Path(scratch))
            shutil.move(folder, target)
    return _told(target)


def _told(folder: Path) -> str:
    return json.dumps({"folder": str(folder), "digest": open_artifact(folder, SPLITS).digest})


def _tag(version: Any, name: str) -> str:
    return str(version.tags.get(registry.TAG + name, "none"))
