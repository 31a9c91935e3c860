"""The explain step: who is chosen, whether attributions add up and lie where they must, and what is written."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from components.explain import measures
from components.explain.pictures import Picture, draw_gallery
from components.explain.selection import choose_background, choose_images
from dermaflow import contracts
from dermaflow.artifacts import new_artifact, open_artifact, write_json
from dermaflow.dataset import MANIFEST_COLUMNS
from dermaflow.errors import InputError
from dermaflow.params import ExplainParams

CLASSES = ("mel", "nv", "vasc")
SIZE = 48
PARAMS = ExplainParams(images=5, background=6, seed=3)


# --- a run's artifacts, small but whole ---


def lesion_images(count, size=SIZE, channels=3):
    """Discs on skin, uint8 [count, size, size, channels], and their masks [count, size, size]; some off the centre."""
    rng = np.random.default_rng(0)
    images = np.empty((count, size, size, 3), np.uint8)
    masks = np.zeros((count, size, size), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        image[:] = (215, 170, 150)
        centre = tuple(int(size * place) for place in rng.uniform(0.35, 0.65, 2))
        radius = int(size * rng.uniform(0.15, 0.3))
        cv2.circle(image, centre, radius, rng.integers(20, 160, 3).tolist(), -1)
        cv2.circle(mask, centre, radius, 1, -1)
    images = cv2.GaussianBlur(images.reshape(-1, size, 3), (3, 3), 0).reshape(images.shape)
    noisy = np.clip(images + rng.normal(0, 6, images.shape), 0, 255).astype(np.uint8)
    return np.concatenate([noisy, masks[..., None] * np.uint8(255)], axis=-1)[..., :channels], masks


def table_of_images():
    """30 lesions, each of two images: 18 of them in train, 6 in validation, 6 in test; classes take turns."""
    rows = []
    for lesion, view in product(range(30), range(2)):
        rows.append(
            {
                "image_id": f"I{lesion:02d}{'ab'[view]}",
                "lesion_id": f"L{lesion:02d}",
                "label": CLASSES[lesion % 3],
                "split": "train" if lesion < 18 else "validation" if lesion < 24 else "test",
            }
        )
    return pd.DataFrame(rows)


def region_model(*, activation="relu"):
    """A network that looks at rows 8-23 and columns 24-39 alone."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(5)
    images = keras.Input((SIZE, SIZE, 3))
    x = layers.Rescaling(1 / 255)(images)
    x = layers.Cropping2D(((8, SIZE - 24), (24, SIZE - 40)))(x)
    x = layers.Conv2D(4, 3, padding="same")(x)
    x = keras.ops.sin(9 * x) if activation == "sin" else layers.ReLU()(x)
    x = layers.MaxPooling2D(2)(x)
    return keras.Model(images, layers.Dense(len(CLASSES))(layers.Flatten()(x)))


