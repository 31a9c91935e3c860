"""What the command shows to a person: tables and progress. Progress goes to stderr, results to stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dermaflow.wording import in_words

_WIDE = None if sys.stdout.isatty() else 150  # a log has no width of its own; 80 would break every table
out = Console(soft_wrap=True, highlight=False, width=_WIDE)
err = Console(stderr=True, soft_wrap=True, highlight=False)
_SECONDS_BETWEEN_LINES = 10.0  # of progress, where there is no terminal
NOT_A_RESULT = "pipeline check, not a result"
NOT_AVAILABLE = "not available"
_METRICS = {"top3": "top 3", "f1": "F1", **{name: name.upper() for name in ("ppv", "npv", "auroc", "auprc")}}


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def error(message: str) -> None:
    """An error for a person, on stderr."""
    err.print(f"[bold red]error:[/] {escape(message)}")


class Bar:
    """A progress bar with the time left; without a terminal, a line now and then."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._told = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._progress.add_task(text, total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, done: int, total: int, text: str | None = None) -> None:
        """Show that `done` of `total` are finished."""
        self._progress.update(self._task, completed=done, total=total, description=escape(text or self._text))
        if not err.is_terminal and time.monotonic() - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            err.print(f"  {escape(text or self._text)}: {done}/{total}")

    def on_event(self, event: dict[str, Any]) -> None:
        """Show what a step tells: progress, that it waits, and what it could not do."""
        if event["event"] == "progress":
            self.update(event["done"], event["total"], event["text"])
        elif event["event"] == "waiting":
            err.print(f"  {escape(event['text'])} ({event['seconds']:.0f} s)")
        elif event["event"] == "warning":
            err.print(f"  [yellow]warning[/] {escape(event['message'])}")

    def clear(self, text: str) -> None:
        """Go back to an unknown amount of work."""
        self._progress.reset(self._task, total=None, description=escape(text))


