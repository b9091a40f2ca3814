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

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Matches
from tiepoint.images import GrayLevel

_RADIUS = 7  # of a patch, in pixels of a level
_NUM_NEIGHBOURS = 20
_FEWEST = 8  # matches, below which neighbours say nothing of a patch's shape
_NEIGHBOUR_PX = 3.0  # residual at which a neighbour counts half
_MAX_STEPS = 12
_MAX_STEP_PX = 1.5
_STEP_DONE_PX = 0.02
_STEP_SETTLED_PX = 0.1
_MAX_MOTION_PX = 4.0
_MIN_CORRELATION = 0.7
_FINEST_RATIO = 1.25  # of image 0's resolution to image 1's: beyond it image 1 shows no more
_BLOCK = 4096  # matches at a time, which bounds memory

Floats = NDArray[np.float32]


def _grid(radius: int) -> Floats:
    """(P, 2) pixels of a patch around (0, 0), row by row."""
    side = np.arange(-radius, radius + 1, dtype=np.float32)
    return np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


_GRID = _grid(_RADIUS)
_WINDOW = np.exp(-(_GRID**2).sum(axis=1) / (2 * (_RADIUS / 1.5) ** 2)).astype(np.float32)
_WINDOW /= _WINDOW.sum()


def refine_matches(
    matches: Matches, levels0: Sequence[GrayLevel] | None, levels1: Sequence[GrayLevel] | None
) -> Matches:
    """`matches` with points1 where the pictures agree best; points0 stay, and so does all that does not improve.

    levels0, levels1: the two pictures, as `gray_levels` makes them; without them matches stay as they were found. A
    match is moved at a level only when its steps settle within 4 px of that level, and its patches correlate better
    than before, and by at least 0.7.
    """
    if levels0 is None or levels1 is None or len(matches) < _FEWEST:
        return matches
    points0, points1 = matches.points0.astype(np.float64), matches.points1.astype(np.float64)
    affinities = local_affinities(points0, points1)
    scale = float(np.median(np.sqrt(np.abs(np.linalg.det(affinities)))))  # pixels of image 1 per pixel of image 0
    for level0, level1 in _paired(levels0, levels1, scale):
        for start in range(0, len(matches), _BLOCK):
            rows = slice(start, start + _BLOCK)
            points1[rows] = _aligned(level0, level1, points0[rows], points1[rows], affinities[rows])
    return replace(matches, points1=points1.astype(np.float32))


