"""Promote: judge the challenger by the policy and, where mode and gates allow, copy it into production as champion."""

from __future__ import annotations

import datetime
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from components.promote.gates import Gate, judge
from dermaflow import contracts, registry
from dermaflow.artifacts import new_artifact, write_json
from dermaflow.errors import InputError
from dermaflow.metrics import paired_difference
from dermaflow.params import PromoteParams, RegisterParams
from dermaflow.policy import Policy, policy_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

KEY_TAG = registry.TAG + "key"
COMPARISON_REPLICATES = 2000
COMPARISON_SEED = 20240101


def promote(
    registration: Path,
    evaluation: Path,
    policy: Policy,
    commit: str,
    params: PromoteParams,
    register: RegisterParams,
    target: Path,
) -> dict[str, Any]:
    """Decide on a registered candidate, act on the decision, and write it down.

    Parameters
    ----------
    registration, evaluation: artifacts of the candidate.
    commit: JSON of the code's commit and dirtiness.

    Returns
    -------
    The content of decision.json. `outcome` is promoted, already_champion, would_promote (dry run: every gate passed,
    nothing moved), refused (some gate failed) or disabled.

    Raises
    ------
    InputError
        when the registry does not answer.
    """
    info = contracts.read_info(registration, contracts.REGISTRATION)
    client = registry.connect(register.tracking_uri)
    champion = registry.version_of(client, registry.PRODUCTION_MODEL, registry.CHAMPION)
    same = champion is not None and champion.tags.get(KEY_TAG) == info["key"]
    difference = None if champion is None or same else _difference(client, champion, evaluation, info["facts"])
    gates = judge(info["facts"], json.loads(commit), difference, policy)
    outcome = _outcome(params.mode, gates, same=same)
    after = _copy_to_production(client, info, policy) if outcome == "promoted" else champion
    decision = {
        "outcome": outcome,
        "mode": params.mode,
        "candidate": {"name": info["model"], "version": info["version"]},
        "champion_before": _told(champion),
        "champion_after": _told(after),
        "gates": [gate.to_dict() for gate in gates],
        "refused_by": [gate.name for gate in gates if gate.verdict == "fail"],
        "waived": _waived(info["facts"], policy),
        "policy": {"file": params.policy, "digest": policy_digest(policy)},
        "decided_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    client.set_model_version_tag(info["model"], str(info["version"]), registry.TAG + "decision", outcome)
    client.log_dict(info["mlflow_run_id"], decision, f"{registry.EVIDENCE_FOLDER}/decision.json")
    with new_artifact(target, contracts.DECISION) as folder:
        write_json(folder / "decision.json", decision)
    return decision


def _outcome(mode: str, gates: list[Gate], *, same: bool) -> str:
    if mode == "disabled":
        return "disabled"
    if any(gate.verdict == "fail" for gate in gates):
        return "refused"
    if mode == "dry_run":
        return "would_promote"
    return "already_champion" if same else "promoted"


def _difference(client: MlflowClient, champion: ModelVersion, evaluation: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Paired difference on the test images that both were judged on; undefined (None) where there are none."""
    source = champion.tags.get(registry.TAG + "mlflow_run_id", champion.run_id)
    with tempfile.TemporaryDirectory() as scratch:
        folder = client.download_artifacts(source, f"{registry.EVIDENCE_FOLDER}/evaluation", scratch)
        theirs = pd.read_parquet(Path(folder, "predictions.parquet"))
    ours = contracts.read_predictions(evaluation)
    ours, theirs = (table[table["split"] == "test"] for table in (ours, theirs))
    shared = set(ours["image_id"]) & set(theirs["image_id"])
    if not shared:
        return {"estimate": None, "low": None, "high": None}
    ours, theirs = (table[table["image_id"].isin(shared)] for table in (ours, theirs))
    classes = facts["model"]["classes"]
    return paired_difference(ours, theirs, classes, bootstrap=COMPARISON_REPLICATES, seed=COMPARISON_SEED)


def _copy_to_production(client: MlflowClient, info: dict[str, Any], policy: Policy) -> ModelVersion:
    registry.ensure_model(client, registry.PRODUCTION_MODEL, "What promotion copied here; the alias champion is in use.")
    copied = client.copy_model_version(f"models:/{info['model']}/{info['version']}", registry.PRODUCTION_MODEL)
    tags = {
        "key": info["key"],
        "mlflow_run_id": info["mlflow_run_id"],
        "policy.digest": policy_digest(policy),
        "copied_from": f"{info['model']}/{info['version']}",
        "waived": ", ".join(_waived(info["facts"], policy)) or "none",
    }
    for name, value in tags.items():
        client.set_model_version_tag(registry.PRODUCTION_MODEL, copied.version, registry.TAG + name, value)
    client.set_registered_model_alias(registry.PRODUCTION_MODEL, registry.CHAMPION, copied.version)
    moved = registry.version_of(client, registry.PRODUCTION_MODEL, registry.CHAMPION)
    if moved is None or int(moved.version) != int(copied.version):
        raise InputError(f"alias {registry.CHAMPION} was moved by someone else at the same time; look with: dermaflow models")
    return moved


def _waived(facts: dict[str, Any], policy: Policy) -> list[str]:
    """What the policy lets pass that it usually would not."""
    return ["not_synthetic"] if facts["synthetic"] and policy.allow_synthetic else []


def _told(version: ModelVersion | None) -> dict[str, Any] | None:
    return None if version is None else {"name": version.name, "version": int(version.version)}
