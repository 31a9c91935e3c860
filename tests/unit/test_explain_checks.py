"""What maps are worth: insertion and deletion, stability, shuffled weights, a second method; and going on after an end."""

from __future__ import annotations

import numpy as np
import pytest

from components.explain import measures, perturbation, randomisation
from components.explain.cells import CELLS, cell_sums, cells_of, similarity
from components.explain.checks import SHARES, sample
from components.explain.second_method import partition_map
from dermaflow import contracts
from dermaflow.artifacts import open_artifact
from tests.unit.test_explain import PARAMS, SIZE, region_model, write_run

SEEN = np.zeros((SIZE, SIZE), np.float32)
SEEN[8:24, 24:40] = 1  # where region_model looks


@pytest.mark.parametrize("size", [46, 56, 72, 224])
def test_cells_cover_the_image_and_sums_keep_the_total(size: int):
    values = np.random.default_rng(0).normal(size=(size, size))
    assert np.bincount(cells_of(size).reshape(-1)).min() >= (size // CELLS) ** 2
    assert cell_sums(values).shape == (CELLS * CELLS,)
    assert cell_sums(values).sum() == pytest.approx(values.sum())


def test_similarity_is_spearmans():
    from scipy.stats import spearmanr

    one, other = np.random.default_rng(1).normal(size=(2, 56, 56))
    assert similarity(one, other) == pytest.approx(spearmanr(cell_sums(one), cell_sums(other)).statistic)
    assert similarity(one, 3 * one + 1) == pytest.approx(1)
    assert np.isnan(similarity(one, np.zeros_like(one)))


def share_of_region(image: np.ndarray, smooth: np.ndarray, region: np.ndarray):
    """A "model" whose probability is the share of a region's pixels that are the image's, not the blurred ones."""
    differs = (image != smooth).any(axis=-1) & (region > 0)
    assert differs.any()

    def predict(frames: np.ndarray) -> np.ndarray:
        return np.array([(frame == image).all(axis=-1)[differs].mean() for frame in frames])

    return predict


def test_insertion_and_deletion_are_the_areas_under_the_curves():
    """Of a model that answers with the share of one cell row that is there: by hand."""
    image = np.random.default_rng(2).uniform(0, 255, (56, 56, 3)).astype(np.float32)
    region = np.zeros((56, 56))
    region[:4] = 1  # the first row of cells: 14 of 196, so all of them are taken in the first of ten steps
    told = perturbation.perturbed(image, region, share_of_region(image, perturbation.blurred(image), region), seed=0)
    assert told["insertion"] == pytest.approx((0.5 + 9) / 10)  # 0, 1, 1, ...
    assert told["deletion"] == pytest.approx(0.5 / 10)
    assert told["insertion_random"] == pytest.approx(0.5, abs=0.15)
    assert told["deletion_random"] == pytest.approx(1 - told["insertion_random"])
    assert told["insertion_centre"] < 0.5 < told["deletion_centre"]  # the row is at the border


def test_a_mask_channel_is_neither_blurred_nor_deleted():
    image = np.random.default_rng(3).uniform(0, 255, (56, 56, 4)).astype(np.float32)
    seen = []

    def predict(frames: np.ndarray) -> np.ndarray:
        seen.append(frames[..., 3])
        return np.zeros(len(frames))

    perturbation.perturbed(image, image[..., 0], predict, seed=0)
    assert all((channel == image[..., 3]).all() for channel in seen)


def test_shuffling_goes_from_the_answer_downwards_and_leaves_no_trace():
    from dermaflow.architectures import build_model

    model = build_model("resnet50", classes=7, size=48, dropout=0.5, seed=1)
    before = {weight.path: weight.numpy() for weight in model.weights}
    kernels = {path for path, value in before.items() if value.ndim > 1}
    changed: set[str] = set()
    with randomisation.cascade(model, seed=0) as stages:
        for stage in stages:
            now = {weight.path: weight.numpy() for weight in model.weights}
            differing = {path for path, value in now.items() if (value != before[path]).any()}
            assert changed < differing <= kernels
            assert all(np.array_equal(np.sort(now[path], axis=None), np.sort(before[path], axis=None)) for path in differing)
            if stage == 1:
                assert differing == {"logits/kernel"}
            if stage == 2:
                assert any("conv5" in path for path in differing)
                assert not any("conv2" in path for path in differing)
            changed = differing
    assert changed == kernels
    assert all((weight.numpy() == before[weight.path]).all() for weight in model.weights)


def test_weights_come_back_also_when_a_check_fails():
    model = region_model()
    before = model.get_weights()

    def broken() -> None:
        with randomisation.cascade(model, seed=0) as stages:
            next(stages)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert all((old == new).all() for old, new in zip(before, model.get_weights(), strict=True))


def test_the_second_method_finds_where_the_model_looks():
    model, image = region_model(), np.random.default_rng(4).uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32)
    found = partition_map(image, lambda inputs: model(inputs).numpy()[:, 0])
    assert np.abs(found * SEEN).sum() > 0.75 * np.abs(found).sum()  # a ninth of the area; rectangles reach over its border


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """A run's artifacts, and their undisturbed explanation."""
    from components.explain.core import explain

    folder = tmp_path_factory.mktemp("explained")
    paths = write_run(folder, region_model())
    return paths, explain(*paths, PARAMS, folder / "explanation", state=folder / "state"), folder / "explanation"


