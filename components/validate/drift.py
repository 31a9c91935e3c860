"""Drift: whether the images of one dataset are distributed as those of another, the champion's training data say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dermaflow.dataset import PROPERTIES
from dermaflow.params import ValidateParams

MEASURED = (*PROPERTIES, "age")
COUNTED = {"label": "class prior", "sex": "sex", "localization": "localization", "dx_type": "dx_type"}
COLUMNS_COMPARED = (*MEASURED, *COUNTED)
PSI_SHIFT = 0.1  # customary: below 0.1 stable, from 0.25 on drifted (Siddiqi, Credit Risk Scorecards, 2006)
KS_SHIFT = 0.5  # of validate.drift_ks: from there on a distance is told as a shift
COLUMNS = ("column", "test", "statistic", "p_value", "threshold", "verdict", "images", "reference_images")


def compare(images: pd.DataFrame, reference: pd.DataFrame, params: ValidateParams) -> pd.DataFrame:
    """Compare each column that both tables have.

    Parameters
    ----------
    images, reference: one row an image, with the columns of a manifest.

    Returns
    -------
    DataFrame with COLUMNS, one row a compared column: the two-sample Kolmogorov-Smirnov distance for numbers, the
    population stability index for categories. `verdict` is "stable", "shifted" or "drifted". With many images a
    difference of no consequence is significant, with few a large one is chance: only a statistic beyond its threshold
    that chance explains less often than `validate.drift_p` is drift.
    """
    rows = [_distance(images, reference, name, params) for name in MEASURED if name in images and name in reference]
    rows += [_stability(images, reference, name, params) for name in COUNTED if name in images and name in reference]
    return pd.DataFrame([row for row in rows if row], columns=list(COLUMNS))


def _distance(images: pd.DataFrame, reference: pd.DataFrame, name: str, params: ValidateParams) -> dict[str, Any] | None:
    from scipy.stats import ks_2samp

    here, there = images[name].dropna().to_numpy(), reference[name].dropna().to_numpy()
    if not len(here) or not len(there):
        return None
    found = ks_2samp(here, there, method="asymp")
    return {
        "column": name,
        "test": "Kolmogorov-Smirnov",
        "statistic": float(found.statistic),
        "p_value": float(found.pvalue),
        "threshold": params.drift_ks,
        "verdict": _verdict(found.statistic, found.pvalue, KS_SHIFT * params.drift_ks, params.drift_ks, params.drift_p),
        "images": len(here),
        "reference_images": len(there),
    }


def _stability(images: pd.DataFrame, reference: pd.DataFrame, name: str, params: ValidateParams) -> dict[str, Any] | None:
    here, there = (_known(table[name]).value_counts() for table in (images, reference))
    if not len(here) or not len(there):
        return None
    statistic, p_value = stability_index(here, there)
    return {
        "column": COUNTED[name],
        "test": "population stability index",
        "statistic": statistic,
        "p_value": p_value,
        "threshold": params.drift_psi,
        "verdict": _verdict(statistic, p_value, min(PSI_SHIFT, params.drift_psi), params.drift_psi, params.drift_p),
        "images": int(here.sum()),
        "reference_images": int(there.sum()),
    }


def stability_index(here: pd.Series[int], there: pd.Series[int]) -> tuple[float, float]:
    """Population stability index of two tables of counts, and how often chance gives as much.

    Half a case is added to each category, so that one that is missing on a side counts as rare, not as infinite. Where
    both sides are drawn alike, index x n m / (n + m) follows a chi-squared law (Yurdakul 2018).
    """
    from scipy.stats import chi2

    names = sorted({*here.index, *there.index})
    counts = np.array([[table.get(name, 0) for name in names] for table in (here, there)], np.float64)
    shares = (counts + 0.5) / (counts + 0.5).sum(axis=1, keepdims=True)
    index = float(((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum())
    n, m = counts.sum(axis=1)
    return index, float(chi2.sf(index * n * m / (n + m), max(len(names) - 1, 1)))


def _known(column: pd.Series[str]) -> pd.Series[str]:
    return column.dropna().replace("", "unknown")


def _verdict(statistic: float, p_value: float, shifted: float, drifted: float, significance: float) -> str:
    if p_value >= significance or statistic < shifted:
        return "stable"
    return "drifted" if statistic >= drifted else "shifted"
