"""Ingest: from a source of labelled images to a Dataset artifact, with every unusable image in quarantine."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from components.ingest.decode import Decoded, RejectedError, decode, decode_mask
from components.ingest.source import Source, open_source
from dermaflow.artifacts import file_digest, json_digest, new_artifact, write_json
from dermaflow.classes import HAM10000_CLASSES
from dermaflow.dataset import CLINICAL_COLUMNS, KIND, MANIFEST_COLUMNS, SHARD_BYTES
from dermaflow.errors import InputError
from dermaflow.params import DataParams
from dermaflow.progress import progress

REJECT_COLUMNS = ("image_id", "lesion_id", "uri", "reason", "detail")
Read = tuple[Decoded | RejectedError, npt.NDArray[np.uint8] | None]


def ingest(params: DataParams, target: Path) -> dict[str, Any]:
    """Read `data.source` into a Dataset artifact at `target`.

    Returns
    -------
    The content of dataset.json.

    Raises
    ------
    InputError
        when the source can not be used, or more than `data.max_reject_share` of its images were refused.
    """
    source = open_source(params)
    rows, rejects = _match_files(source)
    with new_artifact(target, KIND) as folder:
        manifest, refused = _write_shards(source, rows, params, folder)
        rejects = pd.concat([rejects, refused], ignore_index=True)
        _refuse_too_many(rejects, len(source.metadata), params)
        manifest.to_parquet(folder / "manifest.parquet", index=False)
        rejects.to_parquet(folder / "rejects.parquet", index=False)
        identical_pairs(manifest).to_parquet(folder / "neighbours.parquet", index=False)
        info = _describe(source, manifest, rejects, params, folder)
        write_json(folder / "dataset.json", info)
    return info


def _match_files(source: Source) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Metadata rows that have exactly one file, and the rest as rejects."""
    table = source.metadata
    twice = table["image_id"].duplicated(keep=False)
    found = table["image_id"].map(lambda image: len(source.images.get(image, ())))
    reasons = np.select([twice, found == 0, found > 1], ["duplicate_id", "missing", "duplicate_file"], default="")
    details = {
        "duplicate_id": "the id stands in several metadata rows",
        "missing": "no file of this name",
        "duplicate_file": "several files of this name",
    }
    bad = table[reasons != ""]
    unlabelled = sorted(set(source.images) - set(table["image_id"])) if not _is_subset(source) else []
    rejects = [
        (row.image_id, row.lesion_id, str(source.folder / str(row.image_id)), reason, details[reason])
        for row, reason in zip(bad.itertuples(), reasons[reasons != ""], strict=True)
    ]
    rejects += [(image, "", str(source.images[image][0]), "unlabelled", "no metadata row") for image in unlabelled]
    return table[reasons == ""].reset_index(drop=True), pd.DataFrame(rejects, columns=list(REJECT_COLUMNS), dtype=str)


def _is_subset(source: Source) -> bool:
    return bool(source.description["subset"])


