"""Synthetic shapes with known corners, drawn on the fly (DeTone et al. 2018, section 4 and appendix A).

Nine kinds, of the sizes and counts in the public descriptions of the data set. Pictures are drawn at twice
their size and averaged, so that edges fall between pixels and labels are exact to a fraction of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Points = NDArray[np.float64]

_OVERSAMPLING = 2
_SHIFT = 4  # fractional bits of the coordinates given to OpenCV
_CONTRAST = 30.0  # least difference of grey between a shape and what lies beside it
_NO_POINTS: Points = np.zeros((0, 2))


class Drawing(NamedTuple):
    """pixels: (H, W) float32 in [0, 1]; corners: (N, 2) (x, y), pixel centres at integers."""

    pixels: NDArray[np.float32]
    corners: Points


@dataclass(frozen=True, eq=False)
class _Canvas:
    """A picture in the making, `_OVERSAMPLING` times too large; all lengths below are in its pixels."""

    grey: NDArray[np.uint8]
    rng: Generator

    @property
    def height(self) -> int:
        return int(self.grey.shape[0])

    @property
    def width(self) -> int:
        return int(self.grey.shape[1])

    @property
    def short(self) -> int:
        return min(self.height, self.width)

    def uniform(self, low: float, high: float, size: int | tuple[int, ...] | None = None) -> NDArray[np.float64]:
        return np.asarray(self.rng.uniform(low, high, size))

    def anywhere(self, count: int) -> Points:
        return self.uniform(0, 1, (count, 2)) * (self.width, self.height)

    def other_than(self, *greys: float) -> float:
        """A grey level that differs visibly from `greys`."""
        while min(abs((level := float(self.uniform(0, 255))) - grey) for grey in greys) < _CONTRAST:
            pass
        return level

    def grey_around(self, points: Points) -> float:
        x, y = np.clip(points.mean(0), 0, (self.width - 1, self.height - 1)).astype(int)
        return float(self.grey[y, x])

    def fill(self, polygon: Points, grey: float) -> None:
        cv2.fillPoly(self.grey, [_fixed(polygon)], grey, cv2.LINE_AA, _SHIFT)

    def line(self, start: Points, end: Points, grey: float, thickness: int) -> None:
        first, second = _fixed(np.stack([start, end])).tolist()
        cv2.line(self.grey, first, second, grey, thickness, cv2.LINE_AA, _SHIFT)

    def stroke(self) -> int:
        """Thickness of a line: 1 to 2 % of the short side."""
        return max(1, round(float(self.uniform(0.01, 0.02)) * self.short))


def draw_shape(kind: str, size: tuple[int, int], rng: Generator) -> Drawing:
    """A drawing of `kind` (one of `SHAPES`) of `size` (height, width)."""
    height, width = size
    canvas = _Canvas(_background(height * _OVERSAMPLING, width * _OVERSAMPLING, rng), rng)
    corners = (SHAPES[kind](canvas) + 0.5) / _OVERSAMPLING - 0.5
    pixels = cv2.resize(canvas.grey, (width, height), interpolation=cv2.INTER_AREA)
    kept = ((corners >= 0) & (corners <= (width - 1, height - 1))).all(1)
    return Drawing(np.asarray(pixels, np.float32) / np.float32(255), corners[kept])


def lines(canvas: _Canvas) -> Points:
    """One to nine segments that do not cross; their ends."""
    segments: list[Points] = []
    for _ in range(int(canvas.rng.integers(1, 10))):
        segment = canvas.anywhere(2)
        if np.linalg.norm(segment[0] - segment[1]) < canvas.short / 10:
            continue
        if any(_near(segment, other, canvas.short / 20) for other in segments):
            continue
        canvas.line(segment[0], segment[1], canvas.other_than(canvas.grey_around(segment)), canvas.stroke())
        segments.append(segment)
    return np.concatenate(segments) if segments else _NO_POINTS


def polygon(canvas: _Canvas) -> Points:
    """One polygon of three to seven corners; its corners."""
    corners = _NO_POINTS
    while len(corners) < 3:
        centre = canvas.uniform(0.25, 0.75, 2) * (canvas.width, canvas.height)
        corners = _polygon_corners(canvas, centre, max(float(canvas.uniform(0, 0.5)), 0.1) * canvas.short)
    canvas.fill(corners, canvas.other_than(canvas.grey_around(corners)))
    return corners


def polygons(canvas: _Canvas) -> Points:
    """Up to thirty small polygons apart from each other; their corners."""
    found: list[Points] = []
    circles: list[tuple[Points, float]] = []
    for _ in range(int(canvas.rng.integers(5, 31))):
        centre, radius = canvas.anywhere(1)[0], float(canvas.uniform(0.05, 0.2)) * canvas.short
        if not _apart(centre, radius, circles):
            continue
        corners = _polygon_corners(canvas, centre, radius)
        if len(corners) < 3:
            continue
        canvas.fill(corners, canvas.other_than(canvas.grey_around(corners)))
        circles.append((centre, radius))
        found.append(corners)
    return np.concatenate(found) if found else _NO_POINTS


def ellipses(canvas: _Canvas) -> Points:
    """Up to twenty ellipses apart from each other, which have no corners: to be met with silence."""
    circles: list[tuple[Points, float]] = []
    for _ in range(int(canvas.rng.integers(1, 21))):
        centre = canvas.anywhere(1)
        axes = canvas.uniform(canvas.short / 20, canvas.short / 4, 2)
        if not _apart(centre[0], float(axes.max()), circles):
            continue
        circles.append((centre[0], float(axes.max())))
        cv2.ellipse(
            canvas.grey,
            _fixed(centre)[0].tolist(),
            _fixed(axes).tolist(),
            float(canvas.uniform(0, 180)),
            0,
            360,
            canvas.other_than(canvas.grey_around(centre)),
            -1,
            cv2.LINE_AA,
            _SHIFT,
        )
    return _NO_POINTS


def star(canvas: _Canvas) -> Points:
    """Three to five strokes from one point; that point and their tips."""
    arms = int(canvas.rng.integers(3, 6))
    radius = float(canvas.uniform(0.2, 0.6)) * canvas.short
    centre = canvas.uniform(0.3, 0.7, 2) * (canvas.width, canvas.height)
    angles = 2 * np.pi * (np.arange(arms) + canvas.uniform(-0.3, 0.3, arms)) / arms + canvas.uniform(0, 2 * np.pi)
    lengths = radius * np.maximum(canvas.uniform(0.3, 1, arms), 0.5)
    tips = centre + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    grey, thickness = canvas.other_than(canvas.grey_around(centre[None])), canvas.stroke()
    for tip in tips:
        canvas.line(centre, tip, grey, thickness)
    return np.concatenate([centre[None], tips])


def checkerboard(canvas: _Canvas) -> Points:
    """Three to six by three to six fields in perspective, neighbours of different grey; the grid's points."""
    columns, rows = canvas.rng.integers(3, 7, 2)
    grid = _jittered_grid(canvas, int(rows), int(columns))
    greys = np.zeros((rows, columns))
    ground = canvas.grey_around(grid[0, 0][None])
    for i in range(rows):
        for j in range(columns):
            above, left = [greys[i - 1, j]] * (i > 0), [greys[i, j - 1]] * (j > 0)
            greys[i, j] = canvas.other_than(ground, *above, *left)
            canvas.fill(_field(grid, i, j), greys[i, j])
    return grid.reshape(-1, 2)


