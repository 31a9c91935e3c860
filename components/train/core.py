"""Train: one architecture on one split: whole, or a head on a frozen backbone's features and then its last blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from components.train import devices, recipe, stages
from components.train.checkpoints import Checkpoints, ends_when_asked
from components.train.curves import draw_curves
from components.train.follow import Follower
from components.train.frozen import weights_digest
from components.train.loop import Stage, State, fit, forget
from components.train.material import Material, gather
from components.train.recipe import Recipe
from dermaflow import contracts, places
from dermaflow.architectures import (
    ARCHITECTURES,
    WHOLE,
    build_model,
    ensemble,
    freeze_batch_norms,
    heads,
    load_backbone_weights,
    summary,
    symmetric,
)
from dermaflow.artifacts import json_digest, new_artifact, write_json
from dermaflow.calibration import fit_adjustment, fit_temperature
from dermaflow.errors import InputError
from dermaflow.lineage import environment
from dermaflow.masking import channels_of
from dermaflow.params import RegisterParams, TrainParams
from dermaflow.weights import Weights, weights_of

if TYPE_CHECKING:
    import keras


Made = TypeVar("Made")


@dataclass(frozen=True)
class Places:
    """Folders that outlive a training: of features, and of checkpoints where params name no other place for them."""

    cache: Path
    state: Path

    @classmethod
    def usual(cls) -> Places:
        """Those of the working folder."""
        return cls(places.cache(), places.state())


@dataclass(frozen=True)
class _Trained:
    """What the stages came to."""

    stages: Sequence[tuple[str, State]]

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch, counted over all stages."""
        rows = pd.DataFrame([row for _, state in self.stages for row in state.history])
        return rows.assign(epoch=np.arange(1, len(rows) + 1))

    @property
    def kept_epochs(self) -> list[int]:
        """Whose weights are kept, counted over all stages: of the last stage or each member, or the first if none beat it."""
        before, kept = 0, list[int]()
        for _, state in self.stages:
            kept.append(before + state.best_epoch if state.best_epoch else kept[0])
            before += state.epoch
        return kept[1:] or kept


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
    places: Places,
    register: RegisterParams | None = None,
) -> dict[str, Any]:
    """Train one architecture and write its Model and History artifacts.

    Parameters
    ----------
    places: features and checkpoints; an interrupted training goes on from there, and removes its checkpoints at the end.
    register: where the training can be followed while it runs, as a run of MLflow; None: nowhere.

    Returns
    -------
    The content of model.json.

    Raises
    ------
    InputError
        when weights are missing or do not fit, classes are missing, the images are too small, the batch is larger than the
        data, or memory does not suffice.
    GateError
        when the loss is no longer finite.
    InterruptedWorkError
        when the process is asked to end by SIGTERM: what was done is kept.
    """
    weights = weights_of(params, architecture)  # refuses a file that is not there before any work is done
    material = gather(dataset, splits, plan, masks, params)
    material.require_trainable(architecture)
    device = devices.prepare(params)
    key = _run_key(architecture, params, material, weights, device)
    checkpoints = Checkpoints(params.checkpoints or places.state, key, params.checkpoint_seconds)
    with (
        ends_when_asked(),
        _told_when_out_of_memory(params),
        device.strategy.scope(),
        Follower(register, architecture, material.fold, params, key, checkpoints) as follower,
    ):
        import keras

        work = _Work(architecture, material, weights, device, places.cache, checkpoints, follower.epoch)
        trained = work.train()
        single = work.finished()
        model = symmetric(single, params.symmetries) if params.symmetries > 1 else single
        validation = _predictions(model, material)
        adjustment = 0.0 if params.adjustment == "none" else _adjust(single, material, validation)
        info = _describe(model, work, trained, key, validation) | {"adjustment": adjustment, "run": follower.run_id}
        _write_history(trained, validation, work, history_target)
        follower.finish(history_target)
        _write_model(model, info, material.developed, model_target)
        forget(trained.stages, checkpoints)
        keras.backend.clear_session()
    return info


