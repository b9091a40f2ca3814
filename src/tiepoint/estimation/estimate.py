"""The answer of a robust fit: a model or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import EpipolarGeometry, RelativePose, Transform

Model = TypeVar("Model", bound="Transform | EpipolarGeometry | RelativePose", covariant=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class Estimate(Generic[Model]):
    """A model fitted to matches, 1-from-0; falsy when the fit failed.

    model: the transform, epipolar geometry or relative pose; None when the fit failed.
    inliers: (N,) bool, the matches within `threshold_px` of the model, counted by us and not by the estimator.
    residuals_px: (N,) float64 distance of each match from the model, in pixels of image 1; inf when it failed.
    threshold_px: what made an inlier.
    covariance: (9, 9) of the row-major entries of a transform's matrix (whose last entry is 1), from the
        inliers; None for epipolar models and failures.
    iterations: the estimator's own count, None where it does not tell (OpenCV).
    reason: why the fit failed, in a sentence; None when it did not.
    """

    model: Model | None
    inliers: NDArray[np.bool_]
    residuals_px: NDArray[np.float64]
    threshold_px: float
    covariance: NDArray[np.float64] | None = None
    iterations: int | None = None
    reason: str | None = None

    def __bool__(self) -> bool:
        return self.model is not None

    @property
    def num_inliers(self) -> int:
        return int(self.inliers.sum())

    @property
    def rms_px(self) -> float:
        """Root mean square residual of the inliers; nan without inliers."""
        if not self.inliers.any():
            return float("nan")
        return float(np.sqrt(np.mean(self.residuals_px[self.inliers] ** 2)))


def failed(count: int, threshold_px: float, reason: str) -> Estimate[Any]:
    """The estimate of a fit to `count` matches that found nothing, because of `reason`."""
    return Estimate(
        model=None,
        inliers=np.zeros(count, bool),
        residuals_px=np.full(count, np.inf),
        threshold_px=threshold_px,
        reason=reason,
    )