def stripes(canvas: _Canvas) -> Points:
    """Five to twelve stripes side by side in perspective; the ends of the borders between them."""
    columns = int(canvas.rng.integers(5, 13))
    grid = _jittered_grid(canvas, 1, columns)
    ground = canvas.grey_around(grid[0, 0][None])
    grey = ground
    for j in range(columns):
        grey = canvas.other_than(ground, grey)
        canvas.fill(_field(grid, 0, j), grey)
    return grid.reshape(-1, 2)


def cube(canvas: _Canvas) -> Points:
    """A box seen from a corner, three faces of different grey; its seven visible corners."""
    unit = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    sides = (0.2 + canvas.uniform(0, 2 / 3, 3)) * canvas.short * canvas.uniform(0.4, 1.0, 3)
    turn, tilt = canvas.uniform(0.1 * np.pi, 0.4 * np.pi, 2)
    roll = float(canvas.uniform(0, 2 * np.pi))
    solid = (unit - 0.5) * sides @ (_rotation(2, roll) @ _rotation(0, tilt) @ _rotation(1, turn)).T
    corners = solid[:, :2] + canvas.uniform(0.35, 0.65, 2) * (canvas.width, canvas.height)
    nearest, farthest = int(solid[:, 2].argmin()), int(solid[:, 2].argmax())
    greys = [canvas.grey_around(corners)]
    for axis in range(3):
        greys.append(canvas.other_than(*greys))
        face = np.flatnonzero(unit[:, axis] == unit[nearest, axis])
        canvas.fill(corners[face[[0, 1, 3, 2]]], greys[-1])
    return np.delete(corners, farthest, axis=0)


