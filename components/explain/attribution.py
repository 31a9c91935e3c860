"""How much each input value contributes to one logit: Shapley values by DeepLIFT's rules, averaged over a background.

Lundberg and Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017 (Deep SHAP); Shrikumar, Greenside
and Kundaje, Learning Important Features Through Propagating Activation Differences, ICML 2017 (the rescale rule).

The values are those of shap.DeepExplainer, operation by operation (a test holds them to it), at half the work: there an
image goes through the network once for each background image, and each gradient is computed for both of a pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dermaflow.errors import InputError
from dermaflow.inference import following

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

Floats = npt.NDArray[np.float32]
METHOD = "Deep SHAP (rescale rule)"
# Background images in one pass, which has the explained image beside them: with 224 px and ResNet50 a pass stays near
# 1.5 GB, however many background images there are.
BACKGROUND_BATCH = 7
SMALLEST_STEP = 1e-6  # of a nonlinearity's inputs; below it the secant is a quotient of rounding errors

# Operations that are linear in what comes from the image: all of their inputs may, or one, or the first alone.
LINEAR = {"AddN", "AddV2", "ConcatV2", "Identity", "IdentityN", "Pack", "Sub"}
LINEAR_IN_ONE = {"MatMul", "Mul"}
LINEAR_IN_FIRST = {
    "AvgPool", "BiasAdd", "Cast", "Conv2D", "DepthwiseConv2dNative", "ExpandDims", "GatherV2", "Mean", "MirrorPad", "Pad",
    "PadV2", "RealDiv", "Reshape", "ReverseV2", "Squeeze", "StridedSlice", "Sum", "Transpose",
}  # fmt: skip
CONSTANT = {"Shape", "StopGradient", "ZerosLike", "OnesLike"}  # of these nothing depends on the image's values
MAXIMUM = "MaxPool"
PARTNERS = "dermaflow_partners"  # collection of a graph: the image's operation by the name of the background's


def _secants() -> dict[str, Callable[[Any, Any], Any]]:
    """Operations of one number each, and their derivatives by input and output: these obey the rescale rule as it is."""
    import tensorflow as tf

    return {
        "Elu": lambda inputs, outputs: tf.where(inputs > 0, 1.0, outputs + 1.0),
        "Relu": lambda inputs, _: tf.cast(inputs > 0, tf.float32),
        "Relu6": lambda inputs, _: tf.cast((inputs > 0) & (inputs < 6), tf.float32),
        "Sigmoid": lambda _, outputs: outputs * (1.0 - outputs),
        "Softplus": lambda inputs, _: tf.sigmoid(inputs),
        "Tanh": lambda _, outputs: 1.0 - outputs * outputs,
    }


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
    logits: inputs float32 [n, size, size, channels] -> logits float32 [n, classes], of the network as it is at the time.
    base_logits: mean logits of the background, float64 [classes].
    """

    def __init__(self, model: keras.Model, background: Floats) -> None:
        self.model = model
        self.logits = following(model)  # inputs [n, size, size, channels] -> logits float32 [n, classes]
        self._contributions = _contributions(model)
        self.compare_with(background)

    def compare_with(self, background: Floats) -> None:
        """Attribute against this background, and the network as it is now, from here on."""
        self.background = background
        self._chunks = np.array_split(background, math.ceil(len(background) / BACKGROUND_BATCH))
        self.base_logits = np.concatenate([self.logits(chunk) for chunk in self._chunks]).astype(np.float64).mean(axis=0)

    def attribute(self, image: Floats, logit: int) -> Floats:
        """Attributions of one logit of one image, float32 [size, size, channels], in units of the logit.

        Raises
        ------
        InputError
            when the network has an operation that this module has no rule for.
        """
        total = np.zeros(image.shape, np.float64)
        for chunk in self._chunks:
            total += np.asarray(self._contributions(image, chunk, logit), np.float64)
        return (total / len(self.background)).astype(np.float32)


