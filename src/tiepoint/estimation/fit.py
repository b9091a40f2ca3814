"""Fit a model to matches: robust estimate, least squares, inliers counted again, failures with their reason."""

from __future__ import annotations

from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from tiepoint.estimation import robust
from tiepoint.estimation.choice import gric, noise_sigma_px
from tiepoint.estimation.estimate import Estimate, failed
from tiepoint.estimation.refine import refine
from tiepoint.geometry import (
    DEGREES_OF_FREEDOM,
    KINDS,
    EpipolarGeometry,
    Matches,
    RelativePose,
    Transform,
    TransformKind,
)

ModelName = Literal[
    "auto", "transform", "translation", "euclidean", "similarity", "affine", "homography", "fundamental"
]

TRANSFORM_THRESHOLD_PX = 3.0
EPIPOLAR_THRESHOLD_PX = 1.0

_MIN_EXTENT = 0.01
"""Inliers whose second principal axis is below this share of the first lie on a line, for all we can tell."""

Points = NDArray[np.float64]


@overload
def fit(
    matches: Matches,
    model: Literal["transform"] | TransformKind,
    *,
    threshold_px: float | None = None,
    seed: int = 0,
) -> Estimate[Transform]: ...


@overload
def fit(
    matches: Matches, model: Literal["fundamental"], *, threshold_px: float | None = None, seed: int = 0
) -> Estimate[EpipolarGeometry]: ...


@overload
def fit(
    matches: Matches, model: ModelName = "auto", *, threshold_px: float | None = None, seed: int = 0
) -> Estimate[Transform | EpipolarGeometry]: ...


def fit(
    matches: Matches, model: ModelName = "auto", *, threshold_px: float | None = None, seed: int = 0
) -> Estimate[Transform | EpipolarGeometry] | Estimate[Transform] | Estimate[EpipolarGeometry]:
    """The model that maps image 0 to image 1, from matches of which many may be wrong.

    matches: in pixels of the full-size images; repeated rows count once in the fit.
    model: a transform's kind; "transform" for the simplest kind that explains the matches by GRIC (see
        `choice.gric`); "fundamental"; or "auto", the better of "transform" and "fundamental" by the same
        criterion. Homographies start from OpenCV's USAC_MAGSAC, other transforms from its RANSAC, fundamental
        matrices from USAC_ACCURATE; transforms are then refined by least squares over their inliers.
    threshold_px: the largest residual of an inlier, in pixels of image 1 (Sampson distance for "fundamental");
        by default 3 for transforms and 1 for epipolar geometry.
    seed: the same seed gives the same answer.

    Returns a falsy estimate with its reason when there are too few matches, no consensus, or a mirrored or
    degenerate one. Raises ValueError for an unknown model or a threshold that is not positive.
    """
    if threshold_px is not None and not threshold_px > 0:
        raise ValueError(f"threshold_px: expected a positive number of pixels, got {threshold_px}")
    if model == "fundamental":
        return fit_fundamental(matches, threshold_px=threshold_px or EPIPOLAR_THRESHOLD_PX, seed=seed)
    transform_px = threshold_px or TRANSFORM_THRESHOLD_PX
    if model in KINDS:
        return fit_transform(matches, model, threshold_px=transform_px, seed=seed)
    if model == "transform":
        return _simplest_transform(matches, threshold_px=transform_px, seed=seed)
    if model == "auto":
        transform = _simplest_transform(matches, threshold_px=transform_px, seed=seed)
        epipolar = fit_fundamental(matches, threshold_px=threshold_px or EPIPOLAR_THRESHOLD_PX, seed=seed)
        return _transform_or_epipolar(transform, epipolar)
    raise ValueError(f"model: expected auto, transform, fundamental or one of {', '.join(KINDS)}, got {model!r}")