class RunDisplay:
    """A run's events as lines, one a step, with a bar below for the step at work."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._bar = Bar("starting")

    def __enter__(self) -> Self:
        err.print(f"run [bold]{self._run_id}[/]")
        self._bar.__enter__()
        return self

    def __exit__(self, *arguments: object) -> None:
        self._bar.__exit__(*arguments)

    def on_event(self, event: dict[str, Any]) -> None:
        """Show one event of pipelines.local."""
        if event["event"] == "task_started":
            self._bar.clear(event["task"])
        elif event["event"] == "task_finished":
            mark = (
                "[red]failed[/]"
                if event["state"] != "SUCCEEDED"
                else "[dim]cached[/]"
                if event["cached"]
                else "[green]done[/]  "
            )
            err.print(f"  {mark} {event['task']:<26} {event['seconds']:7.1f} s")
        elif event["event"] == "retry":
            err.print(
                f"  [yellow]ended[/]  {event['task']:<26} exit code {event['exit_code']}; it goes on from where it was, "
                f"{event['attempt']} of {event['of']}"
            )
        else:
            self._bar.on_event(event)


def run_summary(summary: dict[str, Any]) -> None:
    """The end of `dermaflow run`: models, segmentation, registered version, gates, and where things are."""
    table = Table(title="Models" + (" (synthetic images)" if summary["synthetic"] else ""), title_justify="left")
    for name in ("architecture", "validation balanced accuracy", "test balanced accuracy", "parameters", "seconds", ""):
        table.add_column(name, justify="left" if name in ("architecture", "") else "right")
    for entry in summary["architectures"]:
        table.add_row(
            entry["name"],
            in_words(entry["validation"]["balanced_accuracy"]),
            in_words(entry["test"]["balanced_accuracy"]),
            f"{entry['parameters']:,}",
            f"{entry['train_seconds']:.0f}" if entry["train_seconds"] is not None else "",
            NOT_A_RESULT if entry["pipeline_check"] else "",
        )
    out.print(table)
    if summary["out_of_fold"]:
        out.print(_out_of_fold(summary["out_of_fold"]))
    masks = summary["segmentation"]
    if masks and masks["mean_dice"] is not None:
        out.print(
            f"Segmentation: mean Dice {masks['mean_dice']:.3f} against expert masks "
            f"({masks['mean_dice_over_classes']:.3f} averaged over classes), fallback {masks['fallback_share']:.1%}"
        )
    candidate = summary["candidate"]
    out.print(
        f"Registered: {candidate['name']} version {candidate['version']} ({candidate['architecture']}), "
        f"alias {candidate['alias']}"
    )
    _gates(summary)
    paths = summary["paths"]
    out.print(f"Report:   {_near(paths['report'])}")
    out.print(f"Registry: {paths['tracking_uri']}  (open it: .venv/bin/mlflow ui --backend-store-uri {paths['tracking_uri']})")


def _out_of_fold(pooled: Sequence[dict[str, Any]]) -> Table:
    held_out = f"{pooled[0]['folds']} folds, {pooled[0]['n_images']} images of {pooled[0]['n_lesions']} lesions"
    table = Table(title=f"Out of fold: {held_out}", title_justify="left")
    for name in ("architecture", "balanced accuracy", "its mean of folds (SD)", "AUROC", "its mean of folds (SD)", ""):
        table.add_column(name, justify="left" if name in ("architecture", "") else "right")
    for entry in pooled:
        cells = []
        for name in ("balanced_accuracy", "auroc"):
            spread = entry["over_folds"][name]
            cells += [in_words(entry[name]), f"{spread['mean']:.3f} ({spread['sd']:.3f})"]
        table.add_row(entry["architecture"], *cells, NOT_A_RESULT if entry["pipeline_check"] else "")
    return table


def _gates(summary: dict[str, Any]) -> None:
    champion = summary["champion"]
    failed = [gate for gate in summary["gates"] if gate["verdict"] == "fail"]
    said = {
        "promoted": "promoted",
        "already_champion": "it is the champion already",
        "disabled": "promotion is disabled",
        "would_promote": "every gate passed; promote.mode is dry_run, so nothing was moved",
        "awaiting_approval": "every gate passed; people have to agree: dermaflow promote --approver NAME",
        "refused": f"refused by {', '.join(gate['name'] for gate in failed)}",
    }[summary["outcome"]]
    now = f"{champion['name']} version {champion['version']}" if champion else "none"
    out.print(f"Champion: {now}. Decision on the challenger: [bold]{said}[/]")
    out.print(_gate_table(summary["gates"]))


def _gate_table(gates: Sequence[dict[str, Any]]) -> Table:
    table = Table("gate", "verdict", "estimate", "threshold", "why")
    for gate in gates:
        colour = {"pass": "green", "fail": "red", "waived": "yellow"}.get(gate["verdict"], "dim")
        table.add_row(
            gate["name"],
            f"[{colour}]{gate['verdict'].replace('_', ' ')}[/]",
            in_words(gate) if gate["low"] is not None else _number(gate["estimate"]),
            _number(gate["threshold"]),
            escape(gate["reason"]),
        )
    return table


def checks(found: Sequence[Any], tasks: Sequence[dict[str, Any]]) -> None:
    """`dermaflow check`: what was looked at, and the graph."""
    table = Table("check", "", "")
    for item in found:
        table.add_row(item.name, "[green]ok[/]" if item.ok else "[red]fault[/]", escape(item.detail))
    out.print(table)
    graph = Table("task", "after", "GPU", "cached", "image")
    for task in tasks:
        graph.add_row(
            task["name"], ", ".join(task["after"]), str(task["gpu"] or ""), "yes" if task["cached"] else "no", task["image"]
        )
    out.print(graph)


def prepared(summary: dict[str, Any]) -> None:
    """`dermaflow data prepare`: what came of the source."""
    data = summary["dataset"]
    rejects = ", ".join(f"{reason} {count}" for reason, count in data["rejects"].items()) or "none"
    out.print(f"Images: {data['images']:,} of {data['lesions']:,} lesions; withdrawn {data['withdrawn']}")
    out.print(f"Rejected: {escape(rejects)}")
    table = Table("class", *summary["splits"]["counts"])
    parts = summary["splits"]["counts"].values()
    for name in next(iter(parts))["images_per_class"]:
        table.add_row(name, *(str(part["images_per_class"][name]) for part in parts))
    table.add_row("all images", *(str(part["images"]) for part in parts), style="bold")
    table.add_row("all lesions", *(str(part["lesions"]) for part in parts), style="bold")
    out.print(table)
    for warning in summary["warnings"]:
        out.print(f"[yellow]warning:[/] {escape(warning)}")
    for name, path in summary["paths"].items():
        out.print(f"{name.replace('_', ' ')}: {escape(path)}")


def validation(report: dict[str, Any], folder: Path) -> None:
    """`dermaflow validate`: each rule, the rows that fail it, and drift."""
    table = Table("rule", "level", "", "failing rows")
    for rule in report["rules"]:
        ids = ", ".join(row.get("image_id") or next(iter(row.values())) for row in rule["rows"][:5])
        more = f" and {rule['failing'] - 5} more" if rule["failing"] > 5 else ""
        failed = {"critical": "[red]FAIL[/]", "warning": "[yellow]warn[/]"}.get(rule["level"], "[blue]note[/]")
        verdict = "[green]pass[/]" if rule["success"] else failed
        table.add_row(escape(rule["rule"]), rule["level"], verdict, escape(rule["error"] or ids + more))
    out.print(table)
    if report["drift"]:
        _drift(report)
    verdict = "passed" if report["success"] else f"failed: {'; '.join(report['blocking'])}"
    by = ", by its metadata and list of files alone" if report["stage"] == "listing" else ""
    out.print(f"Suite {report['suite']} on {report['images']} images ({report['rejects']} rejected){by}: {escape(verdict)}")
    out.print(f"Data Docs: {folder / 'data_docs' / 'index.html'}")


def _drift(report: dict[str, Any]) -> None:
    table = Table("column", "test", "statistic", "threshold", "p", "verdict", title="Drift", title_justify="left")
    colours = {"stable": "green", "shifted": "yellow", "drifted": "red"}
    for entry in report["drift"]:
        colour = colours[entry["verdict"]]
        numbers = (_number(entry[name]) for name in ("statistic", "threshold", "p_value"))
        table.add_row(entry["column"], entry["test"], *numbers, f"[{colour}]{entry['verdict']}[/]")
    out.print(table)


def evaluation(result: dict[str, Any]) -> None:
    """`dermaflow evaluate`: figures overall, per class, at the operating points, of calibration and per subgroup."""
    table = Table("metric", "estimate (95 % interval over lesions)")
    for name, value in result["metrics"].items():
        table.add_row(_METRICS.get(name, name.replace("_", " ")), in_words(value))
    out.print(table)
    classes = Table("class", "images", "lesions", "sensitivity", "specificity", "AUROC")
    for name, values in result["per_class"].items():
        classes.add_row(name, *_sizes(values), *(in_words(values[key]) for key in ("sensitivity", "specificity", "auroc")))
    out.print(classes)
    _probabilities(result)
    _subgroups(result)
    _told_of_evaluation(result)


def _probabilities(result: dict[str, Any]) -> None:
    questions = result["operating_points"].values()
    points = Table("at the operating point", *result["operating_points"])
    points.add_row("images of lesions", *(" of ".join(_sizes(point)) for point in questions))
    points.add_row("threshold", *(_number(point["threshold"]) or NOT_AVAILABLE for point in questions))
    for name in ("sensitivity", "specificity", "ppv", "npv", "auroc"):
        points.add_row(_METRICS.get(name, name), *(in_words(point[name]) for point in questions))
    if questions:
        out.print(points)
    temperature = NOT_AVAILABLE if result["temperature"] is None else _number(result["temperature"])
    calibration = Table("probabilities", "negative log-likelihood", "Brier score", "expected calibration error")
    for stage, values in result["calibration"].items():
        cells = [in_words(values[key]) for key in ("nll", "brier", "ece")] if values else [NOT_AVAILABLE] * 3
        calibration.add_row(f"{stage} temperature" + (f" {temperature}" if values and stage == "after" else ""), *cells)
    out.print(calibration)


def _subgroups(result: dict[str, Any]) -> None:
    from dermaflow.figures import SUBGROUPS

    table = Table("subgroup", "images", "lesions", "balanced accuracy", "accuracy")
    for attribute, members in result["subgroups"].items():
        for name, values in members.items():
            few = values["n_lesions"] < result["least_lesions"]
            cells = ("too few", "") if few else (in_words(values[key]) for key in ("balanced_accuracy", "accuracy"))
            table.add_row(escape(f"{SUBGROUPS[attribute]}: {name.replace('_', ' ')}"), *_sizes(values), *cells)
    if result["subgroups"]:
        out.print(table)


def _told_of_evaluation(result: dict[str, Any]) -> None:
    kind = "synthetic images" if result["synthetic"] else "images"
    check = f"; {NOT_A_RESULT}" if result["pipeline_check"] else ""
    out.print(
        f"{escape(result['model'])} ({result['architecture']}{check}) on {escape(result['data'])}: "
        f"{result['n_images']:,} {kind} of {result['n_lesions']:,} lesions"
    )
    if result["rejected"]:
        out.print("Unusable: " + ", ".join(f"{reason} {count}" for reason, count in result["rejected"].items()))
    if result["left_out"] is None:
        out.print("[yellow]The model does not say what it was made with: some of these images may be among it.[/]")
    elif result["left_out"]:
        out.print(
            f"Left out, since the model was made with them or with others of their lesions: {result['left_out']:,} images"
        )
    if result["evaluation"]:
        out.print(f"Evaluation: {escape(result['evaluation'])}")


def _sizes(values: dict[str, Any]) -> tuple[str, str]:
    return f"{values['n_images']:,}", f"{values['n_lesions']:,}"


def tuning(result: dict[str, Any]) -> None:
    """`dermaflow tune`: the trials, best first, and how to take over the best."""
    table = Table("trial", "validation balanced accuracy", "less than the best", "epoch kept", "seconds", "experiment")
    for trial in result["trials"]:
        table.add_row(
            ", ".join(f"{key.removeprefix('train.')}={value}" for key, value in trial["settings"].items()),
            in_words(trial[result["metric"]]),
            "best" if trial["difference"] is None else in_words(trial["difference"]),
            f"{', '.join(map(str, trial['kept_epochs']))} of {trial['epochs']}",
            f"{trial['seconds']:.0f}",
            trial["experiment"],
        )
    out.print(table)
    rivals = [trial["difference"] for trial in result["trials"] if trial["difference"] is not None]
    if rivals and rivals[0]["low"] <= 0 <= rivals[0]["high"]:
        out.print("The best two differ by no more than chance explains: the choice between them is a coin toss.")
    out.print("Take it over: " + " ".join(f"--set {key}={value}" for key, value in result["best"].items()))


def versions(found: Sequence[dict[str, Any]], uri: str) -> None:
    """`dermaflow models`: the registered versions."""
    table = Table("model", "version", "alias", "architecture", "test balanced accuracy", "data", "decision", "registered")
    for item in found:
        tags = {key.removeprefix("dermaflow."): value for key, value in item["tags"].items()}
        table.add_row(
            item["name"],
            str(item["version"]),
            ", ".join(item["aliases"]),
            tags.get("architecture", ""),
            _number(float(tags["test.balanced_accuracy"])) if "test.balanced_accuracy" in tags else "",
            escape(tags.get("data.name", "")),
            tags.get("decision", ""),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(item["created_ms"] / 1000)),
        )
    out.print(table if found else f"no versions in {uri} yet; run: dermaflow run")


def decision(result: dict[str, Any], *, dry_run: bool) -> None:
    """`dermaflow promote`: the gates, and what came of them."""
    candidate, champion, people = result["candidate"], result["champion"], result["approvals"]
    out.print(_gate_table(result["gates"]))
    if people["needed"]:
        out.print(
            f"Approvals: {len(people['given'])} of {people['needed']} ({escape(', '.join(people['given'])) or 'none yet'})"
        )
    now = f"{champion['name']} version {champion['version']}" if champion else "none"
    said = result["outcome"].replace("_", " ") + (f" by {', '.join(result['refused_by'])}" if result["refused_by"] else "")
    written = f"entries {', '.join(map(str, result['entries']))}" if result["entries"] else "nothing was written"
    written += ", this was a dry run" if dry_run else ""
    out.print(f"{candidate['name']} version {candidate['version']}: [bold]{said}[/]. Champion: {now}. Ledger: {written}")


def model(result: dict[str, Any]) -> None:
    """`dermaflow models show`: gates and history of a version."""
    aliases = f" @ {', '.join(result['aliases'])}" if result["aliases"] else ""
    out.print(f"[bold]{result['name']} version {result['version']}[/]{aliases}")
    if not result["in_ledger"]:
        out.print("[red]No entry of the ledger made this version.[/]")
        return
    if result["copied_from"]:
        out.print(f"A copy of {result['copied_from']}")
    out.print(f"Registered {result['registered']['at'][:19]} by {escape(result['registered']['by'])}")
    for name, digest in result["digests"].items():
        out.print(f"  {name:<12} {digest}")
    out.print(f"Models judged on its test set so far: {result['looks']}")
    if result["gates"]:
        out.print(_gate_table(result["gates"]))
    table = Table("entry", "at (UTC)", "kind", "by", "", title="Ledger", title_justify="left")
    for entry in result["entries"]:
        table.add_row(str(entry["number"]), entry["at"][:19], entry["kind"], escape(entry["actor"]), escape(entry["says"]))
    out.print(table)


def exported(result: dict[str, Any]) -> None:
    """`dermaflow audit`: where the dossier is, and what did not hold."""
    _findings(result["findings"])
    out.print(f"{escape(result['model'])}: {escape(result['page'])}")
    out.print(f"Dossier: {result['digest']}. Ledger: entry {result['ledger']['number']}, {result['ledger']['digest']}")
    verdict = "[green]all holds[/]" if result["ok"] else f"[red]{len(result['findings'])} findings[/], told in it"
    out.print(f"{verdict}. Check it anywhere with: dermaflow verify {escape(result['dossier'])}")


def _findings(findings: Sequence[dict[str, Any]]) -> None:
    if not findings:
        return
    table = Table("finding", "where", "", "--repair")
    for item in findings:
        table.add_row(f"[red]{item['name']}[/]", escape(item["where"]), escape(item["detail"]), escape(item["mend"] or ""))
    out.print(table)


def verified(result: dict[str, Any]) -> None:
    """`dermaflow verify`: what was found and what was mended."""
    _findings(result["findings"])
    for item in result["mended"]:
        out.print(f"[green]mended[/] {item['name']}, {escape(item['where'])}: {escape(item['mend'] or '')}")
    for item in result["again"]:
        out.print(f"{item['version']}: {escape(item['says'])}")
    ledger, versions = result["ledger"], ", ".join(result["versions"]) or "none"
    anchored = f", in line with {result['anchor']}" if result["anchor"] and result["ok"] else ""
    out.print(
        f"Ledger: {escape(ledger['place'])}, {ledger['entries']} entries, head {ledger['head']['digest']}{escape(anchored)}"
    )
    verdict = "[green]all holds[/]" if result["ok"] else f"[red]{len(result['findings'])} findings[/]"
    out.print(f"Versions looked at: {versions}. {verdict}")


def roles(result: dict[str, Any]) -> None:
    """`dermaflow roles`: what was done, what differs, and who else may change something."""
    for item in result["done"]:
        out.print(f"[green]done[/] {escape(item['subject'])}: {escape(item['found'])}; {escape(item['wanted'])}")
    if result["differs"]:
        table = Table("what", "is", "to be", "")
        for item in result["differs"]:
            table.add_row(
                *(escape(item[name]) for name in ("subject", "found", "wanted")), "" if item["mendable"] else "[red]by hand[/]"
            )
        out.print(table)
    for name, rights in result["others"].items():
        out.print(f"Not in the table, and may change something: {escape(name)} ({escape(rights)})")
    out.print("[green]all is as the table has it[/]" if result["ok"] else f"[red]{len(result['differs'])} differences[/]")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _near(path: str) -> str:
    """A path relative to the working folder, where it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
