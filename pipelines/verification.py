"""`dermaflow verify`: the ledger's chain, the registry as a whole against it, versions one by one; mending what was cut short.

The ledger decides: nothing is mended by what MLflow says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.promote.core import DECISION_TAG, write_decision
from components.register.core import settle_candidate
from dermaflow import champion as moves
from dermaflow import recorded, registry
from dermaflow.access import open_ledger, open_registry
from dermaflow.errors import InputError
from dermaflow.ledger import Entry, Head, Ledger, head_of, read_anchor, unanchored
from dermaflow.params import Params
from dermaflow.policy import Policy, read_policy
from dermaflow.records import Records, Registered, Version, made_for, version_with
from dermaflow.refusals import ADMINISTRATOR, refusals_told
from pipelines.judging import registered_version
from pipelines.replay import Again
from pipelines.version_checks import Finding, check_version, origin

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ALIASES = {registry.PRODUCTION_MODEL: registry.CHAMPION, registry.CANDIDATE_MODEL: registry.CHALLENGER}
MODELS = tuple(ALIASES)


@dataclass(frozen=True)
class Verified:
    """What was looked at and what was found.

    Attributes
    ----------
    place: where the ledger lies; head: of the chain as far as it is sound.
    versions: those that were looked at one by one.
    mended: findings that are gone since `--repair`.
    again: what was made again, by `--replay` or `--rebuild`.
    """

    place: str
    entries: int
    head: Head
    anchor: str | None
    versions: list[str]
    findings: list[Finding]
    mended: list[Finding]
    again: list[Again] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all holds."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """As `dermaflow verify --json` prints it."""
        return {
            "ok": self.ok,
            "ledger": {"place": self.place, "entries": self.entries, "head": vars(self.head)},
            "anchor": self.anchor,
            "versions": self.versions,
            "findings": [finding.to_dict() for finding in self.findings],
            "mended": [finding.to_dict() for finding in self.mended],
            "again": [made.to_dict() for made in self.again],
        }


def verify(
    models: Sequence[str],
    params: Params,
    *,
    anchor: Path | None = None,
    every: bool = False,
    repair: bool = False,
    make_again: Sequence[Callable[[MlflowClient, ModelVersion], Again]] = (),
) -> Verified:
    """Check ledger, registry and versions; with `repair`, let the registry follow the ledger first where it was cut short.

    Parameters
    ----------
    models: NAME@ALIAS or NAME/VERSION; none: the champion and the challenger.
    anchor: a file that holds an earlier head of the ledger.
    every: look at every version of both models.
    make_again: `pipelines.replay.replay` and `rebuild`, with the place of the images; done to each version that is looked at.

    Raises
    ------
    InputError
        when the registry does not answer, or there is no such version.
    """
    client, ledger = open_registry(params.register_.tracking_uri), open_ledger(params.register_)
    found = _verified(client, ledger, models, params, anchor, every=every)
    if repair and any(finding.mend for finding in found.findings):
        _repair(client, ledger, [finding for finding in found.findings if finding.mend])
        after = _verified(client, ledger, models, params, anchor, every=every)
        found = replace(after, mended=[finding for finding in found.findings if finding not in after.findings])
    if not make_again:
        return found
    versions = [client.get_model_version(*name.split("/")) for name in found.versions]
    again = [make(client, version) for version in versions for make in make_again]
    return replace(found, again=again, findings=found.findings + [finding for made in again for finding in made.findings])


def _verified(
    client: MlflowClient, ledger: Ledger, models: Sequence[str], params: Params, anchor: Path | None, *, every: bool
) -> Verified:
    entries, faults = ledger.look()
    found = [Finding(f"ledger_{fault.name}", f"ledger entry {fault.number}", fault.detail) for fault in faults]
    if faults:
        entries = entries[: faults[0].number - 1]
    unheld = unanchored(entries, read_anchor(anchor)) if anchor and not faults else None
    found += [Finding("ledger_anchor", "ledger", unheld)] if unheld else []
    records = Registered(client)
    versions = [version for model in MODELS for version in records.versions(model)]
    chosen = _chosen(records, versions, models, params, every=every)
    if not faults:  # with a ledger that does not hold there is nothing to hold the registry against
        found += _registry_findings(records, entries, versions)
        policy, in_use = _policy(params), {_name(version) for version in _in_use(records)}
        for version in chosen:  # what is not in use was right to be judged by the policy of its time
            found += check_version(records, entries, version, policy if _name(version) in in_use else None)[0]
    return Verified(
        place=ledger.place,
        entries=len(entries),
        head=head_of(entries),
        anchor=None if anchor is None else str(anchor),
        versions=[_name(version) for version in chosen],
        findings=found,
        mended=[],
    )


def _chosen(
    records: Records, versions: Sequence[Version], models: Sequence[str], params: Params, *, every: bool
) -> list[Version]:
    if every:
        return list(versions)
    if models:
        named = [registered_version(model, params) for model in models]
        unknown = [model for model, found in zip(models, named, strict=True) if found is None]
        if unknown:
            raise InputError(
                f"MODEL {unknown[0]!r} is neither NAME@ALIAS nor NAME/VERSION; for example {registry.PRODUCTION_MODEL}@champion"
            )
        return [found[1] for found in named if found is not None]
    return _in_use(records)


def _in_use(records: Records) -> list[Version]:
    """The champion and the challenger, as their aliases have it."""
    found = [version_with(records, model, alias) for model, alias in ALIASES.items()]
    return [version for version in found if version is not None]


def _policy(params: Params) -> Policy | None:
    path = Path(params.promote.policy)
    return read_policy(path) if path.is_file() else None


def _registry_findings(records: Records, entries: Sequence[Entry], versions: Sequence[Version]) -> Iterator[Finding]:
    """Both models as a whole: every version comes from an entry, every entry has its version, aliases are where they should."""
    first: dict[tuple[str, str], Version] = {}
    registrations = recorded.registrations(entries)
    for version in versions:
        counts = first.setdefault((version.name, version.tags.get(moves.ENTRY_TAG, "")), version)
        if counts is not version or origin(entries, version, registrations)[0] is None:
            yield Finding("unknown_version", _name(version), "no entry of the ledger made it: it was put there by hand")
    for entry in entries:
        model = {"registration": registry.CANDIDATE_MODEL, "promotion": registry.PRODUCTION_MODEL}.get(entry.kind)
        if model is not None and (model, str(entry.number)) not in first:
            told = f"entry {entry.number} of the ledger ({entry.kind}) has no version of {model}"
            yield Finding("version_missing", _where(entry), told, "the version is made")
    yield from champion_findings(records, entries)
    yield from _challenger_findings(records, entries, first)


def champion_findings(records: Records, entries: Sequence[Entry]) -> Iterator[Finding]:
    """Whether the champion is the version that the ledger says."""
    due, now = moves.promotion_in_use(entries), version_with(records, registry.PRODUCTION_MODEL, registry.CHAMPION)
    wanted = None if due is None else made_for(records, registry.PRODUCTION_MODEL, due)
    if _number(now) != _number(wanted) or (due is not None and wanted is None):
        where = f"{registry.PRODUCTION_MODEL}@{registry.CHAMPION}"
        detail = f"the alias is on {moves.told(now)}, but by the ledger it is {moves.in_ledger(due, wanted)}"
        yield Finding("champion_moved", where, detail, "the alias is set to what the ledger says")


def _challenger_findings(
    records: Records, entries: Sequence[Entry], first: dict[tuple[str, str], Version]
) -> Iterator[Finding]:
    key = recorded.challenger_key(entries)
    entry = None if key is None else recorded.registration_of(entries, key)
    wanted = None if entry is None else first.get((registry.CANDIDATE_MODEL, str(entry.number)))
    now = version_with(records, registry.CANDIDATE_MODEL, registry.CHALLENGER)
    if _number(now) != _number(wanted):
        where = f"{registry.CANDIDATE_MODEL}@{registry.CHALLENGER}"
        detail = f"the alias is on {moves.told(now)}, but by the ledger on {moves.told(wanted)}"
        yield Finding("challenger_moved", where, detail, "the alias is set to what the ledger says")


@refusals_told(ADMINISTRATOR)
def _repair(client: MlflowClient, ledger: Ledger, findings: Sequence[Finding]) -> None:
    """Let the registry follow the ledger, which is told first what was found."""
    ledger.append("repair", {"findings": [finding.to_dict() for finding in findings]})
    entries, undecided = ledger.entries(), {item.where for item in findings if item.name in ("decision_differs", "tag_changed")}
    missing = {item.where for item in findings if item.name == "version_missing"}
    for entry in entries:
        if entry.kind == "registration":
            made = settle_candidate(client, entry)
            undecided |= {_name(made)} if _where(entry) in missing else set()
        elif entry.kind == "promotion":
            moves.settle_copy(client, entry)
    key = recorded.challenger_key(entries)
    registration = None if key is None else recorded.registration_of(entries, key)
    if registration is not None:
        version = settle_candidate(client, registration)
        moves.point(client, registry.CANDIDATE_MODEL, registry.CHALLENGER, version)
    elif registry.version_of(client, registry.CANDIDATE_MODEL, registry.CHALLENGER) is not None:
        client.delete_registered_model_alias(registry.CANDIDATE_MODEL, registry.CHALLENGER)
    moves.settle(client, ledger)
    for name in sorted(undecided):
        _rewrite_decision(client, ledger, entries, name)


def _rewrite_decision(client: MlflowClient, ledger: Ledger, entries: Sequence[Entry], name: str) -> None:
    model, _, number = name.partition("/")
    version = client.get_model_version(model, number)
    registration, _ = origin(entries, version)
    if registration is None:
        return
    of_pipeline = recorded.decisions(entries, registration.body["key"], recorded.PIPELINE)
    if of_pipeline:
        write_decision(client, ledger, of_pipeline[-1])
    elif DECISION_TAG in version.tags:  # nobody decided on it
        client.delete_model_version_tag(model, number, DECISION_TAG)


def _where(entry: Entry) -> str:
    return f"ledger entry {entry.number}"


def _name(version: Version) -> str:
    return f"{version.name}/{version.version}"


def _number(version: Version | None) -> str | None:
    return None if version is None else str(version.version)
