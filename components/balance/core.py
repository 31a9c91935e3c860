"""Balance before the split, as the study did: each class brought to its total by augmentation, in one source.

Near copies of test images then sit in train. It is here to measure what that does, and marks what it writes: nothing that
was made of it is ever promoted. The honest order is split, then augment (components/augment).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.balance.windows import free_window
from dermaflow.artifacts import new_artifact
from dermaflow.augmentation import Purpose, draw_epoch, image_keys, uniform
from dermaflow.classes import NORMAL
from dermaflow.contracts import SOURCE
from dermaflow.dataset import Dataset, originals
from dermaflow.description import Balance, ClassCounts, Description, MadeFrom
from dermaflow.errors import InputError
from dermaflow.params import AugmentParams, MixupParams
from dermaflow.progress import progress
from dermaflow.sources import children, of_images, write_source

MARK = "paper protocol: leaks, not promotable"
_UNMIXED = MixupParams(alpha=0, space="pixels", fixed_mixes=0)
_BATCH = 64


def balance(dataset: Path, params: AugmentParams, target: Path) -> Description:
    """Write the source artifact: images, their expert masks, HAM10000_metadata.csv and source.json.

    A class with more images than its target gives that many of them, in the order of a hash; one with fewer gives all of
    them and as many transformed copies as are lacking, each image equally often. The class "normal" is cut from images with
    an expert mask, beside the lesion, of each lesion once before any twice. A copy, or a part, has its image's lesion.

    Returns
    -------
    What source.json says: what the source was made from, its classes and mark, and counts of each class.

    Raises
    ------
    InputError
        when augment.targets names a class that the data do not have, or leaves one out; or there is nothing to cut from.
    """
    opened = Dataset.open(dataset)
    there = {name for name, count in opened.info["counts"]["images_per_class"].items() if count}
    require_targets(there, params, masks=bool(opened.manifest["has_truth"].any()))
    parts: list[pd.DataFrame] = []
    counts: dict[str, ClassCounts] = {}
    for name, count in params.targets.items():
        items, available = _items(opened, name, count, params.seed)
        copies = _copies(items, count - len(items), params)
        counts[name] = ClassCounts(images=available, as_they_are=len(items), copies=len(copies))
        parts += [items, copies]
    source = opened.info["source"]
    said = Description(
        name=f"{source['name']}, balanced before the split",
        licence=source["licence"],
        synthetic=source["synthetic"],
        classes=tuple(name for name in (*opened.classes, NORMAL) if name in params.targets),
        mark=MARK,
        made_from=MadeFrom(
            name=source["name"], uri=source["uri"], content_digest=opened.content_digest, dvc_revision=source["dvc_revision"]
        ),
        balance=Balance(seed=params.seed, classes=counts),
    )
    with new_artifact(target, SOURCE) as folder:
        write_source(opened, pd.concat(parts, ignore_index=True), folder, said)
    return said


def require_targets(there: Collection[str], params: AugmentParams, *, masks: bool) -> None:
    """Raise InputError when the targets do not fit the classes that have images, or masks are lacking to cut normal skin by."""
    wrong = sorted((set(there) ^ params.targets.keys()) - {NORMAL})
    if wrong:
        why = "not named" if wrong[0] in there else "not a class of these data"
        raise InputError(
            f"augment.targets: {wrong[0]} is {why}; name each of {', '.join(sorted(there))}, and {NORMAL} if it is to be cut "
            "beside the lesions"
        )
    if NORMAL in params.targets.keys() - set(there) and not masks:
        raise InputError(
            f"augment.targets: {NORMAL} is cut from skin outside of expert masks, and these data have none; add the masks to "
            f"the source (<image_id>_segmentation.png), or take {NORMAL} out of the targets"
        )


def _items(dataset: Dataset, name: str, count: int, seed: int) -> tuple[pd.DataFrame, int]:
    """At most so many images of a class as they are, and how many there were to choose from."""
    if name == NORMAL and NORMAL not in set(dataset.manifest["label"]):
        return _windows(dataset, count, seed)
    rows = np.flatnonzero(dataset.manifest["label"] == name)
    return of_images(dataset, rows[_order(dataset, rows, seed)][:count]), len(rows)


def _order(dataset: Dataset, rows: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    keys = image_keys(dataset.manifest["image_id"].iloc[rows])
    return np.argsort(uniform(keys, seed, 0, Purpose.CHOICE), kind="stable")


def _windows(dataset: Dataset, count: int, seed: int) -> tuple[pd.DataFrame, int]:
    rows = np.flatnonzero(dataset.manifest["has_truth"])
    rows = rows[_order(dataset, rows, seed)]
    lesions = dataset.manifest["lesion_id"].iloc[rows]
    turn = lesions.groupby(lesions).cumcount()
    rows = rows[np.argsort(turn.to_numpy(), kind="stable")]
    found = [(row, *window) for row, window in _free(dataset, rows, count)]
    if not found:
        raise InputError(
            f"augment.targets: {NORMAL} is cut from skin outside of expert masks, but none of the {len(rows)} images with a "
            f"mask has room beside the lesion; take {NORMAL} out of the targets"
        )
    chosen, x, y, side = (np.asarray(column) for column in zip(*found, strict=True))
    table = of_images(dataset, chosen)
    image_id = table["image_id"] + "_n"
    return table.assign(dx=NORMAL, image_id=image_id, parent_id=originals(table), x=x, y=y, side=side), len(found)


def _free(dataset: Dataset, rows: npt.NDArray[np.int64], count: int) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """The first `count` of some manifest rows that have a square without lesion, and the square."""
    found = 0
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        for row, image, lesion in zip(part.tolist(), dataset.images(part), dataset.truth(part), strict=True):
            window = free_window(image, lesion)
            if window is not None:
                found += 1
                yield row, window
            if found == count:
                return
        progress("looking for skin beside lesions", found, count)


def _copies(items: pd.DataFrame, count: int, params: AugmentParams) -> pd.DataFrame:
    """So many transformed copies of images, each image's number the same or one more."""
    if count < 1:
        return items.iloc[:0]
    draws = draw_epoch(image_keys(items["image_id"]), np.full(len(items), count / len(items)), params, _UNMIXED, epoch=0)
    return children(items, draws)
