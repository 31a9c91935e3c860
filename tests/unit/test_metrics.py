"""Metrics: they agree with scikit-learn, intervals mean what they say, odd input is named."""

import json
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from dermaflow import metrics
from dermaflow.errors import InputError

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def table(labels, logits, lesions=None):
    """Predictions in the shape of predictions.parquet."""
    rows = range(len(labels))
    head = {
        "image_id": [f"image{row:06d}" for row in rows],
        "lesion_id": [f"lesion{row if lesions is None else lesions[row]:06d}" for row in rows],
        "label": [CLASSES[label] for label in labels],
    }
    return pd.DataFrame({**head, **{f"logit_{name}": np.asarray(logits)[:, k] for k, name in enumerate(CLASSES)}})


def random_table(images, seed, *, skill=1.5, per_lesion=1, classes=7):
    random = np.random.default_rng(seed)
    lesions = np.arange(images) // per_lesion
    labels = random.integers(classes, size=images)[lesions]
    logits = random.normal(size=(images, 7)).astype(np.float32)
    logits[np.arange(images), labels] += skill
    return table(labels, logits, lesions)


@st.composite
def judged(draw):
    """Labels of some of the classes, often one image of each; logits on a coarse grid, so that ties and classes that are
    never predicted are common."""
    present = draw(st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True))
    several = st.lists(st.sampled_from(present), min_size=2, max_size=40)
    labels = np.asarray(draw(several if len(present) == 1 else st.one_of(st.just(present), several)))
    steps = draw(st.sampled_from([2, 3, 50]))
    seed = draw(st.integers(0, 10_000))
    return labels, np.random.default_rng(seed).integers(-steps, steps, size=(len(labels), 7)).astype(np.float32) / 2


def estimates(values):
    return {name: value["estimate"] for name, value in values.items() if isinstance(value, dict)}


