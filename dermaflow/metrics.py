"""How well a classifier does: metrics from logits and labels, with 95 % intervals by bootstrap over lesions.

Every metric is a function of weighted counts or weighted ranks, vectorised over rows of image weights [b, n]. A row of
ones gives the estimate; each bootstrap replicate is one more row. Estimates and intervals so share one code path.

Two rules hold throughout. A class without a single image (in the data, or in a replicate) has no metrics there: NaN in
arrays, None in JSON, left out of macro averages. A class that has images but is never predicted has precision and F1 0.

A lesion with several images is one observation, not several: images of one lesion succeed or fail together. Intervals
therefore resample lesions (Field and Welsh, J R Stat Soc B 69, 369-390, 2007; Efron and Tibshirani, An Introduction to
the Bootstrap, 1993, ch. 13). They are percentile intervals: too narrow for classes of a few lesions, and of width zero
where every image of a class is right, or every one wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermaflow.contracts import logit_columns
from dermaflow.errors import InputError

Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.floating[Any]]  # [b, n]: how often each image counts, whole numbers
Interval = dict[str, float | None]  # estimate, low, high
Integers = npt.NDArray[np.int64]
Name = TypeVar("Name", bound=Hashable)

LEVEL = 0.95
PER_CLASS = ("sensitivity", "specificity", "precision", "npv", "f1", "auroc", "auprc")
OVERALL = ("balanced_accuracy", "accuracy", "top3", *PER_CLASS)
RANKED = ("auroc", "auprc")  # of PER_CLASS, those that look at scores, not at decisions
UNDEFINED: Interval = {"estimate": None, "low": None, "high": None}
_CHUNK_WEIGHTS = 1 << 20  # image weights in memory at a time: 4 MiB of float32, and about as much again thrice


def evaluate_predictions(predictions: pd.DataFrame, classes: Sequence[str], *, bootstrap: int, seed: int) -> dict[str, Any]:
    """All metrics of a table of predictions, with intervals, ready for strict JSON.

    Parameters
    ----------
    predictions: one row an image: image_id, lesion_id, label, and `logit_<class>` for each class. Their order is of no
        consequence.
    classes: class names; position k is the k-th logit.
    bootstrap: number of resamples of lesions.
    seed: of the resamples.

    Returns
    -------
    ``n_images``, ``n_lesions``, ``overall`` (OVERALL: estimate, low, high), ``per_class`` (for each class n_images,
    n_lesions, and PER_CLASS), ``confusion`` (classes; counts, rows true, columns predicted). None where undefined.

    Raises
    ------
    InputError
        when a column is missing, a label is no class, an image occurs twice, or a logit is not finite.
    """
    judged = judged_of(predictions, classes)
    probabilities = softmax(judged.logits)
    told = intervals(lambda weights: values(judged, probabilities, weights), judged.lesions, bootstrap=bootstrap, seed=seed)
    return arranged(judged, told)


def arranged(judged: Judged, told: Mapping[str, Interval]) -> dict[str, Any]:
    """What `evaluate_predictions` returns, of the intervals of `values` by name."""
    per_class = {}
    for position, name in enumerate(judged.classes):
        mine = judged.labels == position
        sizes = {"n_images": int(mine.sum()), "n_lesions": len(np.unique(judged.lesions[mine]))}
        per_class[name] = {**sizes, **{metric: told[f"{name}.{metric}"] for metric in PER_CLASS}}
    counts = confusion_counts(judged.predicted, judged.labels, np.ones((1, judged.size)), len(judged.classes))[0]
    return {
        "n_images": judged.size,
        "n_lesions": judged.lesion_count,
        "overall": {name: told[name] for name in OVERALL},
        "per_class": per_class,
        "confusion": {"classes": list(judged.classes), "counts": counts.astype(int).tolist()},
    }


def paired_difference(
    predictions_a: pd.DataFrame,
    predictions_b: pd.DataFrame,
    classes: Sequence[str],
    *,
    metric: str = "balanced_accuracy",
    bootstrap: int,
    seed: int,
) -> Interval:
    """How much better `predictions_a` are than `predictions_b` on the same images, with a 95 % interval.

    Both sides see the same resamples of lesions, so what makes a lesion hard for both cancels out, and the interval is
    narrower than two separate ones suggest.

    Parameters
    ----------
    predictions_a, predictions_b: as in `evaluate_predictions`.
    metric: a name of OVERALL, or ``<class>.<metric>`` of PER_CLASS, such as ``mel.sensitivity``.
    bootstrap, seed: number and seed of the resamples.

    Returns
    -------
    ``estimate`` (metric of a minus metric of b), ``low``, ``high``.

    Raises
    ------
    InputError
        when the two do not judge the same images, with the same labels and lesions, or the metric is unknown.
    """
    known = [*OVERALL, *(f"{name}.{each}" for name in classes for each in PER_CLASS)]
    if metric not in known:
        raise InputError(f"unknown metric {metric!r}; known: {', '.join(known)}")
    a, b = judged_of(predictions_a, classes), judged_of(predictions_b, classes)
    _check_same_images(a, b)
    sides = [(judged, softmax(judged.logits)) for judged in (a, b)]

    def difference(weights: Weights) -> dict[str, Floats]:
        one, other = (values(*side, weights, ranks=metric.endswith(RANKED))[metric] for side in sides)
        return {metric: one - other}

    return intervals(difference, a.lesions, bootstrap=bootstrap, seed=seed)[metric]


def mean_over_images(values: Floats, lesion_ids: pd.Series[str], *, bootstrap: int, seed: int) -> Interval:
    """Mean of a figure that each image has, with a 95 % interval by bootstrap over lesions.

    Parameters
    ----------
    values: float64 [n], without NaN; their lesions beside them.
    bootstrap, seed: number and seed of the resamples.

    Returns
    -------
    ``estimate``, ``low``, ``high``; all None where there is no value.
    """
    if not len(values):
        return dict(UNDEFINED)
    lesions = pd.factorize(lesion_ids, sort=True)[0]
    sums, images = np.bincount(lesions, values), np.bincount(lesions).astype(np.float64)
    drawn = lesion_weights(np.arange(len(sums)), bootstrap, seed)
    means = [(chunk @ sums) / (chunk @ images) for chunk in drawn]
    return _interval(np.array([values.mean()]), np.concatenate(means))


def softmax(logits: npt.NDArray[np.floating[Any]]) -> Floats:
    """Class probabilities of logits [n, c], float64 [n, c]: exp(z_k) / sum_j exp(z_j), without overflow."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True, initial=-np.inf)
    exponentials = np.exp(shifted)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float64)