def _contributions(model: keras.Model) -> Callable[[Floats, Floats, int], Any]:
    """A compiled function: image, background images, logit -> contributions, summed over the background.

    Image and background go through the network apart; in the gradient of the latter, each nonlinear operation multiplies by
    what it makes of the difference to the image, divided by that difference, in place of its derivative.
    """
    import tensorflow as tf

    _register_rules()
    ruled = {*_secants(), MAXIMUM}
    size = model.input_shape[1:]

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[tf.TensorSpec(size), tf.TensorSpec((None, *size)), tf.TensorSpec((), tf.int32)], autograph=False
    )
    def contributions(image: tf.Tensor, background: tf.Tensor, logit: tf.Tensor) -> tf.Tensor:
        graph, passes = tf.compat.v1.get_default_graph(), []
        for inputs in (image[None], background):
            before = len(graph.get_operations())
            with graph.gradient_override_map({operation: _rule(operation) for operation in ruled}):
                answers = model(inputs, training=False)
            passes.append(graph.get_operations()[before:])
        _require_rules(passes[1], background, ruled, model.name)
        of_image, of_background = ([op for op in each if op.type in ruled] for each in passes)
        names = (op.name for op in of_background)
        graph.add_to_collection(PARTNERS, dict(zip(names, of_image, strict=True)))
        multipliers = tf.gradients(tf.gather(answers, logit, axis=1), background)[0]
        return tf.reduce_sum(multipliers * (image - background), axis=0)

    return lambda image, background, logit: contributions(image, background, np.int32(logit))


def _rule(operation: str) -> str:
    """The name under which an operation's rule is registered."""
    return f"DermaflowRescale{operation}"


@cache
def _register_rules() -> None:
    """Register the rules with TensorFlow: once, since names of gradients can not be taken back.

    A rule makes a gradient by an operation's outputs, float32 [b, ...], one by its inputs.
    """
    import tensorflow as tf

    def pair(op: tf.Operation) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Inputs and outputs of the image [1, ...] and of the background [b, ...]."""
        (partners,) = op.graph.get_collection(PARTNERS)
        return partners[op.name].inputs[0], partners[op.name].outputs[0], op.inputs[0], op.outputs[0]

    def secant(derivative: Callable[[Any, Any], Any]) -> Any:
        @tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]  # fused: one by one they cost as much as the convolutions
        def passed(gradient: Any, own: Any, answer: Any, inputs: Any, outputs: Any) -> Any:
            steps, rises = own - inputs, answer - outputs
            small = tf.abs(steps) < SMALLEST_STEP
            return gradient * tf.where(small, derivative(inputs, outputs), rises / tf.where(small, 1.0, steps))

        return lambda op, gradient: passed(gradient, *pair(op))

    def maximum(op: tf.Operation, gradient: tf.Tensor) -> tf.Tensor:
        """What the larger of the two answers has over the other goes to the place that it came from."""
        own, answer, inputs, outputs = pair(op)
        own, answer = tf.broadcast_to(own, tf.shape(inputs)), tf.broadcast_to(answer, tf.shape(outputs))
        larger, steps = tf.maximum(answer, outputs), own - inputs
        pool = {name: op.get_attr(name) for name in ("ksize", "strides", "padding", "data_format")}
        passed = tf.raw_ops.MaxPoolGrad(orig_input=own, orig_output=answer, grad=gradient * (larger - outputs), **pool)
        passed += tf.raw_ops.MaxPoolGrad(orig_input=inputs, orig_output=outputs, grad=gradient * (answer - larger), **pool)
        return tf.math.divide_no_nan(passed, tf.where(tf.abs(steps) < SMALLEST_STEP, 0.0, steps))

    for operation, derivative in _secants().items():
        tf.RegisterGradient(_rule(operation))(secant(derivative))
    tf.RegisterGradient(_rule(MAXIMUM))(maximum)


def _require_rules(operations: Sequence[tf.Operation], inputs: tf.Tensor, ruled: Container[str], name: str) -> None:
    """Raise InputError for the first operation on the way from `inputs` on that is neither linear nor has a rule."""
    from_image = {inputs.ref()}
    for op in operations:  # in the order in which they were made
        places = [place for place, tensor in enumerate(op.inputs) if tensor.ref() in from_image]
        if not places or op.type in CONSTANT:
            continue
        known = (
            op.type in LINEAR
            or op.type in ruled
            or (op.type in LINEAR_IN_ONE and len(places) == 1)
            or (op.type in LINEAR_IN_FIRST and places == [0])
        )
        if not known:
            raise InputError(
                f"{name} uses the operation {op.type}, for which Deep SHAP has no rule here; "
                "add one in components/explain/attribution.py"
            )
        from_image.update(tensor.ref() for tensor in op.outputs)