def local_affinities(points0: NDArray[np.float64], points1: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2, 2): how image 0 is turned, scaled and sheared at each match, by its nearest matches in image 0.

    Weighted least squares, in which neighbours that do not fit lose their weight (Cauchy's).
    """
    count = min(_NUM_NEIGHBOURS, len(points0) - 1)
    tree = cv2.flann.Index(points0.astype(np.float32), {"algorithm": 4})  # one k-d tree, searched exactly
    nearest = tree.knnSearch(points0.astype(np.float32), count + 1, params={})[0]
    offsets0, offsets1 = points0[nearest] - points0[:, None], points1[nearest] - points1[:, None]
    weights = np.ones((len(points0), count + 1, 1))
    affinities = np.zeros((len(points0), 2, 2))
    for _ in range(10):
        weighted = (weights * offsets0).transpose(0, 2, 1)
        normals = weighted @ offsets0 + 1e-6 * np.eye(2)
        affinities = np.linalg.solve(normals, weighted @ offsets1).transpose(0, 2, 1)
        residuals = np.linalg.norm(offsets1 - offsets0 @ affinities.transpose(0, 2, 1), axis=2, keepdims=True)
        weights = 1 / (1 + (residuals / _NEIGHBOUR_PX) ** 2)
    return affinities


def _paired(
    levels0: Sequence[GrayLevel], levels1: Sequence[GrayLevel], scale: float
) -> list[tuple[GrayLevel, GrayLevel]]:
    """Each level of image 0, coarsest first, with that of image 1 on which things are nearest in size."""
    pairs: list[tuple[GrayLevel, GrayLevel]] = []
    for level0 in levels0:
        ratios = [level0.resize_map.scale_x / (level1.resize_map.scale_x * max(scale, 1e-6)) for level1 in levels1]
        nearest = int(np.argmin(np.abs(np.log(ratios))))
        if ratios[nearest] <= _FINEST_RATIO or not pairs:
            pairs.append((level0, levels1[nearest]))
    return pairs


@dataclass(frozen=True, eq=False)
class _Patches:
    """The patches of image 0.

    values: (N, P) without mean and of unit contrast under the window. contrasts: (N,) what they were divided by.
    solvers: (N, 2, P) from the difference of two patches to the step, in pixels of the level.
    """

    values: Floats
    contrasts: Floats
    solvers: Floats


def _patches(level: GrayLevel, points: NDArray[np.float64]) -> _Patches:
    """Those around `points` (N, 2), in pixels of the level."""
    side = 2 * _RADIUS + 3
    seen = _sample(level, points[:, None].astype(np.float32) + _grid(_RADIUS + 1)).reshape(-1, side, side)
    values, contrasts = _normalised(seen[:, 1:-1, 1:-1].reshape(len(points), -1))
    differences = seen[:, 1:-1, 2:] - seen[:, 1:-1, :-2], seen[:, 2:, 1:-1] - seen[:, :-2, 1:-1]
    gradients = np.stack(differences, axis=1).reshape(len(points), 2, -1) / np.float32(2)
    gradients -= (gradients @ _WINDOW)[:, :, None]
    # What a gain explains as well says nothing of a motion.
    gradients -= (gradients @ (_WINDOW * values)[:, :, None]) * values[:, None]
    weighted = gradients * _WINDOW
    normals = weighted @ gradients.transpose(0, 2, 1) + np.eye(2, dtype=np.float32)
    return _Patches(values, contrasts, np.linalg.inv(normals) @ weighted)


def _aligned(
    level0: GrayLevel,
    level1: GrayLevel,
    points0: NDArray[np.float64],
    points1: NDArray[np.float64],
    affinities: NDArray[np.float64],
) -> NDArray[np.float64]:
    """points1, moved at one level where that is to be believed."""
    patches = _patches(level0, level0.resize_map.to_resized(points0))
    from_level0, to_level1 = 1 / _scales(level0), _scales(level1)
    shapes = to_level1[:, None] * affinities * from_level0  # pixels of level 1 from those of level 0
    start = level1.resize_map.to_resized(points1)
    found = _settled(patches, level1, start, shapes)
    moved = np.linalg.norm(found.places - start, axis=1)
    believed = (found.after > found.before) & (found.after > _MIN_CORRELATION)
    believed &= (found.last_step_px < _STEP_SETTLED_PX) & (moved < _MAX_MOTION_PX)
    return np.where(believed[:, None], level1.resize_map.to_original(found.places), points1)


@dataclass(frozen=True, eq=False)
class _Settled:
    """Where patches came to rest.

    places: (N, 2) pixels of the level. before, after: (N,) correlation at the start and there. last_step_px: (N,).
    """

    places: NDArray[np.float64]
    before: Floats
    after: Floats
    last_step_px: Floats


def _settled(patches: _Patches, level: GrayLevel, start: NDArray[np.float64], shapes: NDArray[np.float64]) -> _Settled:
    """Gauss-Newton steps from `start` (N, 2), patch pixels laid out by `shapes` (N, 2, 2); each until it rests."""
    around = _GRID @ shapes.transpose(0, 2, 1).astype(np.float32)
    places, moving = start.copy(), np.arange(len(start))
    before, after, last = (np.zeros(len(start), np.float32) for _ in range(3))
    for step in range(_MAX_STEPS):
        values, _ = _normalised(_sample(level, places[moving, None].astype(np.float32) + around[moving]))
        after[moving] = (values * patches.values[moving]) @ _WINDOW
        if step == 0:
            before = after.copy()
        difference = (values - patches.values[moving]) * patches.contrasts[moving, None]
        motion = (patches.solvers[moving] @ difference[:, :, None])[:, :, 0]
        last[moving] = length = np.linalg.norm(motion, axis=1)
        moving, motion = moving[length > _STEP_DONE_PX], motion[length > _STEP_DONE_PX]
        if len(moving) == 0:
            break
        motion *= np.minimum(1, _MAX_STEP_PX / last[moving])[:, None]
        places[moving] -= (shapes[moving] @ motion[:, :, None])[:, :, 0]
    return _Settled(places, before, after, last)


def _scales(level: GrayLevel) -> NDArray[np.float64]:
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
