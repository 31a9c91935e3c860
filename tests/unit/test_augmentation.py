"""Augmentation: draws that need no state, weights that are kept, transforms that do what their numbers say, the plan."""

import numpy as np
import pandas as pd
import pytest

from components.augment.core import augment, plan_rows
from dermaflow.artifacts import changed_files, open_artifact
from dermaflow.augmentation import (
    UNTOUCHED,
    Purpose,
    allowed_symmetries,
    augmented,
    draw_epoch,
    image_keys,
    mix,
    plan_draws,
    transform,
    uniform,
)
from dermaflow.contracts import MIX_COLUMNS, PLAN, TrainRows, read_info, read_mixes, read_plan, read_splits
from dermaflow.dataset import Dataset
from dermaflow.errors import InputError
from dermaflow.params import MixupParams
from tests.sources import MIXUP, augment_params, data_params

KEYS = image_keys(f"ISIC_{n:07d}" for n in range(600))
EVEN = np.ones(len(KEYS))
LUMA = np.array([0.299, 0.587, 0.114])
FIELDS = ("rows", "symmetry", "zoom", "brightness", "hue", "mix", "choice")


def draws(epoch=0, weights=EVEN, mixup=MIXUP, **changes):
    return draw_epoch(KEYS[: len(weights)], weights, augment_params(**changes), mixup, epoch)


def counts(weights, epoch=0):
    return np.bincount(draws(epoch, weights).rows, minlength=len(weights))


def transformed(images, symmetry=0, zoom=1.0, brightness=0.0, hue=0.0):
    """`transform` with one number for all images, or one for each."""
    import tensorflow as tf

    n = len(images)
    numbers = (np.broadcast_to(value, n) for value in (symmetry, zoom, brightness, hue))
    types = (np.int32, np.float32, np.float32, np.float32)
    given = (tf.constant(value.astype(kind)) for value, kind in zip(numbers, types, strict=True))
    return transform(tf.constant(images, tf.float32), *given).numpy()


def picture(seed=0, size=6, channels=3, low=60, high=200):
    return np.random.default_rng(seed).uniform(low, high, (size, size, channels)).astype(np.float32)


def train_rows(splits):
    return TrainRows.of(read_splits(splits))


# --- draws ---


def test_an_epoch_is_the_same_alone_and_after_others():
    alone = draws(epoch=7)
    for epoch in range(7):
        draws(epoch=epoch)
    np.random.default_rng().random(10)
    again = draws(epoch=7)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(alone, field), getattr(again, field))


@pytest.mark.parametrize("field", FIELDS)
def test_epochs_and_seeds_differ(field):
    first = getattr(draws(), field)
    assert (first != getattr(draws(epoch=1), field)).mean() > 0.3
    assert (first != getattr(draws(seed=2), field)).mean() > 0.3


def test_what_is_drawn_for_an_image_does_not_depend_on_the_others_order():
    """The same images in another order: each is drawn as often, and gets the same numbers."""
    order = np.random.default_rng(1).permutation(len(KEYS))
    weights = np.random.default_rng(2).uniform(0.5, 2, len(KEYS))
    one = draw_epoch(KEYS, weights, augment_params(), MIXUP, 3)
    other = draw_epoch(KEYS[order], weights[order], augment_params(), MIXUP, 3)
    np.testing.assert_array_equal(KEYS[one.rows], KEYS[order][other.rows])
    np.testing.assert_array_equal(one.brightness, other.brightness)
    np.testing.assert_array_equal(one.symmetry, other.symmetry)


def test_even_weights_draw_each_image_once_in_a_new_order():
    rows = draws().rows
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(KEYS)))
    assert abs(np.corrcoef(rows, np.arange(len(KEYS)))[0, 1]) < 0.2


