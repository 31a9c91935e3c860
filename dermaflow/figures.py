"""Every figure of an evaluation, of one model or of the models of all folds, from its table of predictions alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermaflow import calibration, operating
from dermaflow.folds import FOLD
from dermaflow.metrics import UNDEFINED, Floats, Interval, Judged, Weights, arranged, intervals, judged_of, softmax, values
from dermaflow.params import EvaluateParams

VALIDATION, TEST = "validation", "test"
JUDGED = (VALIDATION, TEST)
AGE_BANDS = ((0, 30), (30, 50), (50, 70), (70, 200))  # years, from and below
SIZE_BANDS = {"under a tenth of the image": 0.1, "a tenth to a third": 1 / 3, "over a third": 1.01}  # upper ends
SUBGROUPS = {  # columns of the predictions, as a person would call them
    "sex": "sex",
    "age": "age in years",
    "localization": "site",
    "dx_type": "way of diagnosis",
    "lesion_size": "lesion size (area of its mask)",
}
LEAST_LESIONS = 20  # of a subgroup that has an estimate
OF_SUBGROUP = ("balanced_accuracy", "accuracy")
OF_QUESTION = ("sensitivity", "specificity", "auroc")  # of a subgroup, for each question of dermaflow.operating
OVER_FOLDS = ("balanced_accuracy", "auroc")  # of OVERALL, told of each fold too
UNKNOWN = "unknown"
Rows = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Chosen:
    """What a model's validation images chose, for these and any other images.

    Attributes
    ----------
    temperature: None where it is not known.
    thresholds: by the name of a question of dermaflow.operating; None, or nothing, where there is none.
    """

    temperature: float | None = None
    thresholds: Mapping[str, float | None] = field(default_factory=dict)


def choose(
    validation: pd.DataFrame, classes: Sequence[str], params: EvaluateParams, temperature: float | None = None
) -> Chosen:
    """The temperature, if none is given, and the thresholds of `params.specificity`; of validation images and no others."""
    judged = judged_of(validation, classes)
    if not judged.size:
        return Chosen(temperature)
    temperature = temperature or calibration.fit_temperature(judged.logits, judged.labels)
    probabilities = softmax(judged.logits / temperature)
    thresholds = {
        question.name: operating.threshold_at(question.scores(probabilities), question.holds(judged.labels), params.specificity)
        for question in operating.questions(classes)
    }
    return Chosen(temperature, thresholds)


@dataclass(frozen=True)
class Side:
    """Images that are judged together.

    Attributes
    ----------
    folds: of each image, int64 [n]: which model judged it.
    chosen: what was chosen for each fold's model; for a single model, that of fold 0.
    groups: for each attribute that is known the images of each of its values.
    """

    judged: Judged
    folds: npt.NDArray[np.int64]
    chosen: Mapping[int, Chosen]
    groups: Mapping[str, Mapping[str, Rows]]

    @property
    def temperatures(self) -> Floats | None:
        """Of each image's model, float64 [n]; None where it is not known of every model."""
        return self._of_each({fold: own.temperature for fold, own in self.chosen.items()})

    def thresholds(self, question: str) -> Floats | None:
        """Of each image's model, float64 [n]; None where a model has none."""
        return self._of_each({fold: own.thresholds.get(question) for fold, own in self.chosen.items()})

    def threshold(self, question: str) -> float | None:
        """The threshold of all images; None where each fold has its own."""
        return self.chosen[0].thresholds.get(question) if len(self.chosen) == 1 else None

    def _of_each(self, values: Mapping[int, float | None]) -> Floats | None:
        if None in values.values():
            return None
        return np.array([values[fold] for fold in self.folds.tolist()], np.float64)


