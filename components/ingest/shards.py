"""Shards: planned first, then written one by one, so that a run that is cut short goes on with the next."""

from __future__ import annotations

import io
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from components.ingest.decode import DECODER, RejectedError, decode, decode_mask
from components.ingest.properties import properties_of, reduced
from components.ingest.source import Entry, Source
from components.ingest.thumbnail import perceptual_hashes, signatures, thumbnail
from dermaflow.artifacts import (
    bytes_digest,
    file_digest,
    has_digest,
    json_digest,
    npy_rows_digest,
    read_json,
    rows_digest,
    sync_files,
    write_json,
)
from dermaflow.dataset import IMAGE_COLUMNS, PROPERTIES
from dermaflow.params import DataParams
from dermaflow.progress import progress

Pixels = npt.NDArray[np.uint8]
_CHUNK = 16  # images that a worker takes at once: fewer hand-overs between threads
_PIXELS, _TRUTH, _SIGNATURES, _ROWS, _DONE = "shard", "truth", "signature", "rows", "done"


@dataclass(frozen=True)
class Job:
    """One shard to write.

    Attributes
    ----------
    shard: its number.
    images: image ids to read, in the order of their places.
    places: the place of each image in the shard, or empty: one after the other from 0, without holes.
    base: the earlier dataset's folder, when the shard is an earlier one in which only `places` change.
    erase: places whose pixels, mask and signature are blackened.
    """

    shard: int
    images: tuple[str, ...]
    places: tuple[int, ...] = ()
    base: Path | None = None
    erase: tuple[int, ...] = ()


@dataclass(frozen=True)
class Written:
    """What a job gave.

    Attributes
    ----------
    table: the file with a row for each image (IMAGE_COLUMNS): those of all jobs are too many to hold twice.
    rejects: the images that were refused.
    files: the digest of each file, by name.
    synced: done when the files are on the disk; None when an earlier run wrote them.
    """

    table: Path
    rejects: list[tuple[str, ...]]
    files: dict[str, str]
    synced: Future[None] | None = None


@dataclass(frozen=True, slots=True)
class _Block:
    """A few images of one job as a worker hands them over.

    Attributes
    ----------
    numbers: which images of the job could be used.
    rows: what the manifest says of each of those, but for its place.
    pixels, masks, signatures: of each of those; masks as packed bits, None where there is none.
    rejects: image id, uri, reason and detail of the others.
    """

    numbers: list[int] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    pixels: list[Pixels] = field(default_factory=list)
    masks: list[Pixels | None] = field(default_factory=list)
    signatures: list[Pixels] = field(default_factory=list)
    rejects: list[tuple[str, ...]] = field(default_factory=list)


