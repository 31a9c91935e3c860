"""`dermaflow verify`: an untouched registry has no finding, and each tampering is found by name."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.register.core import FILES, Evidence
from dermaflow import registry
from dermaflow.artifacts import file_digest, write_json
from dermaflow.ledger import write_anchor
from dermaflow.policy import read_policy
from pipelines.verification import Verified, verify
from tests.registries import Registry, findings_of_fresh

CHALLENGER, CHAMPION = "dermaflow-candidate/2", "dermaflow/2"


def verified(made: Registry, *models: str, anchor: Path | None = None, every: bool = False, repair: bool = False) -> Verified:
    return verify(models, made.params(), anchor=anchor, every=every, repair=repair)


def found(made: Registry, *models: str, anchor: Path | None = None, every: bool = False) -> list[tuple[str, str]]:
    return [(finding.name, finding.where) for finding in verified(made, *models, anchor=anchor, every=every).findings]


def test_an_untouched_registry_has_no_finding(two_champions: Registry, tmp_path: Path):
    write_anchor(tmp_path / "anchor.json", two_champions.ledger)
    told = verified(two_champions, anchor=tmp_path / "anchor.json", every=True)
    assert told.findings == []
    assert told.ok
    assert told.versions == ["dermaflow/1", "dermaflow/2", "dermaflow-candidate/1", "dermaflow-candidate/2"]
    assert told.entries == len(two_champions.ledger.entries())


def test_fresh_registries_have_no_finding(new_registry: Path, finished_evidence: Evidence, tmp_path: Path):
    """As tests/proofs/issue7_line2.py has it, of 20."""
    assert findings_of_fresh(2, new_registry, finished_evidence, tmp_path) == []


def test_verify_changes_nothing(used: Registry):
    before = {path: file_digest(path) for path in used.folder.rglob("*") if path.is_file() and path.name != "mlflow.db"}
    assert verified(used, every=True, repair=True).ok
    after = {path: file_digest(path) for path in used.folder.rglob("*") if path.is_file() and path.name != "mlflow.db"}
    assert after == before


def test_a_copy_elsewhere_has_no_finding_and_the_champion_and_the_challenger_are_looked_at(used: Registry):
    told = verified(used)
    assert (told.findings, told.versions) == ([], [CHAMPION, CHALLENGER])


def edit_metric(made: Registry) -> None:
    run = made.client.get_model_version(registry.CANDIDATE_MODEL, "2").run_id
    made.client.log_metric(run, "test_balanced_accuracy", 0.99)


def edit_metric_in_the_database(made: Registry) -> None:
    run = made.client.get_model_version(registry.CANDIDATE_MODEL, "2").run_id
    with sqlite3.connect(made.folder / "mlflow.db") as database:
        database.execute("UPDATE latest_metrics SET value = 0.99 WHERE key = 'test_auroc' AND run_uuid = ?", (run,))


def add_metric(made: Registry) -> None:
    run = made.client.get_model_version(registry.CANDIDATE_MODEL, "2").run_id
    made.client.log_metric(run, "clinical_accuracy", 0.99)


def edit_tag(made: Registry) -> None:
    made.client.set_model_version_tag(registry.CANDIDATE_MODEL, "2", "dermaflow.synthetic", "false")


def edit_tag_of_the_champion(made: Registry) -> None:
    made.client.set_model_version_tag(registry.PRODUCTION_MODEL, "2", "dermaflow.waived", "none")


def remove_tag(made: Registry) -> None:
    made.client.delete_model_version_tag(registry.CANDIDATE_MODEL, "2", "dermaflow.mark")


def add_tag(made: Registry) -> None:
    made.client.set_model_version_tag(registry.CANDIDATE_MODEL, "2", "dermaflow.approved", "yes")


def edit_card(made: Registry) -> None:
    made.client.update_model_version(registry.CANDIDATE_MODEL, "2", "A medical device.")


def move_champion(made: Registry) -> None:
    made.client.set_registered_model_alias(registry.PRODUCTION_MODEL, registry.CHAMPION, "1")


def remove_champion(made: Registry) -> None:
    made.client.delete_registered_model_alias(registry.PRODUCTION_MODEL, registry.CHAMPION)


def promote_by_hand(made: Registry) -> None:
    copied = made.client.copy_model_version("models:/dermaflow-candidate/1", registry.PRODUCTION_MODEL)
    made.client.set_registered_model_alias(registry.PRODUCTION_MODEL, registry.CHAMPION, copied.version)


def move_challenger(made: Registry) -> None:
    made.client.set_registered_model_alias(registry.CANDIDATE_MODEL, registry.CHALLENGER, "1")


def edit_policy(made: Registry) -> None:
    made.write_policy(read_policy(made.policy).model_copy(update={"margin_to_champion": 1.0}))


def delete_run(made: Registry) -> None:
    made.client.delete_run(made.client.get_model_version(registry.CANDIDATE_MODEL, "2").run_id)


def delete_version(made: Registry) -> None:
    made.client.delete_model_version(registry.CANDIDATE_MODEL, "1")


def models_of(made: Registry, version: int) -> Path:
    """Where the files of a candidate's model lie."""
    uri = made.client.get_model_version_download_uri(registry.CANDIDATE_MODEL, str(version))
    return Path(uri.removeprefix("file://"))


