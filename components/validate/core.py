"""Validate: check a Dataset against an expectation suite, write Data Docs, and stop the run when a blocking rule fails."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dermaflow.artifacts import file_digest, new_artifact, write_json
from dermaflow.contracts import VALIDATION_REPORT
from dermaflow.dataset import Dataset
from dermaflow.errors import GateError, InputError
from dermaflow.params import ValidateParams

SUITES = Path(__file__).with_name("suites")
BLOCKING = "critical"
ROWS_NAMED = 20  # failing rows listed per rule; the Data Docs show more


def suite_names() -> tuple[str, ...]:
    """The suites in the repository."""
    return tuple(sorted(path.stem for path in SUITES.glob("*.json")))


def validate(dataset: Path, params: ValidateParams, target: Path, suite: str = "manifest") -> dict[str, Any]:
    """Check a Dataset artifact against a suite and write the report, with Data Docs, to `target`.

    Returns
    -------
    The content of validation.json: success, blocking failures, warnings, and each rule's result with its failing rows.

    Raises
    ------
    GateError
        when a blocking rule fails; the report is on disk by then.
    InputError
        for an unknown suite, or when `dataset` is not a finished Dataset.
    """
    report = check(dataset, params, target, suite)
    if not report["success"]:
        raise GateError(
            f"{len(report['blocking'])} blocking rule(s) of suite {suite!r} failed: {'; '.join(report['blocking'])}. "
            f"Open {target / 'data_docs' / 'index.html'}"
        )
    return report


def check(dataset: Path, params: ValidateParams, target: Path, suite: str = "manifest") -> dict[str, Any]:
    """As `validate`, but a failed rule is only reported."""
    if suite not in suite_names():
        raise InputError(f"unknown suite {suite!r}; allowed: {', '.join(suite_names())}")
    opened = Dataset.open(dataset)
    with tempfile.TemporaryDirectory() as scratch, new_artifact(target, VALIDATION_REPORT) as folder:
        results, site = _run_checkpoint(_escaped(table_to_check(opened)), opened.classes, params, suite, Path(scratch))
        report = _summarise(results, opened, suite)
        _copy_offline(site, folder / "data_docs")
        write_json(folder / "validation.json", report)
    return report


def table_to_check(dataset: Dataset) -> pd.DataFrame:
    """The manifest with what rules need beside it: diagnoses_of_lesion, labels_of_pixels, lesions_of_class."""
    table = dataset.manifest
    return table.assign(
        diagnoses_of_lesion=table.groupby("lesion_id")["label"].transform("nunique"),
        labels_of_pixels=table.groupby("pixel_digest")["label"].transform("nunique"),
        lesions_of_class=table.groupby("label")["lesion_id"].transform("nunique"),
    )


def _escaped(table: pd.DataFrame) -> pd.DataFrame:
    """The table with text made harmless for a page: Great Expectations writes values into the Data Docs as they are."""
    text = [name for name in table.columns if pd.api.types.is_string_dtype(table[name])]
    return table.assign(**{name: table[name].map(html.escape, na_action="ignore") for name in text})


def _run_checkpoint(
    table: pd.DataFrame, classes: Sequence[str], params: ValidateParams, name: str, scratch: Path
) -> tuple[list[Any], Path]:
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
    import great_expectations as gx

    context = gx.get_context(mode="file", project_root_dir=scratch)
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    suite = context.suites.add(gx.ExpectationSuite(**json.loads((SUITES / f"{name}.json").read_text())))
    asset = context.data_sources.add_pandas("dermaflow").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("all rows")
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=name,
            validation_definitions=[definition],
            actions=[gx.checkpoint.UpdateDataDocsAction(name="data_docs")],
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["image_id", "lesion_id"]},
        )
    )
    result = checkpoint.run(
        batch_parameters={"dataframe": table},
        expectation_parameters={
            "classes": list(classes),
            "min_lesions_per_class": params.min_lesions_per_class,
            "min_known_share": 1 - params.max_unknown_share,
        },
    )
    (run,) = result.run_results.values()
    return list(run.results), scratch / "gx" / "uncommitted" / "data_docs" / "local_site"


def _summarise(results: list[Any], dataset: Dataset, suite: str) -> dict[str, Any]:
    rules = [_describe_rule(result) for result in results]
    failed = [rule for rule in rules if not rule["success"]]
    told = {
        level: [_tell(rule) for rule in failed if (rule["level"] == BLOCKING) == (level == "blocking")]
        for level in ("blocking", "warnings")
    }
    return {
        "success": not told["blocking"],
        "suite": suite,
        "suite_digest": file_digest(SUITES / f"{suite}.json"),
        "dataset_digest": dataset.content_digest,
        "images": len(dataset.manifest),
        "rejects": len(dataset.rejects),
        **told,
        "rules": rules,
    }


def _describe_rule(result: Any) -> dict[str, Any]:
    config = result.expectation_config
    found = result.result or {}
    rows = found.get("unexpected_index_list") or []
    return {
        "rule": config.meta.get("rule", config.type),
        "expectation": config.type,
        "column": config.kwargs.get("column") or config.kwargs.get("column_list"),
        "level": str(getattr(config.severity, "value", config.severity)),
        "success": bool(result.success),
        "failing": int(found.get("unexpected_count") or 0),
        "rows": [{key: html.unescape(str(value)) for key, value in row.items()} for row in rows[:ROWS_NAMED]],
        "error": _exception(result),
    }


def _exception(result: Any) -> str | None:
    """What went wrong when a rule could not be judged at all, or None."""
    told = [result.exception_info, *(result.exception_info or {}).values()]
    raised = [info for info in told if isinstance(info, dict) and info.get("raised_exception")]
    return str(raised[0].get("exception_message")) if raised else None


def _tell(rule: dict[str, Any]) -> str:
    ids = ", ".join(row.get("image_id", "") for row in rule["rows"][:3])
    more = "" if rule["failing"] <= 3 else ", ..."
    return f"{rule['rule']} ({rule['failing']} rows: {ids}{more})" if rule["failing"] else rule["rule"]


# Great Expectations' pages load styles and scripts from content networks. Offline those requests hang and the page is
# bare, so remote resources are taken out and a small style sheet of the same class names is put in.
_REMOTE = re.compile(
    r"<link[^>]+href=\"https?://[^>]*>|<script[^>]+src=\"https?://[^>]*>\s*</script>|<img[^>]+src=\"https?://[^>]*>", re.DOTALL
)
_STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;margin:1.5rem auto;max-width:1100px;padding:0 1rem;color:#1c2733;background:#fff}
table{border-collapse:collapse;margin:.5rem 0;width:100%}td,th{border:1px solid #cfd8e3;padding:.3rem .6rem;text-align:left;
vertical-align:top;overflow-wrap:anywhere}h1,h2,h3,h4,h5{line-height:1.2}a{color:#0b5cad}.card{border:1px solid #cfd8e3;
border-radius:6px;padding:.8rem;margin:.8rem 0}.fa-times,.text-danger{color:#b3261e}.fa-times:before{content:"\\2717"}
.fa-check-circle,.text-success{color:#1b6e3c}.fa-check-circle:before{content:"\\2713"}.modal,.ge-walkthrough-button,
footer,#ge-cta-footer,.cta-btn-container,.popover,button{display:none!important}
ul{padding-left:1.2rem}.badge{background:#eef2f7;border-radius:4px;padding:0 .4em}
</style>"""


_REMOTE_STYLE = re.compile(r"url\(['\"]?https?://[^)]*\)")


def _copy_offline(site: Path, target: Path) -> None:
    """Copy the Data Docs so that they open without a network; the index gets plain links, its own list needs scripts."""
    shutil.copytree(site, target, ignore=shutil.ignore_patterns("static"))
    results = sorted(page.relative_to(target).as_posix() for page in (target / "validations").rglob("*.html"))
    links = "".join(f'<p><a href="{page}">Results: which rows fail which rule</a></p>' for page in results)
    for page in target.rglob("*.html"):
        text = _REMOTE_STYLE.sub("none", _REMOTE.sub("", page.read_text())).replace("</head>", _STYLE + "</head>", 1)
        if page == target / "index.html":
            text = text.replace("</body>", links + "</body>", 1)
        page.write_text(text)
