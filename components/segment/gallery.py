"""The picture of a Masks artifact: its best, median and worst masks by Dice, or a fixed sample where no truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dermaflow.dataset import Dataset, Images

OURS, EXPERT = "#ffd23f", "#3fe0ff"  # yellow and cyan: apart from skin, and from each other with any colour vision
_COLUMNS = 6
_INCHES = 1.8  # a picture's side
_LEAST_INCHES = 4.5  # the width that the title needs


def draw_gallery(dataset: Dataset, table: pd.DataFrame, folder: Path) -> None:
    """Draw gallery.png: three rows of images with our outline and, where it is known, the expert's.

    Parameters
    ----------
    dataset: the images.
    table: masks.parquet, in the order of the manifest.
    folder: the Masks artifact, with its mask shards; gallery.png is written into it.
    """
    rows = _chosen(table)
    columns = max(len(chosen) for chosen in rows.values())
    size = (columns * _INCHES + 0.6, len(rows) * (_INCHES + 0.3) + 0.9)
    figure = Figure(figsize=(max(size[0], _LEAST_INCHES), size[1]), dpi=110, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (title, chosen) in zip(grid, rows.items(), strict=True):
        axes_row[0].set_ylabel(title, size=10, weight="bold")
        images, truths, masks = dataset.images(chosen), dataset.truth(chosen), _masks(dataset, folder, chosen)
        for place, axes in enumerate(axes_row):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if place < len(chosen):
                _draw(axes, images[place], masks[place], truths[place])
                axes.set_title(_caption(dataset, table, int(chosen[place])), size=8, pad=3)
    _explain(figure, dataset, table)
    figure.savefig(folder / "gallery.png", metadata={"Software": None})  # a version would change the bytes


def _chosen(table: pd.DataFrame) -> dict[str, npt.NDArray[np.int64]]:
    """Manifest rows to show, by the title of their row in the picture."""
    judged = table["dice"].notna().to_numpy()
    if judged.any():
        order = np.flatnonzero(judged)[np.argsort(-table["dice"].to_numpy()[judged], kind="stable")]
        count = min(_COLUMNS, max(1, len(order) // 3))
        middle = (len(order) - count) // 2
        return {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}
    by_id = np.argsort(table["image_id"].to_numpy().astype(str), kind="stable")
    sample = by_id[np.linspace(0, len(by_id) - 1, min(len(by_id), 3 * _COLUMNS)).astype(np.int64)]
    return {f"sample {number + 1}": part for number, part in enumerate(np.array_split(sample, 3)) if len(part)}


def _draw(axes: Axes, image: Images, mask: Images, truth: Images) -> None:
    height, width = mask.shape
    axes.imshow(image)
    for outline, colour, style in ((truth, EXPERT, "--"), (mask, OURS, "-")):
        if outline.any():
            padded = np.pad(outline, 1)  # closes outlines that run along the border
            axes.contour(padded, levels=[0.5], colors=colour, linewidths=1.5, linestyles=style, extent=(-1, width, -1, height))
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _caption(dataset: Dataset, table: pd.DataFrame, row: int) -> str:
    dice = table["dice"].to_numpy()[row]
    parts = [
        str(dataset.manifest["label"].to_numpy()[row]),
        f"Dice {dice:.2f}" if np.isfinite(dice) else "",
        "(fallback)" if table["fallback"].to_numpy()[row] else "",
    ]
    return " ".join(filter(None, parts))


def _explain(figure: Figure, dataset: Dataset, table: pd.DataFrame) -> None:
    """Title and legend."""
    judged = int(table["dice"].notna().sum())
    kind, truth = ("synthetic images", "drawn truth") if dataset.synthetic else ("images", "expert")
    quality = f"mean Dice {table['dice'].mean():.3f} over {judged}" if judged else "no expert masks to compare with"
    title = f"Lesion masks of {len(table)} {kind}\n{quality}; fallback in {table['fallback'].mean():.1%}"
    figure.suptitle(title, size=11, weight="bold")
    handles = [Line2D([], [], color=OURS, linewidth=2.5, label="Dermaflow")]
    if judged:
        handles.append(Line2D([], [], color=EXPERT, linewidth=2.5, linestyle="--", label=truth))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, facecolor="#777777", labelcolor="white", fontsize=9)


def _masks(dataset: Dataset, folder: Path, rows: npt.NDArray[np.int64]) -> Images:
    """Masks of some manifest rows from an artifact that is not sealed yet, uint8 0/1 [k, size, size]."""
    places = dataset.manifest[["shard", "row"]].to_numpy()[rows]
    return np.stack([np.load(folder / f"mask-{shard:05d}.npy", mmap_mode="r")[row] for shard, row in places])