def swap_model(made: Registry) -> None:
    (path,) = models_of(made, 2).rglob("model.keras")
    path.write_bytes(b"another network")


def swap_code(made: Registry) -> None:
    (path,) = models_of(made, 2).glob("**/code/dermaflow/serving.py")
    path.write_text(path.read_text() + "\n# and more\n")


def point_to_another_model(made: Registry) -> None:
    with sqlite3.connect(made.folder / "mlflow.db") as database:
        shutil.copytree(models_of(made, 2), made.folder / "other")
        (path,) = (made.folder / "other").rglob("model.keras")
        path.write_bytes(b"another network")
        database.execute(
            "UPDATE model_versions SET storage_location = ? WHERE name = 'dermaflow'", (f"file://{made.folder}/other",)
        )


def change_prediction(made: Registry) -> None:
    path = made.evidence(2) / "evaluation" / "predictions.parquet"
    table = pd.read_parquet(path)
    first = table.index[table["split"] == "test"][0]
    columns = [name for name in table.columns if name.startswith("logit_")]
    table.loc[first, columns] = np.roll(table.loc[first, columns].to_numpy(), 1)
    table.to_parquet(path)


def change_prediction_and_its_digest(made: Registry) -> None:
    change_prediction(made)
    listed = json.loads((made.evidence(2) / FILES).read_text())
    name = "evaluation/predictions.parquet"
    listed["evidence"][name] = file_digest(made.evidence(2) / name)
    write_json(made.evidence(2) / FILES, listed)


def change_splits(made: Registry) -> None:
    path = made.evidence(2) / "splits" / "splits.parquet"
    table = pd.read_parquet(path)
    table["split"] = table["split"].replace({"test": "train"})
    table.to_parquet(path)


def change_evidence(made: Registry) -> None:
    path = made.evidence(2) / "evidence.json"
    write_json(path, json.loads(path.read_text()) | {"synthetic": False})


def remove_evidence(made: Registry) -> None:
    (made.evidence(2) / "explanation" / "explanation.json").unlink()


def change_decision(made: Registry) -> None:
    path = made.evidence(2) / "decision.json"
    write_json(path, json.loads(path.read_text()) | {"waived": []})


def change_policy_in_the_decision(made: Registry) -> None:
    path = made.evidence(2) / "decision.json"
    told = json.loads(path.read_text())
    told["policy"]["content"]["allow_synthetic"] = False
    write_json(path, told)


def edit_decision_tag(made: Registry) -> None:
    made.client.set_model_version_tag(registry.CANDIDATE_MODEL, "2", "dermaflow.decision", "refused")


