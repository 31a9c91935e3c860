"""Training: the study's architectures, the frozen backbone's features, resuming, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermaflow import contracts
from dermaflow.architectures import ARCHITECTURES, BACKBONE, HEAD, build_model, feature_extractor, load_backbone_weights
from dermaflow.artifacts import new_artifact
from dermaflow.dataset import Dataset
from dermaflow.errors import GateError, InputError
from dermaflow.params import MixupParams, RegisterParams, TrainParams, load_params
from tests.sources import MIXUP, augment_params
from tests.workspace import ROOT

PARAMETERS = {"cnn": 9_682_632, "resnet50": 23_604_104, "xception": 20_877_872}


def params(**changes) -> TrainParams:
    base = load_params("default", root=ROOT).train.model_copy(update={"epochs": 2, "head_epochs": 2, "batch_size": 16})
    return base.model_copy(update=changes)


def train_in(
    run: Path,
    target: Path,
    architecture: str,
    settings: TrainParams,
    *,
    plan: Path | None = None,
    splits: Path | None = None,
    register: RegisterParams | None = None,
) -> dict:
    """Train on a run's artifacts, or others in their place."""
    from components.train.core import Places, train

    inputs = run / "ingest/dataset", splits or run / "split/splits", plan or run / "augment/plan", run / "segment/masks"
    places = Places(target / "cache", target / "state")
    return train(*inputs, architecture, settings, target / "model", target / "history", places=places, register=register)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_studys_for_eight_classes_at_224(name: str):
    model = build_model(name, classes=8, size=224, dropout=0.5, seed=1)
    assert model.count_params() == PARAMETERS[name]
    assert model.output_shape == (None, 8)
    assert set(ARCHITECTURES) == set(PARAMETERS)


def test_inputs_are_normalised_as_keras_applications_asks():
    import keras

    image = np.random.default_rng(1).integers(0, 256, (1, 71, 71, 3)).astype(np.float32)
    for name, application in (("resnet50", keras.applications.resnet), ("xception", keras.applications.xception)):
        model = build_model(name, classes=7, size=71, dropout=0.0, seed=1)
        expected = model.get_layer(BACKBONE)(application.preprocess_input(image.copy()))
        features = keras.Model(model.input, model.get_layer(HEAD).input)(image)
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_published_weights_load_also_with_a_fourth_channel(tmp_path: Path):
    import keras

    published = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3), pooling="avg")
    published.save_weights(tmp_path / "notop.weights.h5")
    for channels in (3, 4):
        model = build_model("resnet50", classes=7, size=64, channels=channels, dropout=0.0, seed=2)
        load_backbone_weights(model, tmp_path / "notop.weights.h5")
        first = np.asarray(model.get_layer(BACKBONE).get_layer("conv1_conv").kernel)
        np.testing.assert_array_equal(first[:, :, :3], np.asarray(published.get_layer("conv1_conv").kernel))
    (tmp_path / "broken.h5").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"train\.weights\.resnet50: .*broken\.h5 does not fit"):
        load_backbone_weights(model, tmp_path / "broken.h5")


def test_a_head_folded_into_the_model_answers_as_it_did_on_features(finished_run: Path):
    info = contracts.read_info(finished_run / "train-resnet50/model", contracts.MODEL)
    history = contracts.read_info(finished_run / "train-resnet50/history", contracts.HISTORY)
    predictions = contracts.read_predictions(finished_run / "evaluate-resnet50/evaluation")
    validation = predictions[predictions["split"] == "validation"]
    logits = validation[contracts.logit_columns(info["classes"])].to_numpy()
    labels = np.array([info["classes"].index(label) for label in validation["label"]])
    loss = np.mean(
        np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - logits[np.arange(len(labels)), labels]
    )
    best = next(row for row in history["epochs"] if row["epoch"] == info["kept_epochs"][-1])
    assert loss == pytest.approx(best["validation_loss"], rel=1e-3)


