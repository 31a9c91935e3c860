"""Segmentation on drawn lesions: outlines found under hair, shading and black corners; artifact, figures and gate."""

import json
import math
import os

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans

from components.segment import core, kmeans_mask
from components.segment.core import lesion_mask, overlap, segment
from components.segment.kmeans_mask import two_means
from dermaflow.artifacts import changed_files, new_artifact, open_artifact, write_json
from dermaflow.contracts import MASKS, masks_of, read_info, read_table
from dermaflow.dataset import KIND, MANIFEST_COLUMNS, Dataset
from dermaflow.errors import GateError, InputError
from dermaflow.params import SegmentParams

SIDE = 128
PARAMS = SegmentParams(working_size=112, min_area_share=0.01, max_area_share=0.90, min_dice=0.50)
SKIN, NEVUS, PALE = (222, 172, 160), (120, 70, 55), (205, 140, 135)


def skin(seed=0):
    """Skin with the noise of a sensor, uint8 [SIDE, SIDE, 3]."""
    noise = np.random.default_rng(seed).normal(0, 4, (SIDE, SIDE, 3))
    return np.clip(np.asarray(SKIN) + noise, 0, 255).astype(np.uint8)


def with_lesion(colour=NEVUS, centre=(64, 64), axes=(26, 20), seed=0):
    """Skin with an oval lesion, and its true mask."""
    truth = cv2.ellipse(np.zeros((SIDE, SIDE), np.uint8), centre, axes, 25, 0, 360, 1, -1)
    edge = cv2.GaussianBlur(truth.astype(np.float32), (0, 0), 1.5)[..., None]
    image = skin(seed) * (1 - edge) + (np.asarray(colour) + skin(seed + 1) - np.asarray(SKIN)) * edge
    return np.clip(image, 0, 255).astype(np.uint8), truth


def radius():
    """Distance of each pixel from the middle, in half sides."""
    axis = (2 * np.arange(SIDE) + 1) / SIDE - 1
    return np.hypot(axis, axis[:, None])[..., None]


def hairy(image):
    image = image.copy()
    for offset in range(-100, 128, 24):
        cv2.line(image, (offset, 0), (offset + 110, SIDE), (45, 35, 30), 2, cv2.LINE_AA)
    return image


def in_a_round_field(image):
    return np.where(radius() > 1.05, 8, image * (1 - 0.35 * radius() ** 2)).astype(np.uint8)


def lit_from_one_side(image):
    return (image * np.linspace(0.62, 1, SIDE)[None, :, None]).astype(np.uint8)


def beside_ink(image):
    image = image.copy()
    image[:, :14] = (40, 50, 130)
    return image


@pytest.mark.parametrize("nuisance", [np.copy, hairy, in_a_round_field, lit_from_one_side, beside_ink])
@pytest.mark.parametrize("colour", [NEVUS, PALE], ids=["nevus", "pale"])
def test_finds_the_lesion_whatever_else_is_dark(nuisance, colour):
    image, truth = with_lesion(colour)
    found = lesion_mask(nuisance(image), PARAMS)
    assert not found.fallback
    assert overlap(found.mask, truth)[0] > 0.85
    assert found.border_contact == 0


@pytest.mark.parametrize(
    ("centre", "axes"), [((64, 64), (7, 6)), ((38, 84), (14, 18)), ((64, 64), (52, 46)), ((20, 64), (34, 30))]
)
def test_finds_small_large_and_off_centre_lesions(centre, axes):
    image, truth = with_lesion(centre=centre, axes=axes)
    assert overlap(lesion_mask(image, PARAMS).mask, truth)[0] > 0.7  # the margin weighs most on the smallest


def test_a_lesion_may_be_lighter_than_the_skin():
    image, truth = with_lesion(colour=(248, 232, 226))
    assert overlap(lesion_mask(image, PARAMS).mask, truth)[0] > 0.85


@pytest.mark.parametrize("working_size", [32, 64, 128, 200])
def test_the_outline_hardly_depends_on_the_working_size(working_size):
    image, truth = with_lesion()
    found = lesion_mask(image, PARAMS.model_copy(update={"working_size": working_size}))
    assert found.mask.shape == truth.shape
    assert overlap(found.mask, truth)[0] > 0.85


def test_a_mask_is_one_region_without_holes():
    image, _ = with_lesion()
    image[58:70, 58:70] = SKIN  # skin in the middle of the lesion
    image[4:20, 4:20] = NEVUS  # a second, smaller lesion
    found = lesion_mask(image, PARAMS)
    regions = cv2.connectedComponents(found.mask)[0] - 1
    holes = cv2.connectedComponents(1 - found.mask, connectivity=4)[0] - 2
    assert (regions, holes, found.components) == (1, 0, 2)
    assert found.mask.dtype == np.uint8
    assert set(np.unique(found.mask)) == {0, 1}


