"""Which images are explained, and which stand for "no information": written rules, so that nobody picks by looks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest

import pandas as pd

from dermaflow.contracts import logit_columns

EXPLAINED_SPLITS = ("test", "validation")  # in this order
SELECTION_RULE = (
    "Of the test images, one image of each lesion (the first by SHA-256 of 'seed:image_id'). Classes "
    "take turns; within a class, correctly and wrongly classified images take turns, each in the order of that hash; a "
    "class or an outcome that has run out is passed over. When there are no more test lesions, validation images alike."
)
BACKGROUND_RULE = (
    "Of the training images, one image of each lesion (the first by SHA-256 of 'seed:image_id'). Classes take turns, "
    "each in the order of that hash."
)


def choose_images(predictions: pd.DataFrame, classes: Sequence[str], *, count: int, seed: int) -> pd.DataFrame:
    """Choose the images to explain, by SELECTION_RULE.

    Parameters
    ----------
    predictions: image_id, lesion_id, split, label and one logit column a class, as an Evaluation holds them.
    classes: class names in the order of the logits.
    count: how many images are wanted; fewer come back where there are fewer lesions.
    seed: decides the order among images of the same class and outcome.

    Returns
    -------
    At most `count` rows in the order of choice: image_id, lesion_id, split, label, predicted, correct.
    """
    logits = predictions[logit_columns(classes)].to_numpy()
    rows = predictions[["image_id", "lesion_id", "split", "label"]].copy()
    rows["predicted"] = [classes[position] for position in logits.argmax(axis=1)]
    rows["correct"] = rows["predicted"] == rows["label"]
    ordered = [_in_turn(rows[rows["split"] == split], classes, seed) for split in EXPLAINED_SPLITS]
    return pd.concat(ordered).drop_duplicates("lesion_id").head(count).reset_index(drop=True)


def _in_turn(rows: pd.DataFrame, classes: Sequence[str], seed: int) -> pd.DataFrame:
    """One image of each lesion, classes in turn, and within a class the outcomes."""
    rows = _one_per_lesion(rows, seed)
    by_class = [
        list(_take_turns([_places(rows, rows["label"].eq(name) & rows["correct"].eq(outcome)) for outcome in (True, False)]))
        for name in classes
    ]
    return rows.loc[list(_take_turns(by_class))]


def choose_background(splits: pd.DataFrame, classes: Sequence[str], *, count: int, seed: int) -> pd.DataFrame:
    """Choose the images that stand for "no information", by BACKGROUND_RULE.

    Parameters
    ----------
    splits: image_id, lesion_id, label, split, as a Splits artifact holds them.
    classes: class names; they take turns in this order.
    count: how many images are wanted; fewer come back where there are fewer lesions.
    seed: decides the order among images of the same class.

    Returns
    -------
    At most `count` rows in the order of choice: image_id, lesion_id, label; training images only.
    """
    rows = splits.loc[splits["split"] == "train", ["image_id", "lesion_id", "label"]]
    rows = _one_per_lesion(rows, seed)
    by_class = [_places(rows, rows["label"].eq(name)) for name in classes]
    return rows.loc[list(_take_turns(by_class))[:count]].reset_index(drop=True)


def _one_per_lesion(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Order the rows by their hashes, keep the first of each lesion, number them from 0."""
    order = [hashlib.sha256(f"{seed}:{image_id}".encode()).hexdigest() for image_id in rows["image_id"]]
    ordered = rows.assign(_order=order).sort_values("_order").drop(columns="_order")
    return ordered.drop_duplicates("lesion_id").reset_index(drop=True)


def _places(rows: pd.DataFrame, wanted: pd.Series[bool]) -> list[int]:
    return [int(place) for place in rows.index[wanted]]


def _take_turns(queues: Iterable[Sequence[int]]) -> Iterable[int]:
    """Take the first of each queue, then the second of each, and so on until all are empty."""
    return (place for place in chain.from_iterable(zip_longest(*queues)) if place is not None)
