"""Judging a model on any data: what it was made with is refused under whatever name, the rest is judged as in a run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.evaluate.core import judged_rows
from components.ingest.core import ingest
from dermaflow import calibration, contracts
from dermaflow.artifacts import open_artifact, read_json, write_json
from dermaflow.classes import HAM10000_CLASSES
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.evaluation import write_evaluation
from dermaflow.params import EvaluateParams, Params, load_params
from dermaflow.seen import developed_on, seen_by
from pipelines.judging import judge, open_model
from tests.models import write_red_model
from tests.sources import ROOT, SIZE, SourceFolder, data_params

FLAGS = {"temperature": 2.0}


@pytest.fixture(scope="module")
def settings() -> Params:
    return load_params("default", ["evaluate.bootstrap=100"], root=ROOT)


@pytest.fixture(scope="module")
def developed(dataset: Path, splits: Path) -> pd.DataFrame:
    """What a model trained on the 42 phantoms' splits keeps of them."""
    return developed_on(Dataset.open(dataset), contracts.read_splits(splits))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, developed: pd.DataFrame) -> Path:
    return write_red_model(tmp_path_factory.mktemp("made") / "model", SIZE, developed=developed, **FLAGS)


@pytest.fixture(scope="module")
def unseen(splits: Path) -> list[str]:
    """Images of test: the only ones that the model may be judged on."""
    table = contracts.read_splits(splits)
    return sorted(table.loc[table["split"] == "test", "image_id"])


def class_folders(source: SourceFolder, target: Path, images: list[str] | None = None) -> Path:
    """The images of a source in folders named after their classes, under other names."""
    table = source.metadata
    for row in table.itertuples():
        if images is None or row.image_id in images:
            (target / row.dx).mkdir(parents=True, exist_ok=True)
            shutil.copy(source.image(row.image_id), target / row.dx / f"photo-{row.Index}.jpg")
    return target


def renamed(source: SourceFolder) -> Path:
    """The source with new names for its images and lesions."""
    table = source.metadata
    for image_id in table["image_id"]:
        os.rename(source.image(image_id), source.image(f"other-{image_id}"))
        os.rename(source.mask(image_id), source.mask(f"other-{image_id}"))
    source.write_metadata(table.assign(image_id="other-" + table["image_id"], lesion_id="other-" + table["lesion_id"]))
    return source.path


def as_png(source: SourceFolder) -> Path:
    """The source with its photographs in other files of the same pixels."""
    import cv2

    for image_id in source.metadata["image_id"]:
        pixels = cv2.imread(str(source.image(image_id)))
        cv2.imwrite(str(source.image(image_id).with_suffix(".png")), pixels)
        source.image(image_id).unlink()
    return source.path


def zipped(source: SourceFolder) -> Path:
    return Path(shutil.make_archive(str(source.path), "zip", source.path))


def keep(source: SourceFolder, images: list[str], **columns: str) -> None:
    """Take the other images out of a source."""
    table = source.metadata
    for image_id in table.loc[~table["image_id"].isin(images), "image_id"]:
        source.image(image_id).unlink()
        source.mask(image_id).unlink()
    source.write_metadata(table[table["image_id"].isin(images)].assign(**columns))


# --- what the model was made with ---

FORMS = {
    "source": lambda source, _: source.path,
    "zip": lambda source, _: zipped(source),
    "class folders": class_folders,
    "renamed": lambda source, _: renamed(source),
    "same pixels": lambda source, _: as_png(source),
    "Dataset": lambda source, target: ingest(data_params(source.path), target) and target,
}


@pytest.mark.parametrize("form", FORMS)
def test_images_of_the_models_training_are_refused_in_whatever_form_they_come(
    source: SourceFolder, model: Path, settings: Params, unseen: list[str], tmp_path: Path, form: str
):
    data = str(FORMS[form](source, tmp_path / "data"))
    seen = 42 - len(unseen)
    first = {"class folders": "photo-", "renamed": "other-PHI_"}.get(form, "PHI_")
    with pytest.raises(InputError, match=rf"{seen} of 42 images, of \d+ lesions, were in the training or validation part of"
                                         rf" .*the first is {first}\d+\. .*give other images.*--leave-out-seen"):  # fmt: skip
        judge(str(model), data, settings)
    told = judge(str(model), data, settings, leave_out_seen=True)
    assert (told["n_images"], told["left_out"]) == (len(unseen), seen)


