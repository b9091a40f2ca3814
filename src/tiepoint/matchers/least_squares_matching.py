"""Least squares matching: each match moved to where its two pictures agree, to a fraction of a pixel.

Photogrammetry's way of measuring tie points (Gruen, "Adaptive least squares correlation", South African Journal of
Photogrammetry 1985): the patch around a point of image 1 is moved until it differs least from that of image 0, up to
a gain and an offset. The Gauss-Newton steps are the inverse compositional ones of Baker & Matthews, "Lucas-Kanade
20 years on" (IJCV 2004, section 3.2), from the coarsest picture to the finest. How a patch is turned, scaled and
sheared is not estimated from its pixels but taken from the neighbouring matches, which span more than a patch does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Matches
from tiepoint.images import GrayLevel, Image, gray_levels
from tiepoint.matchers.base import Matcher

# On known warps and on the homography sets, radii of 5 to 9, 10 to 30 neighbours and correlations of 0.5 to 0.8 gave
# the same homographies within chance.
_RADIUS = 7  # of a patch, in pixels of a level
_NUM_NEIGHBOURS = 20
_FEWEST = 8  # distinct matches, below which neighbours say nothing of a patch's shape
_NEIGHBOUR_PX = 3.0  # residual at which a neighbour counts half
_TOWARDS_SIMILARITY = 0.01  # share of it in a patch's shape, which decides where neighbours lie on a line
_DAMPING = 0.1  # of the steps, relative to the gradients: holds a patch still along an edge
_MAX_STEPS = 12
_MAX_STEP_PX = 1.5
_STEP_DONE_PX = 0.02
_STEP_SETTLED_PX = 0.1
_MAX_MOTION_PX = 4.0
_MIN_CORRELATION = 0.7
_FINEST_RATIO = 1.25  # of image 0's resolution to image 1's: beyond it image 1 shows no more
_COARSEST_RATIO = 2.5  # the same, where there is no coarser picture of image 0
_LARGEST_PX = 1e6  # coordinates beyond are no points of pictures
_BLOCK = 4096  # matches at a time, which bounds memory

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Levels = tuple[GrayLevel, ...]


class Pictured(Protocol):
    """An encoding that can hold the picture it is of, a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def gray_levels(self) -> Levels | None: ...


Encoding = TypeVar("Encoding", bound=Pictured)


class Refined(Matcher[Encoding]):
    """Any matcher, its matches moved to where the pictures agree."""

    def __init__(self, matcher: Matcher[Encoding]) -> None:
        self.matcher = matcher

    @property
    def name(self) -> str:
        return self.matcher.name

    def encode(self, image: Image) -> Encoding:
        return self.encode_batch([image])[0]

    def encode_batch(self, images: Sequence[Image]) -> list[Encoding]:
        encodings = self.matcher.encode_batch(images)
        return [
            replace(encoding, gray_levels=gray_levels(image)) for encoding, image in zip(encodings, images, strict=True)
        ]

    def match(self, encoding0: Encoding, encoding1: Encoding) -> Matches:
        found = self.matcher.match(encoding0, encoding1)
        assert encoding0.gray_levels is not None
        assert encoding1.gray_levels is not None
        return refine_matches(found, encoding0.gray_levels, encoding1.gray_levels)


def refine_matches(matches: Matches, levels0: Levels, levels1: Levels) -> Matches:
    """`matches` with points1 where the pictures agree best; points0 stay, and so does all that does not improve.

    levels0, levels1: the two pictures, as `gray_levels` makes them. A match is moved at a level only when its steps
    settle within 4 px of that level, and its patches correlate better than before, and by at least 0.7; and in the
    end only when they also do in the finest picture.
    """
    rows = np.flatnonzero((np.abs(np.hstack([matches.points0, matches.points1])) < _LARGEST_PX).all(axis=1))
    points0, points1 = matches.points0[rows].astype(np.float64), matches.points1[rows].astype(np.float64)
    if len(np.unique(points0, axis=0)) < _FEWEST:
        return matches
    affinities, support = local_affinities(points0, points1)
    # pixels of image 1 per pixel of image 0, by the matches that their neighbours bear out
    scale = _weighted_median(np.sqrt(np.abs(np.linalg.det(affinities))), support**2)
    pairs = _paired(levels0, levels1, scale)
    refined = matches.points1.copy()
    for start in range(0, len(rows), _BLOCK):
        block = slice(start, start + _BLOCK)
        refined[rows[block]] = _refined(pairs, points0[block], points1[block], affinities[block])
    return replace(matches, points1=refined)


