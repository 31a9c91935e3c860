"""The `dermaflow` command.

Exit codes: 0 in order; 1 a check or gate did not pass, or a step failed; 2 the request can not be carried out as given
(the message says which file, field or value, and what to do); 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaflow.access import files_through_server
from dermaflow.errors import DermaflowError, InputError
from dermaflow.params import Params, load_params
from dermaflow.progress import set_environment, told_to
from dermaflow.refusals import READER, refusals_told
from pipelines import cluster_cli, roles_cli, show
from pipelines.images import LOCK
from pipelines.images_cli import images_app
from pipelines.options import Host, Images, Json, Namespace, On, Profile, Sets

app = typer.Typer(
    name="dermaflow",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Retrain, judge, explain, register and promote skin-lesion classifiers. Research software, not a medical device.",
    epilog="Exit codes: 0 in order; 1 a check, gate or step failed; 2 bad input, nothing was changed; 130 interrupted.",
)
data_app = typer.Typer(no_args_is_help=True, help="Get data: HAM10000 or synthetic lesions; ingest, validate and split it.")
app.add_typer(data_app, name="data")
models_app = typer.Typer(invoke_without_command=True, help="List the registered versions of both models; show one.")
app.add_typer(models_app, name="models")
app.add_typer(images_app, name="images")

cluster_cli.add_to(app)
roles_cli.add_to(app)


@app.command()
def run(profile: Profile = "default", overrides: Sets = None, on: On = "local", as_json: Json = False) -> None:
    """Run the whole pipeline: from images to a registered, explained, promoted-or-refused model.

    Steps whose inputs and code did not change are answered from the cache. An interrupted run goes on where it stopped
    when it is started again. With --on docker each step has a container: `dermaflow images build` makes the images. On a
    cluster it is `dermaflow submit`, which has more options.
    """
    if on == "cluster":
        cluster_cli.submit(profile, overrides, as_json=as_json)
    else:
        from pipelines.running import run_locally

        run_locally(load_params(profile, overrides or ()), as_json=as_json, in_containers=on == "docker")


@app.command()
def check(
    profile: Profile = "default",
    overrides: Sets = None,
    on: On = "local",
    host: Host = None,
    namespace: Namespace = None,
    lock: Images = LOCK,
    as_json: Json = False,
) -> None:
    """Dry run: parameters, data, weights, policy, places to write, registry, and the compiled graph with its GPUs.

    With --on docker also the images of this machine; with --on cluster images by digest, the KFP API, secrets, volume, GPU
    pools, object store and MLflow.
    """
    from pipelines import graph, preflight

    params = load_params(profile, overrides or ())
    checks = preflight.run_checks(params, here=on != "cluster")
    if on == "docker":
        from pipelines.containers import look_at_images

        checks.append(preflight.checked("images", look_at_images, params))
    if on == "cluster":
        checks += cluster_cli.checks(params, host, namespace, lock)
    tasks = graph.tasks(params)
    ok = all(item.ok for item in checks)
    if as_json:
        show.print_json({"ok": ok, "profile": profile, "checks": [vars(item) for item in checks], "tasks": tasks})
    else:
        show.checks(checks, tasks)
    if not ok:
        raise typer.Exit(2)


@app.command()
def compile(  # noqa: A001 - the verb that KFP users know
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the IR YAML.")] = Path("dermaflow.yaml"),
    profile: Profile = "default",
    overrides: Sets = None,
) -> None:
    """Compile the pipeline to KFP's IR YAML; its parameters default to the profile's values.

    Images are named by digest as far as infra/images/lock.yaml has them.
    """
    from pipelines import graph
    from pipelines.images import read_lock

    graph.compile_to(output, load_params(profile, overrides or ()), read_lock())
    typer.echo(f"{output}: {output.stat().st_size / 1024:.0f} KiB", err=True)


@data_app.command()
def phantom(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make, in HAM10000's layout.")],
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 420,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 7,
    ruler: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Plant an artefact: a ruler on every image of this diagnosis.")
    ] = None,
) -> None:
    """Draw synthetic dermoscopic images with expert-style masks; labelled synthetic wherever they go."""
    from dermaflow.phantom import draw_phantoms

    with show.Bar(f"drawing {images} phantoms") as bar:
        draw_phantoms(directory, images=images, seed=seed, ruler=ruler, progress=bar.update)
    typer.echo(f"{directory}: {images} synthetic images, seed {seed}" + (f", a ruler on {ruler}" if ruler else ""), err=True)


@data_app.command()
def ham10000(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that the published files come to lie in.")],
    profile: Profile = "default",
    overrides: Sets = None,
) -> None:
    """Fetch HAM10000 (CC BY-NC 4.0, 3 GB) by its DOI: resumable, checked by checksum. Use it by --set data.source=DIR."""
    from components.ingest.dataverse import HAM10000_DOI, fetched_folder
    from components.ingest.store import link_file

    params = load_params(profile, [*(overrides or ()), f"data.source=doi:{HAM10000_DOI}"])
    with show.Bar("fetching") as bar, told_to(bar.on_event):
        folder = fetched_folder(params.data)
    directory.mkdir(parents=True, exist_ok=True)
    files = [path for path in folder.iterdir() if not path.name.startswith(".") and path.suffix != ".json"]
    for path in files:
        (directory / path.name).unlink(missing_ok=True)
        link_file(path, directory / path.name)
    typer.echo(f"{directory}: {len(files)} files, read in place by data.source={directory}", err=True)


@data_app.command()
def prepare(
    profile: Profile = "default",
    overrides: Sets = None,
    out: Annotated[Path, typer.Option(help="Folder for the artifacts, named as in dvc.yaml.")] = Path("artifacts"),
    as_json: Json = False,
) -> None:
    """Ingest, validate and split the data, without training: what a new delivery of images comes to.

    Only what is new since the last time is read. Exit 1: a blocking rule fails, and the report names the rows.
    """
    from pipelines.prepare import prepare as work
    from pipelines.prepare import summarise

    load_params(profile, overrides or ())  # a wrong parameter is told before anything starts
    with show.RunDisplay("data") as display:
        work(out, profile, overrides or (), display.on_event)
    summary = summarise(out)
    if as_json:
        show.print_json(summary)
    else:
        show.prepared(summary)


@app.command()
def validate(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="A source of images (folder, .zip, s3://..., doi:...), or an artifact's folder."),
    ],
    suite: Annotated[
        str | None,
        typer.Option(
            help="Suite in components/validate/suites; by default that of the artifact's kind, for a source manifest."
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Earlier Dataset (drift) or Splits (frozen test set) to compare with.")
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="DIR", help="The Dataset or Splits that DATA belongs to, if not beside it. Repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write the report and the Data Docs.")] = Path("validation"),
    profile: Profile = "default",
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Check data against an expectation suite, for CI: exit 0 it passes, 1 a blocking rule fails, 2 it can not be run.

    A source's metadata and list of files are judged first; its images are only read when nothing blocks there.
    """
    from pipelines.checking import check_data

    params = load_params(profile, overrides or ())
    with show.Bar("checking") as bar, told_to(bar.on_event):
        report = check_data(data, params, out, suite, reference, beside or ())
    if as_json:
        show.print_json({**report, "data_docs": str(out / "data_docs" / "index.html")})
    else:
        show.validation(report, out)
    if not report["success"]:
        raise typer.Exit(1)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A Model artifact's folder, or NAME@ALIAS or NAME/VERSION of the registry.")
    ],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Labelled images (folder, .zip, s3://..., doi:..., see docs/data.md), or a Dataset artifact."
        ),
    ],
    leave_out_seen: Annotated[
        bool, typer.Option("--leave-out-seen", help="Pass over lesions of the model's own training, instead of refusing DATA.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write predictions, all figures and pictures there, as an Evaluation.")
    ] = None,
    profile: Profile = "default",
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Judge a saved or registered model on any labelled images that it was not made with, with 95 % intervals over lesions.

    Images are known by their bytes and pixels, whatever they are called. Temperature and thresholds are those that the
    model's own validation images chose.
    """
    from pipelines.judging import judge

    params = load_params(profile, overrides or ())
    with show.Bar("judging") as bar, told_to(bar.on_event):
        result = judge(model, data, params, leave_out_seen=leave_out_seen, out=out)
    if as_json:
        show.print_json(result)
    else:
        show.evaluation(result)


@app.command()
def tune(
    architecture: Annotated[
        str, typer.Option("--architecture", "-a", help="Which one to tune; it must be in train.architectures.")
    ],
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            "-g",
            metavar="KEY=V,V",
            help="Values of a parameter: dropout and learning_rate of the architecture, or any key of params.yaml. Repeatable; "
            "by default the study's grid, dropout=0.2,0.5 and learning_rate=0.001,0.0001.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Try a small grid of training parameters, by validation images alone; each trial is a DVC experiment and an MLflow run.

    Works on dvc.yaml's data and profile. Features of frozen layers are computed once for all trials.
    """
    from pipelines.tuning import STUDY
    from pipelines.tuning import tune as work

    with show.Bar("tuning") as bar:
        result = work(architecture, grid or STUDY, lambda number, total, text: bar.update(number - 1, total, f"trial {text}"))
    if as_json:
        show.print_json(result)
    else:
        show.tuning(result)


