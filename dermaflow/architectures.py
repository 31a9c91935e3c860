"""The network architectures: one small function each, under the name used in params, command line, DAG and DVC.

Every model takes images as float32 [n, size, size, channels] in 0..255 (RGB, then the lesion mask where there is a
fourth channel), normalises them itself, and returns logits float32 [n, classes]. Keras is imported only when a model
is built: to compile a pipeline the names are enough.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaflow.errors import InputError

if TYPE_CHECKING:
    import keras

Shape = tuple[int, int, int]

# Channel means of ImageNet's training images (RGB, 0..255), which the published ResNet50 weights expect subtracted:
# the "caffe" preprocessing of keras.applications.
IMAGENET_MEANS_RGB = (123.68, 116.779, 103.939)


def cnn(images: Any, _shape: Shape) -> Any:
    """The study's own CNN: four valid 3x3 convolutions, each with 2x2 max-pooling, then a dense layer of 512."""
    from keras import layers

    x = layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="rescale")(images)
    for index, filters in enumerate((32, 64, 128, 128), start=1):
        x = layers.Conv2D(filters, 3, activation="relu", name=f"conv{index}")(x)
        x = layers.MaxPooling2D(2, name=f"pool{index}")(x)
    x = layers.Flatten(name="flatten")(x)
    return layers.Dense(512, activation="relu", name="dense")(x)


def resnet50(images: Any, shape: Shape) -> Any:
    """ResNet50 (He et al., CVPR 2016), globally pooled; its weights expect BGR with the channel means subtracted."""
    import keras

    means = [*IMAGENET_MEANS_RGB, *[127.5] * (shape[2] - 3)]
    x = keras.layers.Normalization(mean=means, variance=[1.0] * shape[2], dtype="float32", name="subtract_means")(images)
    x = keras.ops.concatenate([x[..., 2:3], x[..., 1:2], x[..., 0:1], *([x[..., 3:]] if shape[2] > 3 else [])], axis=-1)
    return _backbone(keras.applications.ResNet50, x, shape)


def xception(images: Any, shape: Shape) -> Any:
    """Xception (Chollet, CVPR 2017), globally pooled; its weights expect values in -1..1."""
    import keras

    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="rescale")(images)
    return _backbone(keras.applications.Xception, x, shape)


def _backbone(application: Callable[..., keras.Model], normalised: Any, shape: Shape) -> Any:
    import keras

    normalised = keras.layers.Identity(dtype="float32", name=NORMALISED)(normalised)
    return application(weights=None, include_top=False, input_shape=shape, pooling="avg", name=BACKBONE)(normalised)


@dataclass(frozen=True)
class Published:
    """ImageNet weights without their top, as keras.applications publishes them: where, and the MD5 that Keras checks."""

    url: str
    md5: str


@dataclass(frozen=True)
class Architecture:
    """A network that the pipeline can train.

    Attributes
    ----------
    features: (images, shape) -> feature vector; everything before the dropout and the dense head. A pretrained one is
        made of a normalisation and one keras.applications model named BACKBONE.
    title: the name shown to people.
    minimum_size: smallest image side, in pixels, that its layers accept.
    dropout: default rate before the head (the study tries 0.2 and 0.5).
    published: its ImageNet weights. With them the backbone is frozen, its head alone is trained, and then, where params
        ask for it, its last blocks; None is trained whole.
    blocks: the blocks from which on it can be tuned, from the last to the first; a block's layers have names that begin
        with the block's, and all that comes after is reached through the input of the first of them.
    """

    features: Callable[[Any, Shape], Any]
    title: str
    minimum_size: int
    dropout: float
    published: Published | None = None
    blocks: tuple[str, ...] = ()

    @property
    def pretrained(self) -> bool:
        """Whether published weights exist."""
        return self.published is not None


_BLOCK = re.compile(r"(?:conv|block|pool)\d+(?:_block\d+)?")  # how keras.applications begins the names of a block's layers
BACKBONE = "backbone"
NORMALISED = "normalised"  # what a backbone sees
HEAD = "logits"
WHOLE = "all"  # in place of a block: every layer is tuned, from images
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
ARCHITECTURES: dict[str, Architecture] = {
    "cnn": Architecture(cnn, "CNN", minimum_size=46, dropout=0.5),
    "resnet50": Architecture(
        resnet50,
        "ResNet50",
        minimum_size=32,
        dropout=0.2,
        published=Published(
            f"{KERAS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "4d473c1dd8becc155b73f8504c6f6626"
        ),
        blocks=("conv5_block3", "conv5_block2", "conv5", "conv4_block4", "conv4", "conv3"),
    ),
    "xception": Architecture(
        xception,
        "Xception",
        minimum_size=71,
        dropout=0.2,
        published=Published(
            f"{KERAS}/xception/xception_weights_tf_dim_ordering_tf_kernels_notop.h5", "b0042744bf5b25fce3cb969f33bebb97"
        ),
        blocks=("block14", "block13", "block12", "block11"),
    ),
}


