"""Tables of the suite `manifest`: a Dataset, or the listing of a source that is not decoded yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from components.validate import drift
from dermaflow.classes import NORMAL
from dermaflow.dataset import CLINICAL_COLUMNS, PROPERTIES, Dataset
from dermaflow.params import ValidateParams

Tables = dict[str, pd.DataFrame]
ARTEFACTS = {"hair": ("hair_share", 0.001), "vignette": ("vignette_share", 0.05), "ink": ("ink_share", 0.005)}
# the share from which an image counts as showing the artefact; set by eye on HAM10000, where 12 %, 6 % and 0.3 % do
_LOOKED_AT = (
    *("image_id", "lesion_id", "label", *CLINICAL_COLUMNS, "source_digest", "pixel_digest"),
    *("original_width", "original_height", "has_truth", *PROPERTIES, "shard", "row"),
)  # columns of the manifest
_Z99 = 2.576  # standard deviations on each side of a 99 % interval
_UNKNOWN = ("", "unknown", "NA")


def dataset_tables(dataset: Dataset, params: ValidateParams, reference: Dataset | None) -> Tables:
    """The tables of a Dataset.

    images: an active row of the manifest each, with diagnoses_of_lesion, lesions_of_class, labels_of_pixels,
        lesions_of_pixels, lesions_of_bytes, copies_in_lesion, in_shard, has_truth_file, unmeasured.
    refused: a reject each, with refused_share.
    pairs: near duplicates that are not identical, a pair each: lesion_matches, label_matches.
    classes: a class each: images, lesions, and for each artefact its rate, and the gap: how far the rate of all
        images is outside of what the class's own images make likely.
    drift: a compared column each, as components.validate.drift tells; only with a reference.
    """
    rows = _with_lesions(dataset.columns(*_LOOKED_AT))
    tables = {
        "images": _with_files(_with_duplicates(rows), dataset),
        "refused": _refused(dataset.rejects, len(rows)),
        "pairs": _pairs(rows, pd.read_parquet(dataset.artifact.path / "neighbours.parquet")),
        "classes": _classes(rows, dataset.classes),
    }
    if reference is not None:
        tables["drift"] = drift.compare(rows, reference.columns(*drift.COLUMNS_COMPARED), params)
    return tables


def listing_tables(metadata: pd.DataFrame, refused: pd.DataFrame, classes: Sequence[str]) -> Tables:
    """The tables as far as a source's metadata and list of files tell them.

    Parameters
    ----------
    metadata: usable rows: image_id, lesion_id, dx and the clinical columns.
    refused: image_id, lesion_id, uri, reason, detail.
    """
    rows = _with_lesions(metadata.rename(columns={"dx": "label"}))
    return {"images": rows, "refused": _refused(refused, len(rows)), "classes": _counts(rows, classes)}


def _with_lesions(rows: pd.DataFrame) -> pd.DataFrame:
    diagnoses = rows.assign(label=rows["label"].where(rows["label"] != NORMAL))  # skin beside a lesion is none
    return rows.assign(
        diagnoses_of_lesion=distinct(diagnoses, "lesion_id", "label"),
        lesions_of_class=distinct(rows, "label", "lesion_id"),
        known_sex=rows["sex"].where(~rows["sex"].isin(_UNKNOWN)),
        known_localization=rows["localization"].where(~rows["localization"].isin(_UNKNOWN)),
    )


def _with_duplicates(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(
        labels_of_pixels=distinct(rows, "pixel_digest", "label"),
        lesions_of_pixels=distinct(rows, "pixel_digest", "lesion_id"),
        lesions_of_bytes=distinct(rows, "source_digest", "lesion_id"),
        copies_in_lesion=_copies(rows, "lesion_id", "pixel_digest"),
    )


def _with_files(rows: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Whether each row's place is in a shard that exists, and its expert mask where it says there is one."""
    lengths = {shard: dataset.shard_length(shard) for shard in dataset.shards}
    truth = {shard: Path(dataset.artifact.path, f"truth-{shard:05d}.npy").exists() for shard in lengths}
    measured = [name for name in PROPERTIES if name in rows]
    return rows.assign(
        in_shard=rows["row"].ge(0) & rows["row"].lt(rows["shard"].map(lengths).fillna(0)),
        has_truth_file=~rows["has_truth"] | rows["shard"].map(truth).fillna(value=False).astype(bool),
        unmeasured=rows[measured].isna().sum(axis=1) + len(PROPERTIES) - len(measured),
    )


