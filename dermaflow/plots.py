"""The pictures of an evaluation. Each says on its face when it shows synthetic images or a pipeline check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermaflow.contracts import logit_columns
from dermaflow.dataset import Dataset
from dermaflow.metrics import softmax

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with every common colour blindness (jfly.uni-koeln.de/color); yellow, too pale for
# a line on white, is left out, and line styles repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
STYLES = ("-", "--", "-.", (0, (1, 1.2)), "-", "--", "-.", (0, (1, 1.2)))
WRONG, RIGHT, MUTED = "#D55E00", "#0072B2", "#595959"
DPI = 110
SHOWN_OF_CLASS = 6  # columns of the grid of classified images
MISTAKES_OF_CLASS = 3  # at most, unless there are too few right ones to fill the row

Places = npt.NDArray[np.int64]


def draw_confusion(metrics: Mapping[str, Any], path: Path) -> None:
    """Draw the confusion matrices of validation, if it is there, and test: colour and per cent by row, and counts."""
    splits = [split for split in ("validation", "test") if split in metrics]
    figure = _figure(6.8 * len(splits), 7.4, metrics, "which class is taken for which")
    for axes, split in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits, strict=True):
        _draw_matrix(axes, metrics[split]["confusion"])
        judged = metrics[split]
        size = f"{_name_of(split, metrics)}: {judged['n_images']} images of {judged['n_lesions']} lesions"
        axes.set_title(f"{size}\nbalanced accuracy {_told(judged['overall']['balanced_accuracy'])}", fontsize=11)
    _save(figure, path)


def draw_roc(predictions: pd.DataFrame, metrics: Mapping[str, Any], path: Path) -> None:
    """Draw the ROC curve of each class against the rest, on test predictions, with the area and its interval."""
    from sklearn.metrics import roc_curve

    figure, axes = _curves(predictions, metrics, "auroc", lambda positive, scores: roc_curve(positive, scores)[:2])
    axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=1, zorder=0)
    axes.set_xlabel("1 - specificity (false alarms among the other classes)")
    axes.set_ylabel("sensitivity")
    axes.legend(loc="lower right", title="AUROC [95 % interval]", fontsize=9, title_fontsize=9, framealpha=0.95)
    _save(figure, path)


def draw_precision_recall(predictions: pd.DataFrame, metrics: Mapping[str, Any], path: Path) -> None:
    """Draw the precision-recall curve of each class against the rest, on test predictions, with the average precision."""
    figure, axes = _curves(predictions, metrics, "auprc", precision_recall_steps, drawstyle="steps-post")
    axes.set_xlabel("sensitivity (recall)")
    axes.set_ylabel("precision")
    look: dict[str, Any] = {"ncols": 2, "fontsize": 9, "title_fontsize": 9}
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), title="average precision [95 % interval]", **look)
    _save(figure, path)


def precision_recall_steps(positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating[Any]]) -> tuple[Any, Any]:
    """Recall, falling to 0, and precision of the steps whose area is the average precision: of equal recall the highest."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(positive, scores)
    found, places = np.unique(recall[::-1], return_index=True)
    highest = precision[::-1][places]
    highest[0] = highest[1]  # where nothing is found yet
    return found[::-1], highest[::-1]


def draw_calibration(metrics: Mapping[str, Any], path: Path) -> None:
    """Draw reliability before and, where it is known, after temperature, and accuracy against coverage, of test images."""
    temperature = metrics["temperature"]
    known = "not available" if temperature is None else f"{temperature:.2f}"
    known = "of each fold" if "out_of_fold" in metrics else known
    stages = {stage: told for stage, told in metrics["test"]["calibration"].items() if told is not None}
    subject = f"are its probabilities right? {_name_of('test', metrics)} images, temperature {known}"
    figure = _figure(4.4 * (len(stages) + 1), 5.0, metrics, subject)
    *panels, right = figure.subplots(1, len(stages) + 1)
    for axes, (stage, told) in zip(panels, stages.items(), strict=True):
        _draw_reliability(axes, told, stage)
    rows = [row for row in metrics["test"]["abstention"] if row["accuracy"]["estimate"] is not None]
    shares = [row["coverage"] for row in rows]
    low, middle_line, high = ([row["accuracy"][end] for row in rows] for end in ("low", "estimate", "high"))
    right.fill_between(shares, low, high, color=RIGHT, alpha=0.18, linewidth=0)
    right.plot(shares, middle_line, color=RIGHT, marker="o", markersize=4)
    right.set(xlabel="share of images judged, the most confident first", ylabel="accuracy among them")
    right.set_title("accuracy when the rest\nis left to a person", fontsize=11)
    right.invert_xaxis()
    right.grid(color="#E6E6E6", linewidth=0.6)
    _save(figure, path)


