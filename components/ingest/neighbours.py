"""Near duplicates: images that show the same skin, found among all pairs, through turns, flips, shifts and zooms.

Three looks, each costlier and stricter than the one before; docs/neighbours.md has how they were calibrated:

1. Low frequencies of a 32 x 32 thumbnail, colour included. 63 windows into each image (7 zooms, 9 shifts) and its 7
   other orientations are compared with every other whole image, by matrix products.
2. Texture of the thumbnail, shifted by a few pixels; then an affine alignment of the two thumbnails.
3. Texture at 64 x 64 pixels after the alignment was refined on it: the correlation is the pair's score.

Texture is brightness less its surroundings, over its local deviation: light, skin tone and the lesion's outline count
little, marks count much. Whether a pair is listed depends on its two images alone, so a grown set needs only its fresh
rows compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from components.ingest.entries import among
from components.ingest.texture import FINE, Texture, align, correlation, enlarged, fine_texture, texture_of, warp
from components.ingest.thumbnail import (
    SIDE,
    SIGNATURE_LENGTH,
    STARTS,
    UNZOOMED,
    VIEWS,
    WAVES,
    ZOOMED,
    Bytes,
    Floats,
    oriented,
    perceptual_hash,
    signature,
    views,
)
from dermaflow.progress import progress

__all__ = ["ALGORITHM", "SIGNATURE_LENGTH", "find_neighbours", "perceptual_hash", "signature"]

ALGORITHM = "aligned-texture-1"  # name it anew with every change that may change a pair
COLUMNS = ("image_a", "image_b", "distance", "score")
LEAST_SIMILAR = 0.94  # cosine of low frequencies from which a pair gets a second look
LEAST_THUMBNAIL = 0.42  # correlation of the thumbnails' texture, after a shift
LEAST_ALIGNED = 0.25  # correlation of the fine texture, after the thumbnails' alignment
LEAST_SCORE = 0.42  # correlation of the fine texture, after its own alignment: the working point

_ITERATIONS, _FINE_ITERATIONS = 2, 5  # of the alignments
_QUERIES, _TILE, _COLUMNS, _BLOCK = 16, 512, 256, 1024  # images: a product's rows, columns, their multiple, a round
_PORTION = 16_384  # candidates whose textures are in memory together
_KEPT = {SIDE: 16_000, FINE: 10_000}  # textures held in memory: 16 MB and 40 MB

Rows = npt.NDArray[np.int64]


class _Candidate(NamedTuple):
    """Rows of two images, and the look at the first that resembles the second: its number and the cosine."""

    first: int
    second: int
    view: int
    similarity: float


def find_neighbours(
    image_ids: pd.Series[str],
    pixel_digests: pd.Series[str],
    signatures: Bytes,
    images: Callable[[Rows], Bytes],
    known: pd.DataFrame | None = None,
    fresh: npt.NDArray[np.bool_] | None = None,
) -> pd.DataFrame:
    """Pairs of images that show the same skin.

    Images of identical pixels stand for each other: the smallest id is compared, the others are paired with it.

    Parameters
    ----------
    image_ids, pixel_digests: unique ids and digests of the pixels, n each, in any order.
    signatures: uint8 [n, SIGNATURE_LENGTH], may be memory-mapped.
    images: gives uint8 RGB [k, size, size, 3] of k row numbers.
    known: what an earlier call returned, all of it: also pairs whose images are gone or have changed.
    fresh: bool [n], rows that this earlier call did not see, or saw with other pixels; all when None.

    Returns
    -------
    image_a < image_b, distance (1 - cosine of low frequencies; 0 only for identical pixels) and score (correlation of
    aligned texture, 0..1), ordered by ids. The same as without `known` and `fresh`.
    """
    table = image_ids.reset_index(drop=True).to_frame("id").assign(pixels=pd.factorize(pixel_digests)[0]).sort_values("id")
    table["fresh"] = True if fresh is None or known is None else fresh[table.index]
    is_first = ~table["pixels"].duplicated()
    others = table[~is_first]
    first = table[is_first].set_index("pixels")["id"].loc[others["pixels"]]
    stars = {"image_a": first.array, "image_b": others["id"].array, "distance": 0.0, "score": 1.0}
    found = [pd.DataFrame(stars)]
    table = table[is_first]
    if known is not None:
        stood_behind = known.loc[known["distance"] == 0, "image_b"]  # another image, then of the same pixels
        table["fresh"] |= among(table["id"], stood_behind)
        old = table.loc[~table["fresh"], "id"]
        found.append(known.loc[among(known["image_a"], old) & among(known["image_b"], old), list(COLUMNS)])
    with _one_thread_each(), ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        search = _Search(table.index.to_numpy(np.int64), signatures, images, pool)
        found.append(search.pairs(table["fresh"].to_numpy(bool), table["id"].to_numpy(object)))
    pairs = pd.concat([part for part in found if len(part)] or found[:1], ignore_index=True)
    pairs = pairs.sort_values(["image_a", "image_b"], ignore_index=True)
    return pairs.astype({"image_a": str, "image_b": str, "distance": np.float64, "score": np.float64})[list(COLUMNS)]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Our threads use the cores; threads of OpenCV and BLAS below them would compete (and BLAS then rounds otherwise)."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        cv2.setNumThreads(before)


class _Search:
    """One search. `rows` are the images' row numbers in order of ids: a place below is a position in `rows`."""

    def __init__(self, rows: Rows, signatures: Bytes, images: Callable[[Rows], Bytes], pool: ThreadPoolExecutor) -> None:
        self._rows, self._images, self._pool = rows, images, pool
        self._signatures = np.asarray(signatures)  # rows of a plain view are quicker to take than those of a np.memmap
        self._coarse: dict[int, Texture] = {}
        self._fine: dict[int, Texture] = {}

    def pairs(self, fresh: npt.NDArray[np.bool_], ids: npt.NDArray[Any]) -> pd.DataFrame:
        """Pairs with at least one fresh image."""
        best: dict[tuple[int, int], tuple[float, float]] = {}
        everything, new = np.arange(len(fresh)), np.flatnonzero(fresh)
        done, total = 0, len(fresh) if len(new) else 0
        for queries, others in ((new, everything), (np.flatnonzero(~fresh), new)):
            if not len(queries) or not len(others):
                continue
            whole = self._whole(others)
            for start in range(0, len(queries), _BLOCK):
                block = queries[start : start + _BLOCK]
                candidates = self._candidates(block, others, whole)
                for portion in range(0, len(candidates), _PORTION):
                    for candidate, score in self._confirm(candidates[portion : portion + _PORTION]):
                        pair = (min(candidate[:2]), max(candidate[:2]))
                        best[pair] = max(best.get(pair, (0.0, 0.0)), (score, candidate.similarity))
                done += len(block)
                progress("comparing images", done, total)
        return pd.DataFrame(
            [
                (ids[a], ids[b], max(round(1 - similarity, 6), 1e-6), round(score, 6))
                for (a, b), (score, similarity) in best.items()
            ],
            columns=list(COLUMNS),
        )

    def _whole(self, places: Rows) -> Floats:
        """The whole image's waves of each place, [waves, images], filled up with zeros to a multiple of _COLUMNS."""
        out = np.zeros((WAVES, -(-len(places) // _COLUMNS) * _COLUMNS), np.float32)
        for start in range(0, len(places), _BLOCK):
            part = places[start : start + _BLOCK]
            out[:, start : start + len(part)] = views(self._signatures[self._rows[part]], whole=True)[:, 0].T
        return out

    def _candidates(self, queries: Rows, others: Rows, whole: Floats) -> list[_Candidate]:
        """Pairs of which a view of the first resembles the second as a whole.

        Products always have the same number of rows, and of columns a multiple of _COLUMNS: BLAS then takes the same
        path, and a pair's cosine is the same to the last bit in whatever company it is computed.
        """

        def look(few: Rows) -> list[_Candidate]:
            padded = np.concatenate([few, np.repeat(few[-1:], _QUERIES - len(few))])
            looks = views(self._signatures[self._rows[padded]])
            buffer = np.empty((_QUERIES * len(VIEWS), _TILE), np.float32)  # new memory for each product costs as much as it
            found: list[_Candidate] = []
            for kind in (UNZOOMED, ZOOMED):
                flat = np.ascontiguousarray(looks[:, kind]).reshape(-1, WAVES)
                for start in range(0, whole.shape[1], _TILE):
                    tile = others[start : start + _TILE]
                    if kind is UNZOOMED and tile[-1] <= few[0]:
                        continue  # as the other way round
                    right = whole[:, start : start + _TILE]
                    cosines = np.matmul(flat, right, out=buffer.ravel()[: len(flat) * right.shape[1]].reshape(len(flat), -1))
                    cosines = cosines.reshape(_QUERIES, kind.stop - kind.start, -1)
                    closest = cosines.max(axis=1)[: len(few), : len(tile)]
                    query, other = np.nonzero(closest >= LEAST_SIMILAR)
                    best = (
                        few[query],
                        tile[other],
                        kind.start + cosines[query, :, other].argmax(axis=1),
                        closest[query, other],
                    )
                    found += [
                        one
                        for one in map(_Candidate, *(values.tolist() for values in best))
                        if one.first < one.second or (kind is ZOOMED and one.first != one.second)
                    ]
            return found

        parts = [queries[start : start + _QUERIES] for start in range(0, len(queries), _QUERIES)]
        return [candidate for found in self._pool.map(look, parts) for candidate in found]

    def _confirm(self, candidates: list[_Candidate]) -> list[tuple[_Candidate, float]]:
        """Candidates that pass the second and the third look, with their score."""
        self._keep(self._coarse, SIDE, candidates)
        placed = [
            (one, start)
            for one, start in zip(candidates, self._each(self._place, candidates), strict=True)
            if start is not None
        ]
        self._keep(self._fine, FINE, [one for one, _ in placed])
        scores = self._each(self._score, placed)
        return [(one, score) for (one, _), score in zip(placed, scores, strict=True) if score >= LEAST_SCORE]

    def _each(self, judge: Callable[[Any], Any], candidates: Sequence[Any]) -> Iterator[Any]:
        chunks = [candidates[start : start + 64] for start in range(0, len(candidates), 64)]
        for told in self._pool.map(lambda chunk: [judge(one) for one in chunk], chunks):
            yield from told

    def _keep(self, kept: dict[int, Texture], side: int, candidates: list[_Candidate]) -> None:
        """Have the candidates' textures in memory; when they are too many, the oldest go."""
        needed = {place for one in candidates for place in one[:2]}
        missing = sorted(needed - kept.keys())
        for place in [place for place in kept if place not in needed][: max(0, len(kept) + len(missing) - _KEPT[side])]:
            del kept[place]

        def make(places: Sequence[int]) -> list[Texture]:
            if side == SIDE:
                return [texture_of(self._thumbnail(place)) for place in places]
            return [fine_texture(pixels) for pixels in self._images(self._rows[list(places)])]

        chunks = [missing[start : start + 16] for start in range(0, len(missing), 16)]
        for chunk, textures in zip(chunks, self._pool.map(make, chunks), strict=True):
            kept.update(zip(chunk, textures, strict=True))

    def _thumbnail(self, place: int) -> Floats:
        return self._signatures[self._rows[place], : SIDE**2].reshape(SIDE, SIDE).astype(np.float32)

    def _place(self, one: _Candidate) -> Floats | None:
        """Where the thumbnails' textures agree best, at most 3 pixels from the view; None where they do not agree."""
        margin = 3
        matrix = STARTS[one.view].copy()
        moved = warp(oriented(self._coarse[one.first], one.view).astype(np.float32), matrix, border=0.0)
        second = self._coarse[one.second][margin:-margin, margin:-margin].astype(np.float32)
        _, best, _, corner = cv2.minMaxLoc(cv2.matchTemplate(moved, second, cv2.TM_CCORR_NORMED))
        if best < LEAST_THUMBNAIL:
            return None
        matrix[:, 2] += matrix[:, :2] @ (np.array(corner, np.float32) - margin)
        return matrix

    def _score(self, placed: tuple[_Candidate, Floats]) -> float:
        """Correlation of the two images' fine texture where they overlap, after alignment; 0 where it fails."""
        one, start = placed
        matrix = align(oriented(self._thumbnail(one.first), one.view), self._thumbnail(one.second), start, _ITERATIONS)
        if matrix is None:
            return 0.0
        matrix = enlarged(matrix, FINE // SIDE)
        first = oriented(self._fine[one.first], one.view).astype(np.float32)
        second = self._fine[one.second].astype(np.float32)
        if correlation(first, second, matrix) < LEAST_ALIGNED:
            return 0.0
        matrix = align(first, second, matrix, _FINE_ITERATIONS)
        return 0.0 if matrix is None else min(1.0, correlation(first, second, matrix))
