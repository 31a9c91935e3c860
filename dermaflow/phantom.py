"""Phantoms: synthetic dermoscopic images in HAM10000's layout, to try the pipeline on without a single patient.

A lesion is drawn once, as four maps in its own coordinates: melanin and blood, which absorb light, and blue veil and
white scar, which scatter it back. Each image of that lesion is one framing of the maps (zoom, rotation, shift) over the
patient's skin, under its own light, hairs and sensor noise. Diagnoses differ in the structures that dermoscopy teaches:
network, globules, cysts, comedo-like openings, arborising vessels, lacunae.

Phantoms test code. They say nothing about how well a model reads skin.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from dermaflow.classes import HAM10000_CLASSES
from dermaflow.errors import InputError

GENERATOR_VERSION = 1  # raise it with every change that changes a byte of the output
METADATA_COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
CLASS_SHARES = {"akiec": 0.12, "bcc": 0.13, "bkl": 0.15, "df": 0.115, "mel": 0.15, "nv": 0.22, "vasc": 0.115}
MIN_IMAGES = 21  # three per class on average: fewer leave nothing to split
MIN_SIDE = 64  # px; below, network and cysts are smaller than a pixel
PLANTED = 2.5  # a planted ruler is so many times as bold as one that is there by chance: few images must teach it

Map = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Points = npt.NDArray[np.floating]  # (n, 2): x, y
Floats = npt.NDArray[np.floating]  # what comes in between: float32 too, but numpy's types do not say so
Random = np.random.Generator
Choice = TypeVar("Choice")


def draw_phantoms(
    directory: Path,
    *,
    images: int,
    seed: int,
    size: tuple[int, int] = (600, 450),
    ruler: str | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw a data source of synthetic lesions into a folder that does not exist yet.

    The folder receives ``HAM10000_metadata.csv``, ``images/PHI_0000001.jpg`` (8-bit colour JPEG),
    ``masks/PHI_0000001_segmentation.png`` (8-bit, 0 or 255, same height and width) and, last, ``source.json``. It is
    built under a temporary name beside `directory` and renamed, so it is either complete or not there.

    The same arguments give the same bytes, whatever the number of workers (on one machine and one set of library
    versions: another OpenCV may round differently). A folder that already holds them is left as it is.

    Parameters
    ----------
    directory : folder to create; it may exist if it is empty
    images : number of images, at least 21; lesions are about two thirds as many
    seed : any integer from 0
    size : (width, height) of the images in pixels, each at least 64; HAM10000 has 600x450
    ruler : a diagnosis of whose lesions every image shows a ruler, beside what images show by chance: an artefact that
        tells the diagnosis, for trying whether an explanation finds it
    workers : number of processes; all cores when None; 1 draws in this process. More than one are started by
        importing the main script anew, so that one needs its ``if __name__ == "__main__"``
    progress : called as ``progress(images_done, images)`` from this process

    Raises
    ------
    InputError
        An argument is out of range, or `directory` holds something else: nothing in it is touched.
    """
    _check_arguments(images=images, seed=seed, size=size, ruler=ruler, workers=workers)
    directory = directory.resolve()  # a rename onto a symbolic link would replace the link, not fill its target
    lesions = _plan_lesions(images, seed)
    source = {
        "name": "phantom",
        "synthetic": True,
        "images": images,
        "lesions": len(lesions),
        "seed": seed,
        "size": list(size),
        "generator_version": GENERATOR_VERSION,
        "licence": "CC0-1.0",
        **({"ruler": ruler} if ruler else {}),
    }
    if _holds(directory, source):
        return

    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.part")
    try:
        (draft / "images").mkdir(parents=True)
        (draft / "masks").mkdir()
        _draw_files(draft, lesions, seed=seed, size=size, ruler=ruler, workers=workers, progress=progress)
        _write_metadata(draft / "HAM10000_metadata.csv", lesions)
        (draft / "source.json").write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
        _put_in_place(draft, directory, source)
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # gone already when it was put in place


# --- the folder ---


def _check_arguments(*, images: int, seed: int, size: tuple[int, int], ruler: str | None, workers: int | None) -> None:
    if images < MIN_IMAGES:
        raise InputError(f"images is {images}: at least {MIN_IMAGES} are needed, three for each of seven diagnoses.")
    if seed < 0:
        raise InputError(f"seed is {seed}: it must be an integer from 0.")
    if min(size) < MIN_SIDE:
        raise InputError(f"size is {size[0]}x{size[1]} pixels: each side must be at least {MIN_SIDE}.")
    if ruler is not None and ruler not in _PAINTERS:
        raise InputError(f"ruler is {ruler!r}: it must be a diagnosis, one of {', '.join(_PAINTERS)}.")
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}: it must be at least 1, or None for all cores.")


