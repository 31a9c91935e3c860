"""Tables of the suites `splits` and `plan`: who is on which side, with whom, and what is drawn for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.validate.tables.manifest import Tables, distinct, rows_of
from dermaflow import contracts
from dermaflow.dataset import Dataset

_FACTS = ("image_id", "lesion_id", "label", "pixel_digest", "source_digest")  # columns of the manifest


def splits_tables(splits: Path, dataset: Dataset, reference: Path | None) -> Tables:
    """The tables of a Splits artifact.

    images: an image each that the splits or the dataset know: split, in_dataset, agrees (with the dataset on lesion and
        label), explained (excluded with a reason, or not excluded), numbered (in test and a member of a numbered test set,
        or neither), and on how many sides its lesion, group, pixels and bytes are: sides_of_lesion and so on. Excluded is
        no side.
    pairs: near duplicates, a pair each: side_matches.
    sides: a split each: images, share, asked_share, deviation.
    classes: a class and split each: images.
    earlier: only with a reference, earlier Splits: an image of the earlier test sets that is in the dataset each, with
        its split now.
    relatives: only with a reference: a train image each, with the image of the earlier test sets that it shares a lesion,
        bytes, pixels or a near duplicate with; none is in order.
    frozen: only with a reference: each earlier test set: version, its digest then and now; in_order.
    """
    table, info = contracts.read_splits(splits), contracts.read_info(splits, contracts.SPLITS)
    neighbours = pd.read_parquet(dataset.artifact.path / "neighbours.parquet")
    facts = dataset.columns(*_FACTS).drop_duplicates("image_id")
    images = _images(table, contracts.read_test_sets(splits), facts)
    tables = {
        "images": images,
        "pairs": _pairs(images, neighbours),
        "sides": _sides(table, info["shares"]),
        "classes": _classes(table),
    }
    if reference is None:
        return tables
    test = contracts.read_test_sets(reference)
    earlier = test[["image_id", "lesion_id"]].drop_duplicates("image_id")
    earlier = earlier.merge(images.loc[images["in_dataset"], ["image_id", "split"]], on="image_id")
    return {
        **tables,
        "earlier": earlier.assign(split=earlier["split"].fillna("none")),
        "relatives": _relatives(images, test, neighbours, facts),
        "frozen": _frozen(contracts.read_test_sets(splits), contracts.read_info(reference, contracts.SPLITS)),
    }


def plan_tables(plan: Path, splits: Path) -> Tables:
    """The tables of a Plan artifact.

    plan: a row of the plan each, with split_of_parent, and agrees (with the splits on lesion and label).
    images: a train image each, with planned.
    mixes: a fixed mix each: image_id (the first), other_image, and the splits of both.
    """
    rows, table = contracts.read_plan(plan), contracts.read_splits(splits)
    mixes = contracts.read_mixes(plan)
    parents = rows_of(rows["image_id"], table)
    agrees = rows["lesion_id"].to_numpy() == parents["lesion_id"].to_numpy()
    agrees &= rows["label"].to_numpy() == parents["label"].to_numpy()
    train = table[table["split"] == "train"]
    return {
        "plan": rows.assign(split_of_parent=parents["split"].fillna("none").to_numpy(), agrees=agrees),
        "images": train.assign(planned=train["image_id"].isin(rows["image_id"])),
        "mixes": pd.DataFrame(
            {
                "image_id": mixes["image_a"],
                "other_image": mixes["image_b"],
                "split_of_parent": rows_of(mixes["image_a"], table)["split"].fillna("none"),
                "split_of_other": rows_of(mixes["image_b"], table)["split"].fillna("none"),
            }
        ),
    }


def _images(table: pd.DataFrame, tests: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    members = tests.loc[tests["in_dataset"], ["image_id", "test_set"]].rename(columns={"test_set": "came"})
    table = table.merge(members.drop_duplicates("image_id"), on="image_id", how="left")
    is_test = table["split"].eq("test")
    as_member = table["test_set"].gt(0) & table["test_set"].eq(table["came"])
    table["numbered"] = as_member.where(is_test, table["came"].isna() & table["test_set"].eq(0))
    table["explained"] = table["reason"].ne("") | table["split"].ne(contracts.EXCLUDED)
    table = table.drop(columns=["source_digest", "pixel_digest", "came"])  # the dataset says what they are
    both = table.merge(facts, on="image_id", how="outer", suffixes=("", "_there"), indicator="known")
    in_dataset, in_splits = both["known"].ne("left_only"), both["known"].ne("right_only")
    agrees = both["lesion_id"].eq(both["lesion_id_there"]) & both["label"].eq(both["label_there"])
    both = both.assign(
        lesion_id=both["lesion_id"].fillna(both["lesion_id_there"]),
        label=both["label"].fillna(both["label_there"]),
        in_dataset=in_dataset,
        agrees=agrees | ~(in_dataset & in_splits),
        side=_side(both["split"]),
    )
    both["sides_of_lesion"], both["sides_of_group"] = (distinct(both, name, "side") for name in ("lesion_id", "group_id"))
    for name, sides in (("pixel_digest", "sides_of_pixels"), ("source_digest", "sides_of_bytes")):
        both[sides] = distinct(both, name, "side")
        both[name] = both[name].where(both[sides] > 1)  # what a failing row shows: all of them would take 14 MB at 100,000
    return both.drop(columns=["lesion_id_there", "label_there", "known", "side"])


def _side(split: pd.Series[str]) -> pd.Series[str]:
    """The splits, without a value where there is no side."""
    return split.where(split != contracts.EXCLUDED)


def _pairs(images: pd.DataFrame, neighbours: pd.DataFrame) -> pd.DataFrame:
    facts = images[["image_id", "lesion_id", "split"]]
    first, other = (rows_of(neighbours[name], facts) for name in ("image_a", "image_b"))
    sides = _side(first["split"]), _side(other["split"])
    return pd.DataFrame(
        {
            "image_id": neighbours["image_a"].to_numpy(),
            "lesion_id": first["lesion_id"],
            "split": first["split"],
            "other_image": neighbours["image_b"].to_numpy(),
            "other_lesion": other["lesion_id"],
            "other_split": other["split"],
            "score": neighbours["score"].to_numpy(),
            "side_matches": sides[0].eq(sides[1]) | sides[0].isna() | sides[1].isna(),
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
    by = {name: dict(zip(test[name], test["image_id"], strict=True)) for name in ("lesion_id", "source_digest", "pixel_digest")}
    ends = neighbours[["image_a", "image_b"]]
    pairs = pd.DataFrame(np.concatenate([ends.to_numpy(), ends.to_numpy()[:, ::-1]]), columns=["image_id", "other"])
    near = pairs[pairs["other"].isin(test["image_id"])].drop_duplicates("image_id").set_index("image_id")["other"]
    train = images[images["split"] == "train"]
    now = rows_of(train["image_id"], facts).set_axis(train.index)
    found = {
        "lesion": train["lesion_id"].map(by["lesion_id"]),
        "identical bytes": now["source_digest"].map(by["source_digest"]),
        "identical pixels": now["pixel_digest"].map(by["pixel_digest"]),
        "near duplicate": train["image_id"].map(near),
    }
    ways = pd.DataFrame(found)
    related = ways.notna().any(axis=1)
    return train.loc[related, ["image_id", "lesion_id", "split"]].assign(
        test_image=ways[related].bfill(axis=1).iloc[:, 0], related_by=ways[related].notna().idxmax(axis=1)
    )


def _frozen(tests: pd.DataFrame, earlier: dict[str, Any]) -> pd.DataFrame:
    """One row for each earlier test set: what was said to be in it, and what is in it now."""
    rows = pd.DataFrame([{"version": said["version"], "earlier_digest": said["digest"]} for said in earlier["test_sets"]])
    rows["digest"] = [contracts.test_set_digest(tests, version) for version in rows["version"]]
    return rows.assign(in_order=rows["digest"] == rows["earlier_digest"])
