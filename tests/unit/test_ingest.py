"""Ingest: pixels, manifest and digests of what is usable; a reason for what is not; one message for what can not be read."""

import os
import shutil
import struct
import zlib
from io import BytesIO

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components.ingest import core
from components.ingest.core import REJECT_COLUMNS, ingest
from components.ingest.decode import RejectedError, decode, difference_hash
from components.ingest.source import open_source, source_digest
from dermaflow.artifacts import changed_files, file_digest
from dermaflow.classes import HAM10000_CLASSES
from dermaflow.dataset import MANIFEST_COLUMNS, Dataset
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


def quadrants(size=64):
    """Red top left, green top right, blue bottom left, white bottom right: shows turns and swapped channels."""
    half = size // 2
    image = np.full((size, size, 3), 255, np.uint8)
    image[:half, :half], image[:half, half:], image[half:, :half] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return image


# --- what an image becomes ---


def test_an_image_of_the_asked_size_is_stored_as_it_is_in_rgb(tmp_path):
    pictures = {f"I{k}": noise(k, SIZE, SIZE) for k in range(5)}
    opened = ingested(draw_source(tmp_path / "s", pictures), tmp_path / "d")
    stored = opened.images(opened.rows_of(pd.Series(list(pictures))))
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, np.stack(list(pictures.values())))


def test_a_larger_image_is_averaged_over_areas(tmp_path):
    """Twice as wide, thrice as high: every pixel is the mean of 2 x 3, which nearest or bilinear sampling would miss."""
    picture = noise(1, 3 * SIZE, 2 * SIZE)
    opened = ingested(draw_source(tmp_path / "s", {"I0": picture}), tmp_path / "d")
    expected = picture.reshape(SIZE, 3, SIZE, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(opened.images(np.array([0]))[0], expected, atol=0.51)
    assert tuple(opened.manifest.loc[0, ["original_width", "original_height"]]) == (2 * SIZE, 3 * SIZE)


def test_a_smaller_image_is_enlarged_smoothly(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, 4:] = 200
    stored = ingested(draw_source(tmp_path / "s", {"I0": picture}), tmp_path / "d").images(np.array([0]))[0, 16, :, 0]
    assert (np.diff(stored.astype(int)) >= 0).all()
    assert len(set(stored)) > 2, "no in-between value: this is not interpolation"


def test_phantoms_are_stored_as_pillow_decodes_them(drawn_source, dataset):
    """An independent decoder and the same area averaging agree within a rounding step or two of JPEG's arithmetic."""
    opened = Dataset.open(dataset)
    rows = np.array([0, 20, 41])
    for row, stored in zip(rows, opened.images(rows), strict=True):
        path = drawn_source.path / opened.manifest["source_uri"][row]
        picture = np.asarray(Image.open(path).convert("RGB"))
        expected = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(stored - expected).max() <= 4
        assert np.abs(stored - expected).mean() < 1


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", [(76, 76, 76), (150, 150, 150), (29, 29, 29), (255, 255, 255)]),
        ("P", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]),
        ("RGBA", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]),
        ("LA", [(76, 76, 76), (150, 150, 150), (29, 29, 29), (255, 255, 255)]),
        ("1", [None, None, None, (255, 255, 255)]),
    ],
)
def test_other_kinds_of_png_become_rgb(tmp_path, mode, expected):
    source = draw_source(tmp_path / "s", {"I0": quadrants()})
    Image.fromarray(quadrants()).convert(mode).save(source.path / "images" / "I0.png")
    stored = ingested(source, tmp_path / "d").images(np.array([0]))[0].astype(int)
    for (row, column), colour in zip([(8, 8), (8, 24), (24, 8), (24, 24)], expected, strict=True):
        if colour is not None:
            np.testing.assert_allclose(stored[row, column], colour, atol=3)


