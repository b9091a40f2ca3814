"""The 8-bit view of a photograph that matchers look at."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.images.image import Image


def gray_view(image: Image) -> NDArray[np.uint8]:
    """(H, W) uint8 grey, by the luma weights 0.299, 0.587, 0.114; deeper images are stretched, never clipped."""
    pixels = _opaque(image.pixels)
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return _to_8_bit(np.asarray(pixels))


def rgb_view(image: Image) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB; grey is repeated, deeper images are stretched, never clipped."""
    pixels = _opaque(image.pixels)
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    return _to_8_bit(np.asarray(pixels))


def _opaque(pixels: NDArray[Any]) -> NDArray[Any]:
    """Without the alpha channel, transparent parts over mid-grey, where they show no edge of their own."""
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.float32)
    opaque = 1.0 if pixels.dtype == np.float32 else float(np.iinfo(pixels.dtype).max)
    if (alpha >= opaque).all():
        return np.ascontiguousarray(pixels[..., :3])
    alpha /= opaque
    return (pixels[..., :3] * alpha + 0.5 * opaque * (1 - alpha)).astype(pixels.dtype)


def _to_8_bit(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """The whole range of values laid over 0 ... 255; uint8 is left alone.

    A stretch between the extremes keeps the order of all values and clips none, but a few hot pixels would
    press the picture into a handful of levels; so the range between the 0.1 and 99.9 percentiles takes the
    levels 8 ... 247 and the tails share the rest.
    """
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, np.uint8)
    values = pixels.astype(np.float32)
    if not np.isfinite(values).all():
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, dark, bright, high = np.percentile(values[::4, ::4], [0.0, 0.1, 99.9, 100.0]).astype(float)
    low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low == high:
        return np.zeros(pixels.shape, np.uint8)
    knots = np.array([low, max(dark, low), min(bright, high), high], float)
    if knots[1] >= knots[2]:
        knots, levels = knots[[0, 3]], np.array([0.0, 255.0])
    else:
        levels = np.array([0.0, 8.0 if knots[1] > low else 0.0, 247.0 if knots[2] < high else 255.0, 255.0])
    if pixels.dtype == np.uint16:  # a table of all values is a hundred times less work than every pixel
        table = np.rint(np.interp(np.arange(65536), knots, levels)).astype(np.uint8)
        return np.asarray(table[pixels])
    return np.asarray(np.rint(np.interp(values, knots, levels)).astype(np.uint8))
