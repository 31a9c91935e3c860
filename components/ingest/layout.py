"""From the files of a source to labelled images: which file is what, which row it belongs to, and why some have to stay out.

Two layouts, wherever the files lie:

HAM10000's      one *metadata*.csv, .tab, .tsv or .txt at the top (or, if there is none, in an archive), images anywhere
class folders   no metadata; the images of a class in a folder named after it, at the top or at the top of an archive

In both, `<image_id>_segmentation.png` is an expert mask and `source.json` says name, licence and whether it is synthetic.
Hidden files, `__MACOSX` and files that are no images (notes, checksums) are passed over. An archive none of whose images
has a metadata row is another data set's (HAM10000 comes with ISIC 2018's test images): it is told once, not image by
image. An image whose mask can not be used stays out with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd

from components.ingest.decode import Bytes, RejectedError
from components.ingest.entries import (
    IMAGE_ENDINGS,
    MASK_ENDING,
    TABLE_ENDINGS,
    UNSUPPORTED_ENDINGS,
    Entries,
    Entry,
    Fault,
    FileColumns,
    among,
    plain,
)
from components.ingest.fingerprints import Fingerprints
from components.ingest.metadata import METADATA_COLUMNS, Rows, id_cell, read_metadata, reject_table, take_subset
from dermaflow.description import SAFE_ID, SAFE_ID_ALLOWED, Description
from dermaflow.errors import InputError, shown
from dermaflow.params import DataParams

SOURCE_FILE = "source.json"
_ARCHIVE = re.compile(r".*?\.zip/", re.IGNORECASE | re.DOTALL)
_MAX_PATH = 512  # characters; a column is as wide as its longest path
_ORDINARY = re.compile(  # an image with whose name nothing is wrong, as nearly all: one look instead of the five below
    rf"(?:[A-Za-z0-9][A-Za-z0-9 ._-]*/)*({SAFE_ID.pattern})(?<!{MASK_ENDING.rpartition('.')[0]})\.(?:jpe?g|png)"
)
Reject = tuple[str, str, str, str, str]


class Files(Protocol):
    """The files of a source, wherever they lie."""

    concurrency: int  # how many reads at a time this kind of place answers best
    fingerprints: Fingerprints

    def walk(self) -> Iterator[Entry | Fault]:
        """Every file, in any order."""

    def read(self, entry: Entry) -> Bytes:
        """The bytes of a file, good until the thread reads again; RejectedError when they can not be had."""

    def digests(self, entries: Iterable[Entry]) -> Iterator[str]:
        """For each file a text that changes when its bytes do."""


@dataclass(frozen=True)
class Arranged:
    """A source's labelled images; see `components.ingest.source.Source`."""

    metadata: pd.DataFrame
    refused: pd.DataFrame
    images: Entries
    masks: Entries
    said: Description
    layout: str


def arrange(files: Files, params: DataParams) -> Arranged:
    """List a source and match its files with its rows.

    Raises
    ------
    InputError
        when there is no metadata, no class folder or no image, or a table can not be read.
    """
    found = _gather(files, params)
    images, masks = found.images.frame(), found.masks.frame()
    said = _said(files, found.said, params)
    classes = said.class_order
    table = _one_table(found.tables, images, params, classes)
    if images.empty and not found.faults:
        raise InputError(f"data.source: {params.source} holds no images ({', '.join(IMAGE_ENDINGS)})")
    rows = _table_rows(files, table, params, classes) if table else _rows_of_class_folders(images, classes)
    labelled = pd.concat([rows.good["image_id"], rows.refused["image_id"]])
    good = take_subset(rows.good, params.subset) if params.subset else rows.good
    metadata, rejects = _match(good, images, masks, found.faults, table.uri if table else "")
    rejects += _strangers(images, masks, labelled) if not params.subset else []
    rejects += _fault_rejects(
        found.faults, good, labelled[~among(labelled, good["image_id"])] if params.subset else labelled[:0]
    )
    return Arranged(
        metadata=metadata,
        refused=pd.concat([_with_files(rows.refused, images), reject_table(sorted(rejects, key=_by_place))], ignore_index=True),
        images=Entries(_of_ids(images, metadata["image_id"])),
        masks=Entries(_of_ids(masks, metadata["image_id"])),
        said=said,
        layout="ham10000" if table else "class_folders",
    )


