"""How figures are said to people, the same in tables, model cards and documents; imports nothing."""

from __future__ import annotations

from collections.abc import Mapping


def in_words(value: Mapping[str, float | None]) -> str:
    """An estimate with its 95 % interval (estimate, low, high): 0.719 (0.680 to 0.760); without bounds the estimate alone."""
    estimate, low, high = (value[name] for name in ("estimate", "low", "high"))
    if estimate is None:
        return "not defined"
    return f"{estimate:.3g}" if low is None or high is None else f"{estimate:.3f} ({low:.3f} to {high:.3f})"
