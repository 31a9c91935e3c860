"""How much each input value contributes to one logit: Shapley values by DeepLIFT's rules, averaged over a background.

Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017 (Deep SHAP); Shrikumar, Greenside
and Kundaje, Learning Important Features Through Propagating Activation Differences, ICML 2017 (the rescale rule).
"""

from __future__ import annotations

import math
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dermaflow.errors import InputError

if TYPE_CHECKING:
    import keras

Floats = npt.NDArray[np.float32]
METHOD = "Deep SHAP (shap.DeepExplainer, rescale rule)"
# Background images in one pass: an image goes through together with copies of itself, so 4 means a batch of 8. With
# 224 px and ResNet50 that keeps a pass near 2 GB, however many background images there are.
BACKGROUND_BATCH = 4


class LogitExplainer:
    """Attributes any single logit of a model to its inputs; the graph is traced once, for all logits and images.

    The attributions of one image sum to its logit minus the mean logit of the background, as far as every operation
    in the network obeys the rescale rule: check with `base_logits`. `compare_with` takes another background, or sees to
    it that weights which have changed count.

    Parameters
    ----------
    model: float32 [n, size, size, channels] -> logits float32 [n, classes].
    background: inputs that stand for "no information", float32 [b, size, size, channels].

    Attributes
    ----------
    model, background: as given.
    base_logits: mean logits of the background, float64 [classes].
    """

    def __init__(self, model: keras.Model, background: Floats) -> None:
        import keras
        import shap
        import tensorflow as tf

        _register_missing_operations()
        self.model = model
        self._forward = tf.function(lambda images: model(images, training=False), reduce_retracing=True)
        self.compare_with(background)

        images = keras.Input(model.input_shape[1:], name="explained_images")
        # A one-hot layer picks the logit. It is linear, so the attributions stay as they are, and changing its weights
        # spares the seconds that tracing one graph for each class would take.
        self._pick = keras.layers.Dense(1, use_bias=False, trainable=False, name="picked_logit", dtype="float32")
        picked = self._pick(model(images, training=False))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Your TensorFlow version is newer")
            self._explainer = shap.DeepExplainer(keras.Model([images], picked), lambda _: self._chunk)

    def compare_with(self, background: Floats) -> None:
        """Attribute against this background, and the network as it is now, from here on."""
        self.background = background
        self._chunks = np.array_split(background, math.ceil(len(background) / BACKGROUND_BATCH))
        self._chunk = self._chunks[0]
        self.base_logits = np.concatenate([self.logits(chunk) for chunk in self._chunks]).astype(np.float64).mean(axis=0)

    def logits(self, images: Floats) -> Floats:
        """Logits of inputs [n, size, size, channels], float32 [n, classes]."""
        return np.asarray(self._forward(images), np.float32)

    def attribute(self, image: Floats, logit: int) -> Floats:
        """Attributions of one logit of one image, float32 [size, size, channels], in units of the logit.

        Raises
        ------
        InputError
            when the network has an operation that neither SHAP nor this module has a rule for.
        """
        one_hot = np.zeros((len(self.base_logits), 1), np.float32)
        one_hot[logit] = 1
        self._pick.set_weights([one_hot])
        total = np.zeros(image.shape, np.float64)
        for chunk in self._chunks:
            self._chunk = chunk  # the explainer asks for its background at each call
            total += self._deep_shap(image) * (len(chunk) / sum(map(len, self._chunks)))
        return total.astype(np.float32)

    def _deep_shap(self, image: Floats) -> npt.NDArray[np.float64]:
        """Run SHAP against the current chunk of the background; float64 [size, size, channels]."""
        from shap.explainers._deep.deep_tf import tf_execute

        recorder = tf_execute.record_gradient
        try:
            values = self._explainer.shap_values(image[None], check_additivity=False)
        except Exception as error:  # TensorFlow wraps the LookupError in a class of its own, made on the spot
            operation = re.search(r"registry has no entry for: shap_(\w+)", str(error))
            if operation is None:
                raise
            raise InputError(
                f"{self.model.name} uses the operation {operation[1]}, for which SHAP has no rule; "
                "add one in components/explain/attribution.py"
            ) from error
        finally:
            tf_execute.record_gradient = recorder  # SHAP leaves its own in TensorFlow when it fails
        return np.asarray(values[0, ..., 0], np.float64)


def _register_missing_operations() -> None:
    """Give SHAP a rule for each operation of our architectures that SHAP 0.51 has none for."""
    from shap.explainers._deep import deep_tf

    # Depthwise convolution (Xception) is linear in its input while its filters are fixed, as Conv2D is.
    deep_tf.op_handlers["DepthwiseConv2dNative"] = deep_tf.linearity_1d(0)
