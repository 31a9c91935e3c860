"""The dossier of a model version: what it says, by a published schema, and how it is gathered from the files that lie in it.

A dossier is a folder that is whole or absent, sealed like every artifact:

    dossier.html    one page for a person: what it is, what it was made from, who decided, by which rules, and so on
    dossier.json    the same for a program, by dossier.schema.json
    ledger/         every entry, byte for byte
    evidence/       the version's evidence, byte for byte
    others/         what the checks read of other versions: splits, and predictions that it was compared with
    registry.json   what MLflow said of the version and its run, and of other versions as far as checks read it

Page and JSON follow from the rest, so that `dermaflow verify DIR` makes them again and compares.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from components.promote.core import TEST_SET_TAG
from components.register.bundle import SCHEMA, Bundle, Count, Decided, Digest, NamedVersion, Part
from components.register.core import BUNDLE
from components.report.page import render
from components.report.pictures import Picture, embed
from dermaflow import champion as moves
from dermaflow import recorded, registry
from dermaflow.artifacts import ARTIFACT_FILE, file_digest, read_json
from dermaflow.classes import CLASS_TITLES
from dermaflow.contracts import METRICS_FILE
from dermaflow.errors import InputError
from dermaflow.figures import SUBGROUPS
from dermaflow.ledger import Entry, head_of
from dermaflow.records import Records, Run, Version, made_for
from pipelines.acting import sentence
from pipelines.version_checks import origin

KIND = "dossier"  # of the artifact
FORM = 1
PAGE, DOCUMENT, REGISTRY = "dossier.html", "dossier.json", "registry.json"
LEDGER, EVIDENCE, OTHERS = "ledger", "evidence", "others"
SCHEMA_FILE = "dossier.schema.json"
TEMPLATE = "dossier.html.jinja"
_MADE_LAST = (PAGE, DOCUMENT, ARTIFACT_FILE)  # from the rest
_OF_OTHERS = (moves.ENTRY_TAG, TEST_SET_TAG)  # tags of other versions that checks read
Info = dict[str, Any]


class Made(Part):
    """How the dossier was made."""

    at: str
    """In UTC, by the clock of whoever made it."""
    by: str
    """Account."""
    asked: str
    """The version as it was asked for."""
    registry: str
    page: Digest
    """Of the templates that the page was made with."""


class Registered(Part):
    """The registration in the ledger."""

    entry: int
    at: str
    by: str


class Promoted(Part):
    """The promotion that made a version of the model dermaflow."""

    entry: int
    at: str
    by: str
    decision: int
    candidate: NamedVersion


class Subject(Part):
    """The version that the dossier is of, as MLflow had it."""

    name: str
    version: int
    aliases: list[str]
    is_champion: bool
    """Whether the ledger has it in use."""
    registered: Registered
    promoted: Promoted | None
    """null of a candidate."""
    mlflow_run_id: str
    source: str
    card: str
    """The model card, Markdown."""
    tags: dict[str, str]


class Told(Part):
    """An entry of the ledger, for a person."""

    entry: int
    at: str
    by: str
    kind: str
    says: str


class Move(Part):
    """A move of the alias champion: of all that there were."""

    entry: int
    at: str
    by: str
    kind: Literal["promotion", "rollback"]
    candidate: NamedVersion
    """Whose copy became champion."""
    version: int | None
    """Of the model dermaflow; null where the copy is not there any more."""
    replaced: NamedVersion | None
    """The candidate whose copy was champion before."""
    decision: int | None
    """Entry of the decision; null of a rollback."""
    approved_by: list[str]
    waived: list[str]
    reason: str | None
    """Of a rollback."""


class Decision(Decided):
    """A decision on this model, with what came of it."""

    entry: int
    at: str
    actor: str
    """Account that wrote it."""
    outcome: str
    decisive: bool
    """Whether this version stands as it does by this one."""


class Approval(Part):
    """Somebody agreed."""

    entry: int
    at: str
    by: str
    """Account that wrote it."""
    approver: str
    same_person: bool
    """Whether that account had registered the model."""


class Waiver(Part):
    """A gate that somebody let not count, until a day."""

    entry: int
    at: str
    by: str
    gate: str
    reason: str
    until: str


class Looks(Part):
    """How many models were judged on its test set, this one among them."""

    test_set: Digest
    models: Count


class Head(Part):
    """The last entry's number and digest, which stand for all entries before it."""

    number: Count
    digest: Digest


