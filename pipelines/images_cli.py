"""The commands `dermaflow images build | push | lock | check`: the images that steps run in, in containers and on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dermaflow.errors import InputError
from pipelines import show
from pipelines.images import GROUPS, ImagesLock, require_lock
from pipelines.options import Json

images_app = typer.Typer(no_args_is_help=True, help="Build, push, lock and check the container images that steps run in.")

Groups = Annotated[
    list[str] | None,
    typer.Option("--group", "-g", metavar="GROUP", help=f"Of {', '.join(GROUPS)}; by default all of them. Repeatable."),
]
Registry = Annotated[
    str, typer.Option("--registry", metavar="HOST/PATH", help="Where images are pushed to, such as ghcr.io/owner/dermaflow.")
]
Tag = Annotated[str | None, typer.Option("--tag", metavar="TAG", help="By default the commit.", show_default=False)]


@images_app.command()
def build(
    groups: Groups = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="What to build on: Python 3.11, best by digest. By default as in the Dockerfile."),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="TensorFlow without CUDA in the image of the trainings.")] = False,
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificates that pip shall trust; they do not come into the image.")
    ] = None,
    registry: Registry = "",
    tag: Tag = None,
    as_json: Json = False,
) -> None:
    """Build images from the commit that is checked out; with --registry they are also named as they are pushed."""
    from pipelines import image_builds

    done = image_builds.build(_known(groups), base=base, cpu=cpu, ca=ca, registry=registry or None, tag=tag)
    if as_json:
        show.print_json([vars(image) for image in done])
    else:
        for image in done:
            typer.echo(f"{image.name}: {image.bytes / 1e6:.0f} MB, {image.id}")


@images_app.command()
def push(registry: Registry, groups: Groups = None, tag: Tag = None, as_json: Json = False) -> None:
    """Push the images that were built, and write infra/images/lock.yaml by the digests that the registry then has.

    They are marked release, or local where the registry is this machine's: a cluster is never told of those.
    """
    from pipelines import image_builds

    _tell(image_builds.push(_known(groups), registry, tag), as_json)


@images_app.command()
def lock(registry: Registry = "", groups: Groups = None, tag: Tag = None, as_json: Json = False) -> None:
    """Show infra/images/lock.yaml; with --registry write it anew by what the registry has under a tag."""
    from pipelines import image_builds

    _tell(image_builds.lock(_known(groups), registry, tag) if registry else require_lock(), as_json)


@images_app.command()
def check(as_json: Json = False) -> None:
    """Hold every image of the lock against its registry and the code that is here: exit 0 all is well, 1 each fault is told."""
    from pipelines import image_builds

    faults = image_builds.check()
    if as_json:
        show.print_json({"ok": not faults, "faults": [vars(fault) for fault in faults]})
    else:
        for fault in faults:
            show.error(f"{fault.group}: {fault.detail}")
    if faults:
        raise typer.Exit(1)


def _known(groups: list[str] | None) -> list[str]:
    """The groups that were asked for, in their order; raises InputError naming one that there is not."""
    unknown = sorted(set(groups or ()) - set(GROUPS))
    if unknown:
        raise InputError(f"--group {', '.join(unknown)}: there is no such group of steps; allowed: {', '.join(GROUPS)}")
    return [group for group in GROUPS if not groups or group in groups]


def _tell(known: ImagesLock, as_json: bool) -> None:
    told: dict[str, Any] = known.model_dump(mode="json")
    if as_json:
        show.print_json(told)
        return
    for group, image in known.images.items():
        typer.echo(f"{group}: {image.pinned}, {image.mark}, of commit {image.revision[:12]}")
