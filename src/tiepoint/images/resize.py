"""Resizing with the exact map between the two pixel grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ResizeMap:
    """The half-pixel map of a resize: x' + 1/2 = scale_x (x + 1/2), likewise y, pixel centres at integers.

    scale_x, scale_y: new size / old size along each axis.
    """

    scale_x: float
    scale_y: float

    @property
    def matrix(self) -> NDArray[np.float64]:
        """H_resized_from_original, (3, 3)."""
        sx, sy = self.scale_x, self.scale_y
        return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1.0]])

    def to_resized(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """(N, 2) points of the original image, in the resized one."""
        return (np.asarray(points, float) + 0.5) * (self.scale_x, self.scale_y) - 0.5

    def to_original(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """(N, 2) points of the resized image, in the original one."""
        return (np.asarray(points, float) + 0.5) / (self.scale_x, self.scale_y) - 0.5


def resize(pixels: NDArray[Any], size: tuple[int, int]) -> tuple[NDArray[Any], ResizeMap]:
    """`pixels` (H, W[, C]) at `size` (width, height), and the map from old to new coordinates.

    Averages areas when shrinking, so that nothing aliases; bilinear when enlarging. The number type is kept.
    """
    height, width = pixels.shape[:2]
    if size == (width, height):
        return pixels, ResizeMap(1.0, 1.0)
    shrinks = size[0] <= width and size[1] <= height
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized, ResizeMap(size[0] / width, size[1] / height)


def fitted_size(size: tuple[int, int], max_size_px: int | None, max_enlargement: float = 1.0) -> tuple[int, int]:
    """(width, height) with the aspect kept and a long side of at most `max_size_px`; None leaves it as it is.

    max_enlargement: a smaller image is enlarged, up to so many times.
    """
    if max_size_px is None:
        return size
    scale = min(max_size_px / max(size), max_enlargement)
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height
