"""What the ledger says of a model and of a test set: looked up by key, digest or number, never in MLflow."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from dermaflow.ledger import Entry

PIPELINE, PERSON = "pipeline", "person"  # by whom a decision was asked for


def registration_of(entries: Sequence[Entry], key: str) -> Entry | None:
    """The registration of a model and its evidence, by their key; the first counts."""
    return first_with_key(entries, "registration", key)


def registrations(entries: Sequence[Entry]) -> dict[str, Entry]:
    """The registration of every model by its key, as `registration_of` finds each: for who asks for many."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.kind == "registration":
            found.setdefault(str(entry.body["key"]), entry)
    return found


def first_with_key(entries: Sequence[Entry], kind: str, key: str) -> Entry | None:
    """The first entry of a kind whose body has a key."""
    return next((entry for entry in entries if entry.kind == kind and entry.body["key"] == key), None)


def looks_at(entries: Sequence[Entry], test_set: str) -> int:
    """How many models were judged on a test set, by its digest."""
    return sum(
        len(entry.body["models"]) for entry in entries if entry.kind == "evaluation" and entry.body["test_set"] == test_set
    )


def approvers(entries: Sequence[Entry], key: str) -> list[str]:
    """Who approved of a model, in the order in which they did; each once."""
    said = [entry.body["approver"] for entry in entries if entry.kind == "approval" and entry.body["key"] == key]
    return list(dict.fromkeys(said))


def requester(entries: Sequence[Entry], key: str) -> str | None:
    """Who registered a model: by four eyes, nobody who may approve of it."""
    found = registration_of(entries, key)
    return None if found is None else found.actor


def waivers(entries: Sequence[Entry], key: str, on: datetime.date) -> dict[str, str]:
    """What was said of the gates that are waived for a model on a day; of a gate the last counts, until its own day."""
    last = {entry.body["gate"]: entry for entry in entries if entry.kind == "waiver" and entry.body["key"] == key}
    return {
        gate: f"waived until {entry.body['until']} by {entry.actor} (entry {entry.number}): {entry.body['reason']}"
        for gate, entry in last.items()
        if on <= datetime.date.fromisoformat(entry.body["until"])
    }


def decisions(entries: Sequence[Entry], key: str, by: str | None = None) -> list[Entry]:
    """The decisions on a model, in order; `by` the pipeline or a person, or both."""
    return [
        entry for entry in entries if entry.kind == "decision" and entry.body["key"] == key and by in (None, entry.body["by"])
    ]


def outcome_of(entries: Sequence[Entry], decision: Entry) -> str:
    """What came of a decision: to promote is told from having promoted, which is another entry."""
    if decision.body["decided"] != "promote":
        return str(decision.body["decided"])
    done = any(entry.kind == "promotion" and entry.body["decision"] == decision.number for entry in entries)
    return "promoted" if done else "would_promote"


def challenger_key(entries: Sequence[Entry]) -> str | None:
    """The key of the model that the pipeline registered, or came to again, last."""

    def counts(entry: Entry) -> bool:
        return entry.kind == "registration" or (entry.kind == "decision" and entry.body["by"] == PIPELINE)

    found = next((entry for entry in reversed(entries) if counts(entry)), None)
    return None if found is None else str(found.body["key"])


def of_model(entries: Sequence[Entry], key: str) -> list[Entry]:
    """Everything that the ledger says of a model, moves from and to it among it."""

    def concerns(body: Mapping[str, Any]) -> bool:
        return key in (body.get("key"), *(body[name].get("key") for name in ("candidate", "from", "to") if body.get(name)))

    return [entry for entry in entries if concerns(entry.body)]
