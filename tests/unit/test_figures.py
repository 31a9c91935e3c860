"""An evaluation's figures: what validation chooses, subgroups, and that the table of predictions is enough."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from dermaflow.classes import HAM10000_CLASSES
from dermaflow.contracts import logit_columns
from dermaflow.figures import LEAST_LESIONS, OF_SUBGROUP, Chosen, figures
from dermaflow.metrics import evaluate_predictions, softmax
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
    other.loc[test, "label"] = "mel"
    again = figures(other, HAM10000_CLASSES, PARAMS)
    assert (again["temperature"], again["thresholds"]) == (told["temperature"], told["thresholds"])
    assert again["test"]["calibration"] != told["test"]["calibration"]
    assert again["validation"] == told["validation"]


def test_a_question_is_answered_as_scikit_learn_says_at_the_threshold_of_validation(told, table):
    test = table[table["split"] == "test"]
    probabilities = softmax(test[logit_columns(HAM10000_CLASSES)].to_numpy() / told["temperature"])
    for name, members in (("melanoma", ["mel"]), ("malignant", ["akiec", "bcc", "mel"])):
        holds, point = test["label"].isin(members), told["test"]["operating_points"][name]
        scores = probabilities[:, [HAM10000_CLASSES.index(member) for member in members]].sum(axis=1)
        says = scores >= told["thresholds"][name]
        expected = {
            "sensitivity": sk.recall_score(holds, says), "specificity": sk.recall_score(~holds, ~says),
            "ppv": sk.precision_score(holds, says), "npv": sk.precision_score(~holds, ~says),
            "auroc": sk.roc_auc_score(holds, scores), "auprc": sk.average_precision_score(holds, scores),
        }  # fmt: skip
        assert {key: point[key]["estimate"] for key in expected} == pytest.approx(expected, abs=1e-9)
        for key, value in expected.items():
            assert point[key]["low"] <= value <= point[key]["high"]


def test_of_other_data_there_are_test_images_alone_and_what_validation_chose_elsewhere(table):
    test = table[table["split"] == "test"]
    told = figures(test, HAM10000_CLASSES, PARAMS, Chosen(2.0, {"melanoma": 0.4}))
    assert "validation" not in told
    assert (told["temperature"], told["thresholds"]["melanoma"], told["thresholds"]["malignant"]) == (2.0, 0.4, None)
    assert told["test"]["operating_points"]["melanoma"]["sensitivity"]["estimate"] is not None
    assert told["test"]["operating_points"]["malignant"]["sensitivity"] == {"estimate": None, "low": None, "high": None}
    assert told["test"]["operating_points"]["malignant"]["auroc"]["estimate"] > 0.5
    unknown = figures(test, HAM10000_CLASSES, PARAMS, Chosen())["test"]
    assert unknown["calibration"] == {"before": told["test"]["calibration"]["before"], "after": None}
    assert unknown["abstention"][0]["accuracy"] == told["test"]["overall"]["accuracy"]


def test_without_validation_images_nothing_is_chosen(table):
    told = figures(table[table["split"] == "test"], HAM10000_CLASSES, PARAMS)
    assert told["temperature"] is None
    assert set(told["thresholds"].values()) == {0.9, None}
    assert told["validation"]["n_images"] == 0


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
