"""The lesion mask of one image: K-means with k = 2 (lesion, skin), then morphology.

The study's equation 1: over two clusters S_1 (lesion) and S_2 (skin) with means mu_1 and mu_2, minimise the within-cluster
sum of squares, WCSS = sum_k sum_{x in S_k} ||x - mu_k||^2. Here x is one pixel: the weighted difference of its
CIELAB colour from that of skin at the same place, because the lamp and the curve of the body shade skin unevenly.

The constants were chosen on HAM10000 (doi:10.7910/DVN/DBW86T): 726 images from one half of the lesions, against expert
masks (Tschandl et al., Nature Medicine 26, 1229, 2020). "Loses" below is what the mean Dice of those images, weighted to
the shares of classes in HAM10000, loses when that one thing is changed; README.md has the figures for the other half.
Lengths are shares of the image side, so that they hold for every `segment.working_size`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from dermaflow.params import SegmentParams

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

ALGORITHM = "k-means (k = 2) on CIELAB difference from a fitted skin surface, convex outline"
ALGORITHM_VERSION = 1  # raise it with every change that changes a mask

# Cleaning
HAIR_WIDTH = 0.045  # of the closing that fills hairs and ruler marks: 27 px of HAM10000's 600; hairs have 2 to 10
HAIR_DARKNESS = 40  # of 255, in every channel: hair absorbs all colours; pigment and blood let red through
MEDIAN_WIDTH = 0.063  # of the median filter that removes what is left; none loses 0.006
DARK_LIGHTNESS = 25.0  # L* of the black around a round field of view
DARK_MARGIN = 0.03  # by which that black is grown, because the field fades towards it
MIN_LIT_SHARE = 0.2  # less is no field of view: a dark picture is then taken whole

# Skin, as a surface of colour over the image. One colour of skin an image takes shading for lesion: loses 0.036
SKIN_STIFFNESS = 0.02  # ridge, so that the surface does not follow a large lesion; 0 loses 0.008, 0.1 loses 0.006

# K-means. Hue tells lesion from skin more reliably than lightness, which shading also changes: equal weights lose 0.013
COLOUR_WEIGHTS = (1.1, 3.5, 2.5)  # of L*, a*, b*
START_SHARE = 0.1  # first guess: of the inner tenth, the tenth that is least like skin; 0.3 loses 0.016
MAX_ITERATIONS = 100  # the median image needs 9, the slowest 85

# Outline
OPENING = 0.045  # removes specks and thin bridges; none loses 0.002
CLOSING = 0.13  # joins the parts of a patchy lesion; none loses 0.008
MARGIN = 0.018  # experts draw outside of the visible edge: none loses 0.03, 0.027 loses 0.009

# Plausibility
MAX_BORDER_CONTACT = 0.4  # share of the image's border; exceeded by 1 % of the experts' masks
MIN_CONTRAST = 2.3  # CIELAB distance of the two means: a just noticeable difference (Mahy et al. 1994)
FALLBACK_AXES = (0.56, 0.63)  # half axes of a centred ellipse, in half sides: where 40 % of the experts' masks overlap


@dataclass(frozen=True)
class LesionMask:
    """A lesion mask and how far to trust it.

    Attributes
    ----------
    mask: uint8 0/1 [H, W]: one convex region.
    components: connected components that the lesion cluster had, of which the largest was kept; 0 with the fallback.
    border_contact: share of the image's border pixels that the mask covers.
    fallback: no plausible lesion was found and the mask is a centred ellipse.
    """

    mask: Image
    components: int
    border_contact: float
    fallback: bool


def lesion_mask(image: Image, params: SegmentParams) -> LesionMask:
    """Find the lesion in a dermoscopic image.

    Parameters
    ----------
    image: RGB, uint8 [H, W, 3].
    params: working size in pixels, and the shares of the image that a lesion may cover.

    Returns
    -------
    LesionMask
        with a mask of the image's size. Nothing is random: the same image gives the same mask.
    """
    height, width = image.shape[:2]
    lab = _cleaned_lab(image, params.working_size)
    field = _lit_field(lab)
    cluster, contrast = _lesion_cluster(lab, field)
    body, components = _main_component(cluster)
    if border_contact(body) > MAX_BORDER_CONTACT:  # that is the lit field: split it again (worth 0.003)
        cluster, contrast = _lesion_cluster(lab, field & (body > 0))
        body, components = _main_component(cluster)

    mask = _resized(_outline(body), height, width)
    contact = border_contact(mask)
    plausible = (
        mask.any()
        and params.min_area_share <= mask.mean() <= params.max_area_share
        and contact <= MAX_BORDER_CONTACT
        and contrast >= MIN_CONTRAST
    )
    if plausible:
        return LesionMask(mask=mask, components=components, border_contact=contact, fallback=False)
    ellipse = _centred_ellipse(height, width)
    return LesionMask(mask=ellipse, components=0, border_contact=border_contact(ellipse), fallback=True)


def two_means(points: Floats, start: Bools) -> Bools:
    """K-means with k = 2 by Lloyd's algorithm: no step raises WCSS = sum_k sum_{x in S_k} ||x - mu_k||^2.

    Parameters
    ----------
    points: float32 [d, n], a column for each x.
    start: bool [n], a first guess of S_1, which is neither empty nor everything.

    Returns
    -------
    bool [n]
        the members of S_1, once every x is in the cluster whose mean is nearer.
    """
    member = start
    total = np.einsum("dn->d", points)  # einsum rather than BLAS, whose sums may depend on the number of threads
    for _ in range(MAX_ITERATIONS):
        inside = np.einsum("dn,n->d", points, member.astype(np.float32))
        count = np.count_nonzero(member)
        mu_1, mu_2 = inside / count, (total - inside) / (member.size - count)
        # ||x - mu_1||^2 < ||x - mu_2||^2, with x^2 cancelled on both sides
        nearer = np.einsum("d,dn->n", mu_1 - mu_2, points) > (mu_1 @ mu_1 - mu_2 @ mu_2) / 2
        if np.array_equal(nearer, member) or not nearer.any() or nearer.all():
            break
        member = nearer
    return member


def border_contact(mask: Image) -> float:
    """Share of the border pixels that a 0/1 mask [H, W] covers."""
    return float(np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]]).mean())


def _cleaned_lab(image: Image, size: int) -> Floats:
    """CIELAB without hairs and noise, float32 [size, size, 3]."""
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    without_hair = cv2.morphologyEx(small, cv2.MORPH_CLOSE, _disc(HAIR_WIDTH * size))
    black_hat = cv2.subtract(without_hair, small).min(axis=-1)
    hair = cv2.dilate((black_hat > HAIR_DARKNESS).astype(np.uint8), np.ones((3, 3), np.uint8))
    cleaned = cv2.medianBlur(np.where(hair[..., None], without_hair, small), _odd(MEDIAN_WIDTH * size))
    lab: Floats = cv2.cvtColor(cleaned.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return lab


def _lit_field(lab: Floats) -> Bools:
    """Where the image is not the black that reaches in from its corners, bool [size, size]."""
    size = len(lab)
    dark = lab[..., 0] < DARK_LIGHTNESS
    labels = cv2.connectedComponents(dark.astype(np.uint8))[1]
    in_corners = labels[[0, 0, -1, -1], [0, -1, 0, -1]]
    black = dark & np.isin(labels, in_corners)
    lit: Bools = cv2.dilate(black.astype(np.uint8), _disc(2 * DARK_MARGIN * size)) == 0
    return lit if lit.mean() >= MIN_LIT_SHARE else np.ones_like(lit)


def _lesion_cluster(lab: Floats, field: Bools) -> tuple[Bools, float]:
    """Split a field into lesion and skin: the lesion, bool [size, size], and the CIELAB distance of the two means."""
    pixels = np.flatnonzero(field)
    distance = _grid(len(lab)).squared_distance.ravel()[pixels]
    outer = pixels[distance > np.median(distance)]  # mostly skin, whatever the lesion's size
    offset = (lab - _skin_surface(lab, outer)).reshape(-1, 3)[pixels].T
    points = offset * np.asarray(COLOUR_WEIGHTS, np.float32)[:, None]

    inner = distance <= np.quantile(distance, START_SHARE)
    unlike_skin = np.einsum("cn,cn->n", points, points)
    member = two_means(points, inner & (unlike_skin >= np.quantile(unlike_skin[inner], 1 - START_SHARE)))
    if distance[member].mean() > distance[~member].mean():  # the lesion is the more central cluster, darker or not
        member = ~member
    lesion = np.zeros(field.size, np.bool_)
    lesion[pixels[member]] = True
    contrast = np.linalg.norm(offset[:, member].mean(axis=1) - offset[:, ~member].mean(axis=1))
    return lesion.reshape(field.shape), float(contrast)


def _skin_surface(lab: Floats, where: npt.NDArray[np.int64]) -> Floats:
    """The colour of skin at each place, float32 [size, size, 3]: a quadratic in x and y, fitted to some pixels.

    Ridge regression around their median colour: reweighting against outliers was tried and gained nothing.
    """
    terms, colours = _grid(len(lab)).terms, lab.reshape(-1, 3)[where].T
    basis, middle = terms[:, where], np.median(colours, axis=1, keepdims=True)
    ridge = SKIN_STIFFNESS * len(where) * np.diag([0, 1, 1, 1, 1, 1])  # the constant term is free
    normal = np.einsum("in,jn->ij", basis, basis) + ridge
    coefficients = np.linalg.solve(normal, np.einsum("in,cn->ic", basis, colours - middle)).astype(np.float32)
    surface: Floats = middle + np.einsum("ic,in->cn", coefficients, terms)
    return surface.T.reshape(lab.shape)


def _main_component(cluster: Bools) -> tuple[Image, int]:
    """The largest component of a cluster, uint8 0/1, and how many components there were."""
    size = len(cluster)
    mask = cv2.morphologyEx(cluster.astype(np.uint8), cv2.MORPH_OPEN, _disc(OPENING * size))
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, _disc(CLOSING * size))
    count, labels = cv2.connectedComponents(mask)
    if count == 1:  # background only
        return np.zeros_like(mask), 0
    areas = np.bincount(labels.ravel())
    return (labels == 1 + areas[1:].argmax()).astype(np.uint8), count - 1


def _outline(body: Image) -> Image:
    """The convex hull of a component with a margin, which also fills its holes; none loses 0.005."""
    contours, _ = cv2.findContours(body, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = np.zeros_like(body)
    for contour in contours:  # one, or none when nothing was left
        cv2.fillConvexPoly(hull, cv2.convexHull(contour), 1)
    grown: Image = cv2.dilate(hull, _disc(2 * MARGIN * len(body)))
    return grown


def _resized(mask: Image, height: int, width: int) -> Image:
    """A 0/1 mask at another size, with a smooth edge."""
    resized: Image = (cv2.resize(mask * 255, (width, height), interpolation=cv2.INTER_LINEAR) > 127).astype(np.uint8)
    return resized


def _centred_ellipse(height: int, width: int) -> Image:
    x, y = _axis(width) / FALLBACK_AXES[0], _axis(height) / FALLBACK_AXES[1]
    return (x**2 + y[:, None] ** 2 <= 1).astype(np.uint8)


@dataclass(frozen=True)
class _Grid:
    """Places of pixels in half sides from the middle: r^2 [size, size], and the terms 1, x, y, x^2, xy, y^2 [6, size^2]."""

    squared_distance: Floats
    terms: Floats


@lru_cache(maxsize=4)
def _grid(size: int) -> _Grid:
    x, y = np.meshgrid(_axis(size), _axis(size))
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y]).reshape(6, -1)
    return _Grid(squared_distance=x * x + y * y, terms=terms)


def _axis(length: int) -> Floats:
    """Pixel centres from -1 to 1, float32 [length]."""
    return ((2 * np.arange(length) + 1) / length - 1).astype(np.float32)


def _odd(length: float) -> int:
    """The odd whole number nearest to a length in pixels: what filters take."""
    return max(1, 2 * round((length - 1) / 2) + 1)


def _disc(diameter: float) -> Image:
    side = _odd(diameter)
    element: Image = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return element