class _Work:
    """An architecture on its way through the stages: the model in the precision of the device, and what it is made from."""

    def __init__(
        self,
        architecture: str,
        material: Material,
        weights: Weights,
        device: devices.Device,
        cache: Path,
        checkpoints: Checkpoints,
        on_epoch: Callable[[int, dict[str, Any]], None],
    ) -> None:
        self.architecture, self.material, self.weights, self.device = architecture, material, weights, device
        self.feature_seconds = 0.0
        self.block = material.params.block_of(architecture)
        self._cache, self._checkpoints, self._on_epoch = cache, checkpoints, on_epoch
        self._model = self._built(device.precision)
        self._members: list[list[Any]] = []  # weights of the model as each member was tuned
        if weights.path is not None:
            load_backbone_weights(self._model, weights.path)

    @property
    def frozen(self) -> bool:
        """Whether some layers keep the weights that they came with."""
        return ARCHITECTURES[self.architecture].pretrained and self.block != WHOLE

    @property
    def chance(self) -> bool:
        """Whether frozen layers are random: the model is then a check of the pipeline and no result."""
        return self.frozen and self.weights.path is None

    def train(self) -> _Trained:
        """Go through the stages that the parameters ask for; the model has the best weights at the end."""
        params, shares = self.material.params, self.material.shares
        given: dict[str, Any] = {"shares": shares, "precision": self.device.precision, "jit": self.device.jit}
        if not ARCHITECTURES[self.architecture].pretrained or (self.block == WHOLE and self.weights.path is None):
            stage = stages.whole(self._model, self.material)
            return _Trained([self._fit(stage, recipe.of_images(params, self.architecture, **given))])
        model, material, place = self._model, self.material, (self._cache, self.device.precision)
        blocks = None if self.block in {None, WHOLE} else stages.Blocks(model, material, self.block, *place)
        features = blocks.backbone_features if blocks else stages.backbone_features(model, material, *place)
        head = self._timed(lambda: stages.Head(model, material, features))
        first = self._fit(head.stage, recipe.of_head(params, self.architecture, **given))
        head.hand_over()
        if self.block is None:
            return _Trained([first])
        freeze_batch_norms(model)
        begin, done = model.get_weights(), [first]
        for number in range(params.fine_tune.members if blocks else 1):
            model.set_weights(begin)
            stage = self._timed(partial(blocks.stage, number)) if blocks else stages.whole(model, material)
            done.append(self._fit(stage, recipe.of_fine_tuning(params, **given), *done))
            self._members.append(model.get_weights())
        return _Trained(done)

    def finished(self) -> keras.Model:
        """The trained model, in float32 whatever it was trained in."""
        if self.device.precision == "float32" and not self.block:
            return self._model
        models = []
        for weights in self._members or [self._model.get_weights()]:
            models.append(self._built("float32"))
            models[-1].set_weights(weights)
        return models[0] if len(models) == 1 else ensemble(models, str(self.block))

    def _fit(self, stage: Stage, how: Recipe, *done: tuple[str, State]) -> tuple[str, State]:
        """Train a stage; after the first one it begins at that one's best, which `stage.model` carries."""
        earlier = State(score=done[0][1].score, best=stage.model.get_weights()) if done else None
        passed = sum(state.epoch for _, state in done)

        def on_epoch(row: dict[str, Any]) -> None:
            self._on_epoch(passed + row["epoch"], row)

        text = f"{self.architecture} {stage.name}"
        return stage.name, fit(stage, how, self._checkpoints, text, earlier=earlier, on_epoch=on_epoch)

    def _timed(self, make: Callable[[], Made]) -> Made:
        """Make a stage; what that takes is its features, as far as they are not in the cache."""
        started = time.monotonic()
        made = make()
        self.feature_seconds += time.monotonic() - started
        return made

    def _built(self, precision: str) -> keras.Model:
        material = self.material
        return build_model(
            self.architecture,
            classes=len(material.dataset.classes),
            size=material.dataset.image_size,
            channels=channels_of(material.params.masks),
            dropout=material.params.dropout_of(self.architecture),
            seed=material.params.seed,
            precision=precision,
        )


@contextmanager
def _told_when_out_of_memory(params: TrainParams) -> Iterator[None]:
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise InputError(
            f"memory does not suffice for a batch of {params.batch_size} images ({str(error).splitlines()[0][:160]}); lower "
            "train.batch_size, use train.precision=mixed_bfloat16 on a GPU, or a device with more memory"
        ) from error


def _predictions(model: keras.Model, material: Material) -> pd.DataFrame:
    """What the finished model says of the clean validation images."""
    return material.validation_table(stages.judged_images(model, material, material.validation_rows).logits())


