"""The training loop: epochs of compiled steps, the best epoch by validation kept, resumable after any step."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from components.train.checkpoints import Checkpoints, end_if_asked
from components.train.recipe import Recipe
from dermaflow.calibration import losses
from dermaflow.errors import GateError
from dermaflow.metrics import balanced_accuracy, confusion_counts, macro, ranked, softmax
from dermaflow.progress import progress

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Batches = Callable[[int, int], Iterator[tuple[npt.NDArray[Any], ...]]]
Prepare = Callable[..., tuple[Any, Any]]

PREFETCHED = 2  # batches made ready while the device works on one
_BETWEEN_LOOKS = 1.0  # seconds between two looks at the loss: reading it makes the host wait for the device


@dataclass(frozen=True)
class Judged:
    """Images that are judged after each epoch, as they are: their labels int64 [m], and -> logits float32 [m, classes]."""

    labels: Labels
    logits: Callable[[], Logits]


@dataclass(frozen=True)
class Stage:
    """What is trained on what.

    Attributes
    ----------
    name: of the stage, for history and checkpoints.
    model: takes what `prepare` gives; its trainable variables are trained.
    prepare: (batch arrays as tensors) -> (inputs, label vectors [b, classes]); runs inside the compiled step, so that
        augmentation and MixUp do.
    batches: (epoch, first step) -> the epoch's batches from that step on, tuples of arrays, all of the same shapes; the
        same for the same epoch whenever it is asked.
    steps: batches an epoch.
    images: images a batch.
    validation: the images by which the kept epoch is chosen.
    train: a sample of the training images, as they are, for the learning curve.
    """

    name: str
    model: keras.Model
    prepare: Prepare
    batches: Batches
    steps: int
    images: int
    validation: Judged
    train: Judged


@dataclass
class State:
    """Where training stands: enough to go on as if it had never stopped.

    `score` is that of the best epoch: (what is monitored, minus the validation loss); `best` its weights.
    """

    epoch: int = 0
    step: int = 0
    score: tuple[float, float] = (-1.0, float("-inf"))
    best_epoch: int = 0
    best: list[npt.NDArray[Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """A stage's model with its optimizer and the compiled step; everything that changes in a step is in `variables`.

    Parameters
    ----------
    steps: of the whole training, for the schedule of the learning rate.
    """

    def __init__(self, model: keras.Model, prepare: Prepare, recipe: Recipe, steps: int) -> None:
        import keras
        import tensorflow as tf

        self.model = model
        self._prepare, self._recipe = prepare, recipe
        self._strategy = tf.distribute.get_strategy()
        self._rate = _schedule(recipe, steps)
        self._trained = model.trainable_variables
        with self._strategy.scope():
            adam = keras.optimizers.Adam(self._rate)
            self.optimizer = keras.optimizers.LossScaleOptimizer(adam) if recipe.precision == "mixed_float16" else adam
            self.optimizer.build(self._trained)
            self._averages = [tf.Variable(variable.value) for variable in self._trained] if recipe.average else []
        self._loss_sum = tf.Variable(0.0, dtype=tf.float64)
        self._not_finite_at = tf.Variable(-1, dtype=tf.int64)
        self._steps = tf.Variable(0, dtype=tf.int64)
        self.step: Callable[..., tf.Tensor] = self._compiled()

    @property
    def variables(self) -> list[Any]:
        """All that a step changes."""
        own = [self._loss_sum, self._not_finite_at, self._steps]
        return [*self.model.variables, *self.optimizer.variables, *self._averages, *own]

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._rate if isinstance(self._rate, float) else self._rate(self._steps.numpy()))

    def mean_loss(self, steps: int, text: str, epoch: int) -> float:
        """Mean loss of the epoch's `steps` so far.

        Raises
        ------
        GateError
            when it was not a finite number in one of them.
        """
        if self._not_finite_at.numpy() >= 0:
            raise GateError(
                f"{text}: the loss was not a finite number in epoch {epoch + 1}, step {self._not_finite_at.numpy() + 1} of "
                f"all; lower {self._recipe.rate_name}, which is {self._recipe.learning_rate:g}, or look at the images"
            )
        return float(self._loss_sum.numpy()) / max(steps, 1)

    def begin_epoch(self) -> None:
        """Forget the losses of the epoch before."""
        self._loss_sum.assign(0.0)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the model has the averaged weights, where the recipe averages."""
        own = [variable.numpy() for variable in self._trained] if self._averages else []
        for variable, average in zip(self._trained, self._averages, strict=False):
            variable.assign(average.numpy())
        try:
            yield
        finally:
            for variable, value in zip(self._trained, own, strict=False):
                variable.assign(value)

    def _compiled(self) -> Any:
        import keras
        import tensorflow as tf

        recipe, replicas = self._recipe, self._strategy.num_replicas_in_sync
        loss_of = keras.losses.CategoricalCrossentropy(from_logits=True, reduction=None)

        def replica_step(*batch: tf.Tensor) -> tf.Tensor:
            inputs, vectors = self._prepare(*batch)
            with tf.GradientTape() as tape:
                logits = self.model(inputs, training=True)
                loss = tf.reduce_mean(recipe.weights(vectors) * loss_of(recipe.smoothed(vectors), recipe.adjusted(logits)))
                loss /= replicas  # gradients are summed over replicas
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, self._trained)
            self.optimizer.apply_gradients(zip(gradients, self._trained, strict=True))
            return loss

        on_device = tf.function(replica_step, jit_compile=True) if recipe.jit else replica_step

        @tf.function  # type: ignore[untyped-decorator]
        def step(*batch: tf.Tensor) -> tf.Tensor:
            loss = self._strategy.reduce("SUM", self._strategy.run(on_device, args=batch), axis=None)
            for average, variable in zip(self._averages, self._trained, strict=False):
                average.assign(recipe.average * average + (1 - recipe.average) * tf.convert_to_tensor(variable))
            self._loss_sum.assign_add(tf.cast(loss, tf.float64))
            first = tf.logical_and(self._not_finite_at < 0, tf.logical_not(tf.math.is_finite(loss)))
            self._not_finite_at.assign(tf.where(first, self._steps, self._not_finite_at))
            self._steps.assign_add(1)
            return loss

        return step


