"""Groups to parts by shares, evenly and the same anywhere: what splits and folds are made by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd


def spread(
    sizes: pd.Series[int],
    shares: Sequence[float],
    salt: str,
    filled: npt.NDArray[np.float64],
    barred: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """The part of each group: from large to small, each to the part that is furthest below its share.

    Parameters
    ----------
    sizes: images of each group, by its name.
    shares: of each part; they add up to 1.
    salt: with the group's name, it decides the order among groups of a size.
    filled: images that each part has already.
    barred: the one part in which a group may not be, by its name.
    """
    order = sorted(sizes.index, key=lambda group: (-sizes[group], hashed(f"{salt}/{group}")))
    parts, assigned, barred = np.asarray(shares, np.float64), filled.copy(), barred or {}
    chosen: dict[str, int] = {}
    for group in order:
        lack = parts * (assigned.sum() + sizes[group]) - assigned
        if group in barred:
            lack[barred[group]] = -np.inf
        part = int(np.argmax(lack))
        chosen[group] = part
        assigned[part] += sizes[group]
    for empty in np.flatnonzero((assigned == 0) & (parts > 0)):  # few lesions: each part gets one, from the one that has most
        sides = list(chosen.values())
        fullest = max(range(len(parts)), key=sides.count)
        spare = [group for group in reversed(order) if chosen[group] == fullest]
        free = [group for group in spare if barred.get(group) != empty]
        if len(spare) > 1 and free:
            chosen[free[0]] = int(empty)
    return chosen


def hashed(text: str) -> bytes:
    """SHA-256 of a text: an order without any pattern, the same on every machine."""
    return hashlib.sha256(text.encode()).digest()
