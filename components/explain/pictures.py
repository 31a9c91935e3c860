"""The gallery: each explained image beside its signed attributions, all on one scale, correct and wrong ones apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

# Single pixels speckle, since neighbours under one convolution take turns. Averaged over this share of the image's
# side (a Gaussian's deviation), which is finer than any structure that dermoscopy names, the map can be read.
SMOOTHING = 0.015
SCALE_PERCENTILE = 99.5  # of the smoothed maps' magnitudes over the gallery: few pixels saturate, so that others show
COLOURS = "PuOr_r"  # orange for, purple against: told apart with every common colour blindness
NOTE = (
    "Left: what the model saw, lesion outlined. Right: orange speaks for the predicted class, purple against it "
    "(averaged over 1.5 % of the side)."
)
SYNTHETIC = " SYNTHETIC IMAGES: these maps say nothing about skin."

PAIRS_PER_ROW = 4
PANEL, GAP, CAPTION, MARGIN = 1.55, 0.06, 0.26, 0.18  # inches
PAIR = 2 * PANEL + GAP + MARGIN  # width of one image with its map
ROW = PANEL + CAPTION + 0.08
HEADING, HEAD, FOOT = 0.45, 0.75, 0.75
DOTS_PER_INCH = 110


@dataclass(frozen=True)
class Picture:
    """One explained image.

    Attributes
    ----------
    image: what the model saw, uint8 RGB [size, size, 3].
    lesion: its mask in the same frame, uint8 0/1 [size, size].
    map: signed attributions summed over the colour channels, float32 [size, size].
    label, predicted: true and predicted class.
    probability: softmax of the predicted class.
    image_id: told beside the classes.
    """

    image: npt.NDArray[np.uint8]
    lesion: npt.NDArray[np.uint8]
    map: npt.NDArray[np.float32]
    label: str
    predicted: str
    probability: float
    image_id: str


def draw_gallery(path: Path, pictures: Sequence[Picture], *, title: str, synthetic: bool) -> None:
    """Draw all pictures into one PNG, the correctly classified ones first.

    Parameters
    ----------
    path: file to write.
    pictures: one or more, in the order in which they were chosen.
    title: says which model.
    synthetic: whether the images are drawn, which the gallery then says itself, since it may be passed on alone.
    """
    smooth = [_smooth(picture.map) for picture in pictures]
    scale = float(np.percentile(np.abs(np.stack(smooth)), SCALE_PERCENTILE)) or 1.0
    correct = [place for place, picture in enumerate(pictures) if picture.label == picture.predicted]
    wrong = [place for place, picture in enumerate(pictures) if picture.label != picture.predicted]
    parts = [(text, part) for text, part in (("Classified correctly", correct), ("Classified wrongly", wrong)) if part]

    height = HEAD + sum(HEADING + _rows(part) * ROW for _, part in parts) + FOOT
    sheet = _Sheet(PAIRS_PER_ROW * PAIR + MARGIN, height)
    sheet.text(MARGIN, 0.28, title, fontsize=14, weight="bold")
    sheet.text(MARGIN, 0.58, NOTE + (SYNTHETIC if synthetic else ""), fontsize=9, color="0.25")
    top = HEAD
    for text, part in parts:
        sheet.text(MARGIN, top + HEADING / 2, f"{text} ({len(part)})", fontsize=12, weight="bold")
        for number, place in enumerate(part):
            row, column = divmod(number, PAIRS_PER_ROW)
            corner = (MARGIN + column * PAIR, top + HEADING + row * ROW)
            drawn = _draw_pair(sheet, corner, pictures[place], smooth[place], scale)
        top += HEADING + _rows(part) * ROW
    _draw_scale(sheet, top, drawn)
    sheet.write(path)


class _Sheet:
    """A figure whose places are given in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)

    def text(self, left: float, middle: float, text: str, **style: Any) -> None:
        self.figure.text(left / self.width, 1 - middle / self.height, text, va="center", **style)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = 1 - (top + height) / self.height
        return self.figure.add_axes((left / self.width, bottom, width / self.width, height / self.height))

    def write(self, path: Path) -> None:
        self.figure.savefig(path, format="png", metadata={"Software": None})  # the same bytes whatever drew them


def _rows(part: Sequence[int]) -> int:
    return math.ceil(len(part) / PAIRS_PER_ROW)


def _smooth(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    import cv2

    deviation = max(SMOOTHING * values.shape[0], 0.3)  # px
    whole = np.nan_to_num(values.astype(np.float32))  # a broken map is drawn blank; its numbers tell that it is broken
    return np.asarray(cv2.GaussianBlur(whole, (0, 0), deviation, borderType=cv2.BORDER_CONSTANT), np.float32)


def _draw_pair(
    sheet: _Sheet, corner: tuple[float, float], picture: Picture, values: npt.NDArray[np.float32], scale: float
) -> AxesImage:
    left, top = corner
    right_answer = picture.label == picture.predicted
    classes = picture.label if right_answer else f"{picture.label} taken for {picture.predicted}"
    sheet.text(left, top + CAPTION / 2, f"{classes}, p = {picture.probability:.2f}", fontsize=9)
    sheet.text(left + 2 * PANEL + GAP, top + CAPTION / 2, picture.image_id, fontsize=6, color="0.4", ha="right")

    image = sheet.axes(left, top + CAPTION, PANEL, PANEL)
    image.imshow(picture.image)
    _outline(image, picture.lesion, [("black", 1.8), ("white", 0.8)])
    signed = sheet.axes(left + PANEL + GAP, top + CAPTION, PANEL, PANEL)
    drawn = signed.imshow(values, cmap=COLOURS, vmin=-scale, vmax=scale)
    _outline(signed, picture.lesion, [("0.35", 0.8)])
    for axes in (image, signed):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("0.7")
    return drawn


def _outline(axes: Axes, lesion: npt.NDArray[np.uint8], lines: Sequence[tuple[str, float]]) -> None:
    if lesion.any() and not lesion.all():
        for colour, width in lines:
            axes.contour(lesion, levels=[0.5], colors=[colour], linewidths=[width])


def _draw_scale(sheet: _Sheet, top: float, drawn: AxesImage) -> None:
    width = 5.0
    axes = sheet.axes((sheet.width - width) / 2, top + 0.15, width, 0.12)
    bar = sheet.figure.colorbar(drawn, cax=axes, orientation="horizontal", extend="both", format="%.2g")
    bar.ax.tick_params(labelsize=8)
    bar.set_label("contribution of a pixel to the logit of the predicted class (one scale for all images)", fontsize=8.5)
