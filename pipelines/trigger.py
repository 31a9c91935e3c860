"""A run only when there is something new: a digest of the source that was never started, and enough lesions since the last."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from dermaflow import registry
from dermaflow.artifacts import json_digest
from dermaflow.params import Params
from pipelines.claims import Claim, Claims

_SHORT = 16  # hex digits of a claim's key


@dataclass(frozen=True)
class News:
    """What is new at the source.

    Attributes
    ----------
    digest: of the source's content.
    version: the newest registered version that was made from this source, or None.
    same: whether that version was made from the very same files.
    """

    source: str
    digest: str
    lesions: int
    new_lesions: int
    version: str | None
    same: bool


@dataclass(frozen=True)
class Decision:
    """What a trigger came to: started, or why not; `run_id` is of the run that it, or another before it, started."""

    outcome: Literal["started", "nothing new", "too few", "claimed"]
    why: str
    run_id: str | None = None

    def to_json(self, news: News) -> dict[str, Any]:
        """For a script."""
        return {**asdict(self), "news": asdict(news)}


Start = Callable[[str, Callable[[str], None]], None]  # name, and whom to tell the run's id as soon as it can not get lost


def look(params: Params, digest: str) -> News:
    """Compare the source as it is with what the newest registered version was made from.

    Parameters
    ----------
    digest: of the source, as the pipeline's parameter source_digest has it.

    Raises
    ------
    InputError
        when the source or the registry can not be read.
    """
    from components.ingest.source import open_source

    lesions = set(open_source(params.data).metadata["lesion_id"])
    newest, known = _newest(params)
    return News(
        source=params.data.source,
        digest=digest,
        lesions=len(lesions),
        new_lesions=len(lesions - known),
        version=None if newest is None else f"{newest.name} version {newest.version}",
        same=newest is not None and newest.tags.get(registry.TAG + "data.source_digest") == digest,
    )


def key_of(params: Params, digest: str) -> str:
    """What a claim is made for: this content under these settings. New code is no new data."""
    return json_digest([digest, params.model_dump(mode="json", by_alias=True)]).split(":")[1][:_SHORT]


def trigger(
    params: Params, news: News, claims: Claims, start: Start, *, at_least: int, retry_after: datetime.timedelta
) -> Decision:
    """Start a run if there is something new and nobody else has.

    Parameters
    ----------
    start: starts the run under a name. It tells the run's id when the run stands on its own, so that a claim whose run never
        came to be is not taken for one that did.
    at_least: new lesions that are worth a run.
    retry_after: how long a claim without a run is left to whoever made it.
    """
    if news.same:
        return Decision("nothing new", f"{news.source} is what {news.version} was made from")
    if news.new_lesions < at_least:
        since = news.version or "nothing was registered yet"
        return Decision("too few", f"{news.new_lesions} new lesions since {since}, a run is worth it from {at_least} on")
    claim, ours = claims.take(key_of(params, news.digest), retry_after)
    if not ours:
        return Decision("claimed", _first(claim, retry_after), claim.run_id)
    told: list[str] = []

    def started(run_id: str) -> None:
        if not told:
            claims.started(claim, run_id)
            told.append(run_id)

    start(f"trigger-{claim.key}-{claim.attempt}", started)
    return Decision("started", f"{news.new_lesions} new lesions", told[0] if told else None)


def names_before(name: str) -> list[str]:
    """Names of the runs that earlier attempts at the same claim may have started and not lived to tell."""
    stem, _, attempt = name.rpartition("-")
    return [f"{stem}-{number}" for number in range(int(attempt) - 1, 0, -1)]


def _first(claim: Claim, retry_after: datetime.timedelta) -> str:
    at = claim.at.isoformat(timespec="seconds")
    if claim.run_id:
        return f"run {claim.run_id} was started for this data by {claim.by}, claimed {at}; `dermaflow run` starts another"
    again = (claim.at + retry_after).isoformat(timespec="seconds")
    return f"{claim.by} claimed this data {at} and is starting a run; if none comes of it, call again after {again}"


def _newest(params: Params) -> tuple[Any, set[str]]:
    """The newest version that was made from this source, and the lesions that it knew."""
    uri = params.register_.tracking_uri
    if uri.startswith(registry.SQLITE) and not Path(uri.removeprefix(registry.SQLITE)).exists():
        return None, set()
    client = registry.connect(uri)
    found = client.search_model_versions(f"name = '{registry.CANDIDATE_MODEL}'")
    of_source = [one for one in found if one.tags.get(registry.TAG + "data.source") == params.data.source]
    newest = max(of_source, key=lambda version: int(version.version), default=None)
    if newest is None:
        return None, set()
    with tempfile.TemporaryDirectory() as scratch:
        folder = registry.evidence(client, newest, "splits", Path(scratch))
        return newest, set(pd.read_parquet(folder / "splits.parquet", columns=["lesion_id"])["lesion_id"])
