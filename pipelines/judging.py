"""Any model on any data: resolves what a person names into artifacts, and judges."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermaflow import contracts
from dermaflow.artifacts import ARTIFACT_FILE
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.params import DataParams, Params

_REGISTERED = re.compile(r"(?P<name>[\w.-]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")


@contextmanager
def open_data(data: Path, params: DataParams) -> Iterator[Path]:
    """A Dataset artifact's folder for DATA: itself, or one ingested from a source for as long as it is needed."""
    from components.ingest.core import ingest

    if (data / ARTIFACT_FILE).exists():
        yield data
        return
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch, "dataset")
        ingest(params.model_copy(update={"source": str(data), "subset": None}), target)
        yield target


@contextmanager
def open_model(model: str, params: Params) -> Iterator[Path]:
    """A Model artifact's folder for MODEL: a folder, NAME@ALIAS or NAME/VERSION."""
    if (Path(model) / ARTIFACT_FILE).exists():
        yield Path(model)
        return
    named = _REGISTERED.fullmatch(model)
    if named is None or Path(model).exists():
        raise InputError(
            f"MODEL {model!r} is neither a Model artifact's folder nor NAME@ALIAS nor NAME/VERSION; "
            "for example dermaflow-candidate@challenger"
        )
    with tempfile.TemporaryDirectory() as scratch:
        yield _download(named, params, Path(scratch))


def judge(model: str, data: Path, params: Params, *, leave_out_seen: bool = False) -> dict[str, Any]:
    """Metrics of a model on all images of DATA: model, data, n_images, n_lesions, left_out, metrics, per_class, confusion.

    Parameters
    ----------
    leave_out_seen: pass over images that the model was made with, and all others of their lesions, instead of refusing DATA.

    Raises
    ------
    InputError
        when the model or the data can not be found or do not fit each other, or the model was made with some of these images.
    """
    from components.segment.core import segment
    from dermaflow.metrics import evaluate_predictions
    from dermaflow.predict import predict_logits

    with open_model(model, params) as model_folder:
        info = contracts.read_info(model_folder, contracts.MODEL)
        wanted = params.data.model_copy(update={"image_size": info["image_size"]})
        with open_data(data, wanted) as folder, tempfile.TemporaryDirectory() as scratch:
            dataset, masks = Dataset.open(folder), None
            if info["masks"] != "none":
                masks = Path(scratch, "masks")
                segment(folder, params.segment, masks)
            seen = seen_with_lesions(dataset.manifest, contracts.trained_on(model_folder))
            _refuse_seen(model, data, dataset.manifest, seen, leave_out_seen=leave_out_seen)
            rows = np.flatnonzero(~seen)
            logits = predict_logits(model_folder, dataset, rows, masks)
    columns = contracts.logit_columns(info["classes"])
    named = dataset.manifest[["image_id", "lesion_id", "label"]].iloc[rows].reset_index(drop=True)
    predictions = pd.concat([named, pd.DataFrame(logits, columns=columns)], axis=1)
    found = evaluate_predictions(predictions, info["classes"], bootstrap=params.evaluate.bootstrap, seed=params.evaluate.seed)
    return {
        "model": model,
        "architecture": info["architecture"],
        "data": str(data),
        "content_digest": dataset.content_digest,
        "synthetic": dataset.synthetic,
        "n_images": found["n_images"],
        "n_lesions": found["n_lesions"],
        "left_out": int(seen.sum()),
        "metrics": found["overall"],
        "per_class": found["per_class"],
        "confusion": found["confusion"],
    }


def seen_with_lesions(images: pd.DataFrame, developed: pd.DataFrame | None) -> npt.NDArray[np.bool_]:
    """Which images a model was made with, by their bytes or pixels, and all others of their lesions; bool [n].

    Ids alone tell nothing: two hospitals may both have a lesion 7.
    """
    if developed is None:
        return np.zeros(len(images), np.bool_)
    known = contracts.seen_before(images, developed)
    return np.asarray(images["lesion_id"].isin(images.loc[known, "lesion_id"]), np.bool_)


def _refuse_seen(model: str, data: Path, images: pd.DataFrame, seen: npt.NDArray[np.bool_], *, leave_out_seen: bool) -> None:
    first = images["image_id"].iloc[int(np.argmax(seen))] if seen.any() else ""
    if seen.any() and not leave_out_seen:
        raise InputError(
            f"{data}: the training or validation part of {model} had {int(seen.sum())} of these {len(seen)} images, or others "
            f"of their lesions, the first {first}: figures on them would flatter it. Give other images, or leave these out "
            "with --leave-out-seen"
        )
    if seen.all():
        raise InputError(f"{data}: {model} was made with every lesion of these images; give others")


def _download(named: re.Match[str], params: Params, scratch: Path) -> Path:
    from mlflow.exceptions import MlflowException

    from dermaflow import registry

    client = registry.connect(params.register_.tracking_uri)
    try:
        found = (
            client.get_model_version_by_alias(named["name"], named["alias"])
            if named["alias"]
            else client.get_model_version(named["name"], named["version"])
        )
    except MlflowException as error:
        known = [f"{item['name']}/{item['version']}" for item in registry.list_versions(client)]
        raise InputError(
            f"MODEL {named[0]}: no such version in {params.register_.tracking_uri}; there are: {', '.join(known) or 'none'}"
        ) from error
    return registry.model_artifact(found, scratch)
