"""What is measured on an image: on drawn images where the answer is known."""

import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from components.ingest.properties import PROPERTIES, SIDE, hair_axes, properties, properties_of, reduced
from dermaflow import dataset


def skin(side=224, level=180):
    """Even skin of a brownish pink, with a little noise."""
    noise = np.random.default_rng(1).normal(0, 3, (side, side, 1))
    return np.clip(np.array([level, 0.78 * level, 0.68 * level]) + noise, 0, 255).astype(np.uint8)


def with_hairs(image, count=12, width=2):
    drawn, out = np.random.default_rng(2), image.copy()
    for _ in range(count):
        (x, y), angle = drawn.uniform(30, len(image) - 30, 2), drawn.uniform(0, np.pi)
        dx, dy = 0.4 * len(image) * np.cos(angle), 0.4 * len(image) * np.sin(angle)
        cv2.line(out, (int(x - dx), int(y - dy)), (int(x + dx), int(y + dy)), (40, 25, 20), width, cv2.LINE_AA)
    return out


def test_the_names_are_those_of_the_manifest():
    assert tuple(properties(skin())) == PROPERTIES == dataset.PROPERTIES


def test_brightness_contrast_and_entropy_of_halves():
    image = np.zeros((224, 224, 3), np.uint8)
    image[:, 112:] = 200
    found = properties(image)
    assert found["brightness"] == pytest.approx(100)
    assert found["contrast"] == pytest.approx(100)
    assert found["entropy"] == pytest.approx(1)


def test_an_even_image_has_no_contrast_entropy_or_edges():
    found = properties(np.full((224, 224, 3), 128, np.uint8))
    assert [found["contrast"], found["entropy"], found["sharpness"]] == pytest.approx([0, 0, 0], abs=1e-4)


def test_blur_lowers_sharpness_step_by_step():
    image = with_hairs(skin())
    found = [properties(cv2.GaussianBlur(image, (0, 0), sigma) if sigma else image)["sharpness"] for sigma in (0, 1, 2, 4)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 20 * found[-1]


@pytest.mark.parametrize("turn", range(4))
def test_hairs_in_any_direction_are_found(turn):
    hairy = properties(np.ascontiguousarray(np.rot90(with_hairs(skin()), turn)))["hair_share"]
    assert hairy > 0.003
    assert properties(skin())["hair_share"] == 0


def test_more_hair_is_a_larger_share():
    shares = [properties(with_hairs(skin(), count))["hair_share"] for count in (2, 6, 20)]
    assert shares == sorted(shares)


def test_dots_and_the_rim_of_a_lesion_are_no_hair():
    image = cv2.circle(skin(), (112, 112), 60, (90, 55, 45), -1, cv2.LINE_AA)
    for x in range(20, 220, 20):
        cv2.circle(image, (x, 20), 2, (40, 25, 20), -1, cv2.LINE_AA)
    assert properties(image)["hair_share"] < 0.0005


def test_the_axis_of_a_hair_lies_on_the_hair():
    grey = np.full((SIDE, SIDE), 180, np.uint8)
    grey[:, 60] = 60
    found = hair_axes(grey)
    margin = (SIDE - found.shape[1]) // 2
    assert found.any()
    assert set(np.flatnonzero(found.any(axis=0)) + margin) == {60}


def test_a_dark_frame_is_told_and_a_dark_lesion_is_not():
    across = np.hypot(*np.mgrid[-1:1:224j, -1:1:224j])
    framed = np.where((across > 0.95)[..., None], 8, skin()).astype(np.uint8)
    lesion = cv2.circle(skin(), (112, 112), 70, (20, 15, 12), -1)
    assert properties(framed)["vignette_share"] > 0.9
    assert properties(lesion)["vignette_share"] == 0


@pytest.mark.parametrize("colour", [(40, 60, 200), (110, 50, 170)], ids=["blue", "violet"])
def test_marker_ink_at_the_rim_is_told_and_a_blue_lesion_is_not(colour):
    marked = cv2.line(skin(), (10, 10), (10, 210), colour, 8)
    lesion = cv2.circle(skin(), (112, 112), 40, (60, 70, 140), -1)
    assert properties(marked)["ink_share"] > 0.01
    assert properties(lesion)["ink_share"] == 0


def test_measures_hardly_follow_the_size_at_which_an_image_is_kept():
    large = with_hairs(skin(448), width=4)
    found = [properties(cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA)) for side in (224, 448)]
    for name in PROPERTIES:
        assert found[0][name] == pytest.approx(found[1][name], rel=0.15, abs=0.001), name


@pytest.mark.parametrize("side", [32, 72, 224, 1024])
def test_every_size_that_parameters_allow_is_measured_within_its_ranges(side):
    found = properties(np.random.default_rng(5).integers(0, 256, (side, side, 3), np.uint8))
    assert 0 <= found["brightness"] <= 255
    assert 0 <= found["entropy"] <= 8
    for name in ("hair_share", "vignette_share", "ink_share"):
        assert 0 <= found[name] <= 1


def test_threads_measure_what_one_measures():
    pictures = [with_hairs(skin(level=level), count=level // 30) for level in range(60, 240, 5)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(properties, pictures)) == [properties(picture) for picture in pictures]


@pytest.mark.parametrize("together", [1, 3, 8])
def test_an_image_measures_the_same_in_any_company(together):
    pictures = [with_hairs(skin(level=level), count=level // 30) for level in range(60, 240, 20)] + [skin(level=255)]
    found = []
    for start in range(0, len(pictures), together):
        grey, coloured = map(np.stack, zip(*map(reduced, pictures[start : start + together]), strict=True))
        found += [dict(zip(PROPERTIES, row, strict=True)) for row in zip(*properties_of(grey, coloured).values(), strict=True)]
    assert found == [properties(picture) for picture in pictures]


def test_measuring_costs_a_fraction_of_decoding():
    """0.1 ms on a quiet core; a JPEG of 600 x 450 costs 4. The bound leaves room for a busy machine."""
    image = with_hairs(skin())
    times = []
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(20):
            properties(image)
        times.append((time.perf_counter() - started) / 20)
    assert min(times) < 0.0004
