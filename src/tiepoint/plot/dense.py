"""Pictures of a dense warp: where it goes, how sure it is, what it makes of the images, what is sampled."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Matches
from tiepoint.images import Image, ResizeMap, fitted_size, resize, rgb_view
from tiepoint.matchers.dense_warp import DenseWarp
from tiepoint.plot.draw import GROUND, Picture


def draw_warp(dense: DenseWarp) -> Picture:
    """(H, 2 W, 3): each half coloured by where its pixels lie in the other image, white where that is unsure.

    Red grows with x and blue with y of the place there; a checker of eighths shows lines that should stay lines.
    """
    half = dense.width
    places = np.concatenate([dense.warp[:, :half, 2:], dense.warp[:, half:, :2]], 1)
    x, y = np.moveaxis((places + 1) / 2, -1, 0)
    checker = (np.floor(8 * x) + np.floor(8 * y)) % 2
    colours = np.stack([x, 0.25 + 0.35 * checker, y], -1) * 255
    return _blended(colours, dense.certainty)


def draw_certainty(dense: DenseWarp) -> Picture:
    """(H, 2 W, 3): from black, none, to white, sure, of image 0's pixels left and of image 1's right."""
    levels = np.rint(dense.certainty * 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB), np.uint8)


def draw_warped(dense: DenseWarp, image0: Image, image1: Image) -> Picture:
    """(H, 2 W, 3): left, image 1 as image 0 sees it; right, image 0 as image 1 does; white where unsure."""
    _check_size(dense.size0, image0, "image0")
    _check_size(dense.size1, image1, "image1")
    seen = np.concatenate([dense.warped(rgb_view(image1)), dense.swapped().warped(rgb_view(image0))], 1)
    return _blended(seen, dense.certainty)


def draw_samples(image0: Image, image1: Image, matches: Matches, *, max_size_px: int = 640) -> Picture:
    """Image 0 left, image 1 right, every match a dot of one colour in both: its hue by the angle about image 0's
    centre, its brightness by the distance from it."""
    _check_size(matches.size0, image0, "image0")
    _check_size(matches.size1, image1, "image1")
    left, to_left = _canvas(image0, max_size_px)
    right, to_right = _canvas(image1, max_size_px)
    picture = np.full((max(len(left), len(right)), left.shape[1] + right.shape[1], 3), GROUND, np.uint8)
    picture[: len(left), : left.shape[1]] = left // 2
    picture[: len(right), left.shape[1] :] = right // 2
    offset = np.array([left.shape[1], 0])
    colours = _colours_about_centre(matches.points0, matches.size0)
    places0, places1 = to_left.to_resized(matches.points0), to_right.to_resized(matches.points1) + offset
    for place0, place1, colour in zip(places0, places1, colours, strict=True):
        for x, y in (place0, place1):
            cv2.circle(picture, (round(x), round(y)), 1, colour, cv2.FILLED)
    return picture


def _blended(colours: NDArray[np.floating], certainty: NDArray[np.float32]) -> Picture:
    weight = certainty[..., None]
    blended = np.rint(colours * weight + 255 * (1 - weight))
    return np.asarray(blended.clip(0, 255).astype(np.uint8))


def _colours_about_centre(
    points: NDArray[np.float32], size: tuple[int, int]
) -> list[tuple[float, float, float]]:
    from_centre = (points - (np.array(size) - 1) / 2) / (max(size) / 2)
    hues = np.arctan2(from_centre[:, 1], from_centre[:, 0]) / (2 * np.pi) + 0.5
    values = 0.5 + 0.5 * np.minimum(np.linalg.norm(from_centre, axis=1), 1)
    found = []
    for hue, value in zip(hues, values, strict=True):
        red, green, blue = colorsys.hsv_to_rgb(float(hue), 0.9, float(value))
        found.append((255 * red, 255 * green, 255 * blue))
    return found


def _canvas(image: Image, max_size_px: int) -> tuple[Picture, ResizeMap]:
    picture, to_picture = resize(rgb_view(image), fitted_size(image.size, max_size_px))
    return picture, to_picture


def _check_size(expected: tuple[int, int], image: Image, name: str) -> None:
    if image.size != expected:
        raise ValueError(f"{name}: expected an image of size {expected}, got {image.size}")
