"""Running a Model artifact: load it, prepare its inputs by its contract, compute logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dermaflow import contracts
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.inference import settled
from dermaflow.masking import apply_masks
from dermaflow.progress import progress

if TYPE_CHECKING:
    import keras

BATCH = 32


def load_model(path: Path) -> tuple[keras.Model, dict[str, Any]]:
    """The Keras model of a Model artifact (logits out) and its contract (`model.json`).

    Raises
    ------
    InputError
        when `path` is not a finished Model artifact.
    """
    import keras

    info = contracts.read_info(path, contracts.MODEL)
    return keras.saving.load_model(path / "model.keras", compile=False), info


def model_inputs(
    dataset: Dataset, rows: npt.NDArray[np.int64], masks: Path | None, info: dict[str, Any]
) -> npt.NDArray[np.float32]:
    """Inputs of a model for the given manifest rows, float32 [k, size, size, channels] in 0..255.

    Raises
    ------
    InputError
        when the model was made for another image size or other classes than the dataset's, or needs masks.
    """
    check_fit(dataset, info)
    mode = info["masks"]
    if mode != "none" and masks is None:
        raise InputError(f"the model was trained with train.masks={mode}; give the Masks artifact of this dataset too")
    lesions = contracts.masks_of(masks, dataset, rows) if masks is not None and mode != "none" else None
    return apply_masks(dataset.images(rows), lesions, mode).astype(np.float32)


def predict_logits(path: Path, dataset: Dataset, rows: npt.NDArray[np.int64], masks: Path | None) -> npt.NDArray[np.float32]:
    """Logits float32 [k, classes] of the given manifest rows, in batches of BATCH images."""
    model, info = load_model(path)
    forward = settled(model)
    logits = np.empty((len(rows), len(info["classes"])), np.float32)
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        logits[start : start + len(batch)] = forward(model_inputs(dataset, batch, masks, info))
        progress(f"{info['architecture']}: predicting", start + len(batch), len(rows))
    return logits


def check_fit(dataset: Dataset, info: dict[str, Any]) -> None:
    """Refuse a dataset whose classes or image size differ from the model's."""
    if list(dataset.classes) != info["classes"]:
        raise InputError(f"classes differ: the model knows {info['classes']}, the dataset has {list(dataset.classes)}")
    if dataset.image_size != info["image_size"]:
        raise InputError(
            f"image sizes differ: the model takes {info['image_size']} px, the dataset has {dataset.image_size} px; "
            f"ingest with data.image_size={info['image_size']}"
        )