def _table_rows(files: Files, table: Entry, params: DataParams, classes: Sequence[str]) -> Rows:
    return read_metadata(_read_whole(files, table, params), _path(table.uri, params), table.uri, classes)


# --- what each file is ---


@dataclass(frozen=True, slots=True)
class _FileFault(Fault):
    """A fault with what the file was for."""

    kind: str
    image_id: str


@dataclass
class _Found:
    images: FileColumns = field(default_factory=FileColumns)
    masks: FileColumns = field(default_factory=FileColumns)
    faults: list[_FileFault] = field(default_factory=list)
    tables: list[Entry | Fault] = field(default_factory=list)
    said: list[Entry | Fault] = field(default_factory=list)


def _gather(files: Files, params: DataParams) -> _Found:
    found = _Found()
    for file in files.walk():
        ordinary = _ORDINARY.fullmatch(file.uri)
        if ordinary and isinstance(file, Entry) and 0 < file.size <= params.max_file_bytes and len(file.uri) <= _MAX_PATH:
            found.images.add(ordinary[1], file)
            continue
        if _passed_over(file.uri):
            continue
        kind, image_id = _kind_of(file.uri)
        fault = file if isinstance(file, Fault) else next(_faults(file, kind, image_id, params), None)
        if kind in ("table", "said"):
            (found.tables if kind == "table" else found.said).append(file)
        elif fault and kind:
            found.faults.append(_FileFault(plain(fault.uri), fault.reason, fault.detail, kind, plain(image_id)))
        elif kind in ("image", "mask") and isinstance(file, Entry):
            (found.images if kind == "image" else found.masks).add(image_id, file)
    return found


def _passed_over(uri: str) -> bool:
    """Hidden files; a name that begins with two dots is judged, not hidden."""
    if "/." not in f"/{uri}" and "__MACOSX" not in uri:  # as nearly all
        return False
    return any(part == "__MACOSX" or (part.startswith(".") and part != "." and part[1:2] != ".") for part in uri.split("/"))


def _kind_of(uri: str) -> tuple[str, str]:
    """What a file is by its name ("image", "mask", "table", "said", "other" or "", which is passed over), and its image id."""
    name = uri.rstrip("/").rpartition("/")[2]
    lower = name.lower()
    if lower.endswith(MASK_ENDING):
        return "mask", name[: -len(MASK_ENDING)]
    if lower.endswith((*IMAGE_ENDINGS, *UNSUPPORTED_ENDINGS)):
        return ("image" if lower.endswith(IMAGE_ENDINGS) else "other"), name.rpartition(".")[0]
    if uri.endswith("/"):  # a folder that is not gone into
        return "other", ""
    inner = _ARCHIVE.sub("", uri)
    if "metadata" in lower and (lower.endswith(TABLE_ENDINGS) or "." not in lower) and ("/" not in uri or inner != uri):
        return "table", ""
    return ("said" if inner == SOURCE_FILE else ""), ""


def _faults(entry: Entry, kind: str, image_id: str, params: DataParams) -> Iterator[Fault]:
    """What is wrong with a file that its name and size tell, the worst first."""
    uri = entry.uri
    if "\\" in uri or not {"", ".", ".."}.isdisjoint(uri.split("/")):
        yield Fault(uri, "outside", "the name leads out of the source; allowed: a path below it, with / between folders")
    if not uri.isprintable() or len(uri) > _MAX_PATH:
        yield Fault(uri, "unsafe_name", f"allowed: printable UTF-8 of at most {_MAX_PATH} characters; rename the file")
    if kind == "other":
        ending = uri[uri.rfind(".") :]
        yield Fault(
            uri, "unsupported", f"{ending} is not read; allowed: {', '.join(IMAGE_ENDINGS)}; convert or unpack the file"
        )
    elif kind in ("image", "mask"):
        if not SAFE_ID.fullmatch(image_id):
            yield Fault(uri, "unsafe_name", f"allowed before the ending: {SAFE_ID_ALLOWED}; rename the file")
        if entry.size == 0:
            yield Fault(uri, "empty", "the file has no bytes")
        if entry.size > params.max_file_bytes:
            yield Fault(uri, "too_large", f"{entry.size} bytes; data.max_file_bytes is {params.max_file_bytes}")


