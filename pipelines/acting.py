"""What a person does to the registry: promote, waive a gate, roll back. Each is in the ledger before it is done."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.promote.core import Case, Mode, carry_out, weigh
from dermaflow import champion as moves
from dermaflow import recorded, registry
from dermaflow.access import open_ledger, open_registry
from dermaflow.errors import GateError, InputError
from dermaflow.ledger import Entry, Ledger, account
from dermaflow.params import Params
from dermaflow.policy import Policy, read_policy
from dermaflow.records import Registered
from dermaflow.refusals import APPROVER, refusals_told
from pipelines.judging import registered_version
from pipelines.version_checks import check_version, compared_again, origin

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE = f"{registry.CANDIDATE_MODEL}@{registry.CHALLENGER}"


@dataclass(frozen=True)
class Place:
    """A registry and its ledger."""

    client: MlflowClient
    ledger: Ledger

    @classmethod
    def of(cls, params: Params) -> Place:
        """The one that parameters name."""
        return cls(open_registry(params.register_.tracking_uri), open_ledger(params.register_))


@refusals_told(APPROVER)
def promote(model: str, params: Params, *, approver: str | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Judge a registered candidate again, from its evidence, and make it champion where the policy lets it be.

    Parameters
    ----------
    model: NAME@ALIAS or NAME/VERSION of a candidate.
    approver: who agrees; kept in the ledger, whether the others whom the policy asks for have agreed by now or not.
    dry_run: tell what would be done, and write nothing.

    Returns
    -------
    The decision as the ledger holds it, with outcome (promoted, already_champion, awaiting_approval, refused, disabled;
    would_promote of a dry run), champion, and entries: the numbers of what was written.

    Raises
    ------
    GateError
        when the evidence does not hold.
    InputError
        when there is no such version, or the policy does not take the approver.
    HeadMovedError
        when somebody else moves the champion at the same time.
    """
    place, policy = Place.of(params), read_policy(Path(params.promote.policy))
    seen = place.ledger.entries()
    version, registration = _candidate(place, seen, model, params)
    key = registration.body["key"]
    if approver is not None:
        _refuse_approver(approver, seen, key, policy)
    mode: Mode = "disabled" if params.promote.mode == "disabled" else "dry_run" if dry_run else "enabled"
    if mode == "enabled":
        moves.require_mover(place.client)
    case = _case(place, seen, version, registration)
    also = [approver] if approver else []
    judged = weigh(place.client, seen, case, policy, params.promote.policy, mode, recorded.PERSON, also)
    if dry_run or mode == "disabled":
        return {**judged, "outcome": judged["decided"], "champion": judged["champion_before"], "entries": []}
    written = [_approve(place.ledger, approver, case)] if approver else []
    decision = place.ledger.append("decision", judged)
    if judged["decided"] == "promote":
        champion = carry_out(place.client, place.ledger, case, decision, seen)
    else:
        champion = moves.champion_version(place.client)
    entries = place.ledger.entries()
    promotions = [entry for entry in entries if entry.kind == "promotion" and entry.body["decision"] == decision.number]
    return {
        **judged,
        "outcome": recorded.outcome_of(entries, decision),
        "champion": None if champion is None else {"name": champion.name, "version": int(champion.version)},
        "entries": [entry.number for entry in (*written, decision, *promotions)],
    }


@refusals_told(APPROVER)
def waive(gate: str, model: str, reason: str, until: str, params: Params) -> Entry:
    """Let a gate not count for one version until a day, by the ledger; the next decision on it heeds that.

    Parameters
    ----------
    until: the last day, as 2027-01-31.

    Raises
    ------
    InputError
        when the policy lets nobody waive the gate, there is no reason, or the day is none or gone.
    """
    policy = read_policy(Path(params.promote.policy))
    if gate not in policy.waivable:
        raise InputError(
            f"GATE {gate!r} can not be waived; {params.promote.policy} allows: {', '.join(policy.waivable) or 'none'}"
        )
    _require_reason(reason)
    day = _day(until)
    place = Place.of(params)
    version, registration = _candidate(place, place.ledger.entries(), model, params)
    moves.require_mover(place.client)
    body = {
        "gate": gate,
        "model": version.name,
        "version": int(version.version),
        "key": registration.body["key"],
        "reason": reason.strip(),
        "until": day.isoformat(),
    }
    return place.ledger.append("waiver", body)