def confusion_counts(predicted: Integers, labels: Integers, weights: Weights, classes: int) -> Floats:
    """Weighted confusion matrices, float64 [b, c, c]: rows true class, columns predicted class.

    Parameters
    ----------
    predicted, labels: class indices, int64 [n].
    weights: how often each image counts, [b, n].
    classes: number of classes c.
    """
    cells = np.zeros((len(labels), classes * classes), weights.dtype)
    cells[np.arange(len(labels)), labels * classes + predicted] = 1
    return np.asarray((weights @ cells).reshape(len(weights), classes, classes), np.float64)


def accuracy(counts: Floats) -> Floats:
    """Share of images that are classified rightly, [b] of confusion counts [b, c, c].

    (Tp + Tn) / all of Fawcett 2006, fig. 1; with several classes, the trace over the sum.
    """
    return ratio(np.trace(counts, axis1=1, axis2=2), counts.sum(axis=(1, 2)))


def balanced_accuracy(counts: Floats) -> Floats:
    """Mean of the sensitivities over the classes present, [b] of confusion counts [b, c, c].

    Brodersen, Ong, Stephan and Buhmann, ICPR 2010, 3121-3124, doi:10.1109/ICPR.2010.764; for several classes as in
    scikit-learn's `balanced_accuracy_score`.
    """
    return macro(sensitivity(counts))


def sensitivity(counts: Floats) -> Floats:
    """Tp / (Tp + Fn) of each class (recall, true positive rate), [b, c] of confusion counts [b, c, c].

    Fawcett, Pattern Recognit Lett 27, 861-874 (2006), fig. 1. The study that Dermaflow implements prints
    Tp / (Tn + Fn), which is wrong: it can exceed 1, and falls with the number of images of other classes.
    """
    return ratio(_hits(counts), counts.sum(axis=2))


def specificity(counts: Floats) -> Floats:
    """Tn / (Tn + Fp) of each class against the rest, [b, c] of confusion counts [b, c, c]; Fawcett 2006.

    NaN, too, for a class that every image belongs to.
    """
    others = counts.sum(axis=(1, 2))[:, None] - counts.sum(axis=2)
    return _where_present(counts, ratio(others - _false_alarms(counts), others))


