"""The promotion policy: which gates a challenger must pass. A YAML file, validated like the parameters."""

from __future__ import annotations

from typing import Annotated

import yaml
from pydantic import Field, ValidationError

from dermaflow.artifacts import bytes_digest
from dermaflow.errors import InputError
from dermaflow.params import Section, Share


class Minimum(Section):
    """Bounds on an estimate and on the lower end of its 95 % interval; null asks for nothing."""

    estimate: Share | None = None
    low: Share | None = None


class Policy(Section):
    """The gates, in the order in which they are reported."""

    version: Annotated[int, Field(ge=1, le=1)]
    allow_synthetic: bool
    allow_dirty_commit: bool
    balanced_accuracy: Minimum
    auroc: Minimum
    melanoma_sensitivity: Minimum
    margin_to_champion: Annotated[float, Field(ge=0, le=1)]
    max_additivity_error: Annotated[float, Field(gt=0, le=1)]


def parse_policy(text: str, name: str = "policy") -> Policy:
    """Read a policy from YAML text; raises InputError naming the field, its value and what is allowed."""
    try:
        return Policy.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InputError(f"{name} is not valid YAML: {error}") from error
    except ValidationError as error:
        lines = [f"{name}: {'.'.join(map(str, fault['loc'])) or 'policy'}: {fault['msg']}" for fault in error.errors()]
        raise InputError("\n".join(lines)) from error


def policy_digest(text: str) -> str:
    """Digest of a policy's text."""
    return bytes_digest(text.encode())
