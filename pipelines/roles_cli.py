"""The command that sets up the roles on an MLflow server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dermaflow.params import load_params
from pipelines import show
from pipelines.options import Json, Profile, Sets


def add_to(app: typer.Typer) -> None:
    """Add the command to `dermaflow`."""
    app.command()(roles)


def roles(
    check: Annotated[bool, typer.Option("--check", help="Tell what differs, and change nothing.")] = False,
    table: Annotated[Path, typer.Option(metavar="FILE", help="Which accounts have which role.")] = Path("mlflow/roles.yaml"),
    passwords: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with a file for each account; or by DERMAFLOW_PASSWORD_<ACCOUNT>[_FILE]."),
    ] = None,
    profile: Profile = "default",
    overrides: Sets = None,
    as_json: Json = False,
) -> None:
    """Set up models, experiment, roles and accounts on an MLflow server, as its administrator. Safe to run again.

    What the table's accounts may do beyond their role is taken away; everything else on the server is left alone.
    Exit 0: all is as the table has it; 1: something differs.
    """
    from dermaflow.roles import read_table
    from dermaflow.server_roles import set_up

    register = load_params(profile, overrides or ()).register_
    found = set_up(register.tracking_uri, register.experiment, read_table(table), passwords, check=check).to_dict()
    if as_json:
        show.print_json(found)
    else:
        show.roles(found)
    if not found["ok"]:
        raise typer.Exit(1)