def _refined(pairs: list[tuple[GrayLevel, GrayLevel]], points0: Doubles, points1: Doubles, shapes: Doubles) -> Doubles:
    """points1, measured from the coarsest pair of levels to the finest, and held against the start in that."""
    if not pairs:
        return points1
    found = points1
    for level0, level1 in pairs:
        compared = _compared(level0, level1, points0, shapes)
        found = compared.aligned(found)
    better = compared.correlations(found) > compared.correlations(points1)  # where a coarse picture led astray
    return np.where(better[:, None], found, points1)


def local_affinities(points0: Doubles, points1: Doubles) -> tuple[Doubles, Doubles]:
    """How image 0 is turned, scaled and sheared at each match, (N, 2, 2), and how well its neighbours say so, (N,).

    Weighted least squares over the nearest distinct matches in image 0, in which neighbours that do not fit lose
    their weight (Cauchy's), a little drawn towards the similarity of the same neighbours. The second is their mean
    weight, between 0 and 1.
    """
    distinct = np.unique(points0, axis=0, return_index=True)[1]
    count = min(_NUM_NEIGHBOURS + 1, len(distinct))
    tree = cv2.flann.Index(points0[distinct].astype(np.float32), {"algorithm": 4})  # one k-d tree, searched exactly
    nearest = distinct[tree.knnSearch(points0.astype(np.float32), count, params={})[0]]
    offsets0, offsets1 = points0[nearest] - points0[:, None], points1[nearest] - points1[:, None]
    weights = np.ones((len(points0), count, 1))
    for _ in range(10):
        weighted = (weights * offsets0).transpose(0, 2, 1)
        normals, products = weighted @ offsets0, weighted @ offsets1
        drawn = _TOWARDS_SIMILARITY * np.trace(normals, axis1=1, axis2=2)[:, None, None] + 1e-9
        normals = normals + drawn * np.eye(2)
        affinities = np.linalg.solve(normals, products + drawn * _similarities(products, drawn)).transpose(0, 2, 1)
        residuals = np.linalg.norm(offsets1 - offsets0 @ affinities.transpose(0, 2, 1), axis=2, keepdims=True)
        weights = 1 / (1 + (residuals / _NEIGHBOUR_PX) ** 2)
    return affinities, weights.mean(axis=(1, 2))


def _similarities(products: Doubles, drawn: Doubles) -> Doubles:
    """(N, 2, 2) transposed matrices of the similarities that fit best, from the sums (N, 2, 2) of x0 x1ᵀ."""
    total = drawn[:, 0, 0] / _TOWARDS_SIMILARITY  # of |x0|²
    cos = (products[:, 0, 0] + products[:, 1, 1]) / total
    sin = (products[:, 0, 1] - products[:, 1, 0]) / total
    return np.stack([np.stack([cos, sin], axis=1), np.stack([-sin, cos], axis=1)], axis=1)


def _weighted_median(values: Doubles, weights: Doubles) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _paired(levels0: Levels, levels1: Levels, scale: float) -> list[tuple[GrayLevel, GrayLevel]]:
    """Each level of image 0, coarsest first, with that of image 1 on which things are nearest in size."""
    pairs: list[tuple[GrayLevel, GrayLevel]] = []
    for level0 in levels0:
        ratios = [_factor(level0) / (_factor(level1) * max(scale, 1e-6)) for level1 in levels1]
        nearest = int(np.argmin(np.abs(np.log(ratios))))
        if ratios[nearest] <= (_FINEST_RATIO if pairs else _COARSEST_RATIO):
            pairs.append((level0, levels1[nearest]))
    return pairs


def _factor(level: GrayLevel) -> float:
    return float(np.sqrt(level.resize_map.scale_x * level.resize_map.scale_y))


def _grid(radius: int) -> Floats:
    """(P, 2) pixels of a patch around (0, 0), row by row."""
    side = np.arange(-radius, radius + 1, dtype=np.float32)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


_GRID = _grid(_RADIUS)
_WINDOW = np.exp(-(_GRID**2).sum(axis=1) / (2 * (_RADIUS / 1.5) ** 2)).astype(np.float32)
_WINDOW /= _WINDOW.sum()


