"""Every figure of an evaluation with its interval, against a loop that asks scikit-learn anew for each resample of lesions.

    python benchmarks/evaluate.py [--images 2000] [--resamples 2000] [--plain 20] [--rounds 3] [--json]

Predictions are drawn: lesions of one to three images, HAM10000's class shares, sex, age, site, way of diagnosis and lesion
size. Each contestant works in a process of its own, seconds without imports, the median of --rounds.

    test alone   dermaflow.figures on so many test images: all that `metrics.json` says of them, intervals included
    both sides   the same on half of them as validation and half as test, as a run has them, with temperature and thresholds
    plain        the figures of "test alone" for the first --plain of its resamples: lesions drawn, their images taken as
                 often, and scikit-learn asked for each figure. Its seconds are those of one resample times --resamples.

"test alone" on the resamples of plain has to give plain's own estimates and intervals, all of them, to 1e-9.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from measured import contestant, run, tell

from dermaflow.lineage import machine

MOST = {"seconds, test alone": 3.0, "seconds, both sides": 3.0, "largest difference": 1e-9}
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
SHARES = (0.033, 0.051, 0.110, 0.011, 0.111, 0.670, 0.014)
SITES = ("abdomen", "back", "chest", "face", "lower extremity", "neck", "scalp", "trunk", "upper extremity", "unknown")
WAYS = ("histo", "follow_up", "consensus", "confocal")
TEMPERATURE, THRESHOLDS = 1.5, {"melanoma": 0.3, "malignant": 0.4}
QUESTIONS = {"melanoma": ("mel",), "malignant": ("akiec", "bcc", "mel")}
SEED = 20240101


def predictions(images: int) -> Any:
    """A table of predictions of test images, some of a lesion, with what subgroups are made of."""
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(SEED)
    lesions = np.sort(random.integers(0, round(images / 1.35), images))
    label = random.choice(7, size=images, p=np.array(SHARES) / sum(SHARES))[lesions]
    logits = random.normal(size=(images, 7)).astype(np.float32)
    logits[np.arange(images), label] += 1.5

    def known(values: Any) -> Any:
        return random.choice(values, size=images)[lesions]

    table = pd.DataFrame(
        {
            "image_id": [f"image{row:06d}" for row in range(images)],
            "lesion_id": [f"lesion{lesion:06d}" for lesion in lesions],
            "split": "test",
            "label": np.asarray(CLASSES)[label],
            "sex": known(["male", "female"]),
            "age": known(np.append(np.arange(20.0, 90.0, 5.0), np.nan)),
            "localization": known(SITES),
            "dx_type": known(WAYS),
            "lesion_size": random.uniform(0.02, 0.7, images),
        }
    )
    return table.assign(**{f"logit_{name}": logits[:, k] for k, name in enumerate(CLASSES)})


def figures_of(images: int, resamples: int, *, halved: bool) -> Any:
    """Ours, as the pipeline's step has it; a function without arguments."""
    import numpy as np
    import scipy.optimize  # noqa: F401 - what fits the temperature, before the clock runs

    from dermaflow.figures import Chosen, figures
    from dermaflow.params import EvaluateParams

    params = EvaluateParams.model_construct(bootstrap=resamples, specificity=0.9, seed=SEED)  # any number of resamples
    table = predictions(images)
    if halved:
        sides = np.where(table["lesion_id"].str[-1].astype(int) % 2, "validation", "test")
        return lambda: figures(table.assign(split=sides), CLASSES, params)
    return lambda: figures(table, CLASSES, params, Chosen(TEMPERATURE, THRESHOLDS))


def timed(work: Any, rounds: int) -> list[float]:
    """Seconds of each of some rounds."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def test_alone(images: int, resamples: int, plain: int, rounds: int) -> Any:
    """Seconds, and the intervals over plain's resamples."""
    work, few = figures_of(images, resamples, halved=False), figures_of(images, plain, halved=False)
    return lambda: {"seconds": timed(work, rounds), "told": intervals_in(few()["test"])}


def both_sides(images: int, resamples: int, _: int, rounds: int) -> Any:
    """Seconds."""
    work = figures_of(images, resamples, halved=True)
    return lambda: {"seconds": timed(work, rounds)}


def intervals_in(told: Any, path: str = "") -> dict[str, list[float | None]]:
    """Each interval of nested figures by its path: estimate, low, high."""
    if isinstance(told, dict) and "estimate" in told:
        return {path: [told["estimate"], told["low"], told["high"]]}
    items = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    return {name: value for key, item in items for name, value in intervals_in(item, f"{path}/{key}").items()}


