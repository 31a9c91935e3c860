"""Maps as sums over square cells: single pixels of an attribution are grainy, so cells are compared, ranked and taken away."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
CELLS = 14  # along a side: 16 px of 224, the size of a few pigment globules


@cache
def cells_of(size: int) -> npt.NDArray[np.int64]:
    """Number of the cell that each pixel lies in, row after row, int64 [size, size]; not to be changed."""
    along = np.arange(size) * CELLS // size
    cells: npt.NDArray[np.int64] = along[:, None] * CELLS + along
    cells.setflags(write=False)
    return cells


def cell_sums(values: npt.NDArray[np.floating[Any]]) -> Floats:
    """Sums over the cells of a map [size, size], float64 [CELLS * CELLS]."""
    cells = cells_of(len(values)).reshape(-1)
    return np.asarray(np.bincount(cells, values.reshape(-1).astype(np.float64), CELLS * CELLS), np.float64)


def similarity(one: npt.NDArray[np.floating[Any]], other: npt.NDArray[np.floating[Any]]) -> float:
    """Spearman's rank correlation of two maps' cells, -1 to 1; NaN where a map is the same everywhere."""
    from scipy.stats import rankdata

    ranks = [rankdata(cell_sums(values)) for values in (one, other)]
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(*ranks)[0, 1])
