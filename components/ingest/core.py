"""Ingest: from a source of labelled images to a Dataset artifact, with every unusable image in quarantine.

Given an earlier dataset of the same source, only what is new is read: unchanged shards keep their bytes, new images go
to new shards, an image whose bytes changed replaces the old one in its place, a withdrawn one leaves a tombstone.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from components.ingest import neighbours, properties
from components.ingest.decode import DECODER, INTERPOLATION, RejectedError
from components.ingest.entries import Entries, among
from components.ingest.glimpse import write_glimpses
from components.ingest.shards import Job, Written, new_shards, write_shards
from components.ingest.source import REJECT_COLUMNS, Entry, Source, open_source
from components.ingest.store import link_file, open_store
from dermaflow.artifacts import Artifact, bytes_digest, json_digest, new_artifact, write_json
from dermaflow.dataset import (
    CLINICAL_COLUMNS,
    IMAGE_COLUMNS,
    KIND,
    MANIFEST_COLUMNS,
    PROPERTIES,
    Dataset,
    active_rows,
    read_manifest,
)
from dermaflow.errors import InputError
from dermaflow.params import DataParams

_CONTENT = ["image_id", "lesion_id", "source_digest", "pixel_digest", "label", *CLINICAL_COLUMNS]
_ROWS_AT_ONCE = 4096  # of the manifest as Python objects
_SHARD_FILES = ("shard-*.npy", "truth-*.npy", "signature-*.npy")
_NUMBERS = {
    "age": "float64",
    **dict.fromkeys(("original_width", "original_height", "shard", "row"), "int64"),
    **dict.fromkeys(PROPERTIES, "float32"),
    **dict.fromkeys(("has_truth", "withdrawn"), "bool"),
}
_TYPES = {name: _NUMBERS.get(name, "str") for name in MANIFEST_COLUMNS}


@contextmanager
def _few_collections() -> Iterator[None]:
    """What is loaded by now is no garbage: else it is all walked again for each few thousand small objects that come."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@_few_collections()
def ingest(params: DataParams, target: Path, state: Path | None = None) -> dict[str, Any]:
    """Read `data.source` into a Dataset artifact at `target`.

    Parameters
    ----------
    state: folder that outlives the run: a killed run goes on from there, and the next one starts from what was there.
        With None, an earlier dataset is only looked for at `target`.

    Returns
    -------
    The content of dataset.json.

    Raises
    ------
    InputError
        when the source can not be used, more than `data.max_reject_share` of its images were refused, or more than
        `data.max_withdrawn_share` of the earlier dataset's images are gone from it.
    """
    source = open_source(params)
    files: dict[str, str] = {}
    with open_store(state, params) as store:
        earlier = store.earlier(target, _recipe(params))
        changes = _compare(source, earlier, params)
        with new_artifact(target, KIND, files) as folder, ThreadPoolExecutor(1) as disk:
            work = store.work(folder)
            written = list(write_shards(changes.jobs, source, params, work, disk))
            rejects = _all_rejects(source, changes, written)
            refuse_too_many(rejects, source, params)
            files |= _gather_shards(written, work, earlier, folder)
            _manifest(source, changes, written).to_parquet(folder / "manifest.parquet", index=False)
            rejects.to_parquet(folder / "rejects.parquet", index=False)
            write_glimpses(rejects, source, params.max_pixels, folder)
            pa.default_memory_pool().release_unused()  # the manifest was made of many small tables
            info = _describe(source, read_manifest(folder, (*_CONTENT, "parent_id", "withdrawn")), rejects, params, files)
            pa.default_memory_pool().release_unused()  # and so was the digest of its content
            pairs = _neighbours(Dataset(Artifact(folder, KIND, "", {}), info), earlier, changes, work)
            pairs.to_parquet(folder / "neighbours.parquet", index=False)
            write_json(folder / "dataset.json", info)
            for job in written:
                if job.synced:
                    job.synced.result()
            store.clear(folder)
        store.keep(target)
    _remember(source, changes, Dataset.open(target))
    return info


