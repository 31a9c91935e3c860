"""What `dermaflow verify` makes again: a model's answers to its test images (--replay), or its whole run (--rebuild).

Both need the images, where the version's parameters say they lie or where `--data` says. Nothing of it touches the registry.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml
from pydantic import ValidationError

from components.register.core import BUNDLE
from dermaflow import contracts, registry, weights
from dermaflow.artifacts import read_json
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.figures import TEST
from dermaflow.metrics import paired_difference
from dermaflow.params import Params
from dermaflow.records import Registered
from dermaflow.wording import in_words
from pipelines.code import ROOT
from pipelines.version_checks import Finding

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CLOSE = 1e-3  # of a logit, or of its thousandth where it is larger: processors add up in other orders; classes are units apart
_PROFILE = "rebuild"
_DATA = ("masks", "splits", "plan")  # artifacts of the steps before training: the same bytes wherever they are made
_ALONE = ("DERMAFLOW_LEDGER", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


@dataclass(frozen=True)
class Again:
    """What came of making something again: a sentence with figures, and what does not hold."""

    version: str
    says: str
    findings: list[Finding]

    def to_dict(self) -> dict[str, Any]:
        """As `dermaflow verify --json` prints it."""
        return {"version": self.version, "says": self.says}


def replay(client: MlflowClient, version: ModelVersion, data: str | None) -> Again:
    """Let a version's model answer its test images again, and compare its logits with those that were recorded.

    Parameters
    ----------
    data: where the images lie now; None where they lay.

    Raises
    ------
    InputError
        when the images can not be read, or the version's images were made from others before the split.
    """
    from components.ingest.core import ingest
    from components.segment.core import segment
    from dermaflow.predict import predict_logits

    with _evidence(client, version) as (bundle, evidence), tempfile.TemporaryDirectory() as scratch:
        params = _params(version, bundle, data)
        if params.augment.before_split:
            raise InputError(
                f"{_name(version)}: its images were made from others (augment.before_split), so that they do not lie at the "
                "source; make all of it again: dermaflow verify --rebuild"
            )
        place = Path(scratch)
        ingest(params.data, place / "dataset")
        dataset = Dataset.open(place / "dataset")
        if dataset.content_digest != bundle["data"]["content_digest"]:
            detail = f"{params.data.source} holds other images than it was made from: {dataset.content_digest} now"
            return _told(version, "its test images are not there", [("replay_data", detail)])
        masks = None
        if bundle["model"]["masks"] != "none":
            masks = place / "masks"
            segment(place / "dataset", params.segment, masks)
        predictions = contracts.read_predictions(evidence / "evaluation")
        recorded = predictions[predictions["split"] == TEST]
        model = registry.model_artifact(version, place)
        logits = predict_logits(model, dataset, dataset.rows_of(recorded["image_id"]), masks)
    then = recorded[contracts.logit_columns(dataset.classes)].to_numpy()
    off = np.abs(logits - then)
    other = (off > CLOSE * np.maximum(1, np.abs(then))).any(axis=1)
    says = f"{len(then)} test images answered again, logits off by at most {off.max():.2g}"
    if not other.any():
        return _told(version, says, [])
    first = recorded["image_id"].iloc[int(np.argmax(other))]
    return _told(version, says, [("replay_answers", f"{other.sum()} of {says}; the first that differs is of {first}")])


def rebuild(client: MlflowClient, version: ModelVersion, data: str | None) -> Again:
    """Run the pipeline again from a version's commit, data and parameters, in a checkout and a registry of its own.

    Data steps have to come to the same bytes. Training has to come to the same weights where libraries, system and processor
    are the same; elsewhere the paired difference in balanced accuracy on the test images has to include 0.

    Raises
    ------
    InputError
        when the commit is not at hand, or an input of the run is not.
    """
    with _evidence(client, version) as (bundle, evidence), tempfile.TemporaryDirectory() as scratch:
        git = bundle["git"]
        if not git["commit"] or git["dirty"]:
            detail = "it was made by code that no commit holds, so that nobody can make it again"
            return _told(version, "not made again", [("rebuild_commit", detail)])
        params = _params(version, bundle, data)
        code = _checkout(version, git["commit"], Path(scratch, "code"))
        given = json.loads(params.model_dump_json(by_alias=True, exclude={"profile"}))
        given["register"]["tracking_uri"] = uri = f"sqlite:///{scratch}/mlflow.db"
        given["promote"]["mode"] = "disabled"
        given["split"]["previous"] = _earlier_splits(client, version, bundle, Path(scratch))
        given["train"]["architectures"] = [bundle["architecture"]]
        (code / "params" / f"{_PROFILE}.yaml").write_text(yaml.safe_dump(given))
        failed = _run(code, Path(scratch))
        if failed:
            return _told(version, "not made again", [("rebuild_failed", f"commit {git['commit'][:12]}: {failed}")])
        anew = registry.connect(uri)
        made = registry.version_of(anew, registry.CANDIDATE_MODEL, registry.CHALLENGER)
        if made is None:
            return _told(version, "not made again", [("rebuild_failed", "the run registered nothing")])
        with _evidence(anew, made) as (again, its_evidence):
            return _compared(version, bundle, evidence, again, its_evidence)


def _compared(version: ModelVersion, then: dict[str, Any], evidence: Path, now: dict[str, Any], its_evidence: Path) -> Again:
    sides = [_data_digests(bundle) for bundle in (then, now)]
    found = [
        ("rebuild_data", f"{name} came to {made}, not {recorded}")
        for name, recorded, made in zip(sides[0], sides[0].values(), sides[1].values(), strict=True)
        if recorded != made
    ]
    if then["model"]["weights_digest"] == now["model"]["weights_digest"]:
        return _told(version, "made again: the same weights", found)
    if then["fingerprint"] == now["fingerprint"]:
        detail = f"on the same machine training came to weights {now['model']['weights_digest']}"
        return _told(version, "made again: other weights", [*found, ("rebuild_weights", detail)])
    answers = [contracts.read_predictions(folder / "evaluation").query("split == @TEST") for folder in (its_evidence, evidence)]
    how = {name: then["params"]["evaluate"][name] for name in ("bootstrap", "seed")}
    try:
        difference = paired_difference(*_same_images(*answers), then["model"]["classes"], **how)
    except InputError as error:
        return _told(version, "made again, and not comparable", [*found, ("rebuild_answers", str(error))])
    says = f"made again on another machine: balanced accuracy on test differs by {in_words(difference)}"
    low, high = difference["low"], difference["high"]
    if low is None or high is None or not low <= 0 <= high:
        found.append(("rebuild_answers", f"{says}, which does not include 0"))
    return _told(version, says, found)


def _data_digests(bundle: dict[str, Any]) -> dict[str, str]:
    """Of what the steps before training made. The Dataset artifact itself names its source, which may have moved."""
    images = {f"dataset ({name})": bundle["data"][f"{name}_digest"] for name in ("content", "layout")}
    return images | {name: bundle["artifacts"][name] for name in _DATA}


def _same_images(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both in the order of their images; `paired_difference` refuses them where these are not the same."""
    return a.sort_values("image_id", ignore_index=True), b.sort_values("image_id", ignore_index=True)


