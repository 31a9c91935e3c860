"""Learning curves as a picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def draw_curves(history: pd.DataFrame, best_epoch: int, title: str, path: Path) -> None:
    """Draw loss (train as drawn, validation clean) and validation balanced accuracy per epoch; the kept epoch is marked."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    marker = "o" if len(history) <= 20 else None
    left.plot(history["epoch"], history["loss"], marker=marker, label="train (augmented, MixUp)", color="#0072b2")
    left.plot(history["epoch"], history["validation_loss"], marker=marker, label="validation", color="#d55e00")
    left.set(xlabel="epoch", ylabel="cross-entropy (nats)", title=f"{title}: loss")
    right.plot(history["epoch"], history["validation_balanced_accuracy"], marker=marker, label="validation", color="#d55e00")
    right.set(xlabel="epoch", ylabel="balanced accuracy", ylim=(0, 1), title=f"{title}: balanced accuracy")
    for axis in (left, right):
        axis.axvline(best_epoch, color="#666666", linestyle="--", linewidth=1, label=f"kept: epoch {best_epoch}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
