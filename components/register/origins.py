"""Where a model comes from, beyond the artifacts of its run: lock file, dvc.lock, images, the run on Kubeflow, time per step.

What cannot be known where this runs is None, and the evidence says so: nothing here is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dermaflow import places
from dermaflow.artifacts import file_digest, json_digest, read_json

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "runtime.txt"  # every library by version and hash
DVC_LOCK = Path("dvc.lock")  # in the working folder, as DVC has it
TASKS = "tasks.json"  # of a local run: each task that has ended, with its seconds
_SEED = "seed"


def locked(path: Path) -> dict[str, str] | None:
    """A lock file's name and digest; None where it is not here, as in an image that holds the installed package alone."""
    return {"file": path.name, "digest": file_digest(path)} if path.is_file() else None


def is_local(run_id: str) -> bool:
    """Whether a run was made of processes of this machine: then its folder is here, and Kubeflow knows nothing of it."""
    return (places.RUNS / run_id).is_dir()


def kubeflow_run(run_id: str, job_id: str) -> str | None:
    """The id by which Kubeflow's API knows a run; None of one that Kubeflow did not make."""
    return job_id if job_id and not is_local(run_id) else None


def images_of(told: str) -> dict[str, str] | None:
    """The container image of each step, by digest, as JSON that the compiled pipeline carries; None of local processes."""
    found: dict[str, str] = json.loads(told) if told else {}
    return found or None


def steps(run_id: str, architecture: str, device: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Time of each task of the run that has ended by now; None where no list of them is here.

    A task that the cache answered tells nothing of the time that its work took. Which device a task had is known of the
    candidate's training alone. Nothing tells what any of it cost.

    Parameters
    ----------
    architecture: of the candidate; device: that it was trained on, as model.json tells it.
    """
    path = places.RUNS / run_id / TASKS
    if not path.is_file():
        return None

    def of(task: Mapping[str, Any]) -> dict[str, Any]:
        wall = None if task["cached"] else float(task["seconds"])
        knows = task["task"] == f"train-{architecture}" and wall is not None
        return {
            "task": task["task"],
            "cached": bool(task["cached"]),
            "wall_seconds": wall,
            "gpu_seconds": wall * len(device["gpus"]) if knows and wall is not None else None,
            "cost": None,
        }

    return [of(task) for task in read_json(path)]


def fingerprint(device: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """Digest of device, libraries, system and processor: on the same one, the same training gives the same bits."""
    return json_digest({"device": device, "environment": environment})


def seeds(params: Mapping[str, Any]) -> dict[str, int]:
    """Every seed among the parameters of a run, by its dotted name, as `dermaflow.params.flat` has them."""
    return {name: int(value) for name, value in params.items() if name.rpartition(".")[2] == _SEED}