def new_shards(images: Sequence[str], first: int, params: DataParams) -> list[Job]:
    """Jobs that put images into shards of about `data.shard_megabytes`, numbered from `first`."""
    length = max(1, int(params.shard_megabytes * 1e6) // (params.image_size**2 * 3))
    return [
        Job(first + number, tuple(images[start : start + length])) for number, start in enumerate(range(0, len(images), length))
    ]


def write_shards(jobs: Sequence[Job], source: Source, params: DataParams, work: Path, disk: Executor) -> Iterator[Written]:
    """Carry out jobs in `work`, on all cores; a job that an earlier run finished there is not done again.

    Memory holds a few dozen images, whatever the length of a shard: pixels go to the file as they come. `disk` syncs the
    files meanwhile, which needs no core: the artifact's seal then has nothing to wait for.
    """
    found = [_finished(job, source, params, work) for job in jobs]
    left = [job for job, written in zip(jobs, found, strict=True) if not written]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the pool below uses the cores; nested threads would only compete
    try:
        with ThreadPoolExecutor(source.concurrency) as pool:
            blocks = _read_ahead(left, source, params, pool)
            for job, finished in zip(jobs, found, strict=True):
                if finished:
                    yield finished
                    continue
                written = _write(job, source, params, work, islice(blocks, -(-len(job.images) // _CHUNK)))
                yield replace(written, synced=disk.submit(sync_files, [work / name for name in written.files]))
    finally:
        cv2.setNumThreads(threads)


def _name(kind: str, shard: int, ending: str = "npy") -> str:
    return f"{kind}-{shard:05d}.{ending}"


def _plan_digest(job: Job, source: Source, params: DataParams) -> str:
    """Digest of all that a job's result depends on."""
    files = [
        (image, *((entry.uri, entry.size, entry.version) for entry in entries if entry))
        for image, *entries in next(_files([job], source))
    ]
    base = file_digest(job.base / "artifact.json") if job.base else None
    settings = params.model_dump(mode="json", include={"image_size", "resize", "max_pixels", "max_file_bytes"})
    return json_digest([DECODER, settings, job.shard, files, job.places, base, job.erase])


def _finished(job: Job, source: Source, params: DataParams, work: Path) -> Written | None:
    """What an earlier run left of a job, or None when it did not finish it, planned otherwise, or the bytes are not whole."""
    marker = work / _name(_DONE, job.shard, "json")
    if not marker.exists():
        return None
    told = read_json(marker)
    if told["plan"] != _plan_digest(job, source, params):
        return None
    if any(not (work / name).exists() or not has_digest(work / name, digest) for name, digest in told["files"].items()):
        return None
    return Written(work / _name(_ROWS, job.shard, "parquet"), [tuple(reject) for reject in told["rejects"]], told["files"])


def _write(job: Job, source: Source, params: DataParams, work: Path, blocks: Iterator[_Block]) -> Written:
    """Write one shard's files, and last of all the mark that it is finished."""
    (work / _name(_DONE, job.shard, "json")).unlink(missing_ok=True)
    shard = _Rewritten(job, params, work) if job.base else _Appended(job, params, work)
    rows: list[dict[str, Any]] = []
    rejects: list[tuple[str, ...]] = []
    for block in blocks:
        first = len(rows)
        places = [job.places[number] for number in block.numbers] if job.places else range(first, first + len(block.rows))
        shard.put(block, places)
        rows += [{**row, "shard": job.shard, "row": place} for row, place in zip(block.rows, places, strict=True)]
        rejects += block.rejects
    files = shard.close()
    path = work / _name(_ROWS, job.shard, "parquet")
    table = pd.DataFrame(rows, columns=list(IMAGE_COLUMNS)).astype(dict.fromkeys(PROPERTIES, np.float32))
    table.to_parquet(path, index=False)
    files[path.name] = file_digest(path)
    done = {"plan": _plan_digest(job, source, params), "files": files, "rejects": rejects}
    write_json(work / _name(_DONE, job.shard, "json"), done)
    return Written(path, rejects, files)


def _read_ahead(jobs: Sequence[Job], source: Source, params: DataParams, pool: ThreadPoolExecutor) -> Iterator[_Block]:
    """The images of each job in blocks of _CHUNK, in order; a bounded number is read ahead."""
    chunks = (
        (start, files[start : start + _CHUNK]) for files in _files(jobs, source) for start in range(0, len(files), _CHUNK)
    )
    waiting: deque[Future[_Block]] = deque()
    for start, files in islice(chunks, source.concurrency + 2):
        waiting.append(pool.submit(_read, start, files, source, params))
    done, total = 0, sum(len(job.images) for job in jobs)
    while waiting:
        block = waiting.popleft().result()
        for start, files in islice(chunks, 1):
            waiting.append(pool.submit(_read, start, files, source, params))
        yield block
        done += len(block.rows) + len(block.rejects)
        progress("reading images", done, total)


def _files(jobs: Iterable[Job], source: Source) -> Iterator[list[tuple[str, Entry, Entry | None]]]:
    """For each job its image ids with their files and masks."""
    for job in jobs:
        images, masks = source.images.find(job.images), source.masks.find(job.images)
        yield [(image_id, images[image_id], masks.get(image_id)) for image_id in job.images]


def _read(first: int, files: Sequence[tuple[str, Entry, Entry | None]], source: Source, params: DataParams) -> _Block:
    """One block: the images of a job from the one numbered `first`."""
    block = _Block()
    small: list[tuple[Pixels, ...]] = []
    for number, (image_id, entry, mask_entry) in enumerate(files, first):
        try:
            decoded = decode(source.read(entry), params.image_size, params.max_pixels, params.resize)
            mask, truth_digest = _read_mask(mask_entry, source, params)
        except RejectedError as rejected:
            block.rejects.append((image_id, entry.uri, rejected.reason, rejected.detail))
            continue
        small.append((*reduced(decoded.pixels), thumbnail(decoded.pixels)))  # now, while the cache holds the pixels
        block.numbers.append(number)
        block.pixels.append(decoded.pixels)
        block.masks.append(mask)
        block.rows.append(
            {
                "image_id": image_id,
                "source_uri": entry.uri,
                "source_digest": decoded.source_digest,
                "truth_digest": truth_digest,
                "pixel_digest": decoded.pixel_digest,
                "original_width": decoded.width,
                "original_height": decoded.height,
                "has_truth": mask is not None,
            }
        )
    if small:
        _measure(block, *map(np.stack, zip(*small, strict=True)))
    return block


def _measure(block: _Block, grey: Pixels, coloured: Pixels, thumbnails: Pixels) -> None:
    """Add what the small pictures of a block's images say, all at once: numpy's calls cost more than their work."""
    measured = {name: values.tolist() for name, values in properties_of(grey, coloured).items()}
    for row, hashed, *values in zip(block.rows, perceptual_hashes(thumbnails), *measured.values(), strict=True):
        row |= {"perceptual_hash": hashed, **dict(zip(measured, values, strict=True))}
    block.signatures.extend(signatures(thumbnails))


def _read_mask(entry: Entry | None, source: Source, params: DataParams) -> tuple[Pixels | None, str]:
    """A mask's packed bits and the digest of its file."""
    if entry is None:
        return None, ""
    data = source.read(entry)
    mask = decode_mask(data, params.image_size, params.max_pixels, params.resize)
    return np.packbits(mask, axis=-1), bytes_digest(data)


class _Appended:
    """A new shard: pixels go to the file as they come."""

    def __init__(self, job: Job, params: DataParams, work: Path) -> None:
        self._job, self._work, self._size = job, work, params.image_size
        self._file = (work / _name(_PIXELS, job.shard)).open("wb")
        self._file.write(self._header(len(job.images)))
        self._rows: list[str] = []
        self._truth: list[Pixels | None] = []
        self._signatures: list[npt.NDArray[Any]] = []

    def put(self, block: _Block, _places: Sequence[int]) -> None:
        """Add images."""
        self._file.writelines(pixels.data for pixels in block.pixels)
        self._rows += [row["pixel_digest"] for row in block.rows]
        self._truth += block.masks
        self._signatures += block.signatures

    def close(self) -> dict[str, str]:
        """Finish the files; returns their digests by name, none when no image was usable."""
        length, names = len(self._rows), [_name(kind, self._job.shard) for kind in (_PIXELS, _SIGNATURES, _TRUTH)]
        header = self._header(length)
        if length < len(self._job.images):  # images were refused
            self._file.seek(0)
            self._file.write(header)
        self._file.close()
        if length == 0:
            (self._work / names[0]).unlink()
            return {}
        np.save(self._work / names[1], np.stack(self._signatures))
        if any(mask is not None for mask in self._truth):
            empty = np.zeros((self._size, -(-self._size // 8)), np.uint8)
            np.save(self._work / names[2], np.stack([empty if mask is None else mask for mask in self._truth]))
        else:
            names.pop()
        return {names[0]: rows_digest(header, self._rows), **{name: file_digest(self._work / name) for name in names[1:]}}

    def _header(self, length: int) -> bytes:
        """An .npy header; numpy pads it so that its own length is the same for any number of images."""
        file = io.BytesIO()
        shape = (length, self._size, self._size, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return file.getvalue()


class _Rewritten:
    """An earlier shard in which some places change."""

    def __init__(self, job: Job, params: DataParams, work: Path) -> None:
        assert job.base is not None
        size = params.image_size
        self._work = work
        for kind in (_PIXELS, _SIGNATURES, _TRUTH):
            if (job.base / _name(kind, job.shard)).exists():
                shutil.copyfile(job.base / _name(kind, job.shard), work / _name(kind, job.shard))
        self._pixels = np.load(work / _name(_PIXELS, job.shard), mmap_mode="r+")
        self._signatures = np.load(work / _name(_SIGNATURES, job.shard), mmap_mode="r+")
        truth = work / _name(_TRUTH, job.shard)
        shape = (len(self._pixels), size, -(-size // 8))
        if not (job.base / truth.name).exists():
            np.save(truth, np.zeros(shape, np.uint8))
        self._truth = np.load(truth, mmap_mode="r+")
        self._names = [_name(kind, job.shard) for kind in (_PIXELS, _SIGNATURES, _TRUTH)]
        for array in (self._pixels, self._signatures, self._truth):
            array[list(job.erase)] = 0

    def put(self, block: _Block, places: Sequence[int]) -> None:
        """Replace the images at places."""
        for place, pixels, mask, signature in zip(places, block.pixels, block.masks, block.signatures, strict=True):
            self._pixels[place] = pixels
            self._signatures[place] = signature
            self._truth[place] = 0 if mask is None else mask

    def close(self) -> dict[str, str]:
        """Finish the files; returns their digests by name."""
        for array in (self._pixels, self._signatures, self._truth):
            array.flush()
        if not self._truth.any():
            (self._work / self._names.pop()).unlink()
        files = {name: file_digest(self._work / name) for name in self._names[1:]}
        return {self._names[0]: npy_rows_digest(self._work / self._names[0]), **files}
