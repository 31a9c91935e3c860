"""What the containers of a local run are given, without Docker: tests/e2e/test_docker.py asks containers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kfp
import pytest
from kfp import local
from kfp.local import docker_task_handler, task_dispatcher

from dermaflow.errors import InputError
from dermaflow.params import Params, load_params
from pipelines import containers
from pipelines.containers import Containers
from pipelines.images import GROUPS
from pipelines.local import _Watch
from pipelines.provision import amount, read_table
from tests.workspace import ROOT, make_workspace

TABLE = read_table()
SERVER = "http://127.0.0.1:5000"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and a shell that names no server."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL_S3", "DERMAFLOW_LEDGER", "DERMAFLOW_WEBHOOK_URL", "DERMAFLOW_HOME"):
        monkeypatch.delenv(name, raising=False)
    made = make_workspace(tmp_path / "workspace").path
    monkeypatch.chdir(made)
    return made


def given(*overrides: str, **told: Any) -> Containers:
    params: Params = load_params("phantom", overrides, ROOT)
    return Containers("a-run", params, TABLE, {group: f"sha256:{group}" for group in GROUPS}, **told)


def networked(found: Containers) -> set[str]:
    return {task for task in TABLE.tasks if found.arguments(task)["network_mode"] != "none"}


def test_it_is_written_for_this_kfp():
    """Its own words (`Written for kfp ...`), and the two places of kfp that it rests on."""
    assert kfp.__version__ == "2.17.0"
    assert f"Written for kfp {kfp.__version__}" in str(containers.__doc__)
    assert task_dispatcher.docker_task_handler is docker_task_handler
    assert issubclass(containers.TaskInContainer, docker_task_handler.DockerTaskHandler)


@pytest.mark.parametrize("task", TABLE.tasks)
def test_no_task_has_a_right_that_it_does_not_need(task: str):
    found = given().arguments(task)
    assert (found["read_only"], found["cap_drop"], found["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])
    assert not found["user"].startswith("0:")
    assert found["mem_limit"] == found["memswap_limit"] == amount(TABLE.tasks[task].memory[1])
    assert not {"privileged", "cap_add", "devices", "pid_mode", "ipc_mode"} & found.keys()
    local.DockerRunner(**found)  # kfp refuses arguments that it does not know


def test_with_an_embedded_registry_and_a_folder_of_images_nobody_has_a_network():
    assert networked(given()) == set()


@pytest.mark.parametrize(
    ("override", "tasks"),
    [
        ("data.source=s3://bucket/images", {"ingest", "ingest-originals"}),
        ("data.source=doi:10.7910/DVN/DBW86T", {"ingest", "ingest-originals"}),
        (f"register.tracking_uri={SERVER}", {"train", "train-fold", "compare", "register", "promote", "notify"}),
        ("train.weights.resnet50=s3://bucket/weights.h5", {"train", "train-fold", "balance"}),
        ("train.checkpoints=s3://bucket/state", {"train", "train-fold", "balance"}),
    ],
)
def test_a_task_has_a_network_where_its_parameters_name_something_on_one(override: str, tasks: set[str]):
    assert networked(given(override)) == {task for task in tasks if task != "balance" or TABLE.tasks[task].secrets}


def test_a_webhook_is_told_by_notify_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DERMAFLOW_WEBHOOK_URL", "https://hooks.example/a-secret")
    found = given()
    assert networked(found) == {"notify"}
    told = {task for task in TABLE.tasks if "a-secret" in json.dumps(found.arguments(task)["environment"])}
    assert told == {"notify"}


def test_secrets_of_the_shell_reach_the_tasks_that_have_them_on_a_cluster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    monkeypatch.setenv("SOME_OTHER_TOKEN", "a-token")
    found = given("data.source=s3://bucket/images")
    told = {task: found.arguments(task)["environment"] for task in TABLE.tasks}
    assert {task for task, environment in told.items() if "AWS_ACCESS_KEY_ID" in environment} == {
        task for task, row in TABLE.tasks.items() if {"store", "ledger"} & set(row.secrets)
    }
    assert "a-token" not in json.dumps(told)


def mounts(found: Containers, task: str) -> dict[str, bool]:
    """Whether each folder of this machine that a task sees can be written by it."""
    return {mount["Target"]: not mount["ReadOnly"] for mount in found.arguments(task)["mounts"] if mount["Type"] == "bind"}


def test_the_source_is_read_by_ingest_alone_and_not_written(place: Path):
    (place / "elsewhere").mkdir()
    (place / "data").mkdir()
    (place / "data" / "phantom").symlink_to(place / "elsewhere")
    source = str(place / "data" / "phantom")
    seen = {task: mounts(given(), task) for task in TABLE.tasks}
    assert {task for task, found in seen.items() if source in found} == {"ingest", "ingest-originals"}
    assert seen["ingest"][source] is False
    found = next(mount for mount in given().arguments("ingest")["mounts"] if mount["Target"] == source)
    assert found["Source"] == str(place / "elsewhere")


def test_the_registry_is_seen_by_those_who_write_to_it(place: Path):
    registry = str(place / ".dermaflow")
    seen = {task for task in TABLE.tasks if registry in mounts(given(), task)}
    assert seen == {task for task, row in TABLE.tasks.items() if "registry" in row.secrets}
    assert mounts(given(), "segment") == {}
    assert mounts(given(), "split") == {f"{registry}/state": True, f"{registry}/cache": True}


def test_weights_are_read_by_those_who_train(place: Path):
    (place / "weights.h5").touch()
    found = given("train.weights.resnet50=weights.h5")
    assert mounts(found, "train")[str(place / "weights.h5")] is False
    assert str(place / "weights.h5") not in mounts(found, "evaluate")


def test_gpus_are_asked_for_where_the_daemon_has_some():
    assert "device_requests" not in given().arguments("train")
    assert given(has_gpus=True).arguments("train")["device_requests"][0]["Count"] == TABLE.tasks["train"].gpus
    assert "device_requests" not in given(has_gpus=True).arguments("evaluate")


def test_a_source_whose_links_lead_out_is_refused(place: Path):
    (place / "data" / "phantom" / "images").mkdir(parents=True)
    (place / "data" / "phantom" / "images" / "ours.jpg").symlink_to("../kept.jpg")
    containers._require_no_links_out("data/phantom")
    (place / "data" / "phantom" / "images" / "a.jpg").symlink_to("/etc/hostname")
    with pytest.raises(
        InputError, match=r"data.source: data/phantom/images/a.jpg is a link out of data/phantom, .* give the folder"
    ):
        containers._require_no_links_out("data/phantom")


def test_what_a_request_tells_makes_the_same_containers():
    made = given("train.epochs=3", has_gpus=True)
    request = {"params": json.loads(made.params.model_dump_json(by_alias=True)), "containers": made.to_dict()}
    assert Containers.of("a-run", json.loads(json.dumps(request))) == made


def test_the_fault_of_memory_names_limit_and_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """As the worker tells it: once, and without another attempt."""
    from kfp.local.status import Status
    from kfp.pipeline_spec import pipeline_spec_pb2

    watch = _Watch(tmp_path, ["cnn"], given())
    spec = pipeline_spec_pb2.PipelineTaskSpec()
    spec.retry_policy.max_retry_count = 2
    attempts = []

    def killed(**_: Any) -> tuple[dict[str, Any], Status]:
        attempts.append(1)
        watch._container_ended(containers.Ending(137, out_of_memory=True))
        return {}, Status.FAILURE

    watch._tried(killed, {"task_name": "segment", "task_spec": spec, "executors": {}}, "segment")
    told = capsys.readouterr().err
    assert len(attempts) == 1
    assert "it reached its memory limit of 2Gi, and the kernel ended it; raise tasks.segment.memory in infra/tasks.yaml" in told


def test_answers_of_another_image_are_no_answers_for_the_cache():
    from kfp.pipeline_spec import pipeline_spec_pb2

    executor = pipeline_spec_pb2.PipelineDeploymentConfig.ExecutorSpec()
    executor.container.image = "dermaflow-python/judge:0.1.0"
    placed = given().with_images({"exec-evaluate": executor})
    assert placed["exec-evaluate"].container.image == "sha256:judge"
    assert executor.container.image == "dermaflow-python/judge:0.1.0"
