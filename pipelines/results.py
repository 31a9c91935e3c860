"""What a finished run has to say: one JSON object, read from the run's artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dermaflow import contracts, places
from dermaflow.artifacts import ARTIFACT_FILE, read_json
from dermaflow.errors import InputError
from dermaflow.run_folder import LOG, REPORT, REQUEST, tasks_of

LATEST = "latest"


def run_folder(run: str) -> Path:
    """The folder of a run by its id, or of the newest for `latest`; raises InputError with the runs there are."""
    folder = places.RUNS / run
    if not (folder / REQUEST).exists():
        raise InputError(f"no run {run!r} in {places.RUNS}/; there are: {known_runs()}")
    return folder.resolve()


def known_runs() -> str:
    """The newest runs, for a message."""
    known = sorted(path.parent.name for path in places.RUNS.glob(f"*/{REQUEST}") if path.parent.name != LATEST)
    return ", ".join(known[-5:]) or "none"


def artifact(folder: Path, step: str, name: str) -> Path | None:
    """The folder of a step's artifact in a run, or None when the step did not finish."""
    path = folder / step / name
    return path if (path / ARTIFACT_FILE).exists() else None


def summarise(folder: Path) -> dict[str, Any]:
    """The result of a run, as `dermaflow run --json` prints it."""
    request = read_json(folder / REQUEST)
    tasks = tasks_of(folder)
    seconds = {task["task"]: task["seconds"] for task in tasks}
    registration = _info(folder, "register", contracts.REGISTRATION)
    decision = _info(folder, "promote", contracts.DECISION)
    masks = _info(folder, "segment", contracts.MASKS, artifact_name="masks")
    names = request["arguments"]["architectures"]
    architectures = [_architecture(folder, name, seconds) for name in names]
    return {
        "run_id": folder.name,
        "profile": request["arguments"]["profile"],
        "outcome": decision["outcome"] if decision else "failed",
        "candidate": _candidate(registration),
        "architectures": [entry for entry in architectures if entry],
        "out_of_fold": [entry for entry in (_out_of_fold(folder, name) for name in names) if entry],
        "gates": decision["gates"] if decision else [],
        "champion": decision["champion_after"] if decision else None,
        "synthetic": registration["facts"]["synthetic"] if registration else None,
        "segmentation": {key: masks.get(key) for key in ("mean_dice", "mean_dice_over_classes", "fallback_share")}
        if masks
        else None,
        "tasks": tasks,
        "paths": {
            "run": str(folder),
            "log": str(folder / LOG),
            "report": str(folder / REPORT),
            "tracking_uri": request["params"]["register"]["tracking_uri"],
        },
    }


def _info(folder: Path, step: str, kind: str, artifact_name: str | None = None) -> dict[str, Any] | None:
    path = artifact(folder, step, artifact_name or kind)
    return contracts.read_info(path, kind) if path else None


def _candidate(registration: dict[str, Any] | None) -> dict[str, Any] | None:
    if registration is None:
        return None
    facts = registration["facts"]
    return {
        "name": registration["model"],
        "version": registration["version"],
        "alias": registration["alias"],
        "architecture": facts["architecture"],
        "pipeline_check": facts["pipeline_check"],
        "validation": _figures(facts["validation"]),
        "test": _figures(facts["test"]),
    }


def _architecture(folder: Path, name: str, seconds: dict[str, float]) -> dict[str, Any] | None:
    evaluation, model = artifact(folder, f"evaluate-{name}", "evaluation"), artifact(folder, f"train-{name}", "model")
    if evaluation is None or model is None:
        return None
    metrics, info = contracts.read_metrics(evaluation), contracts.read_info(model, contracts.MODEL)
    return {
        "name": name,
        "parameters": info["parameters"],
        "pipeline_check": info["pipeline_check"],
        "train_seconds": seconds.get(f"train-{name}"),
        "validation": _figures(metrics["validation"]),
        "test": _figures(metrics["test"]),
    }


def _out_of_fold(folder: Path, name: str) -> dict[str, Any] | None:
    """What the models of an architecture's folds say of the images that they were held out from."""
    evaluation = artifact(folder, f"pool-{name}", "evaluation")
    if evaluation is None:
        return None
    metrics = contracts.read_metrics(evaluation)
    return {
        "architecture": name,
        **{key: metrics["out_of_fold"][key] for key in ("folds", "seed")},
        "pipeline_check": metrics["pipeline_check"],
        **_figures(metrics["test"]),
        **{key: metrics[key] for key in ("by_fold", "over_folds")},
    }


def _figures(part: dict[str, Any]) -> dict[str, Any]:
    return {"n_images": part["n_images"], "n_lesions": part["n_lesions"], **part["overall"]}


def mark_latest(folder: Path) -> None:
    """Let runs/latest lead to a run; replaced in one step, so that it always leads somewhere."""
    link, fresh = folder.parent / LATEST, folder.parent / f".{LATEST}-{folder.name}"
    fresh.symlink_to(folder.name)
    fresh.replace(link)
