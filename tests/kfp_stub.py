"""A STUB of the Kubeflow Pipelines API, for tests of our client: no cluster, no pod, nothing is run.

What makes it more than a mock: kfp's real client speaks HTTP with it; every request is read, and every reply built, by the
models of kfp-server-api, and a field that they do not know is an error; an uploaded pipeline is parsed by KFP's protobufs; a
run's parameters must be those of its pipeline, of their types. What it can not show: what a real backend does with them.
"""

from __future__ import annotations

import datetime
import email
import email.policy
import json
import re
import threading
import uuid
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from tests.local_server import LocalServer, Quiet

_CLIENT = api.ApiClient(api.Configuration())
_KINDS = {
    "STRING": str,
    "LIST": list,
    "STRUCT": dict,
    "NUMBER_INTEGER": (int, float),
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
}
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class RefusalError(Exception):
    """What the backend would refuse, with the status of its answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class KfpStub(LocalServer):
    """Answers at `url`; what it was given stands in its lists.

    Attributes
    ----------
    outcome: the state in which runs end: SUCCEEDED, FAILED.
    looks: so many looks at a run until it has ended.
    fails: the task that fails, and what it says.
    token: who does not bring it is refused.
    down: so many answers are 503 from now on.
    """

    def __init__(self, *, multi_user: bool = True) -> None:
        super().__init__(_Handler)
        self.multi_user = multi_user
        self.outcome, self.looks, self.fails = "SUCCEEDED", 3, ("Train", "the step ran out of memory")
        self.token: str | None = None
        self.down = 0
        self.pipelines: list[Any] = []
        self.versions: list[Any] = []
        self.experiments: list[Any] = []
        self.runs: list[Any] = []
        self.recurring: list[Any] = []
        self.lock = threading.Lock()
        self._looked: dict[str, int] = {}

    # --- what it does ---

    def healthz(self) -> Any:
        return api.V2beta1GetHealthzResponse(multi_user=self.multi_user, pipeline_store="database")

    def upload(self, name: str, spec: dict[str, Any], namespace: str | None) -> Any:
        self._require_namespace(namespace)
        if any(pipeline.display_name == name for pipeline in self.pipelines):
            raise RefusalError(409, f"Pipeline {name} already exists")
        made = api.V2beta1Pipeline(pipeline_id=_id(), display_name=name, namespace=namespace, created_at=NOW)
        self.pipelines.append(made)
        self.upload_version(made.pipeline_id, name, spec)
        return made

    def upload_version(self, pipeline_id: str, name: str, spec: dict[str, Any]) -> Any:
        _one(self.pipelines, "pipeline_id", pipeline_id)
        if any((version.pipeline_id, version.display_name) == (pipeline_id, name) for version in self.versions):
            raise RefusalError(409, f"Pipeline version {name} already exists")
        made = api.V2beta1PipelineVersion(
            pipeline_id=pipeline_id, pipeline_version_id=_id(), display_name=name, pipeline_spec=spec, created_at=NOW
        )
        self.versions.append(made)
        return made

    def create_experiment(self, asked: Any) -> Any:
        self._require_namespace(asked.namespace)
        if any(one.display_name == asked.display_name for one in self.experiments):
            raise RefusalError(409, f"Experiment {asked.display_name} already exists")
        asked.experiment_id, asked.created_at = _id(), NOW
        self.experiments.append(asked)
        return asked

    def create_run(self, asked: Any) -> Any:
        self._require_startable(asked)
        asked.run_id, asked.state = _id(), "PENDING"
        asked.created_at = NOW + datetime.timedelta(seconds=len(self.runs))
        self.runs.append(asked)
        return asked

    def look(self, run_id: str) -> Any:
        """A run, one step further on with each look."""
        run = _one(self.runs, "run_id", run_id)
        if run.state in ("SUCCEEDED", "FAILED", "CANCELED"):
            return run
        looks = self._looked[run_id] = self._looked.get(run_id, 0) + 1
        run.state = self.outcome if looks >= self.looks else "RUNNING"
        names = self._tasks_of(run)
        failed = self.outcome == "FAILED"
        done = names[: len(names) * looks // self.looks]
        if failed and self.fails[0] in done:
            done = done[: done.index(self.fails[0]) + 1]
        details = [
            api.V2beta1PipelineTaskDetail(
                run_id=run_id,
                task_id=f"task-{at}",
                display_name=name,
                state="FAILED" if failed and name == self.fails[0] else "SUCCEEDED",
                end_time=NOW + datetime.timedelta(seconds=at),
                error=api.GoogleRpcStatus(code=2, message=self.fails[1]) if failed and name == self.fails[0] else None,
            )
            for at, name in enumerate(done)
        ]
        run.run_details = api.V2beta1RunDetails(task_details=details)
        if run.state == "FAILED":
            run.error = api.GoogleRpcStatus(code=2, message="the workflow failed")
        return run

    def terminate(self, run_id: str) -> None:
        _one(self.runs, "run_id", run_id).state = "CANCELED"

    def create_recurring(self, asked: Any) -> Any:
        self._require_startable(asked)
        cron = asked.trigger.cron_schedule.cron
        if len(cron.split()) != 6:
            raise RefusalError(400, f"{cron} is no cron schedule of six fields")
        asked.recurring_run_id, asked.created_at = _id(), NOW
        asked.namespace = _one(self.experiments, "experiment_id", asked.experiment_id).namespace
        asked.status = "ENABLED" if asked.mode == "ENABLE" else "DISABLED"
        self.recurring.append(asked)
        return asked

    def delete_recurring(self, recurring_run_id: str) -> None:
        self.recurring.remove(_one(self.recurring, "recurring_run_id", recurring_run_id))

    # --- what it refuses ---

    def _require_namespace(self, namespace: str | None) -> None:
        if self.multi_user and not namespace:
            raise RefusalError(400, "In multi-user mode the namespace must not be empty")
        if not self.multi_user and namespace:
            raise RefusalError(400, "In single-user mode there must be no namespace")

    def _require_startable(self, asked: Any) -> None:
        _one(self.experiments, "experiment_id", asked.experiment_id)
        spec = self._spec_of(asked)
        known = spec["root"]["inputDefinitions"]["parameters"]
        given = asked.runtime_config.parameters or {}
        if unknown := set(given) - set(known):
            raise RefusalError(400, f"the pipeline has no parameters {sorted(unknown)}")
        for name, value in given.items():
            if not isinstance(value, _KINDS[known[name]["parameterType"]]):
                raise RefusalError(400, f"parameter {name} must be {known[name]['parameterType']}, is {value!r}")
        if missing := [name for name, said in known.items() if name not in given and "defaultValue" not in said]:
            raise RefusalError(400, f"parameters {missing} are missing")

    def _spec_of(self, run: Any) -> dict[str, Any]:
        wanted = run.pipeline_version_reference
        version = _one(self.versions, "pipeline_version_id", wanted.pipeline_version_id)
        if version.pipeline_id != wanted.pipeline_id:
            raise RefusalError(400, "the version is of another pipeline")
        return dict(version.pipeline_spec["pipeline_spec"])

    def _tasks_of(self, run: Any) -> list[str]:
        """Display names of what would be pods."""
        spec = self._spec_of(run)
        return [
            task["taskInfo"]["name"]
            for part in (spec["root"], *spec["components"].values())
            for task in part.get("dag", {}).get("tasks", {}).values()
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]
        ]


class _Handler(Quiet, BaseHTTPRequestHandler):
    server: KfpStub

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            try:
                self._admit()
                status, value = 200, self._route(urlsplit(self.path), body)
            except RefusalError as refusal:
                status, value = refusal.status, api.GoogleRpcStatus(code=3, message=str(refusal))
        said = json.dumps(checked(value) if value is not None else {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.send_header("Set-Cookie", "session=a-cookie-that-no-message-shows")
        self.end_headers()
        self.wfile.write(said)

    def _admit(self) -> None:
        if self.server.down > 0:
            self.server.down -= 1
            raise RefusalError(503, "no healthy upstream")
        if self.server.token and self.headers.get("authorization") != f"Bearer {self.server.token}":
            raise RefusalError(401, "Request is not authenticated")

    def _route(self, url: Any, body: bytes) -> Any:  # noqa: PLR0911 - a table of what the API has
        stub, asked = self.server, {key: value[0] for key, value in parse_qs(url.query).items()}
        place = url.path.removeprefix("/apis/v2beta1/")
        match (self.command, *re.split(r"[/:]", place)):
            case ("GET", "healthz"):
                return stub.healthz()
            case ("GET", "pipelines"):
                return api.V2beta1ListPipelinesResponse(pipelines=_filtered(stub.pipelines, asked) or None)
            case ("POST", "pipelines", "upload"):
                return stub.upload(asked["name"], _parsed(_file(self.headers, body)), asked.get("namespace"))
            case ("POST", "pipelines", "upload_version"):
                return stub.upload_version(asked["pipelineid"], asked["name"], _parsed(_file(self.headers, body)))
            case ("GET", "pipelines", pipeline_id, "versions"):
                of = [version for version in stub.versions if version.pipeline_id == pipeline_id]
                return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=_filtered(of, asked) or None)
            case ("GET", "experiments"):
                return api.V2beta1ListExperimentsResponse(experiments=_filtered(stub.experiments, asked) or None)
            case ("POST", "experiments"):
                return stub.create_experiment(_read(body, "V2beta1Experiment"))
            case ("POST", "runs"):
                return stub.create_run(_read(body, "V2beta1Run"))
            case ("GET", "runs"):
                return api.V2beta1ListRunsResponse(runs=_filtered(stub.runs, asked)[::-1] or None)
            case ("GET", "runs", run_id):
                return stub.look(run_id)
            case ("POST", "runs", run_id, "terminate"):
                return stub.terminate(run_id)
            case ("GET", "recurringruns"):
                size, start = int(asked.get("page_size") or 10), int(asked.get("page_token") or 0)
                found = _filtered(stub.recurring, asked)
                more = str(start + size) if start + size < len(found) else None
                return api.V2beta1ListRecurringRunsResponse(
                    recurring_runs=found[start : start + size] or None, total_size=len(found), next_page_token=more
                )
            case ("POST", "recurringruns"):
                return stub.create_recurring(_read(body, "V2beta1RecurringRun"))
            case ("DELETE", "recurringruns", recurring_run_id):
                return stub.delete_recurring(recurring_run_id)
        raise RefusalError(404, f"{self.command} {url.path} is not known")


def checked(value: Any) -> Any:
    """A model's JSON, once the same model has read it back without loss."""
    said = _CLIENT.sanitize_for_serialization(value)
    again = _CLIENT.sanitize_for_serialization(_CLIENT.deserialize(_Reply(said), type(value).__name__))
    assert again == said, f"{type(value).__name__} does not hold what the stub says"
    return said


