"""Ingest: pixels, manifest and digests of what is usable; a reason for what is not; one message for what can not be read."""

import os
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from components.ingest import core
from components.ingest.core import ingest
from components.ingest.glimpse import glimpse
from components.ingest.source import REJECT_COLUMNS, open_source
from dermaflow.artifacts import changed_files, file_digest
from dermaflow.classes import HAM10000_CLASSES
from dermaflow.dataset import GLIMPSES, MANIFEST_COLUMNS, Dataset
from dermaflow.errors import InputError
from dermaflow.params import Subset
from tests.sources import METADATA_FILE, SIZE, SourceFolder, data_params, draw_source

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"


def ingested(source, target, **changes):
    ingest(data_params(source.path, **changes), target)
    return Dataset.open(target)


def content_digest(source, target, **changes):
    return ingested(source, target, **changes).content_digest


def refusal(source, target, **changes):
    """The message; nothing may be left at or beside the target."""
    place = next(folder for folder in target.parents if folder.is_dir())
    before = sorted(place.rglob("*"))
    with pytest.raises(InputError) as caught:
        ingested(source, target, **changes)
    assert sorted(place.rglob("*")) == before
    return str(caught.value)


def noise(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- what an image becomes ---


def test_an_image_of_the_asked_size_is_stored_as_it_is_in_rgb(tmp_path):
    pictures = {f"I{k}": noise(k, SIZE, SIZE) for k in range(5)}
    opened = ingested(draw_source(tmp_path / "s", pictures), tmp_path / "d")
    stored = opened.images(opened.rows_of(pd.Series(list(pictures))))
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, np.stack(list(pictures.values())))


def test_masks_lie_on_their_images(tmp_path):
    """Each image is black but for a white block; its mask is that block."""
    pictures, masks = {}, {}
    for k in range(6):
        masks[f"I{k}"] = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
        masks[f"I{k}"][10 * k : 10 * k + 14, 6:40] = 255
        pictures[f"I{k}"] = np.repeat(masks[f"I{k}"][..., None], 3, axis=2)
    source = draw_source(tmp_path / "s", pictures)
    (source.path / "masks").mkdir()
    for image_id in ("I0", "I2", "I3", "I5"):
        cv2.imwrite(str(source.mask(image_id)), masks[image_id])
    opened = ingested(source, tmp_path / "d")
    assert list(opened.manifest["has_truth"]) == [True, False, True, True, False, True]
    images, truth = opened.images(np.arange(6)), opened.truth(np.arange(6))
    assert set(np.unique(truth)) == {0, 1}
    for row in (0, 2, 3, 5):
        np.testing.assert_array_equal(truth[row], images[row, ..., 0] >= 128)
    assert not truth[[1, 4]].any()


# --- the manifest ---


def test_the_manifest_has_one_row_an_image_in_a_fixed_order(drawn_source, dataset):
    manifest = Dataset.open(dataset).manifest
    assert tuple(manifest.columns) == MANIFEST_COLUMNS
    assert list(manifest["image_id"]) == sorted(drawn_source.metadata["image_id"])
    told = drawn_source.metadata.set_index("image_id").loc[manifest["image_id"]]
    assert list(manifest["label"]) == list(told["dx"])
    assert list(manifest["lesion_id"]) == list(told["lesion_id"])
    assert list(manifest["localization"]) == list(told["localization"])
    assert list(manifest["row"]) == list(range(42))
    for row in manifest.iloc[::10].itertuples():
        assert row.source_digest == file_digest(drawn_source.path / row.source_uri)


def test_the_description_counts_what_is_there(drawn_source, dataset):
    opened = Dataset.open(dataset)
    counts = opened.info["counts"]
    table = drawn_source.metadata
    assert (counts["images"], counts["lesions"], counts["rejects"]) == (42, table["lesion_id"].nunique(), 0)
    assert counts["images_per_class"] == {name: int((table["dx"] == name).sum()) for name in HAM10000_CLASSES}
    assert opened.classes == HAM10000_CLASSES
    assert opened.synthetic
    assert opened.info["source"]["licence"] == "CC0-1.0"
    assert changed_files(opened.artifact) == []


