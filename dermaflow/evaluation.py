"""Writing an Evaluation artifact: predictions, every figure of them, and the pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dermaflow import contracts, plots
from dermaflow.artifacts import new_artifact, write_json
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.figures import JUDGED, TEST, Chosen, figures
from dermaflow.metrics import LEVEL
from dermaflow.params import EvaluateParams
from dermaflow.progress import progress


def write_evaluation(
    predictions: pd.DataFrame,
    model_info: Mapping[str, Any],
    dataset: Dataset,
    params: EvaluateParams,
    target: Path,
    chosen: Chosen | None = None,
    out_of_fold: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Judge predictions and write them, the metrics and the pictures as an Evaluation artifact.

    Parameters
    ----------
    predictions: image_id, lesion_id, split (validation or test), label, SUBGROUPS, and `logit_<class>` for each class;
        `fold`, where the models of several folds made them.
    model_info: `model.json`, and `model_digest`, the digest of the Model artifact; of folds what their models have in
        common, and None.
    dataset: where the images come from.
    params: number and seed of the bootstrap resamples, specificity of the thresholds.
    target: where the Evaluation artifact is to be.
    chosen: as `figures` takes it: of a model on other data than its own, what its validation images chose.
    out_of_fold: what metrics.json is to say of the folds, where there are some: their number, seed, splits and models.

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
    head = _head(model_info, dataset, params) | ({"out_of_fold": dict(out_of_fold)} if out_of_fold else {})
    metrics = {**head, **figures(predictions, dataset.classes, params, chosen)}
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
