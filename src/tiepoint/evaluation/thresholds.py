"""Inliers and error over the threshold of robust estimators: what to know before trusting a count of inliers.

Among right matches with errors of some pixels, the number within a small threshold t is the density of residuals
at zero times t: it says how small t is, and nothing about how good the model is. The error says that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tiepoint.estimation import robust
from tiepoint.evaluation.contestants import Encoded
from tiepoint.evaluation.homography import error_points, mean_error_px
from tiepoint.evaluation.imc2022 import pose_errors
from tiepoint.evaluation.pairs import ImagePair, PlanePair, PosePair, UnknownPair
from tiepoint.evaluation.report import Chart, Curve, Report, Table, failures_as_infinite, slug
from tiepoint.evaluation.run import Measured, Protocol
from tiepoint.evaluation.sources import FileSource
from tiepoint.geometry import EpipolarGeometry, Matches, RelativePose, Transform

THRESHOLDS_PX = (3.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.01, 0.005, 0.001)
ESTIMATORS: tuple[robust.Estimator, ...] = ("ransac", "magsac", "accurate", "poselib")
ModelName = Literal["homography", "fundamental"]
_Figure = Callable[[Sequence["ThresholdsRecord"], str], "list[float] | list[int]"]


@dataclass(frozen=True, kw_only=True)
class ThresholdsRecord:
    """One pair: for each estimator a figure for each of `THRESHOLDS_PX`.

    inliers: matches within the threshold of the model (distance in image 1, or Sampson distance), None where there
    is no model. error: pixels at the corners or points given for homographies, degrees of pose (the larger of
    rotation and direction) for fundamental matrices, None without a model or a truth.
    """

    num_matches: int
    inliers: dict[str, list[int | None]]
    error: dict[str, list[float | None]]


@dataclass(frozen=True, kw_only=True)
class Thresholds(Protocol[ImagePair, ThresholdsRecord]):
    """Every estimator at every threshold. model: what is fitted to the matches."""

    model: ModelName
    seed: int = 0

    record_type = ThresholdsRecord

    def measure(self, pair: ImagePair, encoded0: Encoded, encoded1: Encoded, matches: Matches) -> ThresholdsRecord:
        inliers: dict[str, list[int | None]] = {}
        errors: dict[str, list[float | None]] = {}
        for estimator in ESTIMATORS:
            models = [_model(self.model, matches, threshold, estimator, self.seed) for threshold in THRESHOLDS_PX]
            inliers[estimator] = [
                None if model is None else int((_residuals(model, matches) <= threshold).sum())
                for model, threshold in zip(models, THRESHOLDS_PX, strict=True)
            ]
            errors[estimator] = [_error(model, pair, encoded0, encoded1) for model in models]
        return ThresholdsRecord(num_matches=len(matches), inliers=inliers, error=errors)

    def failure(self, pair: ImagePair) -> ThresholdsRecord:
        nothing: list[None] = [None] * len(THRESHOLDS_PX)
        return ThresholdsRecord(
            num_matches=0,
            inliers={estimator: list(nothing) for estimator in ESTIMATORS},
            error={estimator: list(nothing) for estimator in ESTIMATORS},
        )

    def report(self, results: dict[str, list[Measured[ThresholdsRecord]]]) -> Report:
        """Median inliers and error, and failures; for each method a figure of the two."""
        known = not isinstance(next(iter(results.values()))[0].pair, UnknownPair)
        tables = {"inliers": self._table("Inliers, median over pairs", results, _median_inliers, 1)}
        if known:
            unit = "px" if self.model == "homography" else "degrees of pose"
            tables["error"] = self._table(f"Error in {unit}, median over pairs", results, _median_error, 3)
        tables["failed"] = self._table("Pairs without a model", results, _num_failed, 0)
        figures = {
            f"thresholds_{slug(method)}": self._charts(method, measured, known) for method, measured in results.items()
        }
        return Report(tables=tables, figures=figures)

    def _table(
        self,
        title: str,
        results: dict[str, list[Measured[ThresholdsRecord]]],
        figure: _Figure,
        decimals: int,
    ) -> Table:
        rows = [
            (method, estimator, *figure([one.record for one in measured], estimator))
            for method, measured in results.items()
            for estimator in ESTIMATORS
        ]
        return Table(
            title=f"{title} ({self.model}, {len(next(iter(results.values())))} pairs)",
            columns=("method", "estimator", *(f"{threshold:g} px" for threshold in THRESHOLDS_PX)),
            rows=tuple(rows),
            decimals=decimals,
        )

    def _charts(self, method: str, measured: Sequence[Measured[ThresholdsRecord]], known: bool) -> tuple[Chart, ...]:
        records = [one.record for one in measured]
        counts = {estimator: _median_inliers(records, estimator) for estimator in ESTIMATORS}
        inliers = Chart(
            title=f"{method}: inliers count the threshold",
            x_label="threshold (px)",
            y_label="inliers (median)",
            curves=(
                *(Curve(label=name, x=THRESHOLDS_PX, y=_positive(values)) for name, values in counts.items()),
                _proportional(counts),
            ),
            scale="log-log",
        )
        if not known:
            return (inliers,)
        unit = "px" if self.model == "homography" else "degrees"
        errors = Chart(
            title=f"{method}: the error does not follow",
            x_label="threshold (px)",
            y_label=f"error ({unit}, median)",
            curves=tuple(
                Curve(label=name, x=THRESHOLDS_PX, y=_positive(_median_error(records, name))) for name in ESTIMATORS
            ),
            scale="log-log",
        )
        return inliers, errors


def image_pair(image0: Path, image1: Path) -> UnknownPair:
    """Two files of which nothing is known."""
    key = f"{image0.name}:{image1.name}"
    return UnknownPair(key=key, subset="pair", group="pair", source0=FileSource(image0), source1=FileSource(image1))


def _model(
    name: ModelName, matches: Matches, threshold_px: float, estimator: robust.Estimator, seed: int
) -> Transform | EpipolarGeometry | None:
    points0, points1 = matches.points0.astype(np.float64), matches.points1.astype(np.float64)
    if len(points0) < (4 if name == "homography" else 8):
        return None
    try:
        if name == "homography":
            matrix = robust.homography(points0, points1, threshold_px=threshold_px, estimator=estimator, seed=seed)
            return None if matrix is None else Transform(matrix)
        matrix = robust.fundamental(points0, points1, threshold_px=threshold_px, estimator=estimator, seed=seed)
        return None if matrix is None else EpipolarGeometry(matrix)
    except ValueError:  # singular
        return None


def _residuals(model: Transform | EpipolarGeometry, matches: Matches) -> NDArray[np.float64]:
    return model.residuals(matches.points0, matches.points1)


def _error(
    model: Transform | EpipolarGeometry | None, pair: ImagePair, encoded0: Encoded, encoded1: Encoded
) -> float | None:
    if isinstance(model, Transform) and isinstance(pair, PlanePair):
        return mean_error_px(model, *error_points(pair, encoded0, encoded1))
    if isinstance(model, EpipolarGeometry) and isinstance(pair, PosePair):
        unit = RelativePose(
            pair.truth.rotation,
            pair.truth.translation / np.linalg.norm(pair.truth.translation),
            pair.truth.intrinsics0,
            pair.truth.intrinsics1,
        )
        in_files = encoded1.frame.frame_from_file.matrix.T @ model.matrix @ encoded0.frame.frame_from_file.matrix
        rotation_deg, chord = pose_errors(in_files, unit)
        return max(rotation_deg, float(np.rad2deg(2 * np.arcsin(min(chord / 2, 1.0)))))
    return None


def _median_inliers(records: Sequence[ThresholdsRecord], estimator: str) -> list[float]:
    """For each threshold; a pair without a model has no inliers."""
    counts = [[n or 0 for n in record.inliers[estimator]] for record in records]
    return list(map(float, np.median(counts, axis=0)))


def _median_error(records: Sequence[ThresholdsRecord], estimator: str) -> list[float]:
    errors = [failures_as_infinite(record.error[estimator]) for record in records]
    return list(map(float, np.median(errors, axis=0)))


def _num_failed(records: Sequence[ThresholdsRecord], estimator: str) -> list[int]:
    failed = [[n is None for n in record.inliers[estimator]] for record in records]
    return list(map(int, np.sum(failed, axis=0)))


def _positive(values: Sequence[float]) -> NDArray[np.float64]:
    """For a logarithmic axis: what is not positive and finite is a gap."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)


def _proportional(counts: Mapping[robust.Estimator, list[float]]) -> Curve:
    """Inliers in proportion to the threshold, through the median count of the estimators at 0.05 px."""
    at = THRESHOLDS_PX.index(0.05)
    density = float(np.median([values[at] for values in counts.values()])) / THRESHOLDS_PX[at]
    return Curve(
        label="in proportion to the threshold",
        x=THRESHOLDS_PX,
        y=_positive([density * threshold for threshold in THRESHOLDS_PX]),
        style="dashed",
    )