def test_a_16_bit_png_is_scaled_to_8_bits(tmp_path):
    source = draw_source(tmp_path / "s", {"I0": quadrants()})
    Image.fromarray(np.full((64, 64), 128 * 257, np.uint16)).save(source.path / "images" / "I0.png")
    stored = ingested(source, tmp_path / "d").images(np.array([0]))
    np.testing.assert_allclose(stored, 128, atol=1)


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_the_orientation_that_a_camera_noted_is_applied(tmp_path, orientation, turned):
    """EXIF 6 says: turn by 90 degrees clockwise to see it upright."""
    source = draw_source(tmp_path / "s", {"I0": quadrants()})
    (source.path / "images" / "I0.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(quadrants()).save(source.path / "images" / "I0.jpg", quality=95, subsampling=0, exif=exif)
    stored = ingested(source, tmp_path / "d").images(np.array([0]))[0]
    expected = np.rot90(quadrants(SIZE), turned).astype(int)
    centres = np.ix_([8, 24], [8, 24])
    assert np.abs(stored[centres] - expected[centres]).max() < 30


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


def test_a_mask_is_lesion_where_at_least_half_of_a_pixel_is_covered(tmp_path):
    """Four columns of the source become one: 0, 1, 2, 3 or all 4 of them are lesion."""
    covered = np.arange(SIZE) % 5
    mask = np.repeat((np.arange(4)[None, :] < covered[:, None]).reshape(1, -1), 4 * SIZE, axis=0)
    source = draw_source(tmp_path / "s", {"I0": np.zeros((4 * SIZE, 4 * SIZE, 3), np.uint8)})
    (source.path / "masks").mkdir()
    cv2.imwrite(str(source.mask("I0")), mask.astype(np.uint8) * 255)
    truth = ingested(source, tmp_path / "d").truth(np.array([0]))[0]
    np.testing.assert_array_equal(truth, np.broadcast_to(covered >= 2, truth.shape))


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


def test_the_perceptual_hash_hardly_moves_with_brightness_and_much_with_content(dataset):
    def bits(pixels):
        return np.unpackbits(np.frombuffer(bytes.fromhex(difference_hash(pixels)), np.uint8))

    first, other = Dataset.open(dataset).images(np.array([0, 1]))
    brighter = np.clip(first.astype(int) + 5, 0, 255).astype(np.uint8)
    assert (bits(first) != bits(brighter)).sum() <= 6
    assert (bits(first) != bits(other)).sum() >= 10


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
    before = source_digest(source.path)
    path = source.image(source.ids("nv")[0])
    os.utime(path, (1, 1))
    assert source_digest(source.path) == before
    data = path.read_bytes()
    path.write_bytes(data[:-3] + b"\0" + data[-2:])
    changed = source_digest(source.path)
    assert changed != before
    path.write_bytes(data)
    path.rename(path.with_name("other.jpg"))
    assert source_digest(source.path) not in (before, changed)


# --- quarantine ---


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory, drawn_source):
    """42 phantoms of which ten can not be used, ingested: (what was done to which image, the dataset)."""
    folder = tmp_path_factory.mktemp("spoilt")
    source = SourceFolder(shutil.copytree(drawn_source.path, folder / "source"))
    reasons = ("missing", "duplicate_id", "duplicate_file", "empty", "unreadable", "truncated", "too_large", "unreadable_mask")
    done = dict(zip(reasons, source.ids("nv"), strict=False))
    source.image(done["missing"]).unlink()
    table = source.metadata
    source.write_metadata(pd.concat([table, table[table["image_id"] == done["duplicate_id"]]]))
    shutil.copy(source.image(done["duplicate_file"]), source.path / f"{done['duplicate_file']}.jpeg")
    source.image(done["empty"]).write_bytes(b"")
    source.image(done["unreadable"]).write_bytes(b"<html>404 Not Found</html>")
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
        *("missing", "duplicate_id", "duplicate_file", "empty", "unreadable"),
        *("truncated", "too_large", "unreadable_mask", "unlabelled"),
    ],
)
def test_an_unusable_image_is_quarantined_with_its_reason(spoilt, reason):
    source, done, opened = spoilt
    entries = opened.rejects[opened.rejects["reason"] == reason]
    assert set(entries["image_id"]) == {done[reason]}
    assert len(entries) == (2 if reason == "duplicate_id" else 1)
    entry = entries.iloc[0]
    assert entry["uri"].startswith(str(source.path))
    assert done[reason] in entry["uri"]
    assert entry["detail"]
    assert done[reason] not in set(opened.manifest["image_id"])


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
    assert str(source.image(source.ids("nv")[0])) in told
    assert len(ingested(source, tmp_path / "d", max_reject_share=0.05).rejects) == 2


def test_a_dangling_link_is_quarantined(source, tmp_path):
    path = source.image(source.ids("nv")[0])
    path.unlink()
    path.symlink_to(tmp_path / "nowhere.jpg")
    rejects = ingested(source, tmp_path / "d").rejects
    assert list(rejects["reason"]) == ["unreadable"]
    assert "No such file" in rejects["detail"][0]


def encoded(ending, **options):
    file = BytesIO()
    Image.fromarray(noise(3, 60, 80)).save(file, ending, **options)
    return file.getvalue()


