"""The metadata table of a source: rows that can be used, and a reason for each that can not."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd

from components.ingest.entries import among, plain
from dermaflow.description import SAFE_ID, SAFE_ID_ALLOWED
from dermaflow.errors import InputError, shown
from dermaflow.params import Subset

REQUIRED_COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
METADATA_COLUMNS = (*REQUIRED_COLUMNS, "parent_id")  # the last may be left out: the image that another was made from
REJECT_COLUMNS = ("image_id", "lesion_id", "uri", "reason", "detail")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
_NO_AGE = ("", "unknown", "NA")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run; OWASP, "CSV Injection"
_MAX_TEXT = 128  # characters of a clinical text; HAM10000's longest is 15
_CHUNK = 5000  # rows that are Python objects at a time
_Check = tuple[str, str, Callable[[str], bool], str]


@dataclass(frozen=True)
class Rows:
    """A metadata table, checked row by row.

    Attributes
    ----------
    good: METADATA_COLUMNS and `line` (in the file, from 1; 0 where there is no file), ordered by image_id, each id once;
        parent_id is empty where the table has none.
    refused: REJECT_COLUMNS, in the order of the file.
    """

    good: pd.DataFrame
    refused: pd.DataFrame


def read_metadata(data: bytes, name: str, uri: str, classes: Sequence[str]) -> Rows:
    """Check a metadata table, separated by commas or tabs; text columns stay text, age is float with NaN where unknown.

    Parameters
    ----------
    name: of the file, as errors should say it.
    uri: of the file, as rejects say it.
    classes: that dx may name.

    Raises
    ------
    InputError
        when it is no table, lacks a column, or has no rows.
    """
    reader = _open_table(data, name)
    header, checks = _read_header(reader, name), _checks(classes)
    good: list[pd.DataFrame] = []
    refused: list[pd.DataFrame] = []
    while chunk := _next_rows(reader, name):
        short = [(line, cells) for line, cells in chunk if len(cells) != len(header)]
        refused += [_bad_row(uri, line, cells, header) for line, cells in short]
        rows = [(line, cells) for line, cells in chunk if len(cells) == len(header)]
        usable, bad = _check_rows(_frame(rows, header), uri, checks)
        good.append(usable)
        refused.append(bad)
    if not good:
        raise InputError(f"{name} has no rows; give one row an image")
    return _without_duplicates(pd.concat(good, ignore_index=True), pd.concat(refused, ignore_index=True), uri)


def reject_table(rows: list[tuple[str, str, str, str, str]]) -> pd.DataFrame:
    """Rejects as a table of REJECT_COLUMNS."""
    return pd.DataFrame(rows, columns=list(REJECT_COLUMNS), dtype=str)


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


def id_cell(value: str) -> str:
    """An id as the rejects may hold it: an unsafe one stands in quotes, so that no tool takes it for a path or formula."""
    return value if not value or SAFE_ID.fullmatch(value) else shown(value)


class _Reader:
    """A table's rows with their line numbers."""

    def __init__(self, text: io.TextIOWrapper, separator: str) -> None:
        self._rows = csv.reader(text, delimiter=separator, strict=True)
        self._line = 0  # the last line of the row before: a quoted cell may span several

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        return self

    def __next__(self) -> tuple[int, list[str]]:
        cells: list[str] = []
        while not cells:  # blank lines
            self._line = self._rows.line_num + 1
            cells = next(self._rows)
        return self._line, cells

    @property
    def line(self) -> int:
        """The line at which the row being read starts."""
        return self._line


def _open_table(data: bytes, name: str) -> _Reader:
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name} can not be read as a table: line {line} is not UTF-8 ({error.reason}); save it as UTF-8"
        ) from error
    csv.field_size_limit(len(data) + 1)  # a huge cell is a fault of its row, not of the table
    first = data.partition(b"\n")[0]
    return _Reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), "\t" if b"\t" in first else ",")


def _read_header(reader: _Reader, name: str) -> list[str]:
    first = _next_rows(reader, name, 1)
    if not first:
        raise InputError(f"{name} can not be read as a table: it is empty; needed: {', '.join(REQUIRED_COLUMNS)}")
    header = first[0][1]
    missing = [column for column in REQUIRED_COLUMNS if column not in header]
    if missing:
        raise InputError(
            f"{name} lacks the column {', '.join(missing)}; needed: {', '.join(REQUIRED_COLUMNS)}, separated by commas or tabs"
        )
    twice = [column for column in METADATA_COLUMNS if header.count(column) > 1]
    if twice:
        raise InputError(f"{name} has the column {', '.join(twice)} more than once; leave one of them")
    return header


def _next_rows(reader: _Reader, name: str, count: int = _CHUNK) -> list[tuple[int, list[str]]]:
    try:
        return list(islice(reader, count))
    except csv.Error as error:
        raise InputError(
            f"{name} can not be read as a table: line {reader.line}: {error}; mend the quotes of this row"
        ) from error


