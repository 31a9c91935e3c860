"""Tables of the suites `splits` and `plan`: who is on which side, with whom, and what is drawn for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.validate.tables.manifest import Tables, distinct, rows_of
from dermaflow import contracts
from dermaflow.artifacts import json_digest
from dermaflow.dataset import Dataset

_FACTS = ("image_id", "lesion_id", "label", "pixel_digest", "source_digest")  # columns of the manifest


def splits_tables(splits: Path, dataset: Dataset, reference: Path | None) -> Tables:
    """The tables of a Splits artifact.

    images: an image each that the splits or the dataset know: split, in_dataset, agrees (with the dataset on lesion and
        label), and on how many sides its lesion, group, pixels and bytes are: sides_of_lesion and so on.
    pairs: near duplicates, a pair each: side_matches.
    sides: a split each: images, share, asked_share, deviation.
    classes: a class and split each: images.
    earlier: only with a reference, earlier Splits: an image of the earlier test set that is still in the dataset each,
        with its split now.
    relatives: only with a reference: a train image each, with the test image of the earlier splits that it shares a
        lesion, pixels or a near duplicate with; none is in order.
    frozen: only with a reference: digest and version of the test set, then and now; in_order.
    """
    table, info = contracts.read_splits(splits), contracts.read_info(splits, contracts.SPLITS)
    neighbours = pd.read_parquet(dataset.artifact.path / "neighbours.parquet")
    facts = dataset.columns(*_FACTS).drop_duplicates("image_id")
    images = _images(table, facts)
    tables = {
        "images": images,
        "pairs": _pairs(images, neighbours),
        "sides": _sides(table, info["shares"]),
        "classes": _classes(table),
    }
    if reference is None:
        return tables
    then, then_info = contracts.read_splits(reference), contracts.read_info(reference, contracts.SPLITS)
    test = then.loc[then["split"] == "test", ["image_id", "lesion_id"]]
    earlier = test.merge(images.loc[images["in_dataset"], ["image_id", "split"]], on="image_id")
    return {
        **tables,
        "earlier": earlier.assign(split=earlier["split"].fillna("none")),
        "relatives": _relatives(images, test, neighbours, facts),
        "frozen": _frozen(table, info, then, then_info),
    }


def plan_tables(plan: Path, splits: Path) -> Tables:
    """The tables of a Plan artifact.

    plan: a row of the plan each, with split_of_parent, and agrees (with the splits on lesion and label).
    images: a train image each, with planned.
    """
    rows, table = contracts.read_plan(plan), contracts.read_splits(splits)
    parents = rows_of(rows["image_id"], table)
    agrees = rows["lesion_id"].to_numpy() == parents["lesion_id"].to_numpy()
    agrees &= rows["label"].to_numpy() == parents["label"].to_numpy()
    train = table[table["split"] == "train"]
    return {
        "plan": rows.assign(split_of_parent=parents["split"].fillna("none").to_numpy(), agrees=agrees),
        "images": train.assign(planned=train["image_id"].isin(rows["image_id"])),
    }


def test_set_digest(table: pd.DataFrame) -> str:
    """Digest of the ids of a splits table's test images, whatever their order."""
    return json_digest(sorted(table.loc[table["split"] == "test", "image_id"]))


