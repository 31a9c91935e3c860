"""What a run on Kubeflow Pipelines says of itself, by kfp's client; and who asks, by the environment of the call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dermaflow.errors import InputError


def credentials() -> dict[str, Any]:
    """Arguments of kfp.Client that say who asks; none of them is kept or shown.

    KF_PIPELINES_TOKEN_FILE (read anew for each call, since such tokens expire), KF_PIPELINES_TOKEN, KF_PIPELINES_COOKIES, and
    KF_PIPELINES_CA for a server's own authority.

    Raises
    ------
    InputError
        when the token's file is not there.
    """
    from kfp.client import ServiceAccountTokenVolumeCredentials

    found: dict[str, Any] = {}
    if path := os.environ.get("KF_PIPELINES_TOKEN_FILE") or os.environ.get("KF_PIPELINES_SA_TOKEN_PATH"):
        if not Path(path).is_file():
            raise InputError(f"KF_PIPELINES_TOKEN_FILE: {path} is not a file; mount the service account's token there")
        found["credentials"] = ServiceAccountTokenVolumeCredentials(path)
    given = {"existing_token": "KF_PIPELINES_TOKEN", "cookies": "KF_PIPELINES_COOKIES", "ssl_ca_cert": "KF_PIPELINES_CA"}
    return found | {argument: os.environ[name] for argument, name in given.items() if os.environ.get(name)}


def run_page(host: str, run_id: str) -> str:
    """Where a person finds a run: KF_PIPELINES_UI_ENDPOINT, where that is another address than the API's."""
    return f"{(os.environ.get('KF_PIPELINES_UI_ENDPOINT') or host).rstrip('/')}/#/runs/details/{run_id}"


def tasks_of(run: Any) -> list[Any]:
    """The tasks of a run (V2beta1Run) that have begun."""
    found = (run.run_details.task_details if run.run_details else None) or []
    return [task for task in found if task.state]


def first_failure(run: Any) -> tuple[str | None, str | None]:
    """The step of a run that failed first, and what KFP says of it; None for what it does not say."""
    failed = [task for task in tasks_of(run) if task.state == "FAILED"]
    leaves = [task for task in failed if not task.child_tasks] or failed
    first = min(leaves, key=lambda task: (task.end_time is None, task.end_time), default=None)
    said = [error.message for error in (getattr(first, "error", None), run.error) if error is not None and error.message]
    return (str(first.display_name) if first else None, str(said[0]) if said else None)
