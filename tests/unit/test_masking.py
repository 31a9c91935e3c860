"""How masks reach a model: the shape and the meaning of each mode."""

import numpy as np
import pytest

from dermaflow.masking import CROP_MARGIN, apply_masks, channels_of

SIZE = 60
TOP, BOTTOM, LEFT, RIGHT = 20, 40, 10, 50  # the lesion: 20 rows, 40 columns


@pytest.fixture
def lesion():
    """Noise as skin, a smooth red lesion, and its mask."""
    image = np.random.default_rng(0).integers(1, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    image[0, TOP:BOTTOM, LEFT:RIGHT] = (200, 30, 20)
    mask = np.zeros((1, SIZE, SIZE), np.uint8)
    mask[0, TOP:BOTTOM, LEFT:RIGHT] = 1
    return image, mask


@pytest.mark.parametrize("mode", ["none", "crop", "channel", "background_off"])
def test_each_mode_keeps_size_and_type_and_has_its_number_of_channels(lesion, mode):
    image, mask = lesion
    before = image.copy()
    batch = apply_masks(np.repeat(image, 3, axis=0), np.repeat(mask, 3, axis=0), mode)
    assert batch.shape == (3, SIZE, SIZE, channels_of(mode))
    assert batch.dtype == np.uint8
    np.testing.assert_array_equal(image, before, "the input was changed")


def test_none_is_the_image_with_or_without_a_mask(lesion):
    image, mask = lesion
    np.testing.assert_array_equal(apply_masks(image, None, "none"), image)
    np.testing.assert_array_equal(apply_masks(image, mask, "none"), image)


def test_channel_appends_the_mask(lesion):
    image, mask = lesion
    result = apply_masks(image, mask, "channel")
    np.testing.assert_array_equal(result[..., :3], image)
    np.testing.assert_array_equal(result[..., 3], mask * 255)


def test_background_off_keeps_the_lesion_and_nothing_else(lesion):
    image, mask = lesion
    result = apply_masks(image, mask, "background_off")
    np.testing.assert_array_equal(result[mask == 1], image[mask == 1])
    assert not result[mask == 0].any()


def test_crop_fills_the_image_with_the_lesion_and_a_rim(lesion):
    image, mask = lesion
    result = apply_masks(image, mask, "crop")[0].astype(int)
    red = (np.abs(result - (200, 30, 20)) < 3).all(axis=-1)
    rim = CROP_MARGIN / (1 + 2 * CROP_MARGIN)
    share = (1 - 2 * rim) ** 2
    assert red.mean() == pytest.approx(share, abs=0.08)
    for side in (red[: int(0.5 * rim * SIZE)], red[-int(0.5 * rim * SIZE) :], red[:, : int(0.5 * rim * SIZE)]):
        assert side.mean() < 0.1, "the rim is skin"
    middle = slice(SIZE // 4, 3 * SIZE // 4)
    assert red[middle, middle].all()


def test_a_lesion_at_the_border_is_cropped_to_the_image(lesion):
    image, _ = lesion
    mask = np.zeros((1, SIZE, SIZE), np.uint8)
    mask[0, :30, :30] = 1
    assert apply_masks(image, mask, "crop").shape == image.shape
    mask[:] = 1
    np.testing.assert_array_equal(apply_masks(image, mask, "crop"), image)


def test_a_lesion_of_one_pixel_is_cropped_to_its_colour(lesion):
    image, mask = lesion
    mask[:] = 0
    mask[0, 5, 7] = 1
    assert (apply_masks(image, mask, "crop")[0] == image[0, 5, 7]).all()


@pytest.mark.parametrize("mode", ["crop", "background_off"])
def test_an_empty_mask_leaves_its_image_and_only_its_image(lesion, mode):
    image, mask = lesion
    batch = apply_masks(np.repeat(image, 2, axis=0), np.concatenate([np.zeros_like(mask), mask]), mode)
    np.testing.assert_array_equal(batch[0], image[0])
    assert (batch[1] != image[0]).any()


def test_an_empty_mask_is_an_empty_channel(lesion):
    image, mask = lesion
    assert not apply_masks(image, np.zeros_like(mask), "channel")[..., 3].any()


@pytest.mark.parametrize("mode", ["crop", "channel", "background_off"])
def test_a_mode_that_needs_masks_says_so(lesion, mode):
    with pytest.raises(ValueError, match=f"mode '{mode}' needs masks"):
        apply_masks(lesion[0], None, mode)
