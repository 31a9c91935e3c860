"""Notify: tell how a run ended, whether it failed or not; people are told of a failure, with the step and its last error."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.notify.scrub import scrub
from components.notify.webhook import message, send, webhook_url
from dermaflow import kubeflow, places, registry
from dermaflow.artifacts import new_artifact, write_json
from dermaflow.contracts import NOTIFICATION
from dermaflow.errors import InputError, InterruptedWorkError
from dermaflow.params import RegisterParams
from dermaflow.progress import parse, tell
from dermaflow.run_folder import LOG, REPORT, last_error, tasks_of

WHEN = "DERMAFLOW_NOTIFY"  # failure (when it is not set), always, never: what the webhook is told of
_WHEN = ("failure", "always", "never")
_TIMEOUT = 30.0  # seconds for an answer of the KFP API


def notify(
    run_id: str,
    profile: str,
    state: str,
    error: str | None,
    target: Path,
    register: RegisterParams | None = None,
    job_id: str = "",
) -> dict[str, Any]:
    """Write and report a run's final state; tell the webhook, and the run's record in MLflow, where there are any.

    Parameters
    ----------
    state: as KFP gives it: SUCCEEDED, FAILED or CANCELLED.
    error: KFP's message, where there is one.
    register: where MLflow is; None leaves it out.
    job_id: of the run on Kubeflow, by which its API knows it.

    Returns
    -------
    The content of notification.json.

    Raises
    ------
    InputError
        when the webhook or MLflow do not take it; notification.json is written before.
    """
    step, said = (None, None) if state == "SUCCEEDED" else _failure(run_id, job_id, error)
    info = {
        "run_id": run_id,
        "profile": profile,
        "state": state,
        "succeeded": state == "SUCCEEDED",
        "step": step,
        "error": scrub(said) if said else None,
        "links": {name: scrub(link) for name, link in _links(run_id, job_id, register).items()},
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    with new_artifact(target, NOTIFICATION) as folder:
        write_json(folder / "notification.json", info)
    tell("outcome", run_id=run_id, state=state)
    faults = []
    for reach in (_tell_webhook, _tell_mlflow):
        try:
            reach(info, register)
        except InputError as fault:
            faults.append(scrub(str(fault)))
    if faults:
        raise InputError("\n".join(faults))
    return info


def _failure(run_id: str, job_id: str, error: str | None) -> tuple[str | None, str | None]:
    """The step that failed first and its last words: of the local run's log, of the KFP API, or what KFP told at the end."""
    folder = places.RUNS / run_id
    if (folder / LOG).is_file():
        return _of_log(folder, error)
    step, said = _of_api(job_id)
    return step, said or error


def _of_log(folder: Path, error: str | None) -> tuple[str | None, str | None]:
    step = next((task["task"] for task in tasks_of(folder) if task["state"] == "FAILED"), None)
    lines = (folder / LOG).read_text(errors="replace").splitlines()
    events = [event for event in map(parse, lines) if event]
    told = [one for one in events if one["event"] == "error" and one["exit_code"] != InterruptedWorkError.exit_code]
    if told:
        return step or told[0]["step"], told[0]["message"]
    return step, last_error(lines) or error


def _of_api(job_id: str) -> tuple[str | None, str | None]:
    """Nothing where no API is named. One that does not answer is a warning: the rest of the message matters more."""
    endpoint = os.environ.get("KF_PIPELINES_ENDPOINT")
    if not endpoint or not job_id:
        return None, None
    try:
        return kubeflow.first_failure(_asked(endpoint, job_id))
    except Exception as fault:  # noqa: BLE001 - of a server that is not ours: whatever it is, the outcome is told
        tell("warning", message=f"which step failed is not known: the KFP API did not tell ({type(fault).__name__})")
        return None, None


def _asked(endpoint: str, job_id: str) -> Any:
    import kfp

    space = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    namespace = space.read_text().strip() if space.is_file() else "default"  # with one kfp does not ask the server first
    client = kfp.Client(host=endpoint, namespace=namespace, **kubeflow.credentials())
    return client._run_api.run_service_get_run(run_id=job_id, _request_timeout=_TIMEOUT)  # noqa: SLF001 - get_run has no limit


def _links(run_id: str, job_id: str, register: RegisterParams | None) -> Mapping[str, str]:
    found = {}
    page = os.environ.get("KF_PIPELINES_UI_ENDPOINT") or os.environ.get("KF_PIPELINES_ENDPOINT")
    if (places.RUNS / run_id).is_dir():
        found["log"] = str(places.RUNS / run_id / LOG)
        found["report"] = str(places.RUNS / run_id / REPORT)
    elif page and job_id:
        found["run"] = kubeflow.run_page(page, job_id)
    if register and register.tracking_uri.startswith("http"):
        found["registry"] = register.tracking_uri
    return found


def _tell_webhook(info: Mapping[str, Any], _: RegisterParams | None) -> None:
    when = os.environ.get(WHEN, _WHEN[0])
    if when not in _WHEN:
        raise InputError(f"{WHEN} is {when!r}; allowed: {', '.join(_WHEN)}")
    if when == "never" or (info["succeeded"] and when != "always"):
        return
    url = webhook_url()
    if url is None:
        return
    title = f"Dermaflow run {info['run_id']} (profile {info['profile']}): {info['state'].lower()}"
    lines = [f"Step: {info['step']}"] if info["step"] else []
    lines += [f"Error: {info['error']}"] if info["error"] else []
    send(url, message(title, lines, info["links"]))
    tell("notified", by="webhook")


def _tell_mlflow(info: Mapping[str, Any], register: RegisterParams | None) -> None:
    """Tag the run's record: the MLflow run that register made and named by the run, where it came that far."""
    if register is None or info["succeeded"]:
        return
    uri = register.tracking_uri
    if uri.startswith(registry.SQLITE) and not Path(uri.removeprefix(registry.SQLITE)).exists():
        return
    from mlflow.exceptions import MlflowException

    client = registry.connect(uri)
    experiment = client.get_experiment_by_name(register.experiment)
    if experiment is None:
        return
    try:
        for record in client.search_runs([experiment.experiment_id], f"attributes.run_name = '{info['run_id']}'"):
            for name, value in (("outcome", info["state"]), ("failed_step", info["step"]), ("failed_error", info["error"])):
                client.set_tag(record.info.run_id, registry.TAG + name, str(value or "unknown")[:500])
    except MlflowException as error:
        raise InputError(f"register.tracking_uri: {uri} did not take the outcome: {error.error_code}") from error
