"""What can be known before any work is done: every fault of a request is found here, and nothing is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermaflow import places, weights
from dermaflow.access import open_ledger
from dermaflow.architectures import ARCHITECTURES, require_size
from dermaflow.artifacts import open_artifact
from dermaflow.contracts import SPLITS
from dermaflow.dataset import KIND
from dermaflow.errors import InputError
from dermaflow.ledger import LedgerError
from dermaflow.lineage import git_state
from dermaflow.params import Params
from dermaflow.policy import read_policy
from dermaflow.registry import SQLITE


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, whether it is in order, and what was seen or what to do."""

    name: str
    ok: bool
    detail: str


def run_checks(params: Params, *, here: bool = True) -> list[Check]:
    """Look at everything that a run needs; never raises for a fault of the request.

    Parameters
    ----------
    here: whether steps run on this machine; a cluster's pods are told themselves where the ledger lies.
    """
    looks: list[tuple[str, Callable[[Params], str]]] = [
        ("data", _look_at_source),
        ("weights", _look_at_weights),
        ("architectures", _look_at_architectures),
        ("augmentation", _look_at_augmentation),
        ("references", _look_at_references),
        ("policy", _look_at_policy),
        ("places", _look_at_places),
        *([("ledger", _look_at_ledger)] if here else []),
    ]
    return [checked(name, look, params) for name, look in looks]


def require(params: Params, *, here: bool = True) -> None:
    """Raise InputError with every fault that `run_checks` finds."""
    faults = [check.detail for check in run_checks(params, here=here) if not check.ok]
    if faults:
        raise InputError("\n".join(faults))


def arguments(params: Params) -> dict[str, Any]:
    """The pipeline's parameters: each section as JSON, and the digests that its caching follows."""
    from components.ingest.core import input_digest
    from pipelines.code import pipeline_digest
    from pipelines.previous import earlier_splits

    source_digest = input_digest(params.data, places.state() / "ingest")
    return {
        **default_arguments(params),
        "previous": earlier_splits(params, source_digest),
        "source_digest": source_digest,
        "weights_digest": json.dumps(weights.digests(params.train)),
        "pipeline_digest": pipeline_digest(),
        "commit": json.dumps(git_state()),
    }


def default_arguments(params: Params) -> dict[str, Any]:
    """The pipeline's parameters as far as they follow from params.yaml alone: what a compiled pipeline carries."""
    same_for_all = params.train.model_copy(
        update={"architectures": tuple(ARCHITECTURES)}
    )  # so that naming one more retrains none
    return {
        "data": params.data.to_json(),
        "validate": params.validate_.to_json(),
        "segment": params.segment.to_json(),
        "split": params.split.to_json(),
        "previous": "",
        "augment": params.augment.to_json(),
        "mixup": params.mixup.to_json(),
        "train": same_for_all.to_json(),
        "architectures": list(params.train.architectures),
        "evaluate": params.evaluate.to_json(),
        "explain": params.explain.to_json(),
        "register": params.register_.to_json(),
        "promote": params.promote.to_json(),
        "policy": read_policy(Path(params.promote.policy)).to_json(),
        "params": params.model_dump_json(by_alias=True),
        "profile": params.profile,
        "source_digest": "",
        "weights_digest": "",
        "pipeline_digest": "",
        "commit": json.dumps({"commit": None, "dirty": None}),
        "compiled_digest": "",  # it can not stand in what it is of: whoever uploads the pipeline gives it to the runs
    }


def checked(name: str, look: Callable[[Params], str], params: Params) -> Check:
    """What a look at the parameters comes to; a fault that it raises is told, not raised."""
    try:
        return Check(name, ok=True, detail=look(params))
    except (InputError, LedgerError) as error:
        return Check(name, ok=False, detail=str(error))


def _look_at_source(params: Params) -> str:
    from components.ingest.core import refuse_too_many
    from components.ingest.dataverse import is_fetched
    from components.ingest.source import open_source

    if params.data.source.lower().startswith("doi:") and not is_fetched(params.data):
        return f"{params.data.source}: will be fetched from {params.data.repository} when the run starts"
    source = open_source(params.data)
    refuse_too_many(source.refused, source, params.data)
    if params.augment.before_split:
        from components.balance.core import require_targets

        require_targets(set(source.metadata["dx"]), params.augment, masks=bool(source.masks))
    kind = "synthetic" if source.description["synthetic"] else "photographed"
    return f"{params.data.source}: {len(source.metadata)} {kind} images of {source.metadata['lesion_id'].nunique()} lesions"


def _look_at_weights(params: Params) -> str:
    found = [
        f"{name} {weights.require_fit(params.train, name).origin}"
        for name in params.train.architectures
        if ARCHITECTURES[name].pretrained
    ]
    return ", ".join(found) or "none needed"


def _look_at_architectures(params: Params) -> str:
    for name in params.train.architectures:
        require_size(name, params.data.image_size)
    return f"{', '.join(params.train.architectures)} at {params.data.image_size} pixels"


def _look_at_augmentation(params: Params) -> str:
    params.mixup.require_balance(params.augment)
    params.train.require_balance(params.augment)
    for name in params.train.architectures:
        params.mixup.require_fit(name)
    return f"balance {params.augment.balance}, MixUp alpha {params.mixup.alpha:g} on {params.mixup.space}"


def _look_at_references(params: Params) -> str:
    found = []
    named = {
        "validate.reference": (params.validate_.reference, KIND),
        "validate.reference_splits": (params.validate_.reference_splits, SPLITS),
        "split.previous": ("" if params.split.previous in ("auto", "none") else params.split.previous, SPLITS),
    }
    for name, (folder, kind) in named.items():
        if folder:
            try:
                found.append(f"{name} {folder} {open_artifact(Path(folder), kind).digest}")
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
    return ", ".join(found) or "none: no drift and no earlier test set is looked for"


def _look_at_policy(params: Params) -> str:
    read_policy(Path(params.promote.policy))
    return f"{params.promote.policy}, mode {params.promote.mode}"


def _look_at_places(params: Params) -> str:
    uri = params.register_.tracking_uri
    folders = [places.RUNS, places.home()]
    folders += [Path(uri.removeprefix(SQLITE)).parent] if uri.startswith(SQLITE) else []
    for folder in folders:
        _require_writable(folder)
    return f"runs in {places.RUNS}/, registry {uri}"


def _look_at_ledger(params: Params) -> str:
    ledger = open_ledger(params.register_)
    return f"{ledger.place}, {len(ledger.entries())} entries, each following the one before"


def _require_writable(folder: Path) -> None:
    """Whether the folder, or the nearest one above that exists, can be written; makes nothing."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(
            f"can not write to {folder}: {existing} is {'read-only' if existing.is_dir() else 'not a folder'}; "
            "choose another place"
        )