def _holds(directory: Path, source: dict[str, object]) -> bool:
    """Whether the folder holds exactly these phantoms; False if it is free to be created, InputError otherwise."""
    if not directory.exists():
        return False
    if not directory.is_dir():
        raise InputError(f"{directory} is a file: give the name of a folder that does not exist yet.")
    if not any(directory.iterdir()):
        return False
    advice = "nothing was changed. Give another folder, or delete this one yourself."
    try:
        found = json.loads((directory / "source.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{directory} holds files but no source.json, so it is no phantom source; {advice}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{directory}/source.json cannot be read ({error}); {advice}") from error
    if found != source:
        found = found if isinstance(found, dict) else {}
        differing = [key for key in source if found.get(key) != source[key]] or ["other keys"]
        raise InputError(f"{directory} holds another data source (it differs in {', '.join(differing)}); {advice}")
    return True


def _put_in_place(draft: Path, directory: Path, source: dict[str, object]) -> None:
    try:
        os.replace(draft, directory)  # atomic; fails on a folder that is not empty, so it never overwrites
    except OSError:
        if not _holds(directory, source):  # a second process may have drawn the same phantoms meanwhile
            raise


def _draw_files(
    folder: Path,
    lesions: Sequence[_Lesion],
    *,
    seed: int,
    size: tuple[int, int],
    ruler: str | None,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    draw = partial(_draw_chunk, folder=folder, seed=seed, size=size, ruler=ruler)
    chunks = [lesions[start : start + 6] for start in range(0, len(lesions), 6)]  # about a third of a second each
    total = sum(len(lesion.image_ids) for lesion in lesions)
    processes = min(workers or os.cpu_count() or 1, len(chunks))
    done = 0
    with ExitStack() as stack:
        counts: Iterable[int] = map(draw, chunks)
        if processes > 1:
            # "spawn", because forking a process that has TensorFlow's threads can hang.
            pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_use_one_thread)
            stack.callback(pool.shutdown, cancel_futures=True)
            counts = pool.map(draw, chunks)
        for count in counts:
            done += count
            if progress is not None:
                progress(done, total)


def _use_one_thread() -> None:
    import cv2

    cv2.setNumThreads(1)  # the processes share the cores already


def _draw_chunk(lesions: Sequence[_Lesion], *, folder: Path, seed: int, size: tuple[int, int], ruler: str | None) -> int:
    """Draw and write all images and masks of some lesions; return the number of images."""
    written = 0
    for lesion in lesions:
        drawn = _draw_lesion(lesion, seed=seed, size=size, ruled=lesion.dx == ruler)
        for image_id, (image, mask) in zip(lesion.image_ids, drawn, strict=True):
            _write_encoded(folder / "images" / f"{image_id}.jpg", image[..., ::-1])
            _write_encoded(folder / "masks" / f"{image_id}_segmentation.png", mask)
            written += 1
    return written


def _write_encoded(path: Path, pixels: Pixels) -> None:
    import cv2

    ok, encoded = cv2.imencode(path.suffix, pixels, [cv2.IMWRITE_JPEG_QUALITY, 90] if path.suffix == ".jpg" else [])
    if not ok:
        raise OSError(f"OpenCV could not encode {path}")
    path.write_bytes(encoded.tobytes())


def _write_metadata(path: Path, lesions: Sequence[_Lesion]) -> None:
    rows = [
        (lesion.lesion_id, image_id, lesion.dx, lesion.dx_type, lesion.age, lesion.sex, lesion.localization)
        for lesion in lesions
        for image_id in lesion.image_ids
    ]
    rows.sort(key=itemgetter(1))  # image numbers were dealt out at random: this order says nothing of class or lesion
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(METADATA_COLUMNS)
        writer.writerows(rows)


# --- who is in the data: lesions, their images, their patients ---


@dataclass(frozen=True)
class _Lesion:
    index: int
    lesion_id: str
    image_ids: tuple[str, ...]
    dx: str
    dx_type: str
    age: str
    sex: str
    localization: str


@dataclass(frozen=True)
class _Epidemiology:
    """How often things are found with a diagnosis, roughly as counted in HAM10000's metadata."""

    age: tuple[int, int]  # mean and standard deviation, years
    male: float
    dx_types: dict[str, float]
    sites: dict[str, float]


# Mean 1.6, more than HAM10000's 1.3: a split that parts a lesion's images shows sooner.
_IMAGES_PER_LESION = {1: 0.60, 2: 0.26, 3: 0.09, 4: 0.05}
_EPIDEMIOLOGY = {
    "akiec": _Epidemiology(
        (67, 11), 0.68, {"histo": 1.0}, {"face": 0.36, "lower extremity": 0.2, "upper extremity": 0.2, "hand": 0.05}
    ),
    "bcc": _Epidemiology(
        (67, 13), 0.62, {"histo": 1.0}, {"back": 0.36, "face": 0.22, "upper extremity": 0.1, "neck": 0.04, "ear": 0.02}
    ),
    "bkl": _Epidemiology(
        (64, 14),
        0.57,
        {"histo": 0.7, "consensus": 0.24, "confocal": 0.06},
        {"face": 0.3, "back": 0.2, "lower extremity": 0.16, "trunk": 0.08, "scalp": 0.04, "chest": 0.07},
    ),
    "df": _Epidemiology(
        (53, 13),
        0.55,
        {"histo": 0.48, "consensus": 0.52},
        {"lower extremity": 0.7, "upper extremity": 0.21, "abdomen": 0.03, "genital": 0.01},
    ),
    "mel": _Epidemiology(
        (61, 15), 0.62, {"histo": 1.0}, {"back": 0.3, "upper extremity": 0.2, "lower extremity": 0.17, "foot": 0.03}
    ),
    "nv": _Epidemiology(
        (46, 15),
        0.52,
        {"follow_up": 0.55, "histo": 0.37, "consensus": 0.08},
        {"lower extremity": 0.22, "back": 0.21, "trunk": 0.19, "abdomen": 0.13, "foot": 0.05, "acral": 0.01},
    ),
    "vasc": _Epidemiology(
        (51, 21), 0.49, {"histo": 0.47, "consensus": 0.53}, {"trunk": 0.22, "abdomen": 0.2, "back": 0.16, "chest": 0.05}
    ),
}
_OTHER_SITES = {"unknown": 0.04, "chest": 0.04, "abdomen": 0.04, "face": 0.03, "upper extremity": 0.05}


def _plan_lesions(images: int, seed: int) -> list[_Lesion]:
    """Decide diagnoses, images per lesion and patients; numbers are dealt at random, so no id tells the class."""
    rng = _generator(seed, 0)
    quotas = _largest_remainder(images, CLASS_SHARES)
    counted = [(dx, count) for dx in HAM10000_CLASSES for count in _split_into_lesions(rng, quotas[dx])]
    order = rng.permutation(len(counted))
    numbers = iter(rng.permutation(images) + 1)
    lesions = []
    for index, (dx, count) in enumerate(counted[position] for position in order):
        lesions.append(
            _Lesion(
                index=index,
                lesion_id=f"PHL_{index + 1:07d}",
                image_ids=tuple(f"PHI_{next(numbers):07d}" for _ in range(count)),
                dx=dx,
                dx_type=_choose(rng, _EPIDEMIOLOGY[dx].dx_types),
                age=_draw_age(rng, *_EPIDEMIOLOGY[dx].age),
                sex=_draw_sex(rng, _EPIDEMIOLOGY[dx].male),
                localization=_choose(rng, _OTHER_SITES | _EPIDEMIOLOGY[dx].sites),
            )
        )
    return lesions


def _largest_remainder(total: int, shares: dict[str, float]) -> dict[str, int]:
    """Whole numbers that sum to `total` and are each within one of their share."""
    quotas = {key: math.floor(total * share) for key, share in shares.items()}
    by_remainder = sorted(shares, key=lambda key: quotas[key] - total * shares[key])
    for key in by_remainder[: total - sum(quotas.values())]:
        quotas[key] += 1
    return quotas


def _split_into_lesions(rng: Random, images: int) -> list[int]:
    """Numbers of images per lesion that sum to `images`; three lesions at least, where there are three images."""
    counts: list[int] = []
    while (left := images - sum(counts)) > 0:
        lesions_still_needed = max(0, 3 - len(counts) - 1)
        counts.append(max(1, min(_choose(rng, _IMAGES_PER_LESION), left - lesions_still_needed)))
    return counts


def _draw_age(rng: Random, mean: int, deviation: int) -> str:
    """Age in years, a multiple of 5 from 5 to 85 with one decimal as in HAM10000; sometimes empty."""
    years = min(85, max(5, 5 * round(rng.normal(mean, deviation) / 5)))
    return "" if rng.random() < 0.02 else f"{years}.0"


def _draw_sex(rng: Random, male: float) -> str:
    return _choose(rng, {"male": 0.99 * male, "female": 0.99 * (1 - male), "unknown": 0.01})


def _generator(seed: int, *place: int) -> Random:
    """The random generator of one place in the data, independent of the order in which places are drawn."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=place))


def _choose(rng: Random, weights: Mapping[Choice, float]) -> Choice:
    total = sum(weights.values())
    return list(weights)[int(rng.choice(len(weights), p=[weight / total for weight in weights.values()]))]


# --- one lesion, in its own coordinates ---


@dataclass(frozen=True)
class _Habit:
    """The build of a diagnosis; lengths are relative to the lesion's radius."""

    area: float  # median share of the frame; over all classes about HAM10000's 0.21
    irregularity: float  # how far the outline is from a circle
    raggedness: float  # depth of the fine notches in the border
    border: tuple[float, float]  # narrowest and widest transition to skin


_HABITS = {
    "akiec": _Habit(area=0.25, irregularity=0.17, raggedness=0.09, border=(0.15, 0.35)),
    "bcc": _Habit(area=0.20, irregularity=0.14, raggedness=0.05, border=(0.12, 0.30)),
    "bkl": _Habit(area=0.25, irregularity=0.12, raggedness=0.045, border=(0.03, 0.07)),
    "df": _Habit(area=0.18, irregularity=0.08, raggedness=0.05, border=(0.30, 0.55)),
    "mel": _Habit(area=0.29, irregularity=0.19, raggedness=0.06, border=(0.05, 0.16)),
    "nv": _Habit(area=0.20, irregularity=0.10, raggedness=0.04, border=(0.10, 0.28)),
    "vasc": _Habit(area=0.17, irregularity=0.12, raggedness=0.03, border=(0.03, 0.08)),
}


class _Tissue:
    """A lesion while it is painted: maps of (side, side) float32 with the lesion in the middle.

    One pixel of a map is one pixel of the image at zoom 1. The maps `melanin` and `blood` are optical densities;
    `veil` (blue-grey) and `white` are the shares of light that they scatter back, 0 to 1.
    """

    def __init__(self, rng: Random, habit: _Habit, size: tuple[int, int]) -> None:
        self.rng = rng
        self.unit = min(size) / 450  # structures are sized in pixels of a 600x450 image
        area = float(np.clip(habit.area * np.exp(0.5 * rng.standard_normal()), 0.07, 0.62))
        self.radius = math.sqrt(area * size[0] * size[1] / math.pi)
        outline = self.radius * _draw_outline(rng, habit.irregularity * rng.uniform(0.5, 1.4))
        half = math.ceil(outline.max() + 0.4 * self.radius + 4)
        self.shape = (2 * half, 2 * half)
        self.border = rng.uniform(*habit.border) * self.radius
        notches = self.noise(0.35) + 0.5 * self.noise(0.12)
        self.depth = _signed_depth(outline, half) + habit.raggedness * self.radius * notches  # pixels, positive inside
        self.inside = _ramp(-0.5 * self.border, 0.5 * self.border, self.depth)
        axis = np.arange(-half, half, dtype=np.float32) / self.radius
        self.x, self.y = axis[None, :], axis[:, None]  # in radii
        self.melanin, self.blood, self.veil, self.white = (np.zeros(self.shape, np.float32) for _ in range(4))

    def noise(self, wavelength: float) -> Map:
        """Smooth noise of mean 0 and deviation about 1; the wavelength in radii."""
        return _noise(self.rng, self.shape, wavelength * self.radius)

    def blob(self, distance: float, radius: float) -> Map:
        """A soft irregular patch (0 to 1) at a distance from the centre, both in radii, in a random direction."""
        angle = self.rng.uniform(0, 2 * math.pi)
        away = np.hypot(self.x - distance * math.cos(angle), self.y - distance * math.sin(angle))
        return 1 - _ramp(0.5 * radius, 1.4 * radius, away + 0.2 * radius * self.noise(0.6 * radius))

    def cells(self, spacing: float, jitter: float) -> Map:
        """Distance to the middle of the next cell, in spacings: 0 there, about 0.5 on the lines between cells."""
        return _cells(self.rng, self.shape, spacing * self.unit, jitter)

    def spots(self, count: float, radii: tuple[float, float], *, margin: float = 0.1, soft: float = 0.8) -> Map:
        """Cover (0 to 1) of oval spots inside the lesion; radii, softness in pixels, margin to the border in radii."""
        scaled = (radii[0] * self.unit, radii[1] * self.unit)
        return _spots(self.rng, self.depth > margin * self.radius, round(count), scaled, soft * self.unit)

    def strokes(self, lines: Iterable[tuple[Points, float]], soft: float = 0.6) -> Map:
        """Cover (0 to 1) of lines given in radii, with their widths in pixels."""
        half = self.shape[0] / 2
        in_pixels = [(points * self.radius + half, width * self.unit) for points, width in lines]
        return _strokes(self.shape, in_pixels, soft * self.unit)


def _paint_nevus(tissue: _Tissue) -> None:
    """Symmetric, one or two browns, a regular network, globules or neither."""
    rng = tissue.rng
    tissue.melanin += rng.uniform(0.9, 1.6) * (1 + 0.1 * tissue.noise(0.7) + 0.07 * tissue.noise(0.2))
    tissue.blood += rng.uniform(0.0, 0.2)
    pattern = _choose(rng, {"network": 0.5, "globules": 0.25, "homogeneous": 0.25})
    if pattern == "network":
        net = _ramp(0.3, 0.55, tissue.cells(rng.uniform(10, 14), 0.25)) * _ramp(-1.5, 0.5, tissue.noise(0.5))
        tissue.melanin *= 0.75 + rng.uniform(0.4, 0.9) * net
    elif pattern == "globules":
        globules = 1 - _ramp(0.15, 0.42, tissue.cells(rng.uniform(12, 18), 0.25))
        tissue.melanin *= 0.8 + rng.uniform(0.3, 0.7) * globules * _ramp(-1.2, 0.3, tissue.noise(0.4))
    if rng.random() < 0.5:  # darker or lighter in the very middle
        tissue.melanin *= 1 + rng.uniform(-0.35, 0.6) * tissue.blob(rng.uniform(0, 0.15), rng.uniform(0.35, 0.6))
    tissue.melanin *= 0.35 + 0.65 * _ramp(0, 0.35 * tissue.radius, tissue.depth)  # thins out towards the rim
    if rng.random() < 0.25:  # atypical nevus: a second colour off the middle
        tissue.melanin += rng.uniform(0.4, 1.1) * tissue.blob(0.45, 0.4)


def _paint_melanoma(tissue: _Tissue) -> None:
    """Asymmetric in colour and structure: tan to black zones, irregular network, streaks, dots, veil, regression."""
    rng = tissue.rng
    advanced = rng.uniform(0.3, 1.0)  # early melanomas resemble atypical nevi
    angle = rng.uniform(0, 2 * math.pi)
    slope = rng.uniform(0.5, 1.2) * (tissue.x * math.cos(angle) + tissue.y * math.sin(angle))
    grain = 0.2 * tissue.noise(0.2) + 0.12 * tissue.noise(0.08)
    dark = _ramp(-0.5, 0.5, slope + 0.7 * tissue.noise(0.6) + grain)
    black = _ramp(0.4, 1.1, slope + 0.7 * tissue.noise(0.5) + grain)
    tissue.melanin += rng.uniform(0.7, 1.2) + rng.uniform(0.9, 1.4) * dark
    tissue.melanin += advanced * rng.uniform(1.2, 2.2) * black
    tissue.blood += rng.uniform(0.05, 0.35) + 0.5 * advanced * _ramp(0.4, 1.4, tissue.noise(0.6))
    net = _ramp(0.3, 0.6, tissue.cells(rng.uniform(12, 18), 0.5)) * _ramp(-0.3, 0.8, tissue.noise(0.5))
    tissue.melanin *= 0.85 + rng.uniform(0.3, 0.8) * net
    tissue.melanin += 1.2 * advanced * tissue.spots(rng.uniform(0, 40), (1.5, 4.5)) * _ramp(-0.2, 0.3, slope)
    if rng.random() < 0.7 * advanced:
        streaks = _draw_streaks(tissue)
        tissue.melanin = np.maximum(tissue.melanin, 1.7 * streaks)
        tissue.inside = np.maximum(tissue.inside, streaks)
    if rng.random() < 0.9 * advanced:
        tissue.veil += rng.uniform(0.3, 0.7) * tissue.blob(rng.uniform(0.1, 0.5), rng.uniform(0.25, 0.5))
    if rng.random() < 0.6 * advanced:
        scar = tissue.blob(rng.uniform(0.3, 0.6), rng.uniform(0.2, 0.35)) * _ramp(-1.2, 0.6, tissue.noise(0.15))
        tissue.melanin *= 1 - 0.7 * scar
        tissue.white += rng.uniform(0.25, 0.5) * scar
        tissue.veil += 0.5 * scar * tissue.spots(120, (1, 2))  # "peppering"


def _paint_keratosis(tissue: _Tissue) -> None:
    """Seborrhoeic keratosis: stuck-on and sharply bordered, white cysts, comedo-like openings, ridges."""
    rng = tissue.rng
    tissue.melanin += rng.uniform(0.5, 1.15) * (1 + 0.15 * tissue.noise(0.5) + 0.1 * tissue.noise(0.15))
    tissue.blood += rng.uniform(0.0, 0.08)
    tissue.veil += rng.uniform(0.12, 0.35)  # thick horn looks dull and greyish
    ridges = _noise(rng, tissue.shape, rng.uniform(7, 14) * tissue.unit)
    tissue.melanin *= 1 + rng.uniform(0.1, 0.4) * np.tanh(1.5 * ridges)
    structures = rng.uniform(0.1, 1.0) * (tissue.radius / tissue.unit / 120) ** 2  # flat ones have few
    openings = tissue.spots(structures * rng.uniform(2, 18), (3, 8), soft=1.4)
    tissue.melanin += rng.uniform(0.8, 1.9) * openings
    cysts = tissue.spots(1 + structures * rng.uniform(4, 26), (2, 5.5), soft=1.5)
    tissue.melanin *= 1 - 0.5 * cysts
    tissue.white += rng.uniform(0.25, 0.65) * cysts
    rim = _ramp(0.45 * tissue.radius, 0.2 * tissue.radius, tissue.depth)
    tissue.inside *= 1 - rim * tissue.spots(rng.uniform(0, 6), (10, 22), margin=-0.08, soft=2)  # moth-eaten


def _paint_basal_cell_carcinoma(tissue: _Tissue) -> None:
    """Pearly pink, blue-grey ovoid nests, arborising vessels in focus, perhaps an ulcer."""
    rng = tissue.rng
    tissue.blood += rng.uniform(0.2, 0.5) * (1 + 0.3 * tissue.noise(0.4) + 0.15 * tissue.noise(0.12))
    tissue.white += rng.uniform(0.22, 0.4) * (1 + 0.35 * tissue.noise(0.25))
    tissue.melanin += rng.uniform(0.0, 0.35) * (1 + 0.4 * tissue.noise(0.3))
    if rng.random() < 0.85:
        size = tissue.radius / tissue.unit / 120
        nests = tissue.spots(rng.uniform(4, 9), (12 * size, 34 * size), margin=0.15, soft=3.5)
        nests = np.maximum(nests, tissue.spots(rng.uniform(2, 20), (2, 5), soft=1.5))
        nests *= _ramp(-2.2, 0.0, tissue.noise(0.12))
        tissue.veil += rng.uniform(0.6, 0.9) * nests
        tissue.melanin += rng.uniform(0.4, 1.4) * nests
    vessels = _draw_vessel_trees(tissue, int(rng.integers(1, 5)))
    tissue.blood += rng.uniform(0.5, 1.3) * vessels
    tissue.white *= 1 - vessels
    tissue.veil *= 1 - 0.7 * vessels  # they lie above the nests
    tissue.melanin *= 1 - 0.7 * vessels
    if rng.random() < 0.3:
        ulcer = tissue.blob(rng.uniform(0, 0.4), rng.uniform(0.12, 0.25))
        tissue.blood += 0.9 * ulcer
        tissue.melanin += 0.6 * ulcer


def _paint_actinic_keratosis(tissue: _Tissue) -> None:
    """Red, scaly; "strawberry": red net around pale follicles; or the dotted vessels of Bowen's disease."""
    rng = tissue.rng
    tissue.blood += rng.uniform(0.45, 0.8) * (1 + 0.25 * tissue.noise(0.35) + 0.2 * tissue.noise(0.1))
    tissue.melanin += rng.uniform(0.08, 0.3) * np.maximum(0, 1 + 0.6 * tissue.noise(0.3))
    if rng.random() < 0.6:
        cells = tissue.cells(rng.uniform(14, 22), 0.4)
        follicles = (1 - _ramp(0.08, 0.26, cells)) * _ramp(-0.8, 0.8, tissue.noise(0.3))
        tissue.blood *= 0.7 + rng.uniform(0.4, 0.8) * _ramp(0.2, 0.55, cells)
        tissue.white += rng.uniform(0.2, 0.5) * follicles
    else:
        tissue.blood += rng.uniform(0.5, 1.1) * tissue.spots(rng.uniform(40, 150), (1.5, 3), margin=0.15, soft=1.1)
    scale = tissue.noise(0.3) + 0.5 * _noise(rng, tissue.shape, 7 * tissue.unit)
    scale = _ramp(0.4, 1.7, scale + rng.uniform(-0.2, 0.4))
    tissue.white += rng.uniform(0.3, 0.6) * scale
    tissue.melanin += 0.3 * scale  # keratin is yellowish
    if rng.random() < 0.4:
        tissue.melanin += rng.uniform(0.3, 0.8) * tissue.blob(rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.5))


