"""Drift: found where the data differ by something that matters, not where they differ by chance or by nothing."""

import numpy as np
import pandas as pd
import pytest

from components.validate.core import Subject, check
from components.validate.drift import COLUMNS, compare, stability_index
from dermaflow.dataset import Dataset
from tests.sources import VALIDATE, with_manifest


def images(n, seed, **changes):
    """A manifest of n images drawn from one distribution."""
    drawn = np.random.default_rng(seed)
    values = {
        "brightness": drawn.normal(157, 19, n),
        "hair_share": drawn.exponential(0.001, n) * (drawn.random(n) < 0.3),
        "age": drawn.normal(52, 17, n).round(-1),
        "label": drawn.choice(["nv", "mel", "bkl"], n, p=[0.7, 0.15, 0.15]),
        "sex": drawn.choice(["male", "female"], n),
    }
    return pd.DataFrame({**values, **changes})


def verdicts(table, reference):
    found = compare(table, reference, VALIDATE)
    return dict(zip(found["column"], found["verdict"], strict=True))


def test_the_same_data_have_not_drifted():
    table = images(500, 1)
    found = compare(table, table, VALIDATE)
    assert list(found.columns) == list(COLUMNS)
    assert (found["statistic"] == 0).all()
    assert set(found["verdict"]) == {"stable"}


@pytest.mark.parametrize("sizes", [(84, 420), (1000, 10_000)])
def test_two_draws_of_the_same_distribution_raise_no_alarm(sizes):
    alarms = [
        name
        for seed in range(20)
        for name, verdict in verdicts(images(sizes[0], seed), images(sizes[1], 1000 + seed)).items()
        if verdict == "drifted"
    ]
    assert len(alarms) <= 2  # of 100 comparisons at validate.drift_p = 0.01


def test_a_darker_camera_and_other_classes_are_drift():
    drawn = np.random.default_rng(3)
    changed = images(400, 2, brightness=drawn.normal(140, 19, 400), label=drawn.choice(["nv", "mel"], 400))
    found = verdicts(changed, images(2000, 1))
    assert found["brightness"] == found["class prior"] == "drifted"
    assert found["age"] == found["sex"] == "stable"


def test_a_significant_difference_of_no_size_is_not_drift():
    drawn = np.random.default_rng(3)
    found = compare(images(100_000, 2, brightness=drawn.normal(158, 19, 100_000)), images(100_000, 1), VALIDATE)
    brightness = found.set_index("column").loc["brightness"]
    assert brightness["p_value"] < 1e-6
    assert brightness["verdict"] == "stable"


def test_a_difference_that_few_images_make_by_chance_is_not_drift():
    brightness = compare(images(12, 5), images(500, 1), VALIDATE).set_index("column").loc["brightness"]
    assert brightness["statistic"] > VALIDATE.drift_ks
    assert brightness["verdict"] == "stable"


def test_a_category_that_is_missing_on_one_side_gives_a_finite_index():
    index, p_value = stability_index(pd.Series({"nv": 90, "mel": 10}), pd.Series({"nv": 100}))
    assert 0.25 < index < 5
    assert p_value < 0.01


def test_the_index_of_equal_shares_is_zero_however_many_images_there_are():
    index, p_value = stability_index(pd.Series({"nv": 900, "mel": 100}), pd.Series({"nv": 9000, "mel": 1000}))
    assert index == pytest.approx(0, abs=1e-5)
    assert p_value > 0.9


def test_columns_that_an_older_dataset_does_not_have_are_passed_over():
    assert set(verdicts(images(50, 1), images(50, 2).drop(columns=["brightness", "hair_share"]))) == {
        "age",
        "class prior",
        "sex",
    }


def test_the_report_names_test_statistic_threshold_and_verdict(dataset, tmp_path):
    def darker(table):
        return table.assign(brightness=table["brightness"] - 60)

    dark = with_manifest(dataset, tmp_path / "dark", darker)
    report = check(Subject(dark), VALIDATE.model_copy(update={"reference": str(dataset)}), tmp_path / "report")
    entry = next(entry for entry in report["drift"] if entry["column"] == "brightness")
    assert entry["test"] == "Kolmogorov-Smirnov"
    assert entry["verdict"] == "drifted"
    assert entry["statistic"] > entry["threshold"] == VALIDATE.drift_ks
    assert any(text.startswith("no column drifted from the reference") for text in report["warnings"])
    assert report["references"] == {str(dataset): Dataset.open(dataset).artifact.digest}
    page = (tmp_path / "report" / "data_docs" / "index.html").read_text()
    assert "Drift against the reference" in page
    assert "drifted" in page


def test_a_dataset_has_not_drifted_from_itself(dataset, tmp_path):
    report = check(Subject(dataset), VALIDATE.model_copy(update={"reference": str(dataset)}), tmp_path / "report")
    assert report["warnings"] == []
    assert {entry["verdict"] for entry in report["drift"]} == {"stable"}


def test_without_a_reference_nothing_is_compared(dataset, tmp_path):
    report = check(Subject(dataset), VALIDATE, tmp_path / "report")
    assert report["drift"] == []
    assert not any("drift" in rule["rule"] for rule in report["rules"])