def _frame(rows: list[tuple[int, list[str]]], header: list[str]) -> pd.DataFrame:
    places = {column: header.index(column) for column in METADATA_COLUMNS if column in header}
    columns = {column: pd.Series([cells[place] for _, cells in rows], dtype=str) for column, place in places.items()}
    columns.setdefault("parent_id", pd.Series("", index=range(len(rows)), dtype=str))
    return pd.DataFrame({**columns, "line": np.asarray([line for line, _ in rows], np.int64)})


def _bad_row(uri: str, line: int, cells: list[str], header: list[str]) -> pd.DataFrame:
    image_id, lesion_id = (
        plain(cells[place]) if (place := header.index(column)) < len(cells) else "" for column in ("image_id", "lesion_id")
    )
    detail = f"{uri}, line {line}: {len(cells)} cells; the header has {len(header)}"
    return reject_table([(id_cell(image_id), id_cell(lesion_id), uri, "bad_row", detail)])


def _check_rows(table: pd.DataFrame, uri: str, checks: Sequence[_Check]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows without fault, and rejects for the rest with the first fault of each."""
    reasons = pd.Series("", index=table.index, dtype=str)
    details = reasons.copy()
    for column, reason, fits, allowed in checks:
        bad_values = [value for value in table[column].unique().tolist() if not fits(value)]
        if bad_values:
            bad = among(table[column], bad_values) & (reasons == "")
            reasons[bad] = reason
            told = [
                f"{uri}, line {line}: {column} is {shown(value)}; allowed: {allowed}"
                for line, value in zip(table.loc[bad, "line"], table.loc[bad, column], strict=True)
            ]
            details[bad] = pd.Series(told, index=table.index[bad], dtype=str)
    faulty = reasons != ""
    bad_rows = table[faulty]
    refused = pd.DataFrame(
        {
            "image_id": bad_rows["image_id"].map(id_cell),
            "lesion_id": bad_rows["lesion_id"].map(id_cell),
            "uri": uri,
            "reason": reasons[faulty],
            "detail": details[faulty],
        },
        dtype=str,
    )
    good = table[~faulty]
    age = pd.to_numeric(good["age"].where(~among(good["age"], _NO_AGE)), errors="raise").astype("float64")
    return good.assign(age=age), refused


def _is_no_formula(value: str) -> bool:
    return not value.startswith(_FORMULA_STARTS)


def _is_text(value: str) -> bool:
    return value.isprintable() and len(value) <= _MAX_TEXT


def _is_safe_id(value: str) -> bool:
    return SAFE_ID.fullmatch(value) is not None


def _is_age(value: str) -> bool:
    return value in _NO_AGE or _NUMBER.fullmatch(value) is not None


def _checks(classes: Sequence[str]) -> Sequence[_Check]:
    """What each column must be: its name, the reason of a reject, the test, and what is allowed; a row's first fault counts."""
    told = ("dx_type", "sex", "localization")
    return (
        ("image_id", "unsafe_id", _is_safe_id, SAFE_ID_ALLOWED),
        ("lesion_id", "no_lesion_id", bool, "the lesion that the image shows; images of one lesion share it"),
        ("lesion_id", "unsafe_id", _is_safe_id, SAFE_ID_ALLOWED),
        ("dx", "unknown_class", classes.__contains__, ", ".join(classes)),
        ("parent_id", "unsafe_id", lambda value: not value or _is_safe_id(value), f"empty, or {SAFE_ID_ALLOWED}"),
        *((column, "formula", _is_no_formula, "text that no spreadsheet would run") for column in told),
        *((column, "bad_value", _is_text, f"printable text of at most {_MAX_TEXT} characters") for column in told),
        ("age", "formula", lambda value: _is_age(value) or _is_no_formula(value), "a number of years, or empty"),
        ("age", "bad_value", _is_age, "a number of years, or empty"),
    )


def _without_duplicates(good: pd.DataFrame, refused: pd.DataFrame, uri: str) -> Rows:
    """Every row of an id that stands in several rows is refused: which one is right can not be known."""
    faulty_too = among(good["image_id"], refused["image_id"])
    several = good[good["image_id"].duplicated(keep=False) | faulty_too]
    lines = {str(image): list(group) for image, group in several.groupby("image_id")["line"]}
    rejects = [
        (image, lesion, uri, "duplicate_id", _duplicate_detail(uri, image, line, lines[image]))
        for image, lesion, line in zip(several["image_id"], several["lesion_id"], several["line"], strict=True)
    ]
    kept = good.drop(several.index).sort_values("image_id", ignore_index=True)
    return Rows(kept, pd.concat([refused, reject_table(rejects)], ignore_index=True))


def _duplicate_detail(uri: str, image_id: str, line: int, lines: list[int]) -> str:
    others = ", ".join(str(other) for other in lines[:5] if other != line)
    where = f"line {others}" if others else "a refused row"
    return f"{uri}, line {line}: image_id {image_id} stands also in {where}; allowed: one row an image"
