"""Transfer learning in stages, what a step minimises, following in MLflow, and training that is ended and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermaflow import contracts
from dermaflow.architectures import (
    ARCHITECTURES,
    BACKBONE,
    Architecture,
    build_model,
    feature_extractor,
    freeze_batch_norms,
    split_at,
    summary,
)
from dermaflow.architectures import symmetric as symmetric_model
from dermaflow.classes import HAM10000_CLASSES
from dermaflow.errors import InputError
from dermaflow.params import FineTuneParams, MixupParams, RegisterParams, load_params
from dermaflow.registry import connect
from tests.unit.test_train import params, planned, symmetric, train_in
from tests.workspace import ROOT


def tuned(architecture: str, block: str, **changes):
    """Parameters that tune from a block on, one epoch of each stage unless said otherwise."""
    stage = FineTuneParams(
        blocks={architecture: block},
        epochs=changes.pop("tune_epochs", 1),
        members=changes.pop("members", 1),
        learning_rate=1e-4,
        warm_up=0.1,
    )
    return params(**{"epochs": 1, "head_epochs": 1, "fine_tune": stage, **changes})


@pytest.mark.parametrize("architecture", ["resnet50", "xception"])
def test_a_model_cut_before_any_block_is_the_same_model(architecture: str):
    model = build_model(architecture, classes=7, size=72, dropout=0.2, seed=1)
    images = np.random.default_rng(0).integers(0, 256, (2, 72, 72, 3)).astype(np.float32)
    whole, trained = model(images).numpy(), 0
    for block in ARCHITECTURES[architecture].blocks:  # from the last to the first
        prefix, rest, tail = split_at(model, block)
        np.testing.assert_array_equal(tail(prefix(images)).numpy(), whole)
        np.testing.assert_array_equal(rest(prefix(images)).numpy(), feature_extractor(model)(images).numpy())
        assert len(tail.trainable_variables) > trained
        trained = len(tail.trainable_variables)


@pytest.mark.parametrize(
    ("architecture", "size", "parts", "last"),
    [
        ("cnn", 72, ("conv1", "pool4", "flatten", "dense"), []),
        ("resnet50", 72, ("conv1", "conv2_block1", "conv4_block4", "conv5_block3"), [2048]),
        ("xception", 72, ("block1", "block13", "block14"), [2048]),
    ],
)
def test_a_models_summary_counts_every_parameter_once_block_by_block(architecture, size, parts, last):
    model = build_model(architecture, classes=7, size=size, dropout=0.2, seed=1)
    for whole, times in ((model, 1), (symmetric_model(model, 2), 1)):
        rows = summary(whole)
        assert sum(row["parameters"] for row in rows) == model.count_params() * times
        names = [row["part"] for row in rows]
        assert set(parts) <= set(names)
        assert len(names) < 45
    by_part = {row["part"]: row for row in summary(model)}
    assert by_part["logits"] == {
        "part": "logits",
        "kind": "Dense",
        "output": [7],
        "parameters": by_part["logits"]["parameters"],
    }
    if last:
        assert by_part["dropout"]["output"] == last
        assert "layers" in by_part[parts[-1]]["kind"]


def test_tuning_from_a_block_changes_what_is_after_it_and_nothing_before(prepared: Path, tmp_path: Path):
    """The frozen prefix and every BatchNormalization, statistics included, stay as they were."""
    import keras

    info = train_in(prepared, tmp_path, "resnet50", tuned("resnet50", "conv5_block3"))
    assert info["tuned_from"] == "conv5_block3"
    assert info["backbone_frozen"]
    history = pd.read_parquet(tmp_path / "history/history.parquet")
    assert list(history["stage"]) == ["head", "blocks"]
    assert list(history["epoch"]) == [1, 2]
    assert info["kept_epochs"] in ([1], [2])
    before = build_model("resnet50", classes=7, size=72, dropout=0.2, seed=params().seed).get_layer(BACKBONE)
    after = keras.saving.load_model(tmp_path / "model/model.keras").get_layer(BACKBONE)
    changed = {
        old.name
        for old, new in zip(before.layers, after.layers, strict=True)
        if any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(old.weights, new.weights, strict=True))
    }
    kept_head = info["kept_epochs"][-1] == 1
    assert changed == (set() if kept_head else {f"conv5_block3_{number}_conv" for number in (1, 2, 3)})


def test_members_are_tuned_apart_and_the_model_answers_with_their_mean(prepared: Path, tmp_path: Path):
    """They share the layers before the block, begin alike and see other draws; one model is saved, loaded and judged."""
    import keras

    from dermaflow.dataset import Dataset

    info = train_in(
        prepared, tmp_path, "resnet50", tuned("resnet50", "conv5_block3", members=2, tune_epochs=2, monitor="auroc")
    )
    history = pd.read_parquet(tmp_path / "history/history.parquet")
    assert list(history["stage"]) == ["head", "blocks", "blocks", "blocks-2", "blocks-2"]
    assert list(history["epoch"]) == [1, 2, 3, 4, 5]
    assert len(info["kept_epochs"]) == 2
    own = build_model("resnet50", classes=7, size=72, dropout=0.2, seed=params().seed)
    tail = split_at(own, "conv5_block3")[2]
    assert info["parameters"] == own.count_params() + tail.count_params()
    assert sum(row["parameters"] for row in info["layers"]) == info["parameters"]

    model = keras.saving.load_model(tmp_path / "model/model.keras")
    table = pd.read_parquet(tmp_path / "history" / contracts.VALIDATION_FILE)
    dataset = Dataset.open(prepared / "ingest/dataset")
    images = dataset.images(dataset.rows_of(table["image_id"])).astype(np.float32)
    seen = model.get_layer("resnet50_prefix")(images)
    first, second = (np.asarray(model.get_layer(f"member_{number}")(seen)) for number in (1, 2))
    told = table[contracts.logit_columns(HAM10000_CLASSES)].to_numpy()
    np.testing.assert_allclose(told, (first + second) / 2, atol=2e-3)
    assert (np.abs(first - second).max() > 1e-3) or info["kept_epochs"] == [1, 1]


def test_features_of_the_prefix_are_computed_once(prepared: Path, tmp_path: Path):
    train_in(prepared, tmp_path, "resnet50", tuned("resnet50", "conv5_block3"))
    blocks = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert {np.load(path, mmap_mode="r").dtype.name for path in blocks} == {"float32", "float16"}
    train_in(prepared, tmp_path, "resnet50", tuned("resnet50", "conv5_block3", dropout={"resnet50": 0.5}))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")} == blocks


def test_the_heads_features_come_from_the_prefix_and_are_those_of_the_views(prepared: Path, tmp_path: Path):
    """Of each view as the training step would draw it; kept as float16 between the two parts: 11 bits."""
    from components.train.material import gather
    from components.train.stages import Blocks
    from dermaflow.augmentation import NUMBERS, transform

    plan = planned(prepared, tmp_path / "plan", MixupParams(alpha=0.2, space="features", fixed_mixes=0), feature_views=3)
    material = gather(prepared / "ingest/dataset", prepared / "split/splits", plan, prepared / "segment/masks", params())
    model = build_model("resnet50", classes=7, size=72, dropout=0.5, seed=1)
    features = Blocks(model, material, "conv5", tmp_path / "cache", "float32").backbone_features.train()
    assert len(features) == 3 * len(material.train_rows) == len(material.plan)
    view = material.plan.iloc[:6]  # of two images: as they are, and two more views each
    pixels = transform(
        material.inputs(material.dataset.rows_of(view["image_id"])), *(view[name].to_numpy() for name in NUMBERS)
    )
    expected, found = feature_extractor(model)(pixels).numpy(), features.take(np.arange(6))
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.01 * expected.std())
    assert np.abs(found[0] - found[1]).max() > 0.1 * expected.std(), "a view is another image"


def test_every_layer_is_tuned_from_images_with_batch_norms_held(prepared: Path, tmp_path: Path):
    import keras

    weights = tmp_path / "notop.weights.h5"
    source = build_model("resnet50", classes=7, size=72, dropout=0.0, seed=3).get_layer(BACKBONE)
    source.save_weights(weights)
    info = train_in(
        prepared, tmp_path, "resnet50", tuned("resnet50", "all", weights={"resnet50": str(weights)}, monitor="auroc")
    )
    assert not info["backbone_frozen"]
    assert not info["pipeline_check"]
    assert list(pd.read_parquet(tmp_path / "history/history.parquet")["stage"]) == ["head", "whole"]
    after = keras.saving.load_model(tmp_path / "model/model.keras").get_layer(BACKBONE)
    np.testing.assert_array_equal(after.get_layer("conv1_bn").moving_mean, source.get_layer("conv1_bn").moving_mean)
    if info["kept_epochs"][-1] == 2:
        assert (np.asarray(after.get_layer("conv1_conv").kernel) != np.asarray(source.get_layer("conv1_conv").kernel)).any()


def test_held_batch_norms_do_not_move_when_they_are_called_in_training():
    model = build_model("resnet50", classes=3, size=32, dropout=0.0, seed=1)
    freeze_batch_norms(model)
    before = [np.asarray(value) for value in model.non_trainable_variables]
    model(np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32), training=True)
    for old, new in zip(before, model.non_trainable_variables, strict=True):
        if new.name in ("moving_mean", "moving_variance"):
            np.testing.assert_array_equal(old, np.asarray(new))


@pytest.mark.parametrize("loss", ["class_weights", "logit_adjustment"])
def test_the_loss_is_the_formula(loss: str):
    """One step's loss on known logits, against numpy."""
    import keras

    from components.train.loop import Trainer
    from components.train.recipe import Recipe

    rng = np.random.default_rng(1)
    shares, logits = np.array([0.7, 0.2, 0.1]), rng.normal(size=(4, 3)).astype(np.float32)
    vectors = rng.dirichlet(np.ones(3), 4).astype(np.float32)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(3, kernel_initializer="identity")(inputs))
    recipe = Recipe(1, 0.001, "train.learning_rate", shares, loss=loss, label_smoothing=0.1)
    step = Trainer(model, lambda *batch: batch, recipe, 1).step
    import tensorflow as tf

    told = float(step(tf.constant(logits), tf.constant(vectors)))
    seen = logits + np.log(shares) if loss == "logit_adjustment" else logits
    log_p = seen - np.log(np.exp(seen).sum(1, keepdims=True))
    each = -((vectors * 0.9 + 0.1 / 3) * log_p).sum(1)
    if loss == "class_weights":
        each *= vectors @ (1 / (3 * shares))
    assert told == pytest.approx(each.mean(), rel=1e-5)