@pytest.mark.parametrize(
    ("tamper", "findings"),
    [
        (edit_metric, {("metric_changed", CHALLENGER), ("metric_changed", CHAMPION)}),
        (edit_metric_in_the_database, {("metric_changed", CHALLENGER), ("metric_changed", CHAMPION)}),
        (add_metric, {("metric_changed", CHALLENGER), ("metric_changed", CHAMPION)}),
        (edit_tag, {("tag_changed", CHALLENGER)}),
        (edit_tag_of_the_champion, {("tag_changed", CHAMPION)}),
        (remove_tag, {("tag_changed", CHALLENGER)}),
        (add_tag, {("tag_changed", CHALLENGER)}),
        (edit_card, {("description_changed", CHALLENGER)}),
        (move_champion, {("champion_moved", "dermaflow@champion")}),
        (remove_champion, {("champion_moved", "dermaflow@champion")}),
        (promote_by_hand, {("champion_moved", "dermaflow@champion"), ("unknown_version", "dermaflow/3")}),
        (move_challenger, {("challenger_moved", "dermaflow-candidate@challenger")}),
        (edit_policy, {("policy_changed", CHALLENGER), ("policy_changed", CHAMPION)}),
        (delete_run, {("run_deleted", CHALLENGER), ("run_deleted", CHAMPION)}),
        (delete_version, {("version_missing", "ledger entry 2")}),
        (swap_model, {("model_changed", CHALLENGER), ("model_changed", CHAMPION)}),
        (swap_code, {("model_changed", CHALLENGER), ("model_changed", CHAMPION)}),
        (point_to_another_model, {("model_changed", CHAMPION)}),
        (change_splits, {("evidence_changed", CHALLENGER), ("evidence_changed", CHAMPION)}),
        (change_evidence, {("evidence_changed", CHALLENGER), ("evidence_changed", CHAMPION)}),
        (remove_evidence, {("evidence_changed", CHALLENGER), ("evidence_changed", CHAMPION)}),
        (change_decision, {("decision_differs", CHALLENGER)}),
        (change_policy_in_the_decision, {("decision_differs", CHALLENGER)}),
        (edit_decision_tag, {("tag_changed", CHALLENGER)}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_each_tampering_is_found(used: Registry, tamper: Callable[[Registry], None], findings: set[tuple[str, str]]):
    tamper(used)
    assert findings <= set(found(used))
    others = {name for name, _ in set(found(used)) - findings}
    assert others <= {"figures_differ", "gate_differs", "gates_unknown"}, "what was not touched is accused"


def test_a_changed_prediction_is_found_by_its_digest_and_by_the_figures_that_it_gives(used: Registry):
    change_prediction(used)
    names = {name for name, where in found(used) if where == CHALLENGER}
    assert {"evidence_changed", "figures_differ", "gate_differs"} <= names


def test_a_changed_prediction_whose_digest_was_changed_too_is_found_by_the_ledger(used: Registry):
    change_prediction_and_its_digest(used)
    assert {("list_of_evidence", CHALLENGER), ("evidence_changed", CHALLENGER)} <= set(found(used))


def forge(made: Registry, kind: str, **body: object) -> None:
    """Add an entry with a chain that holds, as somebody who may write the ledger could."""
    last = next(entry for entry in reversed(made.ledger.entries()) if entry.kind == kind)
    made.ledger.append(kind, {**last.body, **body})  # type: ignore[arg-type]


def test_a_promotion_that_no_decision_asked_for_is_found(used: Registry):
    first = next(entry for entry in used.ledger.entries() if entry.kind == "promotion")
    forge(used, "promotion", candidate=first.body["candidate"])
    assert verified(used, repair=True).findings != []
    assert ("promotion_without_decision", "dermaflow/3") in found(used)


def test_a_promotion_of_a_refused_candidate_is_found(used: Registry):
    forge(used, "decision", decided="refused")
    forge(used, "promotion", decision=len(used.ledger.entries()))
    verified(used, repair=True)
    (finding,) = [finding for finding in verified(used).findings if finding.name == "promotion_without_decision"]
    assert finding.detail.endswith("was refused")


def test_a_promotion_that_people_did_not_agree_to_is_found(used: Registry):
    last = next(entry for entry in reversed(used.ledger.entries()) if entry.kind == "decision")
    content = {**last.body["policy"]["content"], "approvals": 1}
    forge(used, "decision", policy={**last.body["policy"], "content": content})
    forge(used, "promotion", decision=len(used.ledger.entries()))
    verified(used, repair=True)
    assert any("0 people had agreed, and the policy asks for 1" in finding.detail for finding in verified(used).findings)


def test_gates_in_a_forged_decision_are_judged_again(used: Registry):
    last = next(entry for entry in reversed(used.ledger.entries()) if entry.kind == "decision")
    better = [{**gate, "estimate": 0.99} if gate["name"] == "auroc" else gate for gate in last.body["gates"]]
    better = [{**gate, "verdict": "fail"} if gate["name"] == "leakage" else gate for gate in better]
    forge(used, "decision", gates=better)
    details = [finding.detail for finding in verified(used).findings if finding.name == "gate_differs"]
    assert [detail.split(",")[0] for detail in details] == ["gate leakage", "gate auroc"]


def test_an_older_version_may_have_been_judged_by_an_older_policy(used: Registry):
    edit_policy(used)
    assert {where for name, where in found(used, every=True) if name == "policy_changed"} == {CHALLENGER, CHAMPION}


def entry_file(made: Registry, number: int) -> Path:
    return made.folder / "ledger" / f"{number:08d}.json"


def test_an_edited_ledger_entry_is_found(used: Registry):
    path = entry_file(used, 3)
    value = json.loads(path.read_text())
    value["body"]["waived"] = []
    path.unlink()
    path.write_text(json.dumps(value))
    assert found(used) == [("ledger_edited", "ledger entry 3")]


def test_a_removed_ledger_entry_is_found(used: Registry):
    entry_file(used, 2).unlink()
    assert found(used) == [("ledger_missing", "ledger entry 2")]


def test_a_truncated_ledger_is_found_by_its_anchor_and_by_the_champion(used: Registry, tmp_path: Path):
    write_anchor(tmp_path / "anchor.json", used.ledger)
    last = len(used.ledger.entries())
    entry_file(used, last).unlink()
    assert ("ledger_anchor", "ledger") in found(used, anchor=tmp_path / "anchor.json")
    assert ("champion_moved", "dermaflow@champion") in found(used), "the last entry was the promotion"


def test_a_candidate_that_was_put_there_by_hand_is_found(used: Registry):
    used.client.copy_model_version("models:/dermaflow-candidate/1", registry.CANDIDATE_MODEL)
    assert found(used) == [("unknown_version", "dermaflow-candidate/3")]


def test_a_registry_without_versions_holds(used: Registry, new_registry: Path, tmp_path: Path):
    from tests.registries import make_registry

    told = verified(make_registry(new_registry, tmp_path / "empty"))
    assert (told.ok, told.versions, told.entries) == (True, [], 0)
    assert not (tmp_path / "empty" / "ledger").exists()


@pytest.mark.parametrize(
    "tamper", [move_champion, remove_champion, move_challenger, change_decision, edit_decision_tag], ids=lambda f: f.__name__
)
def test_what_a_crash_may_leave_is_mended_by_the_ledger(used: Registry, tamper: Callable[[Registry], None]):
    tamper(used)
    entries = len(used.ledger.entries())
    told = verified(used, repair=True)
    assert (told.findings, len(told.mended)) == ([], 1)
    assert found(used) == []
    assert used.champion() == 2
    last = used.ledger.entries()[-1]
    assert (last.number, last.kind) == (entries + 1, "repair")
    assert [finding["name"] for finding in last.body["findings"]] == [finding.name for finding in told.mended]


@pytest.mark.parametrize(
    "tamper", [edit_metric, edit_tag, swap_model, change_prediction, edit_policy], ids=lambda f: f.__name__
)
def test_what_somebody_changed_is_not_mended(used: Registry, tamper: Callable[[Registry], None]):
    tamper(used)
    before = set(found(used))
    assert {(finding.name, finding.where) for finding in verified(used, repair=True).findings} == before
    assert used.kinds()[-1] != "repair"


def test_versions_that_went_missing_are_made_again(used: Registry):
    used.client.delete_model_version(registry.CANDIDATE_MODEL, "1")
    used.client.delete_registered_model_alias(registry.PRODUCTION_MODEL, registry.CHAMPION)
    used.client.delete_model_version(registry.PRODUCTION_MODEL, "2")
    assert {name for name, _ in found(used)} == {"version_missing", "champion_moved", "decision_differs"}
    told = verified(used, repair=True, every=True)
    assert told.findings == []
    assert used.champion() == 3
