"""Could chance alone have made these inliers? The a-contrario count of false alarms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log10_false_alarms(num_matches: int, num_inliers: int, sample_size: int, inlier_probability: float) -> float:
    """log10 of the number of models with so many inliers that random matches would be expected to give.

    NFA = (n - m) C(n, k) C(k, m) p^(k - m), Moisan & Stival, "A probabilistic criterion to detect rigid point
    matches between two images" (IJCV 2004), eq. 10, for transforms. -10 means one false alarm in 10^10 pairs.

    num_matches: n. num_inliers: k. sample_size: m, the matches that fix a model. inlier_probability: p, of a
    random match to be an inlier. inf when there are no more inliers than fix a model.
    """
    n, k, m = num_matches, num_inliers, sample_size
    if k <= m:
        return float("inf")
    combinations = _log10_choose(n, k) + _log10_choose(k, m)
    return float(np.log10(max(n - m, 1)) + combinations + (k - m) * np.log10(min(inlier_probability, 1.0)))


def chance_of_inlier(points: NDArray[np.float32], threshold_px: float) -> float:
    """The probability that a random one of (N, 2) `points` falls within `threshold_px` of a given place.

    The disc's area over the area where points are: that of their spread (twice the standard deviation either way
    along both principal axes), since keypoints of an object on a plain ground do not fill the frame.
    """
    if len(points) < 3:
        return 1.0
    spread = np.linalg.svd((points - points.mean(0)) / np.sqrt(len(points)), compute_uv=False)
    area = 16 * float(max(spread[0], threshold_px) * max(spread[1], threshold_px))
    return min(1.0, float(np.pi * threshold_px**2 / area))


def _log10_choose(n: int, k: int) -> float:
    i = np.arange(1, k + 1)
    return float(np.log10((n - k + i) / i).sum())