@pytest.mark.parametrize("epoch", [0, 1, 17])
def test_each_image_is_drawn_floor_or_ceil_of_its_expected_number_of_times(epoch):
    weights = np.random.default_rng(3).gamma(0.5, 1, 600)
    weights *= 400 / weights.sum()
    drawn = counts(weights, epoch)
    assert drawn.sum() == 400
    assert (drawn >= np.floor(weights - 1e-9)).all()
    assert (drawn <= np.ceil(weights + 1e-9)).all()


def test_over_epochs_each_image_gets_its_weight():
    weights = np.random.default_rng(4).uniform(0.1, 1.9, 100)
    mean = np.mean([counts(weights, epoch) for epoch in range(200)], axis=0)
    np.testing.assert_allclose(mean, weights, atol=0.15)


def test_an_image_without_weight_is_never_drawn():
    weights = np.ones(50)
    weights[10] = 0
    assert all(counts(weights, epoch)[10] == 0 for epoch in range(20))


def test_an_image_that_is_drawn_twice_is_changed_differently():
    weights = np.ones(40)
    weights[5] = 20
    drawn = draws(weights=weights)
    values = drawn.brightness[drawn.rows == 5]
    assert len(values) >= 10
    assert len(set(values.tolist())) == len(values)


def test_uniform_numbers_are_uniform_and_unrelated():
    values = np.stack([uniform(KEYS, 1, epoch, purpose) for epoch in (0, 1) for purpose in Purpose])
    assert ((values >= 0) & (values < 1)).all()
    np.testing.assert_allclose(values.mean(axis=1), 0.5, atol=0.06)
    np.testing.assert_allclose(values.std(axis=1), 12**-0.5, atol=0.03)
    correlation = np.corrcoef(values) - np.eye(len(values))
    assert np.abs(correlation).max() < 0.2


@pytest.mark.parametrize(
    ("flips", "turns", "allowed"),
    [(True, True, range(8)), (True, False, (0, 1, 2, 3)), (False, True, (0, 5, 3, 6)), (False, False, (0,))],
)
def test_only_allowed_symmetries_are_drawn_and_all_of_them(flips, turns, allowed):
    assert allowed_symmetries(augment_params(flips=flips, right_angle_turns=turns)) == tuple(allowed)
    drawn = draws(flips=flips, right_angle_turns=turns).symmetry
    assert set(drawn.tolist()) == set(allowed)
    assert np.bincount(drawn).max() < 1.4 * len(drawn) / len(allowed)


def test_colour_and_scale_stay_within_its_limits_and_uses_them():
    drawn = draws(brightness=0.1, hue=0.02, scale=0.15)
    for values, limit in ((drawn.brightness, 0.1), (drawn.hue, 0.02 * 2 * np.pi), (drawn.zoom - 1, 0.15)):
        assert np.abs(values).max() <= limit * (1 + 1e-6)
        assert values.min() < -0.9 * limit
        assert values.max() > 0.9 * limit
    still = draws(brightness=0.0, hue=0.0, scale=0.0)
    assert (still.zoom == 1).all()
    assert not still.brightness.any()
    assert not still.hue.any()


def test_mixup_weights_follow_a_beta_distribution_folded_to_the_larger_share():
    from scipy.stats import beta, kstest

    for alpha in (0.2, 1.0):
        weights = draws(mixup=MixupParams(alpha=alpha, space="pixels", fixed_mixes=0)).mix
        assert weights.min() >= 0.5
        assert weights.max() <= 1

        def share_below(w, alpha=alpha):
            return beta.cdf(w, alpha, alpha) - beta.cdf(1 - w, alpha, alpha)

        assert kstest(weights, share_below).pvalue > 0.001


def test_without_mixup_every_image_is_itself():
    assert (draws(mixup=MixupParams(alpha=0, space="pixels", fixed_mixes=0)).mix == 1).all()


# --- transforms ---


def test_nothing_asked_changes_nothing():
    images = np.stack([picture(k) for k in range(3)])
    np.testing.assert_allclose(transformed(images), images, atol=0.05)