def plain(images: int, _: int, resamples: int, __: int) -> Any:
    """As a newcomer would write it; returns the seconds of one resample, and estimate and interval of each figure."""
    import warnings

    import numpy as np

    from dermaflow.metrics import lesion_weights, softmax

    warnings.simplefilter("ignore")
    table = predictions(images)
    logits = table[[f"logit_{name}" for name in CLASSES]].to_numpy()
    confidence = softmax(logits / TEMPERATURE).max(axis=1)
    table["rank"] = (-confidence).argsort(kind="stable").argsort(kind="stable")
    groups = groups_of(table)
    (drawn,) = lesion_weights(np.unique(table["lesion_id"], return_inverse=True)[1], resamples, SEED)

    def go() -> Any:
        estimates = asked(table, groups, images)
        found: dict[str, list[float]] = {name: [] for name in estimates}
        started = time.perf_counter()
        for times in drawn:
            rows = np.repeat(np.arange(images), times.astype(int))
            for name, value in asked(table.iloc[rows], {key: mine[rows] for key, mine in groups.items()}, images).items():
                found[name].append(value)
        seconds = (time.perf_counter() - started) / resamples
        told = {}
        for name, values in found.items():
            defined = np.asarray(values)[~np.isnan(values)]
            ends = np.quantile(defined, [0.025, 0.975]).tolist() if len(defined) else [None, None]
            told[name] = [None, None, None] if np.isnan(estimates[name]) else [estimates[name], *ends]
        return {"seconds": [seconds], "told": told}

    return go


def groups_of(table: Any) -> dict[tuple[str, str], Any]:
    """The images of each subgroup of 20 lesions and more, bool [n]."""
    import pandas as pd

    ages = pd.cut(table["age"], [0, 30, 50, 70, 200], right=False, labels=["under 30", "30 to 49", "50 to 69", "70 and over"])
    sizes = ["under a tenth of the image", "a tenth to a third", "over a third"]
    named = {
        "sex": table["sex"],
        "age": ages.astype(object).fillna("unknown"),
        "localization": table["localization"],
        "dx_type": table["dx_type"],
        "lesion_size": pd.cut(table["lesion_size"], [0, 0.1, 1 / 3, 1.01], right=False, labels=sizes).astype(str),
    }
    groups = {(name, value): (column == value).to_numpy() for name, column in named.items() for value in column.unique()}
    return {key: mine for key, mine in groups.items() if table.loc[mine, "lesion_id"].nunique() >= 20}


def asked(table: Any, groups: dict[tuple[str, str], Any], images: int) -> dict[str, float]:
    """Every figure of a table by its path, asked of scikit-learn; NaN where it is not defined."""
    import numpy as np
    from sklearn import metrics as sk

    from dermaflow.calibration import COVERAGES
    from dermaflow.metrics import softmax

    logits = table[[f"logit_{name}" for name in CLASSES]].to_numpy(np.float64)
    labels = table["label"].map(CLASSES.index).to_numpy()
    predicted, probabilities = logits.argmax(axis=1), softmax(logits)
    told = {
        "/overall/balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "/overall/accuracy": sk.accuracy_score(labels, predicted),
        "/overall/top3": sk.top_k_accuracy_score(labels, logits, k=3, labels=range(7)),
    }
    for k, name in enumerate(CLASSES):
        for metric, value in one_against_the_rest(labels == k, predicted == k, probabilities[:, k]).items():
            told[f"/per_class/{name}/{metric}"] = value
    for metric in ("sensitivity", "specificity", "precision", "npv", "f1", "auroc", "auprc"):
        told[f"/overall/{metric}"] = float(np.nanmean([told[f"/per_class/{name}/{metric}"] for name in CLASSES]))
    for stage, temperature in (("before", 1.0), ("after", TEMPERATURE)):
        own = softmax(logits / temperature)
        told[f"/calibration/{stage}/nll"] = sk.log_loss(labels, own, labels=range(7))
        told[f"/calibration/{stage}/brier"] = sk.brier_score_loss(labels, own, labels=range(7), scale_by_half=False)
        told[f"/calibration/{stage}/ece"] = calibration_error(predicted == labels, own.max(axis=1))
    for place, share in enumerate(COVERAGES):
        sure = table["rank"].to_numpy() < round(share * images)
        told[f"/abstention/{place}/accuracy"] = sk.accuracy_score(labels[sure], predicted[sure])
    calibrated = softmax(logits / TEMPERATURE)
    answers = {
        name: (table["label"].isin(members).to_numpy(), calibrated[:, [CLASSES.index(one) for one in members]].sum(axis=1))
        for name, members in QUESTIONS.items()
    }
    for name, (holds, scores) in answers.items():
        for metric, value in answered(holds, scores, THRESHOLDS[name]).items():
            told[f"/operating_points/{name}/{metric}"] = value
    for (attribute, group), mine in groups.items():
        path = f"/subgroups/{attribute}/{group}"
        told[f"{path}/balanced_accuracy"] = sk.balanced_accuracy_score(labels[mine], predicted[mine])
        told[f"{path}/accuracy"] = sk.accuracy_score(labels[mine], predicted[mine])
        for name, (holds, scores) in answers.items():
            of_group = answered(holds[mine], scores[mine], THRESHOLDS[name])
            told |= {f"{path}/{name}/{metric}": of_group[metric] for metric in ("sensitivity", "specificity", "auroc")}
    return told


