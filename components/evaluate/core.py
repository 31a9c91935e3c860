"""Judge one model on validation and test images, kept apart, with intervals by bootstrap over lesions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.evaluate import plots
from components.evaluate.figures import JUDGED, SUBGROUPS, TEST, Chosen, figures
from dermaflow import contracts
from dermaflow.artifacts import new_artifact, open_artifact, write_json
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.metrics import LEVEL
from dermaflow.params import EvaluateParams
from dermaflow.progress import progress


def evaluate(dataset: Path, splits: Path, masks: Path, model: Path, params: EvaluateParams, target: Path) -> dict[str, Any]:
    """Run a model over the validation and test images of a dataset (never its training images) and judge it.

    Parameters
    ----------
    dataset, splits, masks, model: finished artifacts of the same run.
    params: number and seed of the bootstrap resamples, specificity of the thresholds.
    target: where the Evaluation artifact is to be.

    Returns
    -------
    What `metrics.json` says.

    Raises
    ------
    InputError
        when an artifact is missing, or they do not belong together.
    """
    from dermaflow.predict import predict_logits

    images = Dataset.open(dataset)
    model_info = {**contracts.read_info(model, contracts.MODEL), "model_digest": open_artifact(model, contracts.MODEL).digest}
    rows = judged_rows(images, contracts.read_splits(splits), contracts.read_masks(masks))
    logits = predict_logits(model, images, images.rows_of(rows["image_id"]), masks)
    columns = contracts.logit_columns(images.classes)
    predictions = pd.concat([rows, pd.DataFrame(logits, columns=columns)], axis=1)
    return write_evaluation(predictions, model_info, images, params, target)


def judged_rows(dataset: Dataset, splits: pd.DataFrame, masks: pd.DataFrame) -> pd.DataFrame:
    """image_id, lesion_id, split, label and SUBGROUPS of the validation and test images, in the order of the dataset.

    Raises
    ------
    InputError
        when the splits name an image that is not in the dataset, or know it under another label.
    """
    chosen = splits.loc[splits["split"].isin(JUDGED), ["image_id", "lesion_id", "split", "label"]]
    places = dataset.rows_of(chosen["image_id"])
    relabelled = chosen["label"].to_numpy() != dataset.manifest["label"].to_numpy()[places]
    if relabelled.any():
        first = chosen["image_id"].to_numpy()[relabelled][0]
        raise InputError(f"image {first} has another label in the dataset than in the splits; run split again on this dataset")
    chosen = chosen.iloc[places.argsort()].reset_index(drop=True)
    clinical = dataset.manifest.iloc[np.sort(places)].reset_index(drop=True)
    sizes = masks.drop_duplicates("image_id").set_index("image_id")["area_share"]
    return chosen.assign(
        **{name: clinical[name] for name in SUBGROUPS if name in clinical},
        lesion_size=sizes.reindex(chosen["image_id"]).to_numpy(),
    )


def write_evaluation(
    predictions: pd.DataFrame,
    model_info: Mapping[str, Any],
    dataset: Dataset,
    params: EvaluateParams,
    target: Path,
    chosen: Chosen | None = None,
) -> dict[str, Any]:
    """Judge predictions and write them, the metrics and the pictures as an Evaluation artifact.

    Parameters
    ----------
    predictions: image_id, lesion_id, split (validation or test), label, SUBGROUPS, and `logit_<class>` for each class.
    model_info: `model.json`, and `model_digest`, the digest of the Model artifact.
    dataset: where the images come from.
    params: number and seed of the bootstrap resamples, specificity of the thresholds.
    target: where the Evaluation artifact is to be.
    chosen: as `figures` takes it: of a model on other data than its own, what its validation images chose.

    Returns
    -------
    What `metrics.json` says.

    Raises
    ------
    InputError
        when a row is of another split than validation and test, or the predictions can not be judged.
    """
    others = sorted(set(predictions["split"]) - set(JUDGED))
    if others:
        raise InputError(f"predictions hold images of split {others[0]!r}; only {' and '.join(JUDGED)} may be judged")
    metrics = {**_head(model_info, dataset, params), **figures(predictions, dataset.classes, params, chosen)}
    with new_artifact(target, contracts.EVALUATION) as folder:
        predictions.to_parquet(folder / "predictions.parquet", index=False)
        write_json(folder / contracts.METRICS_FILE, metrics)
        plots.draw_confusion(metrics, folder / "confusion.png")
        test = predictions[predictions["split"] == TEST]
        plots.draw_roc(test, metrics, folder / "roc.png")
        plots.draw_precision_recall(test, metrics, folder / "precision_recall.png")
        plots.draw_calibration(metrics, folder / "calibration.png")
        plots.draw_classified(test, metrics, dataset, params.seed, folder / "classified.png")
    progress(f"{metrics['architecture']}: judged", len(JUDGED), len(JUDGED))
    return metrics


def _head(model_info: Mapping[str, Any], dataset: Dataset, params: EvaluateParams) -> dict[str, Any]:
    return {
        "architecture": model_info["architecture"],
        "model_digest": model_info["model_digest"],
        "pipeline_check": bool(model_info["pipeline_check"]),
        "dataset": dataset.version,
        "synthetic": dataset.synthetic,
        "classes": list(dataset.classes),
        "bootstrap": {"replicates": params.bootstrap, "seed": params.seed, "unit": "lesion", "level": LEVEL},
    }
