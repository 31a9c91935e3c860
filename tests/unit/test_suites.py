"""The suites of splits, plan, masks and predictions: each artifact as it is made passes, and each fault has its rule."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.augment.core import augment
from components.segment.core import segment
from components.split.core import split
from components.validate.core import Subject, check, validate
from components.validate.rules import SUITES, suite_names
from dermaflow.artifacts import ARTIFACT_FILE, new_artifact, open_artifact, read_json, write_json
from dermaflow.contracts import EVALUATION, MASKS, PLAN, SPLITS, logit_columns, read_splits
from dermaflow.dataset import KIND, Dataset
from dermaflow.errors import GateError, InputError
from dermaflow.params import SegmentParams
from tests.sources import MIXUP, VALIDATE, augment_params, split_params, with_manifest

Table = pd.DataFrame
SEGMENT = SegmentParams(working_size=64, min_area_share=0.01, max_area_share=0.9, min_dice=0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, dataset: Path, splits: Path) -> SimpleNamespace:
    """Everything that a run makes of the 42 phantoms, with predictions that are right; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    segment(dataset, SEGMENT, folder / "masks")
    augment(dataset, splits, augment_params(), MIXUP, folder / "plan")
    for name in ("cnn", "resnet50"):
        write_predictions(folder / name, name, dataset, splits)
    return SimpleNamespace(
        dataset=dataset, splits=splits, masks=folder / "masks", plan=folder / "plan",
        evaluations=(folder / "cnn", folder / "resnet50"),
    )  # fmt: skip


def write_predictions(target: Path, architecture: str, dataset: Path, splits: Path) -> None:
    opened, table = Dataset.open(dataset), read_splits(splits)
    judged = table.loc[table["split"] != "train", ["image_id", "lesion_id", "split", "label"]].reset_index(drop=True)
    logits = np.eye(len(opened.classes))[[opened.classes.index(label) for label in judged["label"]]]
    with new_artifact(target, EVALUATION) as folder:
        pd.concat([judged, Table(logits, columns=logit_columns(opened.classes))], axis=1).to_parquet(
            folder / "predictions.parquet", index=False
        )
        write_json(folder / "metrics.json", {"architecture": architecture})


def spoilt(artifact: Path, kind: str, target: Path, table: str | None = None, change: Any = None, **info: Any) -> Path:
    """A copy of an artifact, sealed anew, with a changed table and changed entries of its JSON."""
    with new_artifact(target, kind) as folder:
        shutil.copytree(artifact, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ARTIFACT_FILE))
        if table:
            change(pd.read_parquet(folder / table)).to_parquet(folder / table, index=False)
        if info:
            write_json(folder / f"{kind}.json", {**read_json(folder / f"{kind}.json"), **info})
    return target


def rule(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in report["rules"] if entry["rule"] == name)


def named(report: dict[str, Any], name: str) -> set[str]:
    """Ids of the images that a rule which fails names."""
    assert not rule(report, name)["success"], name
    return {row["image_id"] for row in rule(report, name)["rows"]}


def blocking(report: dict[str, Any]) -> set[str]:
    return {entry["rule"] for entry in report["rules"] if not entry["success"] and entry["level"] == "critical"}


def assign(column: str, row: int, value: Any) -> Callable[[Table], Table]:
    def change(table: Table) -> Table:
        table = table.copy()
        table.loc[row, column] = value
        return table

    return change


# --- as they are made ---


@pytest.mark.parametrize("suites", [("splits",), ("masks", "plan"), ("predictions",)], ids=", ".join)
def test_what_the_steps_make_passes(made, tmp_path, suites):
    subject = Subject(made.dataset, made.splits, made.plan, made.masks, made.evaluations)
    few = VALIDATE.model_copy(update={"max_split_deviation": 0.25})  # seven classes of 42 images can not be parted 80/10/10
    report = validate(subject, few, tmp_path / "r", suites)
    assert (report["blocking"], report["warnings"]) == ([], [])
    assert report["suite"] == ", ".join(suites)
    assert all(entry["error"] is None for entry in report["rules"])
    for suite in suites:
        assert (tmp_path / "r" / "data_docs" / "validations" / f"{suite}.html").is_file()


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_is_one_of_great_expectations_and_each_rule_says_what_it_is_about(name):
    suite = json.loads((SUITES / f"{name}.json").read_text())
    assert suite["name"] == name
    rules = [entry["meta"]["rule"] for entry in suite["expectations"]]
    assert len(set(rules)) == len(rules)
    for entry in suite["expectations"]:
        assert entry["severity"] in ("critical", "warning", "info")
        assert entry["meta"]["table"]


