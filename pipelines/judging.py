"""Any model on any data: resolves what a person names into artifacts, and judges."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermaflow import contracts
from dermaflow.artifacts import ARTIFACT_FILE, open_artifact
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.params import DataParams, Params

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from dermaflow.figures import Chosen

_REGISTERED = re.compile(r"(?:models:/)?(?P<name>[\w.-]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")
_TOLD = ("per_class", "confusion", "calibration", "abstention", "operating_points", "subgroups")


@dataclass(frozen=True)
class Subject:
    """A model that is to be judged.

    Attributes
    ----------
    model: folder of its Model artifact.
    info: its model.json.
    developed: the images that it was made with, as dermaflow.seen takes them; None where nothing says so.
    evaluation: folder of the Evaluation of this very model on its own validation images, where there is one.
    """

    model: Path
    info: dict[str, Any]
    developed: pd.DataFrame | None
    evaluation: Path | None


@contextmanager
def open_model(model: str, params: Params) -> Iterator[Subject]:
    """The model that MODEL names: a Model artifact's folder, NAME@ALIAS or NAME/VERSION (as in MLflow, after models:/).

    A saved model's Evaluation is looked for where a run keeps it; a registered one's among its evidence.
    """
    if (Path(model) / ARTIFACT_FILE).exists():
        folder = Path(model)
        info, beside = contracts.read_info(folder, contracts.MODEL), folder.absolute().parent
        places = (beside / "evaluation", beside.parent / f"evaluate-{info['architecture']}" / "evaluation")
        yield Subject(folder, info, contracts.trained_on(folder), _own_evaluation(folder, *places))
        return
    found = None if Path(model).exists() else registered_version(model, params)
    if found is None:
        raise InputError(
            f"MODEL {model!r} is neither a Model artifact's folder nor NAME@ALIAS nor NAME/VERSION; "
            "for example dermaflow-candidate@challenger"
        )
    with tempfile.TemporaryDirectory() as scratch:
        yield _registered(*found, Path(scratch))


@contextmanager
def open_data(data: str, info: dict[str, Any], params: DataParams) -> Iterator[Dataset]:
    """DATA as a model sees it: a Dataset artifact, or one ingested from a source for as long as it is needed.

    Parameters
    ----------
    data: a Dataset artifact's folder, or whatever `data.source` may name.
    info: the model's model.json.

    Raises
    ------
    InputError
        when the data can not be read, have labels that the model does not know, or were prepared in another way.
    """
    if (Path(data) / ARTIFACT_FILE).exists():
        dataset = Dataset.open(Path(data))
        _check_prepared(data, dataset, info)
        yield dataset
        return
    from components.ingest.core import ingest
    from components.ingest.source import open_source

    wanted = {"source": data, "subset": None, "image_size": info["image_size"], "resize": info["resize"]}
    own = params.model_copy(update=wanted)
    source = open_source(own)
    _check_labels(data, source.classes, source.refused, info)
    del source
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch, "dataset")
        ingest(own, target)
        yield Dataset.open(target)


def judge(model: str, data: str, params: Params, *, leave_out_seen: bool = False, out: Path | None = None) -> dict[str, Any]:
    """Figures of a model on all images of DATA, none of which it was made with.

    Parameters
    ----------
    model: as `open_model` takes it.
    data: as `open_data` takes it.
    leave_out_seen: pass over images that the model was made with, and all others of their lesions, instead of refusing DATA.
    out: where the Evaluation artifact (predictions, figures, pictures) is to be, if it is wanted.

    Returns
    -------
    model, architecture, pipeline_check, data, content_digest, synthetic, n_images, n_lesions; left_out (images passed over
    because the model was made with them; None where nothing says which those are); rejected (unusable files, by reason);
    metrics (overall), and as `dermaflow.figures` has them bootstrap, temperature, thresholds, least_lesions,
    per_class, confusion, calibration, abstention, operating_points, subgroups; evaluation (`out`).

    Raises
    ------
    InputError
        when the model or the data can not be found or do not fit each other, or the model was made with some of these images.
    """
    from dermaflow.seen import seen_by

    if out is not None and out.exists():
        open_artifact(out, contracts.EVALUATION)  # of which another may take the place; nothing else is overwritten
    with open_model(model, params) as subject, open_data(data, subject.info, params.data) as dataset:
        seen = np.zeros(len(dataset.manifest), np.bool_) if subject.developed is None else seen_by(subject.developed, dataset)
        _refuse_seen(model, data, dataset.manifest, seen, leave_out_seen=leave_out_seen)
        found = _judged(subject, dataset, dataset.manifest[~seen], params, out)
        return {
            "model": model,
            "architecture": subject.info["architecture"],
            "pipeline_check": subject.info["pipeline_check"],
            "data": data,
            "content_digest": dataset.content_digest,
            "synthetic": dataset.synthetic,
            **{name: found["test"][name] for name in ("n_images", "n_lesions")},
            "left_out": None if subject.developed is None else int(seen.sum()),
            "rejected": {str(reason): int(count) for reason, count in dataset.rejects["reason"].value_counts().items()},
            "metrics": found["test"]["overall"],
            "bootstrap": {"replicates": params.evaluate.bootstrap, "seed": params.evaluate.seed, "unit": "lesion"},
            **{name: found[name] for name in ("temperature", "thresholds", "least_lesions")},
            **{name: found["test"][name] for name in _TOLD},
            "evaluation": None if out is None else str(out),
        }


def _judged(subject: Subject, dataset: Dataset, images: pd.DataFrame, params: Params, out: Path | None) -> dict[str, Any]:
    """What `dermaflow.figures` tells of some images, as test images; the Evaluation artifact, if it is wanted."""
    from components.evaluate.core import judged_rows
    from components.segment.core import segment
    from dermaflow.evaluation import write_evaluation
    from dermaflow.figures import figures
    from dermaflow.predict import predict_logits

    with tempfile.TemporaryDirectory() as scratch:
        masks = Path(scratch, "masks")
        segment(dataset.artifact.path, params.segment.model_copy(update={"min_dice": 0.0}), masks)
        named = images[["image_id", "lesion_id", "label"]].assign(split="test")
        rows = judged_rows(dataset, named, contracts.read_masks(masks))
        logits = predict_logits(subject.model, dataset, dataset.rows_of(rows["image_id"]), masks)
    columns = contracts.logit_columns(dataset.classes)
    predictions = pd.concat([rows, pd.DataFrame(logits, columns=columns)], axis=1)
    chosen = _chosen(subject, params)
    if out is None:
        return figures(predictions, dataset.classes, params.evaluate, chosen)
    info = {**subject.info, "model_digest": open_artifact(subject.model, contracts.MODEL).digest}
    return write_evaluation(predictions, info, dataset, params.evaluate, out, chosen)


def _chosen(subject: Subject, params: Params) -> Chosen:
    """The model's own temperature where it has one, and what its own validation images choose."""
    from dermaflow.figures import VALIDATION, Chosen, choose

    temperature = subject.info.get("temperature")
    if subject.evaluation is None:
        return Chosen(temperature)
    predictions = contracts.read_predictions(subject.evaluation)
    own = predictions[predictions["split"] == VALIDATION]
    return choose(own, subject.info["classes"], params.evaluate, temperature)