def test_the_rate_rises_and_falls_along_a_cosine():
    import keras

    from components.train.loop import Trainer
    from components.train.recipe import Recipe

    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    recipe = Recipe(1, 0.01, "train.fine_tune.learning_rate", np.array([0.5, 0.5]), warm_up=0.2, cosine=True)
    trainer = Trainer(model, lambda *batch: batch, recipe, 100)
    rates = []
    import tensorflow as tf

    for _ in range(100):
        rates.append(trainer.learning_rate)
        trainer.step(tf.zeros((1, 2)), tf.constant([[1.0, 0.0]]))
    assert np.argmax(rates) == 20
    assert max(rates) == pytest.approx(0.01, rel=1e-6)
    assert (np.diff(rates[:21]) > 0).all()
    assert (np.diff(rates[20:]) < 0).all()
    assert 0 < rates[0] < 0.001
    assert rates[70] == pytest.approx(0.01 * (1 + np.cos(np.pi * 50 / 80)) / 2, rel=1e-4)


def test_training_stops_when_patience_is_over_and_averages_are_what_is_kept(prepared: Path, tmp_path: Path):
    info = train_in(prepared, tmp_path, "resnet50", params(head_epochs=60, patience=2, average=0.9))
    history = pd.read_parquet(tmp_path / "history/history.parquet")
    assert len(history) == info["kept_epochs"][-1] + 2 < 60
    best = history.loc[history["epoch"] == info["kept_epochs"][-1], "validation_balanced_accuracy"].iloc[0]
    assert best == history["validation_balanced_accuracy"].max()