def test_a_suite_whose_artifact_was_not_given_says_what_it_needs(made, tmp_path):
    with pytest.raises(InputError, match="suite 'plan' needs splits and plan too"):
        check(Subject(made.dataset), VALIDATE, tmp_path / "r", ("plan",))


# --- splits ---


def judge_splits(
    made: SimpleNamespace, tmp_path: Path, change: Any, dataset: Path | None = None, **info: Any
) -> dict[str, Any]:
    target = spoilt(made.splits, SPLITS, tmp_path / "splits", "splits.parquet", change, **info)
    return check(Subject(dataset or made.dataset, target), VALIDATE, tmp_path / "r", ("splits",))


def torn_lesion(table: Table) -> tuple[int, str]:
    """Row and split, so that one image of a lesion with several lands elsewhere than the others."""
    rows = next(rows for rows in table.groupby("lesion_id").groups.values() if len(rows) > 1)
    return int(rows[0]), "test" if table.loc[rows[0], "split"] != "test" else "train"


def test_a_lesion_on_two_sides_blocks(made, tmp_path):
    table = read_splits(made.splits)
    row, side = torn_lesion(table)
    report = judge_splits(made, tmp_path, assign("split", row, side))
    lesion = table.loc[row, "lesion_id"]
    assert named(report, "each lesion is on one side") == set(table.loc[table["lesion_id"] == lesion, "image_id"])
    assert named(report, "each group is on one side") >= set(table.loc[table["lesion_id"] == lesion, "image_id"])
    with pytest.raises(GateError, match="each lesion is on one side"):
        validate(Subject(made.dataset, tmp_path / "splits"), VALIDATE, tmp_path / "again", ("splits",))


def test_a_random_split_leaks_by_design_and_only_warns(made, tmp_path):
    split(made.dataset, split_params(strategy="random"), tmp_path / "random")
    report = check(Subject(made.dataset, tmp_path / "random"), VALIDATE, tmp_path / "r", ("splits",))
    assert report["success"]
    leak = rule(report, "each lesion is on one side")
    assert not leak["success"]
    assert leak["level"] == "warning"
    assert "random leaks by design" in leak["note"]
    assert "random leaks by design" in (tmp_path / "r" / "data_docs" / "validations" / "splits.html").read_text()


def test_an_image_in_no_split_twice_or_unknown_blocks(made, tmp_path):
    table = read_splits(made.splits)

    def change(rows: Table) -> Table:
        stranger = rows.iloc[[2]].assign(image_id="STRANGER", lesion_id="L", group_id="L")
        return pd.concat([rows.iloc[1:], rows.iloc[[3]], stranger], ignore_index=True)

    report = judge_splits(made, tmp_path, change)
    assert named(report, "each image of the dataset is in a split") == {table.loc[0, "image_id"]}
    assert named(report, "each image once") == {table.loc[3, "image_id"]}
    assert named(report, "only images of the dataset are in a split, none that was withdrawn") == {"STRANGER"}


def test_an_image_that_was_withdrawn_must_leave_the_splits(made, tmp_path):
    withdrawn = with_manifest(made.dataset, tmp_path / "d", lambda table: table.assign(withdrawn=table.index == 5))
    report = judge_splits(made, tmp_path, lambda table: table, withdrawn)
    expected = Dataset.open(made.dataset).manifest.loc[5, "image_id"]
    assert named(report, "only images of the dataset are in a split, none that was withdrawn") == {expected}


