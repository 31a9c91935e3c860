"""The promotion policy: which gates a challenger must pass. A YAML file, validated like the parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from dermaflow.artifacts import json_digest
from dermaflow.errors import InputError
from dermaflow.params import Section, Share
from dermaflow.yaml_files import parse_yaml


class Minimum(Section):
    """Bounds on an estimate and on the lower end of its 95 % interval; null asks for nothing."""

    estimate: Share | None = None
    low: Share | None = None


class ExplanationBounds(Section):
    """Bounds on what the maps are worth (components/explain/README.md); null asks for nothing."""

    max_additivity_error: Annotated[float, Field(gt=0, le=1)]
    min_on_lesion: Annotated[float, Field(ge=-1, le=1)] | None
    min_insertion_over_random: Annotated[float, Field(ge=-1, le=1)] | None
    max_similarity_shuffled: Annotated[float, Field(ge=-1, le=1)] | None
    min_stability: Annotated[float, Field(ge=-1, le=1)] | None


class Policy(Section):
    """The gates, in the order in which they are reported."""

    version: Annotated[int, Field(ge=1, le=1)]
    allow_synthetic: bool
    allow_dirty_commit: bool
    balanced_accuracy: Minimum
    auroc: Minimum
    melanoma_sensitivity: Minimum
    margin_to_champion: Annotated[float, Field(ge=0, le=1)]
    explanation: ExplanationBounds


def read_policy(path: Path) -> Policy:
    """Read a policy file; raises InputError naming the field, its value and what is allowed."""
    if not path.is_file():
        raise InputError(f"promote.policy: {path} is not a file; the repository's is mlflow/policy.yaml")
    try:
        return Policy.model_validate_json(json.dumps(parse_yaml(path.read_text())))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        faults = error.errors()
        told = [
            f"{path}: {'.'.join(map(str, fault['loc'])) or 'policy'}: {fault['msg']} (is {fault['input']!r})"
            for fault in faults
        ]
        raise InputError("\n".join(told)) from error


def policy_digest(policy: Policy) -> str:
    """Digest of what a policy says, whatever its comments and layout."""
    return json_digest(policy.model_dump(mode="json"))