def input_digest(params: DataParams, state: Path | None = None) -> str:
    """Digest of all that a dataset's content follows from: the source, and the images that were withdrawn from it.

    It is the same before and after a run, so that an unchanged source is answered from the pipeline's cache, and another
    one when an earlier state of the source comes back that still had images which are withdrawn by now.
    """
    source = open_source(params)
    with open_store(state, params) as store:
        earlier = store.earlier(None, _recipe(params))
    if earlier is None:
        return source.digest()
    rows, there = earlier.all_rows, {*source.metadata["image_id"], *source.refused["image_id"]}
    withdrawn = rows["image_id"][rows["withdrawn"] | ~rows["image_id"].isin(there)]
    return json_digest([source.digest(), sorted(withdrawn)]) if len(withdrawn) else source.digest()


@dataclass(frozen=True)
class _Changes:
    """What a source asks of an earlier dataset.

    Attributes
    ----------
    kept: earlier rows whose pixels stay as they are (MANIFEST_COLUMNS), tombstones included.
    fresh: ids of images that are read, because they are new or their bytes changed.
    jobs: shards to write.
    returned: ids that are in the source again although they were withdrawn.
    """

    kept: pd.DataFrame
    fresh: frozenset[str]
    jobs: list[Job]
    returned: list[str]


def _recipe(params: DataParams) -> dict[str, Any]:
    """All that decides how an image's bytes become a row; only a dataset of the same recipe can be gone on from."""
    return {
        "source": params.source,
        "image_size": params.image_size,
        "resize": params.resize,
        "subset": params.subset.model_dump(mode="json") if params.subset else None,
        "decoder": DECODER,
        "properties": properties.ALGORITHM,
        "neighbours": neighbours.ALGORITHM,
    }


def _compare(source: Source, earlier: Dataset | None, params: DataParams) -> _Changes:
    wanted = source.metadata["image_id"]
    if earlier is None:
        kept = pd.DataFrame(columns=list(MANIFEST_COLUMNS)).astype(_TYPES)
        return _Changes(kept, frozenset(wanted), new_shards(wanted.tolist(), 0, params), [])
    rows = earlier.all_rows
    gone = ~among(rows["image_id"], wanted)
    withdrawn = ~rows["withdrawn"] & gone & ~among(rows["image_id"], source.refused["image_id"])
    _refuse_many_withdrawn(rows[withdrawn], len(earlier.manifest), params)
    active = rows[~rows["withdrawn"] & ~gone]
    changed = active[_changed(active, source)]
    new = wanted[~among(wanted, rows["image_id"])]
    kept = rows[(rows["withdrawn"] | withdrawn | ~gone) & ~among(rows["image_id"], changed["image_id"])]
    kept = kept.assign(withdrawn=kept["withdrawn"] | among(kept["image_id"], rows["image_id"][withdrawn]))
    erased = kept[kept["withdrawn"] & (kept["pixel_digest"] != "")] if params.erase_withdrawn else kept.iloc[:0]
    kept = kept.assign(pixel_digest=kept["pixel_digest"].where(~among(kept["image_id"], erased["image_id"]), ""))
    jobs = [
        Job(
            shard=int(shard),
            images=tuple(changed["image_id"][changed["shard"] == shard]),
            places=tuple(changed["row"][changed["shard"] == shard]),
            base=earlier.artifact.path,
            erase=tuple(erased["row"][erased["shard"] == shard]),
        )
        for shard in sorted({*changed["shard"], *erased["shard"]})
    ]
    jobs += new_shards(new.tolist(), max(earlier.shards, default=-1) + 1, params)
    returned = rows["image_id"][rows["withdrawn"] & ~gone].tolist()
    return _Changes(kept.reset_index(drop=True), frozenset({*changed["image_id"], *new}), jobs, returned)


def _changed(rows: pd.DataFrame, source: Source) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which earlier rows' image or mask now has other bytes; files that the source knows unchanged are not read."""
    changed: list[bool] = []
    with ThreadPoolExecutor(source.concurrency) as pool:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows.iloc[start : start + _ROWS_AT_ONCE]
            ids = part["image_id"].tolist()
            images, masks = source.images.find(ids), source.masks.find(ids)
            digests = dict(zip(ids, _digests(source, [images[image_id] for image_id in ids], pool), strict=True))
            truths = dict(zip(masks, _digests(source, masks.values(), pool), strict=True))
            before = zip(ids, part["source_digest"].tolist(), part["truth_digest"].tolist(), strict=True)
            changed += [(digests[image_id], truths.get(image_id, "")) != (digest, truth) for image_id, digest, truth in before]
    return np.asarray(changed, bool)