class LedgerTold(Part):
    """The ledger that the dossier holds a copy of."""

    place: str
    entries: Count
    head: Head


class Found(Part):
    """What did not hold when the dossier was made, as `dermaflow verify` names it."""

    name: str
    where: str
    detail: str
    mend: str | None


class Dossier(Part):
    """A dossier, as dossier.json holds it."""

    model_config = ConfigDict(title="Dermaflow dossier")

    schema_: Annotated[Literal[1], Field(alias="schema")]
    made: Made
    version: Subject
    findings: list[Found]
    evidence: Bundle
    decisions: list[Decision]
    approvals: list[Approval]
    waivers: list[Waiver]
    looks: Looks
    history: list[Move]
    """The complete history of the alias champion."""
    entries: list[Told]
    """Everything that the ledger says of this model."""
    ledger: LedgerTold
    files: dict[str, Digest]
    """Digest of each file that page and document are made from; the ledger's entries are held by its head."""


def schema() -> Info:
    """The published schema of a dossier: JSON Schema, draft 2020-12."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Dossier.model_json_schema(by_alias=True)}


@dataclass
class StoredVersion:
    """A version as a dossier keeps it; of other versions than its own without what checks do not read."""

    name: str
    version: str
    tags: Mapping[str, str]
    description: str | None
    source: str | None
    run_id: str


class Stored:
    """The records that a dossier holds: `dermaflow.records.Records` of its own files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: Info = read_json(folder / REGISTRY)

    @property
    def subject(self) -> Version:
        """The version that the dossier is of."""
        name, number = self.told["subject"]["name"], str(self.told["subject"]["version"])
        return next(version for version in self.versions(name) if version.version == number)

    def versions(self, model: str) -> Sequence[Version]:
        """Of a model, the first one first."""
        return [StoredVersion(**row) for row in self.told["versions"] if row["name"] == model]

    def aliases(self, model: str) -> Mapping[str, str]:
        """As they were when the dossier was made."""
        found: dict[str, str] = self.told["aliases"][model]
        return found

    def run(self, run_id: str) -> Run:
        """The subject's run; InputError of any other."""
        if run_id != self.told["run"]["id"]:
            raise InputError(f"MLflow run {run_id} is not in the dossier")
        return Run(self.told["run"]["stage"], self.told["run"]["metrics"], self.told["run"]["params"])

    def evidence(self, run_id: str, place: str, scratch: Path) -> Path:  # noqa: ARG002 - it lies here already
        """Where it lies in the dossier."""
        found = place_of(self.folder, run_id, self.told["run"]["id"]) / place
        if not found.exists():
            raise InputError(f"{found.relative_to(self.folder)} is not in the dossier")
        return found

    def model_files(self, version: Version) -> Mapping[str, str]:
        """The digests that the model's files had when the dossier was made: the files themselves are not in it."""
        if (version.name, str(version.version)) != (self.subject.name, str(self.subject.version)):
            raise InputError(f"the model of {version.name} version {version.version} is not in the dossier")
        found: dict[str, str] = self.told["model_files"]
        return found


