"""Learning curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

TRAIN, VALIDATION, RATE = "#0072b2", "#d55e00", "#009e73"


def draw_curves(history: pd.DataFrame, kept_epochs: Sequence[int], title: str, path: Path) -> None:
    """Draw loss, balanced accuracy and learning rate per epoch; a line stands where a stage ends, and at the kept epochs.

    Train and validation are both of clean images, so that they can be compared; the loss of the training step itself, on
    augmented and mixed images, is drawn thin.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    marker = "o" if len(history) <= 20 else None
    left.plot(history["epoch"], history["loss"], color=TRAIN, linewidth=0.8, linestyle=":", label="train, as drawn")
    for axis, name in ((left, "loss"), (middle, "balanced_accuracy")):
        for part, colour in (("train", TRAIN), ("validation", VALIDATION)):
            label = f"{part}, clean images"
            axis.plot(history["epoch"], history[f"{part}_{name}"], marker=marker, markersize=4, label=label, color=colour)
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", title=f"{title}: loss")
    middle.set(xlabel="epoch", ylabel="balanced accuracy", ylim=(0, 1), title=f"{title}: balanced accuracy")
    right.plot(history["epoch"], history["learning_rate"], marker=marker, markersize=4, color=RATE, label="at the epoch's end")
    right.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None), title=f"{title}: learning rate")
    ends = history["epoch"][history["stage"] != history["stage"].shift(-1)].iloc[:-1]
    for axis in (left, middle, right):
        for end in ends:
            axis.axvline(end + 0.5, color="#999999", linewidth=1)
            axis.text(
                end + 0.5, 0.97, " next stage", transform=axis.get_xaxis_transform(), va="top", fontsize=7, color="#555555"
            )
        for epoch in kept_epochs:
            axis.axvline(epoch, color="#666666", linestyle="--", linewidth=1, label=f"kept: epoch {epoch}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