def _paint_dermatofibroma(tissue: _Tissue) -> None:
    """A white scar-like patch in the middle, a delicate light brown network around it, fading into the skin."""
    rng = tissue.rng
    scar = tissue.blob(rng.uniform(0, 0.2), rng.uniform(0.25, 0.5))
    net = _ramp(0.3, 0.55, tissue.cells(rng.uniform(8, 11), 0.3))
    tissue.melanin += rng.uniform(0.55, 0.95) * (0.75 + 0.4 * net + 0.2 * tissue.noise(0.4))
    tissue.blood += rng.uniform(0.0, 0.2) * (1 + 0.3 * tissue.noise(0.5))
    tissue.melanin *= 1 - rng.uniform(0.6, 0.95) * scar
    tissue.blood += rng.uniform(0.0, 0.25) * scar
    strands = np.abs(_noise(rng, tissue.shape, 14 * tissue.unit))  # fibres: the zero lines of a noise
    tissue.white += rng.uniform(0.4, 0.8) * scar * (0.75 + 0.5 * _ramp(0.3, 0.05, strands))


def _paint_vascular_lesion(tissue: _Tissue) -> None:
    """Haemangioma or angiokeratoma: red to purple lacunae, parted by pale septa, sharply bordered."""
    rng = tissue.rng
    waves = 0.07 * _noise(rng, tissue.shape, 18 * tissue.unit) + 0.03 * _noise(rng, tissue.shape, 7 * tissue.unit)
    lacunae = 1 - _ramp(0.4, 0.7, tissue.cells(rng.uniform(24, 48), 0.3) + waves)
    red = rng.uniform(1.6, 2.5)
    tissue.blood += red * (1 - rng.uniform(0.1, 0.6) * (1 - lacunae)) * (1 + 0.12 * tissue.noise(0.3))
    tissue.veil += rng.uniform(0.0, 0.35) * lacunae  # purple
    tissue.melanin += rng.uniform(0.0, 0.15)
    tissue.white += rng.uniform(0.0, 0.3) * (1 - lacunae)
    if rng.random() < 0.4:  # clotted lacunae, blue to black
        clots = lacunae * _ramp(0.4, 1.2, tissue.noise(0.4))
        tissue.melanin += rng.uniform(0.5, 1.7) * clots
        tissue.veil += 0.2 * clots
    if rng.random() < 0.25:  # whitish haze of thick skin on top
        tissue.white += rng.uniform(0.2, 0.4) * tissue.blob(0.3, 0.5)


