"""The evaluate step: what is judged, what is written, what is refused."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from components.evaluate.core import evaluate, judged_rows
from dermaflow import contracts
from dermaflow.artifacts import changed_files, new_artifact, open_artifact, write_json
from dermaflow.classes import HAM10000_CLASSES
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.evaluation import write_evaluation
from dermaflow.figures import figures
from dermaflow.params import EvaluateParams
from dermaflow.plots import precision_recall_steps, sample_of_class
from tests.models import write_red_model

PARAMS = EvaluateParams(bootstrap=100, specificity=0.9, seed=1)
IMAGES, SIZE = 140, 32
MODEL = {"architecture": "cnn", "model_digest": "sha256:0", "pipeline_check": False}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """140 images of 70 lesions; the red of each image is 30 times its class, so that a model can tell."""
    folder = tmp_path_factory.mktemp("evaluate") / "dataset"
    labels = np.arange(IMAGES) // 2 % 7
    images = np.random.default_rng(0).integers(0, 255, size=(IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    images[..., 0] = 30 * labels[:, None, None]
    manifest = pd.DataFrame(
        {
            "image_id": [f"image{row:03d}" for row in range(IMAGES)],
            "lesion_id": [f"lesion{row // 2:03d}" for row in range(IMAGES)],
            "label": [HAM10000_CLASSES[label] for label in labels],
            "shard": 0,
            "row": range(IMAGES),
        }
    )
    with new_artifact(folder, "dataset") as building:
        np.save(building / "shard-00000.npy", images)
        manifest.to_parquet(building / "manifest.parquet")
        info = {
            "class_order": HAM10000_CLASSES,
            "image_size": SIZE,
            "source": {"synthetic": True, "dvc_revision": None},
            "content_digest": "sha256:0",
        }
        write_json(building / "dataset.json", info)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def splits(dataset):
    """Fifths of the lesions: three train, one validation, one test."""
    parts = np.asarray(["train", "train", "train", "validation", "test"])[np.arange(IMAGES) // 14 % 5]
    return dataset.manifest[["image_id", "lesion_id", "label"]].assign(group_id=dataset.manifest["lesion_id"], split=parts)


@pytest.fixture(scope="module")
def masks(dataset):
    """What masks.parquet says: each image's lesion covers a fifth of it."""
    return dataset.manifest[["image_id"]].assign(area_share=0.2)


@pytest.fixture(scope="module")
def predictions(dataset, splits, masks):
    rows = judged_rows(dataset, splits, masks)
    logits = np.random.default_rng(2).normal(size=(len(rows), 7)).astype(np.float32)
    logits[np.arange(len(rows)), dataset.labels[dataset.rows_of(rows["image_id"])]] += 1.5
    return pd.concat([rows, pd.DataFrame(logits, columns=contracts.logit_columns(dataset.classes))], axis=1)


