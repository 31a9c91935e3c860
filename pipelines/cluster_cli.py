"""The commands that speak with Kubeflow: submit, cancel, schedule; and trigger, which starts a run where it is told to."""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermaflow import places
from dermaflow.params import Params, load_params
from pipelines import show
from pipelines.images import LOCK
from pipelines.options import Host, Images, Json, Namespace, On, Profile, Sets

if TYPE_CHECKING:
    from pipelines.cluster import Cluster
    from pipelines.preflight import Check

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id on the cluster.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands to `dermaflow`."""
    for command in (submit, cancel, schedule, trigger):
        app.command()(command)


def submit(
    profile: Profile = "default",
    overrides: Sets = None,
    host: Host = None,
    namespace: Namespace = None,
    lock: Images = LOCK,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run; interrupting leaves it alone.")] = True,
    poll: Annotated[float, typer.Option("--poll", min=0.01, help="Seconds between two looks at the run.")] = 5,
    as_json: Json = False,
) -> None:
    """Run the pipeline on Kubeflow: upload it where it is new, start a run, follow it. Exit code 1 when it does not succeed.

    Refused before anything is uploaded: images without a released digest, and parameters that name what pods can not reach.
    """
    from pipelines import cluster

    params = load_params(profile, overrides or ())
    found, start = _prepared(params, host, namespace, lock)
    run_id = start(f"{params.profile}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}")
    link = found.link(run_id)
    show.err.print(f"run {run_id}: {link}", markup=False)
    told: dict[str, Any] = {"run_id": run_id, "link": link, "state": "SUBMITTED"}
    code = 0
    if wait:
        outcome = cluster.follow(
            found, run_id, lambda task, state: show.err.print(f"  {task}: {state.lower()}", markup=False), poll=poll
        )
        told |= {"state": outcome.state, "step": outcome.step, "message": outcome.message}
        code = outcome.exit_code
    if as_json:
        show.print_json(told)
    else:
        typer.echo(f"{told['state']}: {link}")
    if code:
        show.error(f"{told['step'] or 'run'}: {told['message']}\n{link}")
        raise typer.Exit(code)


def cancel(run_id: RunId, host: Host = None, namespace: Namespace = None) -> None:
    """End a run on the cluster. One that has ended is left as it is."""
    from pipelines import cluster

    found = cluster.connect(host, namespace)
    state = cluster.cancel(found, run_id)
    typer.echo(f"{run_id}: {f'had ended before, {state}' if state in cluster.ENDED else 'is being cancelled'}")


def schedule(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Recurring runs, in git: see infra/schedules.yaml.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what differs; change nothing.")] = False,
    host: Host = None,
    namespace: Namespace = None,
    lock: Images = LOCK,
    as_json: Json = False,
) -> None:
    """Make the cluster's recurring runs those of a file: create, update, remove. What others made is left alone."""
    from pipelines import cluster
    from pipelines import schedule as work

    schedules = work.read_schedules(file)
    changes = work.apply(cluster.connect(host, namespace), schedules, dry_run=dry_run, lock=lock)
    if as_json:
        show.print_json({"dry_run": dry_run, "changes": [vars(change) for change in changes]})
        return
    for change in changes:
        typer.echo(f"{change.action:<7}{change.name}: {change.detail}")
    if dry_run:
        typer.echo("nothing was changed: --dry-run", err=True)


def trigger(
    profile: Profile = "default",
    overrides: Sets = None,
    on: On = "cluster",
    at_least: Annotated[int, typer.Option("--at-least", min=1, help="New lesions that are worth a run.")] = 100,
    claims: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Folder or s3://bucket/prefix, one for all callers. [.dermaflow/claims]")
    ] = None,
    retry_after: Annotated[
        float, typer.Option("--retry-after", min=0, metavar="MINUTES", help="For how long a claim without a run is left alone.")
    ] = 60,
    host: Host = None,
    namespace: Namespace = None,
    lock: Images = LOCK,
    as_json: Json = False,
) -> None:
    """Start a run if the source's content is new and enough new lesions came since the newest registered version.

    Safe to call often, and at once from many places: a conditional create in PLACE decides, and all others say who was first
    and end with exit code 0.
    """
    from components.ingest.core import input_digest
    from pipelines import cluster
    from pipelines import trigger as work
    from pipelines.claims import Claims

    params = load_params(profile, overrides or ())
    place = Claims(claims or str(places.home() / "claims"))
    if on == "cluster":
        found, start = _prepared(params, host, namespace, lock)

        def begin(name: str, tell: Callable[[str], None]) -> None:
            earlier = next(filter(None, (cluster.find_run(found, before) for before in work.names_before(name))), None)
            tell(earlier or start(name))

    else:

        def begin(name: str, tell: Callable[[str], None]) -> None:  # noqa: ARG001 - a local run has an id alone
            from pipelines.running import run_locally

            run_locally(params, as_json=False, on_start=tell, in_containers=on == "docker")

    news = work.look(params, input_digest(params.data, places.state() / "ingest"))
    decision = work.trigger(params, news, place, begin, at_least=at_least, retry_after=datetime.timedelta(minutes=retry_after))
    if as_json:
        show.print_json(decision.to_json(news))
    else:
        typer.echo(
            f"{decision.outcome}: {decision.why}" + (f", run {decision.run_id}" if decision.outcome == "started" else "")
        )


def checks(params: Params, host: str | None, namespace: str | None, lock: Path) -> list[Check]:
    """What `dermaflow check --on cluster` looks at beyond the local checks."""
    from pipelines import provision
    from pipelines.cluster_check import Request, run_checks

    return run_checks(Request(params, provision.read_table(), host, namespace, lock))


def _prepared(params: Params, host: str | None, namespace: str | None, lock: Path) -> tuple[Cluster, Callable[[str], str]]:
    """The cluster, and how to start a run of a name there; everything that can be refused is refused here."""
    from pipelines import cluster, preflight, provision

    table = provision.read_table()
    images = cluster.locked(params, table, lock)
    cluster.require_reachable(params, table)
    preflight.require(params, here=False)
    found = cluster.connect(host, namespace)
    return found, lambda name: cluster.submit(found, params, images, name, cluster.arguments(params, table), table)
