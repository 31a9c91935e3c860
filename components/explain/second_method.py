"""A second opinion that looks at answers alone, not into the network: Shapley values of a hierarchy of rectangles.

Lundberg and Lee, NeurIPS 2017; Owen values of shap.PartitionExplainer: the image is halved again and again where the
halves differ most in what they do to the logit, and a part that is absent is blurred.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
METHOD = "Partition SHAP (shap.PartitionExplainer), absent parts blurred"
EVALUATIONS = 400  # of the model, for each image
_BATCH = 32


def partition_map(image: Floats, logit: Callable[[Floats], npt.NDArray[np.floating[Any]]]) -> Floats:
    """What each pixel adds to a logit, by rectangles that are present or blurred.

    Parameters
    ----------
    image: a model input, float32 [size, size, channels]; channels after the third are held.
    logit: inputs [k, size, size, channels] -> the logit to explain [k].

    Returns
    -------
    float32 [size, size], signed, in units of the logit.
    """
    import shap

    held = image[..., 3:]

    def answer(colours: Floats) -> npt.NDArray[np.floating[Any]]:
        rest = np.broadcast_to(held, (*colours.shape[:-1], held.shape[-1]))
        return logit(np.concatenate([colours, rest], axis=-1).astype(np.float32))[:, None]

    side = max(round(0.3 * len(image)), 1)  # px, of a box: no structure of a lesion is left
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masker = shap.maskers.Image(f"blur({side},{side})", (*image.shape[:2], 3))
        explainer = shap.PartitionExplainer(answer, masker, output_names=["logit"])
        values = explainer(image[None, ..., :3], max_evals=EVALUATIONS, batch_size=_BATCH, silent=True).values
    return np.asarray(values[0, ..., 0].sum(axis=-1), np.float32)
