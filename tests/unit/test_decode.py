"""Decoding: what becomes of each kind of file, and what is refused, by the table at the head of components/ingest/decode.py."""

import struct
import zlib
from io import BytesIO

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from components.ingest.decode import RejectedError, decode, decode_mask, resize
from dermaflow.dataset import Dataset
from tests.sources import SIZE

ANY_SIZE = 50_000_000  # pixels


def noise(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def quadrants(size=64):
    """Red top left, green top right, blue bottom left, white bottom right: shows turns and swapped channels."""
    half = size // 2
    image = np.full((size, size, 3), 255, np.uint8)
    image[:half, :half], image[:half, half:], image[half:, :half] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return image


def encoded(kind, pixels=None, mode="RGB", **options):
    file = BytesIO()
    image = Image.fromarray(noise(3, 60, 80) if pixels is None else pixels)
    (image if pixels is not None and pixels.dtype == np.uint16 else image.convert(mode)).save(file, kind, **options)
    return file.getvalue()


def pixels_of(data, **options):
    return decode(data, SIZE, ANY_SIZE, **options).pixels.astype(int)


def reason_of(data, max_pixels=ANY_SIZE):
    try:
        decode(data, SIZE, max_pixels)
    except RejectedError as rejected:
        return rejected.reason
    return "accepted"


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, *before_data, data=b""):
    """A PNG that claims a size and holds next to nothing."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = chunk(b"IDAT", zlib.compress(data or bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + b"".join(before_data) + packed + chunk(b"IEND", b"")


# --- what an image becomes ---


def test_an_image_of_the_asked_size_stays_as_it_is():
    picture = noise(1, SIZE, SIZE)
    np.testing.assert_array_equal(pixels_of(encoded("PNG", picture)), picture)


def test_what_is_too_fine_for_the_new_size_becomes_its_mean():
    """Stripes of one pixel, three to one: without antialiasing they would come out as broad stripes of black and white."""
    stripes = np.zeros((3 * SIZE, 3 * SIZE, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(pixels_of(encoded("PNG", stripes))[:, 2:-2] - 127.5).max() < 20
    plain = cv2.resize(stripes, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR).astype(int)
    assert np.abs(plain - 127.5).max() > 100, "this pattern would not show aliasing"


def test_a_smaller_image_is_enlarged_smoothly():
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, 4:] = 200
    row = pixels_of(encoded("PNG", picture))[16, :, 0]
    assert (np.diff(row) >= 0).all()
    assert len(set(row)) > 2, "no in-between value: this is not interpolation"


@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_a_jpeg_is_what_pillow_makes_of_it(factor):
    """The expected picture is from another decoder, and averaged over areas."""
    smooth = cv2.GaussianBlur(noise(4, factor * SIZE, factor * SIZE), (0, 0), 2 * factor)
    smooth = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)
    data = encoded("JPEG", smooth, quality=95)
    whole = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    expected = cv2.resize(whole, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(int)
    difference = np.abs(pixels_of(data) - expected)
    assert difference.mean() < 1.5
    assert np.percentile(difference, 99) <= 6


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
def test_a_jpeg_and_its_pixels_become_the_same_input(mode):
    """A model may be given either: there must be no shortcut by which a file is scaled otherwise than an array."""
    data = encoded("JPEG", noise(5, 3 * SIZE, 4 * SIZE), quality=95)
    whole = simplejpeg.decode_jpeg(data, "RGB")
    np.testing.assert_array_equal(pixels_of(data, mode=mode), resize(whole, SIZE, mode))


@pytest.mark.parametrize(("height", "width"), [(SIZE, SIZE), (SIZE, 2 * SIZE), (2 * SIZE, SIZE), (3 * SIZE, 4 * SIZE)])
@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
def test_an_image_keeps_its_pixels_when_the_next_is_decoded(height, width, mode):
    first, second = (encoded("JPEG", noise(seed, height, width)) for seed in (6, 7))
    decoded = decode(first, SIZE, ANY_SIZE, mode)
    before = decoded.pixels.copy()
    assert (decode(second, SIZE, ANY_SIZE, mode).pixels != before).any()
    np.testing.assert_array_equal(decoded.pixels, before)


def test_real_phantoms_are_what_pillow_makes_of_them(drawn_source, dataset):
    opened = Dataset.open(dataset)
    rows = np.array([0, 20, 41])
    for row, stored in zip(rows, opened.images(rows), strict=True):
        picture = np.asarray(Image.open(drawn_source.path / opened.manifest["source_uri"][row]).convert("RGB"))
        expected = cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(stored - expected).mean() < 1.5


def test_modes_of_resizing():
    """A wide image, black at its left and right ends."""
    wide = np.full((40, 80, 3), 200, np.uint8)
    wide[:, :10] = wide[:, 70:] = 0
    data = encoded("PNG", wide)
    stretched, cropped, padded = (pixels_of(data, mode=mode) for mode in ("stretch", "crop", "pad"))
    assert not stretched[:, :3].any()
    assert stretched[:, 6:26].min() > 190
    assert cropped.min() == 200, "the centre square has no black"
    assert not padded[: SIZE // 4].any()
    assert not padded[-SIZE // 4 :].any()
    assert padded[SIZE // 2, SIZE // 2, 0] == 200
    assert not padded[SIZE // 2, :3].any()


@pytest.mark.parametrize("mode", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (7, 200), (33, 31), (450, 600)])
def test_any_shape_comes_out_square(kind, mode, height, width):
    assert pixels_of(encoded(kind, noise(0, height, width)), mode=mode).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_the_orientation_that_a_camera_noted_is_applied(kind, orientation, turned):
    """EXIF 6 says: turn by 90 degrees clockwise to see it upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright_last = np.concatenate([quadrants(), quadrants()[-16:]])  # 80 high, 64 wide
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    found = decode(encoded(kind, upright_last, exif=exif, **options), SIZE, ANY_SIZE)
    assert (found.width, found.height) == ((64, 80) if turned % 2 == 0 else (80, 64))
    centres = np.ix_([6, 26], [6, 26])
    expected = np.rot90(quadrants(SIZE), turned).astype(int)
    assert np.abs(found.pixels[centres].astype(int) - expected[centres]).max() < 30


