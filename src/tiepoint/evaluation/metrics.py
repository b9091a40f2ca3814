"""The field's measures as pure functions; each has a case worked by hand in its test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Features, Transform

MMA_THRESHOLDS_PX = tuple(range(1, 11))
ERROR_THRESHOLDS_PX = (1, 3, 5, 10)
SCORE_BINS = 50


def share_within(errors: Sequence[float], threshold: float) -> float:
    """Share of errors of at most `threshold`; failures are infinite errors. nan without errors."""
    return float(np.mean(np.asarray(errors, np.float64) <= threshold)) if len(errors) else float("nan")


def matching_accuracy(errors_px: NDArray[np.float64], thresholds_px: Sequence[float]) -> list[float]:
    """For each threshold the share of matches with an error of at most that; 0 without matches.

    Its mean over pairs is the mean matching accuracy, MMA (Dusmanu et al., "D2-Net", CVPR 2019, section 5.1).
    """
    if len(errors_px) == 0:
        return [0.0] * len(thresholds_px)
    return [float(np.mean(errors_px <= threshold)) for threshold in thresholds_px]


def transfer_errors(
    transform: Transform, points0: NDArray[Any], points1: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) forward errors |H p0 - p1| in image 1 and (N,) backward errors |H⁻¹ p1 - p0| in image 0, in pixels.

    A point on the horizon has an infinite error.
    """
    forward = transform.residuals(points0, points1)
    backward = transform.inverse().residuals(points1, points0)
    return np.nan_to_num(forward, nan=np.inf), np.nan_to_num(backward, nan=np.inf)


def inside(points: NDArray[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(N,) whether each point lies in the picture of `size` (width, height): -1/2 <= x < width - 1/2."""
    limit = np.array(size) - 0.5
    return np.asarray(((points >= -0.5) & (points < limit)).all(axis=1))


@dataclass(frozen=True, kw_only=True)
class KeypointMeasures:
    """What two sets of keypoints of a plane are worth.

    repeatability: share of the keypoints with one of the other image within the threshold, both images together.
    localization_px: mean distance of those to their nearest; None if there are none.
    num_shared0, num_shared1: keypoints that the other image sees too.
    """

    repeatability: float
    localization_px: float | None
    num_shared0: int
    num_shared1: int


def keypoint_measures(
    truth: Transform, features0: Features, features1: Features, *, threshold_px: float = 3.0, top: int = 300
) -> KeypointMeasures:
    """Repeatability and localization error of DeTone et al., "SuperPoint" (CVPRW 2018), appendix A.

    (Σ_i [min_j |H x0_i - x1_j| <= ε] + Σ_j [min_i |H x0_i - x1_j| <= ε]) / (N0 + N1), over the keypoints that both
    images see, of each image the `top` strongest. All distances are in image 1. 0 if no keypoint is shared.
    """
    seen0, seen1 = _shared(truth, features0, features1), _shared(truth.inverse(), features1, features0)
    mapped0, points1 = truth(seen0[:top]), seen1[:top]
    if len(mapped0) == 0 or len(points1) == 0:
        return KeypointMeasures(repeatability=0.0, localization_px=None, num_shared0=len(seen0), num_shared1=len(seen1))
    distances = np.linalg.norm(mapped0[:, None] - points1[None], axis=2)
    nearest = np.concatenate([distances.min(axis=1), distances.min(axis=0)])
    near = nearest[nearest <= threshold_px]
    return KeypointMeasures(
        repeatability=len(near) / len(nearest),
        localization_px=float(near.mean()) if len(near) else None,
        num_shared0=len(seen0),
        num_shared1=len(seen1),
    )


def _shared(to_other: Transform, features: Features, other: Features) -> NDArray[np.float64]:
    """(N, 2) keypoints that lie in the other picture too, strongest first."""
    seen = inside(to_other(features.keypoints), other.image_size)
    order = np.argsort(-features.scores[seen], kind="stable")
    return np.asarray(features.keypoints[seen][order], np.float64)


def matching_score(num_correct: int, num_shared0: int, num_shared1: int) -> float:
    """Correct matches over keypoints in the shared area, the mean of both images; 0 where there are none."""
    return float(np.mean([num_correct / shared if shared else 0.0 for shared in (num_shared0, num_shared1)]))


def score_histogram(scores: NDArray[Any], correct: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """How many matches, and how many correct ones, lie in each of `SCORE_BINS` bins of score over [0, 1]."""
    bins = np.clip((np.asarray(scores) * SCORE_BINS).astype(int), 0, SCORE_BINS - 1)
    every = np.bincount(bins, minlength=SCORE_BINS)
    right = np.bincount(bins[correct], minlength=SCORE_BINS)
    return every.tolist(), right.tolist()


def precision_recall(
    every: NDArray[np.int64], right: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall and precision of the matches above each score, from histograms of all and of correct matches.

    From the highest bin down. Recall counts against the correct matches the method found itself, so that the
    curve ends at recall 1 and at the precision of all its matches: it says how well the scores sort them.
    Empty without correct matches.
    """
    above, right_above = np.cumsum(every[::-1]), np.cumsum(right[::-1])
    if len(right_above) == 0 or right_above[-1] == 0:
        return np.zeros(0), np.zeros(0)
    occupied = above > 0
    return right_above[occupied] / right_above[-1], right_above[occupied] / above[occupied]