def _draw_reliability(axes: Axes, calibration: Mapping[str, Any], stage: str) -> None:
    bars = [bar for bar in calibration["reliability"] if bar["n_images"]]
    axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=1, zorder=0)
    axes.bar(
        [bar["low"] for bar in bars], [bar["accuracy"] for bar in bars], [bar["high"] - bar["low"] for bar in bars],
        align="edge", color="#BFD9EC", edgecolor=RIGHT, linewidth=0.8,
    )  # fmt: skip
    axes.plot([bar["confidence"] for bar in bars], [bar["accuracy"] for bar in bars], "o", color=WRONG, markersize=4)
    for bar in bars:
        axes.text((bar["low"] + bar["high"]) / 2, 0.01, bar["n_images"], ha="center", va="bottom", fontsize=8, color=MUTED)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal", xlabel="confidence (largest probability)", ylabel="accuracy")
    axes.set_title(f"{stage} temperature\ncalibration error {_told(calibration['ece'])}", fontsize=11)


def _curves(
    predictions: pd.DataFrame,
    metrics: Mapping[str, Any],
    area: str,
    curve: Callable[[Any, Any], Any],
    drawstyle: str = "default",
) -> tuple[Figure, Axes]:
    """A curve for each class against the rest; `curve` gives x and y of (bool [n], probabilities [n])."""
    classes = metrics["classes"]
    figure = _figure(8.2, 7.6, metrics, f"each class against the rest, {_name_of('test', metrics)} images")
    axes = figure.subplots()
    probabilities = softmax(predictions[logit_columns(classes)].to_numpy())
    for position, name in enumerate(classes):
        judged = metrics["test"]["per_class"][name]
        label = f"{name}  {_told(judged[area])}, {_counted(judged['n_images'])}"
        look: dict[str, Any] = {"color": COLOURS[position % 8], "linestyle": STYLES[position % 8], "label": label}
        if judged[area]["estimate"] is None:
            axes.plot([], [], **look)
            continue
        axes.plot(*curve(predictions["label"] == name, probabilities[:, position]), linewidth=1.8, drawstyle=drawstyle, **look)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.grid(color="#E6E6E6", linewidth=0.6)
    return figure, axes


def draw_classified(predictions: pd.DataFrame, metrics: Mapping[str, Any], dataset: Dataset, seed: int, path: Path) -> None:
    """Draw a grid of classified test images, as in the study, but with the mistakes: a row for each true class."""
    classes = metrics["classes"]
    table = predictions.sort_values("image_id").reset_index(drop=True)
    logits = table[logit_columns(classes)].to_numpy()
    probabilities, predicted = softmax(logits), np.asarray(classes, dtype=object)[logits.argmax(axis=1)]
    chosen = [
        sample_of_class(np.flatnonzero(table["label"] == name), predicted == table["label"].to_numpy(), seed)
        for name in classes
    ]
    legend = "row: true class; above each image: predicted class and its probability"
    subject = f"a sample of {_name_of('test', metrics)} images, mistakes over-represented\n{legend}"
    figure = _figure(12.4, 2.06 * len(classes) + 1.0, metrics, subject)
    grid = figure.subplots(len(classes), SHOWN_OF_CLASS, squeeze=False)
    for name, places, row in zip(classes, chosen, grid, strict=True):
        images = dataset.images(dataset.rows_of(table["image_id"].iloc[places]))
        _label_row(row[0], name, metrics["test"]["per_class"][name])
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for axes, place, image in zip(row, places, images, strict=False):
            _draw_image(axes, image, name, str(predicted[place]), float(probabilities[place].max()))
    _save(figure, path)