@refusals_told(APPROVER)
def roll_back(to: int | None, reason: str, params: Params) -> dict[str, Any]:
    """Make an earlier champion champion again.

    Parameters
    ----------
    to: version of the model dermaflow; None takes the one that the champion replaced.

    Returns
    -------
    before and champion (name and version), and entry, the number of what was written.

    Raises
    ------
    InputError
        when there is no earlier champion, or the version is none that the ledger promoted.
    HeadMovedError
        when somebody else moves the champion at the same time.
    """
    _require_reason(reason)
    place = Place.of(params)
    moves.require_mover(place.client)
    seen = place.ledger.entries()
    moves.require_settled(place.client, place.ledger, seen)
    in_use = moves.promotion_in_use(seen)
    if in_use is None:
        raise InputError("there is no champion, so nothing can be rolled back")
    target = moves.promotion_before(seen) if to is None else _promotion_of(place.client, seen, to)
    if target is None:
        raise InputError(f"{_copied(in_use)} is the first champion; say which version to go to: --to VERSION")
    if target == in_use:
        raise InputError(f"version {to} of {registry.PRODUCTION_MODEL} is champion already")
    before = moves.champion_version(place.client)
    body = {
        "model": registry.PRODUCTION_MODEL,
        "alias": registry.CHAMPION,
        "from": {"entry": in_use.number, **in_use.body["candidate"]},
        "to": {"entry": target.number, **target.body["candidate"]},
        "reason": reason.strip(),
    }
    entry = moves.record_move(place.ledger, "rollback", body, seen)
    champion = moves.settle(place.client, place.ledger)
    assert champion is not None
    return {"before": _named(before), "champion": _named(champion), "entry": entry.number}


def shown(model: str, params: Params) -> dict[str, Any]:
    """A version and everything that the ledger says of it, as `dermaflow models show --json` prints it."""
    place = Place.of(params)
    found = registered_version(model, params)
    if found is None:
        raise InputError(f"MODEL {model!r} is neither NAME@ALIAS nor NAME/VERSION; for example {CANDIDATE}")
    version, entries = found[1], place.ledger.entries()
    registration, promotion = origin(entries, version)
    key = None if registration is None else str(registration.body["key"])
    test_set = None if registration is None else registration.body["digests"]["test_set"]
    told = [] if key is None else recorded.of_model(entries, key)
    decisions = [] if key is None else recorded.decisions(entries, key)
    return {
        "name": version.name,
        "version": int(version.version),
        "aliases": sorted(alias for alias, at in _aliases(place.client, version.name).items() if at == str(version.version)),
        "in_ledger": registration is not None,
        "copied_from": None if promotion is None else _copied(promotion),
        "registered": None if registration is None else {"at": registration.at, "by": registration.actor},
        "digests": None if registration is None else registration.body["digests"],
        "looks": None if test_set is None else recorded.looks_at(entries, test_set),
        "approved_by": [] if key is None else recorded.approvers(entries, key),
        "waivers": {} if key is None else recorded.waivers(entries, key, _today()),
        "gates": decisions[-1].body["gates"] if decisions else [],
        "tags": dict(version.tags),
        "entries": [
            {"number": entry.number, "kind": entry.kind, "at": entry.at, "actor": entry.actor, "says": sentence(entry, entries)}
            for entry in told
        ],
    }


def sentence(entry: Entry, entries: Sequence[Entry]) -> str:
    """What an entry says, for a person."""
    body = entry.body
    match entry.kind:
        case "registration":
            told = f"registered {body['architecture']} of run {body['run_id']}"
        case "evaluation":
            told = f"{', '.join(body['models'])} judged on test set {body['test_set'][:19]} ({body['images']} images)"
        case "decision":
            by = f" by {', '.join(body['refused_by'])}" if body["refused_by"] else ""
            outcome = recorded.outcome_of(entries, entry).replace("_", " ")
            told = f"{outcome}{by}, asked for by {body['by']} ({body['mode']})"
        case "approval":
            told = f"approved by {body['approver']}" + (", who registered it too" if body["same_person"] else "")
        case "waiver":
            told = f"gate {body['gate']} waived until {body['until']}: {body['reason']}"
        case "promotion":
            told = f"{_copied(entry)} promoted, by decision {body['decision']}"
        case "rollback":
            back = body["to"]
            told = f"rolled back to {back['name']} version {back['version']} (entry {back['entry']}): {body['reason']}"
        case _:
            told = f"mended: {', '.join(finding['name'] for finding in body['findings'])}"
    return told