def write_run(folder, model, *, masks_mode="none"):
    """All artifacts that explain reads, as the other steps write them; gives their paths in explain's order."""
    table = table_of_images()
    images, masks = lesion_images(len(table))
    names = ("dataset", "splits", "masks", "model", "evaluation")
    dataset, splits, mask, network, evaluation = paths = [folder / name for name in names]

    manifest = pd.DataFrame(index=table.index, columns=list(MANIFEST_COLUMNS))
    manifest[["image_id", "lesion_id", "label"]] = table[["image_id", "lesion_id", "label"]]
    manifest["pixel_digest"] = [f"sha256:{row}" for row in table.index]
    manifest["has_truth"], manifest["shard"], manifest["row"] = False, 0, table.index
    with new_artifact(dataset, "dataset") as path:
        manifest.to_parquet(path / "manifest.parquet")
        np.save(path / "shard-00000.npy", images)
        info = {
            "class_order": CLASSES,
            "image_size": SIZE,
            "source": {"synthetic": True, "dvc_revision": None},
            "content_digest": "sha256:d",
        }
        write_json(path / "dataset.json", info)
    with new_artifact(splits, contracts.SPLITS) as path:
        table.to_parquet(path / "splits.parquet")
        write_json(path / "splits.json", {"digest": "sha256:s"})
    with new_artifact(mask, contracts.MASKS) as path:
        np.save(path / "mask-00000.npy", masks)
    with new_artifact(network, contracts.MODEL) as path:
        model.save(path / "model.keras")
        info = {"architecture": "cnn", "classes": CLASSES, "image_size": SIZE, "masks": masks_mode}
        write_json(path / "model.json", {**info, "weights_digest": "sha256:w"})
    judged = table[table["split"] != "train"].reset_index(drop=True)
    logits = model(images[-len(judged) :].astype(np.float32), training=False).numpy()
    with new_artifact(evaluation, contracts.EVALUATION) as path:
        predictions = pd.concat([judged, pd.DataFrame(logits, columns=contracts.logit_columns(CLASSES))], axis=1)
        predictions.to_parquet(path / "predictions.parquet")
        write_json(path / "metrics.json", {"model_digest": open_artifact(network, contracts.MODEL).digest})
    return paths


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose network looks at one region, and its explanation."""
    from components.explain.core import explain

    folder = tmp_path_factory.mktemp("run")
    paths = write_run(folder, region_model())
    return paths, explain(*paths, PARAMS, folder / "explanation"), folder / "explanation"


# --- choice ---


def predictions_of(table, *, wrong=()):
    """Logits that are right but for the images in `wrong`, which are taken for the next class."""
    logits = np.zeros((len(table), len(CLASSES)))
    for row, (image_id, label) in enumerate(zip(table["image_id"], table["label"], strict=True)):
        logits[row, (CLASSES.index(label) + (image_id in wrong)) % 3] = 1
    return pd.concat([table, pd.DataFrame(logits, columns=contracts.logit_columns(CLASSES), index=table.index)], axis=1)


def test_explained_images_come_from_test_and_then_from_validation_one_of_each_lesion():
    chosen = choose_images(predictions_of(table_of_images()), CLASSES, count=100, seed=1)
    assert chosen["split"].tolist() == ["test"] * 6 + ["validation"] * 6
    assert len(chosen) == chosen["lesion_id"].nunique() == 12


def test_classes_and_outcomes_take_turns():
    table = table_of_images()
    wrong = set(table.loc[table["lesion_id"].isin(["L24", "L25", "L27"]), "image_id"])  # both of mel, one of nv
    chosen = choose_images(predictions_of(table, wrong=wrong), CLASSES, count=6, seed=1)
    assert chosen["label"].tolist() == ["mel", "nv", "vasc"] * 2
    assert chosen["correct"].tolist() == [False, True, True, False, False, True]  # vasc has no wrong one
    assert chosen.loc[~chosen["correct"], "predicted"].tolist() == ["nv", "nv", "vasc"]


def test_the_choice_depends_on_the_seed_alone():
    predictions = predictions_of(table_of_images())
    shuffled = predictions.sample(frac=1, random_state=7)
    first, again, other = (
        choose_images(rows, CLASSES, count=9, seed=seed)["image_id"].tolist()
        for rows, seed in ((predictions, 1), (shuffled, 1), (predictions, 2))
    )
    assert first == again
    assert first != other


def test_background_is_training_images_one_of_each_lesion_classes_in_turn():
    background = choose_background(table_of_images(), CLASSES, count=7, seed=1)
    split_of = table_of_images().set_index("image_id")["split"]
    assert {split_of[image_id] for image_id in background["image_id"]} == {"train"}
    assert background["lesion_id"].is_unique
    assert background["label"].tolist() == [*CLASSES, *CLASSES, "mel"]


# --- attribution ---


def normalise_by(model, images):
    """Give the batch normalisations the statistics of some images: untrained ones let activations fade to nothing."""
    import keras

    parts = [model, *(layer for layer in model.layers if isinstance(layer, keras.Model))]
    for layer in (layer for part in parts for layer in part.layers):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images, training=True)


@pytest.mark.parametrize(
    ("architecture", "size", "channels", "tolerance"),
    [("cnn", 64, 3, 1e-3), ("resnet50", 64, 4, 1e-3), ("xception", 71, 3, 1e-2)],
)
def test_attributions_add_up_to_the_logit(architecture, size, channels, tolerance):
    from components.explain.attribution import LogitExplainer
    from dermaflow.architectures import build_model

    model = build_model(architecture, classes=7, size=size, channels=channels, dropout=0.5, seed=1)
    images = lesion_images(8, size, channels)[0].astype(np.float32)
    normalise_by(model, images)
    explainer = LogitExplainer(model, images[:2])
    for image, logit in ((images[4], 2), (images[5], 6)):
        value = float(explainer.logits(image[None])[0, logit])
        attribution = explainer.attribute(image, logit)
        assert attribution.shape == (size, size, channels)
        assert measures.additivity_error(attribution, value, explainer.base_logits[logit]) < tolerance


def test_a_pixel_that_the_model_can_not_see_gets_nothing():
    from components.explain.attribution import LogitExplainer

    images = lesion_images(4)[0].astype(np.float32)
    seen = np.zeros((SIZE, SIZE), bool)
    seen[8:24, 24:40] = True
    attribution = LogitExplainer(region_model(), images[:2]).attribute(images[3], 1)
    assert np.abs(attribution[~seen]).max() == 0
    assert np.abs(attribution[seen]).sum() > 0


def test_a_large_background_is_averaged_in_batches():
    from components.explain.attribution import BACKGROUND_BATCH, LogitExplainer

    images = lesion_images(BACKGROUND_BATCH + 3)[0].astype(np.float32)  # batches of unequal size
    model, background = region_model(), images[:-1]
    together = LogitExplainer(model, background).attribute(images[-1], 0)
    alone = [LogitExplainer(model, one[None]).attribute(images[-1], 0) for one in background]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)


def test_an_operation_without_a_rule_is_named_and_tensorflow_stays_usable():
    from components.explain.attribution import LogitExplainer

    images = lesion_images(4)[0].astype(np.float32)
    with pytest.raises(InputError, match="operation Sin, for which Deep SHAP has no rule here"):
        LogitExplainer(region_model(activation="sin"), images[:2]).attribute(images[3], 1)
    test_a_pixel_that_the_model_can_not_see_gets_nothing()


def test_a_product_of_two_things_that_are_both_seen_has_no_rule():
    import keras

    from components.explain.attribution import LogitExplainer

    inputs = keras.Input((SIZE, SIZE, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Multiply()([pooled, pooled])))
    images = lesion_images(4)[0].astype(np.float32)
    with pytest.raises(InputError, match="operation Mul, for which"):
        LogitExplainer(model, images[:2]).attribute(images[3], 1)


@pytest.mark.parametrize(("architecture", "size"), [("cnn", 64), ("resnet50", 64), ("xception", 71)])
def test_attributions_are_those_of_shap(architecture, size):
    """With SHAP's own rules, and one for depthwise convolution, which SHAP lacks: linear, as convolution is."""
    import keras
    import shap
    from shap.explainers._deep import deep_tf

    from components.explain.attribution import LogitExplainer
    from dermaflow.architectures import build_model

    deep_tf.op_handlers["DepthwiseConv2dNative"] = deep_tf.linearity_1d(0)
    model = build_model(architecture, classes=7, size=size, dropout=0.5, seed=1)
    images = lesion_images(8, size)[0].astype(np.float32)
    normalise_by(model, images)
    shown = keras.Input(model.input_shape[1:])
    picked = keras.layers.Dense(
        1, use_bias=False, kernel_initializer=lambda shape, dtype: np.eye(*shape, k=-2, dtype="float32")
    )
    explained = keras.Model([shown], picked(model(shown, training=False)))
    theirs = shap.DeepExplainer(explained, images[:3]).shap_values(images[5:6], check_additivity=False)[0, ..., 0]
    ours = LogitExplainer(model, images[:3]).attribute(images[5], 2)
    assert np.linalg.norm(theirs) > 0
    assert np.linalg.norm(ours - theirs) < 0.005 * np.linalg.norm(theirs), "but for ties in rounding"