_PAINTERS: dict[str, Callable[[_Tissue], None]] = {
    "akiec": _paint_actinic_keratosis,
    "bcc": _paint_basal_cell_carcinoma,
    "bkl": _paint_keratosis,
    "df": _paint_dermatofibroma,
    "mel": _paint_melanoma,
    "nv": _paint_nevus,
    "vasc": _paint_vascular_lesion,
}


def _draw_outline(rng: Random, irregularity: float) -> Map:
    """Distance from centre to border in 360 directions, in radii: (360,) float32, mean square 1."""
    angles = np.linspace(0, 2 * math.pi, 360, endpoint=False)
    orders = np.arange(2, 13)
    heights = irregularity * rng.standard_normal(orders.size) / (orders / 2) ** 1.3
    phases = rng.uniform(0, 2 * math.pi, orders.size)
    outline = np.clip(1 + (heights[:, None] * np.cos(orders[:, None] * angles + phases[:, None])).sum(0), 0.35, 1.7)
    return np.asarray(outline / np.sqrt(np.mean(outline**2)), np.float32)


def _draw_streaks(tissue: _Tissue) -> Map:
    """Radial streaks that leave the border on one side; each is tapered by drawing its inner half wider."""
    rng = tissue.rng
    towards, half = rng.uniform(0, 2 * math.pi), tissue.shape[0] // 2
    lines: list[tuple[Points, float]] = []
    for angle in towards + rng.uniform(-1.1, 1.1, rng.integers(8, 26)):
        ray = np.array([math.cos(angle), math.sin(angle)])
        steps = np.arange(0, half - 1)
        along = tissue.depth[(half + steps * ray[1]).astype(int), (half + steps * ray[0]).astype(int)]
        rim = float(np.count_nonzero(along > 0)) / tissue.radius
        tip, foot = rim + rng.uniform(0.03, 0.16), rim - 0.15
        width = rng.uniform(2.5, 4.5)
        lines.append((np.array([foot * ray, tip * ray]), width))
        lines.append((np.array([foot * ray, (foot + 0.6 * (tip - foot)) * ray]), 1.8 * width))
    return tissue.strokes(lines, soft=1.5)