@pytest.mark.parametrize("orientation", [2, 4, 5, 7])
def test_mirrored_orientations_are_pillows(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded("PNG", quadrants(), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))).resize((SIZE, SIZE))).astype(int)
    assert np.abs(pixels_of(data) - expected)[[6, 26]][:, [6, 26]].max() < 10


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
def test_other_kinds_of_png_become_rgb(mode, expected):
    stored = pixels_of(encoded("PNG", quadrants(), mode))
    for (row, column), colour in zip([(8, 8), (8, 24), (24, 8), (24, 24)], expected, strict=True):
        if colour is not None:
            np.testing.assert_allclose(stored[row, column], colour, atol=3)


def test_a_grey_jpeg_becomes_rgb():
    np.testing.assert_allclose(pixels_of(encoded("JPEG", quadrants(), "L", quality=95))[8, 8], (76, 76, 76), atol=3)


def test_a_16_bit_png_is_scaled_to_8_bits():
    np.testing.assert_allclose(pixels_of(encoded("PNG", np.full((64, 64), 128 * 257, np.uint16))), 128)


def test_the_ending_does_not_matter_only_the_bytes(tmp_path):
    assert reason_of(encoded("PNG")) == reason_of(encoded("JPEG", quality=90)) == "accepted"


# --- masks ---


def test_a_mask_is_lesion_where_at_least_half_of_a_pixel_is_covered():
    """Four columns of the file become one: 0, 1, 2, 3 or all 4 of them are lesion."""
    covered = np.arange(SIZE) % 5
    mask = np.repeat((np.arange(4)[None, :] < covered[:, None]).reshape(1, -1), 4 * SIZE, axis=0)
    truth = decode_mask(encoded("PNG", mask.astype(np.uint8) * 255, "L"), SIZE, ANY_SIZE)
    np.testing.assert_array_equal(truth, np.broadcast_to(covered >= 2, truth.shape))


