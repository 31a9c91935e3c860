"""The promotion policy: which gates a challenger must pass. A YAML file, validated like the parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dermaflow.artifacts import json_digest
from dermaflow.checked_yaml import read_settings
from dermaflow.params import Section, Share

GATES = (
    *("data_validation", "not_synthetic", "lesion_split", "leakage", "never_tested", "trained_model", "clean_commit"),
    *("data_licence", "test_set_looks", "balanced_accuracy", "auroc", "melanoma_sensitivity", "melanoma_at_specificity"),
    *("calibration", "worst_subgroup"),
    *("explanation_additivity", "explanation_on_lesion", "explanation_insertion", "explanation_randomisation"),
    *("explanation_stability", "not_worse_than_champion"),
)
NEVER_WAIVED = ("lesion_split", "leakage", "never_tested")  # without them no figure of the model means what it says


def _may_be_waived(gate: str) -> str:
    allowed = [name for name in GATES if name not in NEVER_WAIVED]
    if gate not in allowed:
        raise ValueError(f"allowed: {', '.join(allowed)}")
    return gate


Use = Literal["research", "commercial"]
Waivable = Annotated[str, AfterValidator(_may_be_waived)]


class Minimum(Section):
    """Bounds on an estimate and on the lower end of its 95 % interval; null asks for nothing."""

    estimate: Share | None = None
    low: Share | None = None


class AtSpecificity(Minimum):
    """Bounds on a sensitivity at the threshold that gives this specificity on validation."""

    specificity: Annotated[float, Field(ge=0.5, lt=1)]


class CalibrationBounds(Section):
    """Bounds on how far probabilities after temperature are off; null asks for nothing."""

    max_ece: Share | None


class SubgroupBounds(Section):
    """Bounds on the worst subgroup's estimate, and on the upper end of each one's 95 % interval; null asks for nothing."""

    figure: Literal["malignant_sensitivity", "balanced_accuracy"]
    estimate: Share | None
    high: Share | None


class ExplanationBounds(Section):
    """Bounds on what the maps are worth (components/explain/README.md); null asks for nothing."""

    max_additivity_error: Annotated[float, Field(gt=0, le=1)]
    min_on_lesion: Annotated[float, Field(ge=-1, le=1)] | None
    min_insertion_over_random: Annotated[float, Field(ge=-1, le=1)] | None
    max_similarity_shuffled: Annotated[float, Field(ge=-1, le=1)] | None
    min_stability: Annotated[float, Field(ge=-1, le=1)] | None


class Policy(Section):
    """The gates, in the order in which they are reported, and the people who must agree (mlflow/README.md)."""

    version: Annotated[int, Field(ge=2, le=2)]
    allow_synthetic: bool
    allow_dirty_commit: bool
    use: Use
    licences: dict[str, tuple[Use, ...]]
    max_looks: Annotated[int, Field(ge=1)] | None
    balanced_accuracy: Minimum
    auroc: Minimum
    melanoma_sensitivity: Minimum
    melanoma_at_specificity: AtSpecificity
    calibration: CalibrationBounds
    worst_subgroup: SubgroupBounds
    margin_to_champion: Annotated[float, Field(ge=0, le=1)]
    explanation: ExplanationBounds
    approvals: Annotated[int, Field(ge=0, le=10)]
    four_eyes: bool
    waivable: tuple[Waivable, ...]

    @model_validator(mode="after")
    def _four_eyes_need_an_approval(self) -> Self:
        if self.four_eyes and not self.approvals:
            raise ValueError("four_eyes needs approvals of at least 1: with none nobody is asked who could be another")
        return self

    def allows(self, licence: str) -> tuple[Use, ...]:
        """The uses that a licence allows, however its name is written: CC-BY-NC-4.0 is CC BY-NC 4.0."""
        by_name = {_plain(name): uses for name, uses in self.licences.items()}
        return by_name.get(_plain(licence), ())


def _plain(licence: str) -> str:
    return "".join(letter for letter in licence.casefold() if letter.isalnum() or letter == ".")


def read_policy(path: Path) -> Policy:
    """Read a policy file; raises InputError naming the field, its value and what is allowed."""
    return read_settings(path, Policy, name=f"promote.policy: {path}", missing="the repository's is mlflow/policy.yaml")


def policy_digest(policy: Policy) -> str:
    """Digest of what a policy says, whatever its comments and layout."""
    return json_digest(policy.model_dump(mode="json"))