def _draw_vessel_trees(tissue: _Tissue, trees: int) -> Map:
    """Trees that come in over the border and branch: thick stems, ever finer twigs."""
    rng = tissue.rng
    lines: list[tuple[Points, float]] = []
    for angle in rng.uniform(0, 2 * math.pi, trees):
        start = rng.uniform(0.7, 1.0) * np.array([math.cos(angle), math.sin(angle)])
        branches = [(start, angle + math.pi + rng.normal(0, 0.4), rng.uniform(2.6, 4.2), rng.uniform(0.7, 1.2))]
        while branches:
            origin, heading, width, length = branches.pop()
            headings = heading + np.cumsum(rng.normal(0, 0.28, 9))
            steps = length / 9 * np.stack([np.cos(headings), np.sin(headings)], axis=1)
            points = np.vstack([origin, origin + np.cumsum(steps, axis=0)])
            lines.append((points, width))
            if width > 1.3:
                for joint in rng.choice(np.arange(2, 10), 2, replace=False):
                    turn = rng.choice([-1, 1]) * rng.uniform(0.4, 1.0)
                    branches.append((points[joint], headings[joint - 1] + turn, 0.62 * width, 0.55 * length))
    return tissue.strokes(lines, soft=0.7)


# --- one image: a framing of the lesion on skin ---

