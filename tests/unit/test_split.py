"""The split: lesions stay together, classes are spread alike, the same input gives the same bytes, leakage is measured."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.split.core import assign, leakage, split
from dermaflow.artifacts import changed_files, open_artifact
from dermaflow.contracts import SPLIT_COLUMNS, SPLIT_NAMES, SPLITS, read_info, read_splits
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from tests.sources import HAM10000_LEAKAGE, neighbours, real_metadata, split_params, with_digests, with_manifest


@pytest.fixture(scope="module")
def ham10000():
    return real_metadata()


@pytest.fixture(scope="module")
def by_lesion(ham10000):
    return assign(ham10000, neighbours(), split_params())


@pytest.fixture(scope="module")
def at_random(ham10000):
    return assign(ham10000, neighbours(), split_params(strategy="random"))


def sides_of(table, column):
    """In how many splits each lesion or group is."""
    return table.groupby(column)["split"].nunique()


def shares_per_class(table):
    counts = table.groupby(["label", "split"]).size().unstack(fill_value=0)
    return counts.div(counts.sum(axis=1), axis=0)


def manifest_of(lesions):
    """A manifest of (label, number of images) for each lesion."""
    rows = [(f"I{n:03d}_{k}", f"L{n:03d}", label) for n, (label, images) in enumerate(lesions) for k in range(images)]
    return with_digests(pd.DataFrame(rows, columns=["image_id", "lesion_id", "label"]))


# --- HAM10000's own lesions ---


def test_no_lesion_of_ham10000_is_in_two_splits(ham10000, by_lesion):
    assert (len(by_lesion), by_lesion["lesion_id"].nunique()) == (10_015, 7_470)
    assert sides_of(by_lesion, "lesion_id").max() == 1
    assert sorted(by_lesion["image_id"]) == sorted(ham10000["image_id"])


@pytest.mark.parametrize("strategy", ["by_lesion", "at_random"])
def test_each_class_has_its_share_within_a_percentage_point(request, strategy):
    wanted = pd.Series({"train": 0.8, "validation": 0.1, "test": 0.1})
    assert (shares_per_class(request.getfixturevalue(strategy)) - wanted).abs().max().max() < 0.01


def test_lesions_of_many_images_are_spread_as_single_ones_are(by_lesion):
    """Otherwise test would hold only lesions photographed once, which are the easier ones to call."""
    sizes = by_lesion.groupby("lesion_id").agg(images=("image_id", "size"), split=("split", "first"))
    several = sizes.groupby("split")["images"].apply(lambda images: (images > 1).mean())
    assert several.max() - several.min() < 0.01


def test_a_random_split_of_ham10000_leaks_and_one_by_lesion_does_not(by_lesion, at_random):
    """Expected by calculation from the metadata: 38.5 % of test images, 67.9 % of melanomas (one draw scatters)."""
    leaked = leakage(at_random, neighbours())
    for name, share in HAM10000_LEAKAGE.items():
        assert leaked[name]["random_share"] == pytest.approx(share, abs=0.005)
    assert leaked["all"]["share"] == pytest.approx(HAM10000_LEAKAGE["all"], abs=0.03)
    assert leaked["mel"]["share"] == pytest.approx(HAM10000_LEAKAGE["mel"], abs=0.08)
    assert leaked["all"]["test_images"] == (at_random["split"] == "test").sum()
    kept = leakage(by_lesion, neighbours())
    assert set(kept) == {"all", *by_lesion["label"].unique()}
    assert all(entry["with_relative_in_train"] == 0 for entry in kept.values())


def test_on_average_a_random_split_leaks_as_calculated(ham10000):
    """One draw scatters by 0.015 over all classes and 0.04 for melanoma; the mean of five by less than half of that."""
    drawn = [leakage(assign(ham10000, neighbours(), split_params(strategy="random", seed=k)), neighbours()) for k in range(5)]
    for name, tolerance in (("all", 0.02), ("mel", 0.05)):
        mean = np.mean([leaked[name]["share"] for leaked in drawn])
        assert mean == pytest.approx(HAM10000_LEAKAGE[name], abs=tolerance)


def test_another_seed_gives_another_split(ham10000, by_lesion):
    other = assign(ham10000, neighbours(), split_params(seed=1))
    assert 0.1 < (other["split"] != by_lesion["split"]).mean() < 0.5


# --- any manifest ---


lesions = st.lists(st.tuples(st.sampled_from(["mel", "nv", "df"]), st.integers(1, 6)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    lesions=lesions,
    seed=st.integers(0, 2**32),
    strategy=st.sampled_from(["lesion", "random"]),
    order=st.randoms(use_true_random=False),
    data=st.data(),
)
def test_every_manifest_is_parted_without_tearing_a_group(lesions, seed, strategy, order, data):
    manifest = manifest_of(lesions)
    ids = st.sampled_from(list(manifest["image_id"]))
    pairs = neighbours(*data.draw(st.lists(st.tuples(ids, ids), max_size=4)))
    params = split_params(seed=seed, strategy=strategy)
    table = assign(manifest, pairs, params)

    assert list(table["image_id"]) == sorted(manifest["image_id"])
    assert set(table["split"]) <= set(SPLIT_NAMES)
    assert sides_of(table, "group_id").max() == 1
    if strategy == "lesion":
        side = table.set_index("image_id")["split"]
        assert sides_of(table, "lesion_id").max() == 1
        assert all(side[a] == side[b] for a, b in zip(pairs["image_a"], pairs["image_b"], strict=True))
        assert leakage(table, pairs)["all"]["with_relative_in_train"] == 0
    groups = table.groupby("group_id")["label"].nunique()
    if (groups == 1).all():
        for _, members in table.groupby("label"):
            assert members["split"].nunique() == min(3, members["group_id"].nunique()), "a class misses a split"

    shuffled = list(range(len(manifest)))
    order.shuffle(shuffled)
    again = assign(manifest.iloc[shuffled], pairs.iloc[::-1], params)
    pd.testing.assert_frame_equal(again, table)


def test_a_class_of_three_lesions_is_in_every_split():
    table = assign(manifest_of([("df", 1), ("df", 5), ("df", 2), *[("nv", 1)] * 30]), neighbours(), split_params())
    assert set(table.loc[table["label"] == "df", "split"]) == set(SPLIT_NAMES)


@pytest.mark.parametrize("seed", range(5))
def test_lesions_of_each_size_are_parted_in_the_same_shares(seed):
    table = assign(manifest_of([*[("nv", 1)] * 90, *[("nv", 5)] * 10]), neighbours(), split_params(seed=seed))
    large = table[table["image_id"].str.endswith("_4")]
    assert large["split"].value_counts().to_dict() == {"train": 8, "validation": 1, "test": 1}


def test_near_duplicates_join_their_lesions():
    """A - B and B - C are pairs, so that A, B and C are one group, named by its first lesion."""
    manifest = manifest_of([("nv", 2)] * 40)
    pairs = neighbours(("I030_1", "I005_0"), ("I005_1", "I017_0"))
    table = assign(manifest, pairs, split_params()).set_index("image_id")
    for image_id in ("I005_0", "I005_1", "I017_0", "I017_1", "I030_0", "I030_1"):
        assert table["group_id"][image_id] == "L005"
        assert table["split"][image_id] == table["split"]["I005_0"]
    assert table["group_id"]["I006_0"] == "L006"
    assert table["lesion_id"]["I017_0"] == "L017", "the lesion keeps its own name"


def test_near_duplicates_on_both_sides_of_a_random_split_count_as_leakage():
    manifest = manifest_of([("nv", 1)] * 60)
    params = split_params(strategy="random")
    table = assign(manifest, neighbours(), params)
    test, train = (table.loc[table["split"] == side, "image_id"].iloc[0] for side in ("test", "train"))
    assert leakage(table, neighbours())["all"]["with_relative_in_train"] == 0
    leaked = leakage(table, neighbours((train, test)))["nv"]
    assert (leaked["near_duplicate"], leaked["same_lesion"], leaked["with_relative_in_train"]) == (1, 0, 1)


def test_augmented_children_on_both_sides_count_as_leakage():
    table = manifest_of([("nv", 1)] * 4).assign(split=["train", "train", "test", "test"])
    parents = pd.Series(["I000_0", "I001_0", "I001_0", "I003_0"])
    leaked = leakage(table, neighbours(), parents)["all"]
    assert (leaked["augmented"], leaked["with_relative_in_train"], leaked["share"]) == (1, 1, 0.5)


def test_a_random_split_gets_exactly_the_rounded_shares_of_each_class(ham10000, at_random):
    counts = at_random.groupby(["label", "split"]).size().unstack()
    for label, images in ham10000["label"].value_counts().items():
        tenth = round(images / 10)
        assert counts.loc[label].to_dict() == {"train": images - 2 * tenth, "validation": tenth, "test": tenth}


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_part_train_and_validation_by_lesion_and_alike(ham10000, by_lesion, folds):
    table = assign(ham10000, neighbours(), split_params(folds=folds))
    pd.testing.assert_series_equal(table["split"], by_lesion["split"])
    parted = table[table["split"] != "test"]
    assert (table.loc[table["split"] == "test", "fold"] == -1).all()
    assert set(parted["fold"]) == set(range(folds))
    assert parted.groupby("lesion_id")["fold"].nunique().max() == 1
    counts = parted.groupby(["label", "fold"]).size().unstack()
    assert (counts.div(counts.sum(axis=1), axis=0) - 1 / folds).abs().max().max() < 0.01


def test_a_large_test_part_leaves_train_its_lesion():
    table = assign(manifest_of([("df", 1)] * 3), neighbours(), split_params(train=0.1, validation=0.1, test=0.8))
    assert set(table["split"]) == set(SPLIT_NAMES)


# --- the artifact ---


def test_the_artifact_says_what_was_done(splits, dataset):
    table, info = read_splits(splits), read_info(splits, SPLITS)
    assert tuple(table.columns) == SPLIT_COLUMNS
    assert len(table) == 42
    assert info["strategy"] == "lesion"
    assert info["seed"] == 20240101
    assert info["promotable"] is True
    assert info["mark"] is None
    assert info["dataset"] == Dataset.open(dataset).version
    assert info["leakage"]["all"]["share"] == 0
    assert info["test_set"]["version"] == 1
    assert info["test_set"]["images"] == info["counts"]["test"]["images"]
    assert info["counts"]["excluded"]["images"] == 0
    for name in SPLIT_NAMES:
        part = table[table["split"] == name]
        assert info["counts"][name]["images"] == len(part)
        assert info["counts"][name]["lesions"] == part["lesion_id"].nunique()
        assert sum(info["counts"][name]["images_per_class"].values()) == len(part)
        assert min(info["counts"][name]["lesions_per_class"].values()) >= 1
    assert changed_files(open_artifact(splits, SPLITS)) == []


def test_a_random_split_is_marked_as_not_promotable(dataset, tmp_path):
    info = split(dataset, split_params(strategy="random"), tmp_path / "s")
    assert info["promotable"] is False
    assert "not promotable" in info["mark"]
    assert (read_splits(tmp_path / "s")["group_id"] == read_splits(tmp_path / "s")["image_id"]).all()


def test_the_same_dataset_gives_the_same_bytes_in_whatever_order(splits, dataset, tmp_path):
    split(dataset, split_params(), tmp_path / "again")
    assert open_artifact(tmp_path / "again", SPLITS).digest == open_artifact(splits, SPLITS).digest
    backwards = with_manifest(dataset, tmp_path / "d", lambda table: table.iloc[::-1])
    split(backwards, split_params(), tmp_path / "backwards")
    assert open_artifact(tmp_path / "backwards", SPLITS).digest == open_artifact(splits, SPLITS).digest


def test_the_digest_follows_the_assignment(splits, dataset, tmp_path):
    info = read_info(splits, SPLITS)
    other = split(dataset, split_params(seed=3), tmp_path / "s")
    assert other["digest"] != info["digest"]
    assert json.dumps(other)


def test_too_few_lesions_of_a_class_are_refused_and_nothing_is_written(dataset, tmp_path):
    manifest = Dataset.open(dataset).manifest
    two = sorted(manifest.loc[manifest["label"] == "vasc", "lesion_id"].unique())[:2]
    fewer = with_manifest(
        dataset, tmp_path / "d", lambda table: table[(table["label"] != "vasc") | table["lesion_id"].isin(two)]
    )
    with pytest.raises(InputError, match=r"class vasc has too few lesions .*\(none in (validation|test)\); add images"):
        split(fewer, split_params(), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_class_that_is_not_in_the_source_is_no_fault(dataset, tmp_path):
    without = with_manifest(dataset, tmp_path / "d", lambda table: table[table["label"] != "vasc"])
    info = split(without, split_params(), tmp_path / "s")
    assert info["counts"]["train"]["images_per_class"]["vasc"] == 0


def test_what_is_no_dataset_is_refused(splits, tmp_path):
    with pytest.raises(InputError, match="kind 'splits'; expected 'dataset'"):
        split(splits, split_params(), tmp_path / "s")
