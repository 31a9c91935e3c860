"""`dermaflow trigger`: a run if something new came, and one run however many ask: real registry, real S3, a stub of KFP."""

from __future__ import annotations

import datetime
import json
import os
import subprocess

import pandas as pd
import pytest

from components.ingest.core import input_digest
from dermaflow import registry
from dermaflow.params import load_params
from pipelines.claims import Claims
from pipelines.trigger import key_of, look, names_before
from tests.locks import write_lock
from tests.pipelines.conftest import BUCKET, SOURCE
from tests.workspace import DERMAFLOW, make_workspace, sets


@pytest.fixture
def place(bucket, kfp, tmp_path, monkeypatch):
    for name, value in {**bucket.environment, "KF_PIPELINES_ENDPOINT": kfp.url}.items():
        monkeypatch.setenv(name, value)
    made = make_workspace(tmp_path / "workspace")
    write_lock(made.path / "lock.yaml")
    return made


@pytest.fixture
def options(mlflow_url, tmp_path):
    told = (f"data.source={SOURCE}", f"register.tracking_uri={mlflow_url}", "split.previous=none",
            "data.image_size=72", "train.architectures=[cnn]")  # fmt: skip
    return ["--images", "lock.yaml", "--claims", f"s3://{BUCKET}/claims/{tmp_path.name}", "--at-least", "10", *sets(*told)]


def registered(url, source, digest, lesions, folder):
    """A version as register would leave it, as far as trigger reads it; returns how to take it away again."""
    client = registry.connect(url)
    registry.ensure_model(client, registry.CANDIDATE_MODEL, "")
    run = client.create_run(registry.experiment_id(client, url, "dermaflow"))
    splits = folder / "splits"
    splits.mkdir()
    pd.DataFrame({"lesion_id": lesions}).to_parquet(splits / "splits.parquet")
    client.log_artifacts(run.info.run_id, str(splits), "evidence/splits")
    tags = {registry.TAG + "data.source": source, registry.TAG + "data.source_digest": digest}
    version = client.create_model_version(registry.CANDIDATE_MODEL, f"runs:/{run.info.run_id}/m", run.info.run_id, tags=tags)
    return lambda: client.delete_model_version(registry.CANDIDATE_MODEL, version.version)


def test_called_ten_times_at_once_on_the_same_new_data_it_starts_one_run(place, kfp, options):
    command = [str(DERMAFLOW), "trigger", "--json", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    callers = [subprocess.Popen(command, cwd=place.path, text=True, env=dict(os.environ), **pipes) for _ in range(10)]
    said = [caller.communicate() for caller in callers]
    assert [caller.returncode for caller in callers] == [0] * 10, said
    told = [json.loads(out) for out, _ in said]
    assert sorted(one["outcome"] for one in told) == ["claimed"] * 9 + ["started"]
    (run,) = kfp.runs
    assert {one["run_id"] for one in told} <= {run.run_id, None}
    again = place.called_json("trigger", *options)
    assert (again["outcome"], again["run_id"]) == ("claimed", run.run_id)
    assert len(kfp.runs) == 1


def test_another_setting_is_another_question(place, kfp, options):
    assert place.called_json("trigger", *options)["outcome"] == "started"
    assert place.called_json("trigger", *options, "--set", "train.epochs=7")["outcome"] == "started"
    assert len(kfp.runs) == 2
    assert json.loads(kfp.runs[1].runtime_config.parameters["train"])["epochs"] == 7


def test_what_the_newest_version_was_made_from_is_nothing_new(place, kfp, options, mlflow_url, tmp_path):
    source = SOURCE
    digest = place.called_json("trigger", *options, "--at-least", "100000")["news"]["digest"]
    remove = registered(mlflow_url, source, digest, ["a"], tmp_path)
    try:
        told = place.called_json("trigger", *options)
        assert told["outcome"] == "nothing new"
    finally:
        remove()
    assert not kfp.runs


def test_lesions_that_the_newest_version_knew_are_not_new(place, kfp, options, mlflow_url, tmp_path, bucket):
    answer = bucket.client().get_object(Bucket=BUCKET, Key="drawn/HAM10000_metadata.csv")
    lesions = list(dict.fromkeys(pd.read_csv(answer["Body"])["lesion_id"]))
    remove = registered(mlflow_url, SOURCE, "sha256:of-before", lesions[:-3], tmp_path)
    try:
        done = place.call("trigger", *options)
        assert (done.returncode, kfp.runs) == (0, [])
        assert done.stdout.startswith("too few: 3 new lesions since dermaflow-candidate version")
        told = place.called_json("trigger", *options, "--at-least", "3")
        assert (told["outcome"], told["news"]["new_lesions"], told["news"]["lesions"]) == ("started", 3, len(lesions))
    finally:
        remove()


def test_a_claim_whose_maker_died_before_it_started_anything_is_recovered(place, kfp, options, mlflow_url, tmp_path):
    claims, key = died(place, options)
    waiting = place.called_json("trigger", *options)
    assert (waiting["outcome"], waiting["run_id"]) == ("claimed", None)
    assert "if none comes of it, call again after" in waiting["why"]
    assert place.called_json("trigger", *options, "--retry-after", "0")["outcome"] == "started"
    assert [run.display_name for run in kfp.runs] == [f"trigger-{key}-2"]
    assert claims.current(key).run_id == kfp.runs[0].run_id


def test_a_run_whose_starter_died_before_it_could_say_so_is_found_and_not_started_again(place, kfp, options):
    claims, key = died(place, options)
    submitted = place.call("submit", "--no-wait", "--images", "lock.yaml", *options[options.index("--set") :])
    assert submitted.returncode == 0, submitted.stderr
    kfp.runs[0].display_name = f"trigger-{key}-1"
    told = place.called_json("trigger", *options, "--retry-after", "0")
    assert told["run_id"] == kfp.runs[0].run_id
    assert len(kfp.runs) == 1
    assert claims.current(key).run_id == kfp.runs[0].run_id


def died(place, options):
    """A claim for the data of `options`, made by somebody who did nothing more."""
    before = os.getcwd()  # noqa: PTH109 - to go back to
    os.chdir(place.path)
    try:
        params = load_params("default", options[options.index("--set") + 1 :: 2])
        claims = Claims(options[options.index("--claims") + 1])
        key = key_of(params, input_digest(params.data))
    finally:
        os.chdir(before)
    _, ours = claims.take(key, datetime.timedelta(hours=1))
    assert ours
    return claims, key


def test_names_of_earlier_attempts_lead_to_runs_that_were_not_told_of():
    assert names_before("trigger-0123-3") == ["trigger-0123-2", "trigger-0123-1"]
    assert names_before("trigger-0123-1") == []


def test_without_a_registry_everything_is_new(place, tmp_path):
    params = load_params("default", [f"data.source={SOURCE}", f"register.tracking_uri=sqlite:///{tmp_path}/none.db"])
    news = look(params, "sha256:some")
    assert news.version is None
    assert news.new_lesions == news.lesions > 0
    assert not (tmp_path / "none.db").exists(), "to look makes nothing"
