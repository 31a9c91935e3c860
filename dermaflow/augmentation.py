"""What the trainer draws in an epoch, and how it is carried out: balance, flips, turns, scale, colour, MixUp.

Every random number is a hash of (seed, epoch, image id, occurrence, purpose), so that an epoch can be drawn again
without the ones before it, on any machine, in any order. `draw_epoch` is numpy; `augmented` runs inside the compiled
training step, fused by XLA: op by op it would cost 14 % of the CNN's step instead of 3 %.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermaflow.params import AugmentParams, MixupParams

if TYPE_CHECKING:
    import tensorflow as tf

Codes = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

# A code's bits say: 4 transpose, 2 flip up-down, 1 flip left-right (in this order); the 8 codes are the symmetries of a square.
FLIPS = (0, 1, 2, 3)
TURNS = (0, 5, 3, 6)
ALL_SYMMETRIES = tuple(range(8))
# Of a draw, or a view: what `transform` takes, in its order; and those of an image that is to stay as it is.
UNTOUCHED: dict[str, Any] = {"symmetry": np.int32(0), "zoom": np.float32(1), "brightness": np.float32(0), "hue": np.float32(0)}
NUMBERS = tuple(UNTOUCHED)
_PARTNER = np.uint64(0xD1B54A32D192ED03)  # makes a partner's random numbers other ones than the image's own
_VIEWS = np.uint64(0xA0761D6478BD642F)  # and those of its fixed views


class Purpose(IntEnum):
    """What a random number is for: part of its hash."""

    ORDER = 1
    SYMMETRY = 2
    BRIGHTNESS = 3
    HUE = 4
    MIX = 5
    SELECT = 6
    VIEW = 7
    CHOICE = 8
    SCALE = 9


@dataclass(frozen=True)
class Draws:
    """One epoch, in the order of its batches; all arrays have one entry a draw.

    Attributes
    ----------
    rows: int64, position of the image in the trainer's arrays.
    symmetry: int32 0..7.
    zoom: float32, magnification about the middle.
    brightness: float32, shift as a share of full scale.
    hue: float32, turn in radians.
    mix: float32 in 0..1, the weight of the image itself in MixUp; 1 where MixUp is off.
    choice: float64 in [0, 1), which of the plan's fixed views a frozen backbone's head sees.
    partners: what each image is mixed with, drawn for it; None mixes each with the next of its batch.
    """

    rows: npt.NDArray[np.int64]
    symmetry: Codes
    zoom: Floats
    brightness: Floats
    hue: Floats
    mix: Floats
    choice: npt.NDArray[np.float64]
    partners: Draws | None = None

    def take(self, part: slice, *names: str) -> list[Any]:
        """Fields of some draws; where partners were drawn, theirs come after."""
        sides = [self] if self.partners is None else [self, self.partners]
        return [np.concatenate([getattr(side, name)[part] for side in sides]) for name in names]


def allowed_symmetries(params: AugmentParams) -> tuple[int, ...]:
    """Codes of the symmetries that the parameters allow; 0 is the image as it is."""
    if params.flips and params.right_angle_turns:
        return ALL_SYMMETRIES
    return FLIPS if params.flips else TURNS if params.right_angle_turns else (0,)


def image_keys(image_ids: Iterable[str]) -> npt.NDArray[np.uint64]:
    """A 64-bit key of each image id, uint64 [n]."""
    return np.array([_image_key(image_id) for image_id in image_ids], np.uint64)


def _image_key(image_id: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "little"))


def fixed_views(keys: npt.NDArray[np.uint64], augment: AugmentParams) -> list[dict[str, npt.NDArray[Any]]]:
    """Views of each image: as it is, and then in other flips and turns, sizes and colours.

    Flips and turns differ from each other as long as there are others; without sizes and colours there are no more views than
    that. The first views are the same however many are asked for.

    Parameters
    ----------
    keys: `image_keys`, uint64 [n].

    Returns
    -------
    For each view NUMBERS, [n] each.
    """
    views = [{name: np.full(len(keys), number) for name, number in UNTOUCHED.items()}]
    others = np.array([code for code in allowed_symmetries(augment) if code] or [0], np.int32)
    ranks = np.stack([uniform(keys, augment.seed, int(code), Purpose.VIEW) for code in others], axis=1)
    codes = others[np.argsort(ranks, axis=1, kind="stable")]
    resembling = not (augment.scale or augment.brightness or augment.hue)
    possible = len(allowed_symmetries(augment)) if resembling else augment.feature_views
    for view in range(1, min(augment.feature_views, possible)):
        others = codes[:, (view - 1) % codes.shape[1]]
        views.append(dict(zip(NUMBERS, (others, *_scale_and_colour(keys ^ _VIEWS, augment, view)), strict=True)))
    return views


def uniform(keys: npt.NDArray[np.uint64], seed: int, epoch: int, purpose: Purpose) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), float64 [n]: a hash of each key with seed, epoch and purpose (SplitMix64; Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        state = keys.astype(np.uint64)
        for part in (seed, epoch, int(purpose)):
            state = _split_mix(state ^ _split_mix(np.uint64(part & 0xFFFFFFFFFFFFFFFF) + np.zeros(1, np.uint64)))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_epoch(
    keys: npt.NDArray[np.uint64],
    weights: npt.NDArray[np.float64],
    augment: AugmentParams,
    mixup: MixupParams,
    epoch: int,
    partner_weights: npt.NDArray[np.float64] | None = None,
) -> Draws:
    """Draw an epoch.

    Parameters
    ----------
    keys: `image_keys` of the train part, uint64 [n].
    weights: how often each is to be drawn, float64 [n]; an epoch has as many draws as they add up to.
    epoch: from 0.
    partner_weights: with balance balanced_mixup, how often each is drawn to be mixed into another: Balanced-MixUp (Galdran
        et al., MICCAI 2021), whose share of the partner is Beta(alpha, 1).
    """
    own = _draw(keys, weights, augment, epoch)
    uniforms = uniform(own.keys, augment.seed, epoch, Purpose.MIX)
    if partner_weights is None:
        return replace(own.draws, mix=_mix_weights(uniforms, mixup.alpha))
    count = len(own.draws.rows)
    partners = _draw(keys ^ _PARTNER, partner_weights * (count / partner_weights.sum()), augment, epoch)
    return replace(own.draws, mix=(1 - uniforms ** (1 / mixup.alpha)).astype(np.float32), partners=partners.draws)


def plan_draws(images: pd.DataFrame, augment: AugmentParams, mixup: MixupParams, epoch: int) -> Draws:
    """An epoch of a plan; `rows` are positions in `images`, the plan's rows of view 0."""
    keys = image_keys(images["image_id"])
    partners = images["partner_weight"].to_numpy() if augment.balance == "balanced_mixup" else None
    return draw_epoch(keys, images["weight"].to_numpy(), augment, mixup, epoch, partners)


