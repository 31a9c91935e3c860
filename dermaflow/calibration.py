"""Whether probabilities mean what they say: temperature, proper scores, reliability, and what abstaining gains.

The temperature is fitted on validation images alone; a model's probabilities are softmax(logits / temperature). As in
`dermaflow.metrics`, figures are functions of image weights [b, n], so that estimates and intervals share one path.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dermaflow.metrics import Floats, Integers, Weights, ratio, softmax

Logits = npt.NDArray[np.floating[Any]]  # [n, c]

BINS = 15  # of equal width, as in Guo et al.
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
PROPER = ("nll", "brier", "ece")
_LIMITS = (0.05, 20.0)  # of the temperature


def fit_temperature(logits: Logits, labels: Integers) -> float:
    """The temperature under which labels are likeliest (Guo, Pleiss, Sun and Weinberger, ICML 2017, section 4.2).

    Parameters
    ----------
    logits: [n, c] of images that the model was not trained on.
    labels: class indices, int64 [n].

    Returns
    -------
    A number in 0.05..20; 1 where there is no image.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0
    low, high = np.log(_LIMITS)
    found = minimize_scalar(
        lambda power: losses(logits / np.exp(power), labels)["nll"].mean(),
        bounds=(low, high),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def fit_adjustment(logits: Logits, labels: Integers, shares: Floats) -> float:
    """How many times the logarithms of the classes' shares are best taken off the logits, so that each class counts the same.

    Post-hoc logit adjustment (Menon et al., ICLR 2021, section 4): the argmax of f(x) - tau log(share) has the least
    balanced error. tau is fitted, beside a temperature, to the mean over classes of each class's mean nll: balanced accuracy
    itself jumps with single images of rare classes.

    Parameters
    ----------
    logits, labels: as `fit_temperature`; every class has an image.
    shares: of each class among the training images, float64 [c].
    """
    from scipy.optimize import minimize

    counts = np.bincount(labels, minlength=len(shares))
    weights = 1 / (len(shares) * counts[labels])

    def cost(point: Floats) -> float:
        adjusted = (logits - point[0] * np.log(shares)) / np.exp(point[1])
        return float(weights @ losses(adjusted, labels)["nll"])

    found = minimize(cost, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    return float(found.x[0])


def losses(logits: Logits, labels: Integers) -> dict[str, Floats]:
    """What each image costs, float64 [n].

    nll: -log p(label), in nats (Good, J R Stat Soc B 14, 107-114, 1952; scikit-learn's `log_loss`, which stops at a p of
    2e-16). brier: sum over classes of (p - y)^2, 0..2 (Brier,
    Mon Weather Rev 78, 1-3, 1950; scikit-learn's `brier_score_loss` with `scale_by_half=False`).
    """
    probabilities = softmax(logits)
    shifted = logits.astype(np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True, initial=-np.inf)
    own = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    one_hot = np.zeros_like(probabilities)
    one_hot[np.arange(len(labels)), labels] = 1
    return {"nll": np.log(np.exp(shifted).sum(axis=1)) - own, "brier": ((probabilities - one_hot) ** 2).sum(axis=1)}


def scores(logits: Logits, labels: Integers, weights: Weights) -> dict[str, Floats]:
    """Whether probabilities are calibrated: name of PROPER -> [b].

    nll and brier are means of `losses`. ece is the expected calibration error (Naeini, Cooper and Hauskrecht, AAAI 2015; Guo
    et al. 2017, equation 3): over BINS of the largest probability, the mean distance of accuracy from confidence.

    Parameters
    ----------
    logits: [n, c]; labels: class indices, int64 [n]; weights: how often each image counts, [b, n].
    """
    confidence, right = _confidence(logits, labels)
    gaps = np.zeros((len(labels), BINS))
    gaps[np.arange(len(labels)), _bin(confidence)] = right - confidence
    lost = losses(logits, labels)
    sums = weights.astype(np.float64) @ np.column_stack([*lost.values(), gaps])
    total = weights.sum(axis=1)
    told = {name: ratio(sums[:, place], total) for place, name in enumerate(lost)}
    return {**told, "ece": ratio(np.abs(sums[:, len(lost) :]).sum(axis=1), total)}


def reliability(logits: Logits, labels: Integers) -> list[dict[str, float | int | None]]:
    """Bars of the reliability diagram (DeGroot and Fienberg, The Statistician 32, 12-22, 1983).

    For each of BINS its bounds, the number of images, and their accuracy and mean confidence, None where it is empty.
    """
    confidence, right = _confidence(logits, labels)
    bins = _bin(confidence)
    rows: list[dict[str, float | int | None]] = []
    for number in range(BINS):
        mine = bins == number
        images = int(mine.sum())
        rows.append(
            {
                "low": number / BINS,
                "high": (number + 1) / BINS,
                "n_images": images,
                "accuracy": float(right[mine].mean()) if images else None,
                "confidence": float(confidence[mine].mean()) if images else None,
            }
        )
    return rows


def selective_accuracy(logits: Logits, labels: Integers, weights: Weights) -> dict[float, Floats]:
    """Accuracy over the most confident images, as if the others were left to a person: share of COVERAGES -> [b].

    Geifman and El-Yaniv, NeurIPS 2017. The confidence from which an image is judged is that of the data themselves, and
    stays the same in every replicate; of equally confident images the first are judged.
    """
    confidence, right = _confidence(logits, labels)
    order = np.argsort(-confidence, kind="stable")
    judged = np.zeros((len(labels), len(COVERAGES)), weights.dtype)
    for place, share in enumerate(COVERAGES):
        judged[order[: round(share * len(labels))], place] = 1
    hits, all_ = weights @ (judged * right[:, None]), weights @ judged
    return {share: ratio(hits[:, place], all_[:, place]) for place, share in enumerate(COVERAGES)}


def _confidence(logits: Logits, labels: Integers) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The largest probability of each image, and whether its class is the label, [n]."""
    return softmax(logits).max(axis=1, initial=0), logits.argmax(axis=1) == labels


def _bin(confidence: Floats) -> Integers:
    """The bin of each confidence: (k / BINS, (k + 1) / BINS], and 0 in the first."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)
