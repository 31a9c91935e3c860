"""Growing data: who was in test stays in test and is never trained on, sides are kept, test sets are numbered."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.split.assignment import assign
from components.split.core import split
from components.split.memory import Memory, all_tests
from dermaflow.artifacts import ARTIFACT_FILE, json_digest, new_artifact, open_artifact, write_json
from dermaflow.contracts import EXCLUDED, SPLITS, read_info, read_splits, read_test_sets
from dermaflow.contracts import test_set_digest as digest_of
from dermaflow.errors import InputError
from tests.sources import neighbours, real_metadata, split_params, with_digests, with_manifest


def remembered(table, earlier=None, folds=0):
    """The memory that the Splits of a table give."""
    tests = all_tests(table, earlier)
    numbers = range(1, tests["test_set"].max() + 1)
    sets = [{"version": number, "digest": digest_of(tests, number)} for number in numbers]
    info = {"strategy": "lesion", "folds": folds, "test_set": sets[-1], "test_sets": sets}
    return Memory(path=None, digest="sha256:0", info=info, sides=table, tests=tests)


def images(*rows):
    """A manifest of (image, lesion) pairs, all nevi."""
    return with_digests(pd.DataFrame([(*row, "nv") for row in rows], columns=["image_id", "lesion_id", "label"]))


def singles(count, first=0):
    return images(*((f"I{n:03d}", f"L{n:03d}") for n in range(first, first + count)))


@pytest.fixture(scope="module")
def thirty():
    """Thirty single lesions, their assignment, and an image of each side."""
    manifest = singles(30)
    table = assign(manifest, neighbours(), split_params())
    one = {side: table.loc[table["split"] == side, "image_id"].iloc[0] for side in ("train", "validation", "test")}
    return manifest, table, one


def grown(thirty, *rows, pairs=(), changes=None):
    """The thirty and some more (image, lesion) rows, assigned with the memory of the thirty; indexed by image."""
    manifest, table, _ = thirty
    both = pd.concat([manifest, images(*rows)] if rows else [manifest], ignore_index=True)
    both = both if changes is None else changes(both)
    return assign(both, neighbours(*pairs), split_params(), remembered(table)).set_index("image_id")


def test_ham10000_grown_by_a_tenth_keeps_every_side_and_shares_stay_within_a_percentage_point():
    everything = real_metadata()
    lesions = everything["lesion_id"].drop_duplicates().sample(frac=0.9, random_state=1)
    few = everything[everything["lesion_id"].isin(lesions)].sample(frac=0.95, random_state=2)  # also lesions in part
    before = assign(few, neighbours(), split_params())
    after = assign(everything, neighbours(), split_params(), remembered(before))

    both = before.merge(after, on="image_id", suffixes=("", "_now"))
    assert len(both) == len(few)
    assert (both["split"] == both["split_now"]).all()
    test = after[after["split"] == "test"]
    assert set(test["test_set"]) == {1, 2}
    assert set(test.loc[test["test_set"] == 1, "image_id"]) == set(before.loc[before["split"] == "test", "image_id"])
    assert not set(test.loc[test["test_set"] == 2, "group_id"]) & set(before["group_id"])
    was_test = set(before.loc[before["split"] == "test", "lesion_id"])
    assert not was_test & set(after.loc[after["split"].isin(("train", "validation")), "lesion_id"])
    counts = after[after["split"] != EXCLUDED].groupby(["label", "split"]).size().unstack()
    shares = counts.div(counts.sum(axis=1), axis=0)
    assert (shares - pd.Series({"train": 0.8, "validation": 0.1, "test": 0.1})).abs().max().max() < 0.01


def test_a_new_image_joins_the_side_of_its_lesion(thirty):
    for side in ("train", "validation"):
        lesion = thirty[2][side].replace("I", "L")
        assert grown(thirty, ("X1", lesion)).loc["X1", "split"] == side


def test_a_new_image_of_a_lesion_in_test_is_not_in_the_test_set_nor_trained_on(thirty):
    _, before, one = thirty
    after = grown(thirty, ("X1", one["test"].replace("I", "L")))
    assert after.loc["X1", "split"] == EXCLUDED
    assert after.loc["X1", "reason"] == "new image of a group in test, whose images are fixed"
    assert set(after.index[after["split"] == "test"]) == set(before.loc[before["split"] == "test", "image_id"])
    assert after["test_set"].max() == 1, "nothing new in test: the number stays"


@pytest.mark.parametrize(("lower", "higher"), [("train", "test"), ("validation", "test"), ("train", "validation")])
def test_a_new_image_that_bridges_two_sides_excludes_the_one_less_protected(thirty, lower, higher):
    one = thirty[2]
    after = grown(thirty, ("X1", "X1"), pairs=[("X1", one[lower]), ("X1", one[higher])])
    assert after.loc[one[higher], "split"] == higher
    assert after.loc[one[lower], "split"] == EXCLUDED
    told = f"was in {lower}, and its group was joined to one in {higher} by new image X1"
    assert after.loc[one[lower], "reason"] == told
    assert after.loc["X1", "split"] == (EXCLUDED if higher == "test" else higher)


def test_what_was_excluded_stays_excluded_with_its_reason_even_when_the_bridge_is_gone(thirty):
    manifest, table, one = thirty
    both = pd.concat([manifest, images(("X1", "X1"))])
    joined = assign(both, neighbours(("X1", one["train"]), ("X1", one["test"])), split_params(), remembered(table))
    memory = remembered(joined, remembered(table))
    lesion = one["train"].replace("I", "L")
    later = assign(pd.concat([manifest, images(("X2", lesion))]), neighbours(), split_params(), memory).set_index("image_id")
    assert later.loc[one["train"], "split"] == EXCLUDED
    assert "by new image X1" in later.loc[one["train"], "reason"]
    assert later.loc["X2", "split"] == EXCLUDED
    assert later.loc[one["test"], "split"] == "test"


def test_a_label_or_lesion_that_is_corrected_moves_no_test_image(thirty):
    one = thirty[2]

    def correct(manifest):
        manifest.loc[manifest["image_id"] == one["train"], "lesion_id"] = one["test"].replace("I", "L")
        manifest.loc[manifest["image_id"] == one["test"], "label"] = "mel"
        return manifest

    after = grown(thirty, changes=correct)
    assert after.loc[one["test"], "split"] == "test"
    assert after.loc[one["train"], "split"] == EXCLUDED
    assert after.loc[one["train"], "reason"].endswith("by corrected metadata")


@pytest.mark.parametrize("digest", ["source_digest", "pixel_digest"])
def test_a_test_image_under_another_name_is_known_by_its_bytes_or_pixels(thirty, digest):
    one = thirty[2]

    def rename(manifest):
        row = manifest["image_id"] == one["test"]
        manifest.loc[row, ["image_id", "lesion_id"]] = ["renamed", "renamed"]
        other = {"source_digest": "pixel_digest", "pixel_digest": "source_digest"}[digest]
        manifest.loc[row, other] = "something else"
        return manifest

    assert grown(thirty, changes=rename).loc["renamed", "split"] == "test"


def test_a_withdrawn_test_image_stays_a_member_and_is_in_test_when_it_comes_back(thirty):
    manifest, table, one = thirty
    first = remembered(table)
    without = manifest[manifest["image_id"] != one["test"]]
    later = assign(without, neighbours(), split_params(), first)
    second = remembered(later, first)
    gone = second.tests.set_index("image_id").loc[one["test"]]
    assert (gone["test_set"], gone["in_dataset"]) == (1, False)
    assert digest_of(second.tests, 1) == digest_of(first.tests, 1)
    back = assign(manifest, neighbours(), split_params(), second).set_index("image_id")
    assert (back.loc[one["test"], "split"], back.loc[one["test"], "test_set"]) == ("test", 1)


def test_a_test_image_with_new_bytes_gives_a_new_number_and_leaves_the_old_one_as_it_was(thirty):
    _, table, one = thirty

    def rescan(manifest):
        manifest.loc[manifest["image_id"] == one["test"], ["source_digest", "pixel_digest"]] = "scanned again"
        return manifest

    after = grown(thirty, changes=rescan).reset_index()
    assert after.set_index("image_id").loc[one["test"], "test_set"] == 2
    tests = all_tests(after, remembered(table))
    assert digest_of(tests, 1) == digest_of(remembered(table).tests, 1)
    assert digest_of(tests, 2) != digest_of(tests, 1)


def test_folds_stay_as_they_were_when_data_grow():
    params = split_params(folds=4)
    before = assign(singles(60), neighbours(), params)
    after = assign(singles(80), neighbours(), params, remembered(before, folds=4))
    both = before.merge(after, on="image_id", suffixes=("", "_now"))
    assert (both["fold"] == both["fold_now"]).all()
    counts = after.loc[after["fold"] >= 0, "fold"].value_counts()
    assert counts.max() - counts.min() <= 1


lesion_names = st.sampled_from([f"L{n}" for n in range(12)])


@settings(max_examples=60, deadline=None)
@given(
    states=st.lists(
        st.lists(st.tuples(st.integers(0, 40), lesion_names), min_size=6, max_size=30, unique_by=lambda row: row[0]),
        min_size=2,
        max_size=4,
    ),
    pairs=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5),
)
def test_whatever_comes_goes_and_is_renamed_nothing_ever_in_test_is_trained_on(states, pairs):
    """Each state is a delivery: images (their number stands for their bytes) of lesions that may change between them."""
    memory, ever = None, set()
    for rows in states:
        manifest = images(*((f"I{n:03d}", lesion) for n, lesion in rows))
        there = set(manifest["image_id"])
        near = [(f"I{a:03d}", f"I{b:03d}") for a, b in pairs if a != b]
        near = neighbours(*[pair for pair in near if set(pair) <= there])
        table = assign(manifest, near, split_params(), memory)
        side = table.set_index("image_id")["split"]
        assert not (ever & there) - set(side.index[side == "test"]), "an image left the test set"
        ever |= set(side.index[side == "test"])
        assert not ever & set(side.index[side.isin(("train", "validation"))])
        on_a_side = table[table["split"] != EXCLUDED]
        assert on_a_side.groupby("group_id")["split"].nunique().max() == 1
        assert (table.loc[table["split"] == EXCLUDED, "reason"] != "").all()
        assert (table.loc[table["split"] != EXCLUDED, "reason"] == "").all()
        earlier, memory = memory, remembered(table, memory) if "test" in set(table["split"]) or memory else None
        if earlier and memory:
            assert digest_of(memory.tests, earlier.number) == earlier.info["test_set"]["digest"]
            new = table[table["test_set"] > earlier.number]
            assert memory.number - earlier.number == bool(len(new))


# --- the artifact ---


@pytest.fixture(scope="module")
def first(dataset, tmp_path_factory):
    """Splits of the small dataset without two of its lesions."""
    folder = tmp_path_factory.mktemp("first")
    smaller = with_manifest(dataset, folder / "d", lambda table: table[~table["lesion_id"].isin(few(table))])
    split(smaller, split_params(seed=1), folder / "s")
    return folder / "s"


def few(table):
    return sorted(table.loc[table["label"] == "nv", "lesion_id"].unique())[:2]


def test_the_artifact_numbers_its_test_sets_and_says_what_it_went_on_from(first, dataset, tmp_path):
    info = split(dataset, split_params(), tmp_path / "s", first)
    before = read_info(first, SPLITS)
    assert info["previous"] == {"digest": open_artifact(first, SPLITS).digest, "test_set": 1}
    assert info["test_sets"][0]["digest"] == before["test_set"]["digest"]
    assert info["test_set"] == info["test_sets"][-1]
    old, new = read_splits(first), read_splits(tmp_path / "s")
    both = old.merge(new, on="image_id", suffixes=("", "_now"))
    assert (both["split"] == both["split_now"]).all()
    assert len(both) == len(old)
    assert set(read_test_sets(tmp_path / "s")["image_id"]) == set(new.loc[new["split"] == "test", "image_id"])


def test_where_nothing_changed_the_same_bytes_are_written_again(splits, dataset, tmp_path):
    assert split(dataset, split_params(), tmp_path / "s", splits) == read_info(splits, SPLITS)
    assert open_artifact(tmp_path / "s", SPLITS).digest == open_artifact(splits, SPLITS).digest


def test_a_step_may_go_on_from_its_own_place(splits, dataset, tmp_path):
    split(dataset, split_params(), tmp_path / "s")
    split(dataset, split_params(), tmp_path / "s", tmp_path / "s")
    assert open_artifact(tmp_path / "s", SPLITS).digest == open_artifact(splits, SPLITS).digest
    info = split(dataset, split_params(seed=5), tmp_path / "s", tmp_path / "s")
    assert info["previous"]["test_set"] == 1
    assert read_splits(tmp_path / "s")["split"].tolist() == read_splits(splits)["split"].tolist(), "another seed moves none"


def test_a_test_set_that_was_changed_by_hand_is_refused(splits, dataset, tmp_path):
    table, tests, info = read_splits(splits), read_test_sets(splits), read_info(splits, SPLITS)
    with new_artifact(tmp_path / "changed", SPLITS) as folder:
        table.to_parquet(folder / "splits.parquet")
        tests.iloc[1:].to_parquet(folder / "test_sets.parquet")
        write_json(folder / "splits.json", info)
    with pytest.raises(InputError, match=r"changed: test set 1 has digest .* was changed after it was made; restore it"):
        split(dataset, split_params(), tmp_path / "s", tmp_path / "changed")
    assert not (tmp_path / "s").exists()


def test_random_splits_keep_no_sides_and_give_none(splits, dataset, tmp_path):
    with pytest.raises(InputError, match=r"split.previous: a random split keeps no sides; use split.previous=none"):
        split(dataset, split_params(strategy="random"), tmp_path / "s", splits)
    split(dataset, split_params(strategy="random"), tmp_path / "r")
    with pytest.raises(InputError, match="tears lesions apart"):
        split(dataset, split_params(), tmp_path / "s", tmp_path / "r")


def test_the_picture_of_the_audit_is_drawn(splits):
    import cv2

    assert np.ptp(cv2.imread(str(splits / "leakage.png"))) > 100
    assert json.loads((splits / ARTIFACT_FILE).read_text())["files"]["leakage.png"]
    assert json_digest(read_info(splits, SPLITS)["leakage"])