def precision(counts: Floats) -> Floats:
    """Tp / (Tp + Fp) of each class (positive predictive value), [b, c] of confusion counts [b, c, c]; Fawcett 2006.

    0 for a class that has images but is never predicted (scikit-learn's `zero_division=0`).
    """
    calls = counts.sum(axis=1)
    return _where_present(counts, np.where(calls > 0, ratio(_hits(counts), calls), 0.0))


def npv(counts: Floats) -> Floats:
    """Tn / (Tn + Fn) of each class (negative predictive value), [b, c] of confusion counts [b, c, c].

    Altman and Bland, BMJ 309, 102 (1994). 0 where an image of another class exists but every image is called this one.
    """
    every = counts.sum(axis=(1, 2))[:, None]
    not_called = every - counts.sum(axis=1)
    missed = counts.sum(axis=2) - _hits(counts)
    value = np.where(not_called > 0, ratio(not_called - missed, not_called), 0.0)
    return _where_present(counts, np.where(every > counts.sum(axis=2), value, np.nan))


def f1(counts: Floats) -> Floats:
    """2 Tp / (2 Tp + Fp + Fn) of each class, [b, c] of confusion counts [b, c, c].

    The harmonic mean of precision and sensitivity: van Rijsbergen, Information Retrieval, 2nd ed., 1979, ch. 7.
    """
    return _where_present(counts, ratio(2 * _hits(counts), counts.sum(axis=1) + counts.sum(axis=2)))


def ranked(scores: Floats, labels: Integers, weights: Weights) -> dict[str, Floats]:
    """Areas under the ROC and the precision-recall curve of each class against the rest: name -> [b, c].

    auroc is the weighted Mann-Whitney statistic: over all pairs of an image of the class and one of another, how often the
    first has the higher score; a tie counts one half. Equal to the area under the ROC curve: Hanley and McNeil, Radiology
    143, 29-36 (1982); Fawcett 2006, section 7. auprc is the average precision, the mean over the class's images of the
    precision among all that score at least as high: Davis and Goadrich, ICML 2006, doi:10.1145/1143844.1143874; as
    scikit-learn's `average_precision_score`. NaN where a class has no images, or all of them.

    Parameters
    ----------
    scores: float64 [n, c]; only their order within a class matters.
    labels: class indices, int64 [n].
    weights: how often each image counts, [b, n].
    """
    areas = [areas_of(scores[:, k], labels == k, weights) for k in range(scores.shape[1])]
    return {name: np.stack([area[place] for area in areas], axis=1) for place, name in enumerate(RANKED)}


def top_k(logits: Floats, labels: Integers, weights: Weights, k: int) -> Floats:
    """Share of images whose class is among the k of highest score, [b].

    One minus the top-k error of Russakovsky et al., Int J Comput Vis 115, 211-252 (2015), section 4.1. Of equal scores the
    later class comes first, as in scikit-learn's `top_k_accuracy_score`.

    Parameters
    ----------
    logits: float64 [n, c].
    labels: class indices, int64 [n].
    weights: how often each image counts, [b, n].
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    later = np.arange(logits.shape[1]) > labels[:, None]
    ahead = (logits > own).sum(axis=1) + ((logits == own) & later).sum(axis=1)
    return ratio(weights @ (ahead < k).astype(weights.dtype), weights.sum(axis=1))


def areas_of(scores: Floats, positive: npt.NDArray[np.bool_], weights: Weights) -> tuple[Floats, Floats]:
    """`ranked` for one question: auroc and auprc [b] of scores [n]; O(n log n) once, then O(n) a replicate."""
    order = np.argsort(-scores, kind="stable")
    falling, hits = -scores[order], positive[order]
    own = falling[hits]
    drawn = weights.T[order].astype(np.float32)  # [n, b]: rows of replicates are moved and added as a whole
    own_drawn = drawn[hits]
    above, own_above = _running(drawn), _running(own_drawn)  # weight of the first k images, and of the class's own
    first, last = (above[np.searchsorted(falling, own, side=side)].astype(np.float64) for side in ("left", "right"))
    own_first, own_last = (own_above[np.searchsorted(own, own, side=side)].astype(np.float64) for side in ("left", "right"))
    total, positives = above[-1].astype(np.float64), own_above[-1].astype(np.float64)
    negatives = np.where(positives < total, total - positives, 0.0)
    lost = (own_drawn * (first - own_first + last - own_last)).sum(axis=0) / 2
    precisions = np.divide(own_last, last, out=np.zeros_like(last), where=last > 0)
    auroc = ratio(positives * negatives - lost, positives * negatives)
    auprc = ratio((own_drawn * precisions).sum(axis=0), np.where(negatives > 0, positives, 0.0))
    return auroc, auprc


def _running(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sums of the first k rows, k = 0 .. n: [n + 1, b]; of whole numbers, and so exact up to 16 million."""
    sums = np.zeros((len(weights) + 1, weights.shape[1]), np.float32)
    for k, row in enumerate(weights):  # np.cumsum would go down the columns one by one, which takes twice as long
        np.add(sums[k], row, out=sums[k + 1])
    return sums