@dataclass(frozen=True)
class _Drawn:
    """Draws without MixUp, and the key of each draw, uint64: of its image and the number of times that it was drawn before."""

    draws: Draws
    keys: npt.NDArray[np.uint64]


def _draw(keys: npt.NDArray[np.uint64], weights: npt.NDArray[np.float64], augment: AugmentParams, epoch: int) -> _Drawn:
    rows = _select(keys, weights, augment.seed, epoch)
    occurrence = pd.Series(rows).groupby(rows).cumcount().to_numpy(dtype=np.uint64)
    with np.errstate(over="ignore"):
        drawn = keys[rows] + occurrence * np.uint64(0x9E3779B97F4A7C15)
    order = np.argsort(uniform(drawn, augment.seed, epoch, Purpose.ORDER), kind="stable")
    rows, drawn = rows[order], drawn[order]

    codes = np.array(allowed_symmetries(augment), np.int32)
    picked = (uniform(drawn, augment.seed, epoch, Purpose.SYMMETRY) * len(codes)).astype(np.int64)
    zoom, brightness, hue = _scale_and_colour(drawn, augment, epoch)
    draws = Draws(
        rows=rows,
        symmetry=codes[picked],
        zoom=zoom,
        brightness=brightness,
        hue=hue,
        mix=np.ones(len(rows), np.float32),
        choice=uniform(drawn, augment.seed, epoch, Purpose.CHOICE),
    )
    return _Drawn(draws, drawn)