def one_against_the_rest(holds: Any, says: Any, scores: Any) -> dict[str, float]:
    """Metrics of a class; none is defined without an image of it, and some are not without one of another."""
    from sklearn import metrics as sk

    if not holds.any():
        return dict.fromkeys(("sensitivity", "specificity", "precision", "npv", "f1", "auroc", "auprc"), float("nan"))
    both = not holds.all()
    return {
        "sensitivity": sk.recall_score(holds, says),
        "specificity": sk.recall_score(~holds, ~says) if both else float("nan"),
        "precision": sk.precision_score(holds, says, zero_division=0),
        "npv": sk.precision_score(~holds, ~says, zero_division=0) if both else float("nan"),
        "f1": sk.f1_score(holds, says, zero_division=0),
        "auroc": sk.roc_auc_score(holds, scores) if both else float("nan"),
        "auprc": sk.average_precision_score(holds, scores) if both else float("nan"),
    }


def answered(holds: Any, scores: Any, threshold: float) -> dict[str, float]:
    """Rates at a threshold, and areas; NaN where there is nothing to take a share of."""
    import numpy as np
    from sklearn import metrics as sk

    says = scores >= threshold
    both = holds.any() and not holds.all()
    return {
        "sensitivity": sk.recall_score(holds, says, zero_division=np.nan),
        "specificity": sk.recall_score(~holds, ~says, zero_division=np.nan),
        "ppv": sk.precision_score(holds, says, zero_division=np.nan),
        "npv": sk.precision_score(~holds, ~says, zero_division=np.nan),
        "auroc": sk.roc_auc_score(holds, scores) if both else float("nan"),
        "auprc": sk.average_precision_score(holds, scores) if both else float("nan"),
    }


def calibration_error(right: Any, confidence: Any) -> float:
    """The expected calibration error over 15 bins of equal width."""
    import numpy as np
    from sklearn.calibration import calibration_curve

    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=15)
    edges = np.linspace(0, 1, 16)[1:-1]
    images = np.bincount(np.searchsorted(edges, confidence), minlength=15)
    return float((np.abs(accuracy - mean_confidence) * images[images > 0]).sum() / len(right))


CONTESTANTS = {"test alone": test_alone, "both sides": both_sides, "plain": plain}


def compare(images: int, resamples: int, few: int, rounds: int) -> dict[str, Any]:
    """Time each contestant, and hold ours against plain."""
    sizes = ("--images", str(images), "--resamples", str(resamples), "--plain", str(few), "--rounds", str(rounds))
    found = {name: run(__file__, "--contestant", name, *sizes) for name in CONTESTANTS}
    seconds = {name: sorted(one["result"]["seconds"])[len(one["result"]["seconds"]) // 2] for name, one in found.items()}
    whole = seconds.pop("plain") * resamples
    ours = {name: value for name, value in found["test alone"]["result"]["told"].items() if value != [None] * 3}
    theirs = {name: value for name, value in found["plain"]["result"]["told"].items() if value != [None] * 3}
    if ours.keys() != theirs.keys():
        raise SystemExit(f"not the same figures: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    pairs = [pair for name in ours for pair in zip(ours[name], theirs[name], strict=True)]
    differences = [0.0 if one == other else abs(one - other) for one, other in pairs]
    return {
        "machine": machine(),
        "images": images,
        "resamples": resamples,
        "figures_with_intervals": len(ours),
        "plain": {"resamples_measured": few, "seconds_of_all_resamples_reckoned": round(whole, 1)},
        "figures": {
            **{f"seconds, {name}": round(value, 3) for name, value in seconds.items()},
            "largest difference": max(differences),
        },
        "peak_anonymous_mib": {name: found[name]["peak_anonymous_mib"] for name in CONTESTANTS},
        "ratios": {"plain / test alone": round(whole / seconds["test alone"], 1)},
        "bounds": MOST,
    }


def main() -> int:
    """Print the comparison; exit code 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000, help="images that are judged (default: 2000)")
    parser.add_argument("--resamples", type=int, default=2000, help="resamples of lesions (default: 2000)")
    parser.add_argument("--plain", type=int, default=20, help="resamples that the plain loop is measured on (default: 20)")
    parser.add_argument("--rounds", type=int, default=3, help="of ours, of which the median counts (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.images, options.resamples, options.plain, options.rounds
    if options.contestant:
        contestant(CONTESTANTS[options.contestant](*sizes))
        return 0
    told = compare(*sizes)
    told["missed"] = [name for name, most in MOST.items() if told["figures"][name] > most]
    if options.json:
        print(json.dumps(told, indent=2))
    else:
        print(f"{told['figures_with_intervals']} figures of {told['images']} images with intervals over {told['resamples']}")
        print(f"resamples of lesions, on {told['machine']}")
        tell(told, ("plain", "figures", "peak_anonymous_mib", "ratios"), {}, MOST)
    return 1 if told["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
