"""Relative pose of calibrated pairs, as SuperGlue and the methods after it are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.estimation import fit_pose
from tiepoint.evaluation.contestants import Encoded
from tiepoint.evaluation.metrics import matching_accuracy, share_within
from tiepoint.evaluation.pairs import PosePair
from tiepoint.evaluation.report import (
    Cell,
    Chart,
    Curve,
    Parts,
    Report,
    Table,
    by_subset,
    failures_as_infinite,
    mean_of_known,
    mean_or_none,
    milliseconds,
)
from tiepoint.evaluation.run import Measured, Protocol
from tiepoint.geometry import (
    Features,
    Matches,
    RelativePose,
    direction_error_deg,
    rotation_error_deg,
    symmetric_epipolar_distance,
)
from tiepoint.geometry.error_curve import auc

Column = Literal["opencv", "fit"]
COLUMN_NOTES: dict[Column, str] = {
    "opencv": "OpenCV: SuperGlue's estimator: findEssentialMat by RANSAC on normalised points, threshold over "
    "the mean of the four focal lengths, confidence 0.99999; recoverPose; of several E the one with most points "
    "in front",
    "fit": "fit: tiepoint's own: PoseLib, the same threshold as Sampson distance in pixels",
}
COLUMNS: tuple[Column, ...] = tuple(COLUMN_NOTES)
AUC_DEG = (5, 10, 20)
EPIPOLAR = 5e-4
EPIPOLAR_STRICT = 1e-4


@dataclass(frozen=True, kw_only=True)
class PoseRecord:
    """One pair.

    precision: share of matches with a squared epipolar distance, summed over both images in normalised
    coordinates, under 5e-4 (SuperGlue's script) and under 1e-4 (its paper, outdoors). precision_mean: with the
    unsquared distance, mean of both images, under 5e-4 (glue-factory). matching_score: matches under SuperGlue's
    5e-4 over keypoints of image 0. error_deg: the larger of rotation and translation angle by estimator, None
    where there is no pose.
    num_keypoints, matching_score: None without keypoints.
    """

    num_matches: int
    precision: list[float]
    precision_mean: float
    error_deg: dict[str, float | None]
    num_keypoints: int | None = None
    matching_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pose(Protocol[PosePair, PoseRecord]):
    """Pose error and epipolar precision; `threshold_px` of the estimators in pixels of the files."""

    threshold_px: float = 1.0
    seed: int = 0

    record_type = PoseRecord

    def measure(self, pair: PosePair, encoded0: Encoded, encoded1: Encoded, matches: Matches) -> PoseRecord:
        matches = pair.in_files(encoded0.frame, encoded1.frame, matches)
        points0 = normalised(matches.points0, pair.truth.intrinsics0)
        points1 = normalised(matches.points1, pair.truth.intrinsics1)
        squared = symmetric_epipolar_distance(pair.truth.essential, points0, points1)
        precision = [below(squared, EPIPOLAR), below(squared, EPIPOLAR_STRICT)]
        keypoints = len(encoded0.encoding) if isinstance(encoded0.encoding, Features) else None
        return PoseRecord(
            num_matches=len(matches),
            precision=precision,
            precision_mean=below(mean_epipolar_distance(pair.truth.essential, points0, points1), EPIPOLAR),
            error_deg={column: self._error_deg(column, pair.truth, matches) for column in COLUMNS},
            num_keypoints=keypoints,
            matching_score=None if keypoints is None else precision[0] * len(matches) / max(keypoints, 1),
        )

    def failure(self, pair: PosePair) -> PoseRecord:
        return PoseRecord(num_matches=0, precision=[0.0, 0.0], precision_mean=0.0, error_deg=dict.fromkeys(COLUMNS))

    def _error_deg(self, column: Column, truth: RelativePose, matches: Matches) -> float | None:
        if column == "fit":
            fitted = fit_pose(
                matches, truth.intrinsics0, truth.intrinsics1, threshold_px=self.threshold_px, seed=self.seed
            ).model
            found = None if fitted is None else (fitted.rotation, fitted.translation)
        else:
            found = opencv_pose(
                matches, truth.intrinsics0, truth.intrinsics1, threshold_px=self.threshold_px, seed=self.seed
            )
        return None if found is None else pose_error_deg(*found, truth)

    def report(self, results: dict[str, list[Measured[PoseRecord]]]) -> Report:
        """A row for each subset and method; cumulative error by estimator."""
        parts = by_subset(results)
        table = Table(
            title=f"Relative pose, threshold {self.threshold_px:g} px",
            columns=(
                *(
                    "set",
                    "pairs",
                    "method",
                    "keypoints",
                    "matches",
                    "P 5e-4",
                    "P 1e-4",
                    "P mean 5e-4",
                    "MS 5e-4",
                ),
                *(f"{title(c)} {what}" for c in COLUMNS for what in ("AUC@5/10/20", "median deg", "failed")),
                *("encode ms", "match ms"),
            ),
            rows=tuple((part, len(measured), method, *_row(measured)) for part, method, measured in parts),
            notes=(
                "AUC of the larger of rotation error and angle between translation directions (folded to 90 "
                "degrees) at 5, 10, 20 degrees, in %. Fewer than 5 matches, or no pose: an infinite error.",
                "P 5e-4: mean share of matches by SuperGlue's script: squared epipolar distances in normalised "
                "coordinates, summed over both images, under 5e-4. P 1e-4: with its paper's outdoor threshold. "
                "P mean 5e-4: glue-factory's figure of the same name: unsquared, the mean of both images. MS: "
                "matches counted by the first over keypoints of image 0. In %.",
                *(f"{note}." for note in COLUMN_NOTES.values()),
            ),
            decimals=2,
        )
        return Report(tables={"pose": table}, figures={"pose": _charts(parts)})


def normalised(points: NDArray[np.float32], intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2) points in the plane at distance 1 from the camera."""
    homogeneous = np.concatenate([points.astype(np.float64), np.ones((len(points), 1))], axis=1)
    rays = homogeneous @ np.linalg.inv(intrinsics).T
    return np.asarray(rays[:, :2] / rays[:, 2:])


def below(distances: NDArray[np.float64], threshold: float) -> float:
    """Share of distances strictly under the threshold; 0 without any."""
    return matching_accuracy(distances, [np.nextafter(threshold, 0)])[0]


def mean_epipolar_distance(
    essential: NDArray[np.float64], points0: NDArray[np.float64], points1: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N,) distances to the epipolar lines, unsquared, the mean of both images."""
    x0 = np.concatenate([points0, np.ones((len(points0), 1))], axis=1)
    x1 = np.concatenate([points1, np.ones((len(points1), 1))], axis=1)
    lines1, lines0 = x0 @ essential.T, x1 @ essential
    algebraic = np.abs((x1 * lines1).sum(axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(
            algebraic / np.linalg.norm(lines1[:, :2], axis=1) + algebraic / np.linalg.norm(lines0[:, :2], axis=1)
        ) / 2  # fmt: skip


def opencv_pose(
    matches: Matches,
    intrinsics0: NDArray[np.float64],
    intrinsics1: NDArray[np.float64],
    *,
    threshold_px: float,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Rotation (3, 3) and direction of translation (3,) as SuperGlue's protocol estimates them, or None."""
    if len(matches) < 5:
        return None
    points0, points1 = normalised(matches.points0, intrinsics0), normalised(matches.points1, intrinsics1)
    focal = np.mean([intrinsics0[0, 0], intrinsics0[1, 1], intrinsics1[0, 0], intrinsics1[1, 1]])
    cv2.setRNGSeed(seed)
    essentials, mask = cv2.findEssentialMat(
        points0, points1, np.eye(3), method=cv2.RANSAC, prob=0.99999, threshold=threshold_px / focal
    )
    if essentials is None or not np.isfinite(essentials).all():
        return None
    best, most = None, 0
    for essential in np.split(essentials, len(essentials) // 3):  # the five-point solver may stack several
        # Points far away are right too: OpenCV's own limit of 50 baselines would discard them.
        count, rotation, translation, *_ = cv2.recoverPose(
            essential, points0, points1, np.eye(3), 1e9, mask=mask.copy()
        )
        if count > most:
            best, most = (np.asarray(rotation, np.float64), np.asarray(translation[:, 0], np.float64)), count
    return best


def pose_error_deg(rotation: NDArray[np.float64], translation: NDArray[np.float64], truth: RelativePose) -> float:
    """The larger of the rotation's error and the angle between the translations' lines, in degrees."""
    return max(rotation_error_deg(rotation, truth.rotation), direction_error_deg(translation, truth.translation))


def title(column: Column) -> str:
    return {"opencv": "OpenCV", "fit": "fit"}[column]


def _errors(measured: Sequence[Measured[PoseRecord]], column: Column) -> list[float]:
    return failures_as_infinite([one.record.error_deg[column] for one in measured])


def _row(measured: Sequence[Measured[PoseRecord]]) -> tuple[Cell, ...]:
    records = [one.record for one in measured]
    keypoints = mean_of_known([record.num_keypoints for record in records])
    score = mean_or_none([record.matching_score for record in records])
    precision = 100 * np.mean([record.precision for record in records], axis=0)
    cells: list[Cell] = []
    for column in COLUMNS:
        errors = _errors(measured, column)
        cells += [
            tuple(100 * auc(errors, t) for t in AUC_DEG),
            float(np.median(errors)),
            int(np.isinf(errors).sum()),
        ]
    return (
        None if keypoints is None else round(keypoints),
        round(np.mean([record.num_matches for record in records])),
        *map(float, precision),
        100 * float(np.mean([record.precision_mean for record in records])),
        None if score is None else 100 * score,
        *cells,
        *milliseconds(measured),
    )


def _charts(parts: Parts[PoseRecord]) -> tuple[Chart, ...]:
    x = np.linspace(0, AUC_DEG[-1], 201)
    last = parts[-1][0]
    return tuple(
        Chart(
            title=title(column),
            x_label="pose error (degrees)",
            y_label="share of pairs within it",
            curves=tuple(
                Curve(label=method, x=x, y=[share_within(_errors(measured, column), t) for t in x])
                for part, method, measured in parts
                if part == last
            ),
            y_limits=(0, 1),
        )
        for column in COLUMNS
    )
