"""Forward passes that answer and do not learn: compiled, and where weights stay as they are with less to compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import keras

Floats = npt.NDArray[np.float32]
Forward = Callable[[npt.NDArray[Any]], Floats]  # array [k, ...] -> float32 array [k, ...]


def following(model: keras.Model) -> Forward:
    """A model's forward pass in inference mode, compiled; it follows the model's weights while they are trained."""
    import tensorflow as tf

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def forward(batch: tf.Tensor) -> tf.Tensor:
        return tf.cast(model(tf.cast(batch, tf.float32), training=False), tf.float32)

    return lambda batch: np.asarray(forward(tf.convert_to_tensor(batch)), np.float32)


def settled(model: keras.Model) -> Forward:
    """The same of a model whose weights will not change: its answers but for rounding, in less time.

    ResNet50 takes a fifth less on a processor, where normalising after a convolution costs a pass through memory.
    """
    return following(folded(model))


def folded(model: keras.Model) -> keras.Model:
    """A copy of a model for inference alone: each BatchNormalization is folded into the convolution before it.

    gamma (W x + b - mean) / deviation + beta = (gamma / deviation W) x + (gamma / deviation (b - mean) + beta). One that does
    not follow a convolution, or follows one that something else sees too, stays. Nested models are copied alike; where there is
    nothing to fold, it is the model itself.
    """
    import keras

    parts = [layer for layer in model._flatten_layers() if isinstance(layer, keras.Model)]  # noqa: SLF001 - `layers` does not enter nested models
    norm_of = {id(before): norm for part in parts for before, norm in _pairs(part)}
    norms = {id(norm) for norm in norm_of.values()}
    if not norms:
        return model

    class Folded(keras.layers.Layer):  # type: ignore[misc]
        """In the place of a normalisation that is folded."""

        def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:  # noqa: ARG002 - as it is called
            return inputs

    def copied(layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) in norms:
            return Folded(name=layer.name)
        config = layer.get_config()
        return type(layer).from_config({**config, "use_bias": True} if id(layer) in norm_of else config)

    copy = keras.models.clone_model(model, clone_function=copied, recursive=True)
    for ours, theirs in zip(copy._flatten_layers(), model._flatten_layers(), strict=True):  # noqa: SLF001 - as above
        if id(theirs) in norm_of:
            ours.set_weights(_folded_weights(theirs, norm_of[id(theirs)]))
        elif id(theirs) not in norms and not isinstance(theirs, keras.Model):
            ours.set_weights(theirs.get_weights())
    return copy


def _pairs(model: keras.Model) -> Iterator[tuple[Any, Any]]:
    """Convolutions of a model's own layers and the normalisations that alone see them."""
    import keras

    graph = getattr(model, "_functional", model)  # of a Sequential
    depths = getattr(graph, "_nodes_by_depth", {})  # a layer may have nodes in other models too; a model in code has none
    nodes = [node for depth in depths.values() for node in depth]
    made_by = {id(tensor): node.operation for node in nodes for tensor in node.outputs}
    seen = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    used = Counter(id(node.operation) for node in nodes)
    for node in nodes:
        norm = node.operation
        if not isinstance(norm, keras.layers.BatchNormalization):
            continue
        before = made_by[id(node.input_tensors[0])]
        convolves = isinstance(before, (keras.layers.Conv2D, keras.layers.SeparableConv2D))
        alone = seen[id(node.input_tensors[0])] == used[id(norm)] == 1
        if convolves and alone and used[id(before)] == 1 and before.activation is keras.activations.linear:
            yield before, norm


def _folded_weights(convolution: Any, norm: Any) -> list[Any]:
    """Weights of a convolution that normalises its own output: kernels, the last one scaled, and a bias."""
    mean, variance = np.asarray(norm.moving_mean), np.asarray(norm.moving_variance)
    scale = (np.asarray(norm.gamma) if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)
    shift = np.asarray(norm.beta) if norm.center else 0.0
    kernels = [value for value in convolution.get_weights() if value.ndim > 1]
    bias = np.asarray(convolution.bias) if convolution.use_bias else 0.0
    return [*kernels[:-1], kernels[-1] * scale, (bias - mean) * scale + shift]