def figures(
    predictions: pd.DataFrame, classes: Sequence[str], params: EvaluateParams, chosen: Chosen | None = None
) -> dict[str, Any]:
    """Figures of the validation and of the test images, and what validation chose for both.

    Parameters
    ----------
    predictions: one row an image: image_id, lesion_id, split (validation or test), label, `logit_<class>` for each class,
        and those of SUBGROUPS that are known. With a column `fold` the rows of each fold are another model's, and
        validation chooses for each model by its own validation images.
    chosen: what the model's validation images chose, where predictions hold test images alone (of other data).

    Returns
    -------
    ``temperature`` and ``thresholds`` (of each question of dermaflow.operating), fitted on validation, None where each fold
    has its own, and ``least_lesions`` of a subgroup that has figures; for each of JUDGED (for test alone where `chosen` is
    given) what `dermaflow.metrics.evaluate_predictions` tells, and ``calibration``, ``abstention``, ``operating_points``,
    ``subgroups``. Every interval is 95 %, by bootstrap over lesions. Without a temperature there is no calibration ``after``
    it, and abstention and the questions' areas go by the plain probabilities; without a threshold, a question has no rates.
    With folds also ``by_fold``: for each its temperature, thresholds, and on its test images n_images, n_lesions and
    OVER_FOLDS; and ``over_folds``: their mean and standard deviation.

    Raises
    ------
    InputError
        as `dermaflow.metrics.evaluate_predictions`.
    """
    several = FOLD in predictions
    every = predictions if several else predictions.assign(**{FOLD: 0})
    rows = {split: every[every["split"] == split].sort_values("image_id") for split in (JUDGED if chosen is None else (TEST,))}
    by_model = {
        fold: chosen or choose(rows[VALIDATION].query(f"{FOLD} == @fold"), classes, params)
        for fold in (sorted(every[FOLD].unique().tolist()) if several else [0])
    }
    sides = {
        split: Side(judged_of(table, classes), np.asarray(table[FOLD], np.int64), by_model, _groups(table))
        for split, table in rows.items()
    }
    thresholds = {question.name: sides[TEST].threshold(question.name) for question in operating.questions(classes)}
    return {
        "temperature": None if several else by_model[0].temperature,
        "thresholds": {"specificity_on_validation": params.specificity, **thresholds},
        "least_lesions": LEAST_LESIONS,
        **{split: _part(side, params) for split, side in sides.items()},
        **(_over_folds(sides[TEST]) if several else {}),
    }


def _over_folds(side: Side) -> dict[str, Any]:
    """`by_fold` and `over_folds`: each model on the images that it was held out from, and how far models differ."""
    by_fold: list[dict[str, Any]] = []
    for fold, own in side.chosen.items():
        held_out = side.judged.of(side.folds == fold)
        found = values(held_out, softmax(held_out.logits), np.ones((1, held_out.size)))
        by_fold.append(
            {
                "fold": fold,
                "temperature": own.temperature,
                "thresholds": dict(own.thresholds),
                "n_images": held_out.size,
                "n_lesions": len(np.unique(held_out.lesions)),
                **{name: float(found[name][0]) for name in OVER_FOLDS},
            }
        )
    return {
        "by_fold": by_fold,
        "over_folds": {
            name: {
                "mean": float(np.mean([row[name] for row in by_fold])),
                "sd": float(np.std([row[name] for row in by_fold], ddof=1)),
            }
            for name in OVER_FOLDS
        },
    }