def test_images_that_the_model_never_saw_are_judged(source: SourceFolder, model: Path, settings: Params, unseen, tmp_path):
    told = judge(str(model), str(class_folders(source, tmp_path / "data", unseen)), settings)
    assert (told["n_images"], told["left_out"], told["rejected"]) == (len(unseen), 0, {})
    assert next(iter(told["metrics"])) == "balanced_accuracy"


def test_when_the_model_saw_everything_nothing_is_left_to_judge(source, model, settings, unseen, tmp_path):
    seen = [name for name in source.metadata["image_id"] if name not in unseen]
    folder = class_folders(source, tmp_path / "data", seen)
    for leave_out in (False, True):
        with pytest.raises(InputError, match=rf"all {len(seen)} images.*were in the training.*give other images"):
            judge(str(model), str(folder), settings, leave_out_seen=leave_out)


def lesion_of_training(developed: pd.DataFrame) -> list[str]:
    """The images of a lesion of several images, all of them in train or validation."""
    groups = developed.groupby("lesion_id")["image_id"].apply(sorted)
    return next(ids for ids in groups if len(ids) > 1)


def test_another_image_of_a_lesion_of_the_training_is_refused(source, settings, developed, unseen, tmp_path):
    others = lesion_of_training(developed)[1:]
    model = write_red_model(tmp_path / "model", SIZE, developed=developed[~developed["image_id"].isin(others)])
    keep(source, [*others, *unseen])
    images = len(others) + len(unseen)
    with pytest.raises(InputError, match=rf"{len(others)} of {images} images, of 1 lesions.*the first is {others[0]}"):
        judge(str(model), str(source.path), settings)
    assert judge(str(model), str(source.path), settings, leave_out_seen=True)["n_images"] == len(unseen)


def test_lesions_are_known_by_their_images_even_under_another_id(source, settings, developed, tmp_path):
    images = lesion_of_training(developed)
    keep(source, images, lesion_id="new")
    ingest(data_params(source.path), tmp_path / "dataset")
    one = developed[developed["image_id"] == images[0]]
    assert seen_by(one, Dataset.open(tmp_path / "dataset")).tolist() == [True] * len(images)


def test_another_hospitals_lesions_with_the_same_ids_are_not_taken_for_those_of_the_training(model, settings, tmp_path):
    from dermaflow.phantom import draw_phantoms

    draw_phantoms(tmp_path / "elsewhere", images=42, seed=99, size=(96, 72), workers=1)
    told = judge(str(model), str(tmp_path / "elsewhere"), settings)
    assert (told["n_images"], told["left_out"]) == (42, 0)


def test_a_model_that_does_not_say_what_it_was_made_with_is_judged_and_that_is_told(source, settings, tmp_path):
    told = judge(str(write_red_model(tmp_path / "model", SIZE)), str(source.path), settings)
    assert told["n_images"] == 42
    assert told["left_out"] is None


# --- labels and preparation ---


def test_a_label_that_the_model_does_not_know_is_an_error(source: SourceFolder, model: Path, settings: Params, tmp_path: Path):
    first = source.metadata["image_id"].iloc[0]
    source.set(first, dx="scc")
    with pytest.raises(InputError, match=r"does not know the label of 1 images; the first: .*dx is 'scc'; allowed: akiec, bcc"):
        judge(str(model), str(source.path), settings)
    folders = class_folders(source, tmp_path / "folders")
    with pytest.raises(InputError, match=r"label of 1 images; the first: .*folder 'scc' is no class; allowed: akiec, bcc"):
        judge(str(model), str(folders), settings)


def test_a_model_of_other_classes_says_how_to_name_them(source: SourceFolder, settings: Params, tmp_path: Path):
    model = write_red_model(tmp_path / "model", SIZE, HAM10000_CLASSES[::-1])
    with pytest.raises(InputError, match=r'the model knows vasc, nv.*source.json beside the images: {"classes": \["vasc"'):
        judge(str(model), str(source.path), settings)
    path = source.path / "source.json"
    write_json(path, {**read_json(path), "classes": list(HAM10000_CLASSES[::-1])})
    assert judge(str(model), str(source.path), settings)["n_images"] == 42


def test_images_are_prepared_as_the_models_own_were(source: SourceFolder, dataset: Path, settings: Params, tmp_path: Path):
    model = write_red_model(tmp_path / "model", 48, resize="pad")
    assert judge(str(model), str(source.path), settings)["n_images"] == 42
    with pytest.raises(InputError, match="model takes 48 px, the dataset has 32 px"):
        judge(str(model), str(dataset), settings)
    other = write_red_model(tmp_path / "other", SIZE, resize="pad")
    with pytest.raises(InputError, match=r"data\.resize=stretch, but the model's images with pad"):
        judge(str(other), str(dataset), settings)


