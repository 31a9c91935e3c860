"""A model that only answers: folded, it says the same as the plain one, in fewer layers."""

from __future__ import annotations

import numpy as np
import pytest

from dermaflow.architectures import build_model, ensemble, split_at, symmetric
from dermaflow.inference import folded, following, settled

IMAGES = np.random.default_rng(0).uniform(0, 255, (5, 72, 72, 3)).astype(np.float32)


def trained(architecture: str, seed: int = 1):
    """A model whose normalisations have statistics, scales and shifts of their own, as after a training."""
    import keras

    model = build_model(architecture, classes=7, size=72, dropout=0.5, seed=seed)
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(IMAGES, training=True)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.1, layer.beta.shape))
    return model


def norms(model) -> int:
    import keras

    return sum(isinstance(layer, keras.layers.BatchNormalization) for layer in model._flatten_layers())


@pytest.mark.parametrize("architecture", ["cnn", "resnet50", "xception"])
def test_a_folded_model_answers_the_same_without_its_normalisations(architecture: str):
    model = trained(architecture)
    before = [np.asarray(weight).copy() for weight in model.weights]
    copy = folded(model)
    expected = model(IMAGES, training=False).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(copy(IMAGES, training=False).numpy(), expected, atol=2e-3 * expected.std())
    assert norms(copy) == 0
    assert (norms(model) > 30) == (architecture != "cnn")
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, np.asarray(new))


def test_nested_models_are_folded_too():
    members = [trained("resnet50"), trained("resnet50", seed=2)]
    whole = symmetric(ensemble(members, "conv5"), 4)
    copy = folded(whole)
    assert norms(copy) == 0
    expected = whole(IMAGES, training=False).numpy()
    np.testing.assert_allclose(copy(IMAGES, training=False).numpy(), expected, atol=2e-3 * expected.std())


def test_both_parts_of_a_cut_model_are_folded():
    """Of a block's input, which other layers see too, nothing is folded that they would see."""
    prefix, rest, tail = split_at(trained("resnet50"), "conv4_block4")
    assert [norms(folded(part)) for part in (prefix, rest, tail)] == [0, 0, 0]
    seen = prefix(IMAGES).numpy()
    np.testing.assert_allclose(settled(prefix)(IMAGES), seen, atol=2e-3 * seen.std())
    for part in (rest, tail):
        expected = part(seen, training=False).numpy()
        np.testing.assert_allclose(settled(part)(seen), expected, atol=2e-3 * expected.std())


def test_a_normalisation_without_a_convolution_of_its_own_stays():
    import keras

    inputs = keras.Input((8, 8, 3))
    shared = keras.layers.Conv2D(4, 3)(inputs)
    out = keras.layers.Add()([keras.layers.BatchNormalization()(shared), shared])
    out = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 1, activation="relu")(out))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(out))
    images = IMAGES[:, :8, :8]
    model(images, training=True)
    assert norms(folded(model)) == 2
    np.testing.assert_allclose(settled(model)(images), model(images, training=False).numpy(), atol=1e-4)


def test_one_that_follows_sees_weights_that_change():
    model = trained("resnet50")
    follows = following(model)
    before, head = follows(IMAGES), model.get_layer("logits")
    kernel, bias = head.get_weights()
    head.set_weights([kernel, bias + 1])
    np.testing.assert_allclose(follows(IMAGES), before + 1, atol=1e-3)


def test_a_model_without_a_graph_is_left_as_it_is():
    import keras

    class InCode(keras.Model):
        def call(self, images, training=False):
            return images * 2

    model = InCode()
    assert folded(model) is model
    np.testing.assert_array_equal(settled(model)(IMAGES), IMAGES * 2)
    row = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()])
    row(IMAGES[:, :8, :8], training=True)
    assert norms(folded(row)) == 0
    np.testing.assert_allclose(settled(row)(IMAGES[:, :8, :8]), row(IMAGES[:, :8, :8]).numpy(), atol=1e-2)