def test_the_eight_symmetries_are_eight_different_images():
    image = picture()
    results = transformed(np.stack([image] * 8), symmetry=np.arange(8))
    assert len({result.round(1).tobytes() for result in results}) == 8
    for result in results:
        np.testing.assert_allclose(np.sort(result, axis=None), np.sort(image, axis=None), atol=0.05)


@pytest.mark.parametrize(("code", "quarters"), [(0, 0), (5, -1), (3, 2), (6, 1)])
def test_turns_are_turns(code, quarters):
    image = picture()
    np.testing.assert_allclose(transformed(image[None], code)[0], np.rot90(image, quarters), atol=0.05)


@pytest.mark.parametrize(("code", "flip"), [(1, np.fliplr), (2, np.flipud), (4, lambda image: image.transpose(1, 0, 2))])
def test_flips_are_flips(code, flip):
    image = picture()
    np.testing.assert_allclose(transformed(image[None], code)[0], flip(image), atol=0.05)


def test_each_image_of_a_batch_gets_its_own_transform():
    images = np.stack([picture(k) for k in range(3)])
    results = transformed(images, symmetry=np.array([0, 3, 1]), brightness=np.array([0.1, 0.0, -0.1]))
    np.testing.assert_allclose(results[0], images[0] + 25.5, atol=0.05)
    np.testing.assert_allclose(results[1], np.rot90(images[1], 2), atol=0.05)
    np.testing.assert_allclose(results[2], np.fliplr(images[2]) - 25.5, atol=0.05)


def test_brightness_is_a_share_of_full_scale_and_stays_in_range():
    image = picture(low=100, high=150)
    np.testing.assert_allclose(transformed(image[None], brightness=0.2)[0], image + 51, atol=0.05)
    assert transformed(image[None], brightness=0.5).max() == 255
    assert transformed(image[None], brightness=-0.5).min() == 0


def test_hue_keeps_the_luma_and_changes_the_colour():
    image = picture(low=100, high=150)
    for hue in (-0.12, 0.05, 0.12, 3.0):
        turned = transformed(image[None], hue=hue)[0]
        np.testing.assert_allclose(turned @ LUMA, image @ LUMA, atol=0.3)
        assert np.abs(turned - image).max() > 1


def test_hue_leaves_grey_alone_and_a_full_turn_leads_back():
    grey = np.full((1, 4, 4, 3), 140, np.float32)
    np.testing.assert_allclose(transformed(grey, hue=1.0), grey, atol=0.3)
    image = picture(low=100, high=150)[None]
    np.testing.assert_allclose(transformed(image, hue=2 * np.pi), image, atol=0.3)


def test_hue_turns_towards_the_same_side_as_its_opposite_leads_back():
    image = picture(low=110, high=140)[None]
    np.testing.assert_allclose(transformed(transformed(image, hue=0.12), hue=-0.12), image, atol=0.3)


def test_the_mask_channel_is_turned_but_not_coloured():
    image = np.concatenate([picture(), np.where(picture(9, channels=1) > 130, 255, 0)], axis=-1).astype(np.float32)
    result = transformed(image[None], symmetry=6, brightness=0.3, hue=0.1)[0]
    np.testing.assert_array_equal(result[..., 3], np.rot90(image[..., 3]))
    assert np.abs(result[..., :3] - np.rot90(image[..., :3])).mean() > 20