@pytest.mark.parametrize("data", ["nowhere", "s3:/bucket/prefix"])
def test_data_that_is_not_there_is_named(model: Path, settings: Params, data: str):
    with pytest.raises(InputError, match=f"data.source: {data} is not a folder"):
        judge(str(model), data, settings)


# --- figures ---


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory, dataset: Path, splits: Path, developed: pd.DataFrame) -> Path:
    """A folder with a model and, as in a run, the Evaluation of it on its own data."""
    folder = tmp_path_factory.mktemp("select")
    model = write_red_model(folder / "candidate", SIZE, developed=developed)
    opened = Dataset.open(dataset)
    masks = opened.manifest[["image_id"]].assign(area_share=0.2)
    rows = judged_rows(opened, contracts.read_splits(splits), masks)
    logits = np.random.default_rng(0).normal(size=(len(rows), 7)).astype(np.float32)
    logits[np.arange(len(rows)), opened.labels[opened.rows_of(rows["image_id"])]] += 1
    table = pd.concat([rows, pd.DataFrame(logits, columns=contracts.logit_columns(opened.classes))], axis=1)
    info = {**contracts.read_info(model, contracts.MODEL), "model_digest": open_artifact(model, contracts.MODEL).digest}
    params = EvaluateParams(bootstrap=100, specificity=0.9, seed=1)
    write_evaluation(table, info, opened, params, folder / "evaluation")
    return folder


def test_everything_told_follows_from_the_predictions_that_are_written(source, model, settings, tmp_path):
    out = tmp_path / "evaluation"
    told = judge(str(model), str(source.path), settings, leave_out_seen=True, out=out)
    table, metrics = contracts.read_predictions(out), contracts.read_metrics(out)
    assert told["evaluation"] == str(out)
    assert told["metrics"] == metrics["test"]["overall"]
    assert "validation" not in metrics
    for name in ("per_class", "confusion", "calibration", "abstention", "operating_points", "subgroups"):
        assert told[name] == metrics["test"][name]
    assert set(told["subgroups"]) == {"sex", "age", "localization", "dx_type", "lesion_size"}
    logits = table[contracts.logit_columns(HAM10000_CLASSES)].to_numpy()
    labels = np.array([HAM10000_CLASSES.index(label) for label in table["label"]])
    for stage, temperature in (("before", 1.0), ("after", FLAGS["temperature"])):
        expected = calibration.scores(logits / temperature, labels, np.ones((1, len(labels))))
        for name, value in expected.items():
            assert told["calibration"][stage][name]["estimate"] == pytest.approx(value[0], abs=1e-9)
    with pytest.raises(InputError, match="not a finished evaluation artifact"):
        judge(str(model), str(source.path), settings, leave_out_seen=True, out=source.path)


def test_without_a_temperature_there_is_no_calibration_after_it(source, settings, developed, tmp_path):
    model = write_red_model(tmp_path / "model", SIZE, developed=developed)
    told = judge(str(model), str(source.path), settings, leave_out_seen=True, out=tmp_path / "evaluation")
    assert told["temperature"] is None
    assert told["calibration"]["after"] is None
    assert told["calibration"]["before"]["nll"]["estimate"] > 0
    assert told["operating_points"]["melanoma"]["threshold"] is None
    assert told["operating_points"]["melanoma"]["sensitivity"]["estimate"] is None
    assert (tmp_path / "evaluation/calibration.png").exists()


def test_thresholds_are_those_of_the_models_own_validation_images(source, beside, settings, unseen, tmp_path):
    own = contracts.read_metrics(beside / "evaluation")
    folder = str(class_folders(source, tmp_path / "data", unseen))
    told = judge(str(beside / "candidate"), folder, settings)
    assert told["temperature"] == pytest.approx(own["temperature"])
    assert own["thresholds"]["malignant"] is not None
    assert told["thresholds"] == pytest.approx(own["thresholds"])

    shutil.copytree(beside, tmp_path / "other")
    shutil.rmtree(tmp_path / "other/candidate")
    write_red_model(tmp_path / "other/candidate", SIZE, epochs=2)  # of another model, whatever lies beside it
    with open_model(str(tmp_path / "other/candidate"), settings) as subject:
        assert subject.evaluation is None
