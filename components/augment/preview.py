"""The plan as a picture: originals, what the transforms make of them, and MixUp pairs with their label vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from dermaflow.augmentation import NUMBERS, mix, plan_draws, transform
from dermaflow.dataset import Dataset
from dermaflow.params import AugmentParams, MixupParams

COLUMNS = 7


def draw_preview(dataset: Dataset, plan: pd.DataFrame, params: AugmentParams, mixup: MixupParams, path: Path) -> None:
    """Draw the first images of epoch 0 as the training step will see them, by the same code."""
    import tensorflow as tf

    images = plan[plan["view"] == 0].reset_index(drop=True)
    draws = plan_draws(images, params, mixup, epoch=0)
    first = slice(0, COLUMNS)
    drawn, *numbers = draws.take(first, "rows", *NUMBERS)
    rows = dataset.rows_of(images["image_id"].iloc[drawn])
    originals, labels = dataset.images(rows), np.eye(len(dataset.classes), dtype=np.float32)[dataset.labels[rows]]
    changed = transform(tf.constant(originals), *map(tf.constant, numbers))
    weight, paired = tf.constant(draws.mix[first]), draws.partners is not None
    mixed, vectors = (mix(values, weight, paired=paired).numpy() for values in (changed, tf.constant(labels)))
    _draw(dataset, originals[first], changed.numpy()[first], mixed, labels[first], vectors, path)


def _draw(
    dataset: Dataset,
    originals: np.ndarray,
    changed: np.ndarray,
    mixed: np.ndarray,
    labels: np.ndarray,
    vectors: np.ndarray,
    path: Path,
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    def name(vector: np.ndarray) -> str:
        return "\n".join(f"{vector[k]:.2f} {dataset.classes[k]}" for k in np.argsort(-vector) if vector[k] > 0.005)

    columns = len(originals)
    figure, axes = plt.subplots(3, columns, figsize=(1.7 * columns, 6.4), squeeze=False, layout="constrained")
    for row, (title, pictures) in enumerate((("original", originals), ("transformed", changed), ("MixUp", mixed))):
        for column in range(columns):
            axis = axes[row, column]
            axis.imshow(np.clip(pictures[column], 0, 255).astype(np.uint8))
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(name(vectors[column] if row == 2 else labels[column]), fontsize=8)
        axes[row, 0].set_ylabel(title, fontsize=10)
    kind = "synthetic images" if dataset.synthetic else dataset.info["source"]["name"]
    figure.suptitle(
        f"What one training step sees ({kind}): images, transforms, mixed pairs with their label vectors", fontsize=10
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)
