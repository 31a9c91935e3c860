"""A run of the pipeline on this machine, in processes or containers, as the commands `run` and `trigger` make one."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from typing import Any

import typer

from dermaflow.params import Params
from pipelines import local, preflight, results, show
from pipelines.report import write_report


def run_locally(
    params: Params, *, as_json: bool, on_start: Callable[[str], None] | None = None, in_containers: bool = False
) -> None:
    """Run on this machine, show what came of it, and end with the command's exit code where it failed.

    Parameters
    ----------
    in_containers: each step in one, instead of a process.
    on_start: told the run's id once the run has begun.
    """
    preflight.require(params)
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    request = {
        "params": json.loads(params.model_dump_json(by_alias=True)),
        "arguments": preflight.arguments(params),
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if in_containers:
        from pipelines import containers

        request["containers"] = containers.prepare(run_id, params).to_dict()
    with show.RunDisplay(run_id) as display:

        def on_event(event: dict[str, Any]) -> None:
            if on_start and event["event"] == "task_started":
                on_start(run_id)
            display.on_event(event)

        failure = local.run(run_id, request, on_event)
    folder = results.run_folder(run_id)
    results.mark_latest(folder)
    summary = results.summarise(folder)
    if failure:
        summary["error"] = {"step": failure.step, "message": failure.message}
    if as_json:
        show.print_json(summary)
    elif not failure:
        show.run_summary(summary)
    write_report(folder)
    if failure:
        show.error(f"{failure.step}: {failure.message}\nlog: {summary['paths']['log']}")
        raise typer.Exit(failure.exit_code)