def test_an_unknown_split_and_another_label_block(made, tmp_path):
    table = read_splits(made.splits)
    other = "nv" if table.loc[1, "label"] != "nv" else "mel"
    report = judge_splits(made, tmp_path, lambda rows: assign("label", 1, other)(assign("split", 0, "holdout")(rows)))
    assert table.loc[0, "image_id"] in named(report, "the split is train, validation, test or excluded")
    assert named(report, "lesion and label are those of the dataset") == {table.loc[1, "image_id"]}


def two_sides(splits: Path) -> tuple[str, str]:
    """A train and a test image of different lesions."""
    table = read_splits(splits)
    return tuple(table.loc[table["split"] == side, "image_id"].iloc[0] for side in ("train", "test"))


@pytest.mark.parametrize(
    ("column", "name"),
    [("pixel_digest", "identical pixels are on one side"), ("source_digest", "identical files are on one side")],
)
def test_identical_pixels_or_files_on_two_sides_block(made, tmp_path, column, name):
    pair = two_sides(made.splits)

    def twins(table: Table) -> Table:
        table.loc[table["image_id"].isin(pair), column] = "sha256:" + 64 * "a"
        return table

    report = judge_splits(made, tmp_path, lambda table: table, with_manifest(made.dataset, tmp_path / "d", twins))
    assert named(report, name) == set(pair)


def with_pair(dataset: Path, target: Path, pair: tuple[str, str]) -> Path:
    """The dataset with a near-duplicate pair more."""

    def change(table: Table) -> Table:
        return pd.concat([table, Table([[*pair, 0.1, 0.9]], columns=table.columns)], ignore_index=True)

    return spoilt(dataset, KIND, target, "neighbours.parquet", change)


def test_near_duplicates_on_two_sides_block(made, tmp_path):
    pair = two_sides(made.splits)
    report = judge_splits(made, tmp_path, lambda table: table, with_pair(made.dataset, tmp_path / "d", pair))
    (row,) = rule(report, "near duplicates are on one side")["rows"]
    assert (row["image_id"], row["other_image"]) == pair
    assert (row["split"], row["other_split"]) == ("train", "test")


def test_a_class_that_a_split_lacks_blocks_and_a_lopsided_split_warns(made, tmp_path):
    def change(table: Table) -> Table:
        return table.assign(split=table["split"].where(table["label"] != "mel", "train"))

    report = judge_splits(made, tmp_path, change, shares={"train": 0.4, "validation": 0.3, "test": 0.3})
    rows = rule(report, "each class is in each split")["rows"]
    assert {(row["label"], row["split"]) for row in rows} == {("mel", "validation"), ("mel", "test")}
    assert any(text.startswith("each split has about its share of the images") for text in report["warnings"])


# --- against earlier splits ---


def judge_against(
    made: SimpleNamespace, tmp_path: Path, change: Any, dataset: Path | None = None, **info: Any
) -> dict[str, Any]:
    target = spoilt(made.splits, SPLITS, tmp_path / "splits", "splits.parquet", change, **info)
    params = VALIDATE.model_copy(update={"reference_splits": str(made.splits)})
    return check(Subject(dataset or made.dataset, target), params, tmp_path / "r", ("splits",))


def test_the_same_splits_keep_the_frozen_test_set(made, tmp_path):
    report = judge_against(made, tmp_path, lambda table: table)
    assert report["blocking"] == []
    (frozen,) = report["overview"]["splits: frozen"]
    assert frozen["digest"] == frozen["earlier_digest"]
    assert report["references"] == {str(made.splits): open_artifact(made.splits, SPLITS).digest}


def test_a_test_lesion_that_went_to_train_blocks(made, tmp_path):
    table = read_splits(made.splits)
    lesion = table.loc[table["split"] == "test", "lesion_id"].iloc[0]
    moved = set(table.loc[table["lesion_id"] == lesion, "image_id"])
    report = judge_against(
        made, tmp_path, lambda rows: rows.assign(split=rows["split"].where(rows["lesion_id"] != lesion, "train"))
    )
    assert named(report, "an image of an earlier test set is still in test") == moved
    assert named(report, "no relative of an earlier test image is in train") == moved
    assert named(report, "who is in test is a member of a numbered test set, and no one else") == moved


