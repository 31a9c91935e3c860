"""Notify: tell how a run ended, whether it failed or not."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from dermaflow.artifacts import new_artifact, write_json
from dermaflow.contracts import NOTIFICATION
from dermaflow.progress import tell


def notify(run_id: str, profile: str, state: str, error: str | None, target: Path) -> dict[str, Any]:
    """Write and report a run's final state.

    Parameters
    ----------
    state: as KFP gives it: SUCCEEDED, FAILED or CANCELLED.
    error: KFP's message, where there is one.

    Returns
    -------
    The content of notification.json.
    """
    info = {
        "run_id": run_id,
        "profile": profile,
        "state": state,
        "succeeded": state == "SUCCEEDED",
        "error": error or None,
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    with new_artifact(target, NOTIFICATION) as folder:
        write_json(folder / "notification.json", info)
    tell("outcome", run_id=run_id, state=state)
    return info