def test_two_remedies_at_a_time_are_refused():
    both = load_params("default", ["train.loss=class_weights"], ROOT)
    with pytest.raises(
        InputError, match=r"train\.loss=class_weights balances the classes, and so does augment\.balance=sampler"
    ):
        both.train.require_balance(both.augment)
    halves = load_params("default", ["train.loss=class_weights", "augment.balance=square_root"], ROOT)
    halves.train.require_balance(halves.augment)


ENDED = """
import sys
from pathlib import Path
from dermaflow.progress import step
from tests.unit import test_train_stages as here
from tests.unit.test_train import train_in
run, target, architecture = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
settings = here.SETTINGS[architecture].model_copy(update={"checkpoint_seconds": 0.0})
with step("train"):
    train_in(run, target, architecture, settings, register=here.followed_in(target))
"""
SETTINGS = {"cnn": params(epochs=3), "resnet50": tuned("resnet50", "conv5_block3", tune_epochs=2, head_epochs=2)}


def followed_in(folder: Path) -> RegisterParams:
    """A registry of its own."""
    return load_params("default", [f"register.tracking_uri=sqlite:///{folder}/mlflow.db"], ROOT).register_


def ended(prepared: Path, target: Path, architecture: str, how: signal.Signals, state: str) -> int:
    """Start a training, end it once a checkpoint within an epoch of `state` is there; its exit code."""
    from tensorflow.python.framework.test_util import IsMklEnabled

    command = [sys.executable, "-c", ENDED, str(prepared), str(target), architecture]
    same = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": str(int(IsMklEnabled()))}  # as this process: it is to do the same sums
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=same)
    deadline = time.monotonic() + 240
    while not list(target.rglob(state)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(how)
    return process.wait()


@pytest.mark.parametrize(
    ("architecture", "how", "state"),
    [("cnn", signal.SIGTERM, "whole.npz"), ("cnn", signal.SIGKILL, "whole.npz"), ("resnet50", signal.SIGKILL, "blocks.npz")],
)
def test_training_ended_within_an_epoch_goes_on_and_ends_with_the_same_weights(
    prepared: Path, tmp_path: Path, architecture: str, how: signal.Signals, state: str
):
    """And in MLflow it is one run, with each epoch of both stages once."""
    undisturbed = train_in(prepared, tmp_path / "whole", architecture, SETTINGS[architecture])
    folder = tmp_path / "ended"
    folder.mkdir()
    code = ended(prepared, folder, architecture, how, state)
    assert code == (75 if how == signal.SIGTERM else -9)
    assert not (folder / "model").exists()
    assert list(folder.rglob(state)), "training ended before it could be ended"
    gone_on = train_in(prepared, folder, architecture, SETTINGS[architecture], register=followed_in(folder))
    assert gone_on["weights_digest"] == undisturbed["weights_digest"]
    assert gone_on["kept_epochs"] == undisturbed["kept_epochs"]
    assert not list((folder / "state").rglob("*.npz")), "training state is left behind"
    history = [pd.read_parquet(tmp_path / name / "history/history.parquet")["loss"] for name in ("whole", "ended")]
    np.testing.assert_array_equal(*history)

    client = connect(followed_in(folder).tracking_uri)
    (run,) = client.search_runs([client.get_run(gone_on["run"]).info.experiment_id])
    assert run.info.status == "FINISHED"
    told = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in told] == list(range(1, len(history[1]) + 1))
    np.testing.assert_allclose([point.value for point in told], history[1])


