"""An evaluation's figures: what validation chooses, subgroups, and that the table of predictions is enough."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from components.evaluate.figures import LEAST_LESIONS, OF_SUBGROUP, figures
from dermaflow.classes import HAM10000_CLASSES
from dermaflow.contracts import logit_columns
from dermaflow.metrics import evaluate_predictions
from dermaflow.params import EvaluateParams

PARAMS = EvaluateParams(bootstrap=200, specificity=0.9, seed=1)


def predictions(images=600, seed=0):
    random = np.random.default_rng(seed)
    lesions = np.arange(images) // 2
    labels = random.integers(7, size=images)[lesions]
    logits = random.normal(size=(images, 7))
    logits[np.arange(images), labels] += 1.5
    table = pd.DataFrame(
        {
            "image_id": [f"image{row:04d}" for row in range(images)],
            "lesion_id": [f"lesion{lesion:04d}" for lesion in lesions],
            "split": np.where(lesions % 2, "test", "validation"),
            "label": [HAM10000_CLASSES[label] for label in labels],
            "sex": np.array(["male", "female", ""])[random.choice(3, size=images, p=[0.6, 0.38, 0.02])[lesions]],
            "age": np.array([25.0, 45.0, 65.0, 85.0, np.nan])[random.integers(5, size=images)[lesions]],
            "localization": "back",
            "dx_type": "histo",
            "lesion_size": random.uniform(0.01, 0.6, size=images),
        }
    )
    return pd.concat([table, pd.DataFrame(logits, columns=logit_columns(HAM10000_CLASSES))], axis=1)


@pytest.fixture(scope="module")
def table():
    return predictions()


@pytest.fixture(scope="module")
def told(table):
    return figures(table, HAM10000_CLASSES, PARAMS)


def test_they_are_strict_json(told):
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_each_side_has_the_metrics_of_its_own_images(told, table):
    for split in ("validation", "test"):
        rows = table[table["split"] == split]
        alone = evaluate_predictions(rows, HAM10000_CLASSES, bootstrap=200, seed=1)
        assert {name: told[split][name] for name in alone} == alone


def test_test_images_choose_neither_temperature_nor_threshold(told, table):
    other = table.copy()
    test = other["split"] == "test"
    other.loc[test, logit_columns(HAM10000_CLASSES)] *= 7
    again = figures(other, HAM10000_CLASSES, PARAMS)
    assert (again["temperature"], again["thresholds"]) == (told["temperature"], told["thresholds"])
    assert again["test"]["calibration"] != told["test"]["calibration"]
    assert again["validation"] == told["validation"]


def test_on_validation_the_threshold_has_the_specificity_that_was_asked(told):
    for name in ("melanoma", "malignant"):
        point = told["validation"]["operating_points"][name]
        assert 0.9 <= point["specificity"]["estimate"] < 0.95
        assert point["threshold"] == told["test"]["operating_points"][name]["threshold"] == told["thresholds"][name]


def test_a_subgroup_always_has_its_size_and_figures_only_from_twenty_lesions_on(told, table):
    groups = told["test"]["subgroups"]
    test = table[table["split"] == "test"]
    assert set(groups) == {"sex", "age", "localization", "dx_type", "lesion_size"}
    assert list(groups["age"]) == ["under 30", "30 to 49", "50 to 69", "70 and over", "unknown"]
    assert list(groups["sex"]) == ["female", "male", "unknown"]
    for attribute, members in groups.items():
        assert sum(group["n_images"] for group in members.values()) == len(test), attribute
    men = test[test["sex"] == "male"]
    alone = evaluate_predictions(men, HAM10000_CLASSES, bootstrap=200, seed=1)["overall"]
    for name in OF_SUBGROUP:
        assert groups["sex"]["male"][name]["estimate"] == pytest.approx(alone[name]["estimate"], abs=1e-12)
        assert groups["sex"]["male"][name]["low"] <= alone[name]["estimate"] <= groups["sex"]["male"][name]["high"]
    assert groups["sex"]["unknown"]["n_lesions"] < LEAST_LESIONS
    assert groups["sex"]["unknown"]["accuracy"] == {"estimate": None, "low": None, "high": None}
    for name, members in (("melanoma", ["mel"]), ("malignant", ["akiec", "bcc", "mel"])):
        assert groups["sex"]["male"][name]["n_images"] == men["label"].isin(members).sum()
        assert groups["sex"]["male"][name]["n_lesions"] == men.loc[men["label"].isin(members), "lesion_id"].nunique()


def test_a_table_without_clinical_columns_has_no_subgroups(table):
    bare = table.drop(columns=["sex", "age", "localization", "dx_type", "lesion_size"])
    assert figures(bare, HAM10000_CLASSES, PARAMS)["test"]["subgroups"] == {}


def test_classes_without_melanoma_have_no_operating_point():
    others = [name for name in HAM10000_CLASSES if name not in ("df", "nv")]
    few = predictions(200)
    few = few[~few["label"].isin(others)].drop(columns=logit_columns(others))
    assert figures(few, ("df", "nv"), PARAMS)["test"]["operating_points"] == {}