def test_an_unknown_age_stays_unknown(source, tmp_path):
    first, second, third = source.ids("nv")[:3]
    for image_id, age in ((first, ""), (second, "unknown"), (third, "85")):
        source.set(image_id, age=age)
    manifest = ingested(source, tmp_path / "d").manifest.set_index("image_id")
    assert np.isnan(manifest["age"][first])
    assert np.isnan(manifest["age"][second])
    assert manifest["age"][third] == 85


def test_age_is_a_float_whatever_the_ages_are(source, tmp_path):
    table = source.metadata
    source.write_metadata(table.assign(age="50"))
    assert ingested(source, tmp_path / "d").manifest["age"].dtype == np.float64


def test_identical_pixels_are_listed_as_neighbours(source, tmp_path):
    first, second = source.ids("nv")[0], source.ids("mel")[0]
    shutil.copy(source.image(first), source.image(second))
    ingested(source, tmp_path / "d")
    pairs = pd.read_parquet(tmp_path / "d" / "neighbours.parquet")
    assert pairs.to_dict("records") == [
        {"image_a": min(first, second), "image_b": max(first, second), "distance": 0.0, "score": 1.0}
    ]


# --- digests ---


def test_the_same_source_gives_the_same_bytes(drawn_source, dataset, tmp_path):
    assert ingested(drawn_source, tmp_path / "d").artifact.digest == Dataset.open(dataset).artifact.digest


def test_the_content_does_not_depend_on_order_time_or_folders(source, dataset, tmp_path):
    source.write_metadata(source.metadata.sample(frac=1, random_state=1))
    (source.path / "more" / "deep").mkdir(parents=True)
    for place, image_id in enumerate(source.metadata["image_id"]):
        os.utime(source.image(image_id), (place, place))
        if place % 3 == 0:
            source.image(image_id).rename(source.path / "more" / "deep" / f"{image_id}.jpg")
    assert content_digest(source, tmp_path / "d") == Dataset.open(dataset).content_digest


def test_the_content_does_not_depend_on_the_order_of_the_manifest(drawn_source, dataset):
    opened = Dataset.open(dataset)
    assert core.content_digest(opened.manifest.iloc[::-1], data_params(drawn_source.path)) == opened.content_digest


@pytest.mark.parametrize(
    "values", [{"dx": "mel"}, {"lesion_id": "PHL_9999999"}, {"sex": "unknown"}, {"age": ""}, {"localization": "elsewhere"}]
)
def test_one_changed_field_changes_the_content(source, dataset, tmp_path, values):
    source.set(source.ids("nv")[0], **values)
    assert content_digest(source, tmp_path / "d") != Dataset.open(dataset).content_digest


def test_one_changed_byte_changes_the_content(source, dataset, tmp_path):
    """Even one in a comment that no decoder looks at."""
    path = source.image(source.ids("nv")[0])
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xfe\x00\x03x" + data[2:])
    opened = ingested(source, tmp_path / "d")
    assert opened.content_digest != Dataset.open(dataset).content_digest
    assert list(opened.manifest["pixel_digest"]) == list(Dataset.open(dataset).manifest["pixel_digest"])


def test_another_size_is_other_content(drawn_source, dataset, tmp_path):
    assert content_digest(drawn_source, tmp_path / "d", image_size=40) != Dataset.open(dataset).content_digest


def test_the_source_digest_follows_names_and_bytes_not_times(source):
    def digest():
        return open_source(data_params(source.path)).digest()

    before = digest()
    path = source.image(source.ids("nv")[0])
    os.utime(path, (1, 1))
    assert digest() == before
    data = path.read_bytes()
    path.write_bytes(data[:-3] + b"\0" + data[-2:])
    changed = digest()
    assert changed != before
    path.write_bytes(data)
    assert digest() == before
    path.rename(path.with_suffix(".jpeg"))
    assert digest() not in (before, changed)