def sample_of_class(mine: Places, right: npt.NDArray[np.bool_], seed: int) -> Places:
    """Up to SHOWN_OF_CLASS places out of `mine`: right ones first, then mistakes, up to half of each if there are.

    Parameters
    ----------
    mine: places of the images of one class, int64 [k].
    right: whether each image is classified rightly, bool [n].
    seed: of the choice.
    """
    random = np.random.Generator(np.random.Philox(seed))
    shuffled = random.permutation(mine)
    hits, mistakes = shuffled[right[shuffled]], shuffled[~right[shuffled]]
    wrong = min(len(mistakes), max(MISTAKES_OF_CLASS, SHOWN_OF_CLASS - len(hits)))
    return np.concatenate([hits[: SHOWN_OF_CLASS - wrong], mistakes[:wrong]])


def _draw_matrix(axes: Axes, confusion: Mapping[str, Any]) -> None:
    counts = np.asarray(confusion["counts"], dtype=np.int64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        if totals[row, 0] == 0:
            continue
        share = shares[row, column]
        axes.text(
            column, row, f"{100 * share:.0f} %\n{count}" if count else "0",
            ha="center", va="center", fontsize=8.5, color="white" if share > 0.5 else "#222222" if count else "#9A9A9A",
        )  # fmt: skip
    for row in np.flatnonzero(totals[:, 0] == 0).tolist():
        axes.text((len(counts) - 1) / 2, row, "no images of this class", ha="center", va="center", color=MUTED)
    ticks = range(len(counts))
    axes.set_xticks(ticks, confusion["classes"])
    axes.set_yticks(ticks, [f"{name} ({total})" for name, total in zip(confusion["classes"], totals[:, 0], strict=True)])
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (images)")


def _draw_image(axes: Axes, image: npt.NDArray[np.uint8], true: str, predicted: str, probability: float) -> None:
    right = predicted == true
    axes.imshow(image)
    axes.spines[:].set(visible=True, color=RIGHT if right else WRONG, linewidth=1.2 if right else 4)
    verdict = f"{predicted} {probability:.2f}" if right else f"MISTAKE: {predicted} {probability:.2f}"
    axes.set_title(verdict, fontsize=9, color="#222222" if right else WRONG, fontweight="normal" if right else "bold", pad=5)


def _label_row(axes: Axes, name: str, judged: Mapping[str, Any]) -> None:
    sensitivity = judged["sensitivity"]["estimate"]
    found = "" if sensitivity is None else f"\n{round(sensitivity * judged['n_images'])} recognised"
    axes.set_ylabel(f"{name}\n{_counted(judged['n_images'])}{found}", rotation=0, ha="right", va="center", labelpad=12)


def _figure(width: float, height: float, metrics: Mapping[str, Any], subject: str) -> Figure:
    """Open an empty picture with its title; without pyplot nothing global is touched, and Agg renders it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    whose = metrics["architecture"]
    if "out_of_fold" in metrics:
        whose += f", out of fold ({metrics['out_of_fold']['folds']} folds)"
    figure.suptitle("\n".join([f"{whose}: {subject}", *_caveats(metrics)]), fontsize=12)
    return figure


def _name_of(split: str, metrics: Mapping[str, Any]) -> str:
    """What the images of a split are called: those that a fold's model judged are no test set."""
    return "held-out" if split == "test" and "out_of_fold" in metrics else split


def _caveats(metrics: Mapping[str, Any]) -> list[str]:
    caveats = []
    if metrics["pipeline_check"]:
        caveats.append("random backbone: a check of the pipeline, not a result")
    if metrics["synthetic"]:
        caveats.append("synthetic images: says nothing about skin")
    return caveats


def _told(interval: Mapping[str, float | None]) -> str:
    if interval["estimate"] is None:
        return "undefined"
    return f"{interval['estimate']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def _counted(images: int) -> str:
    return f"{images} image" if images == 1 else f"{images} images"


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Software": None})  # no version stamp: same input, same bytes
