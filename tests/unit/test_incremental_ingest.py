"""A dataset grows, shrinks and is mended in place: what did not change keeps its bytes, and nothing withdrawn comes back."""

import shutil
import threading
import time

import cv2
import numpy as np
import pandas as pd
import pytest

from components.ingest import shards
from components.ingest.core import ingest, input_digest
from components.ingest.decode import resize
from components.ingest.fingerprints import RACY_SECONDS
from dermaflow.artifacts import changed_files, file_digest
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from tests.sources import SIZE, SourceFolder, data_params, draw_source

IN_A_SHARD = 10
SMALL_SHARDS = (IN_A_SHARD + 0.5) * SIZE * SIZE * 3 / 1e6  # megabytes


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DERMAFLOW_HOME", str(tmp_path / "home"))


def picture(seed):
    return cv2.resize(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8), (48, 40))


def stored(seed):
    return resize(picture(seed), SIZE)


def source_of(folder, count):
    return draw_source(folder, {f"I{k:03d}": picture(k) for k in range(count)})


@pytest.fixture
def grown_from(tmp_path):
    """A source of 25 images and its dataset of three shards."""
    source = source_of(tmp_path / "source", 25)
    return source, ingested(source, tmp_path / "d")


def ingested(source, target, state=None, **changes):
    ingest(data_params(source.path, shard_megabytes=SMALL_SHARDS, **changes), target, state)
    opened = Dataset.open(target)
    assert changed_files(opened.artifact) == []
    opened.images(np.arange(len(opened.manifest)))  # held open: the next run puts another dataset in this place
    return opened


def write(source, image_id, seed):
    cv2.imwrite(str(file_of(source, image_id)), picture(seed)[..., ::-1])


def add(source, *images):
    for image_id in images:
        write(source, image_id, int(image_id[1:]))
    row = source.metadata.iloc[[0]]
    more = [row.assign(image_id=image_id, lesion_id=f"L_{image_id}") for image_id in images]
    source.write_metadata(pd.concat([source.metadata, *more]))


def withdraw(source, *images):
    table = source.metadata
    source.write_metadata(table[~table["image_id"].isin(images)])
    for image_id in images:
        file_of(source, image_id).unlink()


def file_of(source, image_id):
    return source.path / "images" / f"{image_id}.png"


def changed_shards(before, after):
    """Names of array files that are new or have other bytes."""
    names = {name for name in before.artifact.files | after.artifact.files if name.endswith(".npy")}
    return {name for name in names if before.artifact.files.get(name) != after.artifact.files.get(name)}


def changed_rows(before, after):
    """Image ids whose manifest row is new, gone or different."""
    one, other = (table.all_rows.set_index("image_id") for table in (before, after))
    both = one.index.intersection(other.index)
    differs = (one.loc[both].astype(str) != other.loc[both].astype(str)).any(axis=1)
    return {*one.index.symmetric_difference(other.index), *both[differs]}


def pixels_of(dataset, *images):
    return dataset.images(dataset.rows_of(pd.Series(images)))


# --- what stays ---


def test_nothing_new_gives_the_same_bytes_without_reading_an_image(grown_from, tmp_path, monkeypatch):
    source, before = grown_from
    monkeypatch.setattr(shards, "decode", None)
    assert ingested(source, tmp_path / "d").artifact.digest == before.artifact.digest


def test_new_images_go_to_new_shards_and_old_shards_keep_their_bytes(grown_from, tmp_path):
    source, before = grown_from
    add(source, "I900", "I050", "I0015")
    after = ingested(source, tmp_path / "d")
    assert changed_shards(before, after) == {"shard-00003.npy", "signature-00003.npy"}
    assert changed_rows(before, after) == {"I900", "I050", "I0015"}
    np.testing.assert_array_equal(pixels_of(after, "I900", "I003"), [stored(900), pixels_of(before, "I003")[0]])


def test_a_grown_dataset_has_the_content_of_a_fresh_one(grown_from, tmp_path):
    source, _ = grown_from
    add(source, "I900", "I050")
    grown, fresh = ingested(source, tmp_path / "d"), ingested(source, tmp_path / "fresh")
    assert grown.content_digest == fresh.content_digest
    assert grown.info["layout_digest"] != fresh.info["layout_digest"]
    for name in ("neighbours.parquet", "rejects.parquet"):
        assert grown.artifact.files[name] == fresh.artifact.files[name]


def test_an_image_whose_bytes_changed_is_replaced_in_its_place(grown_from, tmp_path):
    source, before = grown_from
    write(source, "I012", 777)
    after = ingested(source, tmp_path / "d")
    assert changed_shards(before, after) == {"shard-00001.npy", "signature-00001.npy"}
    assert changed_rows(before, after) == {"I012"}
    np.testing.assert_array_equal(pixels_of(after, "I012")[0], stored(777))
    others = [image for image in before.manifest["image_id"] if image != "I012"]
    np.testing.assert_array_equal(pixels_of(after, *others), pixels_of(before, *others))


