"""Reading YAML as people write it: 1e-3 is a number, and a date is text."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's floats (1.1 takes 1e-3 for text) and without 1.1's dates."""


_FLOAT = "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in ("tag:yaml.org,2002:timestamp", _FLOAT)]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document; raises yaml.YAMLError when it is not one, or holds what JSON can not say."""
    value = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    _refuse_binary(value)
    return value


def _refuse_binary(value: Any) -> None:
    if isinstance(value, bytes | set):
        raise yaml.YAMLError(f"{type(value).__name__} values are not allowed")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_binary(part)
