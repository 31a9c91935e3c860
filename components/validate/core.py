"""Validate: judge artifacts by their suites, write the report with Data Docs, and stop the run when a blocking rule fails."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from components.validate.data_docs import write_data_docs
from components.validate.rules import BLOCKING, SUITES, WARNING, judge, suite_names
from components.validate.tables.manifest import Tables, dataset_tables, listing_tables
from components.validate.tables.masks import masks_tables
from components.validate.tables.predictions import predictions_tables
from components.validate.tables.splits import plan_tables, splits_tables
from dermaflow import contracts
from dermaflow.artifacts import file_digest, json_digest, new_artifact, open_artifact, write_json
from dermaflow.contracts import VALIDATION_REPORT
from dermaflow.dataset import KIND, Dataset
from dermaflow.errors import GateError, InputError
from dermaflow.params import ValidateParams

__all__ = ["Subject", "check", "check_listing", "suite_names", "validate"]

NEEDS = {  # artifacts, by the suite that reads them
    "manifest": ("dataset",),
    "splits": ("dataset", "splits"),
    "plan": ("dataset", "splits", "plan"),
    "masks": ("dataset", "masks"),
    "predictions": ("dataset", "splits", "evaluations"),
}
REFERENCES = {  # parameter and kind of the artifact that a suite's subject can be compared with
    "manifest": ("reference", KIND),
    "splits": ("reference_splits", contracts.SPLITS),
}


@dataclass(frozen=True)
class Subject:
    """The artifacts to be judged, and those that they belong to."""

    dataset: Path
    splits: Path | None = None
    plan: Path | None = None
    masks: Path | None = None
    evaluations: tuple[Path, ...] = ()


def validate(subject: Subject, params: ValidateParams, target: Path, suites: Sequence[str] = ("manifest",)) -> dict[str, Any]:
    """Judge artifacts by suites and write the report, with Data Docs, to `target`.

    Parameters
    ----------
    params: ceilings and, where there is an earlier Dataset or earlier Splits to compare with, their folders.

    Returns
    -------
    The content of validation.json: success, blocking failures, warnings, notes, each rule's result with its failing
    rows, the drift of each column, and the small tables that rules look at.

    Raises
    ------
    GateError
        when a blocking rule fails; the report is on disk by then.
    InputError
        for an unknown suite, or an artifact that is missing, unfinished or of another kind.
    """
    report = check(subject, params, target, suites)
    if not report["success"]:
        raise GateError(
            f"{len(report['blocking'])} blocking rule(s) of suite {report['suite']!r} failed: {'; '.join(report['blocking'])}. "
            f"Open {target / 'data_docs' / 'index.html'}"
        )
    return report


def check(subject: Subject, params: ValidateParams, target: Path, suites: Sequence[str] = ("manifest",)) -> dict[str, Any]:
    """As `validate`, but a failed rule is only reported."""
    for suite in suites:
        _refuse_unknown(suite, subject)
    dataset = Dataset.open(subject.dataset)
    leaks = subject.splits is not None and contracts.read_info(subject.splits, contracts.SPLITS)["strategy"] == "random"
    tables = {suite: _tables(suite, subject, dataset, params) for suite in suites}
    pa.default_memory_pool().release_unused()  # a third of what is held at 100,000 images, before Great Expectations comes
    rules = [
        rule
        for suite in suites
        for rule in judge(suite, tables[suite], _values(params, dataset.classes), leak_is_blocking=not leaks)
    ]
    head: dict[str, Any] = {
        "stage": "artifact",
        "dataset_digest": dataset.content_digest,
        "references": _references(suites, params),
        "images": len(dataset.columns("shard")),
        "rejects": len(dataset.rejects),
    }
    return _write(_report(tables, rules, head), target)


def check_listing(
    metadata: pd.DataFrame, refused: pd.DataFrame, classes: Sequence[str], params: ValidateParams, target: Path
) -> dict[str, Any]:
    """Judge a source by its metadata and list of files alone: each rule of the suite manifest that needs no pixels.

    Parameters
    ----------
    metadata: usable rows: lesion_id, image_id, dx and the clinical columns.
    refused: rows and files that can not be used: image_id, lesion_id, uri, reason, detail.
    classes: of the source, in their order.
    """
    tables = {"manifest": listing_tables(metadata, refused, classes)}
    rules = judge("manifest", tables["manifest"], _values(params, classes), partly=True)
    head: dict[str, Any] = {
        "stage": "listing",
        "dataset_digest": None,
        "references": {},
        "images": len(metadata),
        "rejects": len(refused),
    }
    return _write(_report(tables, rules, head), target)


def _refuse_unknown(suite: str, subject: Subject) -> None:
    if suite not in suite_names():
        raise InputError(f"unknown suite {suite!r}; allowed: {', '.join(suite_names())}")
    lacking = [name for name in NEEDS[suite] if not getattr(subject, name)]
    if lacking:
        raise InputError(f"suite {suite!r} needs {' and '.join(lacking)} too; give all of {', '.join(NEEDS[suite])}")


def _tables(suite: str, subject: Subject, dataset: Dataset, params: ValidateParams) -> Tables:
    match suite, subject:
        case "manifest", _:
            return dataset_tables(dataset, params, Dataset.open(Path(params.reference)) if params.reference else None)
        case "splits", Subject(splits=Path() as splits):
            return splits_tables(splits, dataset, Path(params.reference_splits) if params.reference_splits else None)
        case "plan", Subject(splits=Path() as splits, plan=Path() as plan):
            return plan_tables(plan, splits)
        case "masks", Subject(masks=Path() as masks):
            return masks_tables(masks, dataset)
        case "predictions", Subject(splits=Path() as splits, evaluations=evaluations):
            return predictions_tables(evaluations, dataset, splits)
    raise AssertionError(suite)


def _references(suites: Sequence[str], params: ValidateParams) -> dict[str, str]:
    """Digest of each artifact that was compared with, by its folder."""
    wanted = [REFERENCES[suite] for suite in suites if suite in REFERENCES]
    given = [(str(getattr(params, name)), kind) for name, kind in wanted if getattr(params, name)]
    return {folder: open_artifact(Path(folder), kind).digest for folder, kind in given}


def _values(params: ValidateParams, classes: Iterable[str]) -> dict[str, Any]:
    """What suites may name as {"$PARAMETER": ...}."""
    return {**params.model_dump(), "classes": list(classes), "min_known_share": 1 - params.max_unknown_share}


def _report(tables: dict[str, Tables], rules: list[dict[str, Any]], head: dict[str, Any]) -> dict[str, Any]:
    failed = [rule for rule in rules if not rule["success"]]
    blocking = [_tell(rule) for rule in failed if rule["level"] == BLOCKING]
    digests = {suite: file_digest(SUITES / f"{suite}.json") for suite in tables}
    drift = tables.get("manifest", {}).get("drift")
    return {
        "success": not blocking,
        "suite": ", ".join(tables),
        "suite_digest": next(iter(digests.values())) if len(digests) == 1 else json_digest(digests),
        **head,
        "blocking": blocking,
        "warnings": [_tell(rule) for rule in failed if rule["level"] == WARNING],
        "notes": [_tell(rule) for rule in failed if rule["level"] not in (BLOCKING, WARNING)],
        "rules": rules,
        "drift": [] if drift is None else _records(drift),
        "overview": {
            f"{suite}: {name}": _records(table)
            for suite, found in tables.items()
            for name, table in found.items()
            if "image_id" not in table and name != "drift"
        },
    }


def _tell(rule: dict[str, Any]) -> str:
    names = [_name(row) for row in rule["rows"][:3]]
    more = "" if rule["failing"] <= 3 else ", ..."
    told = f" ({rule['failing']} rows: {', '.join(names)}{more})" if rule["failing"] else ""
    return str(rule["rule"]) + told + (f": {rule['error']}" if rule["error"] else "")


def _name(row: dict[str, str]) -> str:
    """A failing row in a few words: its image, and why it was refused if it was; for other tables the first two cells."""
    return " ".join((row["image_id"], row.get("reason", ""))).strip() if "image_id" in row else " ".join(list(row.values())[:2])


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A small table's rows, as JSON may hold them."""
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in table.astype(object).to_dict("records")
    ]


def _write(report: dict[str, Any], target: Path) -> dict[str, Any]:
    with new_artifact(target, VALIDATION_REPORT) as folder:
        write_json(folder / "validation.json", report)
        write_data_docs(report, folder / "data_docs")
    return report
