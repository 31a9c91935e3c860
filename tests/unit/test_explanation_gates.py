"""The gates on what maps are worth: each bound decides by its own figure, and an unknown one does not pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from components.promote.gates import Gate, _explained
from dermaflow.policy import ExplanationBounds, read_policy
from tests.sources import ROOT

BOUNDS = read_policy(ROOT / "mlflow" / "policy.yaml").explanation


def told(estimate: float | None, spread: float | None = 0.1) -> dict[str, Any]:
    if estimate is None or spread is None:
        return {"estimate": estimate, "low": None, "high": None, "n": 0 if estimate is None else 4}
    return {"estimate": estimate, "low": estimate - spread, "high": estimate + spread, "n": 9}


def explanation(**changes: Any) -> dict[str, Any]:
    """What a sound explanation says, and what is changed in it."""
    sound: dict[str, Any] = {
        "additivity": {"median": 1e-6, "max": 1e-5, "limit": 0.05},
        "summary": {
            "overall": {"insertion_over_random": told(0.1), "stability": told(0.7)},
            "by_evidence": {"df": {"on_lesion": told(0.7)}, "mel": {"on_lesion": told(0.9)}},
        },
        "checks": {"randomisation": {"stages": [{"similarity": told(0.8)}, {"similarity": told(0.05)}]}},
    }
    sound = copy.deepcopy(sound)
    for path, value in changes.items():
        place = sound
        *way, last = path.split("__")
        for name in way:
            place = place[name]
        place[last] = value
    return sound


def gates(bounds: ExplanationBounds = BOUNDS, **changes: Any) -> dict[str, Gate]:
    return {gate.name: gate for gate in _explained(explanation(**changes), bounds)}


def test_a_sound_explanation_passes_every_gate():
    assert {gate.verdict for gate in gates().values()} == {"pass"}
    assert len(gates()) == 5


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"additivity": {"median": 0.2}}, "explanation_additivity"),
        ({"additivity": {"median": None}}, "explanation_additivity"),
        ({"summary__by_evidence__df": {"on_lesion": told(0.1)}}, "explanation_on_lesion"),
        ({"summary__overall__insertion_over_random": told(-0.01)}, "explanation_insertion"),
        ({"summary__overall__insertion_over_random": told(None)}, "explanation_insertion"),
        (
            {"checks__randomisation__stages": [{"similarity": told(0.1)}, {"similarity": told(0.9)}]},
            "explanation_randomisation",
        ),
        ({"summary__overall__stability": told(0.2)}, "explanation_stability"),
    ],
)
def test_each_figure_has_its_gate(changes: dict[str, Any], gate: str):
    assert [name for name, found in gates(**changes).items() if found.verdict == "fail"] == [gate]


def test_the_class_with_an_artefact_is_named():
    gate = gates(summary__by_evidence__df={"on_lesion": told(0.1)})["explanation_on_lesion"]
    assert (gate.estimate, gate.threshold) == (0.1, BOUNDS.min_on_lesion)
    assert "look at the maps of df for an artefact" in gate.reason


def test_a_class_of_few_lesions_does_not_decide():
    assert gates(summary__by_evidence__df={"on_lesion": told(0.1, None)})["explanation_on_lesion"].verdict == "pass"
    nobody = gates(summary__by_evidence={"df": {"on_lesion": told(0.1, None)}})["explanation_on_lesion"]
    assert nobody.verdict == "not_applicable"


@pytest.mark.parametrize(
    ("bound", "gate"),
    [
        ("min_on_lesion", "explanation_on_lesion"),
        ("min_insertion_over_random", "explanation_insertion"),
        ("max_similarity_shuffled", "explanation_randomisation"),
        ("min_stability", "explanation_stability"),
    ],
)
def test_a_bound_may_ask_for_nothing(bound: str, gate: str):
    bounds = BOUNDS.model_copy(update={bound: None})
    bad = {
        "summary__by_evidence__df": {"on_lesion": told(0.1)},
        "summary__overall__insertion_over_random": told(-1),
        "summary__overall__stability": told(-1),
        "checks__randomisation__stages": [{"similarity": told(1)}],
    }
    assert gates(bounds, **bad)[gate].verdict == "not_applicable"