def test_a_corrected_label_changes_one_row_and_no_shard(grown_from, tmp_path):
    source, before = grown_from
    source.set("I007", dx="mel", age="71")
    after = ingested(source, tmp_path / "d")
    assert changed_shards(before, after) == set()
    assert changed_rows(before, after) == {"I007"}
    assert after.content_digest != before.content_digest


def test_a_mask_that_comes_later_changes_its_shards_truth_alone(grown_from, tmp_path):
    source, before = grown_from
    (source.path / "masks").mkdir()
    mask = np.zeros((40, 48), np.uint8)
    mask[10:30, 10:30] = 255
    cv2.imwrite(str(source.mask("I021")), mask)
    after = ingested(source, tmp_path / "d")
    assert changed_shards(before, after) == {"truth-00002.npy"}
    assert changed_rows(before, after) == {"I021"}
    assert after.truth(after.rows_of(pd.Series(["I021"]))).any()


def test_an_image_that_is_missing_for_a_while_is_refused_and_then_taken_anew(grown_from, tmp_path):
    source, before = grown_from
    data = file_of(source, "I003").read_bytes()
    file_of(source, "I003").unlink()
    without = ingested(source, tmp_path / "d")
    assert changed_shards(before, without) == set()
    assert "I003" not in set(without.all_rows["image_id"])
    assert list(without.rejects["reason"]) == ["missing"]
    file_of(source, "I003").write_bytes(data)
    again = ingested(source, tmp_path / "d")
    assert again.content_digest == before.content_digest
    assert changed_shards(before, again) == {"shard-00003.npy", "signature-00003.npy"}


def test_an_image_that_is_damaged_later_loses_its_row(grown_from, tmp_path):
    source, before = grown_from
    file_of(source, "I003").write_bytes(b"")
    after = ingested(source, tmp_path / "d")
    assert changed_rows(before, after) == {"I003"}
    assert list(after.rejects[["image_id", "reason"]].itertuples(index=False, name=None)) == [("I003", "empty")]
    others = [image for image in before.manifest["image_id"] if image != "I003"]
    np.testing.assert_array_equal(pixels_of(after, *others), pixels_of(before, *others))


def test_a_dataset_made_otherwise_is_not_gone_on_from(grown_from, tmp_path):
    source, _ = grown_from
    assert ingested(source, tmp_path / "d", resize="crop").artifact.digest == (
        ingested(source, tmp_path / "fresh", resize="crop").artifact.digest
    )


# --- withdrawal ---


def test_a_withdrawn_image_leaves_a_tombstone(grown_from, tmp_path):
    source, before = grown_from
    withdraw(source, "I004", "I024")
    after = ingested(source, tmp_path / "d")
    assert changed_shards(before, after) == set()
    assert changed_rows(before, after) == {"I004", "I024"}
    assert list(after.all_rows.loc[after.all_rows["withdrawn"], "image_id"]) == ["I004", "I024"]
    assert not {"I004", "I024"} & set(after.manifest["image_id"])
    assert after.info["counts"]["images"] == 23
    assert after.info["counts"]["withdrawn"] == 2
    with pytest.raises(InputError, match="I004 is not in this dataset"):
        pixels_of(after, "I004")


def test_a_withdrawn_image_is_never_taken_back(grown_from, tmp_path):
    source, _ = grown_from
    withdraw(source, "I004")
    withdrawn = ingested(source, tmp_path / "d")
    add(source, "I004")
    after = ingested(source, tmp_path / "d")
    assert changed_rows(withdrawn, after) == set()
    assert after.rejects[["image_id", "reason"]].to_numpy().tolist() == [["I004", "withdrawn"]]


def test_the_content_without_a_withdrawn_image_is_that_of_a_source_that_never_had_it(grown_from, tmp_path):
    source, _ = grown_from
    withdraw(source, "I004")
    assert ingested(source, tmp_path / "d").content_digest == ingested(source, tmp_path / "fresh").content_digest


def test_the_pixels_of_a_withdrawn_image_are_erased_on_request(grown_from, tmp_path):
    source, before = grown_from
    withdraw(source, "I004")
    kept = ingested(source, tmp_path / "d")
    assert np.load(tmp_path / "d" / "shard-00000.npy")[4].any()
    erased = ingested(source, tmp_path / "d", erase_withdrawn=True)
    assert changed_shards(before, erased) == {"shard-00000.npy", "signature-00000.npy"}
    assert not np.load(tmp_path / "d" / "shard-00000.npy")[4].any()
    assert erased.content_digest == kept.content_digest
    assert ingested(source, tmp_path / "d", erase_withdrawn=True).artifact.digest == erased.artifact.digest


def test_half_a_source_is_not_taken_for_a_withdrawal(grown_from, tmp_path):
    source, before = grown_from
    withdraw(source, *(f"I{k:03d}" for k in range(12)))
    with pytest.raises(InputError) as caught:
        ingested(source, tmp_path / "d", max_withdrawn_share=0.05)
    assert "12 of the 25 images of the earlier dataset are not in its metadata any more, the first I000" in str(caught.value)
    assert "data.max_withdrawn_share = 0.05" in str(caught.value)
    assert Dataset.open(tmp_path / "d").artifact == before.artifact