@pytest.mark.parametrize(
    "image",
    [skin(), np.full((SIDE, SIDE, 3), 128, np.uint8), np.zeros((SIDE, SIDE, 3), np.uint8)],
    ids=["skin", "grey", "black"],
)
def test_an_image_without_a_lesion_gets_a_flagged_ellipse(image):
    found = lesion_mask(image, PARAMS)
    assert found.fallback
    assert found.components == 0
    assert found.mask[64, 64] == 1
    assert 0.2 < found.mask.mean() < 0.4


def test_an_area_out_of_bounds_is_not_believed():
    image, _ = with_lesion()
    assert lesion_mask(image, PARAMS.model_copy(update={"max_area_share": 0.05})).fallback
    assert lesion_mask(image, PARAMS.model_copy(update={"min_area_share": 0.50})).fallback


def test_two_means_ends_where_scikit_learn_does():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(0, 1, (300, 4)), rng.normal(1.5, 1, (200, 4))]).astype(np.float32)
    start = np.arange(500) % 3 == 0
    member = two_means(points.T.copy(), start)
    reference = KMeans(2, init=np.stack([points[~start].mean(0), points[start].mean(0)]), n_init=1, tol=0).fit(points)
    assert np.array_equal(member, reference.labels_ == 1)


def test_k_means_converges_before_its_limit(monkeypatch):
    image, _ = with_lesion(PALE)
    before = lesion_mask(image, PARAMS).mask
    monkeypatch.setattr(kmeans_mask, "MAX_ITERATIONS", 10_000)
    assert np.array_equal(lesion_mask(image, PARAMS).mask, before)


# --- the artifact ---

LESIONS = [
    ("nv", {"axes": (30, 18)}),
    ("mel", {"centre": (50, 70)}),
    ("nv", {"axes": (12, 12)}),
    ("df", {"colour": PALE}),
    ("mel", {"axes": (44, 36)}),
    ("nv", {"centre": (76, 52)}),
    ("df", {"axes": (18, 24)}),
]


def dataset_at(path, *, with_truth=True, wrong_truth=False):
    """A Dataset of seven drawn lesions in two shards; one of them, the last, never has an expert mask."""
    drawn = [with_lesion(**how, seed=seed) for seed, (_, how) in enumerate(LESIONS)]
    shards, places = [0, 0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 0, 1, 2]
    manifest = pd.DataFrame({column: [""] * len(drawn) for column in MANIFEST_COLUMNS})
    manifest["image_id"] = [f"PHI_{9 - number}" for number in range(len(drawn))]
    manifest["label"] = [label for label, _ in LESIONS]
    manifest["has_truth"] = [with_truth and number < len(drawn) - 1 for number in range(len(drawn))]
    manifest["shard"], manifest["row"] = shards, places
    with new_artifact(path, KIND) as folder:
        for shard in (0, 1):
            images, truths = map(
                np.stack, zip(*[pair for pair, at in zip(drawn, shards, strict=True) if at == shard], strict=True)
            )
            np.save(folder / f"shard-{shard:05d}.npy", images)
            if with_truth:
                truths = truths[:, :, ::-1] * 0 + (np.indices((SIDE, SIDE))[0] < 12) if wrong_truth else truths
                np.save(folder / f"truth-{shard:05d}.npy", np.packbits(truths.astype(np.uint8), axis=-1))
        manifest.to_parquet(folder / "manifest.parquet", index=False)
        pd.DataFrame({"uri": [], "reason": []}).to_parquet(folder / "rejects.parquet", index=False)
        info = {
            "class_order": ["df", "mel", "nv"],
            "image_size": SIDE,
            "source": {"synthetic": True, "dvc_revision": None},
            "content_digest": "sha256:0",
        }
        write_json(folder / "dataset.json", info)
    return path


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    root = tmp_path_factory.mktemp("segment")
    info = segment(dataset_at(root / "dataset"), PARAMS, root / "masks")
    return Dataset.open(root / "dataset"), root / "masks", info


def test_masks_lie_row_by_row_beside_the_images(masked):
    dataset, masks, _ = masked
    for shard in dataset.shards:
        images, found = np.load(dataset.artifact.path / f"shard-{shard:05d}.npy"), np.load(masks / f"mask-{shard:05d}.npy")
        assert found.dtype == np.uint8
        assert found.shape == images.shape[:3]
        for image, mask in zip(images, found, strict=True):
            assert np.array_equal(mask, lesion_mask(image, PARAMS).mask)
    assert masks_of(masks, dataset, np.arange(len(LESIONS))).max() == 1