def _digests(source: Source, entries: Collection[Entry], pool: ThreadPoolExecutor) -> Iterator[str | None]:
    """Digest of each file's bytes; None for one that can not be used: it is read again with the others, and refused there."""

    def read(entry: Entry) -> str | None:
        try:
            return bytes_digest(source.read(entry))
        except RejectedError:
            return None

    known = source.known_digests(entries)
    found = pool.map(read, [entry for entry, digest in zip(entries, known, strict=True) if digest is None])
    return (next(found) if digest is None else digest for digest in known)


def _remember(source: Source, changes: _Changes, dataset: Dataset) -> None:
    """Let the source know the bytes of what was read, so that the next run need not read them to see no change."""

    def read(entries: Entries, column: str) -> Iterator[tuple[Entry, str]]:
        rows = dataset.columns("image_id", column)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = zip(*(rows[name].iloc[start : start + _ROWS_AT_ONCE].tolist() for name in rows), strict=True)
            digests = {image_id: digest for image_id, digest in part if digest and image_id in changes.fresh}
            yield from ((entry, digests[image_id]) for image_id, entry in entries.find([*digests]).items())

    source.remember(chain(read(source.images, "source_digest"), read(source.masks, "truth_digest")))


def _refuse_many_withdrawn(rows: pd.DataFrame, total: int, params: DataParams) -> None:
    if len(rows) > params.max_withdrawn_share * total:
        raise InputError(
            f"{params.source}: {len(rows)} of the {total} images of the earlier dataset are not in its metadata any more, the "
            f"first {rows['image_id'].iloc[0]}; that is more than data.max_withdrawn_share = {params.max_withdrawn_share:g}. "
            "If a part of the source is missing, bring it back; if they were withdrawn, raise the ceiling for this run: they "
            "will never be drawn again"
        )


def _all_rejects(source: Source, changes: _Changes, written: list[Written]) -> pd.DataFrame:
    lesions = source.metadata.set_index("image_id")["lesion_id"]
    found = [(image, lesions[image], uri, reason, detail) for job in written for image, uri, reason, detail in job.rejects]
    found += [
        (
            image,
            lesions[image],
            source.images[image].uri,
            "withdrawn",
            "withdrawn earlier: an image is never taken back under its id",
        )
        for image in changes.returned
    ]
    table = pd.DataFrame(found, columns=list(REJECT_COLUMNS), dtype=str)
    return pd.concat([source.refused, table], ignore_index=True).sort_values(list(REJECT_COLUMNS), ignore_index=True)


def refuse_too_many(rejects: pd.DataFrame, source: Source, params: DataParams) -> None:
    """Raise InputError when more than `data.max_reject_share` of a source is in quarantine; it quotes the first reject."""
    total = len(source.metadata) + len(source.refused)
    if len(rejects) > params.max_reject_share * total:
        counts = ", ".join(f"{reason} {count}" for reason, count in rejects["reason"].value_counts().items())
        uri, detail = rejects[["uri", "detail"]].iloc[0]
        first = detail if detail.startswith(uri) else f"{uri}: {detail}"
        raise InputError(
            f"{params.source}: {len(rejects)} of {total} images can not be used ({counts}), which is more than "
            f"data.max_reject_share = {params.max_reject_share:g}; the first is {first}. Mend the source, or raise the ceiling"
        )


def _gather_shards(written: list[Written], work: Path, earlier: Dataset | None, folder: Path) -> dict[str, str]:
    """Bring all shard files into the artifact's folder; returns their digests, so that none is computed twice."""
    places = dict.fromkeys(earlier.artifact.files, earlier.artifact.path) if earlier else {}
    digests = dict(earlier.artifact.files) if earlier else {}
    for job in written:
        places |= dict.fromkeys(job.files, work)
        digests |= job.files
    names = [name for name in places if any(Path(name).match(pattern) for pattern in _SHARD_FILES)]
    for name in names:
        link_file(places[name] / name, folder / name)
    return {name: digests[name] for name in names}