# --- quarantine ---


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory, drawn_source):
    """42 phantoms of which ten can not be used, ingested: (what was done to which image, the dataset)."""
    folder = tmp_path_factory.mktemp("spoilt")
    source = SourceFolder(shutil.copytree(drawn_source.path, folder / "source"))
    reasons = ("missing", "duplicate_id", "duplicate_file", "empty", "unsupported", "truncated", "too_large", "unreadable_mask")
    done = dict(zip(reasons, source.ids("nv"), strict=False))
    source.image(done["missing"]).unlink()
    table = source.metadata
    source.write_metadata(pd.concat([table, table[table["image_id"] == done["duplicate_id"]]]))
    shutil.copy(source.image(done["duplicate_file"]), source.path / f"{done['duplicate_file']}.jpeg")
    source.image(done["empty"]).write_bytes(b"")
    source.image(done["unsupported"]).write_bytes(b"<html>404 Not Found</html>")
    data = source.image(done["truncated"]).read_bytes()
    source.image(done["truncated"]).write_bytes(data[: len(data) // 2])
    cv2.imwrite(str(source.image(done["too_large"])), noise(0, 100, 101))
    source.mask(done["unreadable_mask"]).write_bytes(b"no mask")
    shutil.copy(source.image(source.ids("mel")[0]), source.image("STRANGER"))
    done["unlabelled"] = "STRANGER"
    return source, done, ingested(source, folder / "dataset", max_pixels=10_000)


@pytest.mark.parametrize(
    "reason",
    [
        *("missing", "duplicate_id", "duplicate_file", "empty", "unsupported"),
        *("truncated", "too_large", "unreadable_mask", "unlabelled"),
    ],
)
def test_an_unusable_image_is_quarantined_with_its_reason(spoilt, reason):
    source, done, opened = spoilt
    entries = opened.rejects[opened.rejects["reason"] == reason]
    assert set(entries["image_id"]) == {done[reason]}
    assert len(entries) == (2 if reason == "duplicate_id" else 1)
    entry = entries.iloc[0]
    assert (source.path / entry["uri"]).is_file()
    assert done[reason] in entry["uri"] + entry["detail"]
    assert done[reason] not in set(opened.manifest["image_id"])


def test_of_what_was_refused_one_sees_what_can_be_read(spoilt):
    """By the row of rejects.parquet; a file that was cut off shows its beginning, one without a picture nothing."""
    _, _, opened = spoilt
    pictures = {path.name: cv2.imread(str(path)) for path in (opened.artifact.path / GLIMPSES).iterdir()}
    shown = {opened.rejects["reason"].iloc[int(name.removesuffix(".jpg"))] for name in pictures}
    assert "truncated" in shown
    assert not shown & {"empty", "missing", "unsupported", "too_large"}
    assert all(max(picture.shape) <= 160 and picture.std() > 2 for picture in pictures.values())


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40), b"\xff\xd8\xff\xe0" + bytes(99)])
def test_a_file_without_a_picture_shows_nothing(data):
    assert glimpse(data, 10**6) is None


def test_no_picture_larger_than_allowed_is_opened_for_a_glimpse(source):
    data = source.image(source.ids("nv")[0]).read_bytes()
    assert glimpse(data, 10**7) is not None
    assert glimpse(data, 1024) is None


def test_what_is_not_quarantined_is_whole(spoilt, dataset):
    source, done, opened = spoilt
    assert tuple(opened.rejects.columns) == REJECT_COLUMNS
    assert opened.info["counts"]["rejects"] == len(opened.rejects) == 10
    assert set(opened.manifest["image_id"]) == set(source.metadata["image_id"]) - set(done.values())
    good = opened.manifest["image_id"]
    clean = Dataset.open(dataset)
    np.testing.assert_array_equal(opened.images(opened.rows_of(good)), clean.images(clean.rows_of(good)))
    np.testing.assert_array_equal(opened.truth(opened.rows_of(good)), clean.truth(clean.rows_of(good)))