@pytest.mark.parametrize("mode", ["crop", "pad"])
def test_a_mask_is_cropped_and_padded_as_its_image_is(mode):
    mask = np.zeros((40, 80), np.uint8)
    mask[10:30, 30:50] = 255
    image = resize(np.repeat(mask[..., None], 3, axis=2), SIZE, mode)[..., 0]
    np.testing.assert_array_equal(decode_mask(encoded("PNG", mask, "L"), SIZE, ANY_SIZE, mode), image >= 128)


def test_a_mask_that_can_not_be_read_is_refused():
    with pytest.raises(RejectedError, match="unreadable_mask"):
        decode_mask(b"no mask", SIZE, ANY_SIZE)
    with pytest.raises(RejectedError, match="unreadable_mask"):
        decode_mask(encoded("PNG")[:200], SIZE, ANY_SIZE)


# --- what is refused ---


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404 Not Found</html>", "unsupported"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\xff\xd8\xff", "damaged"),
        (encoded("WEBP"), "unsupported"),
        (encoded("GIF"), "unsupported"),
        (encoded("BMP"), "unsupported"),
        (encoded("TIFF"), "unsupported"),
        (encoded("JPEG", mode="CMYK"), "colour_space"),
        (png_of(100, 100), "damaged"),
        (png_of(100, 100, data=bytes(50 * 301)), "damaged"),
        (png_of(100, 100, chunk(b"acTL", bytes(8)), data=bytes(100 * 301)), "animated"),
        (png_of(100, 100, data=bytes(100 * 301)), "accepted"),
        (png_of(8000, 8000), "too_large"),
        (png_of(20_000, 20_000), "too_large"),
        (png_of(0, 10), "unreadable"),
    ],
    ids=range(16),
)
def test_each_kind_of_fault_has_its_reason(data, reason):
    assert reason_of(data) == reason


def test_a_jpeg_over_the_limit_is_refused_before_it_is_decoded():
    data = encoded("JPEG", noise(0, 100, 100))
    assert reason_of(data, max_pixels=9999) == "too_large"
    huge = data.replace(struct.pack(">HH", 100, 100), struct.pack(">HH", 60_000, 60_000))
    assert reason_of(huge) == "too_large"


def test_transparency_is_refused_and_an_opaque_alpha_channel_is_dropped():
    seen = np.dstack([noise(1, 40, 40), np.full((40, 40), 255, np.uint8)])
    assert reason_of(encoded("PNG", seen, "RGBA")) == "accepted"
    seen[3, 3, 3] = 254
    assert reason_of(encoded("PNG", seen, "RGBA")) == "transparent"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_ends_early_is_refused(kind, share):
    data = encoded(kind)
    assert reason_of(data[: int(share * len(data))]) in ("truncated", "damaged")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_jpeg_with_a_hole_in_it_is_refused(share):
    """libjpeg fills what is missing with grey and only warns; the end marker is there."""
    data = encoded("JPEG", quality=90)
    assert reason_of(data[: int(share * len(data))] + b"\xff\xd9") in ("truncated", "damaged")


def test_a_png_whose_bytes_were_changed_is_refused_wherever_that_was():
    data = encoded("PNG")
    places = np.random.default_rng(0).integers(8, len(data) - 12, 60)
    found = {reason_of(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]) for place in places}
    assert "accepted" not in found


def test_a_jpeg_that_ends_early_is_refused_even_when_it_holds_a_thumbnail():
    """The thumbnail in the EXIF block has an end marker of its own."""
    data = encoded("JPEG", quality=90)
    block = b"Exif\0\0" + encoded("JPEG", quality=10)
    whole = data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    assert reason_of(whole) == "accepted"
    assert reason_of(whole[: len(whole) - len(data) // 2]) == "truncated"


@pytest.mark.parametrize("trailer", [b"\0" * 10, b"\0" * 512], ids=len)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_whole_file_with_a_trailer_is_not_called_truncated(kind, trailer):
    """Cameras and copying tools append padding and vendor blocks."""
    assert reason_of(encoded(kind) + trailer) == "accepted"