def _manifest(source: Source, changes: _Changes, written: list[Written]) -> pd.DataFrame:
    """The rows that stay and the rows that were read, with what the metadata says of them now, in the order of the shards."""
    parts = [changes.kept[[*IMAGE_COLUMNS, "withdrawn"]]]
    if written:
        read = pa.concat_tables([pq.ParquetFile(job.table).read() for job in written], promote_options="default")
        parts.append(read.to_pandas().assign(withdrawn=False))
    table = pd.concat(parts, ignore_index=True)
    told = source.metadata.rename(columns={"dx": "label"}).set_index("image_id")[
        ["lesion_id", "label", *CLINICAL_COLUMNS, "parent_id"]
    ]
    before = changes.kept.loc[changes.kept["withdrawn"]].set_index("image_id")[told.columns]
    labels = pd.concat([told[~told.index.isin(before.index)], before]) if len(before) else told
    table[told.columns] = labels.reindex(table["image_id"]).set_axis(table.index)
    order = np.lexsort((table["row"].to_numpy(), table["shard"].to_numpy()))
    if (np.diff(order) != 1).any():
        table = table.take(order).reset_index(drop=True)
    table = table.astype(_TYPES)[list(MANIFEST_COLUMNS)]
    if mark := source.description.get("mark"):
        table.attrs["mark"] = mark  # in the file's own metadata: whoever opens it alone must see it
    return table


def _neighbours(dataset: Dataset, earlier: Dataset | None, changes: _Changes, work: Path) -> pd.DataFrame:
    """Pairs of near-duplicate images: image_a, image_b, distance, score; only pairs with a fresh image are looked at."""
    rows = dataset.columns("image_id", "pixel_digest")
    return neighbours.find_neighbours(
        rows["image_id"],
        rows["pixel_digest"],
        dataset.signatures(work / "signatures.npy"),
        dataset.images,
        known=pd.read_parquet(earlier.artifact.path / "neighbours.parquet") if earlier else None,
        fresh=among(rows["image_id"], changes.fresh).to_numpy() if earlier else None,
    )


def _describe(
    source: Source, manifest: pd.DataFrame, rejects: pd.DataFrame, params: DataParams, files: dict[str, str]
) -> dict[str, Any]:
    active = active_rows(manifest)
    counted = active.groupby("label")
    return {
        "class_order": list(source.classes),
        "image_size": params.image_size,
        "resize": params.resize,
        "interpolation": INTERPOLATION,
        "recipe": _recipe(params),
        "source": source.description,
        "counts": {
            "images": len(active),
            "lesions": int(active["lesion_id"].nunique()),
            "rejects": len(rejects),
            "withdrawn": len(manifest) - len(active),
            "images_per_class": {name: int(counted.size().get(name, 0)) for name in source.classes},
            "lesions_per_class": {name: int(counted["lesion_id"].nunique().get(name, 0)) for name in source.classes},
        },
        "content_digest": content_digest(active, params),
        "layout_digest": json_digest(files),
    }


def content_digest(manifest: pd.DataFrame, params: DataParams) -> str:
    """Digest of what the images, labels and clinical values are; it does not depend on the order of arrival.

    It is the SHA-256 of JSON, keys sorted and no white space, made for some rows at a time.
    """
    order = manifest["image_id"].argsort(kind="stable")
    names = [*_CONTENT, "parent_id"] if manifest["parent_id"].ne("").any() else _CONTENT
    sha = hashlib.sha256(f'{{"resize":{json.dumps(params.resize)},"rows":['.encode())
    for start in range(0, len(order), _ROWS_AT_ONCE):
        part = manifest.iloc[order[start : start + _ROWS_AT_ONCE]]
        columns = [part[name].astype(object).where(part[name].notna(), None).tolist() for name in names]
        rows = json.dumps(list(zip(*columns, strict=True)), separators=(",", ":"))
        sha.update((("," if start else "") + rows[1:-1]).encode())
    sha.update(f'],"size":{params.image_size}}}'.encode())
    return "sha256:" + sha.hexdigest()
