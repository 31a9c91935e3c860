"""Register and promote, on a real MLflow with SQLite, with the artifacts of a real run."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.compare.core import compare
from components.promote.core import promote
from components.register.core import Evidence, register
from dermaflow import contracts, registry
from dermaflow.artifacts import new_artifact, read_json, write_json
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.metrics import paired_difference
from dermaflow.params import PromoteParams, RegisterParams, load_params
from dermaflow.policy import Policy, read_policy
from pipelines.judging import judge, open_model
from tests.registries import COMMIT, EVALUATE, answering, lenient_policy
from tests.workspace import ROOT


@pytest.fixture
def settings(tmp_path: Path, new_registry: Path) -> RegisterParams:
    shutil.copy(new_registry, tmp_path)
    return RegisterParams(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="test", intended_use="tests")


@pytest.fixture
def evidence(finished_evidence: Evidence) -> Evidence:
    return replace(
        finished_evidence, run_id="a-run", source_digest=f"sha256:{1:064x}", pipeline_digest=f"sha256:{0:064x}", commit=COMMIT
    )


@pytest.fixture
def lenient() -> Policy:
    """A test policy: it allows synthetic images and asks for no accuracy and no more of maps than that they add up."""
    return lenient_policy()


def decide(
    evidence: Evidence, registration: Path, policy: Policy, settings: RegisterParams, target: Path, mode: str = "enabled"
) -> dict:
    comparison = target.with_name(f"{target.name}-comparison")
    compare(evidence.dataset, evidence.splits, evidence.masks, evidence.evaluation, EVALUATE, settings, comparison)
    params = PromoteParams(mode=mode, policy="test")
    return promote(registration, comparison, policy, COMMIT, params, settings, target)


def test_a_version_carries_its_lineage_card_and_evidence(evidence: Evidence, settings: RegisterParams, tmp_path: Path):
    info = register(evidence, settings, tmp_path / "registration")
    client = registry.connect(settings.tracking_uri)
    version = registry.version_of(client, registry.CANDIDATE_MODEL, registry.CHALLENGER)
    dataset = Dataset.open(evidence.dataset)
    assert int(version.version) == info["version"]
    assert version.tags["dermaflow.data.content_digest"] == dataset.content_digest
    assert version.tags["dermaflow.splits.digest"] == contracts.read_info(evidence.splits, contracts.SPLITS)["digest"]
    assert version.tags["dermaflow.git.commit"] == "0" * 40
    assert version.tags["dermaflow.synthetic"] == "true"
    assert "Synthetic images: a check of the pipeline" in version.description
    assert "Not a medical device" in version.description
    assert version.tags["dermaflow.licence"] == dataset.info["source"]["licence"]
    assert f"licence {dataset.info['source']['licence']}" in version.description
    names = {item.path for item in client.list_artifacts(version.run_id, "evidence")}
    assert {"evidence/evidence.json", "evidence/evaluation", "evidence/explanation", "evidence/report"} <= names
    bundle = json.loads(Path(client.download_artifacts(version.run_id, "evidence/evidence.json")).read_text())
    assert bundle["environment"]["libraries"]["keras"]
    assert bundle["test"] == read_json(evidence.evaluation / "metrics.json")["test"]


def test_registering_again_finds_the_same_version(evidence: Evidence, settings: RegisterParams, tmp_path: Path):
    first = register(evidence, settings, tmp_path / "first")
    again = register(replace(evidence, run_id="another-run"), settings, tmp_path / "again")
    assert (first["created"], again["created"]) == (True, False)
    assert first["version"] == again["version"] == 1
    assert len(registry.list_versions(registry.connect(settings.tracking_uri))) == 1


def test_the_registered_model_answers_images_with_the_pipelines_probabilities(
    evidence: Evidence, settings: RegisterParams, tmp_path: Path
):
    import mlflow

    from dermaflow.metrics import softmax

    info = register(evidence, settings, tmp_path / "registration")
    model = mlflow.pyfunc.load_model(f"models:/{info['model']}/{info['version']}")
    predictions = contracts.read_predictions(evidence.evaluation).iloc[:3]
    dataset = Dataset.open(evidence.dataset)
    images = dataset.images(dataset.rows_of(predictions["image_id"]))
    answers = model.predict(pd.DataFrame({"image": list(images)}))
    temperature = contracts.read_info(evidence.model, contracts.MODEL)["temperature"]
    expected = softmax(predictions[contracts.logit_columns(dataset.classes)].to_numpy() / temperature)
    assert list(answers.columns) == list(dataset.classes)
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    assert len(model.predict(pd.DataFrame({"image": []}, dtype=object))) == 0


def test_repositorys_policy_refuses_synthetic_images_and_moves_nothing(
    evidence: Evidence, settings: RegisterParams, tmp_path: Path
):
    register(evidence, settings, tmp_path / "registration")
    policy = read_policy(ROOT / "mlflow/policy.yaml")
    decision = decide(evidence, tmp_path / "registration", policy, settings, tmp_path / "decision")
    assert decision["outcome"] == "refused"
    assert "not_synthetic" in decision["refused_by"]
    client = registry.connect(settings.tracking_uri)
    assert registry.version_of(client, registry.PRODUCTION_MODEL, registry.CHAMPION) is None
    assert client.get_model_version(registry.CANDIDATE_MODEL, "1").tags["dermaflow.decision"] == "refused"


def test_dry_run_decides_and_moves_nothing(evidence: Evidence, settings: RegisterParams, lenient: Policy, tmp_path: Path):
    register(evidence, settings, tmp_path / "registration")
    decision = decide(evidence, tmp_path / "registration", lenient, settings, tmp_path / "decision", mode="dry_run")
    assert decision["outcome"] == "would_promote"
    assert decision["champion_after"] is None


def test_first_champion_then_the_same_again(evidence: Evidence, settings: RegisterParams, lenient: Policy, tmp_path: Path):
    register(evidence, settings, tmp_path / "registration")
    decision = decide(evidence, tmp_path / "registration", lenient, settings, tmp_path / "decision")
    assert decision["outcome"] == "promoted"
    assert decision["waived"] == ["not_synthetic"]
    client = registry.connect(settings.tracking_uri)
    champion = registry.version_of(client, registry.PRODUCTION_MODEL, registry.CHAMPION)
    assert champion.tags["dermaflow.copied_from"] == "dermaflow-candidate/1"
    assert champion.tags["dermaflow.waived"] == "not_synthetic"
    again = decide(evidence, tmp_path / "registration", lenient, settings, tmp_path / "again")
    assert again["outcome"] == "already_champion"
    assert len([item for item in registry.list_versions(client) if item["name"] == registry.PRODUCTION_MODEL]) == 1


def test_disabled_promotion_is_told(evidence: Evidence, settings: RegisterParams, lenient: Policy, tmp_path: Path):
    register(evidence, settings, tmp_path / "registration")
    assert (
        decide(evidence, tmp_path / "registration", lenient, settings, tmp_path / "d", mode="disabled")["outcome"] == "disabled"
    )


@pytest.mark.parametrize(("right", "outcome"), [(0.0, "refused"), (1.0, "promoted")], ids=["champion wins", "challenger wins"])
def test_a_challenger_is_compared_with_the_champion(
    evidence: Evidence, settings: RegisterParams, lenient: Policy, tmp_path: Path, right: float, outcome: str
):
    register(evidence, settings, tmp_path / "first")
    assert decide(evidence, tmp_path / "first", lenient, settings, tmp_path / "d1")["outcome"] == "promoted"
    challenger = answering(evidence, tmp_path / "other", right=right)
    register(challenger, settings, tmp_path / "second")
    decision = decide(challenger, tmp_path / "second", lenient, settings, tmp_path / "d2")
    assert decision["outcome"] == outcome
    gate = next(gate for gate in decision["gates"] if gate["name"] == "not_worse_than_champion")
    assert (gate["estimate"] < 0) == (outcome == "refused")
    told = contracts.read_info(tmp_path / "d2-comparison", contracts.COMPARISON)
    ours, theirs = (
        contracts.read_predictions(challenger.evaluation),
        pd.read_parquet(tmp_path / "d2-comparison/champion.parquet"),
    )
    pair = ours[ours["image_id"].isin(theirs["image_id"])], theirs
    assert told["difference"] == paired_difference(*pair, Dataset.open(evidence.dataset).classes, bootstrap=200, seed=20240101)
    assert told["images"] == len(theirs)
    assert "test images, low end" in gate["reason"]
    assert decision["champion_before"] == {"name": "dermaflow", "version": 1}
    assert decision["champion_after"]["version"] == (2 if outcome == "promoted" else 1)


def with_sides_swapped(evidence: Evidence, target: Path, count: int) -> Evidence:
    """The evidence of a model whose splits had the first `count` test images in train, under other names."""
    table, tests = contracts.read_splits(evidence.splits), contracts.read_test_sets(evidence.splits)
    moved = table.index[table["split"] == "test"][:count]
    table.loc[moved, "split"] = "train"
    table.loc[moved, "image_id"] = "other_" + table.loc[moved, "image_id"]
    with new_artifact(target, contracts.SPLITS) as folder:
        shutil.copytree(evidence.splits, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("artifact.json"))
        table.to_parquet(folder / "splits.parquet")
        tests.iloc[count:].to_parquet(folder / "test_sets.parquet")
        info = contracts.read_info(evidence.splits, contracts.SPLITS)
        info["test_set"]["digest"] = contracts.test_set_digest(tests.iloc[count:], 1)
        write_json(folder / "splits.json", {**info, "digest": f"sha256:{9:064x}"})
    return replace(evidence, splits=target)


def test_test_images_that_the_champion_was_trained_on_are_left_out_whatever_their_name(
    evidence: Evidence, settings: RegisterParams, lenient: Policy, tmp_path: Path
):
    first = with_sides_swapped(evidence, tmp_path / "splits", count=3)
    register(first, settings, tmp_path / "first")
    target = tmp_path / "c1"
    compare(first.dataset, evidence.splits, first.masks, first.evaluation, EVALUATE, settings, target)
    assert contracts.read_info(target, contracts.COMPARISON)["champion"] is None
    params = PromoteParams(mode="enabled", policy="test")
    assert promote(tmp_path / "first", target, lenient, COMMIT, params, settings, tmp_path / "d1")["outcome"] == "promoted"

    told = compare(evidence.dataset, evidence.splits, evidence.masks, evidence.evaluation, EVALUATE, settings, tmp_path / "c2")
    test = contracts.read_info(evidence.splits, contracts.SPLITS)["test_set"]
    assert told["left_out"] == {"champion": 3, "challenger": 0}
    assert told["images"] == test["images"] - 3
    assert told["test_set"] == test
    assert told["difference"]["estimate"] == 0, "the same model on both sides"
    register(evidence, settings, tmp_path / "second")
    with pytest.raises(
        InputError, match=r"compared with champion none, but the champion is now version 1; start the run again"
    ):
        promote(tmp_path / "second", target, lenient, COMMIT, params, settings, tmp_path / "d2")


def test_a_model_that_was_trained_on_what_was_in_test_of_an_earlier_version_is_refused(
    evidence: Evidence, settings: RegisterParams, lenient: Policy, tmp_path: Path
):
    register(evidence, settings, tmp_path / "first")
    later = with_sides_swapped(evidence, tmp_path / "splits", count=2)
    register(later, settings, tmp_path / "second")
    compare(later.dataset, evidence.splits, later.masks, later.evaluation, EVALUATE, settings, tmp_path / "c")
    params = PromoteParams(mode="enabled", policy="test")
    decision = promote(tmp_path / "second", tmp_path / "c", lenient, COMMIT, params, settings, tmp_path / "d")
    assert decision["refused_by"] == ["never_tested"]
    gate = next(gate for gate in decision["gates"] if gate["name"] == "never_tested")
    assert gate["reason"] == "2 of its training images were in test of dermaflow-candidate version 1"


def test_the_repositorys_default_is_a_dry_run():
    assert load_params("default", root=ROOT).promote.mode == "dry_run"


def test_what_a_registered_model_was_made_with_is_known_by_its_evidence_too(
    evidence: Evidence, settings: RegisterParams, tmp_path: Path
):
    """A model from before models kept their training images is judged against the splits that were registered with it."""
    with new_artifact(tmp_path / "older", contracts.MODEL) as folder:
        without = shutil.ignore_patterns("artifact.json", contracts.TRAINED_ON)
        shutil.copytree(evidence.model, folder, dirs_exist_ok=True, ignore=without)
    register(replace(evidence, model=tmp_path / "older"), settings, tmp_path / "registration")
    params = load_params("default", [f"register.tracking_uri={settings.tracking_uri}"], root=ROOT)
    with open_model("models:/dermaflow-candidate@challenger", params) as subject:
        splits = contracts.read_splits(evidence.splits)
        assert set(subject.developed["image_id"]) == set(splits.loc[splits["split"].isin(["train", "validation"]), "image_id"])
        assert subject.evaluation is None, "the evaluation is of another artifact"
    with pytest.raises(InputError, match=r"dermaflow-candidate/7: no such version .*; there are: dermaflow-candidate/1"):
        judge("dermaflow-candidate/7", str(evidence.dataset), params)
    with pytest.raises(InputError, match=r"were in the training or validation part of dermaflow-candidate/1"):
        judge("dermaflow-candidate/1", str(evidence.dataset), params)


def test_a_registry_whose_making_was_killed_is_made_by_the_next(tmp_path: Path):
    uri = f"{registry.SQLITE}{tmp_path}/mlflow.db"
    making = f"from dermaflow.registry import connect; connect({uri!r})"
    process = subprocess.Popen([sys.executable, "-c", making], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not any(path.stat().st_size > 20_000 for path in tmp_path.rglob("*.db")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert registry.list_versions(registry.connect(uri)) == []
