"""Whether a map depends on what the network has learned: its weights are shuffled, from the answer downwards.

Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, Sanity Checks for Saliency Maps, NeurIPS 2018: cascading
randomisation. A map that stays as it was shows the picture, not the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaflow.architectures import heads

if TYPE_CHECKING:
    import keras

STAGES = 5  # the head first (of each member of an ensemble); the layers below it in equal parts


def stages(model: keras.Model) -> list[list[Any]]:
    """The kernels of a model (weights of more than one axis) in the order in which they are randomised, in STAGES parts."""
    kernels = [weight for weight in model.weights if len(weight.shape) > 1][::-1]
    first = [head.kernel for head in heads(model)] or kernels[:1]
    known = {id(kernel) for kernel in first}
    below = [kernel for kernel in kernels if id(kernel) not in known]
    parts = np.array_split(np.arange(len(below)), STAGES - 1)
    return [first, *([below[place] for place in part] for part in parts)]


@contextmanager
def cascade(model: keras.Model, seed: int) -> Iterator[Iterator[int]]:
    """Give an iterator, each step of which shuffles one more stage's kernels; after the block all is as it was.

    A shuffled kernel keeps its values, and so the size of what comes out of it; their places are lost. The iterator gives
    the stage's number, from 1.
    """
    parts = stages(model)
    kept = [weight.numpy() for part in parts for weight in part]
    rng = np.random.default_rng(seed)

    def shuffled() -> Iterator[int]:
        for number, part in enumerate(parts, start=1):
            for weight in part:
                weight.assign(rng.permuted(weight.numpy().reshape(-1)).reshape(weight.shape))
            yield number

    try:
        yield shuffled()
    finally:
        for weight, values in zip((weight for part in parts for weight in part), kept, strict=True):
            weight.assign(values)
