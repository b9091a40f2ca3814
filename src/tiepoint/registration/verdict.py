"""Is a registration to be trusted? Every test with its value, its limit and what it means for an operator."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.estimation import Estimate, fit_transform
from tiepoint.geometry import DEGREES_OF_FREEDOM, Matches, Transform, frame_corners
from tiepoint.registration.agreement import Agreement
from tiepoint.registration.prediction import ErrorPrediction, common_corners
from tiepoint.registration.support import chance_of_inlier, log10_false_alarms

GRID = 4
"""Coverage counts the cells of a 4 x 4 grid over the common area that hold an inlier."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a registration must pass to be accepted. Set bounds from what the camera and fixture can do.

    max_rotation_deg: largest turn either way; None: any. scale_range: of template pixels per source pixel.
    max_aspect: of the scales along the two axes of the local map, anywhere in the common area.
    max_area_ratio: between the largest and the smallest local area there: perspective.
    min_inliers, min_log10_support: inliers, and -log10 of the false alarms chance would give.
    min_overlap: share of the template that the source covers. min_cells: occupied cells of the grid over the
    common area. max_inconsistency: between the fit and the inverse of the fit the other way round, at the common
    corners, as a share of the template's long side.
    min_structure: correlation of local structure after the warp. max_error: 95 % bound of the error, as a share of
    the template's long side.
    """

    max_rotation_deg: float | None = None
    scale_range: tuple[float, float] = (0.1, 10.0)
    max_aspect: float = 6.0
    max_area_ratio: float = 50.0
    min_inliers: int = 10
    min_log10_support: float = 8.0
    min_overlap: float = 0.1
    min_cells: int = 5
    max_inconsistency: float = 0.02
    min_structure: float = 0.4
    max_error: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Check:
    """One acceptance test.

    name: short. value, limit: numbers in the unit that the message names. passed: the outcome.
    message: in an operator's words.
    """

    name: str
    value: float
    limit: float
    passed: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """accepted: all tests passed. checks: all that could be made, in order; empty when there was no fit.
    failure: why there was nothing to test, or None."""

    checks: tuple[Check, ...]
    failure: str | None = None

    @property
    def accepted(self) -> bool:
        return self.failure is None and all(check.passed for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is not accepted; empty when it is."""
        failed = tuple(check.message for check in self.checks if not check.passed)
        return failed if self.failure is None else (self.failure, *failed)


def geometric_checks(transform: Transform, matches: Matches, limits: Limits) -> tuple[Check, ...]:
    """Tests of the transform (template from source) alone: could a camera have made it?

    A transform that mirrors or has its horizon in the image fails those two; scales mean nothing then.
    """
    source, template = matches.size0, matches.size1
    with np.errstate(all="ignore"):
        corners = frame_corners(source)
        heights = corners @ transform.matrix[2, :2] + transform.matrix[2, 2]
        middle_height = float(np.array(source) / 2 @ transform.matrix[2, :2] + transform.matrix[2, 2])
        lowest = float((heights / middle_height).min())
        back = transform.inverse()
        back_heights = frame_corners(template) @ back.matrix[2, :2] + back.matrix[2, 2]
        determinants = np.linalg.det(transform.jacobian(corners))
    horizon = Check(
        name="horizon",
        value=lowest,
        limit=0.05,
        passed=bool(lowest > 0.05 and (back_heights * back_heights[0] > 0).all()),
        message="the horizon of the transform lies inside the image: no flat object is seen like that",
    )
    orientation = Check(
        name="orientation",
        value=float(determinants.min()),
        limit=0.0,
        passed=bool((determinants > 0).all()),
        message="the transform mirrors the image or a part of it",
    )
    if not (horizon.passed and orientation.passed):
        return horizon, orientation
    middle = transform.decompose((source[0] / 2, source[1] / 2))
    common = back(common_corners(transform, source, template))
    singular = np.linalg.svd(transform.jacobian(common), compute_uv=False)
    aspect = float((singular[:, 0] / singular[:, 1]).max())
    areas = singular.prod(axis=1)
    area_ratio = float(areas.max() / areas.min())
    low, high = limits.scale_range
    checks = [
        horizon,
        orientation,
        Check(
            name="scale",
            value=middle.scale,
            limit=high if middle.scale > 1 else low,
            passed=low <= middle.scale <= high,
            message=f"the scale {middle.scale:.3g} is outside {low:g} ... {high:g}",
        ),
        Check(
            name="aspect",
            value=aspect,
            limit=limits.max_aspect,
            passed=aspect <= limits.max_aspect,
            message=f"the image is stretched {aspect:.1f} times more one way than the other"
            f" (limit {limits.max_aspect:g})",
        ),
        Check(
            name="perspective",
            value=area_ratio,
            limit=limits.max_area_ratio,
            passed=area_ratio <= limits.max_area_ratio,
            message=f"perspective enlarges one corner {area_ratio:.1f} times more than another"
            f" (limit {limits.max_area_ratio:g})",
        ),
    ]
    if limits.max_rotation_deg is not None:
        turn = abs(middle.rotation_deg)
        checks.append(
            Check(
                name="rotation",
                value=turn,
                limit=limits.max_rotation_deg,
                passed=turn <= limits.max_rotation_deg,
                message=f"the image is turned by {turn:.1f} degrees (limit {limits.max_rotation_deg:g})",
            )
        )
    return tuple(checks)


