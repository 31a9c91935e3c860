"""What is trained in each stage: a network whole, a head on cached features, or the last blocks on a cached prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from components.train.frozen import FrozenFeatures, in_batches
from components.train.loop import Batches, Judged, Prepare, Stage
from components.train.material import Material
from dermaflow.architectures import HEAD, feature_extractor, split_at
from dermaflow.augmentation import NUMBERS, Purpose, augmented, mix, moved, uniform
from dermaflow.inference import following, settled

if TYPE_CHECKING:
    import keras

Rows = npt.NDArray[np.int64]
Take = Callable[[Rows], npt.NDArray[Any]]  # positions among some images -> what the model takes of them

WHOLE_STAGE, HEAD_STAGE, BLOCK_STAGE = "whole", "head", "blocks"


def whole(model: keras.Model, material: Material) -> Stage:
    """Every layer on images: transforms and MixUp run inside the compiled step."""
    material.mixup.require_fit(model.name)
    return _over_draws(WHOLE_STAGE, model, material, image_batches(material), lambda rows: _images(material, rows))


def judged_images(model: keras.Model, material: Material, rows: Rows) -> Judged:
    """The images of manifest rows as they are, as a model whose weights stay judges them."""
    return _judged(settled(model), material, rows, _images(material, rows))


def image_batches(material: Material) -> tuple[Prepare, Batches]:
    """What the network sees when every layer is trained: how a batch is prepared inside the step, and an epoch's batches.

    The same epoch has the same batches, bit for bit, whenever and however often it is asked for.
    """
    import tensorflow as tf

    params, classes, paired = material.params, len(material.dataset.classes), material.paired
    train_labels = material.labels(material.train_rows)
    as_they_are = not (material.augment.changes or material.mixup.alpha)

    def prepare(images: Any, labels: Any, symmetry: Any, zoom: Any, brightness: Any, hue: Any, weight: Any) -> tuple[Any, Any]:
        vectors = tf.one_hot(labels, classes)
        if as_they_are:
            return tf.cast(images, tf.float32), vectors
        changed = augmented(images, symmetry, zoom, brightness, hue, weight, paired=paired)
        return changed, mix(vectors, weight, paired=paired)

    def batches(epoch: int, first: int = 0) -> Iterator[tuple[npt.NDArray[Any], ...]]:
        draws = material.draws(epoch)
        for part in _slices(len(draws.rows), params.batch_size)[first:]:
            rows, *numbers = draws.take(part, "rows", *NUMBERS)
            yield material.inputs(material.train_rows[rows]), train_labels[rows], *numbers, draws.mix[part]

    return prepare, batches


class Head:
    """The head of a frozen backbone, on the backbone's features, computed once.

    It is fitted to features of one scale (divided by their standard deviation over the train part), which Adam needs at any
    backbone's scale; f / s * W + b = f * (W / s) + b puts that back into the model's own head. Features are not centred:
    dropout would then mean another thing on them than in the model.
    """

    def __init__(self, model: keras.Model, material: Material, features: FrozenFeatures) -> None:
        import keras

        self._model = model
        params, classes = material.params, len(material.dataset.classes)
        stored = features.train()
        views = stored.all().reshape(len(material.train_rows), -1, *stored.shape)
        self._scale = np.maximum(views.std(axis=(0, 1)), 1e-6)
        views = views / self._scale
        validation = features.clean(material.validation_rows).all() / self._scale
        curve = features.clean(material.train_rows[material.curve]).all() / self._scale

        keras.utils.set_random_seed(params.seed)
        vectors = keras.Input((views.shape[-1],), name="features")
        dropped = keras.layers.Dropout(params.dropout_of(model.name), seed=params.seed)(vectors)
        head = keras.Model(
            vectors, keras.layers.Dense(classes, kernel_initializer="zeros", name=HEAD)(dropped), name=model.name
        )
        forward = following(head)
        fixed = len(material.mixes)
        self.stage = Stage(
            HEAD_STAGE,
            head,
            *(
                _fixed_mix_batches(material, views, features.mixes().all() / self._scale)
                if fixed
                else feature_batches(material, views)
            ),
            steps=len(_slices(material.draws_per_epoch + fixed, params.batch_size)),
            images=params.batch_size,
            validation=Judged(material.validation_labels, lambda: forward(validation)),
            train=Judged(material.labels(material.train_rows[material.curve]), lambda: forward(curve)),
        )

    def hand_over(self) -> None:
        """Put the trained head into the model."""
        kernel, bias = self.stage.model.get_layer(HEAD).get_weights()
        self._model.get_layer(HEAD).set_weights([kernel / self._scale[:, None], bias])


def backbone_features(model: keras.Model, material: Material, cache: Path, precision: str) -> FrozenFeatures:
    """What a head on a frozen backbone sees."""
    return FrozenFeatures(feature_extractor(model), material, cache, name=model.name, precision=precision)


def feature_batches(material: Material, views: npt.NDArray[np.floating[Any]]) -> tuple[Prepare, Batches]:
    """As `image_batches`, of features float32 [n, views, d]: features and label vectors are mixed."""

    def take(rows: npt.NDArray[np.int64], view: npt.NDArray[np.int64]) -> npt.NDArray[np.floating[Any]]:
        return views[rows, view]

    return _mixed_features(material, take, views.shape[1])


def _fixed_mix_batches(
    material: Material, views: npt.NDArray[np.floating[Any]], mixes: npt.NDArray[np.floating[Any]]
) -> tuple[Prepare, Batches]:
    """As `feature_batches`, but an epoch is its draws as they are and, among them, every fixed mix once.

    Parameters
    ----------
    mixes: features float32 [k, d] of `material.mixes`.
    """
    params, weight = material.params, material.mixes["weight"].to_numpy()[:, None]
    one_hot = np.eye(len(material.dataset.classes), dtype=np.float32)
    labels = one_hot[material.labels(material.train_rows)]
    own, other = (one_hot[material.labels(material.dataset.rows_of(material.mixes[name]))] for name in ("image_a", "image_b"))
    mixed_labels = weight * own + (1 - weight) * other

    def batches(epoch: int, first: int = 0) -> Iterator[tuple[npt.NDArray[Any], ...]]:
        draws = material.draws(epoch)
        view = (draws.choice * views.shape[1]).astype(np.int64)
        count = len(draws.rows) + len(mixes)
        order = np.argsort(
            uniform(np.arange(count, dtype=np.uint64), material.augment.seed, epoch, Purpose.ORDER), kind="stable"
        )
        for part in _slices(count, params.batch_size)[first:]:
            drawn, fixed = (side := order[part])[side < len(draws.rows)], side[side >= len(draws.rows)] - len(draws.rows)
            inputs = np.concatenate([views[draws.rows[drawn], view[drawn]], mixes[fixed]])
            yield inputs, np.concatenate([labels[draws.rows[drawn]], mixed_labels[fixed]])

    return lambda inputs, vectors: (inputs, vectors), batches


class Blocks:
    """The last blocks of a backbone, on what the layers before them make of the images, computed once.

    These features are kept as float16 (half the disk; 11 bits) and mapped into memory. The head's own features, before the
    blocks are tuned, are computed from them and not from the images again.
    """

    def __init__(self, model: keras.Model, material: Material, block: str, cache: Path, precision: str) -> None:
        prefix, rest, self._tail = split_at(model, block)
        self._material = material
        self._features = FrozenFeatures(
            prefix, material, cache, name=f"{model.name} before {block}", precision=precision, dtype=np.float16
        )
        self.backbone_features = FrozenFeatures(
            rest, material, cache, name=f"{model.name} from {block}", precision=precision, source=self._features
        )

    def stage(self, member: int = 0) -> Stage:
        """The blocks and the head; of each member of an ensemble with draws of its own.

        An epoch moves the features as it would move the images (turns, flips, scale; colours stay those of the plan's views):
        more than the plan's views are seen, at no forward pass. MixUp mixes them: Manifold MixUp (Verma et al., ICML 2019).
        BatchNormalization is held throughout.
        """
        material, features = self._material, self._features
        stored = features.train()
        views = len(stored) // len(material.train_rows)
        prepared = _mixed_features(
            material, lambda rows, view: stored.take(rows * views + view), views, as_maps=material.augment.changes
        )
        prepare, batches = prepared
        name, passed = f"{BLOCK_STAGE}-{member + 1}" if member else BLOCK_STAGE, member * material.params.fine_tune.epochs
        own = prepare, lambda epoch, first=0: batches(epoch + passed, first)
        return _over_draws(name, self._tail, material, own, lambda rows: features.clean(rows).take)


def _over_draws(
    name: str, model: keras.Model, material: Material, prepared: tuple[Prepare, Batches], inputs: Callable[[Rows], Take]
) -> Stage:
    """A stage whose epoch is the plan's draws; `inputs` tells how the images of manifest rows come to the model clean."""
    forward = following(model)
    curve = material.train_rows[material.curve]
    return Stage(
        name,
        model,
        *prepared,
        steps=len(_slices(material.draws_per_epoch, material.params.batch_size)),
        images=material.params.batch_size,
        validation=_judged(forward, material, material.validation_rows, inputs(material.validation_rows)),
        train=_judged(forward, material, curve, inputs(curve)),
    )


def _judged(forward: Any, material: Material, rows: Rows, take: Take) -> Judged:
    return Judged(material.labels(rows), lambda: in_batches(forward, take, np.arange(len(rows))))


def _images(material: Material, rows: Rows) -> Take:
    return lambda part: material.inputs(rows[part])


def _mixed_features(material: Material, take: Any, views: int, *, as_maps: bool = False) -> tuple[Prepare, Batches]:
    """Batches of features, one of each draw's views; `as_maps` moves them as the draw moves an image."""
    import tensorflow as tf

    params, classes, paired = material.params, len(material.dataset.classes), material.paired
    train_labels = material.labels(material.train_rows)
    moves = ("symmetry", "zoom") if as_maps else ()

    def prepare(inputs: Any, labels: Any, weight: Any, *move: Any) -> tuple[Any, Any]:
        inputs = moved(inputs, *move) if move else tf.cast(inputs, tf.float32)
        return mix(inputs, weight, paired=paired), mix(tf.one_hot(labels, classes), weight, paired=paired)

    def batches(epoch: int, first: int = 0) -> Iterator[tuple[npt.NDArray[Any], ...]]:
        draws = material.draws(epoch)
        for part in _slices(len(draws.rows), params.batch_size)[first:]:
            rows, choice, *move = draws.take(part, "rows", "choice", *moves)
            yield take(rows, (choice * views).astype(np.int64)), train_labels[rows], draws.mix[part], *move

    return prepare, batches


def _slices(count: int, batch_size: int) -> list[slice]:
    """Whole batches only, so that the compiled step has one shape; the draws of the next epoch differ anyway."""
    return [slice(start, start + batch_size) for start in range(0, count - batch_size + 1, batch_size)]
