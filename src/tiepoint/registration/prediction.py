"""How far a registration can be off: its covariance carried to the corners of the common area."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.estimation import point_covariance
from tiepoint.geometry import Transform, frame_corners


@dataclass(frozen=True, kw_only=True)
class ErrorPrediction:
    """Expected error of a registration, in pixels of the template.

    corners_px: root mean square error expected at the template's corners, clockwise from the top left.
    worst_px: the largest such error at the corners of the common area.
    bound95_px: the largest error at the corners of the common area stays below this in 95 of 100 cases.
    """

    corners_px: tuple[float, float, float, float]
    worst_px: float
    bound95_px: float


def predict_error(
    template_from_source: Transform,
    covariance: NDArray[np.float64],
    source_size: tuple[int, int],
    template_size: tuple[int, int],
    *,
    inflation: float,
    floor_px: float,
    counted: NDArray[np.float64] | None = None,
) -> ErrorPrediction:
    """Carry the (9, 9) covariance of the matrix to the corners.

    inflation: multiplies the standard deviations. Residuals of neighbouring points have common causes (blur,
    lens, a board that is not flat), which a covariance of independent points does not see.
    floor_px: added in quadrature: interpolation and the pixel grid leave that much whatever the matches say.
    counted: see `common_corners`.
    """
    common = common_corners(template_from_source, source_size, template_size, counted)
    at_common = _standard_deviations(template_from_source, covariance, common, inflation, floor_px)
    at_corners = _standard_deviations(
        template_from_source, covariance, frame_corners(template_size), inflation, floor_px
    )
    corners = [float(value) for value in np.linalg.norm(at_corners, axis=1)]
    worst = int(np.linalg.norm(at_common, axis=1).argmax())
    return ErrorPrediction(
        corners_px=(corners[0], corners[1], corners[2], corners[3]),
        worst_px=float(np.linalg.norm(at_common[worst])),
        bound95_px=_bound95(at_common),
    )


def common_corners(
    template_from_source: Transform,
    source_size: tuple[int, int],
    template_size: tuple[int, int],
    counted: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """(N, 2) corners of the polygon that template and warped source share, in the template; its own if they
    share none.

    counted: (4, 2) corners, clockwise, of the rectangle to take in place of the whole template: a mask's.
    """
    template = frame_corners(template_size) if counted is None else counted
    with np.errstate(all="ignore"):
        outline = template_from_source(frame_corners(source_size))
    heights = frame_corners(source_size) @ template_from_source.matrix[2, :2] + template_from_source.matrix[2, 2]
    if not (heights > 0).all() or np.abs(outline).max() > 1e6:
        return template
    area, polygon = cv2.intersectConvexConvex(outline.astype(np.float32), template.astype(np.float32))
    return polygon.reshape(-1, 2).astype(np.float64) if area > 0 and polygon is not None else template


def _standard_deviations(
    template_from_source: Transform,
    covariance: NDArray[np.float64],
    points: NDArray[np.float64],
    inflation: float,
    floor_px: float,
) -> NDArray[np.float64]:
    """(N, 2) standard deviations along the principal axes of the error at (N, 2) points of the template."""
    in_source = template_from_source.inverse()(points)
    covariances = point_covariance(template_from_source, covariance, in_source)
    variances = np.maximum(np.linalg.eigvalsh(covariances), 0) * inflation**2
    return np.asarray(np.sqrt(variances + floor_px**2 / 2))


def _bound95(deviations: NDArray[np.float64]) -> float:
    """95 % quantile of the largest length among Gaussian errors with these (N, 2) axes, drawn independently.

    The corners' errors are correlated in truth, so that this is somewhat above the exact quantile.
    """
    draws = np.random.default_rng(0).normal(size=(2000, *deviations.shape))
    return float(np.quantile(np.linalg.norm(draws * deviations, axis=2).max(axis=1), 0.95))