@dataclass(frozen=True, eq=False)
class _Compared:
    """Patches of image 0 at one of its levels, to be found at one of image 1.

    values: (N, P) without mean and of unit contrast under the window. contrasts: (N,) what they were divided by.
    solvers: (N, 2, P) from the difference of two patches to the step, in pixels of image 0's level.
    level: of image 1. shapes: (N, 2, 2) its pixels from those of image 0's level. around: (N, P, 2) the patches' own.
    """

    values: Floats
    contrasts: Floats
    solvers: Floats
    level: GrayLevel
    shapes: Doubles
    around: Floats

    def correlations(self, points1: Doubles) -> Floats:
        """(N,) with the patches around points1 (N, 2), in pixels of the full-size picture."""
        values = self._seen(self.level.resize_map.to_resized(points1), np.arange(len(points1)))
        return np.asarray((values * self.values) @ _WINDOW, np.float32)

    def aligned(self, points1: Doubles) -> Doubles:
        """points1 (N, 2), moved where that is to be believed."""
        start = self.level.resize_map.to_resized(points1)
        places, moving = start.copy(), np.arange(len(start))
        before, after, last = (np.zeros(len(start), np.float32) for _ in range(3))
        for step in range(_MAX_STEPS):
            values = self._seen(places[moving], moving)
            after[moving] = (values * self.values[moving]) @ _WINDOW
            if step == 0:
                before = after.copy()
            difference = (values - self.values[moving]) * self.contrasts[moving, None]
            motion = (self.solvers[moving] @ difference[:, :, None])[:, :, 0]
            last[moving] = length = np.linalg.norm(motion, axis=1)
            moving, motion = moving[length > _STEP_DONE_PX], motion[length > _STEP_DONE_PX]
            if len(moving) == 0:
                break
            motion *= np.minimum(1, _MAX_STEP_PX / last[moving])[:, None]
            places[moving] -= (self.shapes[moving] @ motion[:, :, None])[:, :, 0]
        believed = (after > before) & (after > _MIN_CORRELATION) & (last < _STEP_SETTLED_PX)
        believed &= np.linalg.norm(places - start, axis=1) < _MAX_MOTION_PX
        return np.where(believed[:, None], self.level.resize_map.to_original(places), points1)

    def _seen(self, places: Doubles, rows: NDArray[np.int64]) -> Floats:
        """(M, P) normalised patches of image 1 around places (M, 2) of its level, laid out like those at `rows`."""
        return _normalised(_sample(self.level, places[:, None].astype(np.float32) + self.around[rows]))[0]


def _compared(level0: GrayLevel, level1: GrayLevel, points0: Doubles, affinities: Doubles) -> _Compared:
    """The patches of image 0 around points0 (N, 2), in pixels of the full-size picture as `affinities` are."""
    side = 2 * _RADIUS + 3
    places = level0.resize_map.to_resized(points0)[:, None].astype(np.float32) + _grid(_RADIUS + 1)
    seen = _sample(level0, places).reshape(-1, side, side)
    values, contrasts = _normalised(seen[:, 1:-1, 1:-1].reshape(len(points0), -1))
    differences = seen[:, 1:-1, 2:] - seen[:, 1:-1, :-2], seen[:, 2:, 1:-1] - seen[:, :-2, 1:-1]
    gradients = np.stack(differences, axis=1).reshape(len(points0), 2, -1) / np.float32(2)
    gradients -= (gradients @ _WINDOW)[:, :, None]
    # What a gain explains as well says nothing of a motion.
    gradients -= (gradients @ (_WINDOW * values)[:, :, None]) * values[:, None]
    weighted = gradients * _WINDOW
    normals = weighted @ gradients.transpose(0, 2, 1)
    damping = 1 + _DAMPING * np.trace(normals, axis1=1, axis2=2)  # 1: a gradient of one grey level per pixel
    solvers = np.linalg.inv(normals + damping[:, None, None] * np.eye(2, dtype=np.float32)) @ weighted
    shapes = _scales(level1)[:, None] * affinities / _scales(level0)
    around = _GRID @ shapes.transpose(0, 2, 1).astype(np.float32)
    return _Compared(values, contrasts, np.asarray(solvers, np.float32), level1, shapes, around)


def _scales(level: GrayLevel) -> Doubles:
    return np.array([level.resize_map.scale_x, level.resize_map.scale_y])


def _normalised(values: Floats) -> tuple[Floats, Floats]:
    """(N, P) patches without mean and of unit contrast, under the window, and (N,) their contrasts."""
    centred = values - (values @ _WINDOW)[:, None]
    contrasts = np.sqrt(centred**2 @ _WINDOW) + np.float32(1e-3)
    return np.asarray(centred / contrasts[:, None], np.float32), contrasts.astype(np.float32)


def _sample(level: GrayLevel, places: Floats) -> Floats:
    """(N, P) grey values, 0 to 255, at (N, P, 2) pixels of the level; the rim's beyond it."""
    none = np.zeros(0, np.float32)
    found = cv2.remap(level.pixels, places, none, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32) / np.float32(256)
