"""The network architectures: one small function each, under the name used in params, command line, DAG and DVC.

Every model takes images as float32 [n, size, size, channels] in 0..255 (RGB, then the lesion mask where there is a
fourth channel), normalises them itself, and returns logits float32 [n, classes]. Keras is imported only when a model
is built: to compile a pipeline the names are enough.
"""

from __future__ import annotations

from collections.abc import Callable
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

    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(images)
    for index, filters in enumerate((32, 64, 128, 128), start=1):
        x = layers.Conv2D(filters, 3, activation="relu", name=f"conv{index}")(x)
        x = layers.MaxPooling2D(2, name=f"pool{index}")(x)
    x = layers.Flatten(name="flatten")(x)
    return layers.Dense(512, activation="relu", name="dense")(x)


def resnet50(images: Any, shape: Shape) -> Any:
    """ResNet50 (He et al., CVPR 2016), globally pooled; its weights expect BGR with the channel means subtracted."""
    import keras

    means = [*IMAGENET_MEANS_RGB, *[127.5] * (shape[2] - 3)]
    x = keras.layers.Normalization(mean=means, variance=[1.0] * shape[2], name="subtract_means")(images)
    x = keras.ops.concatenate([x[..., 2:3], x[..., 1:2], x[..., 0:1], *([x[..., 3:]] if shape[2] > 3 else [])], axis=-1)
    return keras.applications.ResNet50(weights=None, include_top=False, input_shape=shape, pooling="avg", name=BACKBONE)(x)


def xception(images: Any, shape: Shape) -> Any:
    """Xception (Chollet, CVPR 2017), globally pooled; its weights expect values in -1..1."""
    import keras

    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(images)
    return keras.applications.Xception(weights=None, include_top=False, input_shape=shape, pooling="avg", name=BACKBONE)(x)


@dataclass(frozen=True)
class Architecture:
    """A network that the pipeline can train.

    Attributes
    ----------
    features: (images, shape) -> feature vector; everything before the dropout and the dense head.
    title: the name shown to people.
    pretrained: whether published weights exist; such a backbone is frozen and its head alone is trained.
    minimum_size: smallest image side, in pixels, that its layers accept.
    dropout: default rate before the head (the study tries 0.2 and 0.5).
    """

    features: Callable[[Any, Shape], Any]
    title: str
    pretrained: bool
    minimum_size: int
    dropout: float


BACKBONE = "backbone"
HEAD = "logits"
ARCHITECTURES: dict[str, Architecture] = {
    "cnn": Architecture(cnn, "CNN", pretrained=False, minimum_size=46, dropout=0.5),
    "resnet50": Architecture(resnet50, "ResNet50", pretrained=True, minimum_size=32, dropout=0.2),
    "xception": Architecture(xception, "Xception", pretrained=True, minimum_size=71, dropout=0.2),
}


def require_size(name: str, size: int) -> None:
    """Raise InputError when images of `size` pixels a side are too small for an architecture."""
    minimum = ARCHITECTURES[name].minimum_size
    if size < minimum:
        raise InputError(f"data.image_size is {size}; {name} needs at least {minimum} pixels a side")


def build_model(name: str, *, classes: int, size: int, channels: int = 3, dropout: float, seed: int) -> keras.Model:
    """Build an untrained model: float32 [n, size, size, channels] in 0..255 -> logits float32 [n, classes].

    Initial weights depend on `seed` alone.
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    shape = (size, size, channels)
    images = keras.Input(shape, name="images")
    x = ARCHITECTURES[name].features(images, shape)
    x = layers.Dropout(dropout, seed=seed, name="dropout")(x)
    logits = layers.Dense(classes, dtype="float32", name=HEAD)(x)
    return keras.Model(images, logits, name=name)


def feature_extractor(model: keras.Model) -> keras.Model:
    """The part of a model before dropout and head: images -> features float32 [n, d]; shares the model's weights."""
    import keras

    return keras.Model(model.input, model.get_layer("dropout").input, name=f"{model.name}_features")


def load_backbone_weights(model: keras.Model, path: Path) -> None:
    """Load published "notop" weights (Keras' .h5 layout) into a pretrained architecture's backbone.

    A fourth input channel, which ImageNet's weights do not have, starts as the mean of the other three.

    Raises
    ------
    InputError
        when the file does not fit the backbone.
    """
    import keras

    backbone = model.get_layer(BACKBONE)
    channels = backbone.input_shape[-1]
    source = backbone
    if channels != 3:
        application = {"resnet50": keras.applications.ResNet50, "xception": keras.applications.Xception}[model.name]
        source = application(weights=None, include_top=False, input_shape=(*backbone.input_shape[1:3], 3), pooling="avg")
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