def _adjust(model: keras.Model, material: Material, validation: pd.DataFrame) -> float:
    """Shift the head's biases, and with them the validation logits, for the rare classes; returns tau."""
    columns, shares, tau = contracts.logit_columns(material.dataset.classes), material.train_shares, material.params.adjustment
    if not isinstance(tau, float):
        tau = fit_adjustment(validation[columns].to_numpy(), material.validation_labels, shares)
    shift = (-tau * np.log(shares)).astype(np.float32)
    for head in heads(model):
        kernel, bias = head.get_weights()
        head.set_weights([kernel, bias + shift])
    validation[columns] += shift
    return tau


def _run_key(architecture: str, params: TrainParams, material: Material, weights: Weights, device: devices.Device) -> str:
    """What training state belongs to: an interrupted run goes on only with the same inputs."""
    elsewhere = {"architectures", "weights", "dropout", "learning_rates", "checkpoints", "checkpoint_seconds"}
    key = json_digest(
        {
            "architecture": architecture,
            "params": params.model_dump(mode="json", exclude=elsewhere),
            "dropout": params.dropout_of(architecture),
            "learning_rate": params.learning_rate_of(architecture),
            "weights": weights.digest,
            "device": device.told,
            "dataset": material.dataset.content_digest,
            "splits": material.splits_info["digest"],
            "plan": material.plan_info,
            "masks": material.mask_digest,
        }
    )
    return key.removeprefix("sha256:")[:32]


def _describe(model: keras.Model, work: _Work, trained: _Trained, key: str, validation: pd.DataFrame) -> dict[str, Any]:
    params, material, weights = work.material.params, work.material, work.weights
    logits = validation[contracts.logit_columns(material.dataset.classes)].to_numpy()
    return {
        "architecture": work.architecture,
        "title": ARCHITECTURES[work.architecture].title,
        "classes": list(material.dataset.classes),
        "image_size": material.dataset.image_size,
        "channels": channels_of(params.masks),
        "masks": params.masks,
        "resize": material.dataset.info["resize"],
        "interpolation": material.dataset.info["interpolation"],
        "input": "float32 [n, size, size, channels], RGB in 0..255; normalisation is inside the model",
        "output": "logits, float32 [n, classes]",
        "parameters": model.count_params(),
        "layers": summary(model),
        "weights": {"origin": Path(weights.origin).name, "digest": weights.digest},
        "weights_digest": weights_digest(model),
        "temperature": fit_temperature(logits, material.validation_labels),
        "backbone_frozen": work.frozen,
        "tuned_from": work.block,
        "pipeline_check": work.chance,
        "mixup_space": material.mixup.space_of(frozen=work.frozen),
        "params": params.model_dump(mode="json"),
        "dropout": params.dropout_of(work.architecture),
        "learning_rate": params.learning_rate_of(work.architecture),
        "kept_epochs": trained.kept_epochs,
        "epochs": len(trained.history),
        "training_key": key,
        "device": work.device.told,
        "environment": environment(),
        "dataset": material.dataset.version,
        "splits_digest": material.splits_info["digest"],
        "synthetic": material.dataset.synthetic,
        "promotable_split": material.splits_info["promotable"],
    }


def _write_model(model: keras.Model, info: dict[str, Any], developed: pd.DataFrame, target: Path) -> None:
    with new_artifact(target, contracts.MODEL) as folder:
        model.save(folder / "model.keras")
        developed.to_parquet(folder / contracts.TRAINED_ON, index=False)
        write_json(folder / "model.json", info)


def _write_history(trained: _Trained, validation: pd.DataFrame, work: _Work, target: Path) -> None:
    history, architecture = trained.history, work.architecture
    with new_artifact(target, contracts.HISTORY) as folder:
        history.to_parquet(folder / "history.parquet", index=False)
        validation.to_parquet(folder / contracts.VALIDATION_FILE, index=False)
        draw_curves(history, trained.kept_epochs, ARCHITECTURES[architecture].title, folder / "curves.png")
        write_json(
            folder / "history.json",
            {
                "architecture": architecture,
                "kept_epochs": trained.kept_epochs,
                "feature_seconds": round(work.feature_seconds, 3),
                "epochs": history.to_dict("records"),
            },
        )