def _candidate(place: Place, entries: Sequence[Entry], model: str, params: Params) -> tuple[ModelVersion, Entry]:
    """A candidate by its name, and its registration."""
    found = registered_version(model, params)
    if found is None:
        raise InputError(f"MODEL {model!r} is neither NAME@ALIAS nor NAME/VERSION; for example {CANDIDATE}")
    version = found[1]
    if version.name != registry.CANDIDATE_MODEL:
        raise InputError(
            f"{version.name} version {version.version} is no candidate; name one of {registry.CANDIDATE_MODEL}, or go back to "
            "an earlier champion with: dermaflow rollback --to VERSION"
        )
    registration, _ = origin(entries, version)
    if registration is None:
        raise InputError(
            f"{version.name} version {version.version} is not in the ledger {place.ledger.place}: nobody can say what it is. "
            "Register it by a run of the pipeline"
        )
    return version, registration


def _case(place: Place, entries: Sequence[Entry], version: ModelVersion, registration: Entry) -> Case:
    """A candidate with the figures that its predictions give now; its evidence has to hold."""
    findings, facts = check_version(Registered(place.client), entries, version, None)
    findings = [finding for finding in findings if finding.mend is None]
    if findings or facts is None:
        told = "\n".join(f"  {finding.name}: {finding.detail}" for finding in findings) or "  its predictions can not be had"
        raise GateError(f"the evidence of {version.name} version {version.version} does not hold; nothing was written:\n{told}")
    return Case(
        model=version.name,
        version=int(version.version),
        key=registration.body["key"],
        mlflow_run_id=registration.body["mlflow_run_id"],
        facts=facts,
        commit=registration.body["commit"],
        comparison=compared(version, registration, facts, place, entries),
    )


def compared(
    version: ModelVersion, registration: Entry, facts: dict[str, Any], place: Place, entries: Sequence[Entry]
) -> dict[str, Any] | None:
    """The comparison with the champion of now; where the pipeline compared it with that very one, that comparison counts."""
    in_use = moves.promotion_in_use(entries)
    if in_use is not None and in_use.body["candidate"]["key"] == registration.body["key"]:
        return None
    champion = _named(moves.champion_version(place.client))
    if champion is None or facts["comparison"]["champion"] == champion:
        return dict(facts["comparison"])
    return compared_again(champion, version, facts, Registered(place.client))


def _refuse_approver(approver: str, entries: Sequence[Entry], key: str, policy: Policy) -> None:
    if not approver.strip():
        raise InputError("--approver: give the name of the person who agrees")
    if policy.four_eyes and approver == recorded.requester(entries, key):
        raise InputError(
            f"--approver {approver}: this account registered the model, and the policy asks for four eyes (four_eyes); "
            "somebody else has to agree"
        )


def _approve(ledger: Ledger, approver: str, case: Case) -> Entry:
    """An approval; one of the same person for the same model stands for a second."""
    body = {
        "model": case.model,
        "version": case.version,
        "key": case.key,
        "approver": approver,
        "same_person": approver == recorded.requester(ledger.entries(), case.key),
        "named_by_themselves": approver == account(),
    }

    def same(entries: Sequence[Entry]) -> Entry | None:
        return next(
            (
                entry
                for entry in entries
                if entry.kind == "approval" and (entry.body["key"], entry.body["approver"]) == (case.key, approver)
            ),
            None,
        )

    return ledger.append("approval", body, unless=same)


def _promotion_of(client: MlflowClient, entries: Sequence[Entry], version: int) -> Entry:
    """The promotion that made a version of the model dermaflow."""
    for entry in entries:
        if entry.kind == "promotion":
            made = moves.version_made_for(client, registry.PRODUCTION_MODEL, entry)
            if made is not None and int(made.version) == version:
                return entry
    raise InputError(
        f"--to {version}: the ledger promoted no such version of {registry.PRODUCTION_MODEL}; look with: dermaflow models"
    )


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise InputError("--reason: say why; the ledger keeps it")


def _day(text: str) -> datetime.date:
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError as error:
        raise InputError(f"--until {text!r} is no day; write it as {_today().isoformat()}") from error
    if day < _today():
        raise InputError(f"--until {text} is gone already; a waiver ends on a day to come")
    return day


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def _aliases(client: MlflowClient, model: str) -> dict[str, str]:
    return {name: str(at) for name, at in client.get_registered_model(model).aliases.items()}


def _copied(promotion: Entry) -> str:
    candidate = promotion.body["candidate"]
    return f"{candidate['name']} version {candidate['version']}"


def _named(version: ModelVersion | None) -> dict[str, Any] | None:
    return None if version is None else {"name": version.name, "version": int(version.version)}