def test_the_table_can_be_recomputed_from_the_masks(masked):
    dataset, masks, _ = masked
    rows = np.arange(len(LESIONS))
    table, found, truth = read_table(masks, MASKS, "masks.parquet"), masks_of(masks, dataset, rows), dataset.truth(rows)
    columns = ["image_id", "area_share", "components", "border_contact", "fallback", "dice", "jaccard"]
    assert list(table.columns) == columns
    assert list(table["image_id"]) == list(dataset.manifest["image_id"])
    assert np.allclose(table["area_share"], found.mean(axis=(1, 2)))
    both, either = (found & truth).sum(axis=(1, 2)), (found | truth).sum(axis=(1, 2))
    assert np.allclose(table["jaccard"][:-1], (both / either)[:-1])
    assert np.allclose(table["dice"][:-1], (2 * both / (both + either))[:-1])
    assert table["dice"].isna().tolist() == [False] * 6 + [True]
    assert table["dice"].min() > 0.8


def test_the_figures_are_means_of_the_table(masked):
    dataset, masks, info = masked
    table = read_table(masks, MASKS, "masks.parquet").assign(label=dataset.manifest["label"])
    by_class = table.groupby("label")["dice"].mean()
    assert read_info(masks, MASKS) == info
    assert (info["n_images"], info["n_with_truth"], info["fallback_share"]) == (7, 6, 0.0)
    assert math.isclose(info["mean_dice"], table["dice"].mean())
    for values in (info, *info["classes"].values()):
        for name in ("dice", "jaccard"):
            low, high = values[f"{name}_interval"]
            assert 0 <= low <= values[f"mean_{name}"] <= high <= 1
    assert math.isclose(info["mean_dice_without_fallback"], table.loc[~table["fallback"], "dice"].mean())
    assert math.isclose(info["mean_jaccard"], table["jaccard"].mean())
    assert math.isclose(info["mean_dice_over_classes"], by_class.mean())
    assert {name: values["mean_dice"] for name, values in info["classes"].items()} == pytest.approx(by_class.to_dict())
    assert info["params"] == PARAMS.model_dump()


def test_the_artifact_is_whole_and_has_a_picture(masked):
    artifact = open_artifact(masked[1], MASKS)
    assert set(artifact.files) == {"mask-00000.npy", "mask-00001.npy", "masks.parquet", "masks.json", "gallery.png"}
    assert not changed_files(artifact)
    picture = cv2.imread(str(masked[1] / "gallery.png"))
    assert min(picture.shape[:2]) > 200


def test_the_same_images_give_the_same_bytes_and_progress_is_told(masked, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # one worker instead of one a core
    segment(masked[0].artifact.path, PARAMS, tmp_path / "again")
    assert open_artifact(tmp_path / "again", MASKS).digest == open_artifact(masked[1], MASKS).digest
    last = json.loads(capfd.readouterr().err.strip().splitlines()[-1].split(" ", 1)[1])
    assert last == {"event": "progress", "text": "segmenting", "done": 7, "total": 7}


def test_forked_processes_write_the_same_bytes(masked, tmp_path, monkeypatch):
    monkeypatch.setattr(core, "_WORTH_A_FORK", 1)
    monkeypatch.setattr(core, "_BATCH", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    segment(masked[0].artifact.path, PARAMS, tmp_path / "again")
    assert open_artifact(tmp_path / "again", MASKS).digest == open_artifact(masked[1], MASKS).digest


def test_without_expert_masks_there_are_masks_but_no_figures(tmp_path):
    info = segment(dataset_at(tmp_path / "dataset", with_truth=False), PARAMS, tmp_path / "masks")
    assert info["n_with_truth"] == 0
    assert info["mean_dice"] is None
    assert info["mean_dice_over_classes"] is None
    assert info["classes"]["nv"]["mean_jaccard"] is None
    assert read_table(tmp_path / "masks", MASKS, "masks.parquet")["dice"].isna().all()
    assert (tmp_path / "masks" / "gallery.png").stat().st_size > 10_000


def test_masks_that_miss_the_experts_stop_the_run(tmp_path):
    dataset_at(tmp_path / "dataset", wrong_truth=True)
    with pytest.raises(GateError, match=r"0\.0\d\d; segment\.min_dice asks for at least 0\.5\b.*lower segment\.min_dice"):
        segment(tmp_path / "dataset", PARAMS, tmp_path / "masks")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


def test_a_folder_that_is_no_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a finished dataset artifact"):
        segment(tmp_path, PARAMS, tmp_path / "masks")