def test_scale_magnifies_about_the_middle_as_linear_interpolation_does():
    import cv2

    image = cv2.GaussianBlur(picture(size=32), (0, 0), 2)
    for zoom in (1.25, 0.8):
        matrix = np.array([[zoom, 0, 15.5 * (1 - zoom)], [0, zoom, 15.5 * (1 - zoom)]])
        expected = cv2.warpAffine(image, matrix, (32, 32), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        np.testing.assert_allclose(transformed(image[None], zoom=zoom)[0], expected, atol=0.6)


def test_whole_numbers_come_as_they_are():
    """A byte stays the number it is through turns and a scale of 1, also inside the compiled step."""
    images = np.random.default_rng(0).integers(0, 256, (8, 9, 9, 3)).astype(np.uint8)
    import tensorflow as tf

    still, one = tf.zeros(8), tf.ones(8)
    result = augmented(tf.constant(images), tf.range(8), one, still, still, one).numpy()
    expected = transformed(images, symmetry=np.arange(8))
    np.testing.assert_allclose(result, expected, atol=1e-3)
    np.testing.assert_array_equal(np.sort(result.round().astype(np.uint8), axis=None), np.sort(images, axis=None))


def test_the_compiled_step_does_what_its_pieces_do():
    import tensorflow as tf

    drawn = draws(epoch=3)
    images = np.random.default_rng(1).integers(0, 256, (16, 24, 24, 3)).astype(np.uint8)
    numbers = [tf.constant(getattr(drawn, name)[:16]) for name in ("symmetry", "zoom", "brightness", "hue", "mix")]
    whole = augmented(tf.constant(images), *numbers).numpy()
    pieces = mix(transform(tf.constant(images), *numbers[:-1]), numbers[-1]).numpy()
    np.testing.assert_allclose(whole, pieces, atol=0.01)
    paired = augmented(tf.constant(images), *numbers[:-1], numbers[-1][:8], paired=True).numpy()
    pieces = mix(transform(tf.constant(images), *numbers[:-1]), numbers[-1][:8], paired=True).numpy()
    assert paired.shape == (8, 24, 24, 3)
    np.testing.assert_allclose(paired, pieces, atol=0.01)


# --- MixUp ---


def mixed(values, weight):
    import tensorflow as tf

    return mix(tf.constant(values, tf.float32), tf.constant(weight, tf.float32)).numpy()


def test_images_and_labels_are_mixed_with_the_same_partner_and_share():
    images = np.stack([np.full((2, 2, 3), value, np.float32) for value in (10, 20, 40)])
    labels = np.eye(3, dtype=np.float32)
    weight = [0.9, 0.6, 1.0]
    pictures, vectors = mixed(images, weight), mixed(labels, weight)
    np.testing.assert_allclose(vectors.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(pictures[:, 0, 0, 0], vectors @ [10, 20, 40], rtol=1e-6)
    np.testing.assert_allclose(vectors.max(axis=1), weight, atol=1e-6)
    np.testing.assert_array_equal(vectors.argmax(axis=1), [0, 1, 2])


def test_mixup_without_alpha_is_the_identity():
    weight = draws(mixup=MixupParams(alpha=0, space="pixels", fixed_mixes=0)).mix[:5]
    images = np.stack([picture(k) for k in range(5)])
    np.testing.assert_array_equal(mixed(images, weight), images)


def test_a_drawn_partner_is_mixed_in_rather_than_the_next():
    import tensorflow as tf

    values = tf.constant([[1.0], [2.0], [30.0], [40.0]])
    np.testing.assert_allclose(mix(values, tf.constant([0.9, 0.5]), paired=True), [[3.9], [21.0]], rtol=1e-6)


def test_balanced_mixup_mixes_a_little_of_a_class_drawn_equally_often_into_each_image():
    """90 images of one class, 10 of another: images come as they are, half of the partners are of the rare class."""
    from scipy.stats import beta, kstest

    labels = np.repeat([0, 1], [90, 10])
    partner_weights = np.where(labels == 0, 50 / 90, 50 / 10)
    mixup = MixupParams(alpha=0.3, space="pixels", fixed_mixes=0)
    several = [
        draw_epoch(KEYS[:100], np.ones(100), augment_params(balance="balanced_mixup"), mixup, epoch, partner_weights)
        for epoch in range(20)
    ]
    for drawn in several:
        np.testing.assert_array_equal(np.sort(drawn.rows), np.arange(100))
        assert np.bincount(labels[drawn.partners.rows]).tolist() == [50, 50]
    shares = np.concatenate([1 - drawn.mix for drawn in several])
    assert kstest(shares, beta(0.3, 1).cdf).pvalue > 0.001
    first = several[0]
    assert np.abs(np.corrcoef(first.brightness, first.partners.brightness)[0, 1]) < 0.3, "a partner has its own transform"
    assert (first.rows != first.partners.rows).mean() > 0.9


# --- the plan ---


@pytest.fixture(scope="module")
def planned(tmp_path_factory, dataset, splits):
    target = tmp_path_factory.mktemp("planned") / "plan"
    augment(dataset, splits, augment_params(), MIXUP, target)
    return target


def test_the_plan_has_train_rows_only(planned, splits):
    plan, table = read_plan(planned), read_splits(splits)
    assert set(plan["image_id"]) == set(table.loc[table["split"] == "train", "image_id"])
    elsewhere = set(table.loc[table["split"] != "train", "lesion_id"])
    assert not elsewhere & set(plan["lesion_id"])


def test_views_are_the_image_itself_and_others_that_differ(planned):
    plan = read_plan(planned)
    assert set(plan["view"]) == {0, 1, 2}
    as_it_is, others = plan[plan["view"] == 0], plan[plan["view"] > 0]
    assert all((as_it_is[name] == number).all() for name, number in UNTOUCHED.items())
    views = plan.groupby("image_id")["symmetry"]
    assert (views.nunique() == 3).all()
    assert (views.size() == 3).all()
    assert others["symmetry"].nunique() > 3, "each image has its own views"
    limits = {"zoom": (0.9, 1.1), "brightness": (-0.1, 0.1), "hue": (-0.04 * np.pi, 0.04 * np.pi)}
    for name, (lowest, highest) in limits.items():
        assert others[name].between(np.float32(lowest), np.float32(highest)).all()
        assert others[name].nunique() == len(others), "each view has its own size and colours"


def test_balanced_classes_are_drawn_equally_often(planned):
    plan, info = read_plan(planned), read_info(planned, PLAN)
    first = plan[plan["view"] == 0]
    drawn = first.groupby("label")["weight"].sum()
    np.testing.assert_allclose(drawn, len(first) / 7)
    assert {label: entry["images"] for label, entry in info["histogram"].items()} == dict(first["label"].value_counts())
    np.testing.assert_allclose([entry["draws_per_epoch"] for entry in info["histogram"].values()], len(first) / 7, atol=1e-3)


def test_the_plan_says_what_it_was_made_of_and_shows_it(planned, dataset, splits):
    info = read_info(planned, PLAN)
    assert info["splits_digest"] == read_info(splits, "splits")["digest"]
    assert info["dataset"] == Dataset.open(dataset).version
    assert info["augment"] == augment_params().model_dump(mode="json")
    assert info["views"] == 3
    assert (planned / "preview.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (planned / "preview.png").stat().st_size > 20_000
    assert changed_files(open_artifact(planned, PLAN)) == []


def test_the_same_inputs_give_the_same_plan(planned, splits):
    pd.testing.assert_frame_equal(plan_rows(TrainRows.of(read_splits(splits).iloc[::-1]), augment_params()), read_plan(planned))


def test_without_balance_every_image_weighs_the_same(splits):
    assert (plan_rows(train_rows(splits), augment_params(balance="none"))["weight"] == 1).all()


@pytest.mark.parametrize(
    ("asked", "flips", "turns", "hue", "views"),
    [
        (8, True, True, 0.0, 8),
        (8, True, False, 0.0, 4),
        (8, False, False, 0.0, 1),
        (1, True, True, 0.02, 1),
        (8, True, False, 0.02, 8),
        (8, False, False, 0.02, 8),
    ],
)
def test_there_are_as_many_views_as_asked_for_and_possible(splits, asked, flips, turns, hue, views):
    changes = {"flips": flips, "right_angle_turns": turns, "scale": 0.0, "brightness": 0.0, "hue": hue}
    params = augment_params(feature_views=asked, **changes)
    plan = plan_rows(train_rows(splits), params)
    assert plan["view"].nunique() == views
    assert set(plan["symmetry"]) == set(allowed_symmetries(params) if views > 1 else (0,))


def test_more_views_keep_the_ones_before(splits):
    """So that cached features of two views still serve when a third is asked for."""
    two, three = (plan_rows(train_rows(splits), augment_params(feature_views=views)) for views in (2, 3))
    pd.testing.assert_frame_equal(three[three["view"] < 2].reset_index(drop=True), two)


def test_by_square_root_a_class_of_four_times_as_many_is_drawn_twice_as_often():
    labels = pd.Series(["nv"] * 64 + ["mel"] * 16 + ["df"] * 4)
    table = pd.DataFrame({"image_id": [f"i{n:02d}" for n in range(84)], "lesion_id": labels, "label": labels, "split": "train"})
    plan = plan_rows(TrainRows.of(table), augment_params(balance="square_root", feature_views=1))
    draws = plan.groupby("label")["weight"].sum()
    assert draws.to_dict() == pytest.approx({"nv": 48, "mel": 24, "df": 12})
    assert plan.groupby("label")["weight"].nunique().max() == 1


def test_each_class_is_drawn_as_often_as_its_target_says(splits):
    targets = {name: 10 * (k + 1) for k, name in enumerate(sorted(read_splits(splits)["label"].unique()))}
    plan = plan_rows(train_rows(splits), augment_params(balance="target_per_class", targets=targets))
    first = plan[plan["view"] == 0].reset_index(drop=True)
    drawn = plan_draws(first, augment_params(balance="target_per_class", targets=targets), MIXUP, epoch=2)
    assert len(drawn.rows) == sum(targets.values())
    assert first["label"].iloc[drawn.rows].value_counts().to_dict() == pytest.approx(targets, abs=1)


def test_targets_name_the_classes_that_there_are(dataset, splits, tmp_path):
    params = augment_params(balance="target_per_class", targets={"mel": 100, "normal": 5})
    with pytest.raises(InputError, match=r"augment\.targets: akiec is not named; name each of akiec, bcc, .* and no other"):
        augment(dataset, splits, params, MIXUP, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_one_remedy_against_imbalance_at_a_time():
    with pytest.raises(ValueError, match="one remedy at a time"):
        augment_params(balance="sampler", targets={"mel": 10})
    with pytest.raises(ValueError, match="one remedy at a time"):
        augment_params(balance="target_per_class")


def test_balanced_mixup_without_mixup_is_refused(dataset, splits, tmp_path):
    off = MixupParams(alpha=0, space="pixels", fixed_mixes=0)
    with pytest.raises(InputError, match=r"balanced_mixup mixes, but mixup\.alpha is 0; set mixup\.alpha"):
        augment(dataset, splits, augment_params(balance="balanced_mixup"), off, tmp_path / "p")


def test_validation_and_test_can_not_be_reached(splits):
    table = read_splits(splits)
    with pytest.raises(TypeError, match="plan_rows takes TrainRows, not DataFrame"):
        plan_rows(table, augment_params())
    for side in ("validation", "test"):
        with pytest.raises(ValueError, match=f"is in {side}: only train rows may be drawn"):
            TrainRows(table[table["split"].isin(("train", side))])


def test_an_order_that_the_data_were_not_made_in_is_refused_with_what_to_do(dataset, splits, tmp_path):
    params = augment_params(before_split=True, balance="target_per_class", targets={"nv": 3})
    with pytest.raises(InputError, match=r"was not balanced before its split.*dermaflow run --profile paper"):
        augment(dataset, splits, params, MIXUP, tmp_path / "p")
    assert not (tmp_path / "p").exists()


# --- fixed mixes ---


def with_mixes(count, alpha=0.4):
    return MixupParams(alpha=alpha, space="pixels", fixed_mixes=count)


@pytest.mark.parametrize("balance", ["sampler", "balanced_mixup"])
def test_fixed_mixes_are_of_train_images_and_more_of_them_begin_with_the_same(dataset, splits, tmp_path, balance):
    for count in (5, 90):
        augment(dataset, splits, augment_params(balance=balance), with_mixes(count), tmp_path / str(count))
    few, many = (read_mixes(tmp_path / str(count)) for count in (5, 90))
    assert tuple(many.columns) == MIX_COLUMNS
    assert (len(few), len(many)) == (5, 90)
    pd.testing.assert_frame_equal(few, many[:5])
    train = set(train_rows(splits).table["image_id"])
    assert set(many["image_a"]) | set(many["image_b"]) <= train
    assert many["weight"].between(0, 1).all()
    assert (many["image_a"] != many["image_b"]).mean() > 0.8
    assert read_info(tmp_path / "90", PLAN)["fixed_mixes"] == 90


def test_without_fixed_mixes_there_are_none(planned):
    assert len(read_mixes(planned)) == 0


def test_fixed_mixes_of_features_or_without_mixup_are_refused():
    with pytest.raises(ValueError, match="fixed mixes are of pixels"):
        MixupParams(alpha=0.2, space="features", fixed_mixes=3)
    with pytest.raises(ValueError, match="fixed mixes are of pixels"):
        with_mixes(3, alpha=0)


@pytest.mark.parametrize(
    ("mixup", "frozen", "said"),
    [
        (MIXUP, False, "pixels"),
        (MIXUP, True, "features"),
        (with_mixes(7), True, "pixels, 7 fixed mixes"),
        (with_mixes(7), False, "pixels"),
        (MixupParams(alpha=0, space="pixels", fixed_mixes=0), True, "off"),
    ],
)
def test_where_images_are_mixed_is_said(mixup, frozen, said):
    assert mixup.space_of(frozen=frozen) == said


# --- files ---


def test_an_epoch_can_be_had_as_files_that_name_their_parents(dataset, splits, tmp_path):
    import cv2

    params = augment_params(materialize=True)
    augment(dataset, splits, params, MIXUP, tmp_path / "p")
    folder = tmp_path / "p" / "materialized"
    table, opened = pd.read_csv(folder / "HAM10000_metadata.csv"), Dataset.open(dataset)
    train = train_rows(splits).table.set_index("image_id")
    assert len(table) == len(train)
    assert set(table["parent_id"]) <= set(train.index)
    assert table["image_id"].is_unique
    parents = train.loc[table["parent_id"]]
    assert (table["lesion_id"].to_numpy() == parents["lesion_id"].to_numpy()).all()
    assert (table["dx"].to_numpy() == parents["label"].to_numpy()).all()
    assert {path.stem for path in (folder / "images").iterdir()} == set(table["image_id"])
    row = table.iloc[0]
    image = opened.images(opened.rows_of(pd.Series([row["parent_id"]])))
    expected = transformed(image, *(row[name] for name in ("symmetry", "zoom", "brightness", "hue")))[0]
    written = cv2.imread(str(folder / "images" / f"{row['image_id']}.png"))[..., ::-1]
    np.testing.assert_allclose(written, expected, atol=0.51)
    assert changed_files(open_artifact(tmp_path / "p", PLAN)) == []


def test_the_files_are_a_source_that_can_be_ingested(dataset, splits, tmp_path):
    from components.ingest.core import ingest

    augment(dataset, splits, augment_params(materialize=True), MIXUP, tmp_path / "p")
    info = ingest(data_params(tmp_path / "p" / "materialized"), tmp_path / "d", tmp_path / "state")
    assert info["counts"]["images"] == len(train_rows(splits).table)
    assert info["source"]["synthetic"] == Dataset.open(dataset).synthetic