def test_checkpoints_and_weights_in_s3(s3, monkeypatch, prepared: Path, tmp_path: Path):
    """Weights are read from a bucket, and a training whose folder is lost goes on from its checkpoint in the bucket."""
    from components.train.checkpoints import Checkpoints
    from dermaflow.storage import Bucket
    from dermaflow.weights import weights_of

    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DERMAFLOW_HOME", str(tmp_path / "home"))
    s3.make_bucket("training")
    source = build_model("resnet50", classes=7, size=72, dropout=0.0, seed=3).get_layer(BACKBONE)
    (tmp_path / "weights").mkdir()
    source.save_weights(tmp_path / "weights/notop.weights.h5")
    s3.upload(tmp_path / "weights", "training", "weights")
    stored = {"weights": {"resnet50": "s3://training/weights/notop.weights.h5"}}
    assert (
        weights_of(params(**stored), "resnet50").digest
        == weights_of(params(weights={"resnet50": str(tmp_path / "weights/notop.weights.h5")}), "resnet50").digest
    )
    with pytest.raises(InputError, match=r"train\.weights\.resnet50: s3://training/none\.h5: there is no such object"):
        weights_of(params(weights={"resnet50": "s3://training/none.h5"}), "resnet50")

    kept = Checkpoints("s3://training/state", "key", 0.0)
    arrays = {"0": np.random.default_rng(0).normal(size=(3, 4)), "1": np.float32(0.1)}
    kept.write("whole", arrays, {"epoch": 2})
    read = Checkpoints("s3://training/state", "key", 0.0).read("whole")
    assert read is not None
    assert read.told == {"epoch": 2}
    for name, value in arrays.items():
        np.testing.assert_array_equal(read.arrays[name], value)
    assert Checkpoints("s3://training/state", "other", 0.0).read("whole") is None
    kept.remove("whole")
    assert kept.read("whole") is None
    info = train_in(prepared, tmp_path, "resnet50", params(head_epochs=1, checkpoints="s3://training/state", **stored))
    assert info["weights"]["origin"] == "notop.weights.h5"
    assert not list(Bucket("training", 10.0, 1).objects("state"))


