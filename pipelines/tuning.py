"""Tune: a small grid of training parameters of one architecture, judged on validation images alone.

Each trial is an experiment of DVC (`dvc exp show` lists them), which runs the train stage and what it needs, and a run of
MLflow. Features of frozen layers are computed in the first trial and reused in the others. Test images are not looked at.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from dermaflow import contracts
from dermaflow.artifacts import json_digest
from dermaflow.errors import GateError, InputError
from dermaflow.metrics import evaluate_predictions, paired_difference
from dermaflow.params import OVERLAYS, PARAMS_FILE, Params, load_params
from dermaflow.registry import TAG, connect
from dermaflow.yaml_files import parse_yaml

SHORT = {"dropout": "train.dropout.{}", "learning_rate": "train.learning_rates.{}"}
STUDY = ("dropout=0.2,0.5", "learning_rate=0.001,0.0001")  # the study's table 4
METRIC = "balanced_accuracy"
_GRAPH, _LOCK = Path("dvc.yaml"), Path("dvc.lock")

Trial = Mapping[str, Any]


def tune(architecture: str, grid: Sequence[str], on_trial: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Run every trial of a grid, and rank them.

    Parameters
    ----------
    grid: KEY=VALUE,VALUE ... ; a key of SHORT, of the architecture, or any of params.yaml.
    on_trial: told number, total and settings of each trial before it runs.

    Returns
    -------
    architecture, metric, trials (best first): settings, balanced_accuracy (estimate, low, high), difference to the best
    trial with its paired interval (None for the best), epochs, kept_epochs, mlflow_run, experiment; and `best`, the best
    one's settings.

    Raises
    ------
    InputError
        when there is no repository of DVC, a value is not allowed, or the graph's profile overrides a key.
    GateError
        when a trial fails.
    """
    profile = _require_graph()
    trials = list(_trials(architecture, grid))
    _require_allowed(architecture, trials, profile)
    params = load_params(profile)
    results = []
    with _workspace_kept(architecture):
        for number, settings in enumerate(trials, start=1):
            on_trial(number, len(trials), _told(settings))
            results.append(_run(architecture, settings, params))
    return _ranked(architecture, results, params)


def _require_graph() -> str:
    """The profile of dvc.yaml."""
    if not _GRAPH.is_file() or not Path(".dvc").is_dir() or not Path(".git").exists():
        raise InputError(
            "dermaflow tune runs experiments of DVC: it needs dvc.yaml, .dvc/ and .git/ in the working folder; run it in a "
            "clone of the project, or `git init && dvc init` there"
        )
    variables = parse_yaml(_GRAPH.read_text())["vars"]
    return str(next(entry["profile"] for entry in variables if "profile" in entry))


def _trials(architecture: str, grid: Sequence[str]) -> Iterator[Trial]:
    axes: dict[str, list[Any]] = {}
    for text in grid:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise InputError(f"--grid {text}: expected KEY=VALUE,VALUE such as dropout=0.2,0.5")
        name = SHORT[key].format(architecture) if key in SHORT else key
        axes[name] = [parse_yaml(value) for value in values.split(",")]
    for values_of_one in itertools.product(*axes.values()):
        yield dict(zip(axes, values_of_one, strict=True))


def _require_allowed(architecture: str, trials: Sequence[Trial], profile: str) -> None:
    overlay = OVERLAYS / f"{profile}.yaml"
    overlaid = parse_yaml(overlay.read_text()) if overlay.is_file() else {}
    for key in trials[0]:
        value: Any = overlaid
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            raise InputError(f"{overlay} sets {key}, and takes precedence over every trial; take it out there")
    for settings in trials:
        params = load_params(profile, [f"{key}={value}" for key, value in settings.items()])
        if architecture not in params.train.architectures:
            raise InputError(
                f"{architecture} is not among train.architectures, which are {', '.join(params.train.architectures)}"
            )


@contextmanager
def _workspace_kept(architecture: str) -> Iterator[None]:
    """Experiments change params.yaml, dvc.lock and the artifacts; afterwards they are as they were."""
    kept = {path: path.read_bytes() for path in (PARAMS_FILE, _LOCK) if path.exists()}
    try:
        yield
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
        if _LOCK in kept:
            _dvc("checkout", "--quiet", "--force", f"train@{architecture}")


def _run(architecture: str, settings: Trial, params: Params) -> dict[str, Any]:
    name = f"tune-{architecture}-{json_digest(dict(settings)).removeprefix('sha256:')[:8]}"
    changes = [part for key, value in settings.items() for part in ("-S", f"++{key}={value}")]
    if name in _dvc("exp", "list", "--name-only").split():  # --force would take its place, and run every stage of data again
        _dvc("exp", "remove", "--quiet", name)
    _dvc("exp", "run", "--quiet", "--name", name, *changes, f"train@{architecture}")
    folder = Path("artifacts/models") / architecture
    history = contracts.read_info(folder / "history", contracts.HISTORY)
    model = contracts.read_info(folder / "model", contracts.MODEL)
    if model["run"]:
        connect(params.register_.tracking_uri).set_tag(model["run"], TAG + "tune", name)
    return {
        "settings": dict(settings),
        "validation": pd.read_parquet(folder / "history" / contracts.VALIDATION_FILE),
        "classes": model["classes"],
        "epochs": len(history["epochs"]),
        "kept_epochs": history["kept_epochs"],
        "seconds": sum(row["seconds"] for row in history["epochs"]),
        "mlflow_run": model["run"],
        "experiment": name,
    }


def _dvc(*arguments: str) -> str:
    """What a command of DVC prints."""
    command = [str(Path(sys.executable).with_name("dvc")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error:")] or lines or ["it said nothing"]
        raise GateError(f"dvc {' '.join(arguments)} failed: {errors[0].removeprefix('error: ')}")
    return done.stdout


def _ranked(architecture: str, results: list[dict[str, Any]], params: Params) -> dict[str, Any]:
    how = {"bootstrap": params.evaluate.bootstrap, "seed": params.evaluate.seed}
    for result in results:
        result[METRIC] = evaluate_predictions(result["validation"], result["classes"], **how)["overall"][METRIC]
    results.sort(key=lambda result: -result[METRIC]["estimate"])
    best = results[0]
    for result in results:
        result["difference"] = (
            None
            if result is best
            else paired_difference(result["validation"], best["validation"], best["classes"], metric=METRIC, **how)
        )
    shown = [{key: value for key, value in result.items() if key not in ("validation", "classes")} for result in results]
    return {"architecture": architecture, "metric": METRIC, "best": best["settings"], "trials": shown}


def _told(settings: Trial) -> str:
    return ", ".join(f"{key.removeprefix('train.')}={value}" for key, value in settings.items())
