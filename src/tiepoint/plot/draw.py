"""Pictures of keypoints, matches and alignments, as (H, W, 3) uint8 RGB arrays for `write_image`.

Positions are drawn to a sixteenth of a pixel with pixel centres at integers, so that a mark at (x, y) is
centred on the pixel [y, x].
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Features, Matches
from tiepoint.images import Image, ResizeMap, fitted_size, gray_view, resize, rgb_view

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

# Told apart by the colour-blind too.
INLIER: Colour = (0, 220, 255)
OUTLIER: Colour = (255, 100, 0)
KEYPOINT: Colour = (255, 60, 200)
GROUND: Colour = (24, 24, 28)

_SHIFT_BITS = 4  # OpenCV draws at fixed-point positions


def draw_keypoints(
    image: Image, features: Features, *, max_num: int = 2000, max_size_px: int | None = None
) -> Picture:
    """Each keypoint as a circle of its scale's diameter with a radius towards its orientation.

    Keypoints without scale are dots of 2 px radius. The `max_num` with the highest scores are drawn.
    max_size_px: long side of the picture at most; None keeps the image's size.
    """
    _check_size("features", features.image_size, image)
    picture, to_picture = _canvas(image, max_size_px)
    zoom = to_picture.scale_x
    for row in np.argsort(-features.scores, kind="stable")[:max_num]:
        centre = to_picture.to_resized(features.keypoints[row : row + 1])[0]
        if features.scales_px is None:
            _disc(picture, centre, 2.0, KEYPOINT)
            continue
        radius = max(1.5, float(features.scales_px[row]) / 2 * zoom)
        _circle(picture, centre, radius, KEYPOINT)
        if features.angles_deg is not None:
            turn = np.deg2rad(float(features.angles_deg[row]))
            _line(picture, centre, centre + radius * np.array([np.cos(turn), np.sin(turn)]), KEYPOINT)
    return picture


def draw_matches(
    image0: Image,
    image1: Image,
    matches: Matches,
    inliers: NDArray[np.bool_] | None = None,
    *,
    max_num: int = 200,
    max_size_px: int | None = None,
    gap_px: int = 8,
) -> Picture:
    """Image 0 left, image 1 right, a line for each match; inliers over outliers, in colours of their own.

    inliers: (N,) bool; None draws all as inliers. max_num: of matches drawn, an even sample of the rows, so that
    inliers and outliers keep about their proportion. max_size_px: long side of each image at most; both are
    reduced by one factor, so that sizes compare. Image 1 begins `gap_px` columns after image 0 ends.
    """
    _check_size("matches.size0", matches.size0, image0)
    _check_size("matches.size1", matches.size1, image1)
    mask = np.ones(len(matches), bool) if inliers is None else inliers
    if mask.shape != (len(matches),):
        raise ValueError(f"inliers: expected shape ({len(matches)},), got {mask.shape}")
    longest = max(*image0.size, *image1.size)
    zoom = 1.0 if max_size_px is None else min(1.0, max_size_px / longest)
    left, to_left = _canvas(image0, round(max(image0.size) * zoom))
    right, to_right = _canvas(image1, round(max(image1.size) * zoom))
    offset = left.shape[1] + gap_px
    picture = np.full((max(len(left), len(right)), offset + right.shape[1], 3), GROUND, np.uint8)
    picture[: len(left), : left.shape[1]] = left
    picture[: len(right), offset:] = right
    starts = to_left.to_resized(matches.points0)
    ends = to_right.to_resized(matches.points1) + np.array([offset, 0])
    rows = _even_sample(len(matches), max_num)
    for row in [*rows[~mask[rows]], *rows[mask[rows]]]:
        colour = INLIER if mask[row] else OUTLIER
        _line(picture, starts[row], ends[row], colour)
        _disc(picture, starts[row], 2.0, colour)
        _disc(picture, ends[row], 2.0, colour)
    return picture


def draw_overlay(template: Image, aligned: Image, valid: NDArray[np.bool_] | None = None) -> Picture:
    """Template in red, aligned image in cyan: grey where they agree, coloured seams where they do not.

    Both of one size, and alike in brightness: the aligned image takes the template's mean and contrast first.
    valid: (H, W), where the aligned image has pixels; elsewhere the template is shown at half brightness.
    """
    red, cyan, inside = _comparable(template, aligned, valid)
    picture = np.stack([red, cyan, cyan], axis=2)
    picture[~inside] = red[~inside, None] // 2
    return picture


def draw_checkerboard(
    template: Image, aligned: Image, valid: NDArray[np.bool_] | None = None, *, square_px: int | None = None
) -> Picture:
    """Squares of the template and of the aligned image by turns; edges run through where they agree.

    The upper left square is the template's. square_px: side of a square; None is an eighth of the short side.
    valid: (H, W), where the aligned image has pixels; elsewhere the template shows.
    """
    inside = _check_frames(template, aligned, valid)
    side = square_px or max(1, min(template.size) // 8)
    rows, columns = np.indices((template.height, template.width)) // side
    from_aligned = ((rows + columns) % 2 == 1) & inside
    return np.where(from_aligned[..., None], rgb_view(aligned), rgb_view(template))


def draw_difference(template: Image, aligned: Image, valid: NDArray[np.bool_] | None = None) -> Picture:
    """White where they agree, towards red where the aligned image is brighter, towards blue where it is darker.

    Full colour is a difference of 128 grey levels, after the aligned image took the template's mean and contrast.
    valid: (H, W), where the aligned image has pixels; elsewhere mid-grey.
    """
    first, second, inside = _comparable(template, aligned, valid)
    difference = (second.astype(np.int16) - first) * 2
    picture = np.full((*first.shape, 3), 255, np.int16)
    picture[..., 1] -= np.abs(difference)
    picture[..., 2] -= np.maximum(difference, 0)  # brighter: green and blue go
    picture[..., 0] -= np.maximum(-difference, 0)  # darker: green and red go
    picture[~inside] = 128
    return np.asarray(picture.clip(0, 255).astype(np.uint8))


def _check_size(name: str, size: tuple[int, int], image: Image) -> None:
    if size != image.size:
        raise ValueError(f"{name}: expected the image's size {image.size}, got {size}")


def _check_frames(template: Image, aligned: Image, valid: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    if aligned.size != template.size:
        raise ValueError(f"aligned: expected the template's size {template.size}, got {aligned.size}")
    shape = (template.height, template.width)
    if valid is not None and valid.shape != shape:
        raise ValueError(f"valid: expected shape {shape}, got {valid.shape}")
    return np.ones(shape, bool) if valid is None else valid


def _comparable(
    template: Image, aligned: Image, valid: NDArray[np.bool_] | None
) -> tuple[Picture, Picture, NDArray[np.bool_]]:
    """Grey views of both, the second with the mean and contrast of the first over the valid area."""
    inside = _check_frames(template, aligned, valid)
    first, second = gray_view(template), gray_view(aligned)
    if not inside.any():
        return first, second, inside
    a, b = first[inside].astype(np.float32), second[inside].astype(np.float32)
    gain = a.std() / b.std() if b.std() > 1 else 1.0
    matched = (second.astype(np.float32) - b.mean()) * gain + a.mean()
    return first, np.rint(matched.clip(0, 255)).astype(np.uint8), inside


def _canvas(image: Image, max_size_px: int | None) -> tuple[Picture, ResizeMap]:
    """A fresh RGB picture of the image to draw on, and the map of its pixels into it."""
    picture, to_picture = resize(rgb_view(image), fitted_size(image.size, max_size_px))
    return picture.copy(), to_picture


def _even_sample(count: int, max_num: int) -> NDArray[np.int64]:
    """At most `max_num` of the rows 0 ... count - 1, evenly spread."""
    if count <= max_num:
        return np.arange(count)
    return np.linspace(0, count - 1, max_num).round().astype(np.int64)


def _fixed(point: NDArray[np.float64]) -> tuple[int, int]:
    x, y = np.rint(point * (1 << _SHIFT_BITS)).astype(int)
    return int(x), int(y)


def _disc(picture: Picture, centre: NDArray[np.float64], radius: float, colour: Colour) -> None:
    size = round(radius * (1 << _SHIFT_BITS))
    cv2.circle(picture, _fixed(centre), size, colour, -1, cv2.LINE_AA, _SHIFT_BITS)


def _circle(picture: Picture, centre: NDArray[np.float64], radius: float, colour: Colour) -> None:
    size = round(radius * (1 << _SHIFT_BITS))
    cv2.circle(picture, _fixed(centre), size, colour, 1, cv2.LINE_AA, _SHIFT_BITS)


def _line(picture: Picture, start: NDArray[np.float64], end: NDArray[np.float64], colour: Colour) -> None:
    cv2.line(picture, _fixed(start), _fixed(end), colour, 1, cv2.LINE_AA, _SHIFT_BITS)
