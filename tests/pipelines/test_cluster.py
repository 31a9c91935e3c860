"""Submitting, following, cancelling and scheduling: kfp's own client against the stub of the API (tests/kfp_stub.py)."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from pipelines import cluster, provision
from pipelines.images import LOCK, read_lock
from pipelines.schedule import MARK
from tests.locks import write_lock
from tests.pipelines.conftest import SOURCE
from tests.workspace import make_workspace, sets

MLFLOW = "http://mlflow.dermaflow:5000"  # nobody asks it: split.previous=none
SETS = sets(
    f"data.source={SOURCE}", f"register.tracking_uri={MLFLOW}", "split.previous=none", "data.image_size=72",
    "train.architectures=[cnn, xception]",
)  # fmt: skip


@pytest.fixture
def place(bucket, kfp, tmp_path, monkeypatch):
    """A working folder whose environment leads to the stub and the S3 server, with a released lock."""
    for name, value in {**bucket.environment, "KF_PIPELINES_ENDPOINT": kfp.url, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    made = make_workspace(tmp_path / "workspace")
    write_lock(made.path / "lock.yaml")
    return made


def submit(place, *arguments):
    return place.call("submit", *SETS, "--images", "lock.yaml", "--poll", "0.01", *arguments)


# --- submit ---


def test_a_submitted_run_is_followed_to_its_end_and_its_link_is_told(place, kfp):
    done = submit(place)
    assert done.returncode == 0, done.stderr
    (run,) = kfp.runs
    assert done.stdout == f"SUCCEEDED: {kfp.url}/#/runs/details/{run.run_id}\n"
    assert "  Train: succeeded" in done.stderr
    assert run.service_account == provision.read_table().run.service_account
    (experiment,) = kfp.experiments
    assert (experiment.display_name, experiment.namespace) == ("dermaflow", "dermaflow")


def test_a_run_gets_the_digest_of_the_real_source_and_the_pools_of_its_architectures(place, kfp):
    submit(place, "--no-wait")
    given = kfp.runs[0].runtime_config.parameters
    assert given["source_digest"].startswith("sha256:")
    assert [item["architecture"] for item in given["architectures"]] == ["cnn", "xception"]
    assert json.loads(given["data"])["source"] == SOURCE
    assert given["pipeline_digest"].startswith("sha256:")


def test_a_run_is_told_the_digest_of_the_pipeline_that_was_uploaded(place, kfp):
    submit(place, "--no-wait")
    digest = kfp.runs[0].runtime_config.parameters["compiled_digest"]
    assert len(digest) == len("sha256:") + 64
    assert kfp.versions[-1].display_name.endswith(digest.removeprefix("sha256:")[:12])
    assert kfp.versions[-1].pipeline_version_id == kfp.runs[0].pipeline_version_reference.pipeline_version_id


def test_every_image_of_the_uploaded_pipeline_is_the_locks_by_digest(place, kfp):
    submit(place, "--no-wait")
    lock = read_lock(place.path / "lock.yaml")
    executors = kfp.versions[-1].pipeline_spec["pipeline_spec"]["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {image.pinned for image in lock.images.values()}


def test_the_same_pipeline_is_uploaded_once_and_another_one_as_a_version_of_its_own(place, kfp):
    for _ in range(2):
        assert submit(place, "--no-wait").returncode == 0
    assert len(kfp.runs) == 2
    assert len(kfp.pipelines) == 1
    uploaded = len(kfp.versions)
    assert submit(place, "--no-wait", "--set", "train.epochs=3").returncode == 0
    assert len(kfp.versions) == uploaded + 1
    assert len(kfp.pipelines) == 1


def test_without_wait_it_ends_at_once(place, kfp):
    done = submit(place, "--no-wait", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "SUBMITTED"
    assert kfp.runs[0].state == "PENDING"


def test_a_run_that_fails_ends_the_command_with_1_the_step_and_its_last_words(place, kfp):
    kfp.outcome = "FAILED"
    done = submit(place, "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (told["state"], told["step"], told["message"]) == ("FAILED", "Train", "the step ran out of memory")
    assert "Train: the step ran out of memory" in done.stderr


def test_run_on_cluster_is_submit(place, kfp):
    shutil.copy(place.path / "lock.yaml", place.path / "other.yaml")
    done = place.call("run", "--on", "cluster", *SETS)
    assert done.returncode == 2
    assert "infra/images/lock.yaml" in done.stderr or LOCK.exists()
    assert not kfp.runs


def test_an_api_of_one_user_gets_no_namespace(place, kfp):
    kfp.multi_user = False
    assert submit(place, "--no-wait").returncode == 0
    assert not kfp.experiments[0].namespace


def test_a_short_outage_while_following_is_waited_out(place, kfp):
    submit(place, "--no-wait")
    found = cluster.connect(kfp.url)
    kfp.down = 2
    assert cluster.follow(found, kfp.runs[0].run_id, lambda *_: None, poll=0.01).exit_code == 0


# --- what is refused, before anything is uploaded ---


@pytest.mark.parametrize(
    ("lock", "message"),
    [
        (lambda path: None, "does not exist, so no image has a digest that a cluster could pull; build and push them"),
        (lambda path: write_lock(path, without="train"), "has no digest for train; build and push"),
        (lambda path: write_lock(path, mark="local"), "marks data, validate, train, judge, registry as local"),
        (lambda path: write_lock(path, digest="sha256:latest"), "images.data.digest: String should match pattern"),
        (lambda path: write_lock(path, reference="registry.example/data:latest"), "images.data.reference"),
    ],
)
def test_images_that_the_cluster_could_not_pull_are_refused_with_the_remedy(place, kfp, lock, message):
    (place.path / "lock.yaml").unlink()
    lock(place.path / "lock.yaml")
    done = submit(place)
    assert done.returncode == 2
    assert message in done.stderr
    assert "dermaflow images" in done.stderr
    assert not kfp.pipelines
    assert not kfp.runs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.source=data/phantom", "data.source: pods do not see data/phantom; put it into a bucket"),
        ("register.tracking_uri=sqlite:///.dermaflow/mlflow.db", "give the MLflow server's http(s):// URL"),
        ("register.tracking_uri=http://me:hunter2@mlflow:5000", "take it out, pods get user and password from the secret"),
        ("train.weights.xception=weights.h5", "train.weights.xception: pods do not see weights.h5"),
        ("validate.reference=artifacts/dataset", "put it below /var/lib/dermaflow, on the volume dermaflow-state"),
    ],
)
def test_what_pods_do_not_see_is_refused_with_the_remedy(place, kfp, change, message):
    done = submit(place, "--set", change)
    assert done.returncode == 2
    assert message in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
    assert not kfp.pipelines


def test_no_api_and_one_that_does_not_answer_are_told_at_once(place, kfp, monkeypatch):
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    done = submit(place)
    assert done.returncode == 2
    assert "no KFP API is named" in done.stderr
    done = submit(place, "--host", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "does not answer" in done.stderr


def test_a_token_is_sent_and_nowhere_shown(place, kfp, monkeypatch, tmp_path):
    kfp.token = "a-token-that-nobody-shows"  # noqa: S105 - of the stub
    done = submit(place, "--no-wait")
    assert done.returncode == 2
    assert "does not let this user in (401); set KF_PIPELINES_TOKEN_FILE" in done.stderr
    monkeypatch.setenv("KF_PIPELINES_TOKEN", kfp.token)
    done = submit(place, "--no-wait", "--json")
    assert done.returncode == 0, done.stderr
    monkeypatch.delenv("KF_PIPELINES_TOKEN")
    (tmp_path / "token").write_text(kfp.token)
    monkeypatch.setenv("KF_PIPELINES_TOKEN_FILE", str(tmp_path / "token"))
    again = submit(place, "--no-wait")
    assert again.returncode == 0, again.stderr
    (tmp_path / "token").write_text("expired-and-wrong")
    refused = submit(place, "--no-wait")
    told = "".join(part.stdout + part.stderr for part in (done, again, refused))
    assert refused.returncode == 2
    for secret in (kfp.token, "expired-and-wrong", "a-cookie-that-no-message-shows"):
        assert secret not in told


# --- cancel ---


def test_a_run_is_cancelled_and_one_that_has_ended_is_left(place, kfp):
    submit(place, "--no-wait")
    (run,) = kfp.runs
    done = place.call("cancel", run.run_id)
    assert (done.returncode, done.stdout) == (0, f"{run.run_id}: is being cancelled\n")
    assert run.state == "CANCELED"
    assert "had ended before, CANCELED" in place.call("cancel", run.run_id).stdout
    unknown = place.call("cancel", "no-such-run")
    assert unknown.returncode == 2
    assert "has no such thing" in unknown.stderr


# --- schedule ---


def write_schedules(place, **schedules):
    told = {name: {"set": SETS[1::2], **entry} for name, entry in schedules.items()}
    (place.path / "schedules.yaml").write_text(yaml.safe_dump({"version": 1, "schedules": told}))


def schedule(place, *arguments):
    done = place.call("schedule", "schedules.yaml", "--images", "lock.yaml", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return {change["name"]: change["action"] for change in json.loads(done.stdout)["changes"]}


def test_what_is_in_the_file_is_what_is_on_the_cluster(place, kfp):
    weekly, daily = {"cron": "0 0 3 * * 0"}, {"cron": "0 30 4 * * *", "enabled": False}
    write_schedules(place, weekly=weekly, daily=daily)
    assert schedule(place, "--dry-run") == {"weekly": "create", "daily": "create"}
    assert not kfp.recurring
    assert not kfp.pipelines, "a dry run uploads nothing"
    assert schedule(place) == {"weekly": "create", "daily": "create"}
    there = {run.display_name: run for run in kfp.recurring}
    assert {name: run.trigger.cron_schedule.cron for name, run in there.items()} == {
        "weekly": "0 0 3 * * 0", "daily": "0 30 4 * * *"
    }  # fmt: skip
    assert {name: run.mode for name, run in there.items()} == {"weekly": "ENABLE", "daily": "DISABLE"}
    assert schedule(place) == {"weekly": "keep", "daily": "keep"}
    assert {run.recurring_run_id for run in kfp.recurring} == {run.recurring_run_id for run in there.values()}
    write_schedules(place, weekly={"cron": "0 0 5 * * 0"})
    assert schedule(place, "--dry-run") == {"weekly": "update", "daily": "remove"}
    assert len(kfp.recurring) == 2
    assert schedule(place) == {"weekly": "update", "daily": "remove"}
    (left,) = kfp.recurring
    assert left.trigger.cron_schedule.cron == "0 0 5 * * 0"


def test_recurring_runs_of_others_are_left_alone_whatever_they_are_called(place, kfp):
    write_schedules(place, weekly={"cron": "0 0 3 * * 0"})
    schedule(place)
    (ours,) = kfp.recurring
    foreign = type(ours)(**{**ours.to_dict(), "recurring_run_id": "foreign", "description": "by hand", "mode": "ENABLE"})
    foreign.trigger, foreign.runtime_config = ours.trigger, ours.runtime_config
    foreign.pipeline_version_reference, foreign.status = ours.pipeline_version_reference, "ENABLED"
    kfp.recurring.append(foreign)
    write_schedules(place)
    assert schedule(place) == {"weekly": "remove"}
    assert [run.recurring_run_id for run in kfp.recurring] == ["foreign"]


def test_a_copy_that_a_broken_update_left_is_removed(place, kfp):
    write_schedules(place, weekly={"cron": "0 0 3 * * 0"})
    schedule(place)
    (ours,) = kfp.recurring
    twin = type(ours)(recurring_run_id="older", display_name="weekly", description=MARK + "sha256:old", namespace="dermaflow")
    twin.trigger = ours.trigger
    kfp.recurring.append(twin)
    assert schedule(place) == {"weekly": "update"}
    assert kfp.recurring == [ours]


def test_a_recurring_run_reads_its_source_each_time(place, kfp):
    write_schedules(place, weekly={"cron": "0 0 3 * * 0"})
    schedule(place)
    assert kfp.recurring[0].runtime_config.parameters["source_digest"] == ""
    spec = kfp.versions[-1].pipeline_spec["pipeline_spec"]
    tasks = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    assert not tasks["ingest"].get("cachingOptions", {}).get("enableCache", False)
    assert tasks["segment"]["cachingOptions"]["enableCache"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nschedules: {weekly: {cron: '0 3 * * 0'}}", "schedules.weekly.cron: String should match pattern"),
        ("version: 1\nschedules: {weekly: {cron: '0 0 3 * * 0', every: 3}}", "schedules.weekly.every: Extra inputs"),
        ("version: 2\nschedules: {}", "version: Input should be less than or equal to 1"),
        ("schedules: [", "is not valid YAML"),
    ],
)
def test_a_file_that_is_wrong_changes_nothing(place, kfp, text, message):
    (place.path / "schedules.yaml").write_text(text)
    done = place.call("schedule", "schedules.yaml", "--images", "lock.yaml")
    assert done.returncode == 2
    assert message in done.stderr
    assert not kfp.recurring
