"""Who is told of a failed run, of what, and that no secret is in it: a real HTTP server, a real SQLite registry."""

from __future__ import annotations

import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import kfp_server_api as api
import pytest

from components.notify.core import notify
from components.notify.scrub import scrub
from components.notify.webhook import send
from dermaflow import registry
from dermaflow.artifacts import read_json, write_json
from dermaflow.errors import InputError
from dermaflow.params import load_params
from tests.kfp_stub import KfpStub
from tests.local_server import LocalServer, Quiet, running

ERROR = "data.source: s3://images is denied; AWS_SECRET_ACCESS_KEY=abcDEF123 <!channel>"


class Receiver(LocalServer):
    """A webhook: keeps what it is sent; answers with `status` while `failures` are left, then 200."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.received: list[dict] = []
        self.status, self.failures = 200, 0


class _Handler(Quiet, BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append({"path": self.path, "type": self.headers["Content-Type"], "body": json.loads(body)})
        status = self.server.status if self.server.failures > 0 else 200
        self.server.failures -= 1
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def webhook():
    with running(Receiver()) as server:
        yield server


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder, and nobody who is to be told."""
    monkeypatch.chdir(tmp_path)
    for name in ("DERMAFLOW_WEBHOOK_URL", "DERMAFLOW_WEBHOOK_URL_FILE", "DERMAFLOW_NOTIFY", "KF_PIPELINES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def failed_run(folder, message=ERROR, step="train-cnn"):
    """What a local run that failed has left when notify begins."""
    run = folder / "runs" / "the-run"
    run.mkdir(parents=True)
    write_json(run / "tasks.json", [{"task": "ingest", "state": "SUCCEEDED"}, {"task": step, "state": "FAILED"}])
    told = [
        {"event": "error", "step": "train", "message": "was interrupted", "exit_code": 75},
        {"event": "error", "step": "train", "message": message, "exit_code": 2},
    ]
    (run / "run.log").write_text("".join(f"::dermaflow {json.dumps(event)}\n" for event in told))


def text_of(received):
    return received["body"]["text"] + "".join(block["text"]["text"] for block in received["body"]["blocks"])


def test_a_failure_is_told_with_the_step_its_last_error_and_links(place, webhook, monkeypatch):
    failed_run(place)
    monkeypatch.setenv("DERMAFLOW_WEBHOOK_URL", f"{webhook.url}/services/T0/B0/the-secret")
    notify("the-run", "default", "FAILED", None, place / "out")
    (received,) = webhook.received
    assert (received["path"], received["type"]) == ("/services/T0/B0/the-secret", "application/json")
    assert received["body"]["text"] == "Dermaflow run the-run (profile default): failed"
    shown = text_of(received)
    assert "Step: train-cnn" in shown
    assert "data.source: s3://images is denied" in shown
    assert "runs/the-run/report.html" in shown
    assert "was interrupted" not in shown
    assert "abcDEF123" not in shown
    assert "<!channel>" not in shown, "a step's words would call everybody"
    info = read_json(place / "out" / "notification.json")
    assert (info["step"], info["state"], info["succeeded"]) == ("train-cnn", "FAILED", False)
    assert "abcDEF123" not in json.dumps(info)


def test_the_url_comes_from_a_files_content_too_and_stands_nowhere(place, webhook, monkeypatch, capfd):
    failed_run(place, message=f"could not post to {webhook.url}/services/T0/B0/the-secret")
    (place / "url").write_text(f"{webhook.url}/services/T0/B0/the-secret\n")
    monkeypatch.setenv("DERMAFLOW_WEBHOOK_URL_FILE", str(place / "url"))
    monkeypatch.setenv("DERMAFLOW_WEBHOOK_URL", f"{webhook.url}/services/T0/B0/the-secret")  # the file comes first
    notify("the-run", "default", "FAILED", None, place / "out")
    assert len(webhook.received) == 1
    assert "the-secret" not in text_of(webhook.received[0]) + (place / "out" / "notification.json").read_text()
    assert "the-secret" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("when", "state", "told"),
    [
        (None, "SUCCEEDED", 0), (None, "FAILED", 1), (None, "CANCELLED", 1),
        ("always", "SUCCEEDED", 1), ("never", "FAILED", 0), ("failure", "SUCCEEDED", 0),
    ],
)  # fmt: skip
def test_by_default_people_are_told_of_what_did_not_succeed(place, webhook, monkeypatch, when, state, told):
    monkeypatch.setenv("DERMAFLOW_WEBHOOK_URL", webhook.url)
    if when:
        monkeypatch.setenv("DERMAFLOW_NOTIFY", when)
    notify("the-run", "default", state, "a message of KFP", place / "out")
    assert len(webhook.received) == told


def test_nobody_is_told_where_nobody_is_named(place):
    assert notify("the-run", "default", "FAILED", "a message of KFP", place / "out")["error"] == "a message of KFP"


def test_a_webhook_that_is_busy_is_asked_again(webhook):
    webhook.status, webhook.failures = 503, 2
    send(webhook.url, {"text": "hello"}, pause=0.01)
    assert len(webhook.received) == 3


@pytest.mark.parametrize(("status", "posted"), [(404, 1), (302, 1), (500, 4)])
def test_a_webhook_that_does_not_take_it_is_an_error_that_names_the_host_alone(place, webhook, monkeypatch, status, posted):
    webhook.status, webhook.failures = status, 99
    with pytest.raises(InputError, match=rf"the webhook at 127\.0\.0\.1 did not take the message: it answers {status}") as told:
        send(f"{webhook.url}/services/the-secret", {"text": "hello"}, pause=0.01)
    assert "the-secret" not in str(told.value)
    assert len(webhook.received) == posted


