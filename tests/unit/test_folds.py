"""Folds: each is held out once, lesions stay together, the test set stays out, and a fold's splits are splits."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from components.fold.core import hold_out
from components.split.core import assign, split
from components.split.memory import Memory
from dermaflow import contracts
from dermaflow.artifacts import new_artifact, open_artifact, write_json
from dermaflow.contracts import DEVELOPED_ON, SPLIT_COLUMNS, SPLIT_NAMES
from dermaflow.errors import InputError
from dermaflow.folds import NOBODY, held_out, validated_in
from tests.sources import neighbours, real_metadata, split_params, with_digests


def manifest_of(lesions: list[tuple[str, int]]) -> pd.DataFrame:
    """A manifest of (label, number of images) for each lesion."""
    rows = [(f"I{n:03d}_{k}", f"L{n:03d}", label) for n, (label, images) in enumerate(lesions) for k in range(images)]
    return with_digests(pd.DataFrame(rows, columns=["image_id", "lesion_id", "label"]))


def info_of(params) -> dict:
    shares = {name: getattr(params, name) for name in SPLIT_NAMES}
    return {"folds": params.folds, "shares": shares, "seed": params.seed, "strategy": "lesion"}


def require_whole(table: pd.DataFrame, info: dict) -> list[pd.DataFrame]:
    """What must hold of all folds of a split, whatever the data; gives the splits of each."""
    developed = table[table["split"].isin(DEVELOPED_ON)]
    parted = [held_out(table, info, fold) for fold in range(info["folds"])]
    for fold, one in enumerate(parted):
        assert tuple(one.columns) == SPLIT_COLUMNS
        assert sorted(one["image_id"]) == sorted(developed["image_id"])
        assert set(one["split"]) == set(SPLIT_NAMES)
        assert one.groupby("group_id")["split"].nunique().max() == one.groupby("lesion_id")["split"].nunique().max() == 1
        assert set(one.loc[one["split"] == "test", "fold"]) == {fold}
        assert one.groupby("label")["split"].nunique().min() == 3
        assert (one["test_set"] == 0).all()
    every = pd.concat(parted)
    assert sorted(every.loc[every["split"] == "test", "image_id"]) == sorted(developed["image_id"])
    assert every.loc[every["split"] == "validation", "image_id"].is_unique
    return parted


@pytest.fixture(scope="module")
def ham10000():
    return real_metadata()


@pytest.mark.parametrize("folds", [2, 5, 20])
def test_every_fold_of_ham10000_is_like_every_other(ham10000, folds):
    params = split_params(folds=folds)
    table = assign(ham10000, neighbours(), params)
    for one in require_whole(table, info_of(params)):
        counts = pd.crosstab(one["label"], one["split"], normalize="index")
        assert (counts["test"] - 1 / folds).abs().max() < 0.01
        assert (counts["validation"] - min(1 / 9, 1 / folds)).abs().max() < 0.01


@settings(max_examples=40, deadline=None)
@given(
    lesions=st.lists(st.tuples(st.sampled_from(["df", "mel"]), st.integers(1, 4)), min_size=30, max_size=60),
    joined=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=4),
    folds=st.integers(2, 5),
    seed=st.integers(0, 3),
)
def test_whatever_the_lesions_folds_are_whole_and_apart(lesions, joined, folds, seed):
    params = split_params(folds=folds, seed=seed)
    pairs = [(f"I{a:03d}_0", f"I{b:03d}_0") for a, b in joined if a != b]
    table = assign(manifest_of(lesions), neighbours(*pairs), params)
    developed = table[table["split"].isin(DEVELOPED_ON)]
    pure = developed[developed.groupby("group_id")["label"].transform("nunique") == 1]
    groups = pure.groupby(["label", "fold"])["group_id"].nunique().unstack(fill_value=0)
    assume(groups.reindex(developed["label"].unique(), fill_value=0).min(axis=None) >= 2)
    require_whole(table, info_of(params))


def test_the_order_of_rows_changes_nothing_and_the_seed_does():
    params = split_params(folds=3)
    lesions = [("mel", 2), ("nv", 1), ("df", 3)] * 20
    table, info = assign(manifest_of(lesions), neighbours(), params), info_of(params)
    shuffled = table.sample(frac=1, random_state=1)
    sides = held_out(table, info, 1).set_index("image_id")["split"]
    assert held_out(shuffled, info, 1).set_index("image_id")["split"].sort_index().equals(sides.sort_index())
    other = validated_in(table, {**info, "seed": 7})
    assert (other.sort_index() != validated_in(table, info).sort_index()).any()


def test_an_excluded_image_is_in_no_fold():
    params = split_params(folds=2)
    table, info = assign(manifest_of([("mel", 2), ("nv", 1)] * 20), neighbours(), params), info_of(params)
    first = table.index[table["split"] == "train"][0]
    table.loc[first, ["split", "reason", "fold"]] = ["excluded", "for the test", NOBODY]
    assert table.loc[first, "image_id"] not in set(held_out(table, info, 0)["image_id"])


def test_a_class_with_too_few_lesions_for_so_many_folds_is_refused_when_data_are_split(dataset: Path, tmp_path: Path):
    """The 42 phantoms have four lesions or so of each class."""
    with pytest.raises(InputError, match=r"split\.folds is 4, but class \w+ has too few lesions .* none in .*split\.folds=0"):
        split(dataset, split_params(folds=4), tmp_path / "splits")
    assert not (tmp_path / "splits").exists()


# --- the artifact ---


@pytest.fixture(scope="module")
def folded(tmp_path_factory) -> Path:
    """A Splits artifact with three folds."""
    params = split_params(folds=3)
    table = assign(manifest_of([("mel", 2), ("nv", 1), ("df", 1)] * 15), neighbours(), params)
    info = {
        **info_of(params),
        "algorithm": "a",
        "dataset": {"content_digest": "sha256:0", "dvc_revision": None},
        "digest": contracts.splits_digest(table),
        "counts": contracts.side_counts(table, ("df", "mel", "nv")),
    }
    target = tmp_path_factory.mktemp("folded") / "splits"
    with new_artifact(target, contracts.SPLITS) as folder:
        table.to_parquet(folder / "splits.parquet", index=False)
        table[table["split"] == "test"].assign(in_dataset=True)[list(contracts.TEST_SET_COLUMNS)].to_parquet(
            folder / "test_sets.parquet", index=False
        )
        write_json(folder / "splits.json", info)
    return target


def test_the_splits_of_a_fold_say_whose_they_are_and_can_never_be_promoted(folded: Path, tmp_path: Path):
    told = hold_out(folded, 1, tmp_path / "fold")
    whole, fold = contracts.read_splits(folded), contracts.read_splits(tmp_path / "fold")
    assert told == contracts.read_info(tmp_path / "fold", contracts.SPLITS)
    assert told["held_out"]["fold"] == 1
    assert told["held_out"]["splits"] == contracts.read_info(folded, contracts.SPLITS)["digest"]
    assert (told["promotable"], told["mark"]) == (False, "fold 1 of 3 held out: for out-of-fold figures alone, not promotable")
    assert told["counts"]["test"]["images"] == (whole["fold"] == 1).sum() == (fold["split"] == "test").sum()
    assert set(fold["image_id"]).isdisjoint(whole.loc[whole["split"] == "test", "image_id"])
    assert contracts.read_test_sets(tmp_path / "fold").empty
    assert told["digest"] != hold_out(folded, 2, tmp_path / "other")["digest"]


def test_the_same_fold_is_the_same_bytes(folded: Path, tmp_path: Path):
    for name in ("once", "again"):
        hold_out(folded, 0, tmp_path / name)
    once, again = (open_artifact(tmp_path / name, contracts.SPLITS) for name in ("once", "again"))
    assert once.files == again.files


def test_a_fold_that_there_is_not_is_refused(folded: Path, tmp_path: Path, splits: Path):
    with pytest.raises(InputError, match="there is no fold 3: the splits have folds 0 to 2"):
        hold_out(folded, 3, tmp_path / "fold")
    with pytest.raises(InputError, match=r"the splits have no folds; split with split\.folds"):
        hold_out(splits, 0, tmp_path / "fold")
    assert list(tmp_path.iterdir()) == []


def test_data_do_not_go_on_from_the_splits_of_a_fold(folded: Path, tmp_path: Path):
    hold_out(folded, 1, tmp_path / "fold")
    with pytest.raises(InputError, match=r"split\.previous: .* are the splits of one fold, whose test images are no test set"):
        Memory.open(tmp_path / "fold")
