"""A Model artifact that needs no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermaflow import contracts
from dermaflow.artifacts import new_artifact, write_json
from dermaflow.classes import HAM10000_CLASSES


def write_red_model(
    folder: Path, size: int, classes: Sequence[str] = HAM10000_CLASSES, developed: pd.DataFrame | None = None, **info: Any
) -> Path:
    """A Keras model that reads the class off the red channel: logit k is highest where the mean red is 30 k.

    Parameters
    ----------
    developed: contracts.TRAINED_ON_COLUMNS that it says it was made with; nothing of the kind where None.
    info: what model.json says beside, or instead of, the least that judging reads.
    """
    import keras

    red = keras.Input((size, size, 3))
    dense = keras.layers.Dense(7)
    model = keras.Model(red, dense(keras.layers.GlobalAveragePooling2D()(red)))
    centres = 30.0 * np.arange(7)
    dense.set_weights([np.stack([2 * centres, np.zeros(7), np.zeros(7)]), -(centres**2)])
    told = {"architecture": "cnn", "classes": list(classes), "image_size": size, "resize": "stretch", "masks": "none"}
    with new_artifact(folder, contracts.MODEL) as building:
        model.save(building / "model.keras")
        write_json(building / "model.json", {**told, "pipeline_check": True, **info})
        if developed is not None:
            developed.to_parquet(building / contracts.TRAINED_ON, index=False)
    return folder
