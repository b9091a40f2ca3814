"""A picture at falling sizes, grey and smoothed: what sub-pixel measurements look at."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.images.image import Image
from tiepoint.images.resize import ResizeMap, resize
from tiepoint.images.views import gray_view

_COARSEST_PX = 500  # long side: what methods find at 640 px and more is off by a few pixels of this
_SMOOTHING_PX = 0.8  # takes the corners off the pixels, which sampling between them would shift
_LONGEST_PX = 32766  # OpenCV samples no longer pictures


@dataclass(frozen=True, eq=False)
class GrayLevel:
    """One size. pixels: (H, W) uint16, 256 times the 8-bit view. resize_map: from the full-size picture."""

    pixels: NDArray[np.uint16]
    resize_map: ResizeMap


def gray_levels(image: Image) -> tuple[GrayLevel, ...]:
    """`image` at its size, at half of it, and at halves of that down to a long side of 500 px; the coarsest first."""
    gray = gray_view(image)
    halvings = max(1, int(np.ceil(np.log2(max(image.size) / _COARSEST_PX))))
    sizes = [tuple(max(1, round(side / 2**k)) for side in image.size) for k in range(halvings, -1, -1)]
    return tuple(_level(gray, (width, height)) for width, height in sizes if max(width, height) <= _LONGEST_PX)


def _level(gray: NDArray[np.uint8], size: tuple[int, int]) -> GrayLevel:
    small, resize_map = resize(gray, size)
    deep = np.left_shift(small, 8, dtype=np.uint16)
    return GrayLevel(np.asarray(cv2.GaussianBlur(deep, (0, 0), _SMOOTHING_PX), np.uint16), resize_map)
