"""Probabilities and thresholds: they agree with scikit-learn, are fitted on validation alone, and odd input has no figure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from dermaflow import calibration, operating
from dermaflow.classes import HAM10000_CLASSES
from dermaflow.metrics import softmax


def drawn(images=400, seed=0, *, heat=1.0, classes=7):
    """Logits whose softmax is the true probability of each label, made too sure of themselves by `heat`."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2, size=(images, classes))
    labels = np.array([random.choice(classes, p=row) for row in softmax(logits)])
    return logits * heat, labels


def rough(images, seed):
    """As `drawn`, on a coarse grid, so that scores tie; few images, so that classes are missing or have one."""
    logits, labels = drawn(images, seed)
    return np.round(logits), labels


samples = st.integers(0, 10_000).map(lambda seed: drawn(40, seed, heat=1.5)) | st.builds(
    rough, st.integers(1, 12), st.integers(0, 10_000)
)


# --- calibration ---


@given(samples)
@settings(max_examples=40, deadline=None)
def test_proper_scores_are_those_of_scikit_learn(sample):
    logits, labels = sample
    told = {name: value[0] for name, value in calibration.scores(logits, labels, np.ones((1, len(labels)))).items()}
    probabilities = softmax(logits)
    assert told["nll"] == pytest.approx(sk.log_loss(labels, probabilities, labels=range(7)), abs=1e-9)
    expected = sk.brier_score_loss(labels, probabilities, labels=range(7), scale_by_half=False)
    assert told["brier"] == pytest.approx(expected, abs=1e-9)


@given(samples)
@settings(max_examples=40, deadline=None)
def test_reliability_is_scikit_learns_calibration_curve_and_coverage_its_accuracy_on_the_surest(sample):
    logits, labels = sample
    confidence, right = softmax(logits).max(axis=1), logits.argmax(axis=1) == labels
    bars = [bar for bar in calibration.reliability(logits, labels) if bar["n_images"]]
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=calibration.BINS)
    assert [bar["accuracy"] for bar in bars] == pytest.approx(list(accuracy), abs=1e-9)
    assert [bar["confidence"] for bar in bars] == pytest.approx(list(mean_confidence), abs=1e-9)
    told = calibration.selective_accuracy(logits, labels, np.ones((1, len(labels))))
    for share, value in told.items():
        surest = np.argsort(-confidence, kind="stable")[: round(share * len(labels))]
        if len(surest):
            assert value[0] == pytest.approx(sk.accuracy_score(labels[surest], logits[surest].argmax(axis=1)), abs=1e-9)
        else:
            assert np.isnan(value[0])