def _part(side: Side, params: EvaluateParams) -> dict[str, Any]:
    judged, groups, temperatures = side.judged, side.groups, side.temperatures
    stages = {"before": judged.logits} | ({} if temperatures is None else {"after": judged.logits / temperatures[:, None]})
    best = stages.get("after", judged.logits)
    plain, probabilities = softmax(judged.logits), softmax(best)
    questions = operating.questions(judged.classes)
    thresholds = {question.name: side.thresholds(question.name) for question in questions}
    large = {
        (attribute, name): rows
        for attribute, members in groups.items()
        for name, rows in members.items()
        if len(np.unique(judged.lesions[rows])) >= LEAST_LESIONS
    }

    def compute(weights: Weights) -> dict[Any, Floats]:
        told: dict[Any, Floats] = dict(values(judged, plain, weights))
        for stage, logits in stages.items():
            told |= _under(stage, calibration.scores(logits, judged.labels, weights))
        told |= _under("coverage", calibration.selective_accuracy(best, judged.labels, weights))
        for question in questions:
            threshold = thresholds[question.name]
            told |= _under(question.name, operating.figures(question, probabilities, judged.labels, weights, threshold))
        for key, rows in large.items():
            own, drawn = judged.of(rows), weights.T[rows].T
            of_all = values(own, plain[rows], drawn, ranks=False)
            told |= _under(key, {name: of_all[name] for name in OF_SUBGROUP})
            for question in questions:
                threshold = thresholds[question.name]
                own_threshold = None if threshold is None else threshold[rows]
                at = operating.figures(question, probabilities[rows], own.labels, drawn, own_threshold)
                told |= _under((*key, question.name), {name: at[name] for name in OF_QUESTION})
        return told

    told = intervals(compute, judged.lesions, bootstrap=params.bootstrap, seed=params.seed)
    return {
        **arranged(judged, told),
        "calibration": {
            stage: {
                **{name: told[stage, name] for name in calibration.PROPER},
                "reliability": calibration.reliability(stages[stage], judged.labels),
            }
            if stage in stages
            else None
            for stage in ("before", "after")
        },
        "abstention": [{"coverage": share, "accuracy": told["coverage", share]} for share in calibration.COVERAGES],
        "operating_points": {
            question.name: {"threshold": side.threshold(question.name), **_point(question, judged, told)}
            for question in questions
        },
        "subgroups": {
            attribute: {name: _subgroup(judged, rows, told, (attribute, name)) for name, rows in members.items()}
            for attribute, members in groups.items()
        },
    }


def _under(key: Any, told: Mapping[Any, Floats]) -> dict[Any, Floats]:
    return {(key, name): value for name, value in told.items()}


def _point(question: operating.Question, judged: Judged, told: Mapping[Any, Interval]) -> dict[str, Any]:
    holds = question.holds(judged.labels)
    return {
        "classes": [judged.classes[column] for column in question.columns],
        **_sizes(judged, holds),
        **{name: told[question.name, name] for name in operating.FIGURES},
    }


def _subgroup(judged: Judged, rows: Rows, told: Mapping[Any, Interval], key: tuple[str, str]) -> dict[str, Any]:
    """A subgroup's size, and its share of those of whom a question holds, always; figures from LEAST_LESIONS lesions on."""
    return {
        **_sizes(judged, rows),
        **{name: told.get((key, name), UNDEFINED) for name in OF_SUBGROUP},
        **{
            question.name: {
                **_sizes(judged, rows & question.holds(judged.labels)),
                **{name: told.get(((*key, question.name), name), UNDEFINED) for name in OF_QUESTION},
            }
            for question in operating.questions(judged.classes)
        },
    }


def _sizes(judged: Judged, rows: Rows) -> dict[str, int]:
    return {"n_images": int(rows.sum()), "n_lesions": len(np.unique(judged.lesions[rows]))}


def _groups(rows: pd.DataFrame) -> dict[str, dict[str, Rows]]:
    """For each attribute that is known the images of each of its values."""
    found = {}
    for name in SUBGROUPS:
        if name in rows:
            named = _named(name, rows[name])
            found[name] = {value: np.asarray(named == value) for value in sorted(named.unique(), key=_order_of(name))}
    return found


def _order_of(attribute: str) -> Any:
    bands = {"age": [_band(*band) for band in AGE_BANDS], "lesion_size": list(SIZE_BANDS)}.get(attribute, [])
    return lambda value: (value == UNKNOWN, bands.index(value) if value in bands else len(bands), value)


def _named(attribute: str, column: pd.Series[Any]) -> pd.Series[str]:
    """The group of each image, as a person would call it."""
    if attribute == "age":
        return column.map(lambda age: next((_band(*band) for band in AGE_BANDS if band[0] <= age < band[1]), UNKNOWN))
    if attribute == "lesion_size":
        return column.map(lambda share: next((name for name, end in SIZE_BANDS.items() if share < end), UNKNOWN))
    return column.fillna("").astype(str).replace({"": UNKNOWN, "nan": UNKNOWN})


def _band(first: int, end: int) -> str:
    return f"under {end}" if first == 0 else f"{first} and over" if end >= 200 else f"{first} to {end - 1}"
