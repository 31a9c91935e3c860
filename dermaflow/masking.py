"""How lesion masks reach a model: `train.masks` = none | crop | channel | background_off.

The study feeds whole images; the other modes are there to measure what the surroundings contribute. The mode is part
of a model's input contract, so that training, evaluation, explanation and serving treat images alike.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

MaskMode = Literal["none", "crop", "channel", "background_off"]
CROP_MARGIN = 0.10  # of the lesion's bounding box, on each side: the rim carries information


def channels_of(mode: MaskMode) -> int:
    """Number of input channels of a model trained in this mode."""
    return 4 if mode == "channel" else 3


def apply_masks(images: npt.NDArray[np.uint8], masks: npt.NDArray[np.uint8] | None, mode: MaskMode) -> npt.NDArray[np.uint8]:
    """Apply lesion masks to images.

    Parameters
    ----------
    images: uint8 RGB [n, size, size, 3].
    masks: uint8 0/1 [n, size, size]; may be None in mode "none".

    Returns
    -------
    uint8 [n, size, size, channels_of(mode)]: "crop" scales the lesion's bounding box (with a margin of CROP_MARGIN) to
    the full size, "channel" appends the mask as 0/255, "background_off" blackens everything outside the lesion. Where
    a mask is empty, crop and background_off leave the image as it is.
    """
    if mode == "none":
        return images
    if masks is None:
        raise ValueError(f"mode {mode!r} needs masks")
    if mode == "channel":
        return np.concatenate([images, masks[..., None] * np.uint8(255)], axis=-1)
    if mode == "background_off":
        return images * np.where(masks.any(axis=(1, 2), keepdims=True), masks, 1)[..., None].astype(np.uint8)
    return np.stack([_crop(image, mask) for image, mask in zip(images, masks, strict=True)])


def _crop(image: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    import cv2

    if not mask.any():
        return image
    (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (1, 0))
    margin_y, margin_x = round(CROP_MARGIN * (bottom - top + 1)), round(CROP_MARGIN * (right - left + 1))
    window = image[max(top - margin_y, 0) : bottom + margin_y + 1, max(left - margin_x, 0) : right + margin_x + 1]
    return np.asarray(cv2.resize(window, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR), np.uint8)