def _images(table: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    both = table.merge(facts, on="image_id", how="outer", suffixes=("", "_there"), indicator="known")
    in_dataset, in_splits = both["known"].ne("left_only"), both["known"].ne("right_only")
    agrees = both["lesion_id"].eq(both["lesion_id_there"]) & both["label"].eq(both["label_there"])
    both = both.assign(
        lesion_id=both["lesion_id"].fillna(both["lesion_id_there"]),
        label=both["label"].fillna(both["label_there"]),
        in_dataset=in_dataset,
        agrees=agrees | ~(in_dataset & in_splits),
        sides_of_lesion=distinct(both, "lesion_id", "split"),
        sides_of_group=distinct(both, "group_id", "split"),
    )
    for name, sides in (("pixel_digest", "sides_of_pixels"), ("source_digest", "sides_of_bytes")):
        both[sides] = distinct(both, name, "split")
        both[name] = both[name].where(both[sides] > 1)  # what a failing row shows: all of them would take 14 MB at 100,000
    return both.drop(columns=["lesion_id_there", "label_there", "known"])


def _pairs(images: pd.DataFrame, neighbours: pd.DataFrame) -> pd.DataFrame:
    facts = images[["image_id", "lesion_id", "split"]]
    first, other = (rows_of(neighbours[name], facts) for name in ("image_a", "image_b"))
    return pd.DataFrame(
        {
            "image_id": neighbours["image_a"].to_numpy(),
            "lesion_id": first["lesion_id"],
            "split": first["split"],
            "other_image": neighbours["image_b"].to_numpy(),
            "other_lesion": other["lesion_id"],
            "other_split": other["split"],
            "score": neighbours["score"].to_numpy(),
            "side_matches": first["split"].eq(other["split"]) | first["split"].isna() | other["split"].isna(),
        }
    )


def _sides(table: pd.DataFrame, shares: dict[str, float]) -> pd.DataFrame:
    images = table.groupby("split").size().reindex(contracts.SPLIT_NAMES, fill_value=0)
    asked = pd.Series(shares).reindex(contracts.SPLIT_NAMES)
    share = images / max(int(images.sum()), 1)
    return pd.DataFrame(
        {"split": images.index, "images": images, "share": share, "asked_share": asked, "deviation": (share - asked).abs()}
    ).reset_index(drop=True)


def _classes(table: pd.DataFrame) -> pd.DataFrame:
    every = pd.MultiIndex.from_product([sorted(table["label"].unique()), contracts.SPLIT_NAMES], names=["label", "split"])
    return table.groupby(["label", "split"]).size().reindex(every, fill_value=0).rename("images").reset_index()


def _relatives(images: pd.DataFrame, test: pd.DataFrame, neighbours: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """Train images with an image of the earlier test set that they are related to, and how."""
    pixels = rows_of(test["image_id"], facts)["pixel_digest"]
    by_lesion = dict(zip(test["lesion_id"], test["image_id"], strict=True))
    by_pixels = {digest: image for digest, image in zip(pixels, test["image_id"], strict=True) if isinstance(digest, str)}
    ends = neighbours[["image_a", "image_b"]]
    pairs = pd.DataFrame(np.concatenate([ends.to_numpy(), ends.to_numpy()[:, ::-1]]), columns=["image_id", "other"])
    near = pairs[pairs["other"].isin(test["image_id"])].drop_duplicates("image_id").set_index("image_id")["other"]
    train = images[images["split"] == "train"]
    found = {
        "lesion": train["lesion_id"].map(by_lesion),
        "identical pixels": rows_of(train["image_id"], facts)["pixel_digest"].map(by_pixels).set_axis(train.index),
        "near duplicate": train["image_id"].map(near),
    }
    ways = pd.DataFrame(found)
    related = ways.notna().any(axis=1)
    return train.loc[related, ["image_id", "lesion_id", "split"]].assign(
        test_image=ways[related].bfill(axis=1).iloc[:, 0], related_by=ways[related].notna().idxmax(axis=1)
    )


def _frozen(table: pd.DataFrame, info: dict[str, Any], then: pd.DataFrame, then_info: dict[str, Any]) -> pd.DataFrame:
    """One row: the frozen test set then and now; it may differ only under a new number (splits.json: test_set.version)."""
    digests = test_set_digest(then), test_set_digest(table)
    versions = [int(said.get("test_set", {}).get("version", 1)) for said in (then_info, info)]
    row = {
        "earlier_digest": digests[0],
        "digest": digests[1],
        "earlier_version": versions[0],
        "version": versions[1],
        "in_order": digests[0] == digests[1] or versions[1] > versions[0],
    }
    return pd.DataFrame([row])