def test_a_linear_model_is_explained_by_its_weights():
    import keras

    from components.explain.attribution import LogitExplainer

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    images = lesion_images(3, 8)[0].astype(np.float32)
    weights = model.layers[-1].get_weights()[0][:, 2].reshape(8, 8, 3)
    expected = weights * (images[2] - images[:2].mean(axis=0))
    np.testing.assert_allclose(LogitExplainer(model, images[:2]).attribute(images[2], 2), expected, atol=1e-3)


# --- measures ---


def disc(x, y, radius, size=100):
    mask = np.zeros((size, size), np.uint8)
    cv2.circle(mask, (x, y), radius, 1, -1)
    return mask


def test_concentration_is_one_for_an_even_map_and_largest_inside_the_lesion():
    mask = disc(30, 30, 12)
    assert measures.concentration(np.ones((100, 100)), mask) == pytest.approx(1)
    assert measures.concentration(mask.astype(float), mask) == pytest.approx(1 / mask.mean())
    assert measures.concentration(1.0 - mask, mask) == 0


@pytest.mark.parametrize("mask", [np.zeros((9, 9), np.uint8), np.ones((9, 9), np.uint8)])
def test_an_empty_or_full_mask_says_nothing(mask):
    assert math.isnan(measures.concentration(np.ones((9, 9)), mask))
    assert measures.pointing_hit(np.ones((9, 9)), mask) is None
    assert measures.centre_hit(mask) is None


def test_the_baseline_finds_a_centred_lesion_and_misses_one_at_the_border():
    centred, aside = disc(50, 50, 20), disc(12, 12, 20)
    assert measures.concentration(measures.centred_gaussian(centred), centred) > 5
    assert measures.concentration(measures.centred_gaussian(aside), aside) < 0.5