def test_the_ceiling_stops_the_run_and_tells_what_is_wrong(source, tmp_path):
    for image_id in source.ids("nv")[:2]:
        source.image(image_id).write_bytes(b"")
    told = refusal(source, tmp_path / "d", max_reject_share=0.04)
    assert "2 of 42 images can not be used (empty 2)" in told
    assert "data.max_reject_share = 0.04" in told
    assert f"{source.path}: 2 of 42" in told
    assert f"the first is images/{source.ids('nv')[0]}.jpg: the file has no bytes" in told
    assert len(ingested(source, tmp_path / "d", max_reject_share=0.05).rejects) == 2


# --- sources that can not be read ---


def test_a_missing_folder_says_how_to_get_one(tmp_path):
    told = refusal(SourceFolder(tmp_path / "ham10000"), tmp_path / "d")
    assert f"data.source: {tmp_path / 'ham10000'} is not a folder" in told
    assert "HAM10000's layout" in told
    assert "dermaflow data phantom" in refusal(SourceFolder(tmp_path / "phantom"), tmp_path / "d")


def test_a_source_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in refusal(SourceFolder(tmp_path / "file"), tmp_path / "d")


def test_a_source_without_metadata_is_refused(source, tmp_path):
    (source.path / METADATA_FILE).unlink()
    assert "must hold exactly one metadata file (*metadata*.csv or .tab); found: none" in refusal(source, tmp_path / "d")


def test_a_source_with_two_metadata_files_names_both(source, tmp_path):
    shutil.copy(source.path / METADATA_FILE, source.path / "my_metadata.tab")
    assert f"found: {METADATA_FILE}, my_metadata.tab" in refusal(source, tmp_path / "d")


def test_a_source_without_images_is_refused(source, tmp_path):
    shutil.rmtree(source.path / "images")
    assert "holds no images (.jpg, .jpeg, .png)" in refusal(source, tmp_path / "d")


@pytest.mark.parametrize("column", ["lesion_id", "dx", "age"])
def test_a_missing_column_is_named(source, tmp_path, column):
    source.write_metadata(source.metadata.drop(columns=column))
    told = refusal(source, tmp_path / "d")
    assert str(source.path / METADATA_FILE) in told
    assert f"lacks the column {column};" in told


def test_an_unknown_class_is_named_with_its_line(source, tmp_path):
    table = source.metadata
    table.loc[4, "dx"] = "melanoma"
    source.write_metadata(table)
    told = refusal(source, tmp_path / "d", max_reject_share=0)
    assert "1 of 42 images can not be used (unknown_class 1)" in told
    assert f"{METADATA_FILE}, line 6: dx is 'melanoma'; allowed: akiec, bcc, bkl, df, mel, nv, vasc" in told
    assert list(ingested(source, tmp_path / "d").rejects["reason"]) == ["unknown_class"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "can not be read as a table"),
        (HEADER.encode(), "has no rows"),
        (f"{HEADER}\nL1,I1,nv,histo,40,male,back,more\n{HEADER}\n".encode("utf-16"), "can not be read as a table"),
    ],
)
def test_metadata_that_is_no_table_is_refused_by_name(source, tmp_path, content, told):
    (source.path / METADATA_FILE).write_bytes(content)
    message = refusal(source, tmp_path / "d")
    assert str(source.path / METADATA_FILE) in message
    assert told in message


def test_a_source_description_that_is_not_json_is_refused(source, tmp_path):
    (source.path / "source.json").write_text("{")
    assert "source.json is not valid JSON" in refusal(source, tmp_path / "d")