# --- state: killed runs, other places, several at once ---


class _KilledError(Exception):
    pass


@pytest.fixture
def cut_short(tmp_path, monkeypatch):
    """A source of 60 images, its dataset, and the state of a run that "died" after it had read 50 of them."""
    source = source_of(tmp_path / "source", 60)
    undisturbed = ingested(source, tmp_path / "d")
    time.sleep(RACY_SECONDS)  # a file that was just written is not trusted to be the same after the kill
    left = [50]
    honest = shards.decode

    def decode(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise _KilledError
        return honest(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "decode", decode)
        with pytest.raises(_KilledError):
            ingested(source, tmp_path / "other", tmp_path / "state")
    assert not (tmp_path / "other").exists()
    return source, undisturbed


def test_a_run_that_was_cut_short_goes_on_and_ends_with_the_same_bytes(cut_short, tmp_path, monkeypatch):
    source, undisturbed = cut_short
    read, honest = [], shards.decode
    monkeypatch.setattr(shards, "decode", lambda *arguments: read.append(1) or honest(*arguments))
    after = ingested(source, tmp_path / "other", tmp_path / "state")
    assert after.artifact.digest == undisturbed.artifact.digest
    assert len(read) <= 60 - IN_A_SHARD, "finished shards were read again"


def test_a_file_that_changed_after_the_kill_is_read_again(cut_short, tmp_path):
    source, _ = cut_short
    write(source, "I000", 777)
    after = ingested(source, tmp_path / "other", tmp_path / "state")
    np.testing.assert_array_equal(pixels_of(after, "I000")[0], stored(777))


def test_a_shard_that_was_spoilt_after_the_kill_is_written_again(cut_short, tmp_path):
    source, undisturbed = cut_short
    (spoilt,) = tmp_path.glob("state/*/work/shard-00000.npy")
    spoilt.write_bytes(spoilt.read_bytes()[:-7] + b"garbage")
    assert ingested(source, tmp_path / "other", tmp_path / "state").artifact.digest == undisturbed.artifact.digest


def test_the_state_lets_another_target_go_on(grown_from, tmp_path):
    """As in pipeline runs: each has a folder of its own."""
    source, _ = grown_from
    first = ingested(source, tmp_path / "run1", tmp_path / "state")
    add(source, "I900")
    second = ingested(source, tmp_path / "run2", tmp_path / "state")
    assert changed_shards(first, second) == {"shard-00003.npy", "signature-00003.npy"}
    shutil.rmtree(tmp_path / "run1")
    shutil.rmtree(tmp_path / "run2")
    assert ingested(source, tmp_path / "run3", tmp_path / "state").artifact.digest == second.artifact.digest


def test_shards_are_not_stored_twice(grown_from, tmp_path):
    source, _ = grown_from
    ingested(source, tmp_path / "run1", tmp_path / "state")
    ingested(source, tmp_path / "run2", tmp_path / "state")
    inodes = {path.stat().st_ino for path in tmp_path.rglob("run*/shard-00000.npy")}
    assert len(inodes) == 1


def test_what_a_killed_run_left_beside_the_target_is_removed(grown_from, tmp_path):
    source, before = grown_from
    (tmp_path / ".d.building-abandoned").mkdir()
    (tmp_path / ".d.building-abandoned" / "shard-00000.npy").write_bytes(b"half")
    assert ingested(source, tmp_path / "d").artifact.digest == before.artifact.digest
    assert not list(tmp_path.glob(".d.building-*"))


def test_two_at_once_take_turns(grown_from, tmp_path):
    source, undisturbed = grown_from
    failed = []

    def work(target):
        try:
            ingest(data_params(source.path, shard_megabytes=SMALL_SHARDS), target, tmp_path / "state")
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(tmp_path / name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for name in ("one", "two"):
        assert Dataset.open(tmp_path / name).artifact.digest == undisturbed.artifact.digest


# --- the pipeline's cache key ---


def test_the_cache_key_is_the_same_before_and_after_a_run(grown_from, tmp_path):
    source, _ = grown_from
    params = data_params(source.path, shard_megabytes=SMALL_SHARDS)
    before = input_digest(params, tmp_path / "state")
    ingest(params, tmp_path / "run1", tmp_path / "state")
    assert input_digest(params, tmp_path / "state") == before
    withdraw(source, "I004")
    withdrawing = input_digest(params, tmp_path / "state")
    assert withdrawing != before
    ingest(params, tmp_path / "run2", tmp_path / "state")
    assert input_digest(params, tmp_path / "state") == withdrawing
    add(source, "I004")
    assert input_digest(params, tmp_path / "state") != before, "the cache would bring the withdrawn image back"


def test_files_are_known_by_their_bytes_not_by_their_dates(grown_from, tmp_path):
    source, before = grown_from
    data = file_of(source, "I012").read_bytes()
    file_of(source, "I012").unlink()
    file_of(source, "I012").write_bytes(data)
    assert ingested(SourceFolder(source.path), tmp_path / "d").artifact.digest == before.artifact.digest
    assert file_digest(file_of(source, "I012")) in set(before.manifest["source_digest"])
