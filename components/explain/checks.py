"""What the maps are worth, tried on the first of the explained images.

Whether the answer hangs on what they name (insertion, deletion), whether another background tells the same (stability),
whether they depend on what was learned (randomisation), and whether a method that does not look into the network agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.explain import measures
from components.explain.attribution import LogitExplainer
from components.explain.cells import similarity
from components.explain.kept import Kept
from components.explain.perturbation import perturbed
from components.explain.randomisation import STAGES, cascade
from components.explain.second_method import partition_map
from dermaflow.metrics import softmax
from dermaflow.progress import progress

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
    explainer: that made the maps; it is as it was after each check.
    seed: of random orders and shuffled weights.
    """

    def __init__(self, explainer: LogitExplainer, seed: int, kept: Kept) -> None:
        self._explainer, self._seed, self._kept = explainer, seed, kept

    def insertion_and_deletion(self, images: Sequence[Explained]) -> pd.DataFrame:
        """Columns of `perturbation.perturbed`."""

        def make(number: int, one: Explained) -> dict[str, float]:
            def probability(inputs: Floats) -> npt.NDArray[np.floating[Any]]:
                return softmax(self._explainer.logits(inputs))[:, one.position]

            return perturbed(one.image, one.map, probability, self._seed + number)

        return self._table("insertion and deletion", sample(images, "insertion"), make)

    def stability(self, images: Sequence[Explained], background: Floats) -> pd.DataFrame:
        """Similarity of the maps to those against another background, signed and not."""

        def make(_: int, one: Explained) -> dict[str, float]:
            return dict(zip(("stability", "stability_unsigned"), _similarities(one, self._colours(one)), strict=True))

        own = self._explainer.background
        self._explainer.compare_with(background)
        try:
            return self._table("stability", sample(images, "stability"), make)
        finally:
            self._explainer.compare_with(own)

    def randomisation(self, images: Sequence[Explained]) -> pd.DataFrame:
        """For each stage, similarity of the maps to those of the network as trained, and how they lie on the lesion."""

        def make(_: int, one: Explained) -> dict[str, float]:
            colours = self._colours(one)
            concentration = measures.concentration(np.abs(colours).sum(axis=-1), one.lesion)
            return dict(zip(measures.STAGE_COLUMNS, (*_similarities(one, colours), concentration), strict=True))

        chosen, background, tables = sample(images, "randomisation"), self._explainer.background, []
        with cascade(self._explainer.model, self._seed) as stages:
            for stage in stages:
                self._explainer.compare_with(background)
                tables.append(self._table(f"randomisation, stage {stage} of {STAGES}", chosen, make).assign(stage=stage))
        self._explainer.compare_with(background)
        return pd.concat(tables, ignore_index=True)

    def second_method(self, images: Sequence[Explained]) -> pd.DataFrame:
        """Similarity of the maps to those of a method that does not look into the network."""

        def make(_: int, one: Explained) -> dict[str, float]:
            other = partition_map(one.image, lambda inputs: self._explainer.logits(inputs)[:, one.position])
            return {"agreement": similarity(one.map, other)}

        return self._table("second method", sample(images, "second_method"), make)

    def _colours(self, one: Explained) -> Floats:
        """What the explainer, as it is now, gives the image's colours, float32 [size, size, 3]."""
        return self._explainer.attribute(one.image, one.position)[..., :3]

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


def _similarities(one: Explained, colours: Floats) -> tuple[float, float]:
    """Similarity of an image's map to another of it, signed, and of their magnitudes."""
    signed = colours.sum(axis=-1)
    return similarity(one.map, signed), similarity(np.abs(one.map), np.abs(signed))