def test_each_check_tells_on_how_many_images_it_rests(explained):
    _, told, target = explained
    table = contracts.read_table(target, contracts.EXPLANATION, "attributions.parquet")
    overall = told["summary"]["overall"]
    for column in ("insertion", "stability", "agreement"):
        assert table[column].notna().tolist() == [True] * 2 + [False] * 3
        assert (overall[column]["n"], overall[column]["low"]) == (2, None)  # too few for an interval
        assert overall[column]["estimate"] == pytest.approx(table[column].mean())
    assert overall["concentration"]["n"] == overall["images"] == 5
    low, high = overall["concentration"]["low"], overall["concentration"]["high"]
    assert low <= overall["concentration"]["estimate"] <= high
    difference = (table["insertion"] - table["insertion_random"]).mean()
    assert overall["insertion_over_random"]["estimate"] == pytest.approx(difference)
    stages = contracts.read_table(target, contracts.EXPLANATION, "randomisation.parquet")
    assert len(stages) == 2 * len(told["checks"]["randomisation"]["stages"])
    for row in told["checks"]["randomisation"]["stages"]:
        of_stage = stages[stages["stage"] == row["stage"]]
        assert row["similarity"]["estimate"] == pytest.approx(of_stage["similarity"].mean())


def test_maps_hold_against_another_background_and_not_against_other_weights(explained):
    _, told, _ = explained
    last = told["checks"]["randomisation"]["stages"][-1]
    assert told["summary"]["overall"]["stability"]["estimate"] > last["similarity"]["estimate"]
    assert last["similarity"]["estimate"] < 0.9


def test_each_check_takes_its_share_of_the_images_and_two_at_least():
    images = list(range(200))
    assert {name: len(sample(images, name)) for name in SHARES} == {
        "insertion": 50, "stability": 30, "randomisation": 20, "second_method": 5,
    }  # fmt: skip
    assert all(sample(images[:5], name) == [0, 1] for name in ("stability", "randomisation", "second_method"))


def test_an_explanation_that_is_ended_goes_on_and_comes_to_the_same_bytes(explained, tmp_path, monkeypatch):
    from components.explain.attribution import LogitExplainer
    from components.explain.core import explain

    paths, _, undisturbed = explained
    attribute, calls = LogitExplainer.attribute, []

    def counted(self, image, logit):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return attribute(self, image, logit)

    monkeypatch.setattr(LogitExplainer, "attribute", counted)
    with pytest.raises(KeyboardInterrupt):
        explain(*paths, PARAMS, tmp_path / "explanation", state=tmp_path / "state")
    assert not (tmp_path / "explanation").exists()
    kept = sorted((tmp_path / "state").rglob("*.npz"))
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # a file that is damaged is made anew
    explain(*paths, PARAMS, tmp_path / "explanation", state=tmp_path / "state")
    attributed = len(contracts.read_table(undisturbed, contracts.EXPLANATION, "evidence.parquet"))  # wrong answers: twice
    whole = attributed + 2 + 2 * randomisation.STAGES  # attributions, stability, randomisation
    assert len(calls) in (whole + 1, whole + 2)  # the one that was ended, and the damaged one if it was an attribution
    files = [open_artifact(folder, contracts.EXPLANATION).files for folder in (tmp_path / "explanation", undisturbed)]
    assert files[0] == files[1]
    assert not list((tmp_path / "state").rglob("*.npz"))


def test_the_measures_name_every_column(explained):
    table = contracts.read_table(explained[2], contracts.EXPLANATION, "attributions.parquet")
    assert set(measures.COLUMNS) <= set(table)