def _one_table(tables: list[Entry | Fault], images: pd.DataFrame, params: DataParams, classes: Sequence[str]) -> Entry | None:
    """The metadata file: one at the top, else one in an archive; None where class folders speak instead."""
    tables = [file for file in tables if "/" not in file.uri] or tables
    if not tables and _folders(images).isin(classes).any():
        return None
    if len(tables) != 1:
        names = ", ".join(sorted(plain(file.uri) for file in tables)) or "none"
        raise InputError(
            f"data.source: {params.source} must hold exactly one metadata file (*metadata*.csv or .tab); found: {names}. "
            f"Without metadata, put the images of each class into a folder named after it: {', '.join(classes)}"
        )
    if isinstance(tables[0], Fault):
        raise InputError(f"{_path(tables[0].uri, params)} can not be read: {tables[0].detail}")
    return tables[0]


def _path(uri: str, params: DataParams) -> str:
    """Where a file is, from the working folder."""
    return f"{params.source.rstrip('/')}/{plain(uri)}"


def _read_whole(files: Files, entry: Entry, params: DataParams) -> bytes:
    if entry.size > params.max_file_bytes:
        raise InputError(f"{_path(entry.uri, params)} has {entry.size} bytes; data.max_file_bytes is {params.max_file_bytes}")
    try:
        return bytes(files.read(entry))
    except RejectedError as rejected:
        raise InputError(f"{_path(entry.uri, params)} can not be read: {rejected.detail}") from rejected


def _said(files: Files, found: list[Entry | Fault], params: DataParams) -> Description:
    """What the source says of itself, at the top or, if it says nothing there, in its first archive."""
    if not found:
        return Description()
    entry = min(found, key=lambda file: (file.uri.count("/"), file.uri))
    if isinstance(entry, Fault):
        raise InputError(f"{_path(entry.uri, params)} can not be read: {entry.detail}")
    return Description.parse(_read_whole(files, entry, params), _path(entry.uri, params))


# --- rows without a table ---


def _folders(images: pd.DataFrame) -> pd.Series[str]:
    """The topmost folder that each image lies in, below the source or its archive; "" for none."""
    inner = images["uri"].map(lambda uri: _ARCHIVE.sub("", uri))
    return inner.map(lambda uri: uri.partition("/")[0] if "/" in uri else "").astype(str)


def _rows_of_class_folders(images: pd.DataFrame, classes: Sequence[str]) -> Rows:
    """Rows as if a table had said them: each image a lesion of its own, nothing clinical known."""
    folders = _folders(images)
    known, allowed = folders.isin(classes), ", ".join(classes)
    rejects = [
        (image_id, "", uri, "unknown_class", f"the folder {shown(folder)} is no class; allowed: {allowed}")
        if folder
        else (image_id, "", uri, "unlabelled", f"the image lies in no class folder; allowed: {allowed}")
        for image_id, uri, folder in zip(images["image_id"][~known], images["uri"][~known], folders[~known], strict=True)
    ]
    good = images[["image_id"]][known].assign(dx=folders[known]).drop_duplicates("image_id", ignore_index=True)
    good = good.assign(lesion_id=good["image_id"], dx_type="", age=np.nan, sex="", localization="", parent_id="", line=0)
    return Rows(good[[*METADATA_COLUMNS, "line"]], reject_table(rejects))


# --- rows and files ---


