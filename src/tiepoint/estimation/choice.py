"""Which model explains the matches best: Torr's geometric robust information criterion (GRIC)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def gric(residuals_px: NDArray[np.float64], *, sigma_px: float, dimension: int, parameters: int) -> float:
    """GRIC = sum of min(e²/σ², 2 (r - d)) + d n log r + k log(r n): lower is better.

    Torr, "An assessment of information criteria for motion model selection" (CVPR 1997), eq. 5, with r = 4, the
    numbers in a match. Residuals in image 1 alone hold half of the error of a match, so e²/σ² is of the noise
    of both images together.

    residuals_px: (N,) distances of all matches, outliers too. sigma_px: standard deviation of one coordinate of
    a residual. dimension: d of the manifold the model confines matches to: 2 for a transform, 3 for epipolar
    geometry. parameters: k, its degrees of freedom.
    """
    r, n = 4, len(residuals_px)
    error = np.minimum((residuals_px / sigma_px) ** 2, 2.0 * (r - dimension))
    return float(error.sum() + dimension * n * np.log(r) + parameters * np.log(r * max(n, 1)))


def noise_sigma_px(inlier_residuals_px: NDArray[np.float64]) -> float:
    """Robust standard deviation of one coordinate of the noise, from the residuals of a transform's inliers.

    The median of a two-dimensional Gaussian's length is 1.177 σ. Not below 0.1 px: keypoints are not better, and
    without a floor an exact synthetic fit would ask for ever more parameters.
    """
    return max(float(np.median(inlier_residuals_px)) / 1.177, 0.1)
