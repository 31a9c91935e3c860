"""`dermaflow audit`: a dossier of a registered version; and `dermaflow verify DIR`, which needs nothing but the dossier."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.register.bundle import faults
from components.report.page import template_digest, without_passwords
from dermaflow.access import open_ledger, open_registry
from dermaflow.artifacts import Artifact, bytes_digest, changed_files, new_artifact, open_artifact, read_json, write_json
from dermaflow.errors import GateError, InputError
from dermaflow.ledger import Entry, Head, Ledger, account, head_of, read_anchor, unanchored
from dermaflow.params import Params
from dermaflow.records import Records, Registered
from pipelines import dossier as content
from pipelines.judging import registered_version
from pipelines.verification import ALIASES, MODELS, Verified, champion_findings
from pipelines.version_checks import Finding, check_version


@dataclass(frozen=True)
class Exported:
    """A dossier that was written.

    Attributes
    ----------
    digest: of the whole folder.
    findings: what did not hold; it stands in the dossier too.
    """

    folder: Path
    model: str
    digest: str
    head: Head
    findings: list[Finding]

    def to_dict(self) -> dict[str, Any]:
        """As `dermaflow audit --json` prints it."""
        return {
            "ok": not self.findings,
            "model": self.model,
            "dossier": str(self.folder),
            "page": str(self.folder / content.PAGE),
            "digest": self.digest,
            "ledger": vars(self.head),
            "findings": [finding.to_dict() for finding in self.findings],
        }


def export(model: str, params: Params, out: Path | None = None) -> Exported:
    """Write the dossier of a registered version: whole, or not at all.

    Parameters
    ----------
    model: NAME, NAME@ALIAS or NAME/VERSION; a name alone stands for the version in use, or the newest candidate.
    out: folder; by default dossier-NAME-VERSION here. A dossier that is there is replaced, nothing else is.

    Raises
    ------
    InputError
        when there is no such version, the ledger does not know it, `out` is something else than a dossier, or the evidence
        was registered before it had a schema.
    GateError
        when the ledger's chain does not hold, or the evidence can not be had: then nothing can be said of it.
    """
    client, ledger = open_registry(params.register_.tracking_uri), open_ledger(params.register_)
    named = model if any(sign in model for sign in "@/") else f"{model}@{ALIASES.get(model, '')}"
    found = registered_version(named, params)
    if found is None:
        raise InputError(
            f"MODEL {model!r} is neither NAME@ALIAS nor NAME/VERSION nor one of {', '.join(MODELS)}; "
            f"for example {MODELS[0]}@{ALIASES[MODELS[0]]}"
        )
    version, records = found[1], Registered(client)
    target = out or Path(f"dossier-{version.name}-{version.version}")
    _refuse_other(target)
    entries, broken = ledger.look()
    if broken:
        raise GateError(
            f"{ledger.place}: the ledger does not hold at entry {broken[0].number}: {broken[0].detail}. No dossier was "
            "written; look with: dermaflow verify"
        )
    content.known(records, entries, version)
    made = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "by": account(),
        "asked": model,
        "registry": without_passwords(params.register_.tracking_uri),
        "page": template_digest(),
    }
    with new_artifact(target, content.KIND) as folder:
        findings, head = _fill(folder, records, ledger, entries, version, made)
    return Exported(target, f"{version.name}/{version.version}", open_artifact(target, content.KIND).digest, head, findings)


def is_folder(model: str) -> bool:
    """Whether MODEL of `dermaflow verify` names a folder."""
    return Path(model).is_dir()


def verify_named(models: Sequence[str], anchor: Path | None, *, every: bool, repair: bool) -> Verified:
    """`verify_dossier` of the one folder that is named; raises InputError when more is asked for than a dossier can tell."""
    if len(models) > 1 or every or repair:
        raise InputError(
            f"MODEL {', '.join(models)}: a dossier is verified alone, and nothing in it can be mended; give one folder, "
            "without --all and --repair"
        )
    return verify_dossier(Path(models[0]), anchor)


def verify_dossier(folder: Path, anchor: Path | None = None) -> Verified:
    """Check a dossier by what lies in it alone: no registry, no network.

    Files against the seal, the ledger's chain and head, the document against its schema and against the files that it was
    made from, the version against the ledger as `dermaflow verify` does in a registry (figures computed again from the
    stored predictions, gates judged again), and the page, made anew where the templates are the same.

    Raises
    ------
    InputError
        when the folder is no dossier.
    """
    artifact = open_artifact(folder, content.KIND)
    ledger = Ledger(str(folder / content.LEDGER))
    entries, broken = ledger.look()
    found = [Finding("dossier_changed", str(folder), f"{name} is not as it was sealed") for name in changed_files(artifact)]
    found += [Finding(f"ledger_{fault.name}", f"ledger entry {fault.number}", fault.detail) for fault in broken]
    if broken:
        entries = entries[: broken[0].number - 1]
    else:
        unheld = unanchored(entries, read_anchor(anchor)) if anchor else None
        found += [Finding("ledger_anchor", "ledger", unheld)] if unheld else []
        found += _of_content(artifact, entries)
    return Verified(
        place=ledger.place,
        entries=len(entries),
        head=head_of(entries),
        anchor=None if anchor is None else str(anchor),
        versions=[_subject(folder)],
        findings=found,
        mended=[],
    )


def _fill(
    folder: Path, records: Records, ledger: Ledger, entries: list[Entry], version: Any, made: Mapping[str, Any]
) -> tuple[list[Finding], Head]:
    """Lay everything into the folder: copies first, then what is made of them."""
    (folder / content.LEDGER).mkdir()
    ledger.copy_to(folder / content.LEDGER)
    copied = Ledger(str(folder / content.LEDGER)).entries()[: len(entries)]  # whoever wrote meanwhile is not in this dossier
    for path in sorted((folder / content.LEDGER).iterdir())[len(copied) :]:
        path.unlink()
    recording = content.Recording(records, version, folder)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            recording.evidence(version.run_id, "", Path(scratch))
    except InputError as error:
        told = f"{version.name} version {version.version}: {error}. No dossier was written; look with: dermaflow verify"
        raise GateError(told) from error
    findings = [*check_version(recording, copied, version, None)[0], *champion_findings(records, copied)]
    write_json(folder / content.REGISTRY, recording.registry(MODELS))
    document = content.gather(folder, copied, ledger.place, made, [finding.to_dict() for finding in findings])
    write_json(folder / content.DOCUMENT, document)
    (folder / content.PAGE).write_text(content.page(folder, document))
    return findings, head_of(copied)


def _refuse_other(target: Path) -> None:
    """A dossier may take the place of a dossier, or of nothing."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        try:
            open_artifact(target, content.KIND)
        except InputError as error:
            raise InputError(f"--out {target} is there already and is no dossier; name another folder") from error


