"""Recurring runs from a file in git: what is in the file is what is on the cluster, and what others made is left alone.

A recurring run keeps the parameters that it was made with. So its pipeline is compiled with reading never cached, and it
carries no digest of the source: it reads what is there when it starts. What it goes on from (split.previous) is fixed until
`dermaflow schedule` is called again. For a source that grows, `dermaflow trigger` asks anew each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dermaflow.artifacts import json_digest
from dermaflow.checked_yaml import read_settings
from dermaflow.params import Params, Section, load_params
from pipelines import cluster, provision
from pipelines.cluster import Cluster, Uploaded
from pipelines.images import LOCK

MARK = "made by dermaflow schedule, from a file: "  # begins the description of what is ours; the digest of its request follows
READING = ("ingest-originals", "ingest")
_PAGE = 100


class Entry(Section):
    """One recurring run."""

    cron: Annotated[str, Field(pattern=r"^\S+( \S+){5}$")]  # six fields, seconds first; UTC
    profile: str = "default"
    set: tuple[str, ...] = ()
    enabled: bool = True
    catch_up: bool = False  # also start the runs that were missed while the schedule was off
    at_once: Annotated[int, Field(ge=1, le=10)] = 1


class Schedules(Section):
    """The file: name -> recurring run."""

    version: Annotated[int, Field(ge=1, le=1)]
    schedules: Mapping[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,60}$")], Entry]


@dataclass(frozen=True)
class Change:
    """What differs between file and cluster for one name."""

    action: Literal["create", "update", "remove", "keep"]
    name: str
    detail: str


@dataclass(frozen=True)
class _Wanted:
    """A recurring run as it should be; `digest` covers all of it."""

    entry: Entry
    params: Params
    arguments: Mapping[str, Any]
    uploaded: Uploaded | None
    digest: str


def read_schedules(path: Path) -> Schedules:
    """The file; raises InputError naming the field that is wrong."""
    return read_settings(path, Schedules, missing="an example is infra/schedules.yaml")


def apply(found: Cluster, schedules: Schedules, *, dry_run: bool, lock: Path = LOCK) -> list[Change]:
    """Make the cluster's recurring runs those of the file; with `dry_run` tell the difference alone.

    A recurring run that is to be another one is made anew, and the old one is removed after that: a failure in between
    leaves two, which the next call puts right, and never none.

    Raises
    ------
    InputError
        when parameters name what pods can not reach, images are not released, or the API refuses.
    """
    table = provision.read_table()
    wanted = {name: _wanted(found, entry, table, lock, dry_run=dry_run) for name, entry in schedules.schedules.items()}
    ours = list(_ours(found))
    changes = []
    for name, one in wanted.items():
        there = [run for run in ours if run.display_name == name]
        right = [run for run in there if run.description == MARK + one.digest]
        stale = [run for run in there if run not in right[:1]]
        changes.append(_change(name, one.entry, there, right, stale))
        if not dry_run:
            if not right:
                _create(found, name, one, table)
            _remove(found, stale)
    gone = [run for run in ours if run.display_name not in wanted]
    changes += [Change("remove", str(run.display_name), f"is not in the file; {_when(run)}") for run in gone]
    if not dry_run:
        _remove(found, gone)
    return changes


def _wanted(found: Cluster, entry: Entry, table: provision.Table, lock: Path, *, dry_run: bool) -> _Wanted:
    params = load_params(entry.profile, entry.set)
    cluster.require_reachable(params, table)
    images = cluster.locked(params, table, lock)
    arguments = {**cluster.arguments(params, table), "source_digest": ""}
    asked = [entry.model_dump(mode="json"), arguments, images.model_dump(mode="json"), table.model_dump(mode="json")]
    uploaded = None if dry_run else cluster.upload(found, params, images, READING)
    return _Wanted(entry, params, arguments, uploaded, json_digest(asked))


def _change(name: str, entry: Entry, there: list[Any], right: list[Any], stale: list[Any]) -> Change:
    told = f"{entry.cron}, profile {entry.profile}" + ("" if entry.enabled else ", disabled")
    if not there:
        return Change("create", name, told)
    if not right:
        return Change("update", name, f"{told}; was {_when(there[0])}")
    return Change("update", name, f"{len(stale)} copies of it are removed") if stale else Change("keep", name, told)


def _ours(found: Cluster) -> Iterator[Any]:
    token = ""
    while True:
        with cluster.asking("listing recurring runs", found.host):
            page = found.client.list_recurring_runs(page_token=token, page_size=_PAGE, namespace=found.namespace)
        yield from (run for run in page.recurring_runs or () if (run.description or "").startswith(MARK))
        token = page.next_page_token or ""
        if not token:
            return


def _create(found: Cluster, name: str, one: _Wanted, table: provision.Table) -> None:
    if one.uploaded is None:
        raise RuntimeError("a dry run creates nothing")
    with cluster.asking(f"creating {name}", found.host):
        experiment = found.client.create_experiment(one.params.register_.experiment, namespace=found.namespace)
        found.client.create_recurring_run(
            experiment.experiment_id,
            name,
            description=MARK + one.digest,
            cron_expression=one.entry.cron,
            max_concurrency=one.entry.at_once,
            no_catchup=not one.entry.catch_up,
            params=one.uploaded.parameters(one.arguments),
            pipeline_id=one.uploaded.pipeline_id,
            version_id=one.uploaded.version_id,
            enabled=one.entry.enabled,
            service_account=table.run.service_account,
        )


def _remove(found: Cluster, runs: list[Any]) -> None:
    for run in runs:
        with cluster.asking(f"removing {run.display_name}", found.host):
            found.client.delete_recurring_run(run.recurring_run_id)


def _when(run: Any) -> str:
    return str(run.trigger.cron_schedule.cron) if run.trigger and run.trigger.cron_schedule else "not by cron"