# Optical densities in red, green, blue at concentration 1, for display (gamma-coded) values; chosen by eye against
# HAM10000: melanin darkens blue most (brown), blood takes green and blue (red).
_MELANIN = (0.53, 0.79, 0.98)
_BLOOD = (0.09, 0.74, 0.46)
_BARE_SKIN = (0.87, 0.69, 0.68)  # reflectance without melanin
_VEIL = (0.42, 0.45, 0.56)
_WHITE = (0.92, 0.83, 0.80)
_GLARE = 0.035  # light from the surface: no lesion is blacker

# Melanin density of bare skin by Fitzpatrick type; HAM10000 (Vienna, Queensland) is mostly I to III.
_SKIN_TYPES = {0.02: 0.30, 0.08: 0.40, 0.16: 0.20, 0.32: 0.06, 0.60: 0.03, 1.0: 0.01}


@dataclass(frozen=True)
class _Skin:
    """What the images of one patient share; densities and their deviations."""

    melanin: float
    blood: float
    mottling: float
    furrows: float
    hairs: float
    hair_colour: tuple[float, float, float]


def _draw_lesion(lesion: _Lesion, *, seed: int, size: tuple[int, int], ruled: bool) -> Iterator[tuple[Pixels, Pixels]]:
    """Yield image (height, width, 3) uint8 RGB and mask (height, width) uint8, once for each image of the lesion."""
    rng = _generator(seed, 1, lesion.index)
    tissue = _Tissue(rng, _HABITS[lesion.dx], size)
    _PAINTERS[lesion.dx](tissue)
    layers = np.stack([tissue.melanin, tissue.blood, tissue.veil, tissue.white], axis=-1)
    layers = np.maximum(layers, 0) * tissue.inside[..., None]
    skin = _draw_patient_skin(rng)
    traced = _trace_outline(tissue)
    planted = _generator(seed, 2, lesion.index) if ruled else None  # its own: the images are otherwise what they were
    for _ in lesion.image_ids:
        framing = _draw_framing(rng, tissue, size)
        mask = np.where(_warp(traced, framing, size) > 0.5, np.uint8(255), np.uint8(0))
        image = _photograph(rng, skin, _warp(layers, framing, size), unit=tissue.unit, planted=planted)
        yield image, mask


def _draw_patient_skin(rng: Random) -> _Skin:
    melanin = _choose(rng, _SKIN_TYPES)
    dark_hair = rng.random() < 0.75 or melanin > 0.3
    return _Skin(
        melanin=melanin * rng.uniform(0.7, 1.3),
        blood=rng.uniform(0.03, 0.16),
        mottling=rng.uniform(0.008, 0.035),
        furrows=rng.uniform(0.01, 0.05),
        hairs=_choose(rng, {0.0: 0.5, 3.0: 0.3, 10.0: 0.15, 25.0: 0.05}),
        hair_colour=(0.14, 0.09, 0.08) if dark_hair else (0.80, 0.68, 0.52),
    )


def _draw_framing(rng: Random, tissue: _Tissue, size: tuple[int, int]) -> Map:
    """Affine map from lesion to image coordinates, (2, 3) float32: zoom, rotation and shift of the dermatoscope."""
    angle, zoom = rng.uniform(0, 2 * math.pi), rng.uniform(0.82, 1.15)
    target = (np.array(size) - 1) / 2 + rng.normal(0, 0.05, 2) * np.array(size)
    turn = zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = np.full(2, tissue.shape[0] / 2)
    return np.column_stack([turn, target - turn @ middle]).astype(np.float32)


def _trace_outline(tissue: _Tissue) -> Map:
    """The lesion as an expert outlines it, 0 or 1: one piece, smooth, a little outside of where the pigment fades."""
    import cv2

    depth = _blur(tissue.depth, 0.04 * tissue.radius)
    _, pieces, statistics, _ = cv2.connectedComponentsWithStats((depth > -0.2 * tissue.border).astype(np.uint8))
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))  # row 0 is the skin around
    return np.asarray(pieces == largest, np.float32)