def distinct(rows: pd.DataFrame, by: str, what: str) -> pd.Series[float]:
    """How many values of a column the rows of each group have, beside each row; none where the group is unknown."""
    groups, values = (pd.factorize(rows[name])[0] for name in (by, what))  # numbers: texts would be a Python object each
    known = (groups >= 0) & (values >= 0)
    pairs = np.unique(np.stack([groups[known], values[known]]), axis=1)
    counts = np.append(np.bincount(pairs[0], minlength=groups.max(initial=-1) + 1).astype(np.float64), np.nan)
    return pd.Series(np.where(counts[groups] > 0, counts[groups], np.nan), rows.index)


def rows_of(image_ids: pd.Series[str], table: pd.DataFrame) -> pd.DataFrame:
    """The first row of each image in a table, numbered from 0; without values where the table does not have the image."""
    ids, there = (pa.array(texts, pa.large_string()) for texts in (image_ids, table["image_id"]))
    places = np.asarray(pc.index_in(ids, value_set=there).fill_null(-1))
    return table.reset_index(drop=True).reindex(places).reset_index(drop=True)


def _copies(rows: pd.DataFrame, *columns: str) -> npt.NDArray[np.int64]:
    """How many rows have the same values in some columns, beside each row."""
    codes = np.stack([pd.factorize(rows[name])[0] for name in columns])
    _, place, counts = np.unique(codes, axis=1, return_inverse=True, return_counts=True)
    return np.asarray(counts[place.ravel()], np.int64)


def _refused(rejects: pd.DataFrame, good: int) -> pd.DataFrame:
    return rejects.assign(refused_share=len(rejects) / max(len(rejects) + good, 1))


def _pairs(rows: pd.DataFrame, neighbours: pd.DataFrame) -> pd.DataFrame:
    neighbours = neighbours[neighbours["distance"] > 0].reset_index(drop=True)  # others are identical: columns of `images` tell
    facts = rows[["image_id", "lesion_id", "label"]]
    first, other = (rows_of(neighbours[name], facts) for name in ("image_a", "image_b"))
    return pd.DataFrame(
        {
            "image_id": neighbours["image_a"].to_numpy(),
            "lesion_id": first["lesion_id"],
            "other_image": neighbours["image_b"].to_numpy(),
            "other_lesion": other["lesion_id"],
            "score": neighbours["score"].to_numpy(),
            "lesion_matches": first["lesion_id"].eq(other["lesion_id"]),
            "label_matches": first["label"].eq(other["label"]),
        }
    )


def _classes(rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    table = _counts(rows, classes)
    for name, (column, shown_from) in ARTEFACTS.items():
        if column in rows:
            shown = rows[column].ge(shown_from)
            rates = np.asarray(shown.groupby(rows["label"]).mean().reindex(list(classes)), np.float64)
            overall = float(shown.mean())
            low, high = _likely(rates, table["images"].to_numpy())
            table[f"{name}_rate"] = np.round(rates, 4)
            table[f"{name}_gap"] = np.round(np.maximum(0, np.maximum(low - overall, overall - high)), 4)
    return table


def _likely(
    rates: npt.NDArray[np.float64], images: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Wilson's 99 % interval of rates that were seen in so many images each; NaN for none."""
    n = np.where(images > 0, images, np.nan)
    centre, narrowed = rates + _Z99**2 / (2 * n), 1 + _Z99**2 / n
    reach = _Z99 * np.sqrt(rates * (1 - rates) / n + _Z99**2 / (4 * n**2))
    return (centre - reach) / narrowed, (centre + reach) / narrowed


def _counts(rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    grouped = rows.groupby("label")
    return pd.DataFrame(
        {
            "label": list(classes),
            "images": grouped.size().reindex(list(classes), fill_value=0).to_numpy(),
            "lesions": grouped["lesion_id"].nunique().reindex(list(classes), fill_value=0).to_numpy(),
        }
    )
