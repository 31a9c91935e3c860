"""Promote: judge the challenger by the policy and, where mode and gates allow, copy it into production as champion."""

from __future__ import annotations

import datetime
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.promote.gates import Gate, judge
from dermaflow import contracts, registry
from dermaflow.artifacts import new_artifact, write_json
from dermaflow.errors import InputError
from dermaflow.params import PromoteParams, RegisterParams
from dermaflow.policy import Policy, policy_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

KEY_TAG = registry.TAG + "key"
TEST_SET_TAG = registry.TAG + "test_set.digest"


def promote(
    registration: Path,
    comparison: Path,
    policy: Policy,
    commit: str,
    params: PromoteParams,
    register: RegisterParams,
    target: Path,
) -> dict[str, Any]:
    """Decide on a registered candidate, act on the decision, and write it down.

    Parameters
    ----------
    registration, comparison: artifacts of the candidate.
    commit: JSON of the code's commit and dirtiness.

    Returns
    -------
    The content of decision.json. `outcome` is promoted, already_champion, would_promote (dry run: every gate passed,
    nothing moved), refused (some gate failed) or disabled.

    Raises
    ------
    InputError
        when the registry does not answer, or there is another champion than the challenger was compared with.
    """
    info = contracts.read_info(registration, contracts.REGISTRATION)
    client = registry.connect(register.tracking_uri)
    champion = registry.version_of(client, registry.PRODUCTION_MODEL, registry.CHAMPION)
    same = champion is not None and champion.tags.get(KEY_TAG) == info["key"]
    compared = contracts.read_info(comparison, contracts.COMPARISON)
    if not same and compared["champion"] != _told(champion):
        raise InputError(
            f"the challenger was compared with champion {_name(compared['champion'])}, but the champion is now "
            f"{_name(_told(champion))}; start the run again: only the comparison is made anew"
        )
    tested = _tested_before(client, info)
    gates = judge(info["facts"], json.loads(commit), None if same else compared, tested, policy)
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


def _tested_before(client: MlflowClient, info: dict[str, Any]) -> dict[str, int]:
    """Images of the candidate's train and validation parts that were in test of a registered version, by that version.

    Random splits have no test set that counts. Each test set holds the earlier ones, so that equal digests are read once.
    """
    versions = client.search_model_versions(f"name = '{info['model']}'")
    own = next(version for version in versions if int(version.version) == info["version"])
    digests = {
        version.tags.get(TEST_SET_TAG): version for version in sorted(versions, key=lambda version: int(version.version))
    }
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        ours = contracts.read_splits(registry.evidence(client, own, "splits", Path(scratch, "own")))
        for number, (digest, version) in enumerate(digests.items()):
            if digest is None or digest == "none":
                continue
            tests = contracts.read_test_sets(registry.evidence(client, version, "splits", Path(scratch, str(number))))
            seen = int(contracts.seen_before(tests, ours).sum())
            if seen:
                found[f"{version.name} version {version.version}"] = seen
    return found


def _name(told: dict[str, Any] | None) -> str:
    return f"version {told['version']}" if told else "none"


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
