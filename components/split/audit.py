"""The leakage audit: which test images have a relative in train, of what kind, and what a random split would come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from dermaflow.contracts import SPLIT_NAMES

KINDS = {  # column of the audit, and what it is called
    "same_lesion": "of the same lesion",
    "near_duplicate": "near duplicate",
    "augmented": "made from the same image",
}
_COLOURS = ("#0072b2", "#e69f00", "#009e73")  # Okabe and Ito: apart with any colour vision
_ANY, _RANDOM = "#22303c", "#9aa5b1"


def leakage(table: pd.DataFrame, neighbours: pd.DataFrame, parents: pd.Series[str] | None = None) -> dict[str, dict[str, Any]]:
    """Test images with a relative in train, over all and for each class.

    Parameters
    ----------
    table: image_id, lesion_id, label and split of each image.
    neighbours: image_a, image_b: near duplicates.
    parents: for each row of `table` the image that it was made from by augmentation, or its own id; None where nothing
        was augmented before the split.

    Returns
    -------
    For `all` and each class: test_images; for each kind of relative the number of test images that have one in train;
    with_relative_in_train (of any kind) and its share of the test images; random_share, which a random split of the same
    images into sides of the same sizes would come to on average.
    """
    originals = table["image_id"] if parents is None else parents.set_axis(table.index)
    in_train, is_test = table["split"] == "train", table["split"] == "test"
    pairs = neighbours[["image_a", "image_b"]].to_numpy()
    ends = pd.DataFrame(np.concatenate([pairs, pairs[:, ::-1]]), columns=["image_id", "other"])
    found = pd.DataFrame(
        {
            "same_lesion": table["lesion_id"].isin(table.loc[in_train, "lesion_id"]),
            "near_duplicate": table["image_id"].isin(ends.loc[ends["other"].isin(table.loc[in_train, "image_id"]), "image_id"]),
            "augmented": originals.isin(originals[in_train]),
        }
    )
    found["with_relative_in_train"] = found.any(axis=1)
    by_chance = _by_chance(_relatives(table, ends), table["split"])
    audit: dict[str, dict[str, Any]] = {}
    for name in ("all", *sorted(set(table.loc[is_test, "label"].astype(str)))):
        of_class = np.ones(len(table), np.bool_) if name == "all" else (table["label"] == name).to_numpy()
        rows = is_test.to_numpy() & of_class
        counts = {str(kind): int(values.to_numpy()[rows].sum()) for kind, values in found.items()}
        images = int(rows.sum())
        audit[name] = {
            "test_images": images,
            **counts,
            "share": counts["with_relative_in_train"] / max(images, 1),
            "random_share": float(by_chance[of_class].mean()),
        }
    return audit


def _relatives(table: pd.DataFrame, ends: pd.DataFrame) -> npt.NDArray[np.int64]:
    """How many other images each image is related to: of its lesion, or a near duplicate; int64 [n]."""
    siblings = table.groupby("lesion_id")["image_id"].transform("size").to_numpy() - 1
    lesion_of = table.set_index("image_id")["lesion_id"]
    outside = ends[ends["image_id"].map(lesion_of) != ends["other"].map(lesion_of)]
    near = table["image_id"].map(outside.groupby("image_id")["other"].nunique()).fillna(0)
    return np.asarray(siblings + near.to_numpy(), np.int64)


def _by_chance(relatives: npt.NDArray[np.int64], sides: pd.Series[str]) -> npt.NDArray[np.float64]:
    """Chance that a test image has one of its m relatives in train: 1 - C(n-1-m, k) / C(n-1, k), k images of n in train."""
    from scipy.special import gammaln

    others = int(sides.isin(SPLIT_NAMES).sum()) - 1
    train = int((sides == "train").sum())
    m = np.minimum(relatives, others)
    possible = others - m >= train
    left = np.where(possible, others - m, train)  # keeps the logarithms finite where none can stay outside of train
    none = gammaln(left + 1) - gammaln(left - train + 1) - gammaln(others + 1) + gammaln(others - train + 1)
    return np.asarray(1 - np.where(possible, np.exp(none), 0.0))


def draw_leakage(audit: dict[str, dict[str, Any]], strategy: str, path: Path) -> None:
    """Draw the audit: for each class the share of test images with a relative in train, by kind, beside a random split's."""
    names = list(audit)
    figure = Figure(figsize=(8, 0.62 * len(names) + 1.9), dpi=110, layout="constrained")
    axes = figure.subplots()
    bars = [*KINDS, "with_relative_in_train", "random_share"]
    labels = [*KINDS.values(), "any of these", "any, expected of a random split by image"]
    height = 0.8 / len(bars)
    for place, (kind, label, colour) in enumerate(zip(bars, labels, (*_COLOURS, _ANY, _RANDOM), strict=True)):
        shares = [_share(audit[name], kind) for name in names]
        at = np.arange(len(names)) + (place - (len(bars) - 1) / 2) * height
        drawn = axes.barh(at, shares, height * 0.9, color=colour, label=label)
        if kind == "with_relative_in_train":  # a bar of nothing is not seen
            axes.bar_label(drawn, [f"{audit[name][kind]:,}" for name in names], padding=3, size=8)
    axes.set(xlim=(0, 1), yticks=np.arange(len(names)), xlabel="share of the class's test images with a relative in train")
    axes.set_yticklabels([f"{name} (n = {audit[name]['test_images']:,})" for name in names])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.grid(axis="x", color="#e3e7ec")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    leaks = audit["all"]
    told = "split by lesion" if strategy == "lesion" else "random split"
    axes.set_title(
        f"Leakage audit, {told}: {leaks['with_relative_in_train']:,} of {leaks['test_images']:,} test images "
        f"({100 * leaks['share']:.1f} %)",
        loc="left", size=11, weight="bold",
    )  # fmt: skip
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def _share(entry: dict[str, Any], kind: str) -> float:
    return float(entry[kind]) if kind == "random_share" else entry[kind] / max(entry["test_images"], 1)
