"""The pipeline's own steps, one by one in a folder, for benchmarks and proofs that train many models on the same images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from dermaflow.artifacts import json_digest, write_text
from dermaflow.params import Params
from pipelines.code import code_digest

# What the figures of a trained model come from: steps, and sections of the parameters.
_STEPS = ("ingest", "balance", "segment", "split", "fold", "augment", "train", "evaluate")
_SECTIONS = {"data", "segment", "split", "augment", "mixup", "train", "evaluate"}


def made_by(params: Params) -> dict[str, Any]:
    """Digests of parameters and code: figures of a model that was made by the same are not measured again."""
    values = params.model_dump(mode="json", include=_SECTIONS)
    return {"params": json_digest(values), "code": {step: code_digest(step) for step in _STEPS}}


def short(value: Any) -> str:
    """The beginning of a JSON value's digest, as part of a name."""
    return json_digest(value).removeprefix("sha256:")[:12]


def unnamed(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    """Label, split and logits of predictions, images and lesions numbered anew: all that figures are computed from.

    Parameters
    ----------
    name: begins every number; tables with the same rows under the same name can be compared row by row.
    """
    numbers = {"image_id": range(len(predictions)), "lesion_id": pd.factorize(predictions["lesion_id"])[0]}
    kept = [column for column in predictions if column in (*numbers, "split", "label") or column.startswith("logit_")]
    return predictions.assign(**{key: [f"{name}-{number}" for number in each] for key, each in numbers.items()})[kept]


def write_told(table: pd.DataFrame, path: Path) -> None:
    """Write an unnamed table as evidence: CSV, whole or not at all, logits to five digits after the point."""
    write_text(path, table.to_csv(index=False, float_format="%.5f"))


class Prepared:
    """Dataset, Splits and Masks artifacts of a source, made when they are first asked for.

    Parameters
    ----------
    folder: where they are, and are found again; features of frozen layers are kept beside them for all models.
    params: of the data, the segmentation and the split.
    """

    def __init__(self, folder: Path, params: Params) -> None:
        self.folder, self.params = folder, params

    @property
    def dataset(self) -> Path:
        """The Dataset artifact."""
        from components.ingest.core import ingest

        return self._once("dataset", lambda target: ingest(self.params.data, target, self.folder / "state"))

    @property
    def splits(self) -> Path:
        """The Splits artifact."""
        from components.split.core import split

        return self._once("splits", lambda target: split(self.dataset, self.params.split, target))

    @property
    def masks(self) -> Path:
        """The Masks artifact."""
        from components.segment.core import segment

        return self._once("masks", lambda target: segment(self.dataset, self.params.segment, target))

    def _once(self, name: str, make: Callable[[Path], Any]) -> Path:
        target = self.folder / name
        if not target.exists():
            make(target)
        return target

    def model(self, name: str, architecture: str, params: Params, fold: int | None = None) -> tuple[Path, dict[str, Any]]:
        """Plan and train a model, on the splits or with a fold held out, from the beginning.

        Returns
        -------
        Its folder, with splits, plan, model and history, and what model.json says.
        """
        from components.augment.core import augment
        from components.fold.core import hold_out
        from components.train.core import Places, train

        here, splits = self.folder / name, self.splits
        shutil.rmtree(here, ignore_errors=True)  # of one that was interrupted: its time is to be all of it
        if fold is not None:
            hold_out(splits, fold, here / "splits")
            splits = here / "splits"
        augment(self.dataset, splits, params.augment, params.mixup, here / "plan")
        targets, places = (here / "model", here / "history"), Places(self.folder / "cache", here / "state")
        return here, train(self.dataset, splits, here / "plan", self.masks, architecture, params.train, *targets, places=places)