def test_a_near_duplicate_of_an_earlier_test_image_in_train_blocks(made, tmp_path):
    train, test = two_sides(made.splits)
    dataset = with_pair(made.dataset, tmp_path / "d", (train, test))
    report = judge_against(made, tmp_path, lambda table: table, dataset)
    (row,) = rule(report, "no relative of an earlier test image is in train")["rows"]
    assert row["image_id"] == train
    assert (row["test_image"], row["related_by"]) == (test, "near duplicate")


def test_an_image_that_came_into_test_without_a_number_blocks(made, tmp_path):
    table = read_splits(made.splits)
    lesion = table.loc[table["split"] == "validation", "lesion_id"].iloc[0]

    def grown(rows: Table) -> Table:
        return rows.assign(split=rows["split"].where(rows["lesion_id"] != lesion, "test"))

    report = judge_against(made, tmp_path, grown)
    moved = set(table.loc[table["lesion_id"] == lesion, "image_id"])
    assert named(report, "who is in test is a member of a numbered test set, and no one else") == moved


def test_an_earlier_test_set_that_lost_a_member_blocks(made, tmp_path):
    fewer = spoilt(made.splits, SPLITS, tmp_path / "s", "test_sets.parquet", lambda tests: tests.iloc[1:])
    params = VALIDATE.model_copy(update={"reference_splits": str(made.splits)})
    report = check(Subject(made.dataset, fewer), params, tmp_path / "r", ("splits",))
    assert "each earlier test set has its members still" in blocking(report)


def test_an_excluded_image_needs_a_reason_and_is_on_no_side(made, tmp_path):
    table = read_splits(made.splits)
    several = table.groupby("lesion_id")["image_id"].transform("size").gt(1) & table["split"].eq("train")
    image = table.loc[several, "image_id"].iloc[0]

    def exclude(reason: str) -> Callable[[Table], Table]:
        def change(rows: Table) -> Table:
            chosen = rows["image_id"] == image
            return rows.assign(split=rows["split"].mask(chosen, "excluded"), reason=rows["reason"].mask(chosen, reason))

        return change

    assert named(judge_splits(made, tmp_path / "without", exclude("")), "an excluded image has a reason") == {image}
    assert blocking(judge_splits(made, tmp_path / "with", exclude("bridged"))) == set()


# --- plan ---


def judge_plan(made: SimpleNamespace, tmp_path: Path, change: Any) -> dict[str, Any]:
    target = spoilt(made.plan, PLAN, tmp_path / "plan", "plan.parquet", change)
    return check(Subject(made.dataset, made.splits, target), VALIDATE, tmp_path / "r", ("plan",))


def test_a_child_of_an_image_outside_train_blocks(made, tmp_path):
    _, test = two_sides(made.splits)
    report = judge_plan(made, tmp_path, assign("image_id", 0, test))
    assert named(report, "whatever is drawn is a child of a train image") == {test}
    assert rule(report, "whatever is drawn is a child of a train image")["rows"][0]["split_of_parent"] == "test"


def test_a_child_away_from_its_parent_a_bad_weight_and_a_forgotten_image_are_told(made, tmp_path):
    plan = pd.read_parquet(made.plan / "plan.parquet")
    last = plan["image_id"].iloc[-1]

    def change(table: Table) -> Table:
        table = assign("weight", 3, -1.0)(assign("lesion_id", 0, "ELSEWHERE")(table))
        return table[table["image_id"] != last]

    report = judge_plan(made, tmp_path, change)
    assert named(report, "a child has its parent's lesion and label") == {plan["image_id"][0]}
    assert named(report, "weights are positive") == {plan["image_id"][3]}
    assert named(report, "each train image is drawn") == {last}


# --- masks ---


def judge_masks(made: SimpleNamespace, tmp_path: Path, change: Any) -> dict[str, Any]:
    target = spoilt(made.masks, MASKS, tmp_path / "masks", "masks.parquet", change)
    return check(Subject(made.dataset, masks=target), VALIDATE, tmp_path / "r", ("masks",))