def fit(
    stage: Stage,
    recipe: Recipe,
    checkpoints: Checkpoints,
    text: str,
    *,
    earlier: State | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda _: None,
) -> State:
    """Train a stage; where it was interrupted before, from there on.

    Parameters
    ----------
    earlier: the stage before, whose best weights fit `stage.model`: they stay the best until an epoch is better.
    on_epoch: told each epoch's row of the history, when it ends.

    Returns
    -------
    The state after the last epoch. The model carries the best weights: highest on what the recipe monitors, then lowest
    validation loss; `best_epoch` is 0 where those are the earlier stage's.

    Raises
    ------
    GateError
        when the loss is no longer a finite number.
    InterruptedWorkError
        when the process was asked to end; a checkpoint was written.
    """
    trainer = Trainer(stage.model, stage.prepare, recipe, recipe.epochs * stage.steps)
    state = State() if earlier is None else State(score=earlier.score, best=earlier.best)
    _restore(stage, trainer, checkpoints, state)
    while state.epoch < recipe.epochs and not recipe.out_of_patience(state.epoch - state.best_epoch):
        row = _epoch(stage, trainer, recipe, checkpoints, state, text)
        state.history.append(row)
        on_epoch(row)
        state.epoch, state.step = state.epoch + 1, 0
        trainer.begin_epoch()
        _keep(stage, trainer, checkpoints, state)
        end_if_asked(text)
    stage.model.set_weights(state.best)
    return state


def forget(stages: Sequence[tuple[str, State]], checkpoints: Checkpoints) -> None:
    """Remove the checkpoints of stages: their model is written."""
    for name, state in stages:
        checkpoints.remove(name, _best_name(name, state.best_epoch))


def _epoch(stage: Stage, trainer: Trainer, recipe: Recipe, checkpoints: Checkpoints, state: State, text: str) -> dict[str, Any]:
    """Train what is left of an epoch, judge it, and take its weights where they are the best so far."""
    began, first, looked = time.monotonic(), state.step, time.monotonic()
    told = f"{text}: epoch {state.epoch + 1}/{recipe.epochs}"
    for batch in _prefetched(stage, state.epoch, first):
        trainer.step(*batch)
        state.step += 1
        if state.step == stage.steps or time.monotonic() - looked >= _BETWEEN_LOOKS:
            looked = time.monotonic()
            loss = trainer.mean_loss(state.step, text, state.epoch)
            progress(f"{told}, loss {loss:.3f}", state.epoch * stage.steps + state.step, recipe.epochs * stage.steps)
        if state.step < stage.steps and checkpoints.due():
            trainer.mean_loss(state.step, text, state.epoch)
            _keep(stage, trainer, checkpoints, state)
            end_if_asked(text)
    loss, seconds = trainer.mean_loss(stage.steps, text, state.epoch), time.monotonic() - began
    with trainer.averaged():
        row: dict[str, Any] = {
            "stage": stage.name,
            "epoch": state.epoch + 1,
            "loss": loss,
            **_judge("train", stage.train),
            **_judge("validation", stage.validation),
            "learning_rate": trainer.learning_rate,
            "seconds": seconds,
            "images_per_second": (stage.steps - first) * stage.images / seconds,
        }
        score = (row[f"validation_{recipe.monitor}"], -row["validation_loss"])
        if score > state.score:
            state.score, state.best_epoch = score, state.epoch + 1
            state.best = stage.model.get_weights()
    return row


