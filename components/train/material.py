"""What a training run reads: images, labels, what an epoch draws; and what of it can not be trained."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermaflow import contracts
from dermaflow.architectures import require_size
from dermaflow.artifacts import open_artifact
from dermaflow.augmentation import Draws, plan_draws
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.masking import apply_masks
from dermaflow.params import AugmentParams, MixupParams, TrainParams
from dermaflow.seen import developed_on


@dataclass(frozen=True)
class Material:
    """What a training run reads: the dataset, its train rows with their plan, its validation rows, and the masks.

    Attributes
    ----------
    plan: rows of the plan, ordered by image and view.
    mixes: its fixed mixes.
    train_rows, validation_rows: manifest rows, int64; train rows in the order of the plan's view 0.
    developed: contracts.TRAINED_ON_COLUMNS of the train and validation images.
    """

    dataset: Dataset
    plan: pd.DataFrame
    mixes: pd.DataFrame
    plan_info: dict[str, Any]
    splits_info: dict[str, Any]
    masks: Path
    train_rows: npt.NDArray[np.int64]
    validation_rows: npt.NDArray[np.int64]
    developed: pd.DataFrame
    params: TrainParams

    def inputs(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Images as the model takes them, uint8 [k, size, size, channels]."""
        mode = self.params.masks
        lesions = None if mode == "none" else contracts.masks_of(self.masks, self.dataset, rows)
        return apply_masks(self.dataset.images(rows), lesions, mode)

    def labels(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Class indices of manifest rows, int64 [k]."""
        return self.dataset.labels[rows]

    def validation_table(self, logits: npt.NDArray[np.floating[Any]]) -> pd.DataFrame:
        """The validation images with their logits [m, classes]: image_id, lesion_id, label, logit_<class>."""
        images = self.dataset.manifest.iloc[self.validation_rows][["image_id", "lesion_id", "label"]].reset_index(drop=True)
        return pd.concat([images, pd.DataFrame(logits, columns=contracts.logit_columns(self.dataset.classes))], axis=1)

    def draws(self, epoch: int) -> Draws:
        """What the plan draws in an epoch; rows are positions in `train_rows`."""
        return plan_draws(self.plan[self.plan["view"] == 0], self.augment, self.mixup, epoch)

    @property
    def draws_per_epoch(self) -> int:
        """How many images an epoch draws."""
        return round(float(self.plan.loc[self.plan["view"] == 0, "weight"].sum()))

    @property
    def augment(self) -> AugmentParams:
        """How the plan balances and changes."""
        return AugmentParams.from_json(json.dumps(self.plan_info["augment"]))

    @property
    def paired(self) -> bool:
        """Whether an image is mixed with a partner drawn for it, rather than with the next of its batch."""
        return self.augment.balance == "balanced_mixup"

    @property
    def mixup(self) -> MixupParams:
        """How the plan mixes."""
        return MixupParams.from_json(json.dumps(self.plan_info["mixup"]))

    @property
    def validation_labels(self) -> npt.NDArray[np.int64]:
        """Class indices of the validation images, int64 [m]."""
        return self.labels(self.validation_rows)

    @property
    def curve(self) -> npt.NDArray[np.int64]:
        """Positions in `train_rows` of the images that the learning curve of the train part is taken from, int64.

        As many as the validation part has, evenly spread over the order of classes: each class has its share.
        """
        by_class = np.argsort(self.labels(self.train_rows), kind="stable")
        count = min(len(self.validation_rows), len(by_class))
        return np.sort(by_class[(np.arange(count) * len(by_class)) // max(count, 1)])

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """Share of each class among what an epoch draws, float64 [classes]."""
        weights = self.plan.loc[self.plan["view"] == 0, "weight"].to_numpy()
        drawn = np.bincount(self.labels(self.train_rows), weights, minlength=len(self.dataset.classes))
        return np.asarray(drawn / drawn.sum(), np.float64)

    @property
    def fold(self) -> int | None:
        """The fold that is held out from this training, if one is."""
        held_out = self.splits_info.get("held_out")
        return None if held_out is None else int(held_out["fold"])

    @property
    def train_shares(self) -> npt.NDArray[np.float64]:
        """Share of each class among the train images, float64 [classes]."""
        counts = np.bincount(self.labels(self.train_rows), minlength=len(self.dataset.classes))
        return np.asarray(counts / counts.sum(), np.float64)

    @property
    def mask_digest(self) -> str | None:
        """Digest of the masks, where the network sees them."""
        return None if self.params.masks == "none" else open_artifact(self.masks, contracts.MASKS).digest

    def require_trainable(self, architecture: str) -> None:
        """Raise InputError when a class is missing where it is needed, or images or batches have the wrong size."""
        require_size(architecture, self.dataset.image_size)
        names = np.array(self.dataset.classes)
        if len(names) < 2:
            raise InputError(f"the dataset has one class, {names[0]}; to tell classes apart there must be at least two")
        for part, rows in (("train", self.train_rows), ("validation", self.validation_rows)):
            missing = np.setdiff1d(np.arange(len(names)), self.labels(rows))
            if len(missing):
                verb = "learnt" if part == "train" else "judged"
                raise InputError(
                    f"class {', '.join(names[missing])} has no image in the {part} part, so that it can not be {verb}; add "
                    f"lesions of it, raise split.{part}, or leave it out of the source"
                )
        if self.params.batch_size > self.draws_per_epoch:
            raise InputError(
                f"train.batch_size is {self.params.batch_size}, but an epoch draws only {self.draws_per_epoch} training "
                "images; lower it"
            )


def gather(dataset: Path, splits: Path, plan: Path, masks: Path, params: TrainParams) -> Material:
    """Read what a training run needs; raises InputError when the plan has a row that is not in train of these splits."""
    opened = Dataset.open(dataset)
    table, rows = contracts.read_splits(splits), contracts.read_plan(plan)
    train_images = set(table.loc[table["split"] == "train", "image_id"])
    mixes = contracts.read_mixes(plan)
    drawn = pd.concat([rows["image_id"], mixes["image_a"], mixes["image_b"]])
    foreign = drawn[~drawn.isin(train_images)]
    if len(foreign):
        raise InputError(f"{plan}: {foreign.iloc[0]} is not in the train split of {splits}; make the plan from these splits")
    return Material(
        dataset=opened,
        plan=rows,
        mixes=mixes,
        plan_info=contracts.read_info(plan, contracts.PLAN),
        splits_info=contracts.read_info(splits, contracts.SPLITS),
        masks=masks,
        train_rows=opened.rows_of(rows.loc[rows["view"] == 0, "image_id"]),
        validation_rows=opened.rows_of(table.loc[table["split"] == "validation", "image_id"]),
        developed=developed_on(opened, table),
        params=params,
    )