def test_missing_empty_and_full_masks_block(made, tmp_path):
    ids = pd.read_parquet(made.masks / "masks.parquet")["image_id"]
    report = judge_masks(
        made, tmp_path, lambda table: assign("area_share", 1, 0.0)(assign("area_share", 2, 1.0)(table)).iloc[1:]
    )
    assert named(report, "each image has a mask") == {ids[0]}
    assert named(report, "no mask is empty or full") == {ids[1], ids[2]}
    assert named(report, "the stored masks are 0 or 1, and of the area that the table says") == {ids[1], ids[2]}


def test_many_fallbacks_and_little_overlap_warn(made, tmp_path):
    report = judge_masks(made, tmp_path, lambda table: table.assign(fallback=table.index < 10, dice=0.1))
    assert len(named(report, "few masks are the fallback (validate.max_fallback_share)")) == 10
    assert rule(report, "masks overlap the experts' for most images")["failing"] == len(Dataset.open(made.dataset).manifest)
    assert report["success"]


def test_mask_shards_that_do_not_lie_beside_the_images_block(made, tmp_path):
    with new_artifact(tmp_path / "masks", MASKS) as folder:
        shutil.copytree(made.masks, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ARTIFACT_FILE))
        np.save(folder / "mask-00000.npy", np.load(folder / "mask-00000.npy")[:-1])
    report = check(Subject(made.dataset, masks=tmp_path / "masks"), VALIDATE, tmp_path / "r", ("masks",))
    assert rule(report, "the masks lie row by row beside the images")["rows"][0]["masks"] == "41"


# --- predictions ---


def judge_predictions(made: SimpleNamespace, tmp_path: Path, change: Any) -> dict[str, Any]:
    target = spoilt(made.evaluations[1], EVALUATION, tmp_path / "resnet50", "predictions.parquet", change)
    subject = Subject(made.dataset, made.splits, evaluations=(made.evaluations[0], target))
    return check(subject, VALIDATE, tmp_path / "r", ("predictions",))


def test_a_train_image_a_missing_one_and_one_twice_block(made, tmp_path):
    train, _ = two_sides(made.splits)
    ids = pd.read_parquet(made.evaluations[0] / "predictions.parquet")["image_id"]

    def change(table: Table) -> Table:
        table = assign("image_id", 0, train)(table)
        return pd.concat([table, table.iloc[[1]]], ignore_index=True)

    report = judge_predictions(made, tmp_path, change)
    assert named(report, "no train image is judged, and none that the splits do not know") == {train}
    assert named(report, "each validation and test image is judged") == {ids[0]}
    assert named(report, "each image once for each architecture") == {ids[1]}
    assert {row["architecture"] for row in rule(report, "each validation and test image is judged")["rows"]} == {"resnet50"}


def test_infinite_logits_and_another_label_or_split_block(made, tmp_path):
    ids = pd.read_parquet(made.evaluations[0] / "predictions.parquet")
    other = "nv" if ids.loc[1, "label"] != "nv" else "mel"
    side = "test" if ids.loc[2, "split"] != "test" else "validation"

    def change(table: Table) -> Table:
        return assign("split", 2, side)(assign("label", 1, other)(assign("logit_nv", 0, np.inf)(table)))

    report = judge_predictions(made, tmp_path, change)
    assert named(report, "every logit is a finite number") == {ids["image_id"][0]}
    assert named(report, "the label is that of the dataset") == {ids["image_id"][1]}
    assert named(report, "the split is that of the splits") == {ids["image_id"][2]}


def test_a_class_without_a_logit_blocks_and_a_model_of_one_answer_warns(made, tmp_path):
    logits = [f"logit_{name}" for name in Dataset.open(made.dataset).classes]

    def change(table: Table) -> Table:
        return table.assign(**dict.fromkeys(logits, 0.0)).drop(columns="logit_vasc")

    report = judge_predictions(made, tmp_path, change)
    (row,) = rule(report, "there is a logit for each class, in the dataset's order")["rows"]
    assert row["architecture"] == "resnet50"
    assert any(text.startswith("no model answers with one class alone") for text in report["warnings"])