def _prefetched(stage: Stage, epoch: int, first: int) -> Any:
    """The rest of an epoch's batches, made ready in the background and, on a GPU, moved there before they are needed."""
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    parts = (part for batch in stage.batches(epoch, first) for part in _parted(batch, stage.images, replicas))
    part = next(parts, None)
    if part is None:
        return ()
    signature = tuple(tf.TensorSpec(array.shape, array.dtype) for array in part)
    ready = tf.data.Dataset.from_generator(lambda: itertools.chain([part], parts), output_signature=signature)
    if replicas > 1:
        return strategy.distribute_datasets_from_function(lambda _: ready.prefetch(PREFETCHED * replicas))
    if tf.config.list_logical_devices("GPU"):
        return ready.apply(tf.data.experimental.prefetch_to_device("/GPU:0", PREFETCHED))
    return ready.prefetch(PREFETCHED)


def _parted(batch: Sequence[npt.NDArray[Any]], images: int, replicas: int) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Each replica's part of a batch; of an array with an entry for each image and then for each one's partner, of both."""
    share = images // replicas
    for start in range(0, share * replicas, share):
        yield tuple(
            np.concatenate([side[start : start + share] for side in np.split(array, len(array) // images)]) for array in batch
        )


def _judge(name: str, judged: Judged) -> dict[str, float]:
    """Loss (nats), balanced accuracy and macro AUROC of judged images."""
    logits, labels = judged.logits(), judged.labels
    ones = np.ones((1, len(labels)))
    counts = confusion_counts(logits.argmax(axis=1), labels, ones, logits.shape[1])
    return {
        f"{name}_loss": float(losses(logits, labels)["nll"].mean()),
        f"{name}_balanced_accuracy": float(balanced_accuracy(counts)[0]),
        f"{name}_auroc": float(macro(ranked(softmax(logits), labels, ones)["auroc"])[0]),
    }


def _schedule(recipe: Recipe, steps: int) -> Any:
    """The learning rate: constant, or up linearly and then down along a cosine (Loshchilov and Hutter, ICLR 2017)."""
    import keras

    if not recipe.cosine:
        return recipe.learning_rate
    rising = min(round(recipe.warm_up * steps), steps - 1)
    if not rising:
        return keras.optimizers.schedules.CosineDecay(recipe.learning_rate, steps)
    return keras.optimizers.schedules.CosineDecay(
        recipe.learning_rate / (rising + 1), steps - rising, warmup_target=recipe.learning_rate, warmup_steps=rising
    )


def _best_name(stage: str, epoch: int) -> str:
    return f"{stage}-best-{epoch}"


def _restore(stage: Stage, trainer: Trainer, checkpoints: Checkpoints, state: State) -> None:
    kept = checkpoints.read(stage.name)
    if kept is None:
        return
    told = kept.told
    best = checkpoints.read(_best_name(stage.name, told["best_epoch"])) if told["best_epoch"] else None
    if told["best_epoch"] and best is None:
        return
    for position, variable in enumerate(trainer.variables):
        variable.assign(kept.arrays[str(position)])
    state.epoch, state.step, state.history = told["epoch"], told["step"], told["history"]
    state.score, state.best_epoch = tuple(told["score"]), told["best_epoch"]
    if best is not None:
        state.best = [best.arrays[str(position)] for position in range(len(best.arrays))]


def _keep(stage: Stage, trainer: Trainer, checkpoints: Checkpoints, state: State) -> None:
    """Write a checkpoint: first the best weights, if they are new, then the state that names them, then the older go."""
    new_best = state.step == 0 and state.best_epoch == state.epoch
    if new_best:
        checkpoints.write(_best_name(stage.name, state.best_epoch), _numbered(state.best), {})
    told = {
        "epoch": state.epoch,
        "step": state.step,
        "score": state.score,
        "best_epoch": state.best_epoch,
        "history": state.history,
    }
    checkpoints.write(stage.name, _numbered(trainer.variables), told)
    if new_best:
        checkpoints.remove(*(_best_name(stage.name, epoch) for epoch in range(1, state.best_epoch)))


def _numbered(values: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
    return {str(position): _array(value) for position, value in enumerate(values)}


def _array(value: Any) -> npt.NDArray[Any]:
    """A variable of Keras or TensorFlow, mirrored or not, or an array, as an array."""
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)