def on_lesion(signed: np.ndarray, mask: np.ndarray) -> float:
    return float(measures.on_lesion(pd.DataFrame([measures.evidence(signed, mask)]))[0])


def test_evidence_on_the_lesion_is_one_all_of_it_and_nought_when_spread_evenly():
    mask = disc(112, 112, 40, size=224)
    assert on_lesion(mask.astype(float), mask) == pytest.approx(1, abs=0.01)
    assert on_lesion(np.ones((224, 224)), mask) == pytest.approx(0, abs=0.01)
    elsewhere = np.zeros((224, 224))
    elsewhere[:10] = 1
    assert on_lesion(elsewhere, mask) < -0.1


def test_evidence_beside_the_border_counts_as_on_the_lesion_and_what_speaks_against_does_not_count():
    mask, signed = disc(112, 112, 40, size=224), np.zeros((224, 224))
    signed[112, 112 + 40 + 4] = 1
    assert on_lesion(signed, mask) == pytest.approx(1, abs=0.02)
    signed[5, 5] = -9
    assert on_lesion(signed, mask) == pytest.approx(1, abs=0.02)
    signed[5, 112] = 9
    assert on_lesion(signed, mask) < 0.1


@pytest.mark.parametrize(
    ("signed", "mask"),
    [
        (np.ones((28, 28)), np.zeros((28, 28), np.uint8)),
        (np.ones((28, 28)), np.ones((28, 28), np.uint8)),
        (-np.ones((28, 28)), disc(14, 14, 5, size=28)),
    ],
)
def test_evidence_that_can_not_be_placed_is_not_a_number(signed, mask):
    assert math.isnan(on_lesion(signed, mask))


def test_an_image_counts_by_how_much_speaks_for_the_class_in_it():
    rows = pd.DataFrame(
        {"evidence": [9.0, 1.0, 5.0], "evidence_there": [9.0, 0.0, 5.0], "area_there": [0.5, 0.5, 1.0]}  # the last: unplaced
    )
    assert measures.on_lesion(rows)[0] == pytest.approx((9 / 10 - 0.5) / 0.5)
    assert measures.on_lesion(rows, np.array([[0, 1, 1], [1, 0, 0]], np.float32)) == pytest.approx([-1, 1])


def spoken_of(on_lesion: dict[str, list[float]]) -> pd.DataFrame:
    """Evidence for classes in an image of a lesion each, half of the image being lesion."""
    rows = [
        {"class": name, "evidence": 2.0, "evidence_there": 1 + value, "area_there": 0.5}
        for name, values in on_lesion.items()
        for value in values
    ]
    return pd.DataFrame(rows).assign(lesion_id=[f"L{number}" for number in range(len(rows))])


def test_an_artefact_is_suspected_where_enough_lesions_show_it():
    spoken = spoken_of({"df": [0.0, -0.1, 0.1, 0.2, 0.05], "mel": [0.8] * 6, "vasc": [0.0] * 4})
    table = pd.DataFrame({"label": "nv", "predicted": "nv", "additivity_error": 0.0, "lesion_id": ["L1", "L2"]})
    table = table.assign(**dict.fromkeys(measures.COLUMNS, math.nan))
    summary = measures.summarise(table, spoken, ("df", "mel", "nv", "vasc"), seed=1)
    assert measures.suspected(summary) == ["df"], "four lesions are too few to say"
    assert summary["by_evidence"]["df"]["images"] == 5
    assert summary["by_evidence"]["df"]["on_lesion"]["estimate"] == pytest.approx(0.05)
    assert list(summary["by_class"]) == ["nv"]


def test_pointing_takes_the_pixel_that_speaks_most_for_the_class():
    mask, signed = disc(30, 30, 12), np.zeros((100, 100))
    signed[80, 80], signed[30, 30] = -5, 1
    assert measures.pointing_hit(signed, mask) is True
    signed[80, 80] = 2
    assert measures.pointing_hit(signed, mask) is False


def test_additivity_error_is_relative_and_survives_a_difference_of_nothing():
    assert measures.additivity_error(np.full((2, 2), 0.225), logit=2.0, base=1.0) == pytest.approx(0.1)
    assert measures.additivity_error(np.zeros((2, 2)), logit=1.0, base=1.0) == 0
    assert measures.additivity_error(np.zeros((2, 2)), logit=0.0, base=0.0) == 0