def _checkout(version: ModelVersion, commit: str, place: Path) -> Path:
    for command in (
        ["git", "clone", "--quiet", "--no-checkout", str(ROOT), str(place)],
        ["git", "-C", str(place), "checkout", "--quiet", commit],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(
                f"{_name(version)} was made by commit {commit}, which {ROOT} does not hold; run dermaflow in a clone that has "
                f"it (git fetch): {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'git failed'}"
            )
    return place


def _run(code: Path, scratch: Path) -> str | None:
    """`dermaflow run` of a checkout, its progress on our stderr; what went wrong, if anything did."""
    environment = {name: value for name, value in os.environ.items() if name not in _ALONE}
    environment |= {"PYTHONPATH": str(code), "DERMAFLOW_HOME": str(scratch / "home"), "DERMAFLOW_NOTIFY": "never"}
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "run", "--profile", _PROFILE, "--json"]
    done = subprocess.run(command, cwd=code, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode == 0:
        return None
    try:
        error = json.loads(done.stdout)["error"]
        return f"{error['step']}: {error['message']}"
    except (ValueError, KeyError):
        return f"its run ended with exit code {done.returncode}"


def _earlier_splits(client: MlflowClient, version: ModelVersion, bundle: dict[str, Any], scratch: Path) -> str:
    """The parameter split.previous by which the run goes on from what it went on from."""
    if bundle["splits"]["previous"] is None:
        return "none"
    digest = bundle["splits"]["previous"]["digest"]
    found = registry.find_version(client, registry.CANDIDATE_MODEL, f"{registry.TAG}splits.artifact", digest)
    if found is None:
        raise InputError(
            f"{_name(version)} goes on from the splits {digest} of an earlier version, which is not in the registry any more"
        )
    return str(registry.evidence(client, found, "splits", scratch / "previous"))


def _params(version: ModelVersion, bundle: dict[str, Any], data: str | None) -> Params:
    """The parameters that a version was made with; paths as they are from here."""
    try:
        params = Params.model_validate_json(json.dumps(bundle["params"]))
    except ValidationError as error:
        raise InputError(
            f"{_name(version)} was made with parameters that this Dermaflow does not know, {error.errors()[0]['loc']}; verify "
            f"it with the code of its commit, {bundle['git']['commit']}"
        ) from error
    given = json.loads(params.model_dump_json(by_alias=True))
    given["data"]["source"] = _whole(data or given["data"]["source"])
    given["train"]["weights"] = {name: _whole(origin) for name, origin in given["train"]["weights"].items()}
    for name in ("reference", "reference_splits"):
        given["validate"][name] = _whole(given["validate"][name])
    return Params.model_validate_json(json.dumps(given))


def _whole(place: str) -> str:
    """A path from the root on; what is no path on this machine as it is."""
    named = not place or "://" in place or place.startswith("doi:") or place in (weights.NONE, weights.IMAGENET)
    return place if named else str(Path(place).absolute())


@contextmanager
def _evidence(client: MlflowClient, version: ModelVersion) -> Iterator[tuple[dict[str, Any], Path]]:
    """A version's bundle, and the folder of its evidence; InputError where it is not there any more."""
    with tempfile.TemporaryDirectory() as scratch:
        run_id = version.tags.get(registry.TAG + "mlflow_run_id", version.run_id)  # a champion names the candidate's run
        folder = Registered(client).evidence(run_id, "", Path(scratch))
        yield read_json(folder / BUNDLE), folder


def _told(version: ModelVersion, says: str, found: list[tuple[str, str]]) -> Again:
    return Again(_name(version), says, [Finding(name, _name(version), detail) for name, detail in found])


def _name(version: ModelVersion) -> str:
    return f"{version.name}/{version.version}"
