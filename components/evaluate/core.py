"""Judge one model on validation and test images, kept apart, with intervals by bootstrap over lesions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermaflow import contracts
from dermaflow.artifacts import open_artifact
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.evaluation import write_evaluation
from dermaflow.figures import JUDGED, SUBGROUPS
from dermaflow.params import EvaluateParams


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