def _own_evaluation(model: Path, *places: Path) -> Path | None:
    """The first of some folders that is an Evaluation of this very model, by its digest."""
    digest = open_artifact(model, contracts.MODEL).digest
    there = (place for place in places if (place / ARTIFACT_FILE).exists())
    return next((place for place in there if contracts.read_metrics(place).get("model_digest") == digest), None)


def _check_prepared(data: str, dataset: Dataset, info: dict[str, Any]) -> None:
    """Refuse a Dataset artifact that was made for other models than this one."""
    from dermaflow.predict import check_fit

    check_fit(dataset, info)
    if dataset.info["resize"] != info["resize"]:
        raise InputError(
            f"{data}: made with data.resize={dataset.info['resize']}, but the model's images with {info['resize']}; "
            "give the source itself, or ingest it so"
        )


def _check_labels(data: str, classes: Sequence[str], refused: pd.DataFrame, info: dict[str, Any]) -> None:
    """Refuse a source whose labels the model has no answer for, before any of its images is read."""
    if list(classes) != info["classes"]:
        known = json.dumps(info["classes"])
        raise InputError(
            f"{data}: its classes are {', '.join(classes)}, but the model knows {', '.join(info['classes'])}; "
            f'if that is what its labels mean, say so in a source.json beside the images: {{"classes": {known}}}'
        )
    unknown = refused[refused["reason"] == "unknown_class"]  # the detail names file, label and what is allowed
    if len(unknown):
        raise InputError(
            f"{data}: the model does not know the label of {len(unknown)} images; the first: {unknown['detail'].iloc[0]}. "
            "Relabel them, or take them out"
        )


def _refuse_seen(model: str, data: str, images: pd.DataFrame, seen: npt.NDArray[np.bool_], *, leave_out_seen: bool) -> None:
    if not seen.any():
        return
    made_with = f"the training or validation part of {model}"
    if seen.all():
        raise InputError(f"{data}: all {len(seen)} images, or others of their lesions, were in {made_with}; give other images")
    if not leave_out_seen:
        theirs = images.loc[seen]
        raise InputError(
            f"{data}: {len(theirs)} of {len(seen)} images, of {theirs['lesion_id'].nunique()} lesions, were in {made_with}, "
            f"themselves or by another image of the lesion; the first is {theirs['image_id'].iloc[0]}. Figures on them would "
            "flatter the model: give other images, or leave these out with --leave-out-seen"
        )


def _registered(client: MlflowClient, version: ModelVersion, scratch: Path) -> Subject:
    """A registered model, fetched into `scratch`; what it was made with by its evidence, where the model does not say so."""
    from dermaflow import registry

    model = registry.model_artifact(version, scratch)

    def evidence(name: str) -> Path | None:
        with suppress(InputError):  # a registry may have been cleared of it; the model can be judged without
            return registry.evidence(client, version, name, scratch / "evidence")
        return None

    info, developed, judged = contracts.read_info(model, contracts.MODEL), contracts.trained_on(model), evidence("evaluation")
    if developed is None and (splits := evidence("splits")) is not None:
        table = contracts.read_splits(splits)
        developed = table[table["split"].isin(contracts.DEVELOPED_ON)]
    return Subject(model, info, developed, None if judged is None else _own_evaluation(model, judged))


def registered_version(model: str, params: Params) -> tuple[MlflowClient, ModelVersion] | None:
    """The version that NAME@ALIAS or NAME/VERSION names; None of another text, InputError where there is no such version."""
    from mlflow.exceptions import MlflowException

    from dermaflow import registry
    from dermaflow.access import open_registry

    named = _REGISTERED.fullmatch(model)
    if named is None:
        return None
    client = open_registry(params.register_.tracking_uri)
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
    return client, found
