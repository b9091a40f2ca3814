"""The robust estimators themselves: OpenCV's and PoseLib's, called one way. Random sampling is theirs."""

from __future__ import annotations

from typing import Any, Literal, get_args

import cv2
import numpy as np
import poselib
from numpy.typing import NDArray

from tiepoint.geometry import RelativePose

Estimator = Literal["magsac", "accurate", "ransac", "lmeds", "poselib", "dlt"]
"""USAC_MAGSAC, USAC_ACCURATE (graph-cut), RANSAC and LMEDS of OpenCV, PoseLib's LO-RANSAC, and plain least
squares over all matches (the direct linear transform, the eight-point algorithm)."""

ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

_FLAGS = {
    "magsac": cv2.USAC_MAGSAC,
    "accurate": cv2.USAC_ACCURATE,
    "ransac": cv2.RANSAC,
    "lmeds": cv2.LMEDS,
    "dlt": 0,
}
_CONFIDENCE = 0.99999
_MAX_ITERATIONS = 10_000

Points = NDArray[np.float64]


def homography(
    points0: Points, points1: Points, *, threshold_px: float, estimator: Estimator = "magsac", seed: int = 0
) -> NDArray[np.float64] | None:
    """(3, 3) H_1_from_0 by a robust estimator, without any check of ours; None where it finds nothing.

    points0, points1: (N, 2) float64, N >= 4. The order of the points, shuffled by `seed`, is what randomness
    OpenCV's deterministic estimators have.
    """
    points0, points1 = _shuffled(points0, points1, seed)
    if estimator == "poselib":
        options = {"max_reproj_error": threshold_px, "seed": seed, "max_iterations": _MAX_ITERATIONS}
        matrix, info = poselib.estimate_homography(points0, points1, options, {})
        return np.asarray(matrix, np.float64) if info["num_inliers"] >= 4 else None
    try:
        matrix, _ = cv2.findHomography(
            points0, points1, _FLAGS[estimator], threshold_px, None, _MAX_ITERATIONS, _CONFIDENCE
        )
    except cv2.error:  # too few or degenerate points: OpenCV raises for some, returns None for others
        return None
    return _usable(matrix)


def affine(points0: Points, points1: Points, *, threshold_px: float, seed: int = 0) -> NDArray[np.float64] | None:
    """(3, 3) affine H_1_from_0 by OpenCV's RANSAC; None where it finds nothing."""
    points0, points1 = _shuffled(points0, points1, seed)
    matrix, _ = cv2.estimateAffine2D(
        points0, points1, None, cv2.RANSAC, threshold_px, _MAX_ITERATIONS, _CONFIDENCE, 10
    )
    return _usable(matrix)


def similarity(
    points0: Points, points1: Points, *, threshold_px: float, seed: int = 0
) -> NDArray[np.float64] | None:
    """(3, 3) similarity H_1_from_0 by OpenCV's RANSAC; None where it finds nothing."""
    points0, points1 = _shuffled(points0, points1, seed)
    matrix, _ = cv2.estimateAffinePartial2D(
        points0, points1, None, cv2.RANSAC, threshold_px, _MAX_ITERATIONS, _CONFIDENCE, 10
    )
    return _usable(matrix)


def fundamental(
    points0: Points, points1: Points, *, threshold_px: float, estimator: Estimator = "accurate", seed: int = 0
) -> NDArray[np.float64] | None:
    """(3, 3) F with x1ᵀ F x0 = 0 by a robust estimator; None where it finds nothing. N >= 8."""
    points0, points1 = _shuffled(points0, points1, seed)
    if estimator == "poselib":
        options = {"max_epipolar_error": threshold_px, "seed": seed, "max_iterations": _MAX_ITERATIONS}
        matrix, info = poselib.estimate_fundamental(points0, points1, options, {})
        return _usable(matrix) if info["num_inliers"] >= 8 else None
    flag = {"ransac": cv2.FM_RANSAC, "lmeds": cv2.FM_LMEDS, "dlt": cv2.FM_8POINT}.get(estimator)
    try:
        matrix, _ = cv2.findFundamentalMat(
            points0,
            points1,
            _FLAGS[estimator] if flag is None else flag,
            threshold_px,
            _CONFIDENCE,
            _MAX_ITERATIONS,
        )
    except cv2.error:  # assertions on sample size and degenerate points
        return None
    return _usable(matrix[:3] if matrix is not None else None)  # the seven-point solver may stack three


def relative_pose(
    points0: Points,
    points1: Points,
    intrinsics0: NDArray[np.float64],
    intrinsics1: NDArray[np.float64],
    *,
    threshold_px: float,
    seed: int = 0,
) -> tuple[RelativePose | None, int]:
    """The pose of camera 1 from camera 0 by PoseLib (five points, LO-RANSAC), and its iterations. N >= 5."""
    options = {"max_epipolar_error": threshold_px, "seed": seed, "max_iterations": _MAX_ITERATIONS}
    pose, info = poselib.estimate_relative_pose(
        points0, points1, _pinhole(intrinsics0), _pinhole(intrinsics1), options, {}
    )
    iterations = int(info["iterations"])
    if info["num_inliers"] < 5 or not np.isfinite(pose.t).all() or not pose.t.any():
        return None, iterations
    return RelativePose(pose.R, pose.t / np.linalg.norm(pose.t), intrinsics0, intrinsics1), iterations


def _pinhole(intrinsics: NDArray[np.float64]) -> dict[str, object]:
    parameters = [intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]]
    return {"model": "PINHOLE", "width": -1, "height": -1, "params": parameters}


def _shuffled(points0: Points, points1: Points, seed: int) -> tuple[Points, Points]:
    order = np.random.default_rng(seed).permutation(len(points0))
    return np.ascontiguousarray(points0[order]), np.ascontiguousarray(points1[order])


def _usable(matrix: NDArray[Any] | None) -> NDArray[np.float64] | None:
    """`matrix` as (3, 3), or None unless it is finite and not zero."""
    if matrix is None or not np.isfinite(matrix).all() or not np.asarray(matrix).any():
        return None
    matrix = np.asarray(matrix, np.float64)
    return np.vstack([matrix, [0, 0, 1]]) if matrix.shape == (2, 3) else matrix
