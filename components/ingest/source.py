"""Where images come from: a folder in HAM10000's layout, checked before anything is decoded."""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from dermaflow.artifacts import file_digest, json_digest, read_json
from dermaflow.classes import HAM10000_CLASSES
from dermaflow.errors import InputError
from dermaflow.params import DataParams, Subset

METADATA_COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
MASK_ENDING = "_segmentation.png"
SOURCE_FILE = "source.json"
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # an id becomes a file name and a table cell


@dataclass(frozen=True)
class Source:
    """A checked source: its metadata and the files found for each image id.

    Attributes
    ----------
    folder: the source's root.
    metadata: METADATA_COLUMNS, one row an image, ordered by image_id.
    images: paths by image id; more than one when an id is there twice.
    masks: expert masks by image id.
    description: name, synthetic, licence, dvc_revision, ...
    """

    folder: Path
    metadata: pd.DataFrame
    images: dict[str, list[Path]]
    masks: dict[str, Path]
    description: dict[str, Any]


def open_source(params: DataParams) -> Source:
    """Open `data.source`, reading its metadata and listing its files.

    Raises
    ------
    InputError
        naming the file, the column or the value that can not be used, and what to do.
    """
    folder = Path(params.source)
    if not folder.is_dir():
        hint = (
            "draw synthetic images with: dermaflow data phantom data/phantom"
            if "phantom" in folder.name
            else ("give a folder in HAM10000's layout: a *metadata*.csv and folders of images")
        )
        raise InputError(f"data.source: {folder} is not a folder; {hint}")
    metadata = read_metadata(_metadata_file(folder))
    images, masks = _index_files(folder)
    if not images:
        raise InputError(f"data.source: {folder} holds no images ({', '.join(IMAGE_ENDINGS)})")
    if params.subset:
        metadata = take_subset(metadata, params.subset)
    return Source(folder, metadata, images, masks, _describe(folder, params))


def read_metadata(path: Path) -> pd.DataFrame:
    """Read and check a metadata table, separated by commas or tabs; text columns stay text.

    Returns
    -------
    DataFrame with METADATA_COLUMNS, ordered by image_id; age is float with NaN where it is unknown.

    Raises
    ------
    InputError
        for a column that lacks, an id that is empty or unsafe, a class that is not known, or an age that is no number.
    """
    try:
        with path.open() as file:
            separator = "\t" if "\t" in file.readline() else ","
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path} can not be read as a table: {error}") from error
    missing = [name for name in METADATA_COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"{path} lacks the column {', '.join(missing)}; needed: {', '.join(METADATA_COLUMNS)}")
    table = table[list(METADATA_COLUMNS)]
    if table.empty:
        raise InputError(f"{path} has no rows")
    for column in ("image_id", "lesion_id"):
        _refuse(
            path,
            table,
            ~table[column].map(lambda text: bool(_SAFE_ID.fullmatch(text))),
            column,
            "letters, digits, dot, dash and underscore, at most 128",
        )
    _refuse(path, table, ~table["dx"].isin(HAM10000_CLASSES), "dx", ", ".join(HAM10000_CLASSES))
    for column in ("dx_type", "sex", "localization"):
        _refuse(path, table, ~table[column].map(str.isprintable), column, "printable text")
    age = pd.to_numeric(table["age"].replace("", None), errors="coerce").astype("float64")
    known = ~table["age"].isin(["", "unknown", "NA"])
    _refuse(path, table, known & ~np.isfinite(age), "age", "a number of years, or empty")
    return table.assign(age=age).sort_values(["image_id", "lesion_id"], ignore_index=True)


def take_subset(metadata: pd.DataFrame, subset: Subset) -> pd.DataFrame:
    """Whole lesions, in the order of a hash of (seed, lesion id), until a class has `images_per_class` images.

    A lesion that would go over the limit is passed over. Classes in `keep_all` are taken whole.
    """
    kept: list[str] = []
    for label, group in metadata.groupby("dx", sort=True):
        sizes = group.groupby("lesion_id").size()
        order = sorted(sizes.index, key=lambda lesion: hashlib.sha256(f"{subset.seed}/{lesion}".encode()).digest())
        count = 0
        for lesion in order:
            if label in subset.keep_all or count + sizes[lesion] <= subset.images_per_class:
                kept.append(lesion)
                count += int(sizes[lesion])
    return metadata[metadata["lesion_id"].isin(kept)].reset_index(drop=True)


def _metadata_file(folder: Path) -> Path:
    found = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and "metadata" in path.name.lower() and path.suffix in (".csv", ".tab", ".tsv", ".txt", "")
    )
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(f"data.source: {folder} must hold exactly one metadata file (*metadata*.csv or .tab); found: {names}")
    return found[0]


def _index_files(folder: Path) -> tuple[dict[str, list[Path]], dict[str, Path]]:
    images: dict[str, list[Path]] = {}
    masks: dict[str, Path] = {}
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            if name.endswith(MASK_ENDING):
                masks[name.removesuffix(MASK_ENDING)] = Path(root, name)
            elif name.lower().endswith(IMAGE_ENDINGS):
                images.setdefault(name.rpartition(".")[0], []).append(Path(root, name))
    return images, masks


def _describe(folder: Path, params: DataParams) -> dict[str, Any]:
    said = read_json(folder / SOURCE_FILE) if (folder / SOURCE_FILE).exists() else {}
    return {
        "name": said.get("name", folder.resolve().name),
        "uri": params.source,
        "synthetic": bool(said.get("synthetic", False)),
        "licence": said.get("licence", params.licence),
        "dvc_revision": _dvc_revision(folder),
        "subset": params.subset.model_dump(mode="json") if params.subset else None,
    }


def _dvc_revision(folder: Path) -> str | None:
    """The digest under which DVC tracks the folder (`<folder>.dvc` or dvc.lock), if it does."""
    pointer = folder.with_name(folder.name + ".dvc")
    if pointer.exists():
        return str(yaml.safe_load(pointer.read_text())["outs"][0]["md5"])
    lock = Path("dvc.lock")
    if lock.exists():
        for stage in (yaml.safe_load(lock.read_text()) or {}).get("stages", {}).values():
            for out in stage.get("outs", ()):
                if Path(out["path"]) == folder:
                    return str(out["md5"])
    return None


def _refuse(path: Path, table: pd.DataFrame, bad: pd.Series[bool], column: str, allowed: str) -> None:
    if bad.any():
        first = int(bad.to_numpy().argmax())
        value = table[column].iloc[first]
        shown = value if len(value) <= 60 else value[:60] + "..."
        raise InputError(
            f"{path}, line {first + 2}: {column} is {shown!r} ({int(bad.sum())} such rows); allowed: {allowed}. "
            "Correct the file, or remove these rows"
        )


def source_digest(folder: Path) -> str:
    """Digest of every file of a source: names and bytes. It changes when anything that ingest reads does."""
    files = sorted(Path(root, name) for root, _, names in os.walk(folder, followlinks=True) for name in names)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading and hashing release the interpreter's lock
        digests = list(pool.map(file_digest, files))
    return json_digest([(path.relative_to(folder).as_posix(), digest) for path, digest in zip(files, digests, strict=True)])