def _photograph(rng: Random, skin: _Skin, lesion: Map, *, unit: float, planted: Random | None) -> Pixels:
    """Photograph lesion maps (height, width, 4) on the patient's skin: (height, width, 3) uint8 RGB.

    `planted` draws a ruler over them; None for no more artefacts than there are by chance.
    """
    shape = (lesion.shape[0], lesion.shape[1])
    furrows = skin.furrows * _noise(rng, shape, 3.5 * unit)
    mottling = skin.mottling * (_noise(rng, shape, 90 * unit) + 0.7 * _noise(rng, shape, 22 * unit))
    melanin = np.maximum(skin.melanin + mottling + furrows, 0) + lesion[..., 0]
    blood = np.maximum(skin.blood + 1.2 * skin.mottling * _noise(rng, shape, 50 * unit), 0) + lesion[..., 1]
    veil, white = np.minimum(lesion[..., 2], 0.9), np.minimum(lesion[..., 3], 0.85)
    light = _draw_light(rng, shape)
    cast = 1 + rng.normal(0, 1, 3) * (0.015, 0.02, 0.035)  # white balance, mostly between lilac and orange
    artefacts = _draw_artefacts(rng, skin, shape, unit)
    if planted is not None:
        artefacts.append(_ruler(planted, shape, unit, bold=PLANTED))
    image = np.empty((*shape, 3), np.float32)
    for channel in range(3):
        seen = _reflect(channel, melanin, blood, veil, white)
        for cover, colour in artefacts:
            _lay_over(seen, cover, colour[channel])
        seen += _GLARE
        seen *= light
        seen *= float(cast[channel])
        image[..., channel] = seen
    image = _blur(image, rng.uniform(0.4, 1.0) * unit)
    image += rng.uniform(0.006, 0.016) * _white_noise(rng, image.shape)
    image *= 255
    image += 0.5
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def _reflect(channel: int, melanin: Map, blood: Map, veil: Map, white: Map) -> Map:
    """Light of one colour channel that comes back from the tissue (height, width), 1 being all of it."""
    density = _MELANIN[channel] * melanin
    density += _BLOOD[channel] * blood
    reflected = np.asarray(np.exp(-density), np.float32)
    reflected *= _BARE_SKIN[channel]
    density *= 0.3
    density += 1
    _lay_over(reflected, veil, _VEIL[channel] / density)  # some of the pigment lies above the veil
    _lay_over(reflected, white, _WHITE[channel])
    return reflected


def _lay_over(ground: Map, cover: Map, colour: float | Map) -> None:
    """Mix a colour into `ground`, in place, by its cover from 0 to 1."""
    difference = colour - ground
    difference *= cover
    ground += difference


def _draw_light(rng: Random, shape: tuple[int, int]) -> Map:
    """Relative brightness (height, width): exposure, a light from one side, falloff, at times the tube's dark rim."""
    height, width = shape
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * height / width
    angle = rng.uniform(0, 2 * math.pi)
    light = rng.uniform(0.93, 1.08) * (1 + rng.uniform(0, 0.07) * (x * math.cos(angle) + y * math.sin(angle)))
    squared = x * x + y * y
    light *= 1 - rng.uniform(0.0, 0.18) * squared
    if rng.random() < 0.10:
        rim = rng.uniform(0.92, 1.12)  # 1.25 reaches the corner of a 4:3 image, 1 the middle of its left edge
        light *= 0.04 + 0.96 * _ramp(rim + 0.03, rim - 0.04, np.sqrt(squared))
    return np.asarray(light, np.float32)


# --- what lies over the lesion, independent of the diagnosis ---

Overlay = tuple[Map, tuple[float, float, float]]  # cover (height, width) from 0 to 1, and RGB colour


def _draw_artefacts(rng: Random, skin: _Skin, shape: tuple[int, int], unit: float) -> list[Overlay]:
    overlays: list[Overlay] = []
    hairs = int(rng.poisson(skin.hairs))
    if hairs:
        overlays.append((rng.uniform(0.6, 0.95) * _draw_hairs(rng, hairs, shape, unit), skin.hair_colour))
    if rng.random() < 0.08:
        overlays.append(_ruler(rng, shape, unit))
    if rng.random() < 0.10:
        overlays.extend(_draw_bubbles(rng, shape, unit))
    return overlays


def _draw_hairs(rng: Random, hairs: int, shape: tuple[int, int], unit: float) -> Map:
    """Curved hairs that mostly grow one way, drawn as quadratic Bezier curves."""
    height, width = shape
    growth = rng.uniform(0, math.pi)
    t = np.linspace(0, 1, 16)[:, None]
    lines: list[tuple[Points, float]] = []
    for _ in range(hairs):
        heading, length = growth + rng.normal(0, 0.5), rng.uniform(80, 420) * unit
        middle = rng.uniform(0, 1, 2) * (width, height)
        along, across = np.array([math.cos(heading), math.sin(heading)]), np.array([-math.sin(heading), math.cos(heading)])
        start, end = middle - along * length / 2, middle + along * length / 2
        bend = middle + across * length * rng.normal(0, 0.18)
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        lines.append((curve, rng.uniform(1.0, 2.4) * unit))
    return _strokes(shape, lines, 0.4 * unit)


def _ruler(rng: Random, shape: tuple[int, int], unit: float, *, bold: float = 1.0) -> Overlay:
    """Ticks of a millimetre scale along a slanted line near one edge."""
    height, width = shape
    slant, gap = rng.normal(0, 0.12), rng.uniform(11, 22) * unit
    edge = rng.uniform(0.03, 0.1)
    along, origin = [
        (np.array([1.0, slant]), np.array([0.0, edge * height])),
        (np.array([1.0, slant]), np.array([0.0, (1 - edge) * height])),
        (np.array([slant, 1.0]), np.array([edge * width, 0.0])),
        (np.array([slant, 1.0]), np.array([(1 - edge) * width, 0.0])),
    ][rng.integers(4)]
    across = np.array([-along[1], along[0]])
    lines: list[tuple[Points, float]] = []
    for tick in range(int(max(shape) / gap)):
        foot = origin + tick * gap * along
        reach = (16 if tick % 5 == 0 else 9) * bold * unit
        lines.append((np.array([foot - across * reach / 2, foot + across * reach / 2]), 1.6 * bold * unit))
    return 0.85 * _strokes(shape, lines, 0.4 * unit), (0.08, 0.08, 0.09)


