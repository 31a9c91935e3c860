"""Train: one architecture on one split, from images or, behind a frozen backbone, from features computed once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from components.train.curves import draw_curves
from components.train.features import FeatureStore
from components.train.loop import Batches, Prepare, State, fit
from dermaflow import contracts
from dermaflow.architectures import ARCHITECTURES, HEAD, build_model, feature_extractor, load_backbone_weights, require_size
from dermaflow.artifacts import file_digest, json_digest, new_artifact, open_artifact, write_json
from dermaflow.augmentation import NUMBERS, Draws, Purpose, augmented, mix, plan_draws, transform, uniform
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.masking import apply_masks, channels_of
from dermaflow.params import AugmentParams, MixupParams, TrainParams

if TYPE_CHECKING:
    import keras

PREDICT_BATCH = 32


@dataclass(frozen=True)
class Material:
    """What a training run reads: the dataset, its train rows with their plan, its validation rows, and the masks.

    Attributes
    ----------
    plan: rows of the plan, ordered by image and view.
    mixes: its fixed mixes.
    train_rows, validation_rows: manifest rows, int64; train rows in the order of the plan's view 0.
    developed: contracts.TRAINED_ON_COLUMNS of the train and validation images.
    """

    dataset: Dataset
    plan: pd.DataFrame
    mixes: pd.DataFrame
    plan_info: dict[str, Any]
    splits_info: dict[str, Any]
    masks: Path
    train_rows: npt.NDArray[np.int64]
    validation_rows: npt.NDArray[np.int64]
    developed: pd.DataFrame
    params: TrainParams

    def inputs(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Images as the model takes them, uint8 [k, size, size, channels]."""
        mode = self.params.masks
        lesions = None if mode == "none" else contracts.masks_of(self.masks, self.dataset, rows)
        return apply_masks(self.dataset.images(rows), lesions, mode)

    def labels(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Class indices of manifest rows, int64 [k]."""
        return self.dataset.labels[rows]

    def draws(self, epoch: int) -> Draws:
        """What the plan draws in an epoch; rows are positions in `train_rows`."""
        return plan_draws(self.plan[self.plan["view"] == 0], self.augment, self.mixup, epoch)

    @property
    def draws_per_epoch(self) -> int:
        """How many images an epoch draws."""
        return round(float(self.plan.loc[self.plan["view"] == 0, "weight"].sum()))

    @property
    def augment(self) -> AugmentParams:
        """How the plan balances and changes."""
        return AugmentParams.from_json(json.dumps(self.plan_info["augment"]))

    @property
    def paired(self) -> bool:
        """Whether an image is mixed with a partner drawn for it, rather than with the next of its batch."""
        return self.augment.balance == "balanced_mixup"

    @property
    def mixup(self) -> MixupParams:
        """How the plan mixes."""
        return MixupParams.from_json(json.dumps(self.plan_info["mixup"]))


def train(
    dataset: Path,
    splits: Path,
    plan: Path,
    masks: Path,
    architecture: str,
    params: TrainParams,
    model_target: Path,
    history_target: Path,
    *,
    cache: Path,
    state: Path,
) -> dict[str, Any]:
    """Train one architecture and write its Model and History artifacts.

    Parameters
    ----------
    cache: folder of features that outlives the run.
    state: folder of training state, from which an interrupted run goes on; emptied of this run's state at the end.

    Returns
    -------
    The content of model.json.

    Raises
    ------
    InputError
        when weights are missing or do not fit, the images are too small, or the batch is larger than the data.
    GateError
        when the loss is no longer finite.
    """
    params.weights_of(architecture)  # refuses a file that is not there before any work is done
    material = gather(dataset, splits, plan, masks, params)
    _check_sizes(architecture, material)
    import keras
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    model = build_model(
        architecture,
        classes=len(material.dataset.classes),
        size=material.dataset.image_size,
        channels=channels_of(params.masks),
        dropout=params.dropout_of(architecture),
        seed=params.seed,
    )
    weights = _load_weights(model, params)
    key = _run_key(architecture, params, material, weights)
    state_file = state / key / "state.npz"
    frozen = ARCHITECTURES[architecture].pretrained
    outcome = _train_head(model, material, cache, state_file) if frozen else _train_whole(model, material, state_file)
    info = _describe(model, architecture, material, weights, outcome, key, frozen=frozen)
    _write_model(model, info, material.developed, model_target)
    _write_history(outcome, architecture, history_target)
    shutil.rmtree(state_file.parent, ignore_errors=True)
    keras.backend.clear_session()
    return info


def image_batches(material: Material) -> tuple[Prepare, Batches]:
    """What the network sees when every layer is trained: how a batch is prepared inside the step, and an epoch's batches.

    The same epoch has the same batches, bit for bit, whenever and however often it is asked for.
    """
    import tensorflow as tf

    params, classes, paired = material.params, len(material.dataset.classes), material.paired
    train_labels = material.labels(material.train_rows)

    def prepare(images: Any, labels: Any, symmetry: Any, zoom: Any, brightness: Any, hue: Any, weight: Any) -> tuple[Any, Any]:
        changed = augmented(images, symmetry, zoom, brightness, hue, weight, paired=paired)
        return changed, mix(tf.one_hot(labels, classes), weight, paired=paired)

    def batches(epoch: int) -> Iterator[tuple[Any, ...]]:
        draws = material.draws(epoch)
        for part in _batch_slices(len(draws.rows), params.batch_size):
            rows, *numbers = draws.take(part, "rows", *NUMBERS)
            yield material.inputs(material.train_rows[rows]), train_labels[rows], *numbers, draws.mix[part]

    return prepare, batches


def _train_whole(model: keras.Model, material: Material, state_file: Path) -> State:
    """Train every layer on images: transforms and MixUp run inside the compiled step."""
    params = material.params
    forward = _compiled(model)
    material.mixup.require_fit(model.name)

    def validation() -> npt.NDArray[np.float32]:
        return _in_batches(lambda rows: forward(material.inputs(rows)), material.validation_rows)

    return fit(
        model,
        *image_batches(material),
        len(_batch_slices(material.draws_per_epoch, params.batch_size)),
        validation,
        material.labels(material.validation_rows),
        epochs=params.epochs,
        learning_rate=params.learning_rate,
        state_file=state_file,
        text=model.name,
    )


def _train_head(model: keras.Model, material: Material, cache: Path, state_file: Path) -> State:
    """Train the head on the frozen backbone's features, then fold the features' scale into its weights.

    The head is fitted to standardised features (mean 0, variance 1 over the train part), which Adam needs at any
    backbone's scale; (f - m) / s * W + b = f * (W / s) + (b - m / s * W) puts that back into the model's own head.
    """
    import keras

    params, classes = material.params, len(material.dataset.classes)
    features = _Features(model, material, cache)
    views = features.train()
    mean, scale = views.mean(axis=(0, 1)), np.maximum(views.std(axis=(0, 1)), 1e-6)
    views, clean = (views - mean) / scale, (features.validation() - mean) / scale

    keras.utils.set_random_seed(params.seed)
    vectors = keras.Input((views.shape[-1],), name="features")
    dropped = keras.layers.Dropout(params.dropout_of(model.name), seed=params.seed)(vectors)
    head = keras.Model(vectors, keras.layers.Dense(classes, kernel_initializer="zeros", name=HEAD)(dropped), name=model.name)
    forward = _compiled(head)

    fixed = len(material.mixes)
    outcome = fit(
        head,
        *(
            _fixed_mix_batches(material, views, (features.mixes() - mean) / scale)
            if fixed
            else feature_batches(material, views)
        ),
        len(_batch_slices(material.draws_per_epoch + fixed, params.batch_size)),
        lambda: forward(clean),
        material.labels(material.validation_rows),
        epochs=params.head_epochs,
        learning_rate=params.learning_rate,
        state_file=state_file,
        text=f"{model.name} head",
    )
    kernel, bias = head.get_layer(HEAD).get_weights()
    folded = kernel / scale[:, None]
    model.get_layer(HEAD).set_weights([folded, bias - mean @ folded])
    return outcome


def feature_batches(material: Material, views: npt.NDArray[np.float32]) -> tuple[Prepare, Batches]:
    """As `image_batches`, of features float32 [n, views, d]: features and label vectors are mixed."""
    import tensorflow as tf

    params, classes, paired = material.params, len(material.dataset.classes), material.paired
    train_labels = material.labels(material.train_rows)

    def prepare(inputs: Any, labels: Any, weight: Any) -> tuple[Any, Any]:
        return mix(inputs, weight, paired=paired), mix(tf.one_hot(labels, classes), weight, paired=paired)

    def batches(epoch: int) -> Iterator[tuple[Any, ...]]:
        draws = material.draws(epoch)
        for part in _batch_slices(len(draws.rows), params.batch_size):
            rows, choice = draws.take(part, "rows", "choice")
            yield views[rows, (choice * views.shape[1]).astype(np.int64)], train_labels[rows], draws.mix[part]

    return prepare, batches


def _fixed_mix_batches(
    material: Material, views: npt.NDArray[np.float32], mixes: npt.NDArray[np.float32]
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

    def batches(epoch: int) -> Iterator[tuple[Any, ...]]:
        draws = material.draws(epoch)
        view = (draws.choice * views.shape[1]).astype(np.int64)
        count = len(draws.rows) + len(mixes)
        order = np.argsort(
            uniform(np.arange(count, dtype=np.uint64), material.augment.seed, epoch, Purpose.ORDER), kind="stable"
        )
        for part in _batch_slices(count, params.batch_size):
            drawn, fixed = (side := order[part])[side < len(draws.rows)], side[side >= len(draws.rows)] - len(draws.rows)
            inputs = np.concatenate([views[draws.rows[drawn], view[drawn]], mixes[fixed]])
            yield inputs, np.concatenate([labels[draws.rows[drawn]], mixed_labels[fixed]])

    return lambda inputs, vectors: (inputs, vectors), batches


class _Features:
    """Features of a model's frozen backbone for the train views and the validation images."""

    def __init__(self, model: keras.Model, material: Material, cache: Path) -> None:
        extractor = feature_extractor(model)
        self._forward = _compiled(extractor)
        self._material = material
        self._text = f"{model.name}: features of the frozen backbone"
        self._store = FeatureStore(
            cache / "features",
            {
                "architecture": model.name,
                "weights": _weights_digest(extractor),
                "masks": material.params.masks,
                "image_size": material.dataset.image_size,
                "mask_digest": _mask_digest(material),
            },
        )

    def train(self) -> npt.NDArray[np.float32]:
        """float32 [n, views, d], images in the order of `train_rows`."""
        plan = self._material.plan
        rows = self._material.dataset.rows_of(plan["image_id"])
        flat = self._get(rows, plan["symmetry"].to_numpy(np.int32))
        return flat.reshape(len(self._material.train_rows), -1, flat.shape[-1])

    def validation(self) -> npt.NDArray[np.float32]:
        """float32 [m, d] of the validation images as they are."""
        rows = self._material.validation_rows
        return self._get(rows, np.zeros(len(rows), np.int32))

    def mixes(self) -> npt.NDArray[np.float32]:
        """float32 [k, d] of the plan's fixed mixes: of their pixels, mixed."""
        material, mixes = self._material, self._material.mixes
        rows = [material.dataset.rows_of(mixes[f"image_{side}"]) for side in "ab"]
        codes = [mixes[f"symmetry_{side}"].to_numpy() for side in "ab"]
        weight = mixes["weight"].to_numpy()[:, None, None, None]
        digests = [material.dataset.manifest["pixel_digest"].to_numpy()[part] for part in rows]
        names = [
            f"{a}/{code_a}*{share:.9g}+{b}/{code_b}"
            for a, code_a, share, b, code_b in zip(digests[0], codes[0], mixes["weight"], digests[1], codes[1], strict=True)
        ]

        def batch(part: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            own, other = (_turned(material.inputs(rows[side][part]), codes[side][part]) for side in (0, 1))
            return np.asarray(self._forward(weight[part] * own + (1 - weight[part]) * other), np.float32)

        return self._store.get(names, lambda positions: _in_batches(batch, positions), f"{self._text}, mixes")

    def _get(self, rows: npt.NDArray[np.int64], symmetry: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        digests = self._material.dataset.manifest["pixel_digest"].to_numpy()[rows]
        names = [f"{digest}/{code}" for digest, code in zip(digests, symmetry, strict=True)]

        def compute(positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            def batch(part: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
                features = self._forward(_turned(self._material.inputs(rows[part]), symmetry[part]))
                return np.asarray(features, np.float32)

            return _in_batches(batch, positions)

        return self._store.get(names, compute, self._text)


def _turned(images: npt.NDArray[np.uint8], symmetry: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    import tensorflow as tf

    still = np.zeros(len(images), np.float32)
    turned: npt.NDArray[np.float32] = transform(tf.constant(images), tf.constant(symmetry), still + 1, still, still).numpy()
    return turned


def _compiled(model: keras.Model) -> Any:
    """A compiled forward pass: array [k, ...] -> float32 array, in inference mode."""
    import tensorflow as tf

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def forward(batch: tf.Tensor) -> tf.Tensor:
        return model(tf.cast(batch, tf.float32), training=False)

    return lambda batch: forward(tf.convert_to_tensor(batch)).numpy()


def _in_batches(compute: Any, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return np.concatenate([compute(rows[start : start + PREDICT_BATCH]) for start in range(0, len(rows), PREDICT_BATCH)])


def _batch_slices(count: int, batch_size: int) -> list[slice]:
    """Whole batches only, so that the compiled step has one shape; the draws of the next epoch differ anyway."""
    return [slice(start, start + batch_size) for start in range(0, count - batch_size + 1, batch_size)]


def gather(dataset: Path, splits: Path, plan: Path, masks: Path, params: TrainParams) -> Material:
    """Read what a training run needs; raises InputError when the plan has a row that is not in train of these splits."""
    opened = Dataset.open(dataset)
    table, rows = contracts.read_splits(splits), contracts.read_plan(plan)
    train_images = set(table.loc[table["split"] == "train", "image_id"])
    mixes = contracts.read_mixes(plan)
    drawn = pd.concat([rows["image_id"], mixes["image_a"], mixes["image_b"]])
    foreign = drawn[~drawn.isin(train_images)]
    if len(foreign):
        raise InputError(f"{plan}: {foreign.iloc[0]} is not in the train split of {splits}; make the plan from these splits")
    return Material(
        dataset=opened,
        plan=rows,
        mixes=mixes,
        plan_info=contracts.read_info(plan, contracts.PLAN),
        splits_info=contracts.read_info(splits, contracts.SPLITS),
        masks=masks,
        train_rows=opened.rows_of(rows.loc[rows["view"] == 0, "image_id"]),
        validation_rows=opened.rows_of(table.loc[table["split"] == "validation", "image_id"]),
        developed=table.loc[table["split"].isin(contracts.DEVELOPED_ON), list(contracts.TRAINED_ON_COLUMNS)],
        params=params,
    )


def _check_sizes(architecture: str, material: Material) -> None:
    require_size(architecture, material.dataset.image_size)
    if material.params.batch_size > material.draws_per_epoch:
        raise InputError(
            f"train.batch_size is {material.params.batch_size}, but an epoch draws only {material.draws_per_epoch} training "
            "images; lower it"
        )


def _load_weights(model: keras.Model, params: TrainParams) -> dict[str, Any]:
    path = params.weights_of(model.name)
    if path is None:
        return {"origin": "none", "digest": None}
    load_backbone_weights(model, path)
    return {"origin": path.name, "digest": file_digest(path)}


def _run_key(architecture: str, params: TrainParams, material: Material, weights: dict[str, Any]) -> str:
    """What training state belongs to: an interrupted run goes on only with the same inputs."""
    told = params.model_dump(mode="json", exclude={"architectures", "weights", "dropout"})
    key = json_digest(
        {
            "architecture": architecture,
            "params": told,
            "dropout": params.dropout_of(architecture),
            "weights": weights,
            "dataset": material.dataset.content_digest,
            "splits": material.splits_info["digest"],
            "plan": material.plan_info,
            "masks": _mask_digest(material),
        }
    )
    return key.removeprefix("sha256:")[:32]


def _mask_digest(material: Material) -> str | None:
    return None if material.params.masks == "none" else open_artifact(material.masks, contracts.MASKS).digest


def _weights_digest(model: keras.Model) -> str:
    sha = hashlib.sha256()
    for value in model.get_weights():
        sha.update(np.ascontiguousarray(value).tobytes())
    return "sha256:" + sha.hexdigest()


def _describe(
    model: keras.Model,
    architecture: str,
    material: Material,
    weights: dict[str, Any],
    outcome: State,
    key: str,
    *,
    frozen: bool,
) -> dict[str, Any]:
    params = material.params
    return {
        "architecture": architecture,
        "title": ARCHITECTURES[architecture].title,
        "classes": list(material.dataset.classes),
        "image_size": material.dataset.image_size,
        "channels": channels_of(params.masks),
        "masks": params.masks,
        "resize": material.dataset.info["resize"],
        "interpolation": material.dataset.info["interpolation"],
        "input": "float32 [n, size, size, channels], RGB in 0..255; normalisation is inside the model",
        "output": "logits, float32 [n, classes]",
        "parameters": model.count_params(),
        "weights": weights,
        "weights_digest": _weights_digest(model),
        "backbone_frozen": frozen,
        "pipeline_check": frozen and weights["origin"] == "none",
        "mixup_space": material.mixup.space_of(frozen=frozen),
        "params": params.model_dump(mode="json"),
        "dropout": params.dropout_of(architecture),
        "best_epoch": outcome.best_epoch,
        "epochs": outcome.epoch,
        "training_key": key,
        "dataset": material.dataset.version,
        "splits_digest": material.splits_info["digest"],
        "synthetic": material.dataset.synthetic,
        "promotable_split": material.splits_info["promotable"],
    }


def _write_model(model: keras.Model, info: dict[str, Any], developed: pd.DataFrame, target: Path) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with new_artifact(target, contracts.MODEL) as folder:
        model.save(folder / "model.keras")
        developed.to_parquet(folder / contracts.TRAINED_ON, index=False)
        write_json(folder / "model.json", info)


def _write_history(outcome: State, architecture: str, target: Path) -> None:
    history = pd.DataFrame(outcome.history)
    with new_artifact(target, contracts.HISTORY) as folder:
        history.to_parquet(folder / "history.parquet", index=False)
        draw_curves(history, outcome.best_epoch, ARCHITECTURES[architecture].title, folder / "curves.png")
        write_json(
            folder / "history.json", {"architecture": architecture, "best_epoch": outcome.best_epoch, "epochs": outcome.history}
        )
