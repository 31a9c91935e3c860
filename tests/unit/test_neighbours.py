"""Near duplicates: the same skin is found through turns, zooms and light; strangers are not; a grown set equals a new one."""

import cv2
import numpy as np
import pandas as pd
import pytest

from components.ingest import neighbours
from components.ingest.neighbours import find_neighbours, perceptual_hash, signature
from components.ingest.thumbnail import perceptual_hashes, signatures, thumbnail
from dermaflow.phantom import draw_phantoms

SIZE = 224  # px


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """One image of each of 29 lesions, by lesion id, uint8 RGB [224, 224, 3]."""
    folder = tmp_path_factory.mktemp("drawn") / "source"
    draw_phantoms(folder, images=42, seed=3, size=(300, 225), workers=1)
    metadata = pd.read_csv(folder / "HAM10000_metadata.csv").drop_duplicates("lesion_id")
    return {
        row.lesion_id: squared(cv2.imread(str(folder / "images" / f"{row.image_id}.jpg"))[..., ::-1])
        for row in metadata.itertuples()
    }


@pytest.fixture(scope="module")
def lesion(phantoms):
    """A lesion with marks."""
    return next(iter(phantoms.values()))


def squared(pixels):
    return cv2.resize(np.ascontiguousarray(pixels), (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def zoomed(pixels, times, right=0, down=0):
    """The part of the picture around a place off its centre (in pixels), `times` as large."""
    half = SIZE / times / 2
    top, left = (round(SIZE / 2 + shift - half) for shift in (down, right))
    return cv2.resize(pixels[top : top + round(2 * half), left : left + round(2 * half)], (SIZE, SIZE))


def recompressed(pixels, quality):
    return cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def in_other_light(pixels, gain, offset):
    return np.clip(pixels * np.array(gain) + offset, 0, 255).astype(np.uint8)


def tilted(pixels, degrees):
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, 1.15)
    return cv2.warpAffine(pixels, matrix, (SIZE, SIZE))


def turned(pixels):
    """The picture in its eight flips and right-angle turns."""
    return [np.ascontiguousarray(np.rot90(one, turns)) for one in (pixels, pixels[:, ::-1]) for turns in range(4)]


def search(pictures, **earlier):
    """Near duplicates among pictures by image id."""
    ids = pd.Series(list(pictures), dtype=str)
    pixels = np.stack(list(pictures.values())) if pictures else np.empty((0, SIZE, SIZE, 3), np.uint8)
    digests = pd.Series([str(hash(one.tobytes())) for one in pixels], dtype=str)
    signatures = np.array([signature(one) for one in pixels], np.uint8).reshape(len(ids), neighbours.SIGNATURE_LENGTH)
    return find_neighbours(ids, digests, signatures, lambda rows: pixels[rows], **earlier)


def found(pictures):
    return set(zip(*search(pictures)[["image_a", "image_b"]].to_numpy().T, strict=True)) if pictures else set()


# --- what is found ---


@pytest.mark.parametrize("turn", range(1, 8))
def test_a_flipped_or_turned_image_is_found(lesion, turn):
    assert found({"a": lesion, "b": turned(lesion)[turn]}) == {("a", "b")}


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: zoomed(pixels, 1.4),
        lambda pixels: zoomed(pixels, 2.0),
        lambda pixels: zoomed(pixels, 1.6, right=12, down=-10),
        lambda pixels: tilted(pixels, 5),
        lambda pixels: in_other_light(pixels, [1.04, 1.0, 0.96], 4),
        lambda pixels: in_other_light(pixels, 0.88, 0),
        lambda pixels: recompressed(pixels, 50),
        lambda pixels: recompressed(in_other_light(zoomed(pixels, 1.5), 0.95, 3), 70),
    ],
    ids=["zoom", "much zoom", "zoom off centre", "tilt", "tint", "less light", "recompression", "all together"],
)
def test_the_same_skin_is_found(phantoms, change):
    first = list(phantoms.values())[:12]
    pictures = {
        f"{number:02d}{side}": one
        for number, pixels in enumerate(first)
        for side, one in (("a", pixels), ("b", change(pixels)))
    }
    hits = {(a[:2], b[:2]) for a, b in found(pictures)}
    assert len(hits) >= 10, "a lesion without marks may be missed"
    assert all(a == b for a, b in hits), "no stranger is taken for it"


def test_different_lesions_are_not_taken_for_one(phantoms):
    assert len(phantoms) > 25
    assert found(phantoms) == set()


def test_a_score_is_higher_the_closer_the_images_are(lesion):
    pairs = search({"a": lesion, "near": recompressed(lesion, 80), "zoomed": zoomed(lesion, 1.5)}).set_index("image_b")
    assert pairs.loc["near", "score"].max() > pairs.loc["zoomed", "score"].max() >= neighbours.LEAST_SCORE
    assert (pairs["distance"] > 0).all(), "a distance of 0 means identical pixels"


def test_images_without_structure_are_not_all_alike():
    pictures = {f"flat {level}": np.full((SIZE, SIZE, 3), level, np.uint8) for level in (0, 90, 91, 255)}
    assert found(pictures) == set()