def macro(values: Floats) -> Floats:
    """Mean over classes, leaving out those where the metric is undefined: [b] of [b, c]; NaN where all are."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


def ratio(above: npt.NDArray[np.floating[Any]], below: npt.NDArray[np.floating[Any]]) -> Floats:
    """`above / below` in float64, NaN where `below` is 0."""
    one, other = np.asarray(above, np.float64), np.asarray(below, np.float64)
    return np.asarray(np.divide(one, other, out=np.full(other.shape, np.nan), where=other > 0), np.float64)


def lesion_weights(lesions: Integers, replicates: int, seed: int) -> Iterator[npt.NDArray[np.float32]]:
    """Image weights of bootstrap resamples of lesions, in chunks float32 [b, n] that together have `replicates` rows.

    Each replicate draws as many lesions as there are, with replacement (so the counts are multinomial); an image counts
    as often as its lesion was drawn.

    Parameters
    ----------
    lesions: lesion of each image, numbered 0 .. lesions - 1, int64 [n].
    replicates: number of resamples.
    seed: of the Philox generator. The draws depend on it and on the number of lesions, not on the chunks.
    """
    random = np.random.Generator(np.random.Philox(seed))
    count = int(lesions.max()) + 1
    rows = max(1, _CHUNK_WEIGHTS // len(lesions))
    for start in range(0, replicates, rows):
        here = min(rows, replicates - start)
        drawn = random.integers(count, size=(here, count)) + np.arange(here)[:, None] * count
        drawn_counts = np.bincount(drawn.ravel(), minlength=here * count).reshape(here, count)
        yield drawn_counts.astype(np.float32).T[lesions].T  # an image's weights lie together, as `areas_of` wants them


@dataclass(frozen=True)
class Judged:
    """Predictions in the order of their image ids: what the metrics need, as arrays."""

    classes: tuple[str, ...]
    images: npt.NDArray[np.object_]  # [n]
    lesion_ids: npt.NDArray[np.object_]  # [n]
    lesions: Integers  # [n], numbered in the order of their names
    labels: Integers  # [n]
    logits: Floats  # [n, c]

    def of(self, rows: npt.NDArray[np.bool_]) -> Judged:
        """Some of the images; their lesions keep their numbers."""
        return Judged(
            self.classes, self.images[rows], self.lesion_ids[rows], self.lesions[rows], self.labels[rows], self.logits[rows]
        )

    @property
    def size(self) -> int:
        return len(self.labels)

    @property
    def lesion_count(self) -> int:
        return int(self.lesions.max(initial=-1)) + 1

    @property
    def predicted(self) -> Integers:
        return np.asarray(self.logits.argmax(axis=1), np.int64)


def judged_of(predictions: pd.DataFrame, classes: Sequence[str]) -> Judged:
    columns = logit_columns(classes)
    missing = [name for name in ("image_id", "lesion_id", "label", *columns) if name not in predictions]
    if missing:
        raise InputError(f"predictions have no column {', '.join(missing)}; they must be those of the same classes")
    table = predictions.sort_values("image_id")
    images = table["image_id"].to_numpy(dtype=object)
    _refuse(images, table["image_id"].duplicated(), "occurs more than once; give one prediction for each image")
    _refuse(images, table["lesion_id"].isna(), "has no lesion_id; the bootstrap needs to know which lesion it shows")
    _refuse(images, ~table["label"].isin(list(classes)), f"has a label that is no class; allowed: {', '.join(classes)}")
    logits = table[columns].to_numpy(dtype=np.float64)
    finite = pd.Series(np.isfinite(logits).all(axis=1), index=table.index)
    _refuse(images, ~finite, "has a logit that is not finite: the training diverged; lower train.learning_rate")
    position = {name: index for index, name in enumerate(classes)}
    return Judged(
        classes=tuple(classes),
        images=images,
        lesion_ids=table["lesion_id"].to_numpy(dtype=object),
        lesions=np.asarray(pd.factorize(table["lesion_id"], sort=True)[0], np.int64),
        labels=np.asarray([position[label] for label in table["label"]], np.int64),
        logits=logits,
    )


def _refuse(images: npt.NDArray[np.object_], bad: pd.Series[bool], why: str) -> None:
    if bad.any():
        first = images[int(np.argmax(bad.to_numpy()))]
        raise InputError(f"predictions: image {first} {why} ({int(bad.sum())} of {len(bad)} images)")


def _check_same_images(a: Judged, b: Judged) -> None:
    if not np.array_equal(a.images, b.images):
        odd = sorted(set(a.images) ^ set(b.images))
        raise InputError(
            f"the two models were judged on different images ({a.size} and {b.size}; {len(odd)} are in one only, "
            f"such as {odd[0]}); evaluate both on the same dataset and splits"
        )
    differ = (a.labels != b.labels) | (a.lesion_ids != b.lesion_ids)
    if differ.any():
        first = a.images[int(np.argmax(differ))]
        raise InputError(
            f"image {first} has another label or lesion in one of the two sets of predictions; "
            "evaluate both on the same dataset"
        )


def intervals(
    compute: Callable[[Weights], dict[Name, Floats]], lesions: Integers, *, bootstrap: int, seed: int
) -> dict[Name, Interval]:
    """Estimate and 95 % interval of each of some figures, by bootstrap over lesions.

    Parameters
    ----------
    compute: image weights [b, n] -> figures float64 [b] by name; NaN where one is undefined.
    lesions: lesion of each image, numbered from 0, int64 [n].
    bootstrap, seed: number and seed of the resamples.
    """
    estimates = compute(np.ones((1, len(lesions)), np.float32))
    if not len(lesions):
        return {name: _interval(estimate, estimate) for name, estimate in estimates.items()}
    chunks = [compute(chunk) for chunk in lesion_weights(lesions, bootstrap, seed)]
    return {
        name: _interval(estimate, np.concatenate([chunk[name] for chunk in chunks])) for name, estimate in estimates.items()
    }


def values(judged: Judged, probabilities: Floats, weights: Weights, *, ranks: bool = True) -> dict[str, Floats]:
    """Each metric by name, macro ones as "f1", those of a class as "mel.f1" -> [b]; areas only if `ranks`."""
    counts = confusion_counts(judged.predicted, judged.labels, weights, len(judged.classes))
    by_class = {
        "sensitivity": sensitivity(counts),
        "specificity": specificity(counts),
        "precision": precision(counts),
        "npv": npv(counts),
        "f1": f1(counts),
        **(ranked(probabilities, judged.labels, weights) if ranks else {}),
    }
    told = {
        "balanced_accuracy": balanced_accuracy(counts),
        "accuracy": accuracy(counts),
        "top3": top_k(judged.logits, judged.labels, weights, 3),
    }
    for metric, of_classes in by_class.items():
        told[metric] = macro(of_classes)
        for position, name in enumerate(judged.classes):
            told[f"{name}.{metric}"] = of_classes[:, position]
    return told


def _interval(estimate: Floats, replicates: Floats) -> Interval:
    """Estimate and percentile interval over the replicates in which the metric is defined; None where it never is."""
    if np.isnan(estimate[0]):
        return dict(UNDEFINED)
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return {"estimate": float(estimate[0]), "low": None, "high": None}
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"estimate": float(estimate[0]), "low": float(low), "high": float(high)}


def _hits(counts: Floats) -> Floats:
    return np.asarray(np.diagonal(counts, axis1=1, axis2=2), np.float64)


def _false_alarms(counts: Floats) -> Floats:
    return np.asarray(counts.sum(axis=1) - _hits(counts), np.float64)


def _where_present(counts: Floats, values: Floats) -> Floats:
    return np.where(counts.sum(axis=2) > 0, values, np.nan)
