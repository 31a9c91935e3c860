"""Yes or no: a question of some classes against the rest, answered at a threshold that validation images chose.

A threshold that is chosen on the images it is judged on flatters; here it comes from validation and is applied to test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dermaflow.classes import MALIGNANT, MELANOMA
from dermaflow.metrics import Floats, Integers, Weights, areas_of, ratio

QUESTIONS = {"melanoma": (MELANOMA,), "malignant": MALIGNANT}
RATES = ("sensitivity", "specificity", "ppv", "npv")
FIGURES = (*RATES, "auroc", "auprc")


@dataclass(frozen=True)
class Question:
    """Some classes against the rest.

    Attributes
    ----------
    columns: their positions among the classes.
    """

    name: str
    columns: tuple[int, ...]

    def scores(self, probabilities: Floats) -> Floats:
        """Probability of the answer yes, [n] of class probabilities [n, c]."""
        return np.asarray(probabilities[:, list(self.columns)].sum(axis=1), np.float64)

    def holds(self, labels: Integers) -> npt.NDArray[np.bool_]:
        """Whether the answer is yes, bool [n] of class indices."""
        return np.isin(labels, self.columns)


def questions(classes: Sequence[str]) -> tuple[Question, ...]:
    """Those of QUESTIONS that these classes can answer: each of its classes is there, and another."""
    return tuple(
        Question(name, tuple(classes.index(one) for one in members))
        for name, members in QUESTIONS.items()
        if set(members) < set(classes)
    )


def threshold_at(scores: Floats, holds: npt.NDArray[np.bool_], specificity: float) -> float | None:
    """The lowest threshold at which at least so large a share of the images without the answer are below it.

    None where there is no such image, or none with the answer. A score of at least the threshold says yes.
    """
    negatives = np.sort(scores[~holds])
    if not len(negatives) or holds.all() or not holds.any():
        return None
    needed = int(np.ceil(specificity * len(negatives) - 1e-9))  # so many have to be below
    if needed == 0:
        return 0.0
    return float(np.nextafter(negatives[needed - 1], np.inf))


def rates(scores: Floats, holds: npt.NDArray[np.bool_], weights: Weights, threshold: float | Floats) -> dict[str, Floats]:
    """RATES at a threshold: name -> [b]; Altman and Bland, BMJ 308, 1552 (1994) and 309, 102 (1994).

    Parameters
    ----------
    scores, holds: [n]; weights: how often each image counts, [b, n].
    threshold: of all images, or of each, float64 [n].
    """
    says = scores >= threshold
    cells = np.column_stack([says & holds, says & ~holds, ~says & holds, ~says & ~holds])
    tp, fp, fn, tn = (weights @ cells.astype(weights.dtype)).T
    return {
        "sensitivity": ratio(tp, tp + fn),
        "specificity": ratio(tn, tn + fp),
        "ppv": ratio(tp, tp + fp),
        "npv": ratio(tn, tn + fn),
    }


def figures(
    question: Question, probabilities: Floats, labels: Integers, weights: Weights, threshold: float | Floats | None
) -> dict[str, Floats]:
    """FIGURES of a question: name -> [b]; RATES are NaN where there is no threshold. The areas: see `metrics.ranked`.

    Parameters
    ----------
    probabilities: [n, c]; labels: class indices, int64 [n]; weights: how often each image counts, [b, n].
    """
    scores, holds = question.scores(probabilities), question.holds(labels)
    undefined = np.full(len(weights), np.nan)
    at = dict.fromkeys(RATES, undefined) if threshold is None else rates(scores, holds, weights, threshold)
    return {**at, **dict(zip(("auroc", "auprc"), areas_of(scores, holds, weights), strict=True))}