@given(judged())
@settings(max_examples=50, deadline=None)
def test_overall_estimates_are_those_of_scikit_learn(sample):
    labels, logits = sample
    predicted, present = logits.argmax(axis=1), np.unique(labels)
    ours = estimates(metrics.evaluate_predictions(table(labels, logits), CLASSES, bootstrap=2, seed=0)["overall"])
    macro = {"labels": present, "average": "macro", "zero_division": 0}  # a class without images has no sensitivity
    assert ours["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-9)
    assert ours["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted), abs=1e-9)
    assert ours["sensitivity"] == pytest.approx(sk.recall_score(labels, predicted, **macro), abs=1e-9)
    assert ours["precision"] == pytest.approx(sk.precision_score(labels, predicted, **macro), abs=1e-9)
    assert ours["f1"] == pytest.approx(sk.f1_score(labels, predicted, **macro), abs=1e-9)
    assert ours["top3"] == pytest.approx(sk.top_k_accuracy_score(labels, logits, k=3, labels=range(7)), abs=1e-9)


@given(judged())
@settings(max_examples=50, deadline=None)
def test_class_estimates_are_those_of_scikit_learn_one_against_the_rest(sample):
    labels, logits = sample
    predicted, probabilities = logits.argmax(axis=1), metrics.softmax(logits)
    told = metrics.evaluate_predictions(table(labels, logits), CLASSES, bootstrap=2, seed=0)["per_class"]
    for k, name in enumerate(CLASSES):
        ours, mine, called = estimates(told[name]), labels == k, predicted == k
        assert told[name]["n_images"] == mine.sum()
        if not mine.any():
            assert set(ours.values()) == {None}
            continue
        assert ours["sensitivity"] == pytest.approx(sk.recall_score(mine, called), abs=1e-9)
        assert ours["precision"] == pytest.approx(sk.precision_score(mine, called, zero_division=0), abs=1e-9)
        assert ours["f1"] == pytest.approx(sk.f1_score(mine, called, zero_division=0), abs=1e-9)
        if mine.all():
            assert {ours[name] for name in ("specificity", "npv", "auroc", "auprc")} == {None}
        else:
            assert ours["specificity"] == pytest.approx(sk.recall_score(~mine, ~called), abs=1e-9)
            assert ours["npv"] == pytest.approx(sk.precision_score(~mine, ~called, zero_division=0), abs=1e-9)
            assert ours["auroc"] == pytest.approx(sk.roc_auc_score(mine, probabilities[:, k]), abs=1e-9)
            assert ours["auprc"] == pytest.approx(sk.average_precision_score(mine, probabilities[:, k]), abs=1e-9)


def test_with_every_class_present_the_averages_are_scikit_learns_over_all_classes():
    predictions = random_table(300, seed=1)
    logits = predictions.filter(like="logit_").to_numpy()
    labels = np.asarray([CLASSES.index(label) for label in predictions["label"]])
    ours = estimates(metrics.evaluate_predictions(predictions, CLASSES, bootstrap=2, seed=0)["overall"])
    average = {"labels": range(7), "average": "macro", "zero_division": 0}
    predicted, probabilities = logits.argmax(axis=1), metrics.softmax(logits)
    assert ours["sensitivity"] == pytest.approx(sk.recall_score(labels, predicted, **average), abs=1e-9)
    assert ours["precision"] == pytest.approx(sk.precision_score(labels, predicted, **average), abs=1e-9)
    assert ours["f1"] == pytest.approx(sk.f1_score(labels, predicted, **average), abs=1e-9)
    area = sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro", labels=range(7))
    assert ours["auroc"] == pytest.approx(area, abs=1e-9)
    average_precision = sk.average_precision_score(np.eye(7)[labels], probabilities, average="macro")
    assert ours["auprc"] == pytest.approx(average_precision, abs=1e-9)
    assert ours["top3"] == pytest.approx(sk.top_k_accuracy_score(labels, probabilities, k=3), abs=1e-9)


@given(judged(), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_a_replicate_is_the_metric_of_the_images_drawn_as_often(sample, seed):
    labels, logits = sample
    weights = np.random.default_rng(seed).integers(0, 4, size=(3, len(labels))).astype(np.float64)
    areas = metrics.ranked(logits.astype(np.float64), labels, weights)
    counts = metrics.confusion_counts(logits.argmax(axis=1), labels, weights, 7)
    for row, times in enumerate(weights.astype(int)):
        drawn, scores = np.repeat(labels, times), np.repeat(logits, times, axis=0)
        expected = sk.confusion_matrix(drawn, scores.argmax(axis=1), labels=range(7)) if len(drawn) else np.zeros((7, 7))
        assert (counts[row] == expected).all()
        for k in range(7):
            if 0 < (drawn == k).sum() < len(drawn):
                assert areas["auroc"][row, k] == pytest.approx(sk.roc_auc_score(drawn == k, scores[:, k]), abs=1e-9)
                expected = sk.average_precision_score(drawn == k, scores[:, k])
                assert areas["auprc"][row, k] == pytest.approx(expected, abs=1e-9)
            else:
                assert np.isnan(areas["auroc"][row, k])
                assert np.isnan(areas["auprc"][row, k])


def test_confusion_has_true_classes_in_rows():
    counts = metrics.evaluate_predictions(table([4, 4, 5], np.eye(7)[[4, 5, 5]]), CLASSES, bootstrap=10, seed=0)["confusion"]
    assert counts["classes"] == list(CLASSES)
    assert counts["counts"][4][4:6] == [1, 1]
    assert counts["counts"][5][4:6] == [0, 1]


def test_softmax_of_huge_logits_is_finite():
    assert metrics.softmax(np.asarray([[1e4, -1e4, 1e4]], np.float32)).tolist() == [[0.5, 0.0, 0.5]]


def test_nothing_to_judge_is_none_everywhere_and_strict_json():
    empty = metrics.evaluate_predictions(random_table(5, seed=0).iloc[:0], CLASSES, bootstrap=100, seed=0)
    assert empty["n_images"] == 0
    assert all(value == {"estimate": None, "low": None, "high": None} for value in empty["overall"].values())
    few = metrics.evaluate_predictions(random_table(6, seed=3, classes=2), CLASSES, bootstrap=100, seed=0)
    json.dumps([empty, few], allow_nan=False)


def test_intervals_depend_on_the_seed_and_on_nothing_else(monkeypatch):
    predictions = random_table(120, seed=4, per_lesion=2)
    first = metrics.evaluate_predictions(predictions, CLASSES, bootstrap=300, seed=7)
    shuffled = predictions.sample(frac=1, random_state=1)
    assert metrics.evaluate_predictions(shuffled, CLASSES, bootstrap=300, seed=7) == first
    assert metrics.evaluate_predictions(predictions, CLASSES, bootstrap=300, seed=8) != first
    monkeypatch.setattr(metrics, "_CHUNK_WEIGHTS", 1000)  # eight replicates at a time
    assert metrics.evaluate_predictions(predictions, CLASSES, bootstrap=300, seed=7) == first


def test_interval_of_the_accuracy_is_that_of_independent_lesions():
    """Against the normal approximation of a binomial share, for 400 lesions of one image."""
    told = metrics.evaluate_predictions(random_table(400, seed=5), CLASSES, bootstrap=4000, seed=0)["overall"]["accuracy"]
    expected = 2 * 1.96 * np.sqrt(told["estimate"] * (1 - told["estimate"]) / 400)
    assert told["high"] - told["low"] == pytest.approx(expected, rel=0.08)


def test_ten_copies_of_each_image_of_a_lesion_do_not_narrow_the_interval():
    once = random_table(150, seed=6)
    copies = pd.concat([once.assign(image_id=once["image_id"] + f"_{copy}") for copy in range(10)])
    narrow = metrics.evaluate_predictions(once, CLASSES, bootstrap=500, seed=0)["overall"]
    still = metrics.evaluate_predictions(copies, CLASSES, bootstrap=500, seed=0)["overall"]
    for name in metrics.OVERALL:
        assert still[name] == pytest.approx(narrow[name], abs=1e-9)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Accuracy of a model that is right on 70 % of lesions, with three images each that stand or fall together."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(120):
        lesions = np.repeat(np.arange(100), 3)
        right = (random.random(100) < 0.7)[lesions]
        logits = np.where(right[:, None], np.eye(7)[0], np.eye(7)[1])
        told = metrics.evaluate_predictions(table(np.zeros(300, int), logits, lesions), CLASSES, bootstrap=200, seed=0)
        covered += told["overall"]["accuracy"]["low"] <= 0.7 <= told["overall"]["accuracy"]["high"]
    assert 0.90 <= covered / 120 <= 0.98


def test_a_rare_class_that_some_replicates_miss_still_has_an_interval():
    predictions = random_table(60, seed=8, classes=3)
    predictions.loc[0, "label"] = "vasc"
    told = metrics.evaluate_predictions(predictions, CLASSES, bootstrap=500, seed=0)
    assert told["per_class"]["vasc"]["n_lesions"] == 1
    assert told["per_class"]["vasc"]["auroc"]["low"] is not None
    assert told["overall"]["balanced_accuracy"]["low"] <= told["overall"]["balanced_accuracy"]["estimate"]


def test_a_model_does_not_differ_from_itself():
    predictions = random_table(80, seed=9)
    for metric in ("balanced_accuracy", "auroc", "mel.sensitivity"):
        told = metrics.paired_difference(predictions, predictions, CLASSES, metric=metric, bootstrap=200, seed=0)
        assert told == {"estimate": 0, "low": 0, "high": 0}


def test_the_paired_difference_is_that_of_the_estimates_and_changes_sign():
    a, b = random_table(400, seed=10, skill=2.0), random_table(400, seed=10, skill=1.0)
    told = metrics.paired_difference(a, b, CLASSES, bootstrap=500, seed=0)
    back = metrics.paired_difference(b, a, CLASSES, bootstrap=500, seed=0)
    values = [metrics.evaluate_predictions(each, CLASSES, bootstrap=500, seed=0)["overall"] for each in (a, b)]
    alone = [value["balanced_accuracy"] for value in values]
    assert told["estimate"] == pytest.approx(alone[0]["estimate"] - alone[1]["estimate"], abs=1e-12)
    assert 0 < told["low"] < told["estimate"] < told["high"]
    assert back["low"] == pytest.approx(-told["high"], abs=1e-9)
    assert told["high"] - told["low"] < sum(value["high"] - value["low"] for value in alone) / np.sqrt(2)


def test_models_judged_on_different_images_are_not_compared():
    a = random_table(20, seed=11)
    with pytest.raises(InputError, match=r"different images.*image000019"):
        metrics.paired_difference(a, a.iloc[:-1], CLASSES, bootstrap=100, seed=0)
    relabelled = a.assign(label=a["label"].where(a["image_id"] != "image000003", "vasc"))
    with pytest.raises(InputError, match="image000003 has another label"):
        metrics.paired_difference(a, relabelled, CLASSES, bootstrap=100, seed=0)
    with pytest.raises(InputError, match=r"unknown metric 'kappa'; known: balanced_accuracy, accuracy, .*mel\.sensitivity"):
        metrics.paired_difference(a, a, CLASSES, metric="kappa", bootstrap=100, seed=0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.assign(image_id="x"), "image x occurs more than once"),
        (lambda t: t.assign(label="normal"), "image000000 has a label that is no class; allowed: akiec"),
        (lambda t: t.assign(logit_mel=np.nan), "image000000 has a logit that is not finite: the training diverged"),
        (lambda t: t.assign(lesion_id=None), "image000000 has no lesion_id"),
        (lambda t: t.drop(columns="logit_nv"), "no column logit_nv"),
    ],
)
def test_odd_predictions_are_named(spoil, message):
    with pytest.raises(InputError, match=message):
        metrics.evaluate_predictions(spoil(random_table(10, seed=12)), CLASSES, bootstrap=100, seed=0)


def test_two_thousand_images_with_two_thousand_replicates_take_seconds():
    predictions = random_table(2000, seed=13)
    start = time.process_time()
    metrics.evaluate_predictions(predictions, CLASSES, bootstrap=2000, seed=0)
    assert time.process_time() - start < 10  # about 1 s; the margin is for a busy machine