class Recording:
    """Records of a registry that lay everything that is read of them into a dossier's folder."""

    def __init__(self, records: Records, version: Version, folder: Path) -> None:
        self._records, self._version, self._folder = records, version, folder

    def versions(self, model: str) -> Sequence[Version]:
        """Of the registry."""
        return self._records.versions(model)

    def aliases(self, model: str) -> Mapping[str, str]:
        """Of the registry."""
        return self._records.aliases(model)

    def run(self, run_id: str) -> Run:
        """Of the registry."""
        return self._records.run(run_id)

    def model_files(self, version: Version) -> Mapping[str, str]:
        """Of the registry."""
        return self._records.model_files(version)

    def evidence(self, run_id: str, place: str, scratch: Path) -> Path:
        """Fetched once, and left in the dossier."""
        target = place_of(self._folder, run_id, self._version.run_id) / place
        if not target.exists():
            fetched = self._records.evidence(run_id, place, scratch / "fetched")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(fetched, target)
        return target

    def registry(self, models: Sequence[str]) -> Info:
        """What `Stored` reads: registry.json."""
        own, run = self._version, self.run(self._version.run_id)
        return {
            "subject": {"name": own.name, "version": int(own.version)},
            "aliases": {model: dict(self.aliases(model)) for model in models},
            "versions": [self._row(version) for model in models for version in self.versions(model)],
            "run": {"id": own.run_id, "stage": run.stage, "metrics": dict(run.metrics), "params": dict(run.params)},
            "model_files": dict(self.model_files(own)),
        }

    def _row(self, version: Version) -> Info:
        is_own = (version.name, str(version.version)) == (self._version.name, str(self._version.version))
        tags = {name: value for name, value in version.tags.items() if is_own or name in _OF_OTHERS}
        return {
            "name": version.name,
            "version": str(version.version),
            "tags": tags,
            "description": version.description if is_own else None,
            "source": version.source if is_own else None,
            "run_id": version.run_id,
        }


def place_of(folder: Path, run_id: str, own: str) -> Path:
    """Where the evidence of a run lies in a dossier: that of its own version, or of another."""
    return folder / EVIDENCE if run_id == own else folder / OTHERS / run_id