def png_of(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def reason_of(data):
    try:
        decode(data, SIZE, 50_000_000)
    except RejectedError as rejected:
        return rejected.reason
    return "accepted"


def test_a_damaged_png_is_refused():
    data = encoded("PNG")
    assert reason_of(data) == "accepted"
    assert reason_of(data[: len(data) // 2]) == "unreadable"
    assert reason_of(data[:3000] + bytes([data[3000] ^ 255]) + data[3001:]) == "unreadable"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_jpeg_that_ends_early_is_refused(share):
    data = encoded("JPEG", quality=90)
    assert reason_of(data[: int(share * len(data))]) in ("truncated", "unreadable")


def test_a_jpeg_that_ends_early_is_refused_even_when_it_holds_a_thumbnail():
    """The thumbnail in the EXIF block has an end marker of its own."""
    data = encoded("JPEG", quality=90)
    thumbnail = encoded("JPEG", quality=10)
    block = b"Exif\0\0" + thumbnail
    whole = data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    assert reason_of(whole) == "accepted"
    assert reason_of(whole[: len(whole) - len(data) // 2]) == "truncated"


def test_an_image_over_the_limit_is_refused_before_it_is_decoded():
    assert reason_of(png_of(8000, 8000)) == "too_large"


def test_a_huge_image_is_too_large_not_unreadable():
    assert reason_of(png_of(20_000, 20_000)) == "too_large"


@pytest.mark.parametrize("trailer", [b"\0" * 10, b"\0" * 512], ids=len)
def test_a_whole_jpeg_with_a_trailer_is_not_called_truncated(trailer):
    """Cameras and copying tools append padding and vendor blocks."""
    assert reason_of(encoded("JPEG", quality=90) + trailer) == "accepted"


@pytest.mark.xfail(strict=True, reason="libjpeg fills what is missing with grey and only warns; the end marker is there")
def test_a_jpeg_with_a_hole_in_it_is_refused():
    data = encoded("JPEG", quality=90)
    assert reason_of(data[: len(data) // 2] + b"\xff\xd9") != "accepted"


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
    told = refusal(source, tmp_path / "d")
    assert f"{METADATA_FILE}, line 6: dx is 'melanoma' (1 such rows)" in told
    assert "allowed: akiec, bcc, bkl, df, mel, nv, vasc" in told


@pytest.mark.parametrize(
    "bad",
    ["../x", "/etc/passwd", "a/b", "..", ".hidden", "-rf", "a\x07b", "a\nb", "=cmd()", "+1", "@x", "a b", "ä", "", "x" * 129],
)
@pytest.mark.parametrize("column", ["image_id", "lesion_id"])
def test_an_unsafe_id_is_refused_with_its_line(source, tmp_path, column, bad):
    table = source.metadata
    table.loc[2, column] = bad
    source.write_metadata(table)
    told = refusal(source, tmp_path / "d")
    assert f"line 4: {column} is {bad[:60]!r}"[:70] in told
    assert "letters, digits, dot, dash and underscore" in told
    assert all(character.isprintable() for character in told), "a control character would reach the terminal"


@pytest.mark.parametrize("age", ["old", "4O", "nan"])
def test_an_age_that_is_no_number_is_refused(source, tmp_path, age):
    source.set(source.ids("nv")[0], age=age)
    assert f"age is {age!r} (1 such rows); allowed: a number of years, or empty" in refusal(source, tmp_path / "d")


def test_an_infinite_age_is_refused(source, tmp_path):
    source.set(source.ids("nv")[0], age="inf")
    assert "age is 'inf'" in refusal(source, tmp_path / "d")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "can not be read as a table"),
        (HEADER.encode(), "has no rows"),
        (f"{HEADER}\nL1,I1,nv,histo,40,male,back,more\n{HEADER}\n".encode("utf-16"), "can not be read as a table"),
        (f"{HEADER}\nL1,I1,nv,histo,40,male,back\nL2,I2,nv,histo,40,male,back,more\n".encode(), "line 3"),
        (f"{HEADER}\nL1\n".encode(), "line 2: image_id is ''"),
    ],
)
def test_metadata_that_is_no_table_is_refused_by_name(source, tmp_path, content, told):
    (source.path / METADATA_FILE).write_bytes(content)
    message = refusal(source, tmp_path / "d")
    assert str(source.path / METADATA_FILE) in message
    assert told in message


@pytest.mark.parametrize("value", ["back\x00", "back\x1b[2J"])
def test_control_characters_are_refused_in_every_column(source, tmp_path, value):
    source.set(source.ids("nv")[0], localization=value)
    assert "localization" in refusal(source, tmp_path / "d")


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