def test_a_damaged_checkpoint_is_told_and_not_used(tmp_path: Path, capfd):
    from components.train.checkpoints import Checkpoints

    kept = Checkpoints(tmp_path, "key", 0.0)
    kept.write("whole", {"0": np.zeros(1000)}, {})
    path = tmp_path / "key/whole.npz"
    path.write_bytes(path.read_bytes()[:500])
    assert kept.read("whole") is None
    assert "is damaged" in capfd.readouterr().err


MIRRORED = """
import sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from pathlib import Path
from components.train import stages
from components.train.checkpoints import Checkpoints
from components.train.loop import fit
from components.train.material import gather
from components.train.recipe import of_images
from dermaflow.architectures import build_model
from tests.unit.test_train import params
run, target, replicas = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
material = gather(run / "ingest/dataset", run / "split/splits", Path(sys.argv[4]), run / "segment/masks", params(epochs=2))
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]) if replicas == 2 else tf.distribute.get_strategy()
with strategy.scope():
    model = build_model("cnn", classes=7, size=72, dropout=0.0, seed=1)
    recipe = of_images(material.params, "cnn", shares=material.shares)
    state = fit(stages.whole(model, material), recipe, Checkpoints(target, "key", 1e9), "cnn")
logits = stages.whole(model, material).validation.logits()
np.savez(target / "losses.npz", losses=[row["loss"] for row in state.history], logits=logits)
"""


def test_two_devices_come_to_what_one_does(prepared: Path, tmp_path: Path):
    """MirroredStrategy on two logical processors; with partners drawn for each image, whose halves must stay together."""
    plan, found = planned(prepared, tmp_path / "plan", balance="balanced_mixup", feature_views=1), []
    for replicas in (1, 2):
        target = tmp_path / str(replicas)
        target.mkdir()
        subprocess.run(
            [sys.executable, "-c", MIRRORED, str(prepared), str(target), str(replicas), str(plan)],
            cwd=ROOT, check=True, capture_output=True,
        )  # fmt: skip
        found.append(np.load(target / "losses.npz"))
    np.testing.assert_allclose(found[0]["losses"], found[1]["losses"], rtol=1e-3)
    np.testing.assert_allclose(found[0]["logits"], found[1]["logits"], atol=0.05)


