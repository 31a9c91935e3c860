"""What the trainer draws in an epoch, and how it is carried out: balance, flips and turns, colour, MixUp.

Every random number is a hash of (seed, epoch, image id, occurrence, purpose), so that an epoch can be drawn again
without the ones before it, on any machine, in any order. `draw_epoch` is numpy; `transform` and `mix` run inside the
compiled training step.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
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


@dataclass(frozen=True)
class Draws:
    """One epoch, in the order of its batches; all arrays have one entry a draw.

    Attributes
    ----------
    rows: int64, position of the image in the trainer's arrays.
    symmetry: int32 0..7.
    brightness: float32, shift as a share of full scale.
    hue: float32, turn in radians.
    mix: float32 in 0.5..1, the weight of the image itself in MixUp; 1 where MixUp is off.
    choice: float64 in [0, 1), which of the plan's fixed views a frozen backbone's head sees.
    """

    rows: npt.NDArray[np.int64]
    symmetry: Codes
    brightness: Floats
    hue: Floats
    mix: Floats
    choice: npt.NDArray[np.float64]


def allowed_symmetries(params: AugmentParams) -> tuple[int, ...]:
    """Codes of the symmetries that the parameters allow; 0 is the image as it is."""
    if params.flips and params.right_angle_turns:
        return ALL_SYMMETRIES
    return FLIPS if params.flips else TURNS if params.right_angle_turns else (0,)


def image_key(image_id: str) -> np.uint64:
    """A 64-bit key of an image id."""
    return np.uint64(int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "little"))


def uniform(keys: npt.NDArray[np.uint64], seed: int, epoch: int, purpose: Purpose) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), float64 [n]: a hash of each key with seed, epoch and purpose (SplitMix64; Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        state = keys.astype(np.uint64)
        for part in (seed, epoch, int(purpose)):
            state = _split_mix(state ^ _split_mix(np.uint64(part & 0xFFFFFFFFFFFFFFFF) + np.zeros(1, np.uint64)))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw_epoch(
    keys: npt.NDArray[np.uint64], weights: npt.NDArray[np.float64], augment: AugmentParams, mixup: MixupParams, epoch: int
) -> Draws:
    """Draw an epoch of as many images as there are.

    Parameters
    ----------
    keys: `image_key` of each image of the train part, uint64 [n].
    weights: how often each is to be drawn, relative to the others, float64 [n].
    epoch: from 0.
    """
    rows = _select(keys, weights, augment.seed, epoch)
    occurrence = pd.Series(rows).groupby(rows).cumcount().to_numpy(dtype=np.uint64)
    with np.errstate(over="ignore"):
        drawn = keys[rows] + occurrence * np.uint64(0x9E3779B97F4A7C15)
    order = np.argsort(uniform(drawn, augment.seed, epoch, Purpose.ORDER), kind="stable")
    rows, drawn = rows[order], drawn[order]

    def symmetric(purpose: Purpose, limit: float) -> Floats:
        return ((2 * uniform(drawn, augment.seed, epoch, purpose) - 1) * limit).astype(np.float32)

    codes = np.array(allowed_symmetries(augment), np.int32)
    picked = (uniform(drawn, augment.seed, epoch, Purpose.SYMMETRY) * len(codes)).astype(np.int64)
    return Draws(
        rows=rows,
        symmetry=codes[picked],
        brightness=symmetric(Purpose.BRIGHTNESS, augment.brightness),
        hue=symmetric(Purpose.HUE, augment.hue * 2 * np.pi),
        mix=_mix_weights(uniform(drawn, augment.seed, epoch, Purpose.MIX), mixup.alpha),
        choice=uniform(drawn, augment.seed, epoch, Purpose.CHOICE),
    )


def _select(keys: npt.NDArray[np.uint64], weights: npt.NDArray[np.float64], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Systematic sampling: each row is drawn floor or ceil of its expected number of times (Kish 1965)."""
    shuffled = np.argsort(uniform(keys, seed, epoch, Purpose.SELECT), kind="stable")
    upper = np.cumsum(weights[shuffled])
    points = (np.arange(len(keys)) + 0.5) * (upper[-1] / len(keys))
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


def transform(images: tf.Tensor, symmetry: tf.Tensor, brightness: tf.Tensor, hue: tf.Tensor) -> tf.Tensor:
    """Carry out symmetries, brightness and hue inside a compiled step.

    Parameters
    ----------
    images: float32 [b, size, size, channels] in 0..255; a fourth channel (the lesion mask) is turned, not coloured.
    symmetry, brightness, hue: [b], as in Draws.

    Returns
    -------
    float32 [b, size, size, channels] in 0..255.
    """
    import tensorflow as tf

    def where(bit: int, changed: Any, images: Any) -> Any:
        return tf.where((tf.bitwise.bitwise_and(symmetry, bit) > 0)[:, None, None, None], changed, images)

    images = where(4, tf.transpose(images, (0, 2, 1, 3)), images)
    images = where(2, tf.reverse(images, [1]), images)
    images = where(1, tf.reverse(images, [2]), images)
    colour = tf.einsum("bhwc,bcd->bhwd", images[..., :3], _hue_matrices(hue)) + 255.0 * brightness[:, None, None, None]
    return tf.concat([tf.clip_by_value(colour, 0.0, 255.0), images[..., 3:]], axis=-1)


def mix(values: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """MixUp (Zhang et al., ICLR 2018): weight * value + (1 - weight) * the next value of the batch.

    Applied to images or features and to label vectors with the same `weight` float32 [b].
    """
    import tensorflow as tf

    weight = tf.reshape(weight, [-1] + [1] * (len(values.shape) - 1))
    return weight * values + (1.0 - weight) * tf.roll(values, shift=1, axis=0)


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
