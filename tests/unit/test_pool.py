"""Out-of-fold evaluations: every figure is that of the predictions, each fold chooses for itself, a part is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, log_loss, roc_auc_score

from components.pool.core import pool
from components.split.core import assign
from dermaflow import contracts
from dermaflow.artifacts import ARTIFACT_FILE, changed_files, new_artifact, open_artifact, read_json, write_json
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.evaluation import write_evaluation
from dermaflow.figures import figures
from dermaflow.folds import FOLD, held_out
from dermaflow.metrics import softmax
from dermaflow.params import EvaluateParams
from tests.sources import neighbours, split_params, with_digests

PARAMS = EvaluateParams(bootstrap=100, specificity=0.9, seed=1)
CLASSES = ("bkl", "mel", "nv")
IMAGES, FOLDS, SIZE = 180, 3, 32
LOGITS = contracts.logit_columns(CLASSES)
LOUDNESS = (1.0, 4.0, 0.5)  # how sure each fold's model is of itself


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """180 small images of 90 lesions in three classes."""
    manifest = pd.DataFrame(
        {
            "image_id": [f"image{row:03d}" for row in range(IMAGES)],
            "lesion_id": [f"lesion{row // 2:03d}" for row in range(IMAGES)],
            "label": [CLASSES[row // 2 % 3] for row in range(IMAGES)],
            "sex": np.where(np.arange(IMAGES) // 2 % 2, "male", "female"),
            "shard": 0,
            "row": range(IMAGES),
        }
    )
    target = tmp_path_factory.mktemp("pool") / "dataset"
    with new_artifact(target, "dataset") as folder:
        np.save(folder / "shard-00000.npy", np.random.default_rng(0).integers(0, 255, (IMAGES, SIZE, SIZE, 3), np.uint8))
        with_digests(manifest).to_parquet(folder / "manifest.parquet", index=False)
        source = {"synthetic": True, "dvc_revision": None}
        info = {"class_order": CLASSES, "image_size": SIZE, "source": source, "content_digest": "sha256:0"}
        write_json(folder / "dataset.json", info)
    return target


def write_splits(dataset: Path, target: Path, **changes) -> Path:
    """Splits with folds."""
    params = split_params(folds=FOLDS, **changes)
    table = assign(Dataset.open(dataset).manifest, neighbours(), params)
    shares = {name: getattr(params, name) for name in contracts.SPLIT_NAMES}
    info = {"folds": FOLDS, "shares": shares, "seed": params.seed, "digest": contracts.splits_digest(table)}
    with new_artifact(target, contracts.SPLITS) as folder:
        table.to_parquet(folder / "splits.parquet", index=False)
        write_json(folder / "splits.json", info)
    return target


@pytest.fixture(scope="module")
def splits(dataset, tmp_path_factory) -> Path:
    return write_splits(dataset, tmp_path_factory.mktemp("pool") / "splits")


def predictions_of(dataset: Path, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What a model that is right more often than not says of the validation and test images."""
    opened, judged = Dataset.open(dataset), rows[rows["split"] != "train"].reset_index(drop=True)
    places = opened.rows_of(judged["image_id"])
    logits = np.random.default_rng(seed).normal(size=(len(judged), len(CLASSES)))
    logits[np.arange(len(judged)), opened.labels[places]] += 1.2
    table = judged[["image_id", "lesion_id", "split", "label"]].assign(sex=opened.manifest["sex"].to_numpy()[places])
    return pd.concat([table, pd.DataFrame(LOUDNESS[seed % FOLDS] * logits, columns=LOGITS)], axis=1)


def write_fold(dataset: Path, splits: Path, fold: int, target: Path) -> Path:
    rows = held_out(contracts.read_splits(splits), contracts.read_info(splits, contracts.SPLITS), fold)
    model = {"architecture": "cnn", "model_digest": f"sha256:{fold}", "pipeline_check": False}
    write_evaluation(predictions_of(dataset, rows, fold), model, Dataset.open(dataset), PARAMS, target)
    return target