def _write_shards(source: Source, rows: pd.DataFrame, params: DataParams, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decode on all cores, a shard at a time; memory holds one shard."""
    size = params.image_size
    per_shard = max(1, SHARD_BYTES // (size * size * 3))
    entries: list[dict[str, Any]] = []
    refused: list[tuple[str, ...]] = []
    cv2.setNumThreads(1)  # the pool below uses the cores; nested threads would only compete
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard, start in enumerate(range(0, len(rows), per_shard)):
            part = rows.iloc[start : start + per_shard]
            pixels: list[npt.NDArray[np.uint8]] = []
            truth: list[npt.NDArray[np.uint8] | None] = []
            for row, (image, mask) in zip(part.itertuples(), pool.map(_reader(source, params), part["image_id"]), strict=True):
                if isinstance(image, RejectedError):
                    uri = str(source.images[str(row.image_id)][0])
                    refused.append((str(row.image_id), str(row.lesion_id), uri, image.reason, image.detail))
                    continue
                entries.append(_entry(row, image, source, shard=shard, place=len(pixels), has_truth=mask is not None))
                pixels.append(image.pixels)
                truth.append(mask)
                progress("reading images", start + len(pixels), len(rows))
            np.save(folder / f"shard-{shard:05d}.npy", np.stack(pixels) if pixels else np.empty((0, size, size, 3), np.uint8))
            _write_truth(truth, size, folder / f"truth-{shard:05d}.npy")
    progress("reading images", len(rows), len(rows))
    return pd.DataFrame(entries, columns=list(MANIFEST_COLUMNS)), pd.DataFrame(refused, columns=list(REJECT_COLUMNS), dtype=str)


def _reader(source: Source, params: DataParams) -> Any:
    def read(image_id: str) -> Read:
        try:
            image = decode(source.images[image_id][0].read_bytes(), params.image_size, params.max_pixels)
            mask = source.masks.get(image_id)
            return image, decode_mask(mask.read_bytes(), params.image_size) if mask else None
        except RejectedError as rejected:
            return rejected, None
        except OSError as error:
            return RejectedError("unreadable", error.strerror or type(error).__name__), None

    return read


def _entry(row: Any, image: Decoded, source: Source, *, shard: int, place: int, has_truth: bool) -> dict[str, Any]:
    return {
        "image_id": row.image_id,
        "lesion_id": row.lesion_id,
        "label": row.dx,
        **{column: getattr(row, column) for column in CLINICAL_COLUMNS},
        "source_uri": source.images[row.image_id][0].relative_to(source.folder).as_posix(),
        "source_digest": image.source_digest,
        "pixel_digest": image.pixel_digest,
        "perceptual_hash": image.perceptual_hash,
        "original_width": image.width,
        "original_height": image.height,
        "has_truth": has_truth,
        "shard": shard,
        "row": place,
    }


def _write_truth(masks: list[npt.NDArray[np.uint8] | None], size: int, path: Path) -> None:
    if any(mask is not None for mask in masks):
        empty = np.zeros((size, size), np.uint8)
        np.save(path, np.packbits(np.stack([empty if mask is None else mask for mask in masks]), axis=-1))


def _refuse_too_many(rejects: pd.DataFrame, total: int, params: DataParams) -> None:
    share = len(rejects) / max(total, 1)
    if share > params.max_reject_share:
        counts = ", ".join(f"{reason} {count}" for reason, count in rejects["reason"].value_counts().items())
        first = rejects.iloc[0]
        raise InputError(
            f"{len(rejects)} of {total} images can not be used ({counts}), which is more than data.max_reject_share = "
            f"{params.max_reject_share:g}; the first is {first['uri']}: {first['detail']}. "
            "Mend the source, or raise the ceiling"
        )


def identical_pairs(manifest: pd.DataFrame) -> pd.DataFrame:
    """Pairs of images whose pixels are identical: image_a, image_b, distance (0), score (1); split joins their lesions."""
    pairs = [
        (first, other, 0.0, 1.0)
        for _, group in manifest.groupby("pixel_digest", sort=True)
        for first, *others in [sorted(group["image_id"])]
        for other in others
    ]
    return pd.DataFrame(pairs, columns=["image_a", "image_b", "distance", "score"])


def _describe(
    source: Source, manifest: pd.DataFrame, rejects: pd.DataFrame, params: DataParams, folder: Path
) -> dict[str, Any]:
    counted = manifest.groupby("label")
    return {
        "class_order": list(HAM10000_CLASSES),
        "image_size": params.image_size,
        "resize": params.resize,
        "interpolation": "area",
        "source": source.description,
        "counts": {
            "images": len(manifest),
            "lesions": int(manifest["lesion_id"].nunique()),
            "rejects": len(rejects),
            "images_per_class": {name: int(counted.size().get(name, 0)) for name in HAM10000_CLASSES},
            "lesions_per_class": {name: int(counted["lesion_id"].nunique().get(name, 0)) for name in HAM10000_CLASSES},
        },
        "content_digest": content_digest(manifest, params),
        "layout_digest": json_digest({path.name: file_digest(path) for path in sorted(folder.glob("*.npy"))}),
    }


def content_digest(manifest: pd.DataFrame, params: DataParams) -> str:
    """Digest of what the images, labels and clinical values are; it does not depend on the order of arrival."""
    columns = ["image_id", "lesion_id", "source_digest", "pixel_digest", "label", *CLINICAL_COLUMNS]
    table = manifest[columns].sort_values("image_id").astype(object)
    rows = table.where(table.notna(), None).to_numpy().tolist()
    return json_digest({"size": params.image_size, "resize": params.resize, "rows": rows})
