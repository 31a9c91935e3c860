"""Options that several commands of `dermaflow` have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Profile = Annotated[
    str,
    typer.Option(
        "--profile", "-p", help="Parameter set: default (params.yaml as it is) or an overlay in params/: phantom, quick, paper."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one parameter, e.g. train.epochs=3. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress goes to stderr.")]
On = Annotated[
    Literal["local", "docker", "cluster"],
    typer.Option("--on", help="Where: processes of this machine, its containers, or Kubeflow Pipelines."),
]
Host = Annotated[
    str | None,
    typer.Option("--host", metavar="URL", help="KFP's API; else KF_PIPELINES_ENDPOINT, the cluster around, or the kubeconfig."),
]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Where runs live; else as in infra/tasks.yaml.")]
Images = Annotated[Path, typer.Option("--images", metavar="FILE", help="The lock of images by digest.", show_default=False)]