def _match(
    rows: pd.DataFrame, images: pd.DataFrame, masks: pd.DataFrame, faults: list[_FileFault], table: str
) -> tuple[pd.DataFrame, list[Reject]]:
    """Rows that have exactly one image and at most one mask, all of them usable; and rejects for rows that do not.

    A row whose only file is at fault has no reject here: the file's fault speaks for it.
    """
    ids = rows["image_id"]
    several_images, several_masks = (_several(files) for files in (images, masks))
    faulty = {kind: {fault.image_id for fault in faults if fault.kind == kind} for kind in ("image", "mask")}
    no_image = ~among(ids, images["image_id"])
    bad_mask = among(ids, faulty["mask"]) & ~among(ids, masks["image_id"])
    twice = among(ids, several_images) | among(ids, several_masks)
    missing = rows[no_image & ~among(ids, faulty["image"])]
    rejects = [
        (image, lesion, table, "missing", f"{table}, line {line}: no file is named {image} ({', '.join(IMAGE_ENDINGS)})")
        for image, lesion, line in zip(missing["image_id"], missing["lesion_id"], missing["line"], strict=True)
    ]
    for image, lesion in zip(rows["image_id"][twice], rows["lesion_id"][twice], strict=True):
        uris = several_images.get(image) or several_masks[image]
        detail = f"{', '.join(uris[:5])}: {len(uris)} files for one id; allowed: one"
        rejects.append((image, lesion, uris[0], "duplicate_file", detail))
    kept = rows[~(no_image | bad_mask | twice)]
    return kept[list(METADATA_COLUMNS)].reset_index(drop=True), rejects


def _several(files: pd.DataFrame) -> dict[str, list[str]]:
    """The files of ids that have more than one."""
    again = files[files["image_id"].duplicated(keep=False)]
    return {str(image): list(group) for image, group in again.groupby("image_id")["uri"]}


def _strangers(images: pd.DataFrame, masks: pd.DataFrame, labelled: pd.Series[str]) -> list[Reject]:
    """Images without a row, and masks without row and image; those of an archive that has none with a row, in one reject."""
    ours = {
        archive for files in (images, masks) for archive in _archives(files[among(files["image_id"], labelled)]["uri"].tolist())
    }
    lone = masks[~among(masks["image_id"], images["image_id"])]
    strange = pd.concat([files[~among(files["image_id"], labelled)] for files in (images, lone)])
    counts: Counter[str] = Counter()
    rejects = []
    for image, uri in zip(strange["image_id"], strange["uri"], strict=True):
        archive = next(_archives([uri]), "")
        if archive and archive not in ours:
            counts[archive] += 1
        else:
            rejects.append((image, "", uri, "unlabelled", "no metadata row has this id"))
    told = "none of the archive's {} images has a metadata row: passed over whole"
    return rejects + [("", "", archive, "unlabelled", told.format(count)) for archive, count in counts.items()]


def _archives(uris: Iterable[str]) -> Iterator[str]:
    """The archives that files lie in; nothing for files that lie in none."""
    return (found[0].rstrip("/") for found in map(_ARCHIVE.match, uris) if found)


def _fault_rejects(faults: list[_FileFault], rows: pd.DataFrame, left_out: pd.Series[str]) -> list[Reject]:
    """Rejects for files at fault, but for those of images that a subset leaves out."""
    ids = {fault.image_id for fault in faults}
    known = rows[among(rows["image_id"], ids)]
    lesions = dict(zip(known["image_id"], known["lesion_id"], strict=True))
    passed = ids & set(left_out[among(left_out, ids)])
    return [
        (id_cell(fault.image_id), lesions.get(fault.image_id, ""), fault.uri, fault.reason, fault.detail)
        for fault in faults
        if fault.image_id not in passed
    ]


def _with_files(refused: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Refused rows with the uri of their image, where it is there."""
    found = images[among(images["image_id"], refused["image_id"])].drop_duplicates("image_id").set_index("image_id")["uri"]
    return refused.assign(uri=refused["image_id"].map(found).fillna(refused["uri"]).astype(str))


def _of_ids(files: pd.DataFrame, ids: pd.Series[str]) -> pd.DataFrame:
    return files[among(files["image_id"], ids)]


def _by_place(reject: Reject) -> tuple[str, ...]:
    image_id, lesion_id, uri, reason, detail = reject
    return uri, image_id, reason, detail, lesion_id