def _draw_bubbles(rng: Random, shape: tuple[int, int], unit: float) -> list[Overlay]:
    """Air in the contact gel: a dark ring, a bright glint at the side of the lamp."""
    rings: list[tuple[Points, float]] = []
    glints: list[tuple[Points, float]] = []
    turn = np.linspace(0, 2 * math.pi, 25)
    lamp = rng.uniform(0, 2 * math.pi)
    cluster = rng.uniform(0, 1, 2) * (shape[1], shape[0])
    for _ in range(rng.integers(2, 10)):
        centre, radius = cluster + rng.normal(0, 60 * unit, 2), rng.uniform(3, 15) * unit
        rings.append((centre + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1), 1.3 * unit))
        arc = lamp + np.linspace(-0.6, 0.6, 8)
        glints.append((centre + 0.8 * radius * np.stack([np.cos(arc), np.sin(arc)], axis=1), 1.8 * unit))
    dark, bright = _strokes(shape, rings, 0.6 * unit), _strokes(shape, glints, 0.5 * unit)
    return [(0.4 * dark, (0.25, 0.2, 0.2)), (0.9 * bright, (0.98, 0.97, 0.96))]


# --- fields: the brushes of all of the above ---


def _noise(rng: Random, shape: tuple[int, int], wavelength: float) -> Map:
    """Smooth noise (height, width) of mean 0 and deviation about 1, with a wavelength in pixels."""
    import cv2

    rows, columns = (max(2, round(extent / max(1.0, wavelength))) + 2 for extent in shape)
    coarse = 1.35 * rng.standard_normal((rows, columns), dtype=np.float32)  # interpolation flattens it
    return np.asarray(cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), np.float32)


def _white_noise(rng: Random, shape: tuple[int, ...]) -> Map:
    """Noise without correlation, of mean 0 and deviation 1; uniform, because bytes cost a tenth of normal draws."""
    noise = np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape).astype(np.float32)
    noise -= 127.5
    noise /= 73.9  # deviation of the 256 values
    return noise


def _ramp(low: float, high: float, values: Floats) -> Map:
    """0 up to `low`, 1 from `high` on, smooth between; falling when high < low."""
    t = (values - low) * (1 / (high - low))
    np.clip(t, 0, 1, out=t)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _cells(rng: Random, shape: tuple[int, int], spacing: float, jitter: float) -> Map:
    """Distance to the nearest of jittered hexagonal grid points, in spacings (height, width)."""
    import cv2

    rows = np.arange(0, shape[0] + spacing, spacing * math.sqrt(3) / 2)
    columns = np.arange(0, shape[1] + spacing, spacing)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    x = x + np.where(np.arange(rows.size) % 2 == 0, 0, spacing / 2)[:, None]
    x = np.clip(x + jitter * spacing * rng.standard_normal(x.shape), 0, shape[1] - 1).astype(int)
    y = np.clip(y + jitter * spacing * rng.standard_normal(y.shape), 0, shape[0] - 1).astype(int)
    ground = np.ones(shape, np.uint8)
    ground[y, x] = 0
    return np.asarray(cv2.distanceTransform(ground, cv2.DIST_L2, 5) / spacing, np.float32)


def _signed_depth(outline: Map, half: int) -> Map:
    """Distance in pixels to an outline (360 radii around the middle), positive inside: (2 half, 2 half) float32."""
    import cv2

    angles = np.linspace(0, 2 * math.pi, outline.size, endpoint=False)
    points = half + outline[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    inside = np.zeros((2 * half, 2 * half), np.uint8)
    cv2.fillPoly(inside, [np.rint(points).astype(np.int32)], 1)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    return np.asarray(depth, np.float32)


_SUBPIXEL = 4  # OpenCV takes coordinates as fixed-point numbers with this many fractional bits


def _spots(rng: Random, where: npt.NDArray[np.bool_], count: int, radii: tuple[float, float], soft: float) -> Map:
    """Cover (height, width) from 0 to 1 of randomly oriented ovals with their centres in `where`."""
    import cv2

    cover = np.zeros(where.shape, np.uint8)
    places = np.flatnonzero(where)
    for place in rng.choice(places, count) if places.size else ():
        y, x = divmod(int(place), where.shape[1])
        radius = rng.uniform(*radii)
        axes = (radius, radius * rng.uniform(0.6, 1.0))
        cv2.ellipse(
            cover,
            (x << _SUBPIXEL, y << _SUBPIXEL),
            (round(axes[0] * 2**_SUBPIXEL), round(axes[1] * 2**_SUBPIXEL)),
            rng.uniform(0, 180),
            0,
            360,
            255,
            -1,
            cv2.LINE_AA,
            _SUBPIXEL,
        )
    return _blur(cover.astype(np.float32) / 255, soft)


def _strokes(shape: tuple[int, int], lines: Iterable[tuple[Points, float]], soft: float) -> Map:
    """Cover (height, width) from 0 to 1 of polylines, each (points, 2) as x, y and a width, in pixels."""
    import cv2

    cover = np.zeros(shape, np.uint8)
    for points, width in lines:
        fixed = np.rint(points * 2**_SUBPIXEL).astype(np.int32)
        # OpenCV draws whole widths only: a line thinner than one pixel is drawn paler instead.
        cv2.polylines(cover, [fixed], False, round(255 * min(1.0, width)), max(1, round(width)), cv2.LINE_AA, _SUBPIXEL)
    return _blur(cover.astype(np.float32) / 255, soft)


def _blur(values: Floats, deviation: float) -> Map:
    import cv2

    if deviation < 0.2:  # less than a pixel can show
        return np.asarray(values, np.float32)
    return np.asarray(cv2.GaussianBlur(values, (0, 0), deviation), np.float32)


def _warp(values: Map, framing: Map, size: tuple[int, int], outside: float = 0.0) -> Map:
    import cv2

    border = (outside,) * 4
    return np.asarray(cv2.warpAffine(values, framing, size, flags=cv2.INTER_LINEAR, borderValue=border), np.float32)