def test_what_failed_is_kept_before_anybody_is_told(place, monkeypatch):
    monkeypatch.setenv("DERMAFLOW_WEBHOOK_URL", "no-url-but-a-secret")
    with pytest.raises(InputError, match="no http:// or https:// URL") as told:
        notify("the-run", "default", "FAILED", "why", place / "out")
    assert "no-url-but-a-secret" not in str(told.value)
    assert read_json(place / "out" / "notification.json")["error"] == "why"


def test_the_runs_record_in_mlflow_is_tagged(place, monkeypatch):
    failed_run(place)
    uri = f"sqlite:///{place}/mlflow.db"
    params = load_params_in_root(monkeypatch, uri)
    client = registry.connect(uri)
    experiment = registry.experiment_id(client, uri, params.register_.experiment)
    record, other = (client.create_run(experiment, run_name=name).info.run_id for name in ("the-run", "another-run"))
    notify("the-run", "default", "FAILED", None, place / "out", params.register_)
    tags = client.get_run(record).data.tags
    assert tags["dermaflow.outcome"] == "FAILED"
    assert tags["dermaflow.failed_step"] == "train-cnn"
    assert tags["dermaflow.failed_error"].startswith("data.source: s3://images is denied")
    assert "abcDEF123" not in tags["dermaflow.failed_error"]
    assert "dermaflow.outcome" not in client.get_run(other).data.tags


def test_a_registry_that_is_not_there_is_not_made(place, monkeypatch):
    params = load_params_in_root(monkeypatch, f"sqlite:///{place}/none.db")
    notify("the-run", "default", "FAILED", None, place / "out", params.register_)
    assert not (place / "none.db").exists()


def load_params_in_root(monkeypatch, uri):
    from tests.workspace import ROOT

    with monkeypatch.context() as there:
        there.chdir(ROOT)
        return load_params("default", [f"register.tracking_uri={uri}"])


@contextmanager
def kubeflow(outcome="FAILED"):
    """The stub of KFP's API with one run that has ended so; yields the stub and the run's id."""
    with running(KfpStub()) as stub:
        run = api.V2beta1Run(run_id="job-1", experiment_id="e", display_name="the-run", state=outcome)
        details = [
            api.V2beta1PipelineTaskDetail(run_id="job-1", task_id="a", display_name="Read the source", state="SUCCEEDED"),
            api.V2beta1PipelineTaskDetail(
                run_id="job-1", task_id="b", display_name="Train", state="FAILED",
                error=api.GoogleRpcStatus(code=2, message="OOMKilled; token=abcdef0123456789"),
            ),
        ]  # fmt: skip
        run.run_details = api.V2beta1RunDetails(task_details=details)
        stub.runs.append(run)
        yield stub


def test_on_kubeflow_the_api_says_which_step_failed_and_where_the_run_is(place, webhook, monkeypatch):
    with kubeflow() as stub:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", stub.url)
        monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example")
        monkeypatch.setenv("DERMAFLOW_WEBHOOK_URL", webhook.url)
        info = notify("the-run", "default", "FAILED", "the workflow failed", place / "out", None, "job-1")
    assert (info["step"], info["error"]) == ("Train", "OOMKilled; token=[hidden]")
    assert info["links"]["run"] == "https://kubeflow.example/#/runs/details/job-1"
    assert "<https://kubeflow.example/#/runs/details/job-1|run>" in text_of(webhook.received[0])


def test_an_api_that_does_not_answer_leaves_kfps_own_words(place, webhook, monkeypatch, capfd):
    with kubeflow() as stub:
        stub.down = 99
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", stub.url)
        monkeypatch.setenv("DERMAFLOW_WEBHOOK_URL", webhook.url)
        info = notify("the-run", "default", "FAILED", "the workflow failed", place / "out", None, "job-1")
    assert (info["step"], info["error"]) == (None, "the workflow failed")
    assert "which step failed is not known" in capfd.readouterr().err
    assert len(webhook.received) == 1


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("postgres://mlflow:p@ss/w0rd@db:5432/x", "p@ss"),
        ("https://user:hunter2@example.org/x", "hunter2"),
        ("key AKIAIOSFODNN7EXAMPLE is wrong", "AKIAIOSFODNN7EXAMPLE"),
        ("used wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY there", "wJalrXUtnFEMI"),
        ("password: hunter2, go on", "hunter2"),
        ('{"api_key": "hunter2"}', "hunter2"),
        ("MLFLOW_TRACKING_PASSWORD=hunter2", "hunter2"),
        ("Authorization: Bearer abc.def.ghi-jkl", "abc.def"),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789 given", "ghp_abc"),
        ("https://hooks.slack.com/services/T0/B0/xyz answers 404", "T0/B0"),
        ("GET https://b.s3/k?X-Amz-Signature=abcdef&X-Amz-Credential=AK", "abcdef"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc was sent", "eyJzdWIiOiIxIn0"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY----- end", "MIIabc"),
        ("it said correct-horse", "correct-horse"),
    ],
)
def test_no_secret_passes(text, secret):
    shown = scrub(text, {"DB_PASSWORD": "correct-horse", "PATH": "there"})
    assert secret not in shown
    assert "[hidden]" in shown


@pytest.mark.parametrize(
    "text",
    [
        "data.source: data/ham10000/HAM10000_metadata.csv: column dx is missing",
        "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef is not what was read",
        "commit 8f3646c995b18f3646c995b18f3646c995b18f36 is dirty",
        "runs/20261126-183023-09ef/train-cnn/model.keras",
        "s3://bucket/prefix: https://s3.eu-west-1.amazonaws.com does not answer",
        "the tokenizer of secretaries is fine",
    ],
)
def test_what_is_no_secret_is_left_as_it_is(text):
    assert scrub(text, {}) == text