def _scale_and_colour(keys: npt.NDArray[np.uint64], augment: AugmentParams, epoch: int) -> tuple[Floats, Floats, Floats]:
    """Zoom, brightness and hue within their limits, float32 [n] each."""

    def symmetric(purpose: Purpose, limit: float) -> Floats:
        return ((2 * uniform(keys, augment.seed, epoch, purpose) - 1) * limit).astype(np.float32)

    return (
        1 + symmetric(Purpose.SCALE, augment.scale),
        symmetric(Purpose.BRIGHTNESS, augment.brightness),
        symmetric(Purpose.HUE, augment.hue * 2 * np.pi),
    )


def _select(keys: npt.NDArray[np.uint64], weights: npt.NDArray[np.float64], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Systematic sampling: each row is drawn floor or ceil of its expected number of times (Kish 1965)."""
    shuffled = np.argsort(uniform(keys, seed, epoch, Purpose.SELECT), kind="stable")
    upper = np.cumsum(weights[shuffled])
    count = max(1, round(float(upper[-1])))
    points = (np.arange(count) + 0.5) * (upper[-1] / count)
    chosen = np.minimum(np.searchsorted(upper, points, side="right"), len(keys) - 1)
    return np.asarray(shuffled[chosen], np.int64)


def _mix_weights(uniforms: npt.NDArray[np.float64], alpha: float) -> Floats:
    """Beta(alpha, alpha) by inversion, folded to 0.5..1 so that the image keeps the larger share."""
    if alpha == 0:
        return np.ones(len(uniforms), np.float32)
    from scipy.special import betaincinv

    value = betaincinv(alpha, alpha, uniforms)
    return np.asarray(np.maximum(value, 1 - value), np.float32)


def _split_mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def augmented(
    images: tf.Tensor,
    symmetry: tf.Tensor,
    zoom: tf.Tensor,
    brightness: tf.Tensor,
    hue: tf.Tensor,
    weight: tf.Tensor,
    *,
    paired: bool = False,
) -> tf.Tensor:
    """`transform`, then `mix`, compiled as one by XLA.

    Parameters
    ----------
    images, symmetry, zoom, brightness, hue: as in `transform`, n each: b, or 2 b where `paired`.
    weight, paired: as in `mix`.

    Returns
    -------
    float32 [b, size, size, channels] in 0..255.
    """
    return _compiled(paired)(images, symmetry, zoom, brightness, hue, weight)


@cache
def _compiled(paired: bool) -> Any:
    import tensorflow as tf

    @tf.function(jit_compile=True)  # type: ignore[untyped-decorator]
    def work(images: Any, symmetry: Any, zoom: Any, brightness: Any, hue: Any, weight: Any) -> Any:
        return mix(transform(images, symmetry, zoom, brightness, hue), weight, paired=paired)

    return work


def transform(images: tf.Tensor, symmetry: tf.Tensor, zoom: tf.Tensor, brightness: tf.Tensor, hue: tf.Tensor) -> tf.Tensor:
    """Symmetries, scale, brightness and hue.

    Scale is bilinear, and goes on in the mirror where it looks beyond the border; 1 leaves every value as it is.

    Parameters
    ----------
    images: uint8 or float32 [n, size, size, channels] in 0..255; a fourth channel (the lesion mask) is moved, not coloured.
    symmetry, zoom, brightness, hue: [n], as in Draws.

    Returns
    -------
    float32 [n, size, size, channels] in 0..255.
    """
    import tensorflow as tf

    images = moved(images, symmetry, zoom)
    matrices = _hue_matrices(hue)
    colour = tf.add_n([images[..., k, None] * matrices[:, None, None, k] for k in range(3)])
    colour = tf.clip_by_value(colour + 255.0 * brightness[:, None, None, None], 0.0, 255.0)
    return tf.concat([colour, images[..., 3:]], axis=-1)


def moved(values: tf.Tensor, symmetry: tf.Tensor, zoom: tf.Tensor) -> tf.Tensor:
    """Symmetries and scale alone, of images or of maps of features.

    Parameters
    ----------
    values: [n, side, side, channels]; symmetry, zoom: [n], as in Draws.

    Returns
    -------
    float32, of the same shape.
    """
    import tensorflow as tf

    transposed, upside_down, mirrored = (tf.bitwise.bitwise_and(symmetry, bit) > 0 for bit in (4, 2, 1))
    values = tf.where(transposed[:, None, None, None], tf.transpose(values, (0, 2, 1, 3)), values)
    values = _resampled(values, mirrored, zoom, axis=2)  # on bytes first: the other way round takes half as long again
    return _resampled(values, upside_down, zoom, axis=1)


def _resampled(images: tf.Tensor, flipped: tf.Tensor, zoom: tf.Tensor, axis: int) -> tf.Tensor:
    """Images with one axis flipped where asked and magnified about its middle, float32; linear between pixels."""
    import tensorflow as tf

    last = images.shape[axis] - 1
    steps = tf.range(last + 1, dtype=tf.float32) - last / 2
    place = steps[None, :] * (tf.where(flipped, -1.0, 1.0) / zoom)[:, None] + last / 2
    place = last - tf.abs(last - tf.abs(place))  # mirrored at both borders
    lower = tf.floor(place)
    before = tf.cast(lower, tf.int32)
    after = tf.minimum(before + 1, last)
    share = place - lower
    share = share[:, :, None, None] if axis == 1 else share[:, None, :, None]
    pixels = [tf.cast(tf.gather(images, index, axis=axis, batch_dims=1), tf.float32) for index in (before, after)]
    return pixels[0] * (1 - share) + pixels[1] * share


def mix(values: tf.Tensor, weight: tf.Tensor, *, paired: bool = False) -> tf.Tensor:
    """MixUp (Zhang et al., ICLR 2018): weight * value + (1 - weight) * partner.

    Applied to images or features and to label vectors with the same `weight` float32 [b].

    Parameters
    ----------
    values: [b, ...]; or [2 b, ...] where `paired`: the partners follow the values. Else each one's partner is the next.
    """
    import tensorflow as tf

    own, partner = tf.split(values, 2) if paired else (values, tf.roll(values, shift=1, axis=0))
    weight = tf.reshape(weight, [-1] + [1] * (len(values.shape) - 1))
    return weight * own + (1.0 - weight) * partner


# RGB <-> YIQ (NTSC): turning the I-Q plane changes the hue and keeps the luma.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float64)


def _hue_matrices(hue: tf.Tensor) -> tf.Tensor:
    """RGB matrices [b, 3, 3] (to be applied from the right) that turn the hue by `hue` radians."""
    import tensorflow as tf

    back = np.linalg.inv(_TO_YIQ)
    cos, sin = tf.cos(hue)[:, None, None], tf.sin(hue)[:, None, None]
    luma, turn_cos, turn_sin = (np.diag([1.0, 0, 0]), np.diag([0, 1.0, 1.0]), np.array([[0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]))
    constant, with_cos, with_sin = (
        tf.constant((back @ part @ _TO_YIQ).T.astype(np.float32)) for part in (luma, turn_cos, turn_sin)
    )
    return constant[None] + cos * with_cos[None] + sin * with_sin[None]
