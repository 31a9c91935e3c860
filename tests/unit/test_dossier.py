"""`dermaflow audit` and `dermaflow verify DIR`: a dossier is whole, holds offline, and tells when it was changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from components.register.bundle import SCHEMA_FILE, checked, faults
from components.register.core import Evidence, register
from dermaflow import registry
from dermaflow.artifacts import ARTIFACT_FILE, file_digest, json_digest, new_artifact, read_json, write_json
from dermaflow.errors import GateError, InputError
from dermaflow.ledger import Ledger, write_anchor
from pipelines import dossier as content
from pipelines.acting import promote, roll_back, waive
from pipelines.audit import export, verify_dossier
from tests import schemas
from tests.registries import COMMIT, Registry, lenient_policy, make_registry
from tests.unit.test_registry_commands import call

CHAMPION = "dermaflow@champion"


@pytest.fixture(scope="module")
def exported(two_champions: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dossier of the second champion; not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "dossier"
    assert export(CHAMPION, two_champions.params(), folder).findings == []
    return folder


@pytest.fixture
def dossier(exported: Path, tmp_path: Path) -> Path:
    """A copy of it that the test may change."""
    return Path(shutil.copytree(exported, tmp_path / "dossier"))


def told(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = read_json(folder / content.DOCUMENT)
    return value


def found(folder: Path, anchor: Path | None = None) -> set[str]:
    return {finding.name for finding in verify_dossier(folder, anchor).findings}


def seal_anew(folder: Path) -> None:
    """As somebody who may write the folder, and knows how a seal is made, could."""
    seal = read_json(folder / ARTIFACT_FILE)
    names = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ARTIFACT_FILE]
    names += [path for path in folder.rglob(ARTIFACT_FILE) if path.parent != folder]
    files = {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(names)}
    write_json(folder / ARTIFACT_FILE, {**seal, "files": files, "digest": json_digest(files)})


# --- what is in it ---


def test_a_dossier_holds_offline_wherever_it_lies(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    moved = Path(shutil.copytree(exported, tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)  # no params.yaml, no registry
    result = verify_dossier(moved)
    assert (result.findings, result.versions) == ([], ["dermaflow/2"])
    assert result.entries == len(Ledger(str(moved / "ledger")).entries())


def test_it_says_what_registry_and_ledger_say(exported: Path, two_champions: Registry):
    document, entries = told(exported), two_champions.ledger.entries()
    assert faults(document, content.Dossier) == []
    assert document["evidence"] == read_json(two_champions.evidence(2) / "evidence.json")
    assert (document["version"]["name"], document["version"]["version"]) == ("dermaflow", 2)
    assert document["version"]["is_champion"] is True
    assert document["ledger"]["head"]["digest"] == entries[-1].digest
    decisive = [decision for decision in document["decisions"] if decision["decisive"]]
    assert [decision["gates"] for decision in decisive] == [
        next(entry for entry in reversed(entries) if entry.kind == "decision").body["gates"]
    ]
    assert [(move["kind"], move["version"]) for move in document["history"]] == [("promotion", 1), ("promotion", 2)]
    assert {path.name for path in (exported / "ledger").iterdir()} == {f"{entry.number:08d}.json" for entry in entries}
    originals = {path.name: path.read_bytes() for path in (two_champions.folder / "ledger").iterdir()}
    assert {path.name: path.read_bytes() for path in (exported / "ledger").iterdir()} == originals
    assert all(file_digest(exported / name) == digest for name, digest in document["files"].items())
    assert {"registry.json", "evidence/evidence.json", "evidence/evaluation/predictions.parquet"} <= document["files"].keys()


def test_people_waivers_rollbacks_and_refusals_stand_in_it(used: Registry, tmp_path: Path):
    used.write_policy(lenient_policy(approvals=1, margin_to_champion=1.0))
    waive("data_licence", "dermaflow-candidate/1", "by letter", "2999-01-01", used.params())
    assert promote("dermaflow-candidate/1", used.params(), approver="ann")["outcome"] == "promoted"
    roll_back(2, "misses lentigo maligna", used.params())
    export("dermaflow/3", used.params(), tmp_path / "d")
    document, page = told(tmp_path / "d"), (tmp_path / "d" / content.PAGE).read_text()
    assert [(approval["approver"], approval["entry"]) for approval in document["approvals"]] == [("ann", 10)]
    assert [(waiver["gate"], waiver["reason"]) for waiver in document["waivers"]] == [("data_licence", "by letter")]
    assert [(move["kind"], move["version"], move["reason"]) for move in document["history"]][-2:] == [
        ("promotion", 3, None),
        ("rollback", 2, "misses lentigo maligna"),
    ]
    assert document["version"]["is_champion"] is False
    assert "Not in use." in page
    assert "misses lentigo maligna" in page
    assert verify_dossier(tmp_path / "d").findings == []


def test_a_candidate_that_was_refused_has_a_dossier_too(used: Registry, tmp_path: Path):
    assert promote("dermaflow-candidate/1", used.params())["outcome"] == "refused"
    result = export("dermaflow-candidate/1", used.params(), tmp_path / "d")
    assert result.findings == []
    assert verify_dossier(tmp_path / "d").findings == []
    (decisive,) = [decision for decision in told(tmp_path / "d")["decisions"] if decision["decisive"]]
    assert decisive["refused_by"] == ["not_worse_than_champion"]
    assert (tmp_path / "d" / "others").is_dir(), "what it was compared with"


def test_a_comparison_by_a_person_can_be_made_again_offline(used: Registry, tmp_path: Path):
    """The champion of now is another than the pipeline compared it with: its splits and predictions are in the dossier."""
    promote("dermaflow-candidate/1", used.params())
    export("dermaflow-candidate/1", used.params(), tmp_path / "d")
    (path,) = (tmp_path / "d" / "others").rglob("predictions.parquet")
    table = pd.read_parquet(path)
    columns = [name for name in table if name.startswith("logit_")]
    table[columns] = table[columns].to_numpy()[:, ::-1]
    table.to_parquet(path)
    assert {"dossier_changed", "gate_differs"} <= found(tmp_path / "d")


def test_the_same_registry_gives_the_same_dossier_but_for_the_time(two_champions: Registry, tmp_path: Path):
    documents = []
    for name in ("one", "two"):
        export(CHAMPION, two_champions.params(), tmp_path / name)
        documents.append({**told(tmp_path / name), "made": None})
    assert documents[0] == documents[1]


# --- tampering ---


def edit_page(folder: Path) -> None:
    page = folder / content.PAGE
    page.write_text(page.read_text().replace("Synthetic images", "Photographs"))


def edit_document(folder: Path) -> None:
    document = told(folder)
    document["evidence"]["synthetic"] = False
    write_json(folder / content.DOCUMENT, document)


def take_findings_out_of_the_schema(folder: Path) -> None:
    document = told(folder)
    del document["findings"]
    write_json(folder / content.DOCUMENT, {**document, "findings": [], "approved": True})


def change_prediction(folder: Path) -> None:
    path = folder / "evidence" / "evaluation" / "predictions.parquet"
    table = pd.read_parquet(path)
    columns = [name for name in table if name.startswith("logit_")]
    table.loc[table["split"] == "test", columns] = table.loc[table["split"] == "test", columns].to_numpy()[:, ::-1]
    table.to_parquet(path)


def change_evidence(folder: Path) -> None:
    path = folder / "evidence" / "evidence.json"
    write_json(path, {**read_json(path), "synthetic": False})


def remove_evidence(folder: Path) -> None:
    (folder / "evidence" / "explanation" / "explanation.json").unlink()


def edit_entry(folder: Path) -> None:
    path = folder / "ledger" / "00000003.json"
    value = read_json(path)
    value["body"]["waived"] = []
    os.chmod(path, 0o644)
    write_json(path, value)


def remove_entry(folder: Path) -> None:
    (folder / "ledger" / "00000002.json").unlink()


def edit_tag(folder: Path) -> None:
    value = read_json(folder / content.REGISTRY)
    for row in value["versions"]:
        row["tags"] |= {"dermaflow.synthetic": "false"}
    write_json(folder / content.REGISTRY, value)


def edit_metric(folder: Path) -> None:
    value = read_json(folder / content.REGISTRY)
    value["run"]["metrics"]["test_auroc"] = 0.99
    write_json(folder / content.REGISTRY, value)


def swap_model(folder: Path) -> None:
    value = read_json(folder / content.REGISTRY)
    value["model_files"] = dict.fromkeys(value["model_files"], "sha256:" + 64 * "0")
    write_json(folder / content.REGISTRY, value)


def move_champion(folder: Path) -> None:
    value = read_json(folder / content.REGISTRY)
    value["aliases"]["dermaflow"]["champion"] = "1"
    write_json(folder / content.REGISTRY, value)


def delete_run(folder: Path) -> None:
    value = read_json(folder / content.REGISTRY)
    value["run"]["stage"] = "deleted"
    write_json(folder / content.REGISTRY, value)


@pytest.mark.parametrize(
    ("tamper", "finding"),
    [
        (edit_page, "page_differs"),
        (edit_document, "dossier_differs"),
        (take_findings_out_of_the_schema, "dossier_form"),
        (change_prediction, "figures_differ"),
        (change_evidence, "evidence_changed"),
        (remove_evidence, "evidence_changed"),
        (edit_entry, "ledger_edited"),
        (remove_entry, "ledger_missing"),
        (edit_tag, "tag_changed"),
        (edit_metric, "metric_changed"),
        (swap_model, "model_changed"),
        (move_champion, "champion_moved"),
        (delete_run, "run_deleted"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_was_changed_is_found_and_named_even_if_it_was_sealed_anew(
    dossier: Path, tamper: Callable[[Path], None], finding: str
):
    tamper(dossier)
    assert {"dossier_changed", finding} <= found(dossier)
    seal_anew(dossier)
    names = found(dossier)
    assert finding in names
    assert "dossier_changed" not in names


def test_a_ledger_that_was_cut_off_is_found_by_its_anchor(dossier: Path, two_champions: Registry, tmp_path: Path):
    write_anchor(tmp_path / "anchor.json", two_champions.ledger)
    assert found(dossier, tmp_path / "anchor.json") == set()
    max((dossier / "ledger").iterdir()).unlink()
    seal_anew(dossier)
    assert "ledger_anchor" in found(dossier, tmp_path / "anchor.json")


def test_a_file_that_the_checks_need_is_missed(dossier: Path):
    (dossier / content.REGISTRY).unlink()
    assert {"dossier_changed", "dossier_unreadable"} <= found(dossier)


# --- requests ---


def test_findings_of_the_registry_stand_in_the_dossier(used: Registry, tmp_path: Path):
    used.client.set_model_version_tag(registry.PRODUCTION_MODEL, "2", "dermaflow.synthetic", "false")
    code, out, _ = call(used, "audit", CHAMPION, "--out", str(tmp_path / "d"), "--json")
    result = json.loads(out)
    assert (code, [finding["name"] for finding in result["findings"]]) == (1, ["tag_changed"])
    assert "tag dermaflow.synthetic is &#39;false&#39;" in (tmp_path / "d" / content.PAGE).read_text()
    assert found(tmp_path / "d") == {"tag_changed"}


def test_the_commands_say_where_it_is_and_that_it_holds(used: Registry, tmp_path: Path):
    code, out, _ = call(used, "audit", "dermaflow", "--out", str(tmp_path / "d"))
    assert code == 0
    assert "dossier.html" in out
    assert "all holds" in out
    code, out, _ = call(used, "verify", str(tmp_path / "d"), "--json")
    result = json.loads(out)
    assert (code, result["ok"], result["versions"]) == (0, True, ["dermaflow/2"])
    edit_page(tmp_path / "d")
    assert call(used, "verify", str(tmp_path / "d"))[0] == 1


def test_only_a_dossier_is_replaced(used: Registry, tmp_path: Path):
    target = tmp_path / "d"
    export(CHAMPION, used.params(), target)
    export("dermaflow-candidate", used.params(), target)
    assert told(target)["version"]["name"] == "dermaflow-candidate"
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("mine")
    with new_artifact(tmp_path / "splits", "splits") as folder:
        (folder / "splits.json").write_text("{}")
    for other in ("papers", "splits"):
        before = sorted((tmp_path / other).iterdir())
        with pytest.raises(InputError, match="is there already and is no dossier; name another folder"):
            export(CHAMPION, used.params(), tmp_path / other)
        assert sorted((tmp_path / other).iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("audit", "somewhere"), "is neither NAME@ALIAS nor NAME/VERSION nor one of dermaflow, dermaflow-candidate"),
        (("audit", "dermaflow/9"), "no such version"),
        (("audit",), "MODEL"),
        (("verify", "docs"), "docs is not a finished dossier artifact"),
        (("verify", "docs", "dermaflow/1"), "a dossier is verified alone"),
        (("verify", "docs", "--repair"), "a dossier is verified alone"),
    ],
)
def test_a_wrong_request_ends_with_2(used: Registry, arguments: tuple[str, ...], said: str):
    code, _, err = call(used, *arguments)
    assert code == 2
    assert said in " ".join(err.split())


def test_what_can_not_be_told_leaves_nothing_half_written(used: Registry, tmp_path: Path):
    shutil.rmtree(used.evidence(2))
    with pytest.raises(GateError, match=r"can not be had.*No dossier was written"):
        export(CHAMPION, used.params(), tmp_path / "d")
    (used.folder / "ledger" / "00000002.json").unlink()
    with pytest.raises(GateError, match="the ledger does not hold at entry 2"):
        export(CHAMPION, used.params(), tmp_path / "d")
    used.client.copy_model_version("models:/dermaflow-candidate/1", registry.CANDIDATE_MODEL)
    assert [path for path in tmp_path.iterdir() if path.name != "registry"] == []


def test_a_version_that_the_ledger_does_not_know_has_no_dossier(used: Registry, tmp_path: Path):
    used.client.copy_model_version("models:/dermaflow-candidate/1", registry.CANDIDATE_MODEL)
    with pytest.raises(InputError, match="is not in the ledger"):
        export("dermaflow-candidate/3", used.params(), tmp_path / "d")


# --- the evidence's form ---


def test_the_published_schemas_are_what_the_code_holds_documents_against():
    assert schemas.stale() == [], "make schema"
    assert SCHEMA_FILE == "evidence.schema.json"


def test_a_bundle_says_null_where_nobody_knows_and_every_fault_of_form_by_its_field(exported: Path):
    bundle = read_json(exported / "evidence" / "evidence.json")
    assert bundle["compiled_pipeline_digest"] is None
    assert bundle["images"] is None
    assert bundle["kfp_run_id"] is None
    assert bundle["lock"]["file"] == "runtime.txt"
    assert bundle["seeds"]["train.seed"] == bundle["params"]["train"]["seed"]
    assert bundle["model"]["file_digest"] in read_json(exported / "evidence" / "files.json")["model"].values()
    assert any("drawn by a program" in text for text in bundle["limits"])
    assert all(step["cost"] is None for step in bundle["steps"] or ())
    for field, value in (("licence", None), ("predictions_digest", "sha256:1"), ("approved", True)):
        with pytest.raises(InputError, match=field):
            checked({**bundle, field: value})
    del bundle["splits"]["leakage"]
    assert faults(bundle) == ["splits.leakage: Field required"]


def test_what_only_a_cluster_knows_is_taken_from_it(
    new_registry: Path, finished_evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = make_registry(new_registry, tmp_path / "registry")
    monkeypatch.chdir(tmp_path)  # no runs/ here, as in a pod
    images = {"train": f"registry.example/dermaflow-python/train@sha256:{7:064x}"}
    digest = f"sha256:{8:064x}"
    told = {"job_id": "0f3c-of-kubeflow", "images": json.dumps(images), "compiled_digest": digest}
    pod = replace(finished_evidence, commit=COMMIT, **told)
    register(pod, made.settings, tmp_path / "registration")
    bundle = read_json(made.evidence(1) / "evidence.json")
    assert (bundle["kfp_run_id"], bundle["images"], bundle["steps"]) == ("0f3c-of-kubeflow", images, None)
    assert bundle["compiled_pipeline_digest"] == digest


def test_evidence_that_is_not_of_its_form_is_not_registered(new_registry: Path, finished_evidence: Evidence, tmp_path: Path):
    made = make_registry(new_registry, tmp_path / "registry")
    with pytest.raises(InputError, match=r"evidence.schema.json: source_digest: .*Nothing was registered"):
        register(replace(finished_evidence, source_digest="md5:1"), made.settings, tmp_path / "registration")
    assert "registration" not in made.kinds()
    assert registry.list_versions(made.client) == []
    assert not (tmp_path / "registration").exists()