@pytest.fixture(scope="module")
def evaluations(dataset, splits, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pool")
    return [write_fold(dataset, splits, fold, folder / str(fold)) for fold in range(FOLDS)]


@pytest.fixture(scope="module")
def pooled(dataset, splits, evaluations, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("pool") / "pooled"
    pool(dataset, splits, evaluations[::-1], PARAMS, target)
    return target


def changed(evaluation: Path, target: Path, predictions: pd.DataFrame | None = None, **metrics) -> Path:
    """An evaluation with other predictions or metrics, sealed anew."""
    with new_artifact(target, contracts.EVALUATION) as folder:
        shutil.copytree(evaluation, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ARTIFACT_FILE))
        write_json(folder / "metrics.json", {**read_json(evaluation / "metrics.json"), **metrics})
        if predictions is not None:
            predictions.to_parquet(folder / "predictions.parquet", index=False)
    return target


def test_each_image_of_train_and_validation_is_judged_once_by_the_model_that_it_was_held_out_from(splits, pooled):
    table, found = contracts.read_splits(splits), contracts.read_predictions(pooled)
    judged = found[found["split"] == "test"].set_index("image_id")
    developed = table[table["split"] != "test"].set_index("image_id")
    assert judged.index.is_unique
    assert judged[FOLD].sort_index().equals(developed[FOLD].sort_index())
    assert set(found["image_id"]).isdisjoint(table.loc[table["split"] == "test", "image_id"])
    validation = found[found["split"] == "validation"]
    assert validation["image_id"].is_unique
    assert (validation[FOLD] != developed.loc[validation["image_id"], FOLD].to_numpy()).all()


def test_it_says_what_it_is_of(splits, evaluations, pooled):
    told = contracts.read_metrics(pooled)["out_of_fold"]
    assert told == {
        "folds": FOLDS,
        "seed": 20240101,
        "splits": contracts.read_info(splits, contracts.SPLITS)["digest"],
        "models": ["sha256:0", "sha256:1", "sha256:2"],
        "evaluations": [open_artifact(path, contracts.EVALUATION).digest for path in evaluations],
    }
    assert changed_files(open_artifact(pooled, contracts.EVALUATION)) == []
    assert {"confusion.png", "roc.png", "precision_recall.png", "calibration.png", "classified.png"} <= {
        path.name for path in pooled.iterdir()
    }


def test_every_figure_is_that_of_the_predictions(pooled):
    told, found = contracts.read_metrics(pooled), contracts.read_predictions(pooled)
    again = figures(found, CLASSES, PARAMS)
    assert {name: told[name] for name in again} == again

    held = found[found["split"] == "test"]
    logits, labels = held[LOGITS].to_numpy(), held["label"]
    predicted = np.asarray(CLASSES)[logits.argmax(axis=1)]
    overall = told["test"]["overall"]
    assert overall["balanced_accuracy"]["estimate"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-9)
    assert overall["auroc"]["estimate"] == pytest.approx(
        roc_auc_score(labels, softmax(logits), multi_class="ovr", labels=list(CLASSES)), abs=1e-9
    )
    assert told["test"]["confusion"]["counts"] == confusion_matrix(labels, predicted, labels=list(CLASSES)).tolist()

    areas = [
        roc_auc_score(part["label"], softmax(part[LOGITS].to_numpy()), multi_class="ovr", labels=list(CLASSES))
        for _, part in held.groupby(FOLD)
    ]
    assert [row["auroc"] for row in told["by_fold"]] == pytest.approx(areas, abs=1e-9)
    assert told["over_folds"]["auroc"]["mean"] == pytest.approx(np.mean(areas), abs=1e-9)
    assert told["over_folds"]["auroc"]["sd"] == pytest.approx(np.std(areas, ddof=1), abs=1e-9)
    assert sum(row["n_images"] for row in told["by_fold"]) == told["test"]["n_images"] == len(held)


def test_each_fold_chooses_its_temperature_and_thresholds_on_its_own_validation_images(pooled, evaluations):
    told, found = contracts.read_metrics(pooled), contracts.read_predictions(pooled)
    alone = [contracts.read_metrics(path) for path in evaluations]
    assert [row["temperature"] for row in told["by_fold"]] == [one["temperature"] for one in alone]
    assert [row["thresholds"]["melanoma"] for row in told["by_fold"]] == [one["thresholds"]["melanoma"] for one in alone]
    assert told["temperature"] is told["thresholds"]["melanoma"] is None

    held = found[found["split"] == "test"]
    temperatures = np.array([alone[fold]["temperature"] for fold in held[FOLD]])
    probabilities = softmax(held[LOGITS].to_numpy() / temperatures[:, None])
    after = told["test"]["calibration"]["after"]["nll"]["estimate"]
    assert after == pytest.approx(log_loss(held["label"], probabilities, labels=list(CLASSES)), abs=1e-9)
    says = probabilities[:, 1] >= np.array([alone[fold]["thresholds"]["melanoma"] for fold in held[FOLD]])
    melanoma = (held["label"] == "mel").to_numpy()
    point = told["test"]["operating_points"]["melanoma"]
    assert point["sensitivity"]["estimate"] == pytest.approx(says[melanoma].mean(), abs=1e-9)
    assert point["specificity"]["estimate"] == pytest.approx((~says[~melanoma]).mean(), abs=1e-9)


def test_a_louder_model_of_one_fold_changes_nothing_after_its_own_temperature(pooled):
    found = contracts.read_predictions(pooled)
    louder = found.copy()
    louder.loc[louder[FOLD] == 1, LOGITS] *= 3
    one, other = (figures(table, CLASSES, PARAMS) for table in (found, louder))
    assert other["by_fold"][1]["temperature"] == pytest.approx(3 * one["by_fold"][1]["temperature"], rel=1e-3)
    for name in ("nll", "brier"):
        before, after = (told["test"]["calibration"]["after"][name]["estimate"] for told in (one, other))
        assert after == pytest.approx(before, abs=1e-4)
    assert other["over_folds"]["balanced_accuracy"] == one["over_folds"]["balanced_accuracy"]
    assert other["test"]["overall"]["auroc"] != one["test"]["overall"]["auroc"]


def test_without_a_threshold_in_one_fold_there_is_no_operating_point_but_everything_else(pooled):
    found = contracts.read_predictions(pooled)
    fold = found[FOLD] == 0
    left = found[~(fold & (found["split"] == "validation") & (found["label"] == "mel"))]
    told = figures(left, CLASSES, PARAMS)
    assert told["by_fold"][0]["thresholds"]["melanoma"] is None
    assert told["by_fold"][1]["thresholds"]["melanoma"] is not None
    point = told["test"]["operating_points"]["melanoma"]
    assert point["sensitivity"]["estimate"] is None
    assert point["auroc"]["estimate"] is not None


def test_the_order_of_the_folds_changes_no_byte(dataset, splits, evaluations, pooled, tmp_path):
    pool(dataset, splits, evaluations, PARAMS, tmp_path / "again")
    assert open_artifact(tmp_path / "again", contracts.EVALUATION).files == open_artifact(pooled, contracts.EVALUATION).files


# --- what is no out-of-fold result ---


def refused(dataset, splits, evaluations, tmp_path, match):
    with pytest.raises(InputError, match=match):
        pool(dataset, splits, evaluations, PARAMS, tmp_path / "pooled")
    assert not (tmp_path / "pooled").exists()


def test_a_fold_that_is_missing_or_there_twice_is_refused(dataset, splits, evaluations, tmp_path):
    refused(dataset, splits, evaluations[1:], tmp_path, "has folds 0 to 2, but the evaluations are of 1, 2; give one of each")
    refused(dataset, splits, [*evaluations, evaluations[0]], tmp_path, "the evaluations are of 0, 0, 1, 2")
    refused(dataset, splits, [], tmp_path, "the evaluations are of none")


def test_folds_of_other_splits_are_refused(dataset, splits, evaluations, tmp_path):
    other = write_splits(dataset, tmp_path / "other", seed=7)
    refused(dataset, other, evaluations, tmp_path, r"does not judge the images of one fold: its test images are of folds \[")


def test_the_evaluation_of_the_default_split_is_refused(dataset, splits, evaluations, tmp_path):
    rows = contracts.read_splits(splits)
    default = changed(evaluations[0], tmp_path / "default", predictions_of(dataset, rows, 0))
    refused(dataset, splits, [default, *evaluations[1:]], tmp_path, r"its test images are of folds \[-1\], where -1 is none")


@pytest.mark.parametrize("spoilt", ["one is missing", "one is doubled", "another validates", "a label differs"])
def test_a_fold_judged_on_other_images_than_the_splits_say_is_refused(dataset, splits, evaluations, tmp_path, spoilt):
    table = contracts.read_predictions(evaluations[1])
    validation = table.index[table["split"] == "validation"][0]
    test = table.index[table["split"] == "test"][0]
    match spoilt:
        case "one is missing":
            table = table.drop(index=test)
        case "one is doubled":
            table = pd.concat([table, table.loc[[test]]])
        case "another validates":
            table.loc[validation, "image_id"] = contracts.read_splits(splits).query("fold == 0")["image_id"].iloc[0]
        case "a label differs":
            table.loc[test, "label"] = "nv" if table.loc[test, "label"] != "nv" else "mel"
    odd = changed(evaluations[1], tmp_path / "odd", table)
    message = "does not judge and validate on the images that fold 1 of these splits asks for"
    refused(dataset, splits, [evaluations[0], odd, evaluations[2]], tmp_path, message)


@pytest.mark.parametrize(
    ("metrics", "match"),
    [
        ({"architecture": "resnet50"}, "are of different architectures"),
        ({"classes": ["mel", "bkl", "nv"]}, "was evaluated on other data"),
        ({"dataset": {"content_digest": "sha256:1", "dvc_revision": None}}, "was evaluated on other data"),
    ],
)
def test_folds_that_are_no_one_result_are_refused(dataset, splits, evaluations, tmp_path, metrics, match):
    odd = changed(evaluations[2], tmp_path / "odd", **metrics)
    refused(dataset, splits, [*evaluations[:2], odd], tmp_path, match)