def fit_transform(
    matches: Matches, kind: TransformKind, *, threshold_px: float = TRANSFORM_THRESHOLD_PX, seed: int = 0
) -> Estimate[Transform]:
    """The transform of one kind; see `fit`."""
    points0, points1 = _distinct(matches)
    needed = -(-DEGREES_OF_FREEDOM[kind] // 2)
    if len(points0) < needed:
        return failed(len(matches), threshold_px, f"too few matches: {len(points0)}, a {kind} needs {needed}")
    start = _robust_start(kind, points0, points1, threshold_px, seed)
    if start is None:
        return failed(len(matches), threshold_px, f"no consensus: no {kind} explains the matches")
    return _refined(matches, start, points0, points1, threshold_px)


def fit_fundamental(
    matches: Matches, *, threshold_px: float = EPIPOLAR_THRESHOLD_PX, seed: int = 0
) -> Estimate[EpipolarGeometry]:
    """The fundamental matrix; see `fit`."""
    points0, points1 = _distinct(matches)
    if len(points0) < 8:
        return failed(len(matches), threshold_px, f"too few matches: {len(points0)}, a fundamental matrix needs 8")
    matrix = robust.fundamental(points0, points1, threshold_px=threshold_px, seed=seed)
    if matrix is None:
        return failed(len(matches), threshold_px, "no consensus: no fundamental matrix explains the matches")
    epipolar = EpipolarGeometry(matrix)
    residuals = epipolar.residuals(matches.points0, matches.points1)
    inliers = residuals <= threshold_px
    if (epipolar.residuals(points0, points1) <= threshold_px).sum() < 8:
        return failed(len(matches), threshold_px, "no consensus: fewer than 8 inliers of a fundamental matrix")
    return Estimate(model=epipolar, inliers=inliers, residuals_px=residuals, threshold_px=threshold_px)


def fit_pose(
    matches: Matches,
    intrinsics0: NDArray[np.float64],
    intrinsics1: NDArray[np.float64],
    *,
    threshold_px: float = EPIPOLAR_THRESHOLD_PX,
    seed: int = 0,
) -> Estimate[RelativePose]:
    """The pose of camera 1 from camera 0, by PoseLib, for known (3, 3) intrinsics K with centres at integers.

    threshold_px is a Sampson distance. Returns a falsy estimate with its reason like `fit`.
    """
    points0, points1 = _distinct(matches)
    if len(points0) < 5:
        return failed(len(matches), threshold_px, f"too few matches: {len(points0)}, a relative pose needs 5")
    pose, iterations = robust.relative_pose(
        points0, points1, intrinsics0, intrinsics1, threshold_px=threshold_px, seed=seed
    )
    if pose is None:
        return failed(len(matches), threshold_px, "no consensus: no relative pose explains the matches")
    residuals = pose.residuals(matches.points0, matches.points1)
    return Estimate(
        model=pose,
        inliers=residuals <= threshold_px,
        residuals_px=residuals,
        threshold_px=threshold_px,
        iterations=iterations,
    )


def _distinct(matches: Matches) -> tuple[Points, Points]:
    """The matches without repetitions: a keypoint with two orientations is one point, not two witnesses."""
    rows = np.concatenate([matches.points0, matches.points1], axis=1).astype(np.float64)
    _, first = np.unique(rows, axis=0, return_index=True)
    rows = rows[np.sort(first)]
    return rows[:, :2], rows[:, 2:]


def _robust_start(
    kind: TransformKind, points0: Points, points1: Points, threshold_px: float, seed: int
) -> Transform | None:
    """A transform of `kind` near the best, by the simplest family that OpenCV estimates robustly and contains it."""
    if kind == "homography":
        matrix = robust.homography(points0, points1, threshold_px=threshold_px, seed=seed)
        return _transform_or_none(matrix, kind)
    if kind == "affine":
        matrix = robust.affine(points0, points1, threshold_px=threshold_px, seed=seed)
        return _transform_or_none(matrix, kind)
    if kind == "translation" and len(points0) == 1:
        return _shift(points1[0] - points0[0])
    matrix = robust.similarity(points0, points1, threshold_px=threshold_px, seed=seed)
    start = _transform_or_none(matrix, "similarity")
    if start is None:
        return None
    return _nearest(start, kind, points0[start.residuals(points0, points1) <= threshold_px])


def _transform_or_none(matrix: NDArray[np.float64] | None, kind: TransformKind) -> Transform | None:
    try:
        return None if matrix is None else Transform(matrix, kind)
    except ValueError:  # singular: what the estimator found maps everything to a line
        return None


def _shift(shift_px: Points) -> Transform:
    matrix = np.eye(3)
    matrix[:2, 2] = shift_px
    return Transform(matrix, "translation")


def _nearest(start: Transform, kind: TransformKind, inliers0: Points) -> Transform | None:
    """The transform of a simpler kind that does the same at the middle of the inliers."""
    if kind == start.kind:
        return start
    if len(inliers0) == 0:
        return None
    middle = inliers0.mean(0)
    target = start(middle[None])[0]
    if kind == "translation":
        return _shift(target - middle)
    linear = start.jacobian(middle[None])[0]
    if kind == "euclidean":
        linear = linear / np.sqrt(abs(np.linalg.det(linear)))
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, target - linear @ middle
    return Transform(matrix, kind)


def _refined(
    matches: Matches, start: Transform, points0: Points, points1: Points, threshold_px: float
) -> Estimate[Transform]:
    """Least squares over the inliers, the inliers counted again, until they settle; then the checks."""
    count = len(matches)
    needed = -(-start.degrees_of_freedom // 2)
    transform, covariance = start, np.zeros((9, 9))
    inside = _inside(start, points0, points1, threshold_px)
    for _ in range(5):
        if inside.sum() < needed:
            return failed(count, threshold_px, f"no consensus: {inside.sum()} inliers, a {start.kind} needs {needed}")
        reason = _degenerate(points0[inside], points1[inside], start.kind)
        if reason is not None:
            return failed(count, threshold_px, reason)
        try:
            refined, covariance = refine(transform, points0[inside], points1[inside])
        except (ValueError, np.linalg.LinAlgError):
            return failed(count, threshold_px, "degenerate: least squares found no finite transform")
        now_inside = _inside(refined, points0, points1, threshold_px)
        if now_inside.sum() < inside.sum():
            # Least squares left the consensus: what was found before stands, with the covariance of the refined.
            break
        settled = bool((now_inside == inside).all())
        transform, inside = refined, now_inside
        if settled:
            break
    with np.errstate(divide="ignore", invalid="ignore"):
        if not (np.linalg.det(transform.jacobian(points0[inside])) > 0).all():
            return failed(count, threshold_px, "mirrored: the matches agree on a reflection, which no camera makes")
    residuals = transform.residuals(matches.points0, matches.points1)
    return Estimate(
        model=transform,
        inliers=residuals <= threshold_px,
        residuals_px=residuals,
        threshold_px=threshold_px,
        covariance=covariance,
    )


def _inside(transform: Transform, points0: Points, points1: Points, threshold_px: float) -> NDArray[np.bool_]:
    return np.asarray(transform.residuals(points0, points1) <= threshold_px)


def _degenerate(inliers0: Points, inliers1: Points, kind: TransformKind) -> str | None:
    """Why the inliers cannot fix a transform of `kind`, or None."""
    if kind == "translation":
        return None
    for points in (inliers0, inliers1):
        extent = np.linalg.svd(points - points.mean(0), compute_uv=False)
        if extent[0] == 0:
            return "degenerate: all inliers are one point"
        if kind in ("affine", "homography") and extent[1] < _MIN_EXTENT * extent[0]:
            return f"collinear: the {len(points)} inliers lie on a line"
    return None


def _simplest_transform(matches: Matches, *, threshold_px: float, seed: int) -> Estimate[Transform]:
    """The kind with the lowest GRIC among those that can be fitted."""
    fits = [fit_transform(matches, kind, threshold_px=threshold_px, seed=seed) for kind in KINDS]
    found = [estimate for estimate in fits if estimate]
    if not found:
        return fits[-1]
    most_general = max(found, key=lambda estimate: estimate.num_inliers)
    sigma_px = noise_sigma_px(most_general.residuals_px[most_general.inliers])

    def criterion(estimate: Estimate[Transform]) -> float:
        assert estimate.model is not None
        parameters = estimate.model.degrees_of_freedom
        return gric(estimate.residuals_px, sigma_px=sigma_px, dimension=2, parameters=parameters)

    return min(found, key=criterion)


def _transform_or_epipolar(
    transform: Estimate[Transform], epipolar: Estimate[EpipolarGeometry]
) -> Estimate[Transform | EpipolarGeometry]:
    """The lower GRIC of the two: a flat scene or a turning camera against depth and motion.

    Only matches that one of them explains are counted: what is wrong for both says nothing about the scene.
    """
    if not transform or not epipolar:
        return transform if transform or not epipolar else epipolar
    assert transform.model is not None
    sigma_px = noise_sigma_px(transform.residuals_px[transform.inliers])
    told = transform.inliers | epipolar.inliers
    by_transform = gric(
        transform.residuals_px[told],
        sigma_px=sigma_px,
        dimension=2,
        parameters=transform.model.degrees_of_freedom,
    )
    # A Sampson distance spreads the noise of the match over both images, a transfer error holds it whole.
    by_epipolar = gric(epipolar.residuals_px[told], sigma_px=sigma_px / np.sqrt(2), dimension=3, parameters=7)
    return transform if by_transform <= by_epipolar else epipolar
