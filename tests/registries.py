"""Registries with a candidate in them, and a policy that lets the candidates of tests pass."""

from __future__ import annotations

from typing import Any

from dermaflow.policy import AtSpecificity, CalibrationBounds, ExplanationBounds, Minimum, Policy, SubgroupBounds, read_policy
from tests.workspace import ROOT

_NOTHING = Minimum(estimate=0.0)


def lenient_policy(**changes: Any) -> Policy:
    """A test policy: it allows synthetic images and asks for no accuracy and no more of maps than that they add up."""
    ours = read_policy(ROOT / "mlflow/policy.yaml")
    unasked = dict.fromkeys(set(ExplanationBounds.model_fields) - {"max_additivity_error"})
    update = {
        "allow_synthetic": True,
        "balanced_accuracy": _NOTHING,
        "auroc": _NOTHING,
        "melanoma_sensitivity": _NOTHING,
        "melanoma_at_specificity": AtSpecificity(specificity=0.9),
        "calibration": CalibrationBounds(max_ece=None),
        "worst_subgroup": SubgroupBounds(figure="balanced_accuracy", estimate=None, high=None),
        "explanation": ours.explanation.model_copy(update=unasked),
    }
    return ours.model_copy(update=update | changes)