def test_training_can_be_followed_in_mlflow_while_it_runs(prepared: Path, tmp_path: Path):
    info = train_in(prepared, tmp_path, "resnet50", params(head_epochs=3), register=followed_in(tmp_path))
    client = connect(followed_in(tmp_path).tracking_uri)
    run = client.get_run(info["run"])
    assert run.info.status == "FINISHED"
    assert run.data.params["architecture"] == "resnet50"
    assert run.data.params["fine_tune.epochs"] == "8"
    history = pd.read_parquet(tmp_path / "history/history.parquet")
    for name in ("loss", "train_loss", "validation_balanced_accuracy", "learning_rate", "images_per_second"):
        told = client.get_metric_history(info["run"], name)
        assert [point.step for point in told] == [1, 2, 3]
        np.testing.assert_allclose([point.value for point in told], history[name])
    assert "history/curves.png" in [entry.path for entry in client.list_artifacts(info["run"], "history")]


ENVIRONMENT_SET = """
import os, sys, threading
told = []
def hear(event, given):
    if event in ("os.putenv", "os.unsetenv") and (event == "os.unsetenv" or given[0].decode() not in os.environ):
        told.append((given[0].decode(), threading.current_thread().name))
sys.addaudithook(hear)
from pathlib import Path
from dermaflow.progress import step
with step("train"):
    from components.train.checkpoints import Checkpoints
    from components.train.follow import Follower
    from dermaflow.params import load_params
    params, here = load_params("phantom", [], Path(sys.argv[1])), Path.cwd()
    (here / "history").mkdir()
    (here / "history" / "curves.png").write_bytes(b"picture")
    with Follower(params.register_, "cnn", None, params.train, "key", Checkpoints(str(here / "state"), "key", 1)) as follower:
        follower.epoch(1, {"loss": 1.0, "stage": "whole", "epoch": 1})
        assert follower.run_id
        follower.finish(here / "history")
print([name for name, thread in told if thread != "MainThread"])
"""


