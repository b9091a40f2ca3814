"""Small pictures of one registration for the report: as it came, aligned, and its residuals."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Transform
from tiepoint.images import Image, ResizeMap, fitted_size, resize, rgb_view
from tiepoint.registration.register import Registration

PANE_PX = 320
"""Long side of a pane."""

NUM_PANES = 3

_GROUND = (24, 24, 28)
_ARROW = (0, 220, 255)
_ARROW_PX = 14.0  # length at which a residual of average size is drawn
_MAX_NUM_ARROWS = 80
_QUALITY = 70  # of the JPEG: a strip of a busy picture takes about 40 KB


def thumbnails(template: Image, source: Image, registration: Registration) -> bytes:
    """A JPEG strip of three panes in the template's aspect: source as it came | aligned | residual vectors.

    The residual vectors run from the template's points to where the transform puts the source's, enlarged by the
    factor written in the pane. Without a transform the second and third panes are blank.
    """
    size = fitted_size(template.size, PANE_PX)
    panes = [_letterboxed(source, size), _blank(size), _blank(size)]
    if registration.transform is not None:
        panes[1] = _aligned(source, registration.transform, template.size, size)
        panes[2] = _residuals(panes[1], registration, size[0] / template.width)
    return _encode(np.hstack(panes), _QUALITY)


def template_thumbnail(template: Image) -> bytes:
    """The template as one JPEG pane of the same size."""
    return _encode(_reduced(template, PANE_PX / max(template.size))[0], 85)


def shrunk(strip: bytes, max_bytes: int) -> bytes:
    """The JPEG `strip`, reduced until it takes at most `max_bytes` or its panes are no wider than 64 px."""
    if len(strip) <= max_bytes:
        return strip
    picture = cv2.imdecode(np.frombuffer(strip, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError("strip: is no JPEG picture")
    height, width = picture.shape[:2]
    pane = width / NUM_PANES
    wanted = pane * float(
        np.sqrt(1.2 * max_bytes / len(strip))
    )  # bytes go as the area, and quality falls too
    while True:
        wanted = max(64.0, min(wanted, pane))
        small = cv2.resize(
            picture,
            (NUM_PANES * round(wanted), max(1, round(height * wanted / pane))),
            interpolation=cv2.INTER_AREA,
        )
        shorter = _encode(small[..., ::-1], 55)
        if len(shorter) <= max_bytes or wanted <= 64 or wanted >= pane:
            return shorter
        wanted *= 0.88


def _encode(picture: NDArray[np.uint8], quality: int) -> bytes:
    encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return encoded.tobytes()


def _blank(size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.full((size[1], size[0], 3), _GROUND, np.uint8)


def _reduced(image: Image, scale: float) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """An RGB view at about `scale` (at most 1), and reduced_from_image (3, 3).

    Every n-th row and column is taken first, which leaves two or three to average each way: of twelve
    megapixels that takes a tenth of the time.
    """
    step = max(1, int(0.4 / scale))
    width, height = image.width // step, image.height // step
    whole = image.pixels[: height * step, : width * step]
    taken = whole if step == 1 else cv2.resize(whole, (width, height), interpolation=cv2.INTER_NEAREST)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels, to_reduced = resize(taken, size)
    return rgb_view(Image(pixels)), to_reduced.matrix @ np.diag([1 / step, 1 / step, 1.0])


def _letterboxed(source: Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The whole source in the middle of a pane."""
    reduced, _ = _reduced(source, min(1.0, size[0] / source.width, size[1] / source.height))
    height, width = reduced.shape[:2]
    pane = _blank(size)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    pane[top : top + height, left : left + width] = reduced
    return pane


def _aligned(
    source: Image, template_from_source: Transform, template_size: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The source warped into a pane of the template's frame."""
    to_pane = ResizeMap(size[0] / template_size[0], size[1] / template_size[1])
    with np.errstate(all="ignore"):
        middle = np.array([[template_size[0] / 2, template_size[1] / 2]])
        enlargement = abs(float(np.linalg.det(template_from_source.inverse().jacobian(middle)[0])))
    # Pane pixels per source pixel: reduced by that first, so that the warp does not alias.
    scale = to_pane.scale_x / np.sqrt(enlargement) if 0 < enlargement < np.inf else 1.0
    scale = float(np.clip(scale, min(1.0, 4 / min(source.size)), 1.0))
    reduced, from_source = _reduced(source, scale)
    matrix = to_pane.matrix @ template_from_source.matrix @ np.linalg.inv(from_source)
    return np.asarray(cv2.warpPerspective(reduced, matrix, size, flags=cv2.INTER_LINEAR, borderValue=_GROUND))


def _residuals(aligned: NDArray[np.uint8], registration: Registration, zoom: float) -> NDArray[np.uint8]:
    """The inliers' residuals as arrows over the dimmed aligned pane."""
    gray: NDArray[np.uint8] = cv2.cvtColor(aligned, cv2.COLOR_RGB2GRAY)
    pane = np.dstack([gray // 2] * 3)
    inliers = np.flatnonzero(registration.estimate.inliers)
    if len(inliers) == 0 or registration.transform is None:
        return pane
    rows = inliers[np.linspace(0, len(inliers) - 1, min(len(inliers), _MAX_NUM_ARROWS)).round().astype(int)]
    points = registration.matches.points1[rows].astype(np.float64)
    vectors = registration.transform(registration.matches.points0[rows]) - points
    usual = float(np.median(np.linalg.norm(vectors, axis=1))) * zoom
    factor = min(1000.0, _round_number(_ARROW_PX / max(usual, 1e-3)))
    starts = (points + 0.5) * zoom - 0.5
    ends = starts + (vectors * zoom * factor).clip(-1000, 1000)
    for start, end in zip(np.rint(starts * 16).astype(int), np.rint(ends * 16).astype(int), strict=True):
        cv2.line(pane, start.tolist(), end.tolist(), _ARROW, 1, cv2.LINE_AA, 4)
        cv2.circle(pane, start.tolist(), 24, _ARROW, -1, cv2.LINE_AA, 4)
    label = f"x {factor:g}"
    place = (6, pane.shape[0] - 8)
    cv2.putText(pane, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(pane, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return pane


def _round_number(value: float) -> float:
    """The largest of 1, 2, 5, 10, 20, 50, ... that is not above `value`; 1 at least."""
    if value < 1:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(power * max(digit for digit in (1, 2, 5) if digit * power <= value * (1 + 1e-9)))
