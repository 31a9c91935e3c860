"""The training loop: epochs of compiled steps, the best epoch by validation kept, resumable after any epoch."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from dermaflow.errors import GateError
from dermaflow.metrics import balanced_accuracy, confusion_counts
from dermaflow.progress import progress

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

Batches = Callable[[int], Iterator[tuple[Any, ...]]]
Prepare = Callable[..., tuple[Any, Any]]


@dataclass
class State:
    """Where training stands after an epoch: enough to go on with the next one as if it had never stopped."""

    epoch: int = 0
    best_score: tuple[float, float] = (-1.0, float("-inf"))
    best_epoch: int = 0
    best_weights: list[npt.NDArray[Any]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    model: keras.Model,
    prepare: Prepare,
    batches: Batches,
    batches_per_epoch: int,
    validation: Callable[[], npt.NDArray[np.float32]],
    labels: npt.NDArray[np.int64],
    *,
    epochs: int,
    learning_rate: float,
    state_file: Path | None,
    text: str,
) -> State:
    """Train a model that returns logits, with Adam on the cross-entropy of label vectors.

    Parameters
    ----------
    prepare: (batch arrays as tensors) -> (inputs, label vectors [b, classes]); runs inside the compiled step, so that
        augmentation and MixUp do.
    batches: epoch -> the epoch's batches, tuples of arrays, the last of them with one entry for each image that comes out of
        `prepare`; the same for the same epoch whenever it is asked.
    validation: -> logits float32 [m, classes] of the validation images; `labels` int64 [m] are theirs.
    state_file: where training goes on from after an interruption; None keeps nothing.

    Returns
    -------
    The state after the last epoch. The model carries the weights of the best epoch: highest validation balanced
    accuracy, then lowest validation loss.

    Raises
    ------
    GateError
        when the loss is no longer a finite number.
    """
    import keras
    import tensorflow as tf

    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build(model.trainable_variables)

    train_step = compiled_step(model, optimizer, prepare)
    variables = [*model.variables, *optimizer.variables]
    state = _restore(state_file, variables)
    for epoch in range(state.epoch, epochs):
        started, images, losses = time.monotonic(), 0, []
        for step, batch in enumerate(batches(epoch)):
            losses.append(float(train_step(*(tf.convert_to_tensor(array) for array in batch))))
            images += len(batch[-1])
            _refuse_not_finite(losses[-1], text, epoch, step)
            progress(
                f"{text}: epoch {epoch + 1}/{epochs}, loss {np.mean(losses):.3f}",
                epoch * batches_per_epoch + step + 1,
                epochs * batches_per_epoch,
            )
        seconds = time.monotonic() - started
        logits = validation()
        row = {
            "epoch": epoch + 1,
            "loss": float(np.mean(losses)),
            "validation_loss": cross_entropy(logits, labels),
            "validation_balanced_accuracy": _balanced_accuracy(logits, labels),
            "learning_rate": learning_rate,
            "seconds": seconds,
            "images_per_second": images / seconds,
        }
        state.history.append(row)
        score = (row["validation_balanced_accuracy"], -row["validation_loss"])
        if score > state.best_score:
            state.best_score, state.best_epoch = score, epoch + 1
            state.best_weights = [np.asarray(value) for value in model.get_weights()]
        state.epoch = epoch + 1
        _keep(state_file, state, variables)
    model.set_weights(state.best_weights)
    return state


def compiled_step(model: keras.Model, optimizer: keras.Optimizer, prepare: Prepare) -> Callable[..., tf.Tensor]:
    """One step of training on the cross-entropy of label vectors, compiled: batch arrays as tensors -> loss, a scalar."""
    import keras
    import tensorflow as tf

    loss_function = keras.losses.CategoricalCrossentropy(from_logits=True)

    @tf.function  # type: ignore[untyped-decorator]
    def train_step(*batch: tf.Tensor) -> tf.Tensor:
        inputs, vectors = prepare(*batch)
        with tf.GradientTape() as tape:
            loss = loss_function(vectors, model(inputs, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return cast("Callable[..., tf.Tensor]", train_step)


def cross_entropy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))


def _balanced_accuracy(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    counts = confusion_counts(logits.argmax(axis=1), labels, np.ones((1, len(labels))), logits.shape[1])
    return float(balanced_accuracy(counts)[0])


def _refuse_not_finite(loss: float, text: str, epoch: int, step: int) -> None:
    if not np.isfinite(loss):
        raise GateError(
            f"{text}: the loss became {loss} in epoch {epoch + 1}, step {step + 1}; "
            "lower train.learning_rate, or look at the images"
        )


def _restore(state_file: Path | None, variables: list[Any]) -> State:
    if state_file is None or not state_file.exists():
        return State()
    with np.load(state_file) as kept:
        for position, variable in enumerate(variables):
            variable.assign(kept[f"variable_{position}"])
        told = json.loads(str(kept["told"]))
        best = [kept[f"best_{position}"] for position in range(told.pop("best_count"))]
    return State(best_weights=best, **{**told, "best_score": tuple(told["best_score"])})


def _keep(state_file: Path | None, state: State, variables: list[Any]) -> None:
    if state_file is None:
        return
    arrays = {f"variable_{position}": np.asarray(variable) for position, variable in enumerate(variables)}
    arrays |= {f"best_{position}": value for position, value in enumerate(state.best_weights)}
    told = {
        "epoch": state.epoch,
        "best_score": state.best_score,
        "best_epoch": state.best_epoch,
        "history": state.history,
        "best_count": len(state.best_weights),
    }
    state_file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=state_file.parent, suffix=".tmp", delete=False) as file:
        np.savez(file, **{"told": np.array(json.dumps(told)), **arrays})  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, state_file)