def gather(folder: Path, entries: Sequence[Entry], place: str, made: Mapping[str, Any], findings: Sequence[Info]) -> Info:
    """The content of dossier.json, from the other files of the dossier.

    Parameters
    ----------
    entries: of its ledger; place: where that lay.
    made: fields of `Made`; findings: of `Found`.

    Raises
    ------
    InputError
        when the evidence was registered before it had a schema, or the ledger does not know the version.
    """
    records = Stored(folder)
    version, bundle = records.subject, read_json(folder / EVIDENCE / BUNDLE)
    if bundle.get("schema") != SCHEMA:
        raise InputError(
            f"{version.name} version {version.version} was registered with evidence of form {bundle.get('schema')}; a dossier "
            f"needs form {SCHEMA}. Run the pipeline once more: the same model is registered anew, with evidence of that form"
        )
    registration, promotion = known(records, entries, version)
    key = str(registration.body["key"])
    test_set = registration.body["digests"]["test_set"]
    return {
        "schema": FORM,
        "made": dict(made),
        "version": _subject(records, entries, version, registration, promotion),
        "findings": [dict(finding) for finding in findings],
        "evidence": bundle,
        "decisions": _decisions(entries, key, promotion),
        "approvals": [
            _by(entry, "approver", "same_person") for entry in entries if entry.kind == "approval" and entry.body["key"] == key
        ],
        "waivers": [
            _by(entry, "gate", "reason", "until") for entry in entries if entry.kind == "waiver" and entry.body["key"] == key
        ],
        "looks": {"test_set": test_set, "models": recorded.looks_at(entries, test_set)},
        "history": history(records, entries),
        "entries": [
            {"entry": entry.number, "at": entry.at, "by": entry.actor, "kind": entry.kind, "says": sentence(entry, entries)}
            for entry in recorded.of_model(entries, key)
        ],
        "ledger": {"place": place, "entries": len(entries), "head": vars(head_of(entries))},
        "files": {
            path.relative_to(folder).as_posix(): file_digest(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.relative_to(folder).parts[0] not in (LEDGER, *_MADE_LAST)
        },
    }


def known(records: Records, entries: Sequence[Entry], version: Version) -> tuple[Entry, Entry | None]:
    """The registration that a version comes from, and the promotion that copied it.

    Raises
    ------
    InputError
        when no entry of the ledger made this very version: it was put there by hand.
    """
    registration, promotion = origin(entries, version)
    made = None if registration is None else made_for(records, version.name, promotion or registration)
    if registration is None or made is None or str(made.version) != str(version.version):
        raise InputError(
            f"{version.name} version {version.version} is not in the ledger: no entry made it, so nobody can say what it is. "
            "Register it by a run of the pipeline"
        )
    return registration, promotion


def page(folder: Path, dossier: Info) -> str:
    """dossier.html: the same dossier gives the same bytes."""

    def picture(path: str) -> Picture | None:
        return embed(folder / path)

    return render(
        TEMPLATE,
        {
            **dossier,
            "decision": next((told for told in reversed(dossier["decisions"]) if told["decisive"]), None),
            "banners": _banners(dossier),
            "titles": CLASS_TITLES,
            "subgroup_titles": SUBGROUPS,
            "evaluation": read_json(folder / EVIDENCE / "evaluation" / METRICS_FILE),
            "picture": picture,
        },
    )


def history(records: Records, entries: Sequence[Entry]) -> list[Info]:
    """Every move of the alias champion, the first one first."""
    told = []
    for entry in entries:
        if entry.kind not in moves.MOVES:
            continue
        body = entry.body
        due = moves.promotion_in_use(entries[: entry.number])
        assert due is not None
        copy = made_for(records, registry.PRODUCTION_MODEL, due)
        told.append(
            {
                "entry": entry.number,
                "at": entry.at,
                "by": entry.actor,
                "kind": entry.kind,
                "candidate": _named(due.body["candidate"]),
                "version": None if copy is None else int(copy.version),
                "replaced": _named(body["from"]) if body["from"] else None,
                "decision": body.get("decision"),
                "approved_by": body.get("approved_by", []),
                "waived": body.get("waived", []),
                "reason": body.get("reason"),
            }
        )
    return told


def _subject(
    records: Records, entries: Sequence[Entry], version: Version, registration: Entry, promotion: Entry | None
) -> Info:
    in_use = moves.promotion_in_use(entries)
    return {
        "name": version.name,
        "version": int(version.version),
        "aliases": sorted(alias for alias, at in records.aliases(version.name).items() if at == str(version.version)),
        "is_champion": promotion is not None and promotion == in_use,
        "registered": _by(registration),
        "promoted": None
        if promotion is None
        else {**_by(promotion, "decision"), "candidate": _named(promotion.body["candidate"])},
        "mlflow_run_id": version.run_id,
        "source": version.source,
        "card": version.description or "",
        "tags": dict(sorted(version.tags.items())),
    }


def _decisions(entries: Sequence[Entry], key: str, promotion: Entry | None) -> list[Info]:
    """All on this model; decisive is the one that promoted the version or, of a candidate, the last."""
    found = recorded.decisions(entries, key)
    by = (found[-1].number if found else None) if promotion is None else promotion.body["decision"]
    return [
        {
            **{name: value for name, value in entry.body.items() if name not in ("decided", "key")},
            "entry": entry.number,
            "at": entry.at,
            "actor": entry.actor,
            "outcome": recorded.outcome_of(entries, entry),
            "decisive": entry.number == by,
        }
        for entry in found
    ]


def _by(entry: Entry, *names: str) -> Info:
    return {"entry": entry.number, "at": entry.at, "by": entry.actor, **{name: entry.body[name] for name in names}}


def _named(candidate: Mapping[str, Any]) -> Info:
    return {"name": candidate["name"], "version": candidate["version"]}


def _banners(dossier: Info) -> list[str]:
    """What nobody may overlook, since it takes the meaning from every figure below."""
    evidence, told = dossier["evidence"], []
    if evidence["synthetic"]:
        told.append("Synthetic images: a check of the pipeline, not a result. Nothing here says anything about patients.")
    if evidence["pipeline_check"]:
        told.append("Pipeline check, not a result: a part of the model has random weights.")
    if evidence["mark"]:
        told.append(f"{evidence['mark'][0].upper()}{evidence['mark'][1:]}.")
    if not evidence["promotable_split"]:
        told.append("Test images have relatives in train, so every figure below is too good. It can not be promoted.")
    if evidence["explanation"]["artefact"]["suspected"]:
        classes = ", ".join(evidence["explanation"]["artefact"]["suspected"])
        told.append(f"An artefact is suspected in {classes}: what speaks for it lies off the lesion.")
    waived = sorted({name for decision in dossier["decisions"] if decision["decisive"] for name in decision["waived"]})
    if waived:
        told.append(f"Waived, by the policy or by a person: {_spaced(waived)}. The reasons stand under the rules.")
    return told


def _spaced(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)