def require_size(name: str, size: int) -> None:
    """Raise InputError when images of `size` pixels a side are too small for an architecture."""
    minimum = ARCHITECTURES[name].minimum_size
    if size < minimum:
        raise InputError(f"data.image_size is {size}; {name} needs at least {minimum} pixels a side")


def build_model(
    name: str, *, classes: int, size: int, channels: int = 3, dropout: float, seed: int, precision: str = "float32"
) -> keras.Model:
    """Build an untrained model: float32 [n, size, size, channels] in 0..255 -> logits float32 [n, classes].

    Initial weights depend on `seed` alone. `precision` is what the layers between normalisation and head compute in
    (Keras' dtype policy, such as mixed_bfloat16); weights and logits are float32 always.
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    shape, before = (size, size, channels), keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        images = keras.Input(shape, name="images", dtype="float32")
        x = ARCHITECTURES[name].features(images, shape)
        x = layers.Dropout(dropout, seed=seed, name="dropout")(x)
        logits = layers.Dense(classes, dtype="float32", name=HEAD)(x)
    finally:
        keras.config.set_dtype_policy(before)
    return keras.Model(images, logits, name=name)


def feature_extractor(model: keras.Model) -> keras.Model:
    """The part of a model before dropout and head: images -> features float32 [n, d]; shares the model's weights."""
    import keras

    return keras.Model(model.input, model.get_layer("dropout").input, name=f"{model.name}_features")


def ensemble(members: Sequence[keras.Model], block: str) -> keras.Model:
    """A model that answers with the mean of the logits of several, which differ from a block on and share what is before it.

    A deep ensemble (Lakshminarayanan, Pritzel and Blundell, NeurIPS 2017) on a shared trunk (Lee et al., 2015, "TreeNets"):
    the trunk is computed once. It shares the members' weights; the trunk is the first one's.
    """
    import keras

    trunk, _, _ = split_at(members[0], block)
    images = keras.Input(members[0].input_shape[1:], name="images", dtype="float32")
    seen, answers = trunk(images), []
    for number, member in enumerate(members, start=1):
        _, _, tail = split_at(member, block)
        answers.append(keras.Model(tail.input, tail.output, name=f"member_{number}")(seen))
    logits = keras.layers.Average(name="mean_of_members")(answers)
    return keras.Model(images, logits, name=members[0].name)


def heads(model: keras.Model) -> list[keras.layers.Dense]:
    """The layers that give a model's logits: one, or one of each member of an ensemble."""
    return [layer for layer in model._flatten_layers() if layer.name == HEAD]  # noqa: SLF001 - `layers` does not enter nested models


def symmetric(model: keras.Model, count: int) -> keras.Model:
    """A model that answers with the mean of another's logits over the first `count` of a square's eight symmetries.

    Test-time augmentation (Krizhevsky, Sutskever and Hinton, NeurIPS 2012, section 4.1) within the model: what is judged,
    explained and served is one thing, at `count` times the cost. It shares the other's weights. The order of the symmetries
    is that of `dermaflow.augmentation`: as it is, flipped left to right, upside down, both; then these transposed.
    """
    import keras

    images = keras.Input(model.input_shape[1:], name="images", dtype="float32")
    views = []
    for code in range(count):
        view = keras.ops.transpose(images, (0, 2, 1, 3)) if code & 4 else images
        axes = [axis for axis, bit in ((1, 2), (2, 1)) if code & bit]
        views.append(keras.ops.flip(view, axes) if axes else view)
    logits = keras.layers.Average(name="mean_logits")([model(view) for view in views])
    return keras.Model(images, logits, name=f"{model.name}_symmetric")


