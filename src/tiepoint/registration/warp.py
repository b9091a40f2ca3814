"""Bring a source into the template's frame at its own bit depth."""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Transform, frame_corners
from tiepoint.images import Image

Interpolation = Literal["bicubic", "nearest"]

_FLAGS = {"bicubic": cv2.INTER_CUBIC, "nearest": cv2.INTER_NEAREST}


def warp_image(
    source: Image,
    template_from_source: Transform,
    template_size: tuple[int, int],
    *,
    interpolation: Interpolation = "bicubic",
) -> Image:
    """`source` resampled into a frame of `template_size` (width, height), in its own number type.

    Pixels the source does not cover are 0; `valid_mask` tells them from black ones.
    interpolation: "bicubic", smoothed first where the source is reduced by more than half, so that nothing aliases;
    "nearest" for label maps, whose values must not be mixed.
    """
    return warp_with_mask(source, template_from_source, template_size, interpolation=interpolation)[0]


def warp_with_mask(
    source: Image,
    template_from_source: Transform,
    template_size: tuple[int, int],
    *,
    interpolation: Interpolation = "bicubic",
) -> tuple[Image, NDArray[np.bool_]]:
    """`warp_image` and `valid_mask` together."""
    pixels = source.pixels
    if interpolation == "bicubic":
        pixels = _smoothed(pixels, template_from_source, template_size)
    # OpenCV's cubic kernel overshoots; integer types saturate, as they should.
    warped = cv2.warpPerspective(
        pixels,
        template_from_source.matrix,
        template_size,
        flags=_FLAGS[interpolation],
        borderMode=cv2.BORDER_REPLICATE,
    )
    valid = valid_mask(source.size, template_from_source, template_size)
    covered = np.asarray(cv2.copyTo(warped, valid.view(np.uint8)))  # a fifth of the time of indexing by ~valid
    return Image(covered, source.path, source.metadata), valid


def valid_mask(
    source_size: tuple[int, int], template_from_source: Transform, template_size: tuple[int, int]
) -> NDArray[np.bool_]:
    """(H, W) of the template's frame: True where the source has pixels on all sides to interpolate from.

    The rim is exact to the half pixel.
    """
    outline = frame_corners(source_size)
    weights = outline @ template_from_source.matrix[2, :2] + template_from_source.matrix[2, 2]
    if (weights > 0).all():
        polygon = template_from_source(outline)
        reach = 4 * max(template_size)
        if np.abs(polygon).max() < reach:  # fixed-point corners of a polygon do not overflow
            mask = np.zeros(template_size[::-1], np.uint8)
            cv2.fillConvexPoly(mask, np.rint(polygon * 256).astype(np.int32), 1, shift=8)
            return mask.view(np.bool_)
    ones = np.ones(source_size[::-1], np.uint8)
    return np.asarray(
        cv2.warpPerspective(ones, template_from_source.matrix, template_size, flags=cv2.INTER_NEAREST) > 0
    )


def _smoothed(pixels: NDArray[Any], transform: Transform, template_size: tuple[int, int]) -> NDArray[Any]:
    """Smoothed for a reduction by more than 2 at the template's middle; bicubic sampling does the rest."""
    middle = np.array([[template_size[0] / 2, template_size[1] / 2]])
    back = transform.inverse().jacobian(middle)[0]
    reduction = float(np.sqrt(abs(np.linalg.det(back))))
    if not np.isfinite(reduction) or reduction <= 2:
        return pixels
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 0.4 * reduction))
