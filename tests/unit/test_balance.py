"""Balancing before the split, as the study did: totals, copies, normal skin, and the mark on all that comes of it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from components.balance.core import MARK, balance
from components.balance.windows import free_window
from components.ingest.core import ingest
from components.split.core import split
from components.validate.core import Subject, check
from dermaflow.artifacts import changed_files, open_artifact
from dermaflow.augmentation import transform
from dermaflow.contracts import SOURCE
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from tests.sources import VALIDATE, augment_params, data_params, split_params, with_manifest

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc", "normal")
TARGETS = {**dict.fromkeys(CLASSES, 20), "nv": 4}


def paper(**changes):
    return augment_params(before_split=True, balance="target_per_class", **{"targets": TARGETS, **changes})


@pytest.fixture(scope="module")
def balanced(tmp_path_factory, dataset):
    """The 42 phantoms balanced to 20 of each class, 4 of nv."""
    target = tmp_path_factory.mktemp("balanced") / "source"
    balance(dataset, paper(), target)
    return target


@pytest.fixture(scope="module")
def table(balanced):
    return pd.read_csv(balanced / "HAM10000_metadata.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory, balanced):
    target = tmp_path_factory.mktemp("ingested") / "dataset"
    ingest(data_params(balanced), target)
    return target


@pytest.fixture(scope="module")
def parted(tmp_path_factory, ingested):
    target = tmp_path_factory.mktemp("parted") / "splits"
    split(ingested, split_params(strategy="random"), target)
    return target


# --- what is written ---


def test_each_class_has_exactly_its_total(table):
    assert table["dx"].value_counts().to_dict() == TARGETS
    assert table["image_id"].is_unique


def test_a_class_gives_its_images_as_they_are_before_any_copy(table, dataset):
    manifest = Dataset.open(dataset).manifest
    for name in CLASSES[:-1]:
        own = set(manifest.loc[manifest["label"] == name, "image_id"])
        as_they_are = set(table.loc[(table["dx"] == name) & (table["parent_id"] == ""), "image_id"])
        assert as_they_are <= own
        assert len(as_they_are) == min(len(own), TARGETS[name])


def test_copies_are_shared_out_evenly_and_keep_their_parents_lesion(table, dataset):
    manifest = Dataset.open(dataset).manifest.set_index("image_id")
    copies = table[(table["parent_id"] != "") & (table["dx"] != "normal")]
    counts = copies["parent_id"].value_counts()
    for name, group in copies.groupby("dx"):
        shares = counts[group["parent_id"].unique()].reindex(manifest.index[manifest["label"] == name], fill_value=0)
        assert shares.max() - shares.min() <= 1, name
    parents = manifest.loc[copies["parent_id"]]
    assert (copies["lesion_id"].to_numpy() == parents["lesion_id"].to_numpy()).all()
    assert (copies["dx"].to_numpy() == parents["label"].to_numpy()).all()


def test_an_image_that_stands_as_it_is_has_its_very_pixels(table, dataset, ingested):
    before = Dataset.open(dataset).manifest.set_index("image_id")["pixel_digest"]
    after = Dataset.open(ingested).manifest.set_index("image_id")["pixel_digest"]
    untouched = table.loc[table["parent_id"] == "", "image_id"]
    assert (after[untouched] == before[untouched]).all()
    copies = table.loc[table["parent_id"] != ""]
    assert (after[copies["image_id"]].to_numpy() != before[copies["parent_id"]].to_numpy()).all()


def test_expert_masks_are_moved_as_their_images_are(table, dataset, ingested):
    original, made = Dataset.open(dataset), Dataset.open(ingested)
    copies = table[(table["parent_id"] != "") & (table["dx"] != "normal")]
    truth = original.truth(original.rows_of(copies["parent_id"]))
    numbers = (copies[name].to_numpy(kind) for name, kind in (("symmetry", "int32"), ("zoom", "float32")))
    still = np.zeros(len(copies), np.float32)
    pixels = np.repeat(truth[..., None] * np.uint8(255), 4, axis=-1)
    expected = transform(pixels, *numbers, still, still).numpy()[..., 3] >= 127.5
    found = made.truth(made.rows_of(copies["image_id"])).astype(bool)
    assert (found == expected).mean() > 0.999
    assert made.manifest.set_index("image_id").loc[copies["image_id"], "has_truth"].all()


def test_the_same_data_give_the_same_bytes(balanced, dataset, tmp_path):
    balance(dataset, paper(), tmp_path / "again")
    assert open_artifact(tmp_path / "again", SOURCE).digest == open_artifact(balanced, SOURCE).digest
    assert changed_files(open_artifact(balanced, SOURCE)) == []
    balance(dataset, paper(seed=5), tmp_path / "other")
    assert open_artifact(tmp_path / "other", SOURCE).digest != open_artifact(balanced, SOURCE).digest


# --- normal skin ---


def test_normal_skin_is_cut_beside_the_lesion_of_its_image(table, dataset):
    opened = Dataset.open(dataset)
    normal = table[table["dx"] == "normal"]
    rows = opened.rows_of(normal["parent_id"])
    for truth, x, y, side in zip(opened.truth(rows), normal["x"], normal["y"], normal["side"], strict=True):
        assert truth.any()
        assert not truth[y : y + side, x : x + side].any()
    assert (normal["lesion_id"].to_numpy() == opened.manifest["lesion_id"].iloc[rows].to_numpy()).all()


def test_the_square_farthest_from_the_lesion_is_taken():
    lesion = np.zeros((224, 224), np.uint8)
    lesion[:90, 60:] = 1
    assert free_window(np.full((224, 224, 3), 180, np.uint8), lesion) == (0, 128, 96)


@pytest.mark.parametrize(
    ("rows", "level", "found"),
    [(slice(0, 120), 180, True), (slice(0, 124), 180, False), (slice(0, 120), 40, False)],
    ids=["room", "too near", "dark"],
)
def test_a_square_keeps_its_distance_from_the_lesion_and_from_the_dark(rows, level, found):
    lesion, image = np.zeros((224, 224), np.uint8), np.full((224, 224, 3), 180, np.uint8)
    lesion[rows] = 1
    image[160:] = level
    assert (free_window(image, lesion) is not None) == found


# --- what comes of it ---


def test_the_dataset_knows_its_classes_parents_and_mark(ingested, dataset, table):
    made = Dataset.open(ingested)
    assert made.classes == CLASSES
    assert made.mark == MARK == "paper protocol: leaks, not promotable"
    assert made.info["source"]["made_from"]["content_digest"] == Dataset.open(dataset).content_digest
    assert made.info["source"]["balance"]["classes"]["nv"]["as_they_are"] == 4
    assert made.info["counts"]["rejects"] == 0
    assert made.manifest.attrs == pd.read_parquet(ingested / "manifest.parquet").attrs == {"mark": MARK}
    parents = made.manifest.set_index("image_id")["parent_id"]
    assert parents.to_dict() == table.set_index("image_id")["parent_id"].to_dict()


def test_the_validation_gate_lets_it_pass(ingested, tmp_path):
    report = check(Subject(ingested), VALIDATE, tmp_path / "report")
    assert report["blocking"] == []


def test_the_audit_finds_what_leaks_and_marks_the_splits(parted, ingested):
    from dermaflow.contracts import SPLITS, read_info, read_splits

    info, made = read_info(parted, SPLITS), read_splits(parted)
    assert info["promotable"] is False
    assert info["mark"] == MARK
    parents = Dataset.open(ingested).manifest.set_index("image_id")["parent_id"]
    origin = {image: parents[image] or image for image in made["image_id"]}
    train = {origin[image] for image in made.loc[made["split"] == "train", "image_id"]}
    test = made[made["split"] == "test"]
    assert info["leakage"]["all"]["augmented"] == sum(origin[image] in train for image in test["image_id"]) > 0
    assert info["leakage"]["df"]["share"] == 1.0


def test_a_split_by_lesion_does_not_lift_the_mark(dataset, tmp_path):
    balance(dataset, paper(targets=dict.fromkeys(CLASSES[:-1], 9)), tmp_path / "b")
    ingest(data_params(tmp_path / "b"), tmp_path / "d")
    info = split(tmp_path / "d", split_params(), tmp_path / "s")
    assert info["leakage"]["all"]["augmented"] == 0
    assert info["promotable"] is False
    assert info["mark"] == MARK


# --- what is refused ---


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (
            {name: count for name, count in TARGETS.items() if name != "df"},
            r"df is not named; name each of akiec, .*vasc, and normal",
        ),
        ({**TARGETS, "mole": 3}, r"mole is not a class of these data"),
    ],
    ids=["left out", "unknown"],
)
def test_targets_that_do_not_fit_the_classes_are_refused(dataset, tmp_path, targets, told):
    with pytest.raises(InputError, match=told):
        balance(dataset, paper(targets=targets), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_normal_skin_without_expert_masks_is_refused_and_the_other_classes_need_none(dataset, tmp_path):
    without = with_manifest(dataset, tmp_path / "d", lambda rows: rows.assign(has_truth=False))
    with pytest.raises(InputError, match=r"normal is cut from skin outside of expert masks, and these data have none"):
        balance(without, paper(), tmp_path / "b")
    told = balance(without, paper(targets=dict.fromkeys(CLASSES[:-1], 5)), tmp_path / "c")
    assert told.classes == CLASSES[:-1]
