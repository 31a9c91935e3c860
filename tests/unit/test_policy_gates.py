"""The gates on licence, looks, calibration, operating point and subgroups; and what a waiver changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from components.promote.gates import Gate, judge
from dermaflow.policy import GATES, Policy, SubgroupBounds, read_policy
from tests.unit.test_explanation_gates import explanation
from tests.workspace import ROOT

POLICY = read_policy(ROOT / "mlflow" / "policy.yaml")
COMMIT = {"commit": "0" * 40, "dirty": False}
NO_CHAMPION = {"champion": None, "undefined": "there is no champion yet"}


def figure(estimate: float | None, spread: float | None = 0.02) -> dict[str, Any]:
    if estimate is None or spread is None:
        return {"estimate": estimate, "low": None, "high": None}
    return {"estimate": estimate, "low": estimate - spread, "high": estimate + spread}


def subgroup(malignant: float | None, balanced: float | None = 0.75, spread: float | None = 0.02) -> dict[str, Any]:
    return {"balanced_accuracy": figure(balanced, spread), "malignant": {"sensitivity": figure(malignant, spread)}}


def sound() -> dict[str, Any]:
    """What a candidate that passes every gate says of itself."""
    return {
        "data_validation": {"success": True},
        "synthetic": False,
        "promotable_split": True,
        "mark": None,
        "pipeline_check": False,
        "splits": {"leakage": {"all": {"with_relative_in_train": 0}}},
        "data": {"licence": "CC BY-NC 4.0"},
        "thresholds": {"specificity_on_validation": 0.9},
        "test": {
            "overall": {"balanced_accuracy": figure(0.75), "auroc": figure(0.95)},
            "per_class": {"mel": {"sensitivity": figure(0.7)}},
            "calibration": {"before": {"ece": figure(0.2)}, "after": {"ece": figure(0.04)}},
            "operating_points": {"melanoma": {"sensitivity": figure(0.72), "specificity": figure(0.88)}},
            "subgroups": {
                "sex": {"female": subgroup(0.8), "male": subgroup(0.7)},
                "age": {"under 30": subgroup(0.0, 0.1, None)},
            },
        },
        "explanation": explanation(),
    }


def gates(policy: Policy = POLICY, looks: int = 1, waivers: dict[str, str] | None = None, **changes: Any) -> dict[str, Gate]:
    facts = copy.deepcopy(sound())
    for path, value in changes.items():
        place = facts
        *way, last = path.split("__")
        for name in way:
            place = place[name]
        place[last] = value
    found = judge(facts, COMMIT, NO_CHAMPION, {}, looks, policy, waivers)
    return {gate.name: gate for gate in found}


def failing(**changes: Any) -> list[str]:
    return [name for name, gate in gates(**changes).items() if gate.verdict == "fail"]


def test_a_sound_candidate_passes_every_gate_and_all_are_told_in_order():
    assert tuple(gates()) == GATES
    assert {name for name, gate in gates().items() if gate.verdict != "pass"} == {"not_worse_than_champion"}
    assert all(gate.reason for gate in gates().values())


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"data__licence": "CC BY-NC-ND 4.0"}, "data_licence"),
        ({"data__licence": "unknown"}, "data_licence"),
        ({"looks": 21}, "test_set_looks"),
        ({"test__calibration__after": {"ece": figure(0.2)}}, "calibration"),
        ({"test__calibration__after": None}, "calibration"),
        ({"test__operating_points__melanoma__sensitivity": figure(0.5)}, "melanoma_at_specificity"),
        ({"test__operating_points__melanoma__sensitivity": figure(None)}, "melanoma_at_specificity"),
        ({"test__operating_points": {}}, "melanoma_at_specificity"),
        ({"thresholds": {"specificity_on_validation": 0.7}}, "melanoma_at_specificity"),
        ({"test__subgroups__sex__male": subgroup(0.3)}, "worst_subgroup"),
    ],
)
def test_each_is_refused_by_its_gate_alone(changes: dict[str, Any], gate: str):
    assert failing(**changes) == [gate]


def test_a_commercial_use_needs_a_licence_for_it():
    commercial = POLICY.model_copy(update={"use": "commercial"})
    assert failing(policy=commercial) == ["data_licence"]
    assert gates(policy=commercial)["data_licence"].reason == "CC BY-NC 4.0 allows research; the use is commercial"
    assert failing(policy=commercial, data__licence="CC0-1.0") == []


def test_looks_are_told_with_their_limit():
    gate = gates(looks=20)["test_set_looks"]
    assert (gate.estimate, gate.threshold, gate.verdict) == (20, 20, "pass")
    assert "a new test set is needed" in gates(looks=21)["test_set_looks"].reason


def test_the_worst_subgroup_is_named_with_its_interval():
    gate = gates(test__subgroups__sex__male=subgroup(0.3))["worst_subgroup"]
    assert (gate.estimate, gate.low, gate.high, gate.threshold) == (0.3, pytest.approx(0.28), pytest.approx(0.32), 0.5)
    assert "malignant sensitivity of sex male, the worst of 2 subgroups" in gate.reason


def test_a_subgroup_is_not_refused_for_what_chance_explains():
    assert failing(test__subgroups__sex__male=subgroup(0.3, spread=0.25)) == []


def test_small_subgroups_do_not_decide():
    gate = gates(test__subgroups={"age": {"under 30": subgroup(0.0, 0.1, None)}})["worst_subgroup"]
    assert gate.verdict == "not_applicable"
    assert "large enough" in gate.reason


def test_a_policy_may_go_by_balanced_accuracy_and_by_the_estimate():
    bounds = SubgroupBounds(figure="balanced_accuracy", estimate=0.7, high=None)
    policy = POLICY.model_copy(update={"worst_subgroup": bounds})
    assert failing(policy=policy) == []
    assert failing(policy=policy, test__subgroups__sex__male=subgroup(0.7, 0.65)) == ["worst_subgroup"]


def test_a_waived_gate_says_why_and_does_not_refuse():
    told = gates(waivers={"data_licence": "waived until 2027-01-01 by ann: asked"}, data__licence="unknown")["data_licence"]
    assert told.verdict == "waived"
    assert told.reason.endswith("; waived until 2027-01-01 by ann: asked")


def test_a_waiver_of_a_gate_that_nobody_may_waive_is_not_heeded():
    assert failing(waivers={"leakage": "x"}, splits={"leakage": {"all": {"with_relative_in_train": 3}}}) == ["leakage"]
    strict = POLICY.model_copy(update={"waivable": ()})
    assert failing(policy=strict, waivers={"data_licence": "x"}, data__licence="unknown") == ["data_licence"]


def test_a_waiver_of_a_gate_that_passes_changes_nothing():
    assert gates(waivers={"data_licence": "x"})["data_licence"].verdict == "pass"
