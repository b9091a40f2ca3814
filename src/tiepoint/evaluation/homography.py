"""Homography estimation and matching on planes: HPatches and folders of its layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tiepoint.estimation import fit, robust
from tiepoint.evaluation.contestants import Encoded
from tiepoint.evaluation.metrics import (
    ERROR_THRESHOLDS_PX,
    MMA_THRESHOLDS_PX,
    KeypointMeasures,
    keypoint_measures,
    matching_accuracy,
    matching_score,
    precision_recall,
    score_histogram,
    share_within,
    transfer_errors,
)
from tiepoint.evaluation.pairs import PlanePair
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
from tiepoint.geometry import Features, Matches, Transform, frame_corners
from tiepoint.geometry.error_curve import auc

Column = Literal["dlt", "ransac", "magsac", "fit"]

COLUMN_NOTES: dict[Column, str] = {
    "dlt": "DLT: OpenCV's least squares over all matches, unweighted",
    "ransac": "RANSAC: OpenCV's, its answer unchecked",
    "magsac": "MAGSAC: OpenCV's USAC_MAGSAC, its answer unchecked",
    "fit": "fit: tiepoint's own (USAC_MAGSAC, least squares over the inliers, mirrored and degenerate refused)",
}
COLUMNS: tuple[Column, ...] = tuple(COLUMN_NOTES)

CORRECT_PX = 3

MATCHES_COLUMNS = (
    *("keypoints", "matches", "MMA@1/3/5/10", "P@1/3"),
    *("MS@3", "rep@3", "loc. px", "encode ms", "match ms"),
)
MATCHES_NOTES = (
    "MMA@t: mean over pairs of the share of matches within t px by forward error, in %. P@t: likewise by the mean "
    "of forward and backward error. A pair without matches counts 0.",
    "MS@3: matches within 3 px over keypoints that the other image sees too, mean of both images, in %. rep@3: "
    "repeatability of the 300 strongest of those, in %. loc.: mean distance of the repeated ones.",
    "encode, match: medians for one image and one pair. -: the method has no keypoints.",
)


@dataclass(frozen=True, kw_only=True)
class HomographyRecord:
    """One pair; pixels are those of the pictures as matched.

    num_keypoints: of images 0 and 1, None for methods without keypoints; likewise num_shared (those that the other
    image sees), repeatability and localization_px (also None where nothing repeats).
    accuracy: share of matches within 1 ... 10 px by forward error. precision: within 1 and 3 px by the mean of
    forward and backward error. matching_score: at 3 px.
    score_counts, score_correct: histograms over the matches' scores, of all and of those within 3 px.
    error_px: mean corner error (or error at the points given) by estimator, None where there is no estimate.
    """

    num_matches: int
    accuracy: list[float]
    precision: list[float]
    error_px: dict[str, float | None]
    score_counts: list[int]
    score_correct: list[int]
    num_keypoints: list[int] | None = None
    num_shared: list[int] | None = None
    repeatability: float | None = None
    localization_px: float | None = None
    matching_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Homography(Protocol[PlanePair, HomographyRecord]):
    """Matching accuracy and homography error of pairs with a known homography.

    threshold_px: of the robust estimators, in pixels of the pictures as matched. seed: of their sampling.
    short_side_px: what the pictures were resized to, for the report; None for their own size.
    """

    threshold_px: float = 3.0
    seed: int = 0
    short_side_px: int | None = None

    record_type = HomographyRecord

    def measure(self, pair: PlanePair, encoded0: Encoded, encoded1: Encoded, matches: Matches) -> HomographyRecord:
        truth = pair.truth_between(encoded0.frame, encoded1.frame)
        forward, backward = transfer_errors(truth, matches.points0, matches.points1)
        counts, correct = score_histogram(matches.scores, forward <= CORRECT_PX)
        points0, points1 = error_points(pair, encoded0, encoded1)
        keypoints, counted = _keypoints(truth, encoded0.encoding, encoded1.encoding)
        return HomographyRecord(
            num_matches=len(matches),
            accuracy=matching_accuracy(forward, MMA_THRESHOLDS_PX),
            precision=matching_accuracy((forward + backward) / 2, (1, 3)),
            error_px={column: mean_error_px(self._estimate(column, matches), points0, points1) for column in COLUMNS},
            score_counts=counts,
            score_correct=correct,
            num_keypoints=counted,
            num_shared=None if keypoints is None else [keypoints.num_shared0, keypoints.num_shared1],
            repeatability=None if keypoints is None else keypoints.repeatability,
            localization_px=None if keypoints is None else keypoints.localization_px,
            matching_score=None
            if keypoints is None
            else matching_score(int((forward <= CORRECT_PX).sum()), keypoints.num_shared0, keypoints.num_shared1),
        )

    def failure(self, pair: PlanePair) -> HomographyRecord:
        counts, correct = score_histogram(np.zeros(0), np.zeros(0, bool))
        return HomographyRecord(
            num_matches=0,
            accuracy=[0.0] * len(MMA_THRESHOLDS_PX),
            precision=[0.0, 0.0],
            error_px=dict.fromkeys(COLUMNS),
            score_counts=counts,
            score_correct=correct,
        )

    def _estimate(self, column: Column, matches: Matches) -> Transform | None:
        if column == "fit":
            return fit(matches, "homography", threshold_px=self.threshold_px, seed=self.seed).model
        if len(matches) < 4:
            return None
        points0, points1 = matches.points0.astype(np.float64), matches.points1.astype(np.float64)
        matrix = robust.homography(points0, points1, threshold_px=self.threshold_px, estimator=column, seed=self.seed)
        try:
            return None if matrix is None else Transform(matrix)
        except ValueError:  # singular
            return None

    def report(self, results: dict[str, list[Measured[HomographyRecord]]]) -> Report:
        """Tables with a row for each subset and method, and for all pairs together; curves over all pairs."""
        parts = by_subset(results)
        return Report(
            tables={
                "matches": self._matches_table(parts),
                "auc": self._auc_table(parts),
                "error": _error_table(parts),
            },
            figures=_figures(results),
        )

    def _matches_table(self, parts: Parts[HomographyRecord]) -> Table:
        return Table(
            title=f"Matches and keypoints, pictures at {self._size()}",
            columns=("set", "pairs", "method", *MATCHES_COLUMNS),
            rows=tuple((part, len(measured), method, *_matches_row(measured)) for part, method, measured in parts),
            notes=MATCHES_NOTES,
            decimals=2,
        )

    def _auc_table(self, parts: Parts[HomographyRecord]) -> Table:
        pairs = list({one.pair.key: one.pair for _, _, measured in parts for one in measured}.values())
        return Table(
            title=f"Homography error, AUC in %, threshold {self.threshold_px:g} px, pictures at {self._size()}",
            columns=("set", "pairs", "method", *(f"{_title(column)} AUC@1/3/5/10" for column in COLUMNS)),
            rows=tuple(
                (part, len(measured), method, *(_auc_cell(measured, column) for column in COLUMNS))
                for part, method, measured in parts
            ),
            notes=(
                f"Error of a pair: mean distance {_where(pairs)}.",
                "A pair without an estimate has an infinite error.",
                *(f"{note}." for note in COLUMN_NOTES.values()),
            ),
        )

    def _size(self) -> str:
        return "own size" if self.short_side_px is None else f"short side {self.short_side_px} px"


def _keypoints(
    truth: Transform, encoding0: object, encoding1: object
) -> tuple[KeypointMeasures | None, list[int] | None]:
    if not isinstance(encoding0, Features) or not isinstance(encoding1, Features):
        return None, None
    return keypoint_measures(truth, encoding0, encoding1, threshold_px=CORRECT_PX), [
        len(encoding0),
        len(encoding1),
    ]


def error_points(
    pair: PlanePair, encoded0: Encoded, encoded1: Encoded
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the error is measured, in the pictures as matched: the points given, or the corners of image 0."""
    if pair.points0 is None or pair.points1 is None:
        corners = frame_corners(encoded0.frame.image.size)
        return corners, pair.truth_between(encoded0.frame, encoded1.frame)(corners)
    return encoded0.frame.frame_from_file(pair.points0), encoded1.frame.frame_from_file(pair.points1)


