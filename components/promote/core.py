"""Promote: judge the challenger by the policy and, where mode and gates allow, copy it into production as champion."""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.promote.gates import Gate, judge
from dermaflow import champion as moves
from dermaflow import contracts, recorded, registry
from dermaflow.access import open_ledger, open_registry
from dermaflow.artifacts import new_artifact, write_json
from dermaflow.errors import InputError
from dermaflow.ledger import Entry, HeadMovedError, Ledger
from dermaflow.params import PromoteParams, RegisterParams
from dermaflow.policy import Policy, policy_digest
from dermaflow.records import Records, Registered, Version, made_for
from dermaflow.refusals import CI, refusals_told

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

DECISION_FILE = "decision.json"
DECISION_TAG = registry.TAG + "decision"
TEST_SET_TAG = registry.TAG + "test_set.digest"
Mode = Literal["disabled", "dry_run", "enabled"]


@dataclass(frozen=True)
class Case:
    """A candidate that is to be decided on, and what speaks for it.

    Attributes
    ----------
    key: digest of the model and of everything that judges it.
    facts: as its registration tells them.
    commit: `commit` and `dirty` of the code that made it.
    comparison: with the champion, as comparison.json tells it; None where the candidate is the champion.
    """

    model: str
    version: int
    key: str
    mlflow_run_id: str
    facts: Mapping[str, Any]
    commit: Mapping[str, Any]
    comparison: Mapping[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Which candidate it is, as ledger and decision name it."""
        return {"name": self.model, "version": self.version, "key": self.key, "mlflow_run_id": self.mlflow_run_id}


@refusals_told(CI)
def promote(
    registration: Path,
    comparison: Path,
    policy: Policy,
    commit: str,
    params: PromoteParams,
    register: RegisterParams,
    target: Path,
    ledger: Ledger | None = None,
) -> dict[str, Any]:
    """Decide on a registered candidate, act on the decision, and write it down.

    Parameters
    ----------
    registration, comparison: artifacts of the candidate.
    commit: JSON of the code's commit and dirtiness.
    ledger: of the registry; by default the one beside an embedded registry.

    Returns
    -------
    The content of decision.json. `outcome` is promoted, already_champion, would_promote (every gate passed, nothing moved:
    a dry run, or an account that its server does not let move the champion), awaiting_approval (every gate passed, people
    have to agree), refused (some gate failed) or disabled.

    Raises
    ------
    InputError
        when the registry does not answer, or there is another champion than the challenger was compared with.
    HeadMovedError
        when somebody else moves the champion at the same time.
    """
    info = contracts.read_info(registration, contracts.REGISTRATION)
    client = open_registry(register.tracking_uri)
    ledger = ledger or open_ledger(register)
    champion = moves.champion_version(client)
    same = champion is not None and champion.tags.get(registry.TAG + "key") == info["key"]
    compared = contracts.read_info(comparison, contracts.COMPARISON)
    if not same and compared["champion"] != _told(champion):
        raise InputError(
            f"the challenger was compared with champion {_name(compared['champion'])}, but the champion is now "
            f"{_name(_told(champion))}; start the run again: only the comparison is made anew"
        )
    case = Case(
        model=info["model"],
        version=info["version"],
        key=info["key"],
        mlflow_run_id=info["mlflow_run_id"],
        facts=info["facts"],
        commit=json.loads(commit),
        comparison=None if same else compared,
    )
    seen = ledger.entries()
    mode: Mode = "dry_run" if params.mode == "enabled" and not moves.may_move(client) else params.mode
    judged = weigh(client, seen, case, policy, params.policy, mode, recorded.PIPELINE)
    entry = ledger.append("decision", judged)
    try:
        if judged["decided"] == "promote":
            carry_out(client, ledger, case, entry, seen)
    except HeadMovedError:
        write_decision(client, ledger, entry)
        raise
    decision = write_decision(client, ledger, entry)
    with new_artifact(target, contracts.DECISION) as folder:
        write_json(folder / DECISION_FILE, decision)
    return decision


def weigh(
    client: MlflowClient,
    entries: Sequence[Entry],
    case: Case,
    policy: Policy,
    policy_file: str,
    mode: Mode,
    by: str,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """The decision on a candidate as the ledger is to hold it; nothing is written.

    Parameters
    ----------
    entries: of the ledger: looks at the test set, waivers and approvals come from there.
    by: dermaflow.recorded.PIPELINE or PERSON.
    also: people who approve of it now, beside those that the ledger knows.
    """
    in_use = moves.promotion_in_use(entries)
    approved = list(dict.fromkeys([*recorded.approvers(entries, case.key), *also]))
    if policy.four_eyes:
        approved = [name for name in approved if name != recorded.requester(entries, case.key)]
    test_set = case.facts["splits"]["test_set"]["digest"]
    looks = recorded.looks_at(entries, test_set)
    gates = gates_of(Registered(client), entries, case, policy, datetime.datetime.now(datetime.UTC).date())
    same = in_use is not None and in_use.body["candidate"]["key"] == case.key
    return {
        "decided": _decided(mode, gates, same=same, approved=len(approved) >= policy.approvals),
        "by": by,
        "mode": mode,
        "key": case.key,
        "candidate": case.to_dict(),
        "seen": len(entries),
        "commit": dict(case.commit),
        "champion_before": _told(moves.champion_version(client)),
        "comparison": None if case.comparison is None else dict(case.comparison),
        "gates": [gate.to_dict() for gate in gates],
        "refused_by": [gate.name for gate in gates if gate.verdict == "fail"],
        "waived": _waived(case.facts, policy, gates),
        "approvals": {
            "needed": policy.approvals,
            "given": approved,
            "four_eyes": policy.four_eyes,
            "requester": recorded.requester(entries, case.key),
        },
        "test_set": {"digest": test_set, "looks": looks, "max_looks": policy.max_looks},
        "policy": {"file": policy_file, "digest": policy_digest(policy), "content": policy.model_dump(mode="json")},
    }


def gates_of(records: Records, entries: Sequence[Entry], case: Case, policy: Policy, on: datetime.date) -> list[Gate]:
    """Every gate, by what the ledger held and on what day it was."""
    looks = recorded.looks_at(entries, case.facts["splits"]["test_set"]["digest"])
    tested = _tested_before(records, case, entries)
    waived = recorded.waivers(entries, case.key, on)
    return judge(case.facts, case.commit, case.comparison, tested, looks, policy, waived)


def carry_out(client: MlflowClient, ledger: Ledger, case: Case, decision: Entry, seen: Sequence[Entry]) -> ModelVersion:
    """Make a candidate champion: the ledger first, which says what is to be moved, then the copy, then the alias.

    Parameters
    ----------
    seen: the entries by which it was decided.

    Raises
    ------
    HeadMovedError
        when somebody else moved the champion since then, or is about to.
    """
    moves.require_settled(client, ledger, seen)
    in_use = moves.promotion_in_use(seen)
    body = {
        "model": registry.PRODUCTION_MODEL,
        "alias": registry.CHAMPION,
        "candidate": case.to_dict(),
        "from": None if in_use is None else {"entry": in_use.number, **in_use.body["candidate"]},
        "decision": decision.number,
        "policy": decision.body["policy"]["digest"],
        "waived": decision.body["waived"],
        "approved_by": decision.body["approvals"]["given"],
    }
    moves.record_move(ledger, "promotion", body, seen)
    champion = moves.settle(client, ledger)
    assert champion is not None
    return champion


def write_decision(client: MlflowClient, ledger: Ledger, entry: Entry) -> dict[str, Any]:
    """Write what the ledger says of the pipeline's decision on a candidate to its version's tag and into its evidence."""
    entries = ledger.entries()
    decision, candidate = decision_told(Registered(client), entries, entry), entry.body["candidate"]
    registration = recorded.registration_of(entries, candidate["key"])
    made = None if registration is None else moves.version_made_for(client, candidate["name"], registration)
    number = candidate["version"] if made is None else made.version  # another, where that one was deleted and made again
    client.set_model_version_tag(candidate["name"], str(number), DECISION_TAG, decision["outcome"])
    client.log_dict(candidate["mlflow_run_id"], decision, f"{registry.EVIDENCE_FOLDER}/{DECISION_FILE}")
    return decision


def decision_told(records: Records, entries: Sequence[Entry], entry: Entry) -> dict[str, Any]:
    """The content of decision.json, of a decision in the ledger and of what came of it."""
    promotion = next((found for found in entries if found.kind == "promotion" and found.body["decision"] == entry.number), None)
    body = {name: value for name, value in entry.body.items() if name not in ("decided", "key")}
    after = None if promotion is None else made_for(records, registry.PRODUCTION_MODEL, promotion)
    return {
        "outcome": recorded.outcome_of(entries, entry),
        **body,
        "champion_after": body["champion_before"] if promotion is None else _told(after),
        "decided_at": datetime.datetime.fromisoformat(entry.at).isoformat(timespec="seconds"),
        "decided_by": entry.actor,
        "ledger": {"decision": entry.number, "promotion": None if promotion is None else promotion.number},
    }


def _decided(mode: str, gates: list[Gate], *, same: bool, approved: bool) -> str:
    if mode == "disabled":
        return "disabled"
    if any(gate.verdict == "fail" for gate in gates):
        return "refused"
    if same:
        return "would_promote" if mode == "dry_run" else "already_champion"
    if not approved:
        return "awaiting_approval"
    return "would_promote" if mode == "dry_run" else "promote"


def _tested_before(records: Records, case: Case, entries: Sequence[Entry]) -> dict[str, int]:
    """Images of the candidate's train and validation parts that were in test of a registered version, by that version.

    Random splits have no test set that counts. Each test set holds the earlier ones, so that equal digests are read once.
    Only versions count that the ledger knew: a decision can be recomputed later.
    """
    known = {str(entry.number) for entry in entries if entry.kind == "registration"}
    digests = {
        version.tags.get(TEST_SET_TAG): version
        for version in records.versions(case.model)
        if version.tags.get(moves.ENTRY_TAG) in known
    }
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        ours = contracts.read_splits(records.evidence(case.mlflow_run_id, "splits", Path(scratch, "ours")))
        for number, (digest, version) in enumerate(digests.items()):
            if digest is None or digest == "none":
                continue
            tests = contracts.read_test_sets(records.evidence(version.run_id, "splits", Path(scratch, str(number))))
            seen = int(contracts.seen_before(tests, ours).sum())
            if seen:
                found[f"{version.name} version {version.version}"] = seen
    return found


def _name(told: dict[str, Any] | None) -> str:
    return f"version {told['version']}" if told else "none"


def _waived(facts: Mapping[str, Any], policy: Policy, gates: Sequence[Gate]) -> list[str]:
    """What the policy, or a person by a waiver, lets pass that would not have passed."""
    by_policy = ["not_synthetic"] if facts["synthetic"] and policy.allow_synthetic else []
    return [*by_policy, *(gate.name for gate in gates if gate.verdict == "waived")]


def _told(version: Version | None) -> dict[str, Any] | None:
    return None if version is None else {"name": version.name, "version": int(version.version)}