def test_no_thread_adds_to_the_environment_while_tensorflow_reads_it(tmp_path: Path):
    """setenv in one thread and getenv in another are a segmentation fault now and then: seen in a training."""
    command = [sys.executable, "-c", ENVIRONMENT_SET, str(ROOT)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_registry_that_does_not_answer_does_not_end_the_training(prepared: Path, tmp_path: Path, capfd):
    (tmp_path / "a-file").touch()
    info = train_in(prepared, tmp_path, "resnet50", params(head_epochs=1), register=followed_in(tmp_path / "a-file"))
    assert info["run"] is None
    assert "training can not be followed in MLflow" in capfd.readouterr().err


def test_the_temperature_is_that_of_the_models_own_validation_logits(prepared: Path, tmp_path: Path):
    from dermaflow.calibration import fit_temperature
    from dermaflow.dataset import Dataset
    from dermaflow.predict import predict_logits

    info = train_in(prepared, tmp_path, "cnn", params(epochs=2))
    dataset, splits = Dataset.open(prepared / "ingest/dataset"), contracts.read_splits(prepared / "split/splits")
    rows = dataset.rows_of(splits.loc[splits["split"] == "validation", "image_id"])
    logits = predict_logits(tmp_path / "model", dataset, rows, None)
    assert info["temperature"] == pytest.approx(fit_temperature(logits, dataset.labels[rows]), rel=1e-3)


def test_an_adjusted_model_answers_as_the_plain_one_less_the_logarithms_of_the_classes_shares(prepared: Path, tmp_path: Path):
    from dermaflow.dataset import Dataset
    from dermaflow.predict import predict_logits

    tables, columns, tau = {}, contracts.logit_columns(HAM10000_CLASSES), {}
    for adjustment in ("none", 0.5, "validation"):
        folder = tmp_path / str(adjustment)
        tau[adjustment] = train_in(prepared, folder, "resnet50", params(adjustment=adjustment))["adjustment"]
        tables[adjustment] = pd.read_parquet(folder / "history" / contracts.VALIDATION_FILE)
    dataset, rows = Dataset.open(prepared / "ingest/dataset"), tables["validation"]
    splits = contracts.read_splits(prepared / "split/splits")
    counts = splits.loc[splits["split"] == "train", "label"].value_counts()[list(HAM10000_CLASSES)].to_numpy()
    assert tau["none"] == 0
    assert tau[0.5] == 0.5
    assert tau["validation"] not in (0, 0.5)
    for adjustment in (0.5, "validation"):
        shifted = tables["none"][columns].to_numpy() - tau[adjustment] * np.log(counts / counts.sum())
        assert tables[adjustment][columns].to_numpy() == pytest.approx(shifted, abs=1e-4)
    answers = predict_logits(tmp_path / "validation/model", dataset, dataset.rows_of(rows["image_id"]), None)
    assert rows[columns].to_numpy() == pytest.approx(answers, abs=1e-3)


def test_a_model_answers_with_the_mean_over_the_symmetries_of_an_image(prepared: Path, tmp_path: Path):
    """In the order of the plan's codes; what is judged on validation, saved and loaded is that model."""
    from dermaflow.dataset import Dataset
    from dermaflow.predict import load_model

    info = train_in(prepared, tmp_path, "cnn", params(epochs=1, symmetries=8))
    model, _ = load_model(tmp_path / "model")
    rows = pd.read_parquet(tmp_path / "history" / contracts.VALIDATION_FILE)
    dataset = Dataset.open(prepared / "ingest/dataset")
    image = dataset.images(dataset.rows_of(rows["image_id"].iloc[:1]))[0]
    single = next(layer for layer in model.layers if layer.name == "cnn")
    views = np.stack([symmetric(image, code) for code in range(8)])
    answers = single(views).numpy()
    assert np.ptp(answers, axis=0).min() > 0
    assert model(image[None].astype(np.float32)).numpy()[0] == pytest.approx(answers.mean(axis=0), abs=1e-4)
    columns = contracts.logit_columns(HAM10000_CLASSES)
    assert rows[columns].iloc[0].to_numpy(float) == pytest.approx(answers.mean(axis=0), abs=1e-3)
    assert info["parameters"] == single.count_params()


def test_mixed_precision_gives_a_float32_model_with_float32_logits(prepared: Path, tmp_path: Path):
    import keras

    info = train_in(prepared, tmp_path, "cnn", params(epochs=1, precision="mixed_bfloat16"))
    assert info["device"]["precision"] == "mixed_bfloat16"
    model = keras.saving.load_model(tmp_path / "model/model.keras")
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert model.output.dtype == "float32"


def wide(images, _shape):
    """More than any machine's memory: every pixel four million times."""
    import keras

    maps = keras.layers.Conv2D(2, 3)(images)
    return keras.ops.mean(keras.ops.tile(maps, (1, 2_000, 2_000, 1)), axis=(1, 2))


def test_an_architecture_is_one_function_in_one_place_and_memory_that_does_not_suffice_one_clear_error(
    prepared: Path, tmp_path: Path, monkeypatch
):
    """It appears in params, graph and command; this one asks for 2,500 GB, and so shows what running out of memory tells."""
    monkeypatch.setitem(ARCHITECTURES, "wide", Architecture(wide, "Wide", minimum_size=8, dropout=0.0))
    assert load_params("default", ["train.architectures=[wide]"], ROOT).train.architectures == ("wide",)
    with pytest.raises(InputError, match=r"memory does not suffice for a batch of 16 images .*lower train\.batch_size"):
        train_in(prepared, tmp_path, "wide", params(epochs=1))
    assert not (tmp_path / "model").exists()
    assert not list((tmp_path / "state").rglob("*.npz"))