# --- identical pixels ---


def test_identical_images_form_a_star_around_the_smallest_id(lesion):
    pairs = search({"c": lesion, "a": lesion, "d": lesion, "b": lesion})
    assert pairs.to_numpy().tolist() == [["a", other, 0.0, 1.0] for other in "bcd"]


def test_only_one_of_identical_images_is_compared_with_others(lesion):
    pairs = search({"b": lesion, "c": lesion, "a": zoomed(lesion, 1.3)})
    assert pairs[["image_a", "image_b"]].to_numpy().tolist() == [["a", "b"], ["b", "c"]]


# --- a set that grows ---


@pytest.fixture(scope="module")
def gallery(phantoms):
    """36 pictures: lesions, re-zooms of some, copies of some."""
    originals = dict(list(phantoms.items())[:24])
    rezoomed = {f"zoom {name}": zoomed(pixels, 1.3 + 0.1 * n) for n, (name, pixels) in enumerate(list(originals.items())[:8])}
    copied = {f"{place} {name}": originals[name] for place, name in zip(("A", "Z", "A", "Z"), originals, strict=False)}
    return {**originals, **rezoomed, **copied}


@pytest.mark.parametrize("seed", range(6))
def test_a_grown_set_gives_what_a_new_run_gives(gallery, seed):
    rng = np.random.default_rng(seed)
    names = np.array(list(gallery))
    added = rng.random(len(names)) < (0.1, 0.3, 0.9)[seed % 3]
    before = search({name: gallery[name] for name in names[~added]})
    pd.testing.assert_frame_equal(search(gallery, known=before, fresh=added), search(gallery))


def test_a_changed_or_removed_image_leaves_no_trace_and_its_copies_stand_in(gallery):
    names = list(gallery)
    copied, copy = names[0], f"A {names[0]}"
    before = search(gallery)
    removed = {name: pixels for name, pixels in gallery.items() if name != copy}
    changed = {**gallery, copy: gallery[names[-1]][::-1].copy()}
    none_fresh = np.zeros(len(removed), bool)
    pd.testing.assert_frame_equal(search(removed, known=before, fresh=none_fresh), search(removed))
    pd.testing.assert_frame_equal(search(changed, known=before, fresh=np.array([n == copy for n in changed])), search(changed))
    assert copied in set(search(removed)["image_a"]) | set(search(removed)["image_b"])


def test_the_order_of_the_images_does_not_matter(gallery):
    shuffled = [list(gallery)[place] for place in np.random.default_rng(1).permutation(len(gallery))]
    pd.testing.assert_frame_equal(search({name: gallery[name] for name in shuffled}), search(gallery))


@pytest.mark.parametrize("pictures", [0, 1])
def test_nothing_and_a_single_image_have_no_neighbours(lesion, pictures):
    pairs = search(dict(list({"a": lesion}.items())[:pictures]))
    assert (len(pairs), list(pairs.columns)) == (0, ["image_a", "image_b", "distance", "score"])


# --- signature and hash ---


def test_a_signature_has_its_length_and_is_the_same_every_time(lesion):
    first = signature(lesion)
    assert (first.shape, first.dtype) == ((neighbours.SIGNATURE_LENGTH,), np.uint8)
    assert np.array_equal(first, signature(lesion.copy()))


@pytest.mark.parametrize("size", [32, 100, 224, 299])
def test_any_image_size_has_a_signature_and_a_hash(lesion, size):
    pixels = cv2.resize(lesion, (size, size), interpolation=cv2.INTER_AREA)
    assert len(signature(pixels)) == neighbours.SIGNATURE_LENGTH
    assert len(perceptual_hash(pixels)) == 16


@pytest.mark.parametrize("together", [1, 3, 8])
def test_signature_and_hash_of_an_image_are_the_same_in_any_company(phantoms, together):
    """Some have the instrument's black surround, which is then replaced by the skin of that image."""
    framed = np.hypot(*np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]) > 0.95
    pictures = [np.where((framed & (number % 2 == 0))[..., None], 0, one) for number, one in enumerate(phantoms.values())]
    small = [thumbnail(one.astype(np.uint8)) for one in pictures]
    groups = [np.stack(small[start : start + together]) for start in range(0, len(small), together)]
    assert np.array_equal(np.concatenate([signatures(group) for group in groups]), [signature(one) for one in small])
    assert [one for group in groups for one in perceptual_hashes(group)] == [perceptual_hash(one) for one in small]


def test_all_flips_and_turns_of_an_image_have_one_hash(phantoms):
    for pixels in phantoms.values():
        assert len({perceptual_hash(one) for one in turned(pixels)}) == 1


def test_hashes_of_a_recompressed_image_are_near_and_of_another_lesion_far(phantoms):
    first, second = list(phantoms.values())[:2]
    bits = [int(perceptual_hash(one), 16) for one in (first, recompressed(first, 80), second)]
    assert (bits[0] ^ bits[1]).bit_count() <= 4
    assert (bits[0] ^ bits[2]).bit_count() >= 12