def evidence_checks(
    estimate: Estimate[Transform],
    matches: Matches,
    limits: Limits,
    *,
    seed: int,
    counted: NDArray[np.float64] | None = None,
) -> tuple[Check, ...]:
    """Tests of the matches behind the transform: enough of them, well spread, the same both ways.

    counted: where in the template matches can be, if not everywhere; see `prediction.common_corners`.
    """
    transform = estimate.model
    assert transform is not None
    inliers = _distinct_points(matches.points1[estimate.inliers])
    distinct = len(_distinct_points(matches.points1))
    needed = -(-DEGREES_OF_FREEDOM[transform.kind] // 2)
    chance = chance_of_inlier(matches.points1, estimate.threshold_px)
    support = -log10_false_alarms(distinct, len(inliers), needed, chance)
    common = common_corners(transform, matches.size0, matches.size1, counted)
    cells = occupied_cells(inliers, common)
    inconsistency = _inconsistency(estimate, matches, common, seed)
    allowed = limits.max_inconsistency * max(matches.size1)
    return (
        Check(
            name="inliers",
            value=len(inliers),
            limit=limits.min_inliers,
            passed=len(inliers) >= limits.min_inliers,
            message=f"only {len(inliers)} points of the {distinct} matched agree (limit {limits.min_inliers})",
        ),
        Check(
            name="support",
            value=support,
            limit=limits.min_log10_support,
            passed=support >= limits.min_log10_support,
            message=f"{len(inliers)} agreeing points of {distinct} could be chance: evidence"
            f" {max(support, 0.0):.1f} (limit {limits.min_log10_support:g}, powers of ten)",
        ),
        Check(
            name="coverage",
            value=cells,
            limit=limits.min_cells,
            passed=cells >= limits.min_cells,
            message=f"the agreeing points lie in {cells} of {GRID * GRID} parts of the common area"
            f" (limit {limits.min_cells}): elsewhere the alignment would be a guess",
        ),
        Check(
            name="consistency",
            value=inconsistency,
            limit=allowed,
            passed=inconsistency <= allowed,
            message="there is no alignment from template to source that agrees with the one from source to template"
            if np.isinf(inconsistency)
            else f"source to template and template to source differ by {inconsistency:.1f} px (limit {allowed:.1f})",
        ),
    )


def outcome_checks(
    alike: Agreement, prediction: ErrorPrediction, template_size: tuple[int, int], limits: Limits
) -> tuple[Check, ...]:
    """Tests of the aligned picture: does it look like the template, and how far off may it be?"""
    allowed = limits.max_error * max(template_size)
    return (
        Check(
            name="overlap",
            value=alike.overlap,
            limit=limits.min_overlap,
            passed=alike.overlap >= limits.min_overlap,
            message=f"the image covers {100 * alike.overlap:.0f} % of the template"
            f" (limit {100 * limits.min_overlap:g} %)",
        ),
        Check(
            name="likeness",
            value=alike.structure,
            limit=limits.min_structure,
            passed=alike.structure >= limits.min_structure,
            message=f"after alignment the image does not look like the template: likeness"
            f" {alike.structure:.2f} (limit {limits.min_structure:g})",
        ),
        Check(
            name="error",
            value=prediction.bound95_px,
            limit=allowed,
            passed=prediction.bound95_px <= allowed,
            message=f"the alignment may be off by {prediction.bound95_px:.1f} px somewhere (limit {allowed:.1f})",
        ),
    )


def handedness_check(likeness: float, mirrored_likeness: float) -> Check:
    """Does the mirrored source fit better? An object that is its own mirror image, all but the lettering, lets a
    mirrored photograph through every other test.

    mirrored_likeness: correlation of local structure that the mirrored source reaches; 0 where it cannot be aligned.
    """
    return Check(
        name="handedness",
        value=mirrored_likeness - likeness,
        limit=0.0,
        passed=mirrored_likeness <= likeness,
        message=f"the image is mirrored: turned left to right its likeness is {mirrored_likeness:.2f}, as it is"
        f" {likeness:.2f}",
    )


def occupied_cells(points: NDArray[np.float32], common: NDArray[np.float64]) -> int:
    """How many cells of a grid over the rectangle around the (N, 2) `common` corners hold one of `points`."""
    low, high = common.min(axis=0), common.max(axis=0)
    cells = np.floor((points - low) / np.maximum(high - low, 1e-9) * GRID).clip(0, GRID - 1).astype(int)
    return len(np.unique(cells[:, 1] * GRID + cells[:, 0]))


def hull_share(points: NDArray[np.float32], common: NDArray[np.float64]) -> float:
    """Area of the convex hull of `points` over that of the `common` polygon."""
    if len(points) < 3:
        return 0.0
    hull = float(cv2.contourArea(cv2.convexHull(points.astype(np.float32))))
    return hull / max(float(cv2.contourArea(common.astype(np.float32))), 1e-9)


def _distinct_points(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points without repetitions within a pixel: one place is one witness."""
    _, first = np.unique(np.floor(points), axis=0, return_index=True)
    return points[np.sort(first)]


def _inconsistency(estimate: Estimate[Transform], matches: Matches, common: NDArray[np.float64], seed: int) -> float:
    """Largest distance at the common corners between the fit and the inverse of a fit the other way."""
    transform = estimate.model
    assert transform is not None
    with np.errstate(all="ignore"):
        jacobian = transform.jacobian(np.array([[matches.size0[0] / 2, matches.size0[1] / 2]]))[0]
        scale = float(np.sqrt(abs(np.linalg.det(jacobian)))) if np.isfinite(jacobian).all() else 1.0
    other = fit_transform(
        matches.swapped(),
        transform.kind,
        threshold_px=estimate.threshold_px / np.clip(scale, 0.01, 100),
        seed=seed + 1,
    )
    if other.model is None:
        return float("inf")
    with np.errstate(all="ignore"):
        distances = np.linalg.norm(other.model.inverse()(transform.inverse()(common)) - common, axis=1)
    return float(np.nan_to_num(distances, nan=np.inf).max())