def noise(canvas: _Canvas) -> Points:
    """Random pixels, which have no corners."""
    canvas.grey[:] = canvas.rng.integers(0, 256, canvas.grey.shape, np.uint8)
    return _NO_POINTS


SHAPES: dict[str, Callable[[_Canvas], Points]] = {
    shape.__name__: shape for shape in (lines, polygon, polygons, ellipses, star, checkerboard, stripes, cube, noise)
}


def _background(height: int, width: int, rng: Generator) -> NDArray[np.uint8]:
    """Blurred blobs of two greys: no corner, but not flat."""
    coarse = rng.integers(0, 256, (max(2, height // 40), max(2, width // 40)), np.uint8)
    spread = rng.uniform(0.05, 0.4)
    level = rng.uniform(0, 255)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    blurred = cv2.blur(smooth, (height // 8 * 2 + 1,) * 2)
    return np.asarray(np.clip((blurred - 127) * spread + level, 0, 255), np.uint8)


def _polygon_corners(canvas: _Canvas, centre: Points, radius: float) -> Points:
    """Three to seven points around `centre`, those left out where the outline hardly turns (120 degrees on)."""
    count = int(canvas.rng.integers(3, 8))
    angles = 2 * np.pi * (np.arange(count) + canvas.uniform(-0.4, 0.4, count)) / count
    reach = radius * np.maximum(canvas.uniform(0, 1, count), 0.4)
    corners = centre + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    before, after = np.roll(corners, 1, 0) - corners, np.roll(corners, -1, 0) - corners
    cosine = (before * after).sum(1) / (np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1))
    return np.asarray(corners[cosine > np.cos(2 * np.pi / 3)])


def _apart(centre: Points, radius: float, circles: list[tuple[Points, float]]) -> bool:
    return all(np.linalg.norm(centre - other) > radius + other_radius + 4 for other, other_radius in circles)


def _jittered_grid(canvas: _Canvas, rows: int, columns: int) -> NDArray[np.float64]:
    """(rows + 1, columns + 1, 2) points of a board about the picture's size, in perspective and turned."""
    side = max(canvas.height, canvas.width)
    jitter = (0.05 + 0.15 * float(canvas.uniform(0, 1))) * side
    margin = canvas.uniform(-0.1, 0.2, 4)
    left, right = margin[0] * canvas.width, (1 - margin[1]) * canvas.width
    top, bottom = margin[2] * canvas.height, (1 - margin[3]) * canvas.height
    board = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    middle = board.mean(0)
    seen = (board - middle) @ _rotation(2, float(canvas.uniform(0, 2 * np.pi)))[:2, :2].T + middle
    seen = seen + canvas.uniform(-jitter, jitter, (4, 2)) / 2
    across = _divisions(canvas, columns)
    down = _divisions(canvas, rows)
    flat = np.stack(np.meshgrid(across, down), -1).reshape(-1, 1, 2)
    unit = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    matrix = cv2.getPerspectiveTransform(unit, seen.astype(np.float32))
    return np.asarray(cv2.perspectiveTransform(flat, matrix), np.float64).reshape(rows + 1, columns + 1, 2)


def _divisions(canvas: _Canvas, count: int) -> NDArray[np.float64]:
    """0 ... 1 in `count` unequal parts, none below half the mean."""
    widths = canvas.uniform(0.6, 1.4, count)
    return np.concatenate([[0], np.cumsum(widths / widths.sum())])


def _field(grid: NDArray[np.float64], i: int, j: int) -> Points:
    return np.stack([grid[i, j], grid[i, j + 1], grid[i + 1, j + 1], grid[i + 1, j]])


def _near(segment: Points, other: Points, distance: float) -> bool:
    """Whether two segments cross or come nearer than `distance`, by points along both."""
    along = np.linspace(0, 1, 24)[:, None]
    first, second = (s[0] + along * (s[1] - s[0]) for s in (segment, other))
    apart = np.linalg.norm(first[:, None] - second[None], axis=-1).min()
    reach = max(np.linalg.norm(s[0] - s[1]) for s in (segment, other)) / 23
    return bool(apart < max(distance, reach))


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    """Right-handed rotation of space about x, y or z (0, 1, 2)."""
    first, second = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    sign = -1 if axis == 1 else 1
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second] = -sign * np.sin(angle)
    matrix[second, first] = sign * np.sin(angle)
    return matrix


def _fixed(points: Points) -> NDArray[np.int32]:
    """Coordinates as OpenCV's fixed-point integers."""
    return np.asarray(np.round(points * (1 << _SHIFT)), np.int32)
