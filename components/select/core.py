"""Choose the candidate among evaluated models: by validation images only, so that the test set stays unspent."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dermaflow import contracts
from dermaflow.artifacts import ARTIFACT_FILE, changed_files, new_artifact, open_artifact, write_json
from dermaflow.errors import InputError
from dermaflow.metrics import paired_difference
from dermaflow.params import EvaluateParams

METRIC = "balanced_accuracy"
SPLIT = "validation"


def select(evaluations: Sequence[Path], params: EvaluateParams, target: Path) -> dict[str, Any]:
    """Choose the architecture with the highest balanced accuracy on validation images.

    An architecture whose backbone is random (`pipeline_check`) is chosen only where there is nothing else. Equal values
    go by the order of the names. The lead over the runner-up of the same kind is told with its paired interval; where
    that includes 0, the choice is a coin toss.

    Parameters
    ----------
    evaluations: Evaluation artifacts, one for each architecture, in any order.
    params: number and seed of the bootstrap resamples of the lead.
    target: where the Selection artifact is to be.

    Returns
    -------
    What `selection.json` says: candidate, reason, metric, ranking (best first), runner_up, difference, coin_toss.

    Raises
    ------
    InputError
        when there is no evaluation, two are of one architecture, or they do not judge the same images and classes.
    """
    contestants = [_read(path) for path in evaluations]
    _check_comparable(contestants)
    winner, *rivals = sorted(contestants, key=_Contestant.rank)
    runner_up = next((rival for rival in rivals if rival.pipeline_check == winner.pipeline_check), None)
    difference = None if runner_up is None else _difference(winner, runner_up, params)
    coin_toss = difference is not None and difference["low"] <= 0 <= difference["high"]
    selection = {
        "candidate": winner.architecture,
        "reason": " ".join([_verdict(winner, runner_up, rivals), _lead(runner_up, difference, coin_toss=coin_toss)]).strip()
        + ".",
        "metric": METRIC,
        "ranking": [contestant.ranked() for contestant in (winner, *rivals)],
        "runner_up": None if runner_up is None else runner_up.architecture,
        "difference": difference,
        "coin_toss": coin_toss,
    }
    with new_artifact(target, contracts.SELECTION) as folder:
        write_json(folder / "selection.json", selection)
    return selection


def candidate_model(selection: Path, models: Sequence[Path]) -> Path:
    """Find, among `models`, the Model artifact of the architecture that a Selection artifact names.

    Raises
    ------
    InputError
        when none of the models is of that architecture, or several are.
    """
    return _candidate(selection, [(path, contracts.read_info(path, contracts.MODEL)["architecture"]) for path in models])


def hand_on(
    selection: Path, models: Sequence[Path], evaluations: Sequence[Path], model_target: Path, evaluation_target: Path
) -> None:
    """Copy the candidate's Model and Evaluation, with their digests, for the steps that go on with it alone.

    Parameters
    ----------
    selection: Selection artifact that names the candidate.
    models, evaluations: artifacts of all architectures, in any order.
    model_target, evaluation_target: where the copies are to be.

    Raises
    ------
    InputError
        when the candidate is not there exactly once, or a file no longer matches its artifact's digest.
    """
    judged = [(path, _metrics(path)["architecture"]) for path in evaluations]
    _copy(candidate_model(selection, models), contracts.MODEL, model_target)
    _copy(_candidate(selection, judged), contracts.EVALUATION, evaluation_target)


@dataclass(frozen=True)
class _Contestant:
    """What selection may know of an evaluation: nothing of its test images."""

    path: Path
    architecture: str
    pipeline_check: bool
    classes: tuple[str, ...]
    validation: dict[str, float]  # estimate, low, high of METRIC
    predictions: pd.DataFrame  # validation rows

    def rank(self) -> tuple[bool, float, str]:
        return self.pipeline_check, -self.validation["estimate"], self.architecture

    def ranked(self) -> dict[str, Any]:
        return {"architecture": self.architecture, "validation": self.validation, "pipeline_check": self.pipeline_check}


def _read(path: Path) -> _Contestant:
    """Read an evaluation without its test images: their rows and metrics are dropped right here."""
    metrics = _metrics(path)
    predictions = pd.read_parquet(path / "predictions.parquet", filters=[("split", "==", SPLIT)])
    if predictions.empty:
        raise InputError(f"{path} judges no {SPLIT} image, so nothing can be selected; give split.{SPLIT} a larger share")
    return _Contestant(
        path=path,
        architecture=metrics["architecture"],
        pipeline_check=metrics["pipeline_check"],
        classes=tuple(metrics["classes"]),
        validation=metrics[SPLIT]["overall"][METRIC],
        predictions=predictions,
    )


def _metrics(path: Path) -> dict[str, Any]:
    return {name: value for name, value in contracts.read_metrics(path).items() if name != "test"}


def _candidate(selection: Path, artifacts: Sequence[tuple[Path, str]]) -> Path:
    candidate = contracts.read_info(selection, contracts.SELECTION)["candidate"]
    matching = [path for path, architecture in artifacts if architecture == candidate]
    if len(matching) != 1:
        given = ", ".join(sorted(architecture for _, architecture in artifacts)) or "none"
        raise InputError(
            f"{selection} names {candidate!r}, which {len(matching)} of the given artifacts are of (given: {given}); "
            "give those that were evaluated for this selection, each once"
        )
    return matching[0]


def _copy(source: Path, kind: str, target: Path) -> None:
    changed = changed_files(open_artifact(source, kind))
    if changed:
        raise InputError(f"{source / changed[0]} has changed since it was written; run the step that wrote it again")
    with new_artifact(target, kind) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ARTIFACT_FILE))


def _check_comparable(contestants: Sequence[_Contestant]) -> None:
    if not contestants:
        raise InputError("there is no evaluation to select from; name at least one in train.architectures")
    names = [contestant.architecture for contestant in contestants]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"several evaluations are of {repeated[0]!r}; give one for each architecture")
    first = contestants[0]
    for other in contestants[1:]:
        if other.classes != first.classes:
            raise InputError(f"{first.path} and {other.path} know different classes; evaluate both on the same dataset")
        if set(other.predictions["image_id"]) != set(first.predictions["image_id"]):
            raise InputError(
                f"{first.path} and {other.path} judge different {SPLIT} images; evaluate both on the same dataset and splits"
            )


def _difference(winner: _Contestant, runner_up: _Contestant, params: EvaluateParams) -> dict[str, Any]:
    return paired_difference(
        winner.predictions, runner_up.predictions, winner.classes, metric=METRIC, bootstrap=params.bootstrap, seed=params.seed
    )


def _verdict(winner: _Contestant, runner_up: _Contestant | None, rivals: Sequence[_Contestant]) -> str:
    value = f"{SPLIT} balanced accuracy {_told(winner.validation)}"
    random = "random backbones, a check of the pipeline and no result"
    if not rivals:
        alone = " (its backbone is random: a check of the pipeline, not a result)" if winner.pipeline_check else ""
        return f"{winner.architecture} is the only architecture{alone}, with {value}"
    if runner_up is None:
        return f"{winner.architecture} is the only architecture that is a result, with {value}; the others have {random}"
    if winner.pipeline_check:
        return f"{winner.architecture} has the highest {value}, but all architectures have {random}"
    if any(rival.pipeline_check for rival in rivals):
        return f"{winner.architecture} has the highest {value} of those that do not have {random}"
    return f"{winner.architecture} has the highest {value}"


def _lead(runner_up: _Contestant | None, difference: dict[str, Any] | None, *, coin_toss: bool) -> str:
    if runner_up is None or difference is None:
        return ""
    if difference["estimate"] == 0:
        return f"and draws with {runner_up.architecture}, so the order of the names decides"
    lead = f"and leads {runner_up.architecture} by {_told(difference)}"
    return f"{lead}, which includes 0: the choice between the two is a coin toss" if coin_toss else lead


def _told(interval: dict[str, Any]) -> str:
    return f"{interval['estimate']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"