def test_a_target_that_can_not_be_written_is_refused(drawn_source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "can not write to" in refusal(drawn_source, tmp_path / "file" / "d")


def test_a_failed_run_leaves_the_earlier_dataset(source, tmp_path):
    before = ingested(source, tmp_path / "d").artifact
    for image_id in source.ids("nv"):
        source.image(image_id).write_bytes(b"")
    refusal(source, tmp_path / "d", max_reject_share=0.01)
    assert Dataset.open(tmp_path / "d").artifact == before
    assert changed_files(before) == []


# --- layouts that people have ---


def test_dataverses_tab_separated_metadata_is_read(source, dataset, tmp_path):
    source.metadata.to_csv(source.path / "HAM10000_metadata.tab", sep="\t", index=False)
    (source.path / METADATA_FILE).unlink()
    assert content_digest(source, tmp_path / "d") == Dataset.open(dataset).content_digest


def test_a_byte_order_mark_windows_lines_and_further_columns_do_no_harm(source, dataset, tmp_path):
    table = source.metadata.assign(dataset="phantom")
    (source.path / METADATA_FILE).write_bytes(table.to_csv(index=False, lineterminator="\r\n").encode("utf-8-sig"))
    assert content_digest(source, tmp_path / "d") == Dataset.open(dataset).content_digest


def test_a_source_without_masks_or_description_is_read(source, tmp_path):
    shutil.rmtree(source.path / "masks")
    (source.path / "source.json").unlink()
    opened = ingested(source, tmp_path / "d", licence="CC BY-NC 4.0")
    assert not opened.synthetic
    assert opened.info["source"]["licence"] == "CC BY-NC 4.0"
    assert not opened.manifest["has_truth"].any()
    assert not list((tmp_path / "d").glob("truth-*"))


def test_a_linked_folder_of_images_is_read(source, dataset, tmp_path):
    (source.path / "images").rename(tmp_path / "on_another_disk")
    (source.path / "images").symlink_to(tmp_path / "on_another_disk")
    assert content_digest(source, tmp_path / "d") == Dataset.open(dataset).content_digest


def test_hidden_files_that_a_mac_leaves_behind_are_passed_over(source, tmp_path):
    (source.path / "__MACOSX").mkdir()
    (source.path / "__MACOSX" / "._PHI_0000001.jpg").write_bytes(b"Mac OS X")
    assert len(ingested(source, tmp_path / "d").rejects) == 0


def test_metadata_without_an_ending_is_read(source, dataset, tmp_path):
    (source.path / METADATA_FILE).rename(source.path / "HAM10000_metadata")
    assert content_digest(source, tmp_path / "d") == Dataset.open(dataset).content_digest


# --- subsets ---


def subset_of(source, **values):
    return open_source(data_params(source.path, subset=Subset(**values))).metadata


def test_a_subset_takes_whole_lesions_within_the_limit(drawn_source):
    everything = drawn_source.metadata
    taken = subset_of(drawn_source, images_per_class=4)
    assert (taken["dx"].value_counts() <= 4).all()
    assert set(taken["dx"]) == set(HAM10000_CLASSES)
    whole = everything[everything["lesion_id"].isin(taken["lesion_id"])]
    assert sorted(whole["image_id"]) == list(taken["image_id"])


def test_a_subset_follows_its_seed_not_the_order_of_the_file(source):
    one = list(subset_of(source, images_per_class=4)["image_id"])
    source.write_metadata(source.metadata.iloc[::-1])
    assert list(subset_of(source, images_per_class=4)["image_id"]) == one
    others = {tuple(subset_of(source, images_per_class=4, seed=seed)["image_id"]) for seed in range(5)}
    assert len(others) > 1


def test_a_class_that_is_to_be_kept_is_taken_whole(drawn_source):
    taken = subset_of(drawn_source, images_per_class=2, keep_all=("nv",))["dx"].value_counts()
    assert taken["nv"] == len(drawn_source.ids("nv"))
    assert taken.drop("nv").max() <= 2


def test_a_larger_subset_holds_the_smaller_one(drawn_source):
    everything = subset_of(drawn_source, images_per_class=1000)
    assert list(everything["image_id"]) == sorted(drawn_source.metadata["image_id"])


def test_images_outside_a_subset_are_not_unlabelled(drawn_source, tmp_path):
    opened = ingested(drawn_source, tmp_path / "d", subset=Subset(images_per_class=4))
    assert len(opened.rejects) == 0
    assert opened.info["source"]["subset"]["images_per_class"] == 4
    assert 0 < len(opened.manifest) <= 28
