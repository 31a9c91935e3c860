"""How a stage is trained: rates, loss, what is monitored, precision. A recipe is what params come to for one stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dermaflow.params import Loss, Monitor, TrainParams


@dataclass(frozen=True)
class Recipe:
    """How a stage is trained.

    Attributes
    ----------
    learning_rate: Adam's; the highest, where it falls along a cosine.
    rate_name: the parameter that it comes from.
    warm_up: share of the steps in which it rises.
    shares: of each class among what an epoch draws, float64 [classes].
    loss: cross_entropy; class_weights: each image counts 1 / (classes * share of its class), scikit-learn's "balanced";
        logit_adjustment: the logarithms of the shares are added to the logits in training (Menon et al., ICLR 2021).
    label_smoothing: share of a label that is spread over all classes (Szegedy et al., CVPR 2016).
    average: decay a step of the moving average of the weights (Polyak and Juditsky 1992); 0: none.
    precision: Keras' dtype policy. jit: whether the step is compiled by XLA.
    """

    epochs: int
    learning_rate: float
    rate_name: str
    shares: npt.NDArray[np.float64]
    warm_up: float = 0.0
    cosine: bool = False
    loss: Loss = "cross_entropy"
    label_smoothing: float = 0.0
    average: float = 0.0
    monitor: Monitor = "balanced_accuracy"
    patience: int = 0
    precision: str = "float32"
    jit: bool = False

    def out_of_patience(self, epochs: int) -> bool:
        """Whether so many epochs without a better one are enough."""
        return bool(self.patience) and epochs >= self.patience

    def weights(self, vectors: Any) -> Any:
        """What each image counts, float32 [b], by its label vector [b, classes]."""
        import tensorflow as tf

        if self.loss != "class_weights":
            return tf.ones(tf.shape(vectors)[:1])
        return tf.linalg.matvec(vectors, tf.constant(1 / (len(self.shares) * self.shares), tf.float32))

    def adjusted(self, logits: Any) -> Any:
        """Logits as the loss takes them."""
        import tensorflow as tf

        return logits + tf.constant(np.log(self.shares), tf.float32) if self.loss == "logit_adjustment" else logits

    def smoothed(self, vectors: Any) -> Any:
        """Label vectors as the loss takes them."""
        return vectors * (1 - self.label_smoothing) + self.label_smoothing / len(self.shares)


def of_images(params: TrainParams, architecture: str, **given: Any) -> Recipe:
    """The recipe of an architecture that is trained whole."""
    return Recipe(epochs=params.epochs, **_first(params, architecture), **_common(params), **given)


def of_head(params: TrainParams, architecture: str, **given: Any) -> Recipe:
    """The recipe of the head of a frozen backbone."""
    return Recipe(epochs=params.head_epochs, **_first(params, architecture), **_common(params), **given)


def of_fine_tuning(params: TrainParams, **given: Any) -> Recipe:
    """The recipe of a pretrained architecture's last blocks, after its head."""
    tuned = params.fine_tune
    rate: dict[str, Any] = {"learning_rate": tuned.learning_rate, "rate_name": "train.fine_tune.learning_rate"}
    return Recipe(epochs=tuned.epochs, warm_up=tuned.warm_up, cosine=True, **rate, **_common(params), **given)


def _first(params: TrainParams, architecture: str) -> dict[str, Any]:
    name = "train.learning_rate" + (f"s.{architecture}" if architecture in params.learning_rates else "")
    return {"learning_rate": params.learning_rate_of(architecture), "rate_name": name}


def _common(params: TrainParams) -> dict[str, Any]:
    return {name: getattr(params, name) for name in ("loss", "label_smoothing", "average", "monitor", "patience")}