def _of_content(artifact: Artifact, entries: list[Entry]) -> Iterator[Finding]:
    """What the dossier says, against what lies in it."""
    folder = artifact.path
    try:
        document, stored = read_json(folder / content.DOCUMENT), content.Stored(folder)
        version = stored.subject
        yield from check_version(stored, entries, version, None)[0]
        yield from champion_findings(stored, entries)
        for fault in faults(document, content.Dossier):
            yield Finding("dossier_form", content.DOCUMENT, f"it is not as its schema says: {fault}")
        fresh = content.gather(folder, entries, document["ledger"]["place"], document["made"], document["findings"])
    except (InputError, LookupError, StopIteration, TypeError, ValueError, OSError) as error:
        yield Finding("dossier_unreadable", str(folder), f"it can not be read as a dossier: {type(error).__name__}: {error}")
        return
    yield from (
        Finding("dossier_differs", content.DOCUMENT, f"{name} is not what the files of the dossier say")
        for name in sorted(fresh.keys() | document.keys())
        if fresh.get(name) != document.get(name)
    )
    if document["made"]["page"] == template_digest():
        page = folder / content.PAGE
        if not page.is_file() or bytes_digest(content.page(folder, fresh).encode()) != bytes_digest(page.read_bytes()):
            yield Finding("page_differs", content.PAGE, "the page is not the one that these files give")


def _subject(folder: Path) -> str:
    try:
        told = read_json(folder / content.REGISTRY)["subject"]
        return f"{told['name']}/{told['version']}"
    except (InputError, LookupError, TypeError):
        return str(folder)