def test_same_seed_same_weights_and_features_are_computed_once(prepared: Path, tmp_path: Path):
    first = train_in(prepared, tmp_path, "resnet50", params())
    blocks = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert blocks
    again = train_in(prepared, tmp_path, "resnet50", params())
    assert again["weights_digest"] == first["weights_digest"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")} == blocks
    assert first["pipeline_check"]
    assert not list((tmp_path / "state").rglob("*.npz"))  # no training state is left behind, or mistaken for a model


@pytest.mark.parametrize("mode", ["crop", "channel", "background_off"])
def test_masks_reach_the_network(prepared: Path, tmp_path: Path, mode: str):
    from dermaflow.predict import predict_logits

    info = train_in(prepared, tmp_path, "cnn", params(masks=mode, epochs=1))
    assert info["channels"] == (4 if mode == "channel" else 3)
    dataset = Dataset.open(prepared / "ingest/dataset")
    rows = np.arange(4, dtype=np.int64)
    assert predict_logits(tmp_path / "model", dataset, rows, prepared / "segment/masks").shape == (4, 7)
    with pytest.raises(InputError, match="give the Masks artifact"):
        predict_logits(tmp_path / "model", dataset, rows, None)


def planned(run: Path, target: Path, mixup: MixupParams = MIXUP, splits: Path | None = None, **changes) -> Path:
    """A plan for the run's splits, or other ones, with other augmentation parameters."""
    from components.augment.core import augment

    augment(run / "ingest/dataset", splits or run / "split/splits", augment_params(**changes), mixup, target)
    return target


def seen(run: Path, plan: Path, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The batches of an epoch as the network sees them."""
    from components.train.material import gather
    from components.train.stages import image_batches

    material = gather(run / "ingest/dataset", run / "split/splits", plan, run / "segment/masks", params())
    prepare, batches = image_batches(material)
    return [tuple(value.numpy() for value in prepare(*batch)) for batch in batches(epoch)]


@pytest.mark.parametrize("balance", ["sampler", "balanced_mixup"])
def test_two_runs_see_the_same_batches_and_one_that_goes_on_at_epoch_three_those_of_epoch_three(
    prepared: Path, tmp_path: Path, balance: str
):
    plan = planned(prepared, tmp_path / "plan", balance=balance)
    again = planned(prepared, tmp_path / "again", balance=balance)
    through = [seen(prepared, plan, epoch) for epoch in range(4)]
    gone_on = seen(prepared, again, 3)
    assert len(gone_on) > 1
    for (images, labels), (images_again, labels_again) in zip(through[3], gone_on, strict=True):
        assert images.shape == (16, 72, 72, 3)
        np.testing.assert_array_equal(images, images_again)
        np.testing.assert_array_equal(labels, labels_again)
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    assert (through[2][0][0] != through[3][0][0]).any(), "epochs differ"


@pytest.mark.parametrize("architecture", ["cnn", "resnet50"])
@pytest.mark.parametrize("balance", ["balanced_mixup", "target_per_class"])
def test_each_remedy_against_imbalance_trains(prepared: Path, tmp_path: Path, architecture: str, balance: str):
    classes = Dataset.open(prepared / "ingest/dataset").classes
    targets = dict.fromkeys(classes, 5) if balance == "target_per_class" else {}
    plan = planned(prepared, tmp_path / "plan", balance=balance, targets=targets, feature_views=1)
    info = train_in(prepared, tmp_path, architecture, params(epochs=1, head_epochs=1), plan=plan)
    assert info["architecture"] == architecture
    loss = pd.read_parquet(tmp_path / "history/history.parquet")["loss"]
    assert np.isfinite(loss).all()


def test_a_frozen_backbone_sees_fixed_mixes_of_pixels_once(prepared: Path, tmp_path: Path, capfd):
    """Their features are those of the mixed pixels; a second run computes none of them again."""
    from components.train.frozen import FrozenFeatures
    from components.train.material import gather

    plan = planned(prepared, tmp_path / "plan", MixupParams(alpha=1.0, space="pixels", fixed_mixes=20), feature_views=1)
    info = train_in(prepared, tmp_path, "resnet50", params(head_epochs=2), plan=plan)
    assert info["mixup_space"] == "pixels, 20 fixed mixes"
    assert "features of the frozen layers, mixes" in capfd.readouterr().err
    again = train_in(prepared, tmp_path, "resnet50", params(head_epochs=2), plan=plan)
    assert "features of the frozen layers" not in capfd.readouterr().err
    assert again["weights_digest"] == info["weights_digest"]

    inputs = prepared / "ingest/dataset", prepared / "split/splits", plan, prepared / "segment/masks"
    material = gather(*inputs, params())
    model = build_model("resnet50", classes=7, size=72, channels=3, dropout=0.5, seed=1)
    features = FrozenFeatures(feature_extractor(model), material, tmp_path / "other", name="resnet50", precision="float32")
    first = material.mixes.iloc[0]
    rows = material.dataset.rows_of(pd.Series([first["image_a"], first["image_b"]]))
    own, other = (symmetric(image, first[f"symmetry_{side}"]) for image, side in zip(material.inputs(rows), "ab", strict=True))
    pixels = first["weight"] * own + (1 - first["weight"]) * other
    expected = feature_extractor(model)(pixels[None]).numpy()[0]
    np.testing.assert_allclose(features.mixes().all()[0], expected, rtol=1e-3, atol=1e-4)


def symmetric(image: np.ndarray, code: int) -> np.ndarray:
    """The image in one of the square's eight symmetries, float32."""
    image = image.transpose(1, 0, 2) if code & 4 else image
    image = image[::-1] if code & 2 else image
    return (image[:, ::-1] if code & 1 else image).astype(np.float32)


def test_a_plan_with_a_test_image_is_refused(prepared: Path, tmp_path: Path):
    splits = contracts.read_splits(prepared / "split/splits")
    plan = contracts.read_plan(prepared / "augment/plan")
    intruder = splits.loc[splits["split"] == "test", "image_id"].iloc[0]
    with new_artifact(tmp_path / "plan", contracts.PLAN) as folder:
        for name in ("plan.json", "mixes.parquet"):
            shutil.copy(prepared / "augment/plan" / name, folder)
        pd.concat([plan, plan.iloc[:1].assign(image_id=intruder)]).to_parquet(folder / "plan.parquet")
    with pytest.raises(InputError, match=f"{intruder} is not in the train split"):
        train_in(prepared, tmp_path, "cnn", params(), plan=tmp_path / "plan")


def test_what_can_not_be_trained_is_refused(prepared: Path, tmp_path: Path, monkeypatch):
    with pytest.raises(InputError, match="batch_size is 4000, but an epoch draws only 64 training images; lower it"):
        train_in(prepared, tmp_path, "cnn", params(batch_size=4000))
    with pytest.raises(InputError, match=r"train\.weights\.resnet50: no\.h5 is not a file"):
        train_in(prepared, tmp_path, "resnet50", params(weights={"resnet50": "no.h5"}))
    monkeypatch.setitem(ARCHITECTURES, "xception", replace(ARCHITECTURES["xception"], minimum_size=80))
    with pytest.raises(InputError, match="image_size is 72; xception needs at least 80 pixels a side"):
        train_in(prepared, tmp_path, "xception", params())
    for part in ("train", "validation"):
        splits = without(prepared / "split/splits", tmp_path / f"no-df-{part}", "df", part)
        plan = planned(prepared, tmp_path / f"plan-{part}", splits=splits)
        with pytest.raises(InputError, match=f"class df has no image in the {part} part"):
            train_in(prepared, tmp_path, "cnn", params(), plan=plan, splits=splits)
    assert not (tmp_path / "model").exists()


def without(splits: Path, target: Path, label: str, part: str) -> Path:
    """Splits that lack a class in one part."""
    table = contracts.read_splits(splits)
    with new_artifact(target, contracts.SPLITS) as folder:
        shutil.copy(splits / "splits.json", folder)
        table[(table["label"] != label) | (table["split"] != part)].to_parquet(folder / "splits.parquet", index=False)
    return target


def test_a_loss_that_is_no_number_stops_training(prepared: Path, tmp_path: Path, monkeypatch):
    """Of a network that takes the logarithm of negative numbers; nothing is written."""

    def broken(images, _shape):
        import keras

        return keras.layers.Flatten()(keras.ops.log(keras.layers.Rescaling(1.0, offset=-300.0)(images)))

    monkeypatch.setitem(ARCHITECTURES, "cnn", replace(ARCHITECTURES["cnn"], features=broken))
    with pytest.raises(GateError, match=r"cnn whole: the loss was not a finite number in epoch \d.*lower train\.learning_rate"):
        train_in(prepared, tmp_path, "cnn", params())
    assert not (tmp_path / "model").exists()


def test_history_tells_each_epoch(finished_run: Path):
    history = pd.read_parquet(finished_run / "train-cnn/history/history.parquet")
    assert list(history["epoch"]) == [1, 2]
    assert (history["images_per_second"] > 0).all()
    assert json.loads((finished_run / "train-cnn/history/history.json").read_text())["kept_epochs"] in ([1], [2])