@pytest.fixture(scope="module")
def evaluation(dataset, predictions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "evaluation"
    write_evaluation(predictions, MODEL, dataset, PARAMS, folder)
    return folder


def write_masks(folder, masks):
    with new_artifact(folder, contracts.MASKS) as building:
        masks.to_parquet(building / "masks.parquet")
    return folder


def write_splits(folder, splits):
    with new_artifact(folder, contracts.SPLITS) as building:
        splits.to_parquet(building / "splits.parquet")
        write_json(building / "splits.json", {})
    return folder


def test_a_model_is_run_on_validation_and_test_images_only_and_judged(dataset, splits, masks, tmp_path):
    model = write_red_model(tmp_path / "model", SIZE)
    beside = write_splits(tmp_path / "splits", splits), write_masks(tmp_path / "masks", masks)
    folders = (dataset.artifact.path, *beside, model)
    metrics = evaluate(*folders, PARAMS, tmp_path / "evaluation")
    predictions = contracts.read_predictions(tmp_path / "evaluation")
    expected = splits[splits["split"] != "train"]
    assert predictions["image_id"].tolist() == expected["image_id"].tolist()
    assert predictions["split"].tolist() == expected["split"].tolist()
    assert predictions.dtypes.astype(str)["logit_mel"] == "float32"
    assert metrics["validation"]["overall"]["accuracy"]["estimate"] == 1
    assert metrics["test"]["n_images"] == 28
    assert metrics["model_digest"] == open_artifact(model, contracts.MODEL).digest
    assert metrics["pipeline_check"] is True

    other = write_red_model(tmp_path / "other", SIZE, HAM10000_CLASSES[::-1])
    with pytest.raises(InputError, match="classes differ"):
        evaluate(*folders[:3], other, PARAMS, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_metrics_can_be_computed_again_from_the_predictions(dataset, evaluation):
    told, stored = contracts.read_metrics(evaluation), contracts.read_predictions(evaluation)
    again = figures(stored, dataset.classes, PARAMS)
    assert {name: told[name] for name in again} == again
    assert told["test"]["subgroups"]["lesion_size"]["a tenth to a third"]["n_images"] == 28
    assert told["architecture"] == "cnn"
    assert told["synthetic"] is True
    assert told["bootstrap"] == {"replicates": 100, "seed": 1, "unit": "lesion", "level": 0.95}


def test_the_same_input_writes_the_same_bytes(dataset, predictions, evaluation, tmp_path):
    told = write_evaluation(predictions, MODEL, dataset, PARAMS, tmp_path / "again")
    one, two = (open_artifact(path, contracts.EVALUATION) for path in (evaluation, tmp_path / "again"))
    assert one.files == two.files
    assert set(one.files) == {
        *("predictions.parquet", "metrics.json", "confusion.png", "roc.png"),
        *("precision_recall.png", "calibration.png", "classified.png"),
    }
    assert changed_files(one) == []
    assert contracts.read_metrics(evaluation) == told


@pytest.mark.parametrize("missing", [["df"], list(HAM10000_CLASSES)], ids=["one", "all"])
def test_classes_absent_from_test_are_none_and_the_pictures_are_still_drawn(dataset, predictions, tmp_path, missing):
    left = predictions[~((predictions["split"] == "test") & predictions["label"].isin(missing))]
    told = write_evaluation(left, MODEL, dataset, PARAMS, tmp_path / "evaluation")
    absent = told["test"]["per_class"]["df"]
    assert (absent["n_images"], absent["n_lesions"]) == (0, 0)
    assert absent["sensitivity"] == absent["auroc"] == {"estimate": None, "low": None, "high": None}
    assert told["validation"]["per_class"]["df"]["sensitivity"]["estimate"] is not None
    for name in ("confusion", "roc", "precision_recall", "calibration", "classified"):
        height, width, _ = imread(tmp_path / "evaluation" / f"{name}.png").shape
        assert height > 500
        assert width > 500


def test_training_images_are_not_judged(dataset, predictions, tmp_path):
    leaky = predictions.assign(split="train")
    with pytest.raises(InputError, match="images of split 'train'"):
        write_evaluation(leaky, MODEL, dataset, PARAMS, tmp_path / "evaluation")
    assert not (tmp_path / "evaluation").exists()


def test_splits_of_another_dataset_are_refused(dataset, splits, masks):
    with pytest.raises(InputError, match="imageXXX is not in this dataset"):
        judged_rows(dataset, splits.replace({"image_id": {"image055": "imageXXX"}}), masks)
    with pytest.raises(InputError, match="image055 has another label in the dataset"):
        judged_rows(dataset, splits.assign(label=splits["label"].where(splits["image_id"] != "image055", "nv")), masks)


def test_a_folder_that_is_no_evaluation_is_named(tmp_path):
    with pytest.raises(InputError, match="not a finished evaluation artifact"):
        contracts.read_metrics(tmp_path)


@pytest.mark.parametrize(("hits", "mistakes", "shown"), [(20, 20, (3, 3)), (20, 1, (5, 1)), (1, 20, (1, 5)), (2, 0, (2, 0))])
def test_the_sample_of_a_class_holds_mistakes_where_there_are_any(hits, mistakes, shown):
    right = np.arange(hits + mistakes) < hits
    places = sample_of_class(np.arange(hits + mistakes), right, seed=3)
    assert (right[places].sum(), (~right[places]).sum()) == shown
    assert len(set(places)) == len(places)
    assert (places == sample_of_class(np.arange(hits + mistakes), right, seed=3)).all()


def test_the_area_under_the_steps_that_are_drawn_is_the_average_precision():
    from sklearn.metrics import average_precision_score

    random = np.random.default_rng(0)
    for _ in range(50):
        positive, scores = np.append(random.random(29) < 0.3, True), random.integers(0, 8, 30) / 7
        recall, precision = precision_recall_steps(positive, scores)
        area = (-np.diff(recall) * precision[:-1]).sum()
        assert area == pytest.approx(average_precision_score(positive, scores), abs=1e-12)