def _read(body: bytes, model: str) -> Any:
    """A request by its model; a field that the model does not know is refused, as protobuf's JSON does."""
    given = json.loads(body)
    if unknown := set(given) - set(getattr(api, model).attribute_map.values()):
        raise RefusalError(400, f"unknown fields {sorted(unknown)}")
    return _CLIENT.deserialize(_Reply(given), model)


class _Reply:
    def __init__(self, value: Any) -> None:
        self.data = json.dumps(value)


def _file(headers: Any, body: bytes) -> str:
    """The one file of a multipart form."""
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    form = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    (part,) = [part for part in form.iter_parts() if part.get_param("name", header="content-disposition") == "uploadfile"]
    content: Any = part.get_payload(decode=True)
    return str(content.decode())


def _parsed(text: str) -> dict[str, Any]:
    """The two documents of an IR, read by KFP's own messages."""
    spec, platform = yaml.safe_load_all(text)
    try:
        json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
        json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
        for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
            json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    except json_format.ParseError as error:
        raise RefusalError(400, f"the pipeline can not be read: {error}") from error
    return {"pipeline_spec": spec, "platform_spec": platform}


def _filtered(found: list[Any], asked: dict[str, str]) -> list[Any]:
    """What a filter with EQUALS leaves, of the namespace and experiment that are asked for."""
    for field in ("namespace", "experiment_id"):
        if asked.get(field):
            found = [one for one in found if getattr(one, field, asked[field]) == asked[field]]
    for predicate in json.loads(asked.get("filter") or "{}").get("predicates", ()):
        assert predicate["operation"] in ("EQUALS", 1), predicate
        key = {"name": "display_name"}.get(predicate["key"], predicate["key"])
        wanted = predicate.get("stringValue", predicate.get("string_value"))
        found = [one for one in found if getattr(one, key) == wanted]
    return found


def _one(found: list[Any], key: str, value: str) -> Any:
    for one in found:
        if getattr(one, key) == value:
            return one
    raise RefusalError(404, f"{key} {value} is not found")


def _id() -> str:
    return str(uuid.uuid4())
