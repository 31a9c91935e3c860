"""Folds: who is trained on, who validates and who is judged when each fold of the splits is held out in turn.

Test images are in no fold. So that the predictions of all folds can be put together, an image is judged by one fold's model
and validates at most one other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dermaflow.contracts import DEVELOPED_ON, SPLIT_NAMES
from dermaflow.errors import InputError
from dermaflow.spreading import spread

FOLD = "fold"  # column of splits, and of predictions that several folds' models made
NOBODY = -1


def validated_in(splits: pd.DataFrame, info: Mapping[str, Any]) -> pd.Series[int]:
    """The fold whose model each image of train and validation validates, never its own fold's; NOBODY where none.

    A fold's model is validated on as large a share of these images as validation has of them, but on no more than one part
    in as many as there are folds. Groups stay whole, and each class and group size is shared out alike.

    Parameters
    ----------
    splits: SPLIT_COLUMNS.
    info: what splits.json says: folds, shares, seed.

    Raises
    ------
    InputError
        when the splits have no folds, or a fold's model would lack a class in train, validation or test.
    """
    count = info["folds"]
    if not count:
        raise InputError("the splits have no folds; split with split.folds, such as 5")
    developed = splits[splits["split"].isin(DEVELOPED_ON)].sort_values("image_id")
    train, validation = (info["shares"][name] for name in DEVELOPED_ON)
    share = min(validation / (train + validation), 1 / count)
    shares = [*[share] * count, max(0.0, round(1 - share * count, 9))]
    fold_of = pd.Series(NOBODY, index=developed.index, name="validated_in")
    for _, members in developed.groupby(developed.groupby("group_id")["label"].transform("first"), sort=True):
        own_fold = {str(group): int(fold) for group, fold in zip(members["group_id"], members[FOLD], strict=True)}
        sizes = members.groupby("group_id").size()
        chosen = spread(sizes, shares, f"{info['seed']}/validation", np.zeros(count + 1), own_fold)
        fold_of[members.index] = members["group_id"].map(chosen).replace({count: NOBODY})
    _refuse_missing_class(developed, fold_of, count)
    return fold_of


def held_out(splits: pd.DataFrame, info: Mapping[str, Any], fold: int) -> pd.DataFrame:
    """The splits by which the model is made that a fold is held out from.

    Parameters
    ----------
    splits, info: as in `validated_in`.
    fold: 0 .. folds - 1.

    Returns
    -------
    SPLIT_COLUMNS of the images of train and validation alone: those of the fold are in test, and the others in train or
    validation. They come into no numbered test set.

    Raises
    ------
    InputError
        as `validated_in`, and when there is no such fold.
    """
    fold_of = validated_in(splits, info)
    if not 0 <= fold < info["folds"]:
        raise InputError(f"there is no fold {fold}: the splits have folds 0 to {info['folds'] - 1}")
    return _parted(splits.loc[splits["split"].isin(DEVELOPED_ON)], fold_of, fold).reset_index(drop=True)


def _parted(developed: pd.DataFrame, fold_of: pd.Series[int], fold: int) -> pd.DataFrame:
    sides = np.select([developed[FOLD] == fold, fold_of[developed.index] == fold], ["test", "validation"], "train")
    return developed.assign(split=sides)


def _refuse_missing_class(developed: pd.DataFrame, fold_of: pd.Series[int], count: int) -> None:
    labels = developed["label"]
    test, validation = (
        pd.crosstab(labels, of).reindex(columns=range(count), fill_value=0) for of in (developed[FOLD], fold_of)
    )
    train = (-test - validation).add(labels.value_counts(), axis=0)
    images = dict(zip(SPLIT_NAMES, (train, validation, test), strict=True))
    for label in test.index:
        for fold in range(count):
            empty = [name for name, found in images.items() if not found.loc[label, fold]]
            if empty:
                raise InputError(
                    f"split.folds is {count}, but class {label} has too few lesions for that: the model of fold {fold} would "
                    f"have none in {' and '.join(empty)}; ask for fewer folds, or for none (split.folds=0)"
                )