@models_app.callback()
def models(context: typer.Context, profile: Profile = "default", overrides: Sets = None, as_json: Json = False) -> None:
    """List the registered versions of both models, with their aliases; `dermaflow models show MODEL` shows one."""
    from dermaflow import registry
    from dermaflow.access import open_registry
    from dermaflow.records import collection_paused

    if context.invoked_subcommand is not None:
        return
    params: Params = load_params(profile, overrides or ())
    client = open_registry(params.register_.tracking_uri)
    with collection_paused():
        versions = registry.list_versions(client)
    if not versions:  # who may not read a model is told of none
        registry.version_of(client, registry.PRODUCTION_MODEL, registry.CHAMPION)
    if as_json:
        show.print_json(versions)
    else:
        show.versions(versions, params.register_.tracking_uri)


@models_app.command("show")
def show_model(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME@ALIAS or NAME/VERSION of the registry.")],
    profile: Profile = "default",
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Show a version: its gates, and everything that the ledger says of it."""
    from pipelines.acting import shown

    result = shown(model, load_params(profile, overrides or ()))
    if as_json:
        show.print_json(result)
    else:
        show.model(result)


@app.command()
def promote(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A candidate, as NAME@ALIAS or NAME/VERSION.")
    ] = "dermaflow-candidate@challenger",
    approver: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who agrees; kept in the ledger. Not the requester, under four eyes.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge it and tell what would be done; write nothing.")] = False,
    profile: Profile = "default",
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Judge a candidate again, from its registered evidence, and make it champion where policy and people allow.

    Exit 0: it is champion (or would be, of a dry run); 1: refused, or people have to agree, or somebody else was first.
    """
    from pipelines.acting import promote as work

    result = work(model, load_params(profile, overrides or ()), approver=approver, dry_run=dry_run)
    if as_json:
        show.print_json(result)
    else:
        show.decision(result, dry_run=dry_run)
    if result["decided"] not in ("promote", "would_promote", "already_champion"):
        raise typer.Exit(1)


@app.command()
def waive(
    gate: Annotated[str, typer.Argument(metavar="GATE", help="One that the policy lets be waived (waivable).")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A candidate, as NAME@ALIAS or NAME/VERSION.")],
    reason: Annotated[str, typer.Option(help="Why; the ledger keeps it, and every decision shows it.")],
    until: Annotated[str, typer.Option(metavar="DAY", help="The last day on which it holds, as 2027-01-31.")],
    profile: Profile = "default",
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Let a gate not count for one version, until a day; the next decision on it heeds that."""
    from pipelines.acting import waive as work

    entry = work(gate, model, reason, until, load_params(profile, overrides or ()))
    if as_json:
        show.print_json(entry.to_dict())
    else:
        typer.echo(f"gate {gate} of {model} is waived until {entry.body['until']}: entry {entry.number} of the ledger")


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why; the ledger keeps it.")],
    to: Annotated[
        int | None,
        typer.Option(metavar="VERSION", help="Of the model dermaflow; by default the one that the champion replaced."),
    ] = None,
    profile: Profile = "default",
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Make an earlier champion champion again."""
    from pipelines.acting import roll_back

    result = roll_back(to, reason, load_params(profile, overrides or ()))
    if as_json:
        show.print_json(result)
    else:
        before, now = (f"{result[name]['name']} version {result[name]['version']}" for name in ("before", "champion"))
        typer.echo(f"champion: {now} (before: {before}); entry {result['entry']} of the ledger")


@app.command()
def audit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME, NAME@ALIAS or NAME/VERSION of the registry.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write; by default dossier-NAME-VERSION here.")
    ] = None,
    profile: Profile = "default",
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Write the dossier of a version: one page, its JSON, ledger and evidence, to be read and verified offline.

    Exit 0: all holds; 1: it was written, and names each finding. `dermaflow verify DIR` checks it without the registry.
    """
    from pipelines.audit import export

    result = export(model, load_params(profile, overrides or ()), out).to_dict()
    if as_json:
        show.print_json(result)
    else:
        show.exported(result)
    if not result["ok"]:
        raise typer.Exit(1)


@app.command()
def verify(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="NAME@ALIAS or NAME/VERSION; by default the champion and the challenger. Or one dossier's folder.",
        ),
    ] = None,
    anchor: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An earlier head of the ledger, made by: dermaflow anchor FILE.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Look at every version of both models.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Let the registry follow the ledger where a move was cut short or made by hand.")
    ] = False,
    replay: Annotated[bool, typer.Option("--replay", help="Let each model answer its test images again.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Run the pipeline again from the version's commit, data and parameters.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Where the images for --replay, --rebuild lie now, if elsewhere.")
    ] = None,
    profile: Profile = "default",
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Check ledger and registry by computing everything again. Exit 0: all holds; 1: each finding is named.

    Digests of all files, tags and metrics, figures from the stored predictions, gates from those figures, aliases. Of a
    dossier's folder (dermaflow audit) the same, offline, by what lies in it.
    """
    from functools import partial

    from pipelines import audit as dossiers
    from pipelines import replay as making
    from pipelines.verification import verify as work

    if data is not None and not (replay or rebuild):
        raise InputError("--data says where the images for --replay or --rebuild lie: give one of them too")
    if any(dossiers.is_folder(model) for model in models or ()):
        if replay or rebuild:
            raise InputError("--replay and --rebuild need the model and its run, which a dossier does not hold: name a version")
        result = dossiers.verify_named(models or (), anchor, every=every, repair=repair)
    else:
        make_again = [
            partial(make, data=data) for make, wanted in ((making.replay, replay), (making.rebuild, rebuild)) if wanted
        ]
        params = load_params(profile, overrides or ())
        with show.Bar("verifying") as bar, told_to(bar.on_event):
            result = work(models or (), params, anchor=anchor, every=every, repair=repair, make_again=make_again)
    if as_json:
        show.print_json(result.to_dict())
    else:
        show.verified(result.to_dict())
    if not result.ok:
        raise typer.Exit(1)


@app.command()
def anchor(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where to keep the head; lay it where the ledger's writers can not write.")
    ],
    profile: Profile = "default",
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Keep the head of the ledger in a file: `dermaflow verify --anchor FILE` finds what is cut off or written anew behind it.

    A file that holds an earlier head is moved on only where the ledger goes on from it.
    """
    from dermaflow.access import open_ledger
    from dermaflow.ledger import write_anchor

    ledger = open_ledger(load_params(profile, overrides or ()).register_)
    head = write_anchor(file, ledger)
    if as_json:
        show.print_json({"file": str(file), "ledger": ledger.place, **vars(head)})
    else:
        typer.echo(f"{file}: entry {head.number}, {head.digest}")


@app.command()
def report(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run id, or latest.")] = "latest",
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="OTHER",
            help="Set RUN beside another: a run, or NAME@ALIAS or NAME/VERSION of the registry, as RUN may be too.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write the comparison; by default compare-RUN-OTHER.html here.")
    ] = None,
    profile: Profile = "default",
    overrides: Sets = None,
) -> None:
    """Rebuild a run's report from its artifacts; or compare two runs or registered models, on a page of its own.

    Compared is on the test images that both have judged and neither was made with, image by image.
    """
    from pipelines import comparison, results
    from pipelines.report import write_report

    if compare is None and out is not None:
        raise InputError("--out is where a comparison goes: give --compare OTHER too; a run's own report stays in its folder")
    if compare is None:
        typer.echo(write_report(results.run_folder(run_id)))
    else:
        target = out or Path(comparison.file_name(run_id, compare))
        typer.echo(comparison.compare(run_id, compare, load_params(profile, overrides or ()), target))


def main() -> None:
    """Entry point: an error meant for people is one message and its exit code."""
    set_environment()
    files_through_server()
    try:
        with refusals_told(READER):
            result: Any = app(standalone_mode=False)
    except DermaflowError as error:
        show.error(str(error))
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        show.error("interrupted; start the same command again to go on")
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # click's usage errors
            show.error(f"{error.format_message()} (see: dermaflow --help)")
            sys.exit(2)
        raise
    sys.exit(result if isinstance(result, int) else 0)
