"""One registered version against the ledger: its files, tags and figures are those that were registered.

Everything is computed again, from the predictions that lie there; nothing that MLflow says is taken for granted.
"""

from __future__ import annotations

import datetime
import io
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from components.promote.core import DECISION_FILE, DECISION_TAG, Case, decision_told, gates_of
from components.register.bundle import SCHEMA, faults
from components.register.core import BUNDLE, FILES, REGISTERED
from dermaflow import champion as moves
from dermaflow import recorded, registry
from dermaflow.artifacts import file_digest, read_json
from dermaflow.errors import InputError
from dermaflow.ledger import Entry
from dermaflow.params import EvaluateParams
from dermaflow.policy import Policy, policy_digest
from dermaflow.records import ACTIVE, Records, Version, files_of, version_named

_PREDICTIONS = "evaluation/predictions.parquet"
_RECOMPUTED = ("temperature", "thresholds", "validation", "test")
_CLOSE = {"rel_tol": 1e-6, "abs_tol": 1e-9}  # libraries add up in other orders; a figure is told to three digits


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was, or not as the ledger says.

    Attributes
    ----------
    name: what kind of thing, for a program.
    where: an entry of the ledger, a version, an alias.
    mend: what `dermaflow verify --repair` does about it; None where a person has to.
    """

    name: str
    where: str
    detail: str
    mend: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Held:
    """A version, what the ledger holds of it, and its evidence as it lies in MLflow now.

    Attributes
    ----------
    entries: of the ledger, as far as they are sound.
    promotion: of a version that promotion copied.
    evidence: folder; None where it can not be had.
    """

    records: Records
    entries: Sequence[Entry]
    version: Version
    registration: Entry
    promotion: Entry | None
    evidence: Path | None
    files: Mapping[str, Mapping[str, str]] | None

    @property
    def name(self) -> str:
        """The version in a message."""
        return f"{self.version.name}/{self.version.version}"

    @property
    def key(self) -> str:
        """Of the model and of everything that judges it."""
        return str(self.registration.body["key"])

    def sound_json(self, name: str) -> dict[str, Any] | None:
        """A file of the evidence, if it is the one that was registered."""
        if self.evidence is None or self.files is None or not (self.evidence / name).is_file():
            return None
        if file_digest(self.evidence / name) != self.files["evidence"].get(name):
            return None
        value: dict[str, Any] = read_json(self.evidence / name)
        return value

    def finding(self, name: str, detail: str, mend: str | None = None) -> Finding:
        """A finding about this version."""
        return Finding(name, self.name, detail, mend)


def origin(
    entries: Sequence[Entry], version: Version, registrations: Mapping[str, Entry] | None = None
) -> tuple[Entry | None, Entry | None]:
    """The registration that a version comes from, and the promotion that copied it, by the entry that it names.

    Parameters
    ----------
    registrations: `recorded.registrations` of the entries, where this is asked of many versions.
    """
    first = recorded.registrations(entries) if registrations is None else registrations
    number = version.tags.get(moves.ENTRY_TAG, "")
    entry = entries[int(number) - 1] if number.isdecimal() and 0 < int(number) <= len(entries) else None
    if entry is None:
        return None, None
    if version.name == registry.PRODUCTION_MODEL:
        if entry.kind != "promotion":
            return None, None
        return first.get(entry.body["candidate"]["key"]), entry
    is_first = entry.kind == "registration" and first[entry.body["key"]] is entry
    return (entry if is_first else None), None


def check_version(
    records: Records, entries: Sequence[Entry], version: Version, policy: Policy | None
) -> tuple[list[Finding], dict[str, Any] | None]:
    """Every finding about a version, and its facts with the figures that its predictions give; None without predictions.

    Parameters
    ----------
    records: of the registry that the version is in, or of a dossier.
    policy: that is in force now; None where nobody says.
    """
    registration, promotion = origin(entries, version)
    if registration is None:  # told by the checks of the whole registry
        return [], None
    with tempfile.TemporaryDirectory() as scratch:
        evidence, found = _fetch(records, version, registration, Path(scratch))
        held = Held(records, entries, version, registration, promotion, evidence, None)
        found += _files_findings(held)
        if evidence is not None and not any(finding.name == "list_of_evidence" for finding in found):
            held = Held(**{**vars(held), "files": read_json(evidence / FILES)})
            found += [*_changed_evidence(held), *_changed_model(held)]
        found += [*_form(held), *_changed_version(held), *_changed_run(held)]
        facts, of_figures = _recomputed(held)
        found += [*of_figures, *_decisions(held, facts, policy)]
    return found, facts


def _fetch(records: Records, version: Version, registration: Entry, scratch: Path) -> tuple[Path | None, list[Finding]]:
    name, run_id = f"{version.name}/{version.version}", registration.body["mlflow_run_id"]
    try:
        stage = records.run(run_id).stage
    except InputError as error:
        return None, [Finding("run_deleted", name, f"its {error}")]
    found = []
    if stage != ACTIVE:
        detail = f"its MLflow run {run_id} was deleted; bring it back with: mlflow runs restore --run-id {run_id}"
        found.append(Finding("run_deleted", name, detail))
    try:
        return records.evidence(run_id, "", scratch), found
    except InputError as error:
        return None, [*found, Finding("evidence_missing", name, str(error))]


def _files_findings(held: Held) -> list[Finding]:
    """Whether the list of all evidence is the one that the ledger knows; where not, it knows the predictions besides."""
    if held.evidence is None:
        return []
    path, digests = held.evidence / FILES, held.registration.body["digests"]
    if path.is_file() and file_digest(path) == held.registration.body["files"]:
        return []
    entry = held.registration.number
    found = [held.finding("list_of_evidence", f"evidence/{FILES} is not the one that entry {entry} of the ledger knows")]
    predictions = held.evidence / _PREDICTIONS
    if not predictions.is_file() or file_digest(predictions) != digests["predictions"]:
        found.append(held.finding("evidence_changed", f"evidence/{_PREDICTIONS} is not the one that entry {entry} knows"))
    return found


def _changed_evidence(held: Held) -> Iterator[Finding]:
    assert held.evidence is not None
    assert held.files is not None
    there = {name: digest for name, digest in files_of(held.evidence).items() if name not in (FILES, DECISION_FILE)}
    yield from _differing(held, "evidence_changed", "evidence", held.files["evidence"], there)


def _changed_model(held: Held) -> Iterator[Finding]:
    assert held.files is not None
    try:
        there = held.records.model_files(held.version)
    except InputError as error:
        yield held.finding("model_changed", str(error))
        return
    yield from _differing(held, "model_changed", "model", held.files["model"], there)


def _differing(held: Held, name: str, place: str, registered: Mapping[str, str], there: Mapping[str, str]) -> Iterator[Finding]:
    for file in sorted(registered.keys() | there.keys()):
        if registered.get(file) != there.get(file):
            how = "is missing" if file not in there else "was added" if file not in registered else "was changed"
            yield held.finding(name, f"{place}/{file} {how} since it was registered")


def _form(held: Held) -> Iterator[Finding]:
    """Whether the evidence is of the published form; the first form had no schema."""
    bundle = held.sound_json(BUNDLE)
    if bundle is not None and bundle["schema"] >= SCHEMA:
        for fault in faults(bundle):
            yield held.finding("evidence_form", f"evidence/{BUNDLE} is not as its schema says: {fault}")


def _changed_version(held: Held) -> Iterator[Finding]:
    given, version = held.sound_json(REGISTERED), held.version
    if given is None:
        return
    expected = given["tags"] | {moves.ENTRY_TAG: str(held.registration.number)}
    if held.promotion is not None:
        expected |= moves.copy_tags(held.promotion)
    else:
        last = recorded.decisions(held.entries, held.key, recorded.PIPELINE)
        expected |= {DECISION_TAG: recorded.outcome_of(held.entries, last[-1])} if last else {}
    ours = {name: value for name, value in version.tags.items() if name.startswith(registry.TAG)}
    for name in sorted(expected.keys() | ours.keys()):
        if expected.get(name) != ours.get(name):
            mend = "the tag is set to what the ledger says" if name == DECISION_TAG and held.promotion is None else None
            told = f"tag {name} is {ours.get(name)!r}; registered was {expected.get(name)!r}"
            yield held.finding("tag_changed", told, mend)
    if version.description != given["description"]:
        yield held.finding("description_changed", "its model card is not the one that was registered")
    source = held.registration.body["source"] if held.promotion is None else _copied_from(held.promotion)
    if (version.source, version.run_id) != (source, held.registration.body["mlflow_run_id"]):
        told = f"it names model {version.source} of run {version.run_id}; by the ledger it is {source}"
        yield held.finding("source_changed", told)


def _copied_from(promotion: Entry) -> str:
    candidate = promotion.body["candidate"]
    return f"models:/{candidate['name']}/{candidate['version']}"


def _changed_run(held: Held) -> Iterator[Finding]:
    given = held.sound_json(REGISTERED)
    if given is None:
        return
    with suppress(InputError):  # a run that is gone was told of
        run = held.records.run(held.registration.body["mlflow_run_id"])
        for kind, registered, there in (("metric", given["metrics"], run.metrics), ("param", given["params"], run.params)):
            for name in sorted(registered.keys() | there.keys()):
                if registered.get(name) != there.get(name):
                    told = f"{kind} {name} is {there.get(name)}; registered was {registered.get(name)}"
                    yield held.finding(f"{kind}_changed", told)


def _recomputed(held: Held) -> tuple[dict[str, Any] | None, list[Finding]]:
    """The facts that were registered, with every figure computed from the predictions that lie there."""
    bundle = held.sound_json(BUNDLE)
    if bundle is None or held.evidence is None or not (held.evidence / _PREDICTIONS).is_file():
        return None, []
    settings = EvaluateParams.model_validate(bundle["params"]["evaluate"])
    try:
        fresh = _figures((held.evidence / _PREDICTIONS).read_bytes(), tuple(bundle["model"]["classes"]), settings)
    except (InputError, ValueError, KeyError, OSError) as error:
        return None, [held.finding("predictions_unreadable", f"evidence/{_PREDICTIONS}: {str(error).splitlines()[0]}")]
    said = held.sound_json("evaluation/metrics.json") or bundle
    said = {**said, "validation": _without_intervals(said["validation"])}
    differing = [place for name in _RECOMPUTED for place in _unlike(said.get(name, fresh[name]), fresh[name], name)]
    found = []
    if differing:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        found = [held.finding("figures_differ", f"the predictions give another {differing[0]}{more} than was registered")]
    return {**bundle, "thresholds": fresh["thresholds"], "test": fresh["test"]}, found


@lru_cache(maxsize=4)  # a champion and the challenger that it is a copy of have the same predictions
def _figures(predictions: bytes, classes: tuple[str, ...], settings: EvaluateParams) -> dict[str, Any]:
    """What `dermaflow.figures.figures` tells of stored predictions; of validation without intervals, which nothing rests on.

    So the resamples, which take nearly all of the time, are drawn for the test images alone.
    """
    import pandas as pd

    from dermaflow.figures import TEST, Chosen, figures

    table = pd.read_parquet(io.BytesIO(predictions))
    light = figures(table, classes, settings.model_copy(update={"bootstrap": 1}))  # for the estimates alone
    thresholds = {name: value for name, value in light["thresholds"].items() if name != "specificity_on_validation"}
    test = figures(table[table["split"] == TEST], classes, settings, Chosen(light["temperature"], thresholds))[TEST]
    return {**light, "validation": _without_intervals(light["validation"]), TEST: test}


def _without_intervals(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_intervals(part) for name, part in value.items() if name not in ("low", "high")}
    return [_without_intervals(part) for part in value] if isinstance(value, list) else value


def _unlike(registered: Any, fresh: Any, place: str) -> Iterator[str]:
    """Where two values of JSON differ by more than the order of additions explains."""
    if isinstance(registered, dict) and isinstance(fresh, dict) and registered.keys() == fresh.keys():
        for name in registered:
            yield from _unlike(registered[name], fresh[name], f"{place}.{name}")
    elif isinstance(registered, list) and isinstance(fresh, list | tuple) and len(registered) == len(fresh):
        for number, pair in enumerate(zip(registered, fresh, strict=True)):
            yield from _unlike(*pair, f"{place}[{number}]")
    elif isinstance(registered, float) and isinstance(fresh, float):
        if not math.isclose(registered, fresh, **_CLOSE):
            yield place
    elif registered != fresh:
        yield place


def _decisions(held: Held, facts: dict[str, Any] | None, policy: Policy | None) -> Iterator[Finding]:
    """The gates of the decision that counts, judged again by its own policy; what was written of it into the evidence."""
    if held.promotion is None:
        told = recorded.decisions(held.entries, held.key)
        decision = told[-1] if told else None
        yield from _decision_file(held)
    else:
        decision = held.entries[held.promotion.body["decision"] - 1]
        unfounded = _unfounded(held, held.promotion, decision)
        if unfounded:
            detail = f"entry {held.promotion.number} of the ledger promotes it, but {unfounded}"
            yield held.finding("promotion_without_decision", detail)
            return
    if decision is None:
        return
    content = decision.body["policy"]["content"]
    then = Policy.model_validate_json(json.dumps(content))
    if policy_digest(then) != decision.body["policy"]["digest"]:
        yield held.finding("policy_differs", f"the policy in entry {decision.number} has another digest than that entry says")
    if policy is not None and policy_digest(policy) != decision.body["policy"]["digest"]:
        changed = ", ".join(name for name, value in policy.model_dump(mode="json").items() if value != content.get(name))
        detail = (
            f"the policy is not the one that decided on it (entry {decision.number}): {changed or 'its form'} was changed. "
            "Bring it back, or decide again: dermaflow promote"
        )
        yield held.finding("policy_changed", detail)
    if facts is not None:
        yield from _gates(held, decision, then, facts)


def _unfounded(held: Held, promotion: Entry, decision: Entry) -> str | None:
    """Why a promotion did not follow from what the ledger held before it; None where it did."""
    if decision.kind != "decision" or decision.number >= promotion.number or decision.body["key"] != held.key:
        return f"entry {promotion.body['decision']}, which it names, is no decision on it"
    failed = [gate["name"] for gate in decision.body["gates"] if gate["verdict"] == "fail"]
    if decision.body["decided"] != "promote" or failed:
        return f"the decision, entry {decision.number}, was {decision.body['decided']}" + (
            f": {', '.join(failed)}" if failed else ""
        )
    policy, before = decision.body["policy"]["content"], held.entries[: decision.number]
    agreed = set(recorded.approvers(before, held.key))
    agreed -= {recorded.requester(before, held.key)} if policy["four_eyes"] else set()
    if len(agreed) < policy["approvals"]:
        return f"{len(agreed)} people had agreed, and the policy asks for {policy['approvals']}"
    return None


def _decision_file(held: Held) -> Iterator[Finding]:
    of_pipeline = recorded.decisions(held.entries, held.key, recorded.PIPELINE)
    if not of_pipeline or held.evidence is None:
        return
    path, expected = held.evidence / DECISION_FILE, decision_told(held.records, held.entries, of_pipeline[-1])
    try:
        there = read_json(path)
    except InputError:
        there = None
    if there != expected:
        told = "is missing" if there is None else "is not what the ledger says"
        yield held.finding(
            "decision_differs",
            f"evidence/{DECISION_FILE} {told} (entry {of_pipeline[-1].number})",
            "it is written again by the ledger",
        )


def _gates(held: Held, decision: Entry, policy: Policy, facts: dict[str, Any]) -> Iterator[Finding]:
    on = datetime.datetime.fromisoformat(decision.at).date()
    then = held.entries[: decision.body["seen"]]
    try:
        case = _case(held, decision, facts)
        fresh = {gate.name: gate.to_dict() for gate in gates_of(held.records, then, case, policy, on)}
    except (InputError, OSError) as error:
        yield held.finding("gates_unknown", f"its gates can not be judged again: {str(error).splitlines()[0]}")
        return
    for gate in decision.body["gates"]:
        differing = [name for name in gate if list(_unlike(gate[name], fresh.get(gate["name"], {}).get(name), name))]
        if differing:
            now = fresh.get(gate["name"], {})
            told = ", ".join(f"{name} {gate[name]!r} in the ledger, {now.get(name)!r} now" for name in differing)
            yield held.finding("gate_differs", f"gate {gate['name']}, judged again by entry {decision.number}'s policy: {told}")


def _case(held: Held, decision: Entry, facts: dict[str, Any]) -> Case:
    candidate = decision.body["candidate"]
    return Case(
        model=candidate["name"],
        version=candidate["version"],
        key=candidate["key"],
        mlflow_run_id=candidate["mlflow_run_id"],
        facts=facts,
        commit=decision.body["commit"],
        comparison=_comparison(held, decision, facts),
    )


def _comparison(held: Held, decision: Entry, facts: dict[str, Any]) -> Mapping[str, Any] | None:
    """The comparison that a decision rests on, its difference computed again of what both said."""
    import pandas as pd

    from dermaflow.metrics import paired_difference

    said: dict[str, Any] | None = decision.body["comparison"]
    if said is None or said["champion"] is None or said["difference"] is None or held.evidence is None:
        return said
    stored = held.sound_json("comparison/comparison.json")
    if stored is not None and (stored["champion"], stored["images"]) == (said["champion"], said["images"]):
        theirs = pd.read_parquet(held.evidence / "comparison" / "champion.parquet")
        ours = pd.read_parquet(held.evidence / _PREDICTIONS)
        ours = ours[ours["image_id"].isin(theirs["image_id"]) & (ours["split"] == "test")]
        return {**said, "difference": paired_difference(ours, theirs, facts["model"]["classes"], **_how(facts))}
    if decision.body["by"] == recorded.PERSON:
        named = decision.body["candidate"]
        candidate = version_named(held.records, named["name"], named["version"])
        return compared_again(said["champion"], candidate, facts, held.records)
    return said  # the run was made again with another champion: what the old one said is not kept


def compared_again(champion: Mapping[str, Any], version: Version, facts: Mapping[str, Any], records: Records) -> dict[str, Any]:
    """A comparison from the evidence of both, on the test images that both have judged and neither was made with."""
    from dermaflow.metrics import paired_difference
    from pipelines.comparison import common_tests, side_of

    told: dict[str, Any] = {
        "champion": dict(champion),
        "metric": _how(facts)["metric"],
        "images": 0,
        "lesions": 0,
        "left_out": {"champion": 0, "challenger": 0},
        "difference": None,
        "undefined": None,
    }
    with tempfile.TemporaryDirectory() as scratch:
        both = version_named(records, champion["name"], champion["version"]), version
        theirs, ours = (side_of(records, each, Path(scratch, str(number))) for number, each in enumerate(both))
        common = common_tests(theirs, ours)
        if common.undefined:
            return {**told, "undefined": common.undefined}
        difference = paired_difference(common.tables[1], common.tables[0], facts["model"]["classes"], **_how(facts))
    return {**told, "images": common.images, "lesions": common.lesions, "difference": difference}


def _how(facts: Mapping[str, Any]) -> dict[str, Any]:
    settings = facts["params"]["evaluate"]
    return {"metric": facts["comparison"]["metric"], "bootstrap": settings["bootstrap"], "seed": settings["seed"]}
