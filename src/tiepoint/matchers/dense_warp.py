"""A dense warp between two images with its certainty, and what is read from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Matches
from tiepoint.matchers.base import IndexMatches

SURE = 0.05  # certainties above this count as 1 when matches are drawn, so that easy regions take no more than others
CANDIDATES_PER_MATCH = 4
DENSITY_SIGMA = 0.1  # of the Gaussian that counts neighbours, in normalised coordinates
MIN_DENSITY = 10.0  # candidates with fewer neighbours are likely outliers
OUTLIER_WEIGHT = 1e-7
_BLOCK = 2048  # rows and columns of distances held at once: 16 MB
_KEYPOINT_BLOCK = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseWarp:
    """Where each pixel of either image lies in the other, on a grid of the size the network worked at.

    warp: (H, 2 W, 4) float32, rows (x0, y0, x1, y1) in [-1, 1], the outer borders of the network's frame. Left
        half: image 0's grid and where it lies in image 1; right half: where image 1's grid lies in image 0, and
        that grid.
    certainty: (H, 2 W) float32 in [0, 1]; 0 where either point lies outside its picture.
    size0, size1: (width, height) of the full-size images.
    extent0, extent1: the part of the network's frame that each picture fills, along x and y, from its top left;
        (1, 1) where it was squashed to the frame rather than padded.
    method: the name of the matcher.
    """

    warp: NDArray[np.float32]
    certainty: NDArray[np.float32]
    size0: tuple[int, int]
    size1: tuple[int, int]
    extent0: tuple[float, float] = (1.0, 1.0)
    extent1: tuple[float, float] = (1.0, 1.0)
    method: str = "roma"

    def __post_init__(self) -> None:
        height, width = self.certainty.shape
        if self.warp.shape != (height, width, 4) or width % 2:
            raise ValueError(
                f"expected a warp (H, 2 W, 4) and a certainty (H, 2 W), got {self.warp.shape} and "
                f"{self.certainty.shape}"
            )

    @property
    def width(self) -> int:
        """W: the columns of one half."""
        return int(self.certainty.shape[1]) // 2

    def swapped(self) -> DenseWarp:
        """The same warp from image 1 to image 0."""
        return DenseWarp(
            warp=np.roll(self.warp, self.width, axis=1)[..., [2, 3, 0, 1]],
            certainty=np.roll(self.certainty, self.width, axis=1),
            size0=self.size1,
            size1=self.size0,
            extent0=self.extent1,
            extent1=self.extent0,
            method=self.method,
        )

    def to_pixel_coordinates(self, rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rows (..., 4) of `warp` as points (..., 2) of the full-size images 0 and 1, pixel centres at integers."""
        return (
            _to_pixels(rows[..., :2], self.size0, self.extent0),
            _to_pixels(rows[..., 2:], self.size1, self.extent1),
        )

    def sample(self, num: int, seed: int = 0) -> Matches:
        """`num` matches spread evenly over what the images share, or all there are if fewer have any certainty.

        Candidates are drawn by certainty, then thinned by 1 / (their density in the joint 4-D space + 1). Scores
        are the certainties. Pixels of certainty 0 are never drawn. Peak memory does not grow with `num` squared.
        """
        generator = np.random.default_rng(seed)
        certainty = self.certainty.ravel()
        weights = np.where(certainty > SURE, 1.0, certainty)
        candidates = _draw(weights, CANDIDATES_PER_MATCH * num, generator)
        rows = self.warp.reshape(-1, 4)[candidates]
        if len(candidates) > num:
            neighbours = density(rows)
            thinned = np.where(neighbours < MIN_DENSITY, OUTLIER_WEIGHT, 1 / (neighbours + 1))
            kept = _draw(thinned, num, generator)
            candidates, rows = candidates[kept], rows[kept]
        points0, points1 = self.to_pixel_coordinates(rows)
        return Matches(
            points0=points0.astype(np.float32),
            points1=points1.astype(np.float32),
            scores=certainty[candidates].astype(np.float32),
            size0=self.size0,
            size1=self.size1,
            method=self.method,
        )

    def transfer(self, points0: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Where points (N, 2) of image 0 lie in image 1, both in full-size pixels, and how surely, (N,)."""
        normalised = _to_normalised(np.asarray(points0, float), self.size0, self.extent0)
        half = self.warp[:, : self.width, 2:]
        there = _to_pixels(_read(half, normalised), self.size1, self.extent1)
        return there, _read(self.certainty[:, : self.width, None], normalised)[:, 0].astype(np.float32)

    def match_keypoints(
        self,
        keypoints0: NDArray[Any],
        keypoints1: NDArray[Any],
        *,
        max_distance_px: float = 3.0,
        min_certainty: float = 0.05,
    ) -> IndexMatches:
        """Which of the given keypoints, (N, 2) and (M, 2) in full-size pixels, are the same.

        A pair must be mutual nearest between image 0's keypoints carried into image 1 and image 1's own, at most
        `max_distance_px` of image 1 apart, and certain to `min_certainty` there. Scores are the certainties.
        """
        empty = IndexMatches(indices=np.zeros((0, 2), np.int64), scores=np.zeros(0, np.float32))
        if not len(keypoints0) or not len(keypoints1):
            return empty
        carried, certainty = self.transfer(keypoints0)
        nearest1, nearest0, squared = _mutual_nearest(carried, np.asarray(keypoints1, float))
        rows = np.arange(len(carried))
        good = (nearest0[nearest1] == rows) & (squared <= max_distance_px**2) & (certainty >= min_certainty)
        rows = rows[good]
        return IndexMatches(indices=np.stack([rows, nearest1[rows]], 1), scores=certainty[rows])

    def warped(self, pixels1: NDArray[Any]) -> NDArray[np.float32]:
        """Image 1, (h, w) or (h, w, C) of any size, as image 0 sees it: (H, W, C) float32 on the warp's grid.

        Bilinear; what the warp says of padding is the picture's nearest border.
        """
        layers = pixels1[..., None] if pixels1.ndim == 2 else pixels1
        height, width = layers.shape[:2]
        points = _to_pixels(self.warp[:, : self.width, 2:], (width, height), self.extent1)
        return _bilinear(layers, points.reshape(-1, 2)).reshape(*points.shape[:2], -1).astype(np.float32)

    def forward_backward_error_px(self) -> NDArray[np.float32]:
        """(H, 2 W) float32: how far each pixel comes back from where it started, in its own image's pixels."""
        left, right = self.warp[:, : self.width], self.warp[:, self.width :]
        back0 = _read(right[..., :2], left[..., 2:].reshape(-1, 2)).reshape((*left.shape[:2], 2))
        back1 = _read(left[..., 2:], right[..., :2].reshape(-1, 2)).reshape((*right.shape[:2], 2))
        steps0 = _to_pixels(back0, self.size0, self.extent0) - _to_pixels(
            left[..., :2], self.size0, self.extent0
        )
        steps1 = _to_pixels(back1, self.size1, self.extent1) - _to_pixels(
            right[..., 2:], self.size1, self.extent1
        )
        steps = np.concatenate([steps0, steps1], 1)
        return np.asarray(np.hypot(steps[..., 0], steps[..., 1]), np.float32)


def density(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """sum_j exp(-|rows_i - rows_j|^2 / (2 sigma^2)) for each row i of (N, D), itself included; (N,) float32.

    Computed in square blocks of the symmetric matrix, so that memory stays at two blocks for any N.
    """
    # exp(a.b - |a|^2/2 - |b|^2/2): the whole exponent is one matrix product of augmented rows.
    scaled = ((rows - rows.mean(0)) / DENSITY_SIGMA).astype(np.float32)
    half_square = 0.5 * (scaled**2).sum(1, keepdims=True)
    one = np.ones_like(half_square)
    first = np.concatenate([scaled, -half_square, one], 1)
    second = np.concatenate([scaled, one, -half_square], 1)
    total = np.zeros(len(rows), np.float32)
    for i in range(0, len(rows), _BLOCK):
        for j in range(i, len(rows), _BLOCK):
            kernel = first[i : i + _BLOCK] @ second[j : j + _BLOCK].T
            np.exp(kernel, out=kernel)
            total[i : i + _BLOCK] += kernel.sum(1)
            if j > i:
                total[j : j + _BLOCK] += kernel.sum(0)
    return total


def _draw(weights: NDArray[Any], num: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """`num` different indices drawn one after the other by weight, or all of positive weight if fewer; shuffled.

    The largest of log(u) / w are such a draw (Efraimidis and Spirakis 2006).
    """
    positive = np.flatnonzero(weights > 0)
    keys = np.log1p(-generator.random(len(positive))) / weights[positive]
    if len(positive) > num:
        positive = positive[np.argpartition(keys, len(positive) - num)[len(positive) - num :]]
    return generator.permutation(positive)


def _mutual_nearest(
    points: NDArray[np.float64], others: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Each point's nearest other, each other's nearest point, and each point's squared distance to its own."""
    nearest = np.zeros(len(points), np.int64)
    squared = np.full(len(points), np.inf)
    backward = np.zeros(len(others), np.int64)
    backward_squared = np.full(len(others), np.inf)
    for start in range(0, len(points), _KEYPOINT_BLOCK):
        block = points[start : start + _KEYPOINT_BLOCK]
        gaps = (block[:, None, 0] - others[:, 0]) ** 2 + (block[:, None, 1] - others[:, 1]) ** 2
        nearest[start : start + _KEYPOINT_BLOCK] = gaps.argmin(1)
        squared[start : start + _KEYPOINT_BLOCK] = gaps.min(1)
        closer = gaps.min(0) < backward_squared
        backward[closer] = start + gaps.argmin(0)[closer]
        backward_squared[closer] = gaps.min(0)[closer]
    return nearest, backward, squared


def _to_pixels(
    normalised: NDArray[Any], size: tuple[int, int], extent: tuple[float, float]
) -> NDArray[np.float64]:
    return (normalised.astype(float) + 1) / 2 * (np.array(size) / extent) - 0.5


def _to_normalised(
    points: NDArray[Any], size: tuple[int, int], extent: tuple[float, float]
) -> NDArray[np.float64]:
    return (points + 0.5) * 2 * (np.array(extent) / size) - 1


def _read(field: NDArray[Any], normalised: NDArray[Any]) -> NDArray[np.float64]:
    """`field` (H, W, C) bilinearly at (N, 2) positions in [-1, 1]; the border beyond it."""
    height, width = field.shape[:2]
    return _bilinear(field, _to_pixels(normalised, (width, height), (1.0, 1.0)))


def _bilinear(field: NDArray[Any], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """`field` (H, W, C) at (N, 2) pixel positions (x, y); cv2.remap would round them to 1/32 pixel."""
    height, width = field.shape[:2]
    points = np.clip(points, 0, np.array([width - 1, height - 1]))
    x0, y0 = np.floor(points).astype(np.int64).T
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    x, y = (points - np.floor(points)).T[..., None]
    above = field[y0, x0] * (1 - x) + field[y0, x1] * x
    below = field[y1, x0] * (1 - x) + field[y1, x1] * x
    return np.asarray(above * (1 - y) + below * y, np.float64)