def summary(model: keras.Model) -> list[dict[str, Any]]:
    """What a model is made of, in the order of the forward pass; the layers of a backbone's block are one row.

    Returns
    -------
    Of each row ``part`` (name of the layer or the block), ``kind`` (the layer's class; of a block what it is of, such as
    "10 layers"), ``output`` (shape of one image's, None where it has several) and ``parameters``.
    """
    import keras

    rows: list[dict[str, Any]] = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            rows += summary(layer) if heads(layer) or not _of_blocks(layer) else _blocks(layer)
        else:
            rows.append(_row(layer.name, type(layer).__name__, [layer]))
    return rows


def _of_blocks(model: keras.Model) -> bool:
    return any(_BLOCK.match(layer.name) for layer in model.layers)


def _blocks(backbone: keras.Model) -> list[dict[str, Any]]:
    """A row for each block; layers without a block's name, such as an unnamed addition, belong to the one before."""
    blocks: list[tuple[str, list[Any]]] = []
    for layer in backbone.layers:
        named = _BLOCK.match(layer.name)
        if not blocks or (named and named[0] != blocks[-1][0]):
            blocks.append((named[0] if named else layer.name, []))
        blocks[-1][1].append(layer)
    return [
        _row(name, f"{len(layers)} layers" if len(layers) > 1 else type(layers[0]).__name__, layers) for name, layers in blocks
    ]


def _row(part: str, kind: str, layers: list[Any]) -> dict[str, Any]:
    shape = getattr(layers[-1].output, "shape", None)
    parameters = sum(layer.count_params() for layer in layers)
    return {"part": part, "kind": kind, "output": None if shape is None else list(shape[1:]), "parameters": parameters}


def split_at(model: keras.Model, block: str) -> tuple[keras.Model, keras.Model, keras.Model]:
    """Cut a pretrained model before a block of its backbone; all parts share the model's weights.

    Returns
    -------
    prefix: images -> the block's input, float32 [n, h, w, c].
    rest: the block's input -> features float32 [n, d], as of `feature_extractor`.
    tail: the block's input -> logits float32 [n, classes]: the rest, dropout and head.
    """
    import keras

    backbone = model.get_layer(BACKBONE)
    cut = next(layer for layer in backbone.layers if layer.name.startswith(block)).input
    prefix = keras.Model(backbone.input, cut, name=f"{model.name}_prefix")
    rest = keras.Model(cut, backbone.output, name=f"{model.name}_{block}")
    inputs = keras.Input(cut.shape[1:], name=block)
    logits = model.get_layer(HEAD)(model.get_layer("dropout")(rest(inputs)))
    return (
        keras.Model(model.input, prefix(model.get_layer(NORMALISED).output), name=prefix.name),
        rest,
        keras.Model(inputs, logits, name=model.name),
    )


def freeze_batch_norms(model: keras.Model) -> None:
    """Hold every BatchNormalization layer: it uses and keeps its statistics, and its scale and shift are not trained.

    Statistics of small batches of the new images would destroy what the layers after it have learnt (Keras' guide
    "Transfer learning and fine-tuning", https://keras.io/guides/transfer_learning).
    """
    import keras

    for layer in model._flatten_layers():  # noqa: SLF001 - `layers` does not enter nested models
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def load_backbone_weights(model: keras.Model, path: Path) -> None:
    """Load published "notop" weights (Keras' .h5 layout) into a pretrained architecture's backbone.

    A fourth input channel, which ImageNet's weights do not have, starts as the mean of the other three.

    Raises
    ------
    InputError
        when the file does not fit the backbone.
    """
    backbone = model.get_layer(BACKBONE)
    height, _, channels = backbone.input_shape[1:]
    source = backbone
    if channels != 3:
        source = build_model(model.name, classes=1, size=height, dropout=0, seed=0).get_layer(BACKBONE)
    try:
        source.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f"train.weights.{model.name}: {path} does not fit {model.name} without its top: {str(error).splitlines()[0]}; "
            "give the 'notop' .h5 file that keras.applications publishes for this architecture"
        ) from error
    if source is not backbone:
        _copy_with_extra_channels(source, backbone)


def _copy_with_extra_channels(source: keras.Model, target: keras.Model) -> None:
    import numpy as np

    for theirs, ours in zip(source.weights, target.weights, strict=True):
        value = np.asarray(theirs)
        if value.shape != ours.shape:  # only the first convolution sees the input channels
            extra = ours.shape[2] - value.shape[2]
            value = np.concatenate([value, np.repeat(value.mean(axis=2, keepdims=True), extra, axis=2)], axis=2)
        ours.assign(value)