@pytest.mark.parametrize(("errors", "ok"), [([0.0, 0.04, 0.9], True), ([0.0, 0.06, 0.07], False), ([0.0, math.nan], False)])
def test_additivity_is_judged_by_its_median_and_a_broken_map_fails_it(errors, ok):
    from components.explain.core import _additivity

    judged = _additivity(pd.DataFrame({"additivity_error": errors}))
    assert judged["additivity_ok"] is ok
    json.dumps(judged, allow_nan=False)


# --- the step ---


def test_the_explanation_says_what_was_done_in_strict_json(run):
    paths, explanation, target = run
    assert json.loads((target / "explanation.json").read_text()) == json.loads(json.dumps(explanation, allow_nan=False))
    split_of = contracts.read_splits(paths[1]).set_index("image_id")["split"]
    assert {split_of[image_id] for image_id in explanation["background"]["image_ids"]} == {"train"}
    assert explanation["background"]["n"] == 6
    assert explanation["n"] == 5
    assert explanation["additivity_ok"] is True
    assert explanation["additivity"]["max"] < 1e-3
    assert explanation["summary"]["overall"]["images"] == 5


def test_the_table_has_a_row_for_each_image(run):
    table = contracts.read_table(run[2], contracts.EXPLANATION, "attributions.parquet")
    assert len(table) == table["lesion_id"].nunique() == 5
    assert set(table["split"]) == {"test"}
    assert table["probability"].between(1 / 3, 1).all()
    assert set(table["mask_source"]) == {"segmented"}
    columns = {"image_id", "label", "predicted", "additivity_error", "concentration", "baseline_concentration", "pointing_hit"}
    assert columns <= set(table)


def test_the_stored_maps_add_up_too(run):
    table = contracts.read_table(run[2], contracts.EXPLANATION, "attributions.parquet")
    with np.load(run[2] / "attributions.npz") as stored:
        maps = stored["maps"].astype(np.float64) * stored["scale"][:, None, None]
        assert stored["image_id"].tolist() == table["image_id"].tolist()
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), table["logit"] - table["base_logit"], atol=2e-3)


def test_the_same_input_gives_the_same_bytes(run, tmp_path):
    from components.explain.core import explain

    paths, _, first = run
    explain(*paths, PARAMS, tmp_path / "again")
    assert open_artifact(tmp_path / "again", contracts.EXPLANATION).files == open_artifact(first, contracts.EXPLANATION).files


def test_a_cropping_model_is_measured_in_its_own_frame(tmp_path):
    from components.explain.core import explain

    paths = write_run(tmp_path, region_model(), masks_mode="crop")
    explain(*paths, PARAMS, tmp_path / "explanation")
    table = contracts.read_table(tmp_path / "explanation", contracts.EXPLANATION, "attributions.parquet")
    assert table["area_share"].between(0.4, 0.75).all()  # a disc in its bounding box with a tenth around; whole: 0.3 or less


def test_an_evaluation_of_another_model_is_refused(run, tmp_path):
    from components.explain.core import explain

    dataset, splits, masks, model, _ = run[0]
    other = write_run(tmp_path, region_model(activation="sin"))[-1]
    with pytest.raises(InputError, match="judged another model"):
        explain(dataset, splits, masks, model, other, PARAMS, tmp_path / "explanation")
    assert not (tmp_path / "explanation").exists()


def test_splits_of_another_run_are_refused(run, tmp_path):
    from components.explain.core import explain

    dataset, splits, masks, model, evaluation = run[0]
    table = contracts.read_splits(splits).assign(split="train")
    with new_artifact(tmp_path / "splits", contracts.SPLITS) as path:
        table.to_parquet(path / "splits.parquet")
        write_json(path / "splits.json", {"digest": "sha256:other"})
    with pytest.raises(InputError, match="use artifacts of the same run"):
        explain(dataset, tmp_path / "splits", masks, model, evaluation, PARAMS, tmp_path / "explanation")


# --- pictures ---


def test_the_gallery_shows_images_in_their_own_colours(tmp_path):
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 0] = 255
    mask, signed = disc(20, 20, 8, 40), np.zeros((40, 40), np.float32)
    draw_gallery(
        tmp_path / "gallery.png",
        [Picture(red, mask, signed, "mel", predicted, 0.5, "I1") for predicted in ("mel", "nv")],
        title="CNN",
        synthetic=True,
    )
    drawn = cv2.imread(str(tmp_path / "gallery.png"))[..., ::-1]
    assert (drawn == (255, 0, 0)).all(axis=-1).sum() > 10_000
    assert not (drawn == (0, 0, 255)).all(axis=-1).any()


def test_the_step_draws_a_gallery(run):
    drawn = cv2.imread(str(Path(run[2]) / "gallery.png"))
    assert drawn is not None
    assert drawn.std() > 10
