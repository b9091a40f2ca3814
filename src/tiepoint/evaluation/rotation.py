"""Roto-360: matching accuracy under every rotation in the image plane (Lee et al., "RELF", CVPR 2023)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiepoint.evaluation.contestants import Encoded
from tiepoint.evaluation.layouts import photographs
from tiepoint.evaluation.metrics import MMA_THRESHOLDS_PX, matching_accuracy, transfer_errors
from tiepoint.evaluation.pairs import PlanePair
from tiepoint.evaluation.report import (
    Cell,
    Chart,
    Curve,
    Parts,
    Report,
    Table,
    by_subset,
    mean_of_known,
    milliseconds,
)
from tiepoint.evaluation.run import Measured, Protocol
from tiepoint.evaluation.sources import FileSource, TurnedSource
from tiepoint.geometry import Features, Matches, Transform

ANGLES_DEG = tuple(range(10, 361, 10))
REPORTED_PX = (3, 5, 10)


@dataclass(frozen=True, eq=False, kw_only=True)
class RotationPair(PlanePair):
    """A photograph and itself turned by `angle_deg`, clockwise as displayed."""

    angle_deg: float


@dataclass(frozen=True, kw_only=True)
class RotationRecord:
    """One pair: accuracy is the share of matches within 1 ... 10 px; num_points the mean of both images."""

    num_matches: int
    accuracy: list[float]
    num_points: float | None = None


@dataclass(frozen=True, kw_only=True)
class Rotation(Protocol[RotationPair, RotationRecord]):
    """Matching accuracy over the angle of rotation."""

    record_type = RotationRecord

    def measure(self, pair: RotationPair, encoded0: Encoded, encoded1: Encoded, matches: Matches) -> RotationRecord:
        truth = pair.truth_between(encoded0.frame, encoded1.frame)
        forward, _ = transfer_errors(truth, matches.points0, matches.points1)
        encodings = (encoded0.encoding, encoded1.encoding)
        counts = [len(encoding) for encoding in encodings if isinstance(encoding, Features)]
        return RotationRecord(
            num_matches=len(matches),
            accuracy=matching_accuracy(forward, MMA_THRESHOLDS_PX),
            num_points=float(np.mean(counts)) if counts else None,
        )

    def failure(self, pair: RotationPair) -> RotationRecord:
        return RotationRecord(num_matches=0, accuracy=[0.0] * len(MMA_THRESHOLDS_PX))

    def report(self, results: dict[str, list[Measured[RotationRecord]]]) -> Report:
        """A row for each canvas and method; accuracy over the circle."""
        parts = by_subset(results, together=False)
        table = Table(
            title="Rotation in the image plane",
            columns=(
                *("set", "pairs", "method", "total points", "pred. matches", "MMA@3/5/10"),
                *("worst angle MMA@3", "at deg", "encode ms", "match ms"),
            ),
            rows=tuple((part, len(measured), method, *_row(measured)) for part, method, measured in parts),
            notes=(
                "MMA@t: mean over pairs of the share of matches within t px of where the rotation takes them, in "
                "%; no filter for visibility, a pair without matches counts 0. Published figures match mutual "
                "nearest neighbours without a ratio test; here a method matches as it does everywhere else.",
                "Worst angle: the lowest mean over the photographs, and where it is.",
            ),
            decimals=2,
        )
        return Report(tables={"rotation": table}, figures={"rotation": _charts(parts)})


def rotation_pairs(folder: Path, *, subset: int | None = None) -> list[RotationPair]:
    """Roto-360's archive (`<scene>/1_rot<angle>.jpg` and .txt) where it is, or pairs made from photographs.

    Made pairs: each photograph with itself turned by 10, 20, ... 360 degrees, on the same canvas and on one that
    holds all of it. subset: the first that many scenes or photographs by name.
    Raises ValueError for a folder with neither.
    """
    archive = sorted({path.parent for path in folder.rglob("1_rot0.*")})
    if archive:
        return [pair for scene in archive[:subset] for pair in _archive_pairs(scene)]
    return [
        RotationPair(
            key=f"{path.name}:{canvas}:{angle}",
            subset=canvas,
            group=path.name,
            source0=FileSource(path),
            source1=TurnedSource(path, angle, expand=canvas == "expanded canvas"),
            truth=Transform.identity(),  # between the files, which are one; the frames hold the rotation
            angle_deg=angle,
        )
        for path in photographs(folder)[:subset]
        for canvas in ("same canvas", "expanded canvas")
        for angle in ANGLES_DEG
    ]


def _archive_pairs(scene: Path) -> list[RotationPair]:
    """(0, angle) for every other angle there is; the text file maps the picture at 0 to the one at its angle."""
    angles = {}
    for path in scene.glob("1_rot*.*"):
        found = re.fullmatch(r"1_rot(\d+)", path.stem)
        if found and path.suffix != ".txt":
            angles[int(found[1])] = path
    return [
        RotationPair(
            key=f"{scene.name}:{angle}",
            subset="Roto-360",
            group=scene.name,
            source0=FileSource(angles[0]),
            source1=FileSource(angles[angle]),
            truth=Transform(np.loadtxt(scene / f"1_rot{angle}.txt").reshape(3, 3)),
            angle_deg=angle,
        )
        for angle in sorted(angles)
        if angle != 0
    ]


def _row(measured: Sequence[Measured[RotationRecord]]) -> tuple[Cell, ...]:
    records = [one.record for one in measured]
    accuracy = 100 * np.mean([record.accuracy for record in records], axis=0)
    points = mean_of_known([record.num_points for record in records])
    angles, by_angle = _accuracy_by_angle(measured)
    return (
        None if points is None else round(points),
        round(np.mean([record.num_matches for record in records])),
        tuple(float(accuracy[t - 1]) for t in REPORTED_PX),
        100 * min(by_angle),
        round(angles[int(np.argmin(by_angle))]),
        *milliseconds(measured),
    )


def _accuracy_by_angle(measured: Sequence[Measured[RotationRecord]]) -> tuple[list[float], list[float]]:
    """Angles in rising order, and the mean accuracy at 3 px at each."""
    at: dict[float, list[float]] = {}
    for one in measured:
        assert isinstance(one.pair, RotationPair)
        at.setdefault(one.pair.angle_deg, []).append(one.record.accuracy[REPORTED_PX[0] - 1])
    angles = sorted(at)
    return angles, [float(np.mean(at[angle])) for angle in angles]


def _charts(parts: Parts[RotationRecord]) -> tuple[Chart, ...]:
    curves: dict[str, list[Curve]] = {}
    for part, method, measured in parts:
        angles, accuracy = _accuracy_by_angle(measured)
        closed = ([angles[-1] - 360, *angles], [accuracy[-1], *accuracy])
        curves.setdefault(part, []).append(Curve(label=method, x=closed[0], y=closed[1]))
    return tuple(
        Chart(
            title=f"MMA@{REPORTED_PX[0]} over the angle (degrees), {part}",
            x_label="angle (degrees)",
            y_label="MMA",
            curves=tuple(lines),
            scale="polar",
            y_limits=(0, 1),
        )
        for part, lines in curves.items()
    )
