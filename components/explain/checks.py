"""What the maps are worth, tried on the first of the explained images.

Whether the answer hangs on what they name (insertion, deletion), whether another background tells the same (stability),
whether they depend on what was learned (randomisation), and whether a method that does not look into the network agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.explain import measures
from components.explain.attribution import LogitExplainer
from components.explain.cells import similarity
from components.explain.kept import Kept
from components.explain.perturbation import Predict, perturbed
from components.explain.randomisation import STAGES, cascade
from components.explain.second_method import partition_map
from dermaflow.metrics import softmax
from dermaflow.progress import progress

if TYPE_CHECKING:
    import keras

Floats = npt.NDArray[np.float32]
# What share of the explained images each check takes: the first in the order of choice, and two at least.
SHARES = {"insertion": 0.25, "stability": 0.15, "randomisation": 0.1, "second_method": 0.025}
LEAST = 2
SAMPLE_RULE = "Each check takes the first of the explained images, in the order of choice: {}, and at least {}.".format(
    ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in SHARES.items()), LEAST
)


@dataclass(frozen=True)
class Explained:
    """An image whose answer is explained.

    Attributes
    ----------
    image: the model's input, float32 [size, size, channels].
    lesion: its mask in the same frame, uint8 0/1 [size, size].
    position: of the explained logit.
    map: its attributions summed over colours, signed, float32 [size, size].
    """

    image_id: str
    image: Floats
    lesion: npt.NDArray[np.uint8]
    position: int
    map: Floats


def sample(images: Sequence[Explained], check: str) -> Sequence[Explained]:
    """The images that a check takes."""
    return images[: max(LEAST, round(SHARES[check] * len(images)))]


class Checks:
    """The checks of one model's maps. Each gives a table of its images; what was done before an interruption is kept.

    Parameters
    ----------
    model: that `explainer` explains.
    background: what it compares with, float32 [b, size, size, channels].
    seed: of random orders and shuffled weights.
    """

    def __init__(self, model: keras.Model, explainer: LogitExplainer, background: Floats, seed: int, kept: Kept) -> None:
        self._model, self._explainer, self._background = model, explainer, background
        self._seed, self._kept = seed, kept

    def insertion_and_deletion(self, images: Sequence[Explained]) -> pd.DataFrame:
        """Columns of `perturbation.perturbed`."""
        images = sample(images, "insertion")

        def make(number: int, one: Explained) -> dict[str, float]:
            return perturbed(one.image, one.map, self._probability(one), self._seed + number)

        return self._table("insertion and deletion", images, make)

    def stability(self, images: Sequence[Explained], background: Floats) -> pd.DataFrame:
        """Similarity of the maps to those against another background, signed and not."""
        self._explainer.compare_with(background)
        try:
            return self._table("stability", sample(images, "stability"), lambda _, one: self._compared(one))
        finally:
            self._explainer.compare_with(self._background)

    def randomisation(self, images: Sequence[Explained]) -> pd.DataFrame:
        """For each stage, similarity of the maps to those of the network as trained, and how they lie on the lesion."""
        images, tables = sample(images, "randomisation"), []
        with cascade(self._model, self._seed) as stages:
            for stage in stages:
                self._explainer.compare_with(self._background)
                made = self._table(f"randomisation, stage {stage} of {STAGES}", images, lambda _, one: self._compared(one))
                tables.append(made.assign(stage=stage))
        self._explainer.compare_with(self._background)
        return pd.concat(tables, ignore_index=True)

    def second_method(self, images: Sequence[Explained]) -> pd.DataFrame:
        """Similarity of the maps to those of a method that does not look into the network."""

        def make(_: int, one: Explained) -> dict[str, float]:
            other = partition_map(one.image, lambda inputs: self._explainer.logits(inputs)[:, one.position])
            return {"agreement": similarity(one.map, other)}

        return self._table("second method", sample(images, "second_method"), make)

    def _probability(self, one: Explained) -> Predict:
        return lambda inputs: softmax(self._explainer.logits(inputs))[:, one.position]

    def _compared(self, one: Explained) -> dict[str, float]:
        colours = self._explainer.attribute(one.image, one.position)[..., :3]
        signed = colours.sum(axis=-1)
        return {
            "similarity": similarity(one.map, signed),
            "similarity_unsigned": similarity(np.abs(one.map), np.abs(signed)),
            "concentration": measures.concentration(np.abs(colours).sum(axis=-1), one.lesion),
        }

    def _table(
        self, task: str, images: Sequence[Explained], make: Callable[[int, Explained], dict[str, float]]
    ) -> pd.DataFrame:
        rows: list[dict[str, Any]] = []
        for number, one in enumerate(images):

            def made(number: int = number, one: Explained = one) -> dict[str, Any]:
                return {name: np.float64(value) for name, value in make(number, one).items()}

            found = self._kept.get(task, one.image_id, made)
            rows.append({"image_id": one.image_id, **{name: float(value) for name, value in found.items()}})
            progress(f"explaining: {task}", number + 1, len(images))
        return pd.DataFrame(rows)