@given(samples, st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_a_replicate_is_the_score_of_the_images_drawn_as_often(sample, seed):
    logits, labels = sample
    weights = np.random.default_rng(seed).integers(0, 4, size=(2, len(labels))).astype(np.float64)
    for row, times in enumerate(weights.astype(int)):
        repeated = np.repeat(logits, times, axis=0), np.repeat(labels, times)
        alone = calibration.scores(*repeated, np.ones((1, len(repeated[1]))))
        for name, value in calibration.scores(logits, labels, weights).items():
            assert value[row] == pytest.approx(alone[name][0], abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("heat", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_what_made_the_logits_too_sure(heat):
    logits, labels = drawn(4000, heat=heat)
    temperature = calibration.fit_temperature(logits, labels)
    assert temperature == pytest.approx(heat, rel=0.08)
    one = np.ones((1, len(labels)))
    before, after = (calibration.scores(logits / t, labels, one) for t in (1, temperature))
    assert after["nll"][0] <= before["nll"][0] + 1e-9
    assert after["ece"][0] < 0.03
    assert heat == 1.0 or before["ece"][0] > 2 * after["ece"][0]


def test_without_images_there_is_no_temperature_to_fit():
    assert calibration.fit_temperature(np.empty((0, 7)), np.empty(0, np.int64)) == 1.0


def test_the_calibration_error_is_what_the_reliability_diagram_shows():
    logits, labels = drawn(500, seed=3, heat=3)
    bars = calibration.reliability(logits, labels)
    assert sum(bar["n_images"] for bar in bars) == 500
    shown = sum(bar["n_images"] * abs(bar["accuracy"] - bar["confidence"]) for bar in bars if bar["n_images"]) / 500
    assert calibration.scores(logits, labels, np.ones((1, 500)))["ece"][0] == pytest.approx(shown, abs=1e-12)
    assert [bar["accuracy"] for bar in bars if not bar["n_images"]] == [None] * sum(not bar["n_images"] for bar in bars)


def test_accuracy_rises_as_the_unsure_images_are_left_to_a_person():
    logits, labels = drawn(3000, seed=4)
    told = calibration.selective_accuracy(logits, labels, np.ones((1, 3000)))
    right = softmax(logits).argmax(axis=1) == labels
    assert told[1.0][0] == right.mean()
    surest = np.argsort(-softmax(logits).max(axis=1), kind="stable")[:1500]
    assert told[0.5][0] == right[surest].mean()
    values = [told[share][0] for share in calibration.COVERAGES]
    assert values == sorted(values)


# --- operating points ---


def test_what_counts_as_malignant_is_melanoma_basal_cell_carcinoma_and_its_precursors():
    melanoma, malignant = operating.questions(HAM10000_CLASSES)
    assert [HAM10000_CLASSES[column] for column in melanoma.columns] == ["mel"]
    assert [HAM10000_CLASSES[column] for column in malignant.columns] == ["akiec", "bcc", "mel"]
    assert operating.questions(("nv", "mel"))[0].name == "melanoma"
    assert operating.questions(("nv", "bkl")) == operating.questions(("akiec", "bcc")) == ()


@given(samples, st.sampled_from([0.5, 0.8, 0.9, 0.95]))
@settings(max_examples=40, deadline=None)
def test_a_threshold_keeps_the_specificity_and_no_lower_one_does(sample, specificity):
    logits, labels = sample
    question = operating.questions(HAM10000_CLASSES)[1]
    scores, holds = question.scores(softmax(logits)), question.holds(labels)
    threshold = operating.threshold_at(scores, holds, specificity)
    if holds.all() or not holds.any():
        assert threshold is None
        return
    assert (scores[~holds] < threshold).mean() >= specificity - 1e-9
    lower = scores[scores < threshold]
    if len(lower):
        assert (scores[~holds] < lower.max()).mean() < specificity


@given(samples)
@settings(max_examples=40, deadline=None)
def test_rates_are_those_of_scikit_learn(sample):
    logits, labels = sample
    question = operating.questions(HAM10000_CLASSES)[1]
    scores, holds = question.scores(softmax(logits)), question.holds(labels)
    says = scores >= 0.3
    told = {name: value[0] for name, value in operating.rates(scores, holds, np.ones((1, len(labels))), 0.3).items()}
    expected = {
        "sensitivity": (holds, says), "specificity": (~holds, ~says), "ppv": (says, holds), "npv": (~says, ~holds)
    }  # fmt: skip
    for name, (among, right) in expected.items():
        if among.any():
            assert told[name] == pytest.approx(sk.recall_score(among, right), abs=1e-9)
        else:
            assert np.isnan(told[name])


def test_without_a_threshold_only_the_areas_are_defined():
    logits, labels = drawn(50)
    question = operating.questions(HAM10000_CLASSES)[0]
    told = operating.figures(question, softmax(logits), labels, np.ones((1, 50)), None)
    assert all(np.isnan(told[name][0]) for name in operating.RATES)
    assert told["auroc"][0] == pytest.approx(sk.roc_auc_score(labels == 4, softmax(logits)[:, 4]), abs=1e-9)


@pytest.mark.parametrize("learnt", [1.0, 0.4, 0.0])
def test_the_adjustment_takes_off_what_was_learnt_of_the_classes_shares(learnt):
    """Logits of a Bayes classifier that has learnt the shares to a power, and is twice too sure."""
    rng = np.random.default_rng(1)
    shares = np.array([0.9, 0.07, 0.03])
    labels = rng.choice(3, 20_000, p=shares)
    seen = rng.normal(size=(len(labels), 2)) + np.array([[0, 0], [1.5, 0], [0, 1.5]])[labels]
    likelihood = np.stack([np.zeros(len(labels)), 1.5 * seen[:, 0] - 1.125, 1.5 * seen[:, 1] - 1.125], axis=1)
    tau = calibration.fit_adjustment(2 * (likelihood + learnt * np.log(shares)), labels, shares)
    assert tau == pytest.approx(2 * learnt, abs=0.15)