def mean_error_px(
    estimate: Transform | None, points0: NDArray[np.float64], points1: NDArray[np.float64]
) -> float | None:
    """Mean distance between where `estimate` takes points0 and points1; None where that is nowhere."""
    if estimate is None:
        return None
    error = float(np.mean(estimate.residuals(points0, points1)))
    return error if np.isfinite(error) else None


def _matches_row(measured: Sequence[Measured[HomographyRecord]]) -> tuple[Cell, ...]:
    records = [one.record for one in measured]
    accuracy = 100 * np.mean([record.accuracy for record in records], axis=0)
    precision = 100 * np.mean([record.precision for record in records], axis=0)
    localization = [record.localization_px for record in records if record.localization_px is not None]
    keypoints = mean_of_known([float(np.mean(r.num_keypoints)) if r.num_keypoints else None for r in records])
    return (
        None if keypoints is None else round(keypoints),
        round(np.mean([record.num_matches for record in records])),
        tuple(float(accuracy[t - 1]) for t in ERROR_THRESHOLDS_PX),
        tuple(map(float, precision)),
        _percent(mean_or_none([record.matching_score for record in records])),
        _percent(mean_or_none([record.repeatability for record in records])),
        float(np.mean(localization)) if localization else None,
        *milliseconds(measured),
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _errors(measured: Sequence[Measured[HomographyRecord]], column: Column) -> list[float]:
    return failures_as_infinite([one.record.error_px[column] for one in measured])


def _auc_cell(measured: Sequence[Measured[HomographyRecord]], column: Column) -> tuple[float, ...]:
    return tuple(100 * auc(_errors(measured, column), t) for t in ERROR_THRESHOLDS_PX)


def _error_table(parts: Parts[HomographyRecord]) -> Table:
    def cells(measured: Sequence[Measured[HomographyRecord]], column: Column) -> tuple[Cell, ...]:
        errors = _errors(measured, column)
        shares = tuple(100 * share_within(errors, t) for t in ERROR_THRESHOLDS_PX)
        return shares, float(np.median(errors)), int(np.isinf(errors).sum())

    return Table(
        title="The same errors: share of pairs within 1, 3, 5, 10 px in %, median, pairs without an estimate",
        columns=(
            *("set", "pairs", "method"),
            *(f"{_title(column)} {what}" for column in COLUMNS for what in ("@1/3/5/10", "median px", "failed")),
        ),
        rows=tuple(
            (part, len(measured), method, *(cell for column in COLUMNS for cell in cells(measured, column)))
            for part, method, measured in parts
        ),
        decimals=2,
    )


def _title(column: Column) -> str:
    return column if column == "fit" else column.upper()


def _where(pairs: Sequence[object]) -> str:
    at_points = sum(isinstance(pair, PlanePair) and pair.points0 is not None for pair in pairs)
    corners = "at the corners of image 1 (0 ... W - 1, 0 ... H - 1), mapped into image k"
    points = "at the points of points_1_k.txt, from their places in image k"
    if at_points == 0:
        return corners
    return points if at_points == len(pairs) else f"{corners}; for {at_points} pairs {points}"


def _figures(results: dict[str, list[Measured[HomographyRecord]]]) -> dict[str, tuple[Chart, ...]]:
    return {
        "accuracy": (_accuracy_chart(results), _precision_recall_chart(results)),
        "error": tuple(_error_chart(results, column) for column in COLUMNS),
    }


def _accuracy_chart(results: dict[str, list[Measured[HomographyRecord]]]) -> Chart:
    curves = [
        Curve(label=method, x=MMA_THRESHOLDS_PX, y=np.mean([one.record.accuracy for one in measured], axis=0))
        for method, measured in results.items()
    ]
    return Chart(
        title="Mean matching accuracy",
        x_label="threshold (px)",
        y_label="share of matches within it",
        curves=tuple(curves),
        y_limits=(0, 1),
    )


def _precision_recall_chart(results: dict[str, list[Measured[HomographyRecord]]]) -> Chart:
    curves = []
    for method, measured in results.items():
        every = np.sum([one.record.score_counts for one in measured], axis=0)
        right = np.sum([one.record.score_correct for one in measured], axis=0)
        recall, precision = precision_recall(every, right)
        curves.append(Curve(label=method, x=recall, y=precision))
    return Chart(
        title=f"Matches above a score, right within {CORRECT_PX} px",
        x_label="recall (of the method's own right matches)",
        y_label="precision",
        curves=tuple(curves),
        y_limits=(0, 1),
    )


def _error_chart(results: dict[str, list[Measured[HomographyRecord]]], column: Column) -> Chart:
    limit = float(ERROR_THRESHOLDS_PX[-1])
    x = np.linspace(0, limit, 201)
    curves = []
    for method, measured in results.items():
        errors = _errors(measured, column)
        curves.append(Curve(label=method, x=x, y=[share_within(errors, t) for t in x]))
    return Chart(
        title=_title(column),
        x_label="error (px)",
        y_label="share of pairs within it",
        curves=tuple(curves),
        y_limits=(0, 1),
    )
