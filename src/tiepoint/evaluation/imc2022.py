"""Image Matching Challenge 2022: fundamental matrices judged by the poses they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tiepoint.estimation import fit_fundamental, robust
from tiepoint.evaluation.contestants import Encoded
from tiepoint.evaluation.layouts import drawn, named, pictures
from tiepoint.evaluation.pairs import PosePair
from tiepoint.evaluation.report import (
    Cell,
    Chart,
    Curve,
    Report,
    Table,
    by_subset,
    milliseconds,
)
from tiepoint.evaluation.run import Measured, Protocol
from tiepoint.evaluation.sources import FileSource
from tiepoint.geometry import Matches, RelativePose, relative_pose, rotation_error_deg
from tiepoint.geometry.imc2022 import csv_rows, read_cameras, read_covisibility, training_root, training_scenes

THRESHOLDS_DEG = np.linspace(1, 10, 10)
THRESHOLDS_M = np.geomspace(0.2, 5, 10)
"""Paired one to one: 1 degree with 0.2 m, ..., 10 degrees with 5 m."""

MIN_COVISIBILITY = 0.1

Column = Literal["magsac", "fit"]
COLUMN_NOTES: dict[Column, str] = {
    "magsac": "MAGSAC: OpenCV's USAC_MAGSAC",
    "fit": "fit: tiepoint's own, USAC_ACCURATE with a threshold of 1 px",
}
COLUMNS: tuple[Column, ...] = tuple(COLUMN_NOTES)


def pose_errors(
    fundamental: NDArray[np.float64], truth: RelativePose, metres_per_unit: float = 1.0
) -> tuple[float, float]:
    """Rotation error in degrees and translation error in metres of the pose in a fundamental matrix.

    E = K1ᵀ F K0 = U diag(1, 1, 0) Vᵀ has the rotations U W Vᵀ and U Wᵀ Vᵀ (the better one counts: no point is
    looked at) and the direction ±u3, which is given the true length: the translation error is 2 s |t| sin(θ / 2)
    for a direction off by θ, and 0 where there is no translation. nan for a matrix that is not finite.
    """
    essential = truth.intrinsics1.T @ fundamental @ truth.intrinsics0
    if not np.isfinite(essential).all():
        return float("nan"), float("nan")
    u, _, vt = np.linalg.svd(essential)
    u, vt = u * np.sign(np.linalg.det(u)), vt * np.sign(np.linalg.det(vt))
    w = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]])
    rotation_deg = min(rotation_error_deg(u @ turn @ vt, truth.rotation) for turn in (w, w.T))
    length = np.linalg.norm(truth.translation)
    distance = min(float(np.linalg.norm(truth.translation - sign * length * u[:, 2])) for sign in (1, -1))
    return rotation_deg, metres_per_unit * distance


def mean_average_accuracy(rotation_deg: Sequence[float | None], translation_m: Sequence[float | None]) -> float:
    """Share of pairs with both errors under a pair of thresholds, averaged over the ten; None fails all."""
    return float(np.mean(accuracies(rotation_deg, translation_m)))


def accuracies(rotation_deg: Sequence[float | None], translation_m: Sequence[float | None]) -> NDArray[np.float64]:
    """(10,) share of pairs under each pair of thresholds; nan and None are under none."""
    rotation, translation = (np.array(errors, np.float64)[:, None] for errors in (rotation_deg, translation_m))
    return np.asarray(((rotation < THRESHOLDS_DEG) & (translation < THRESHOLDS_M)).mean(axis=0))


def training_pairs(folder: Path, *, subset: int | None = None, seed: int = 0) -> list[PosePair]:
    """Pairs of the competition's training folder (or of the folder `train` in it) with a covisibility of >= 0.1.

    `scaling_factors.csv` (scene, metres per unit; columns by position); in each scene `images/`,
    `calibration.csv` (image_id, camera_intrinsics, rotation_matrix, translation_vector) and
    `pair_covisibility.csv` (pair, covisibility, fundamental_matrix), matrices by rows, x_camera = R X + T. Image 0
    of a pair is the first of its name `key1-key2`.
    subset: that many pairs of each scene, drawn by `seed`: the files are sorted from easy to hard.
    Raises ValueError for a folder that is not laid out so.
    """
    root = training_root(folder)
    factors = root / "scaling_factors.csv"
    if not factors.exists():
        raise ValueError(f"{root}: no scaling_factors.csv: not the training folder of the competition")
    metres = {row[0]: float(row[1]) for row in csv_rows(factors)}
    return [pair for scene in training_scenes(root) for pair in _scene_pairs(scene, metres, subset, seed)]


def _scene_pairs(scene: Path, metres: dict[str, float], subset: int | None, seed: int) -> list[PosePair]:
    if scene.name not in metres:
        raise ValueError(f"{scene.parent / 'scaling_factors.csv'}: has no scene {scene.name}")
    cameras = read_cameras(scene)
    names = [name for name, share in read_covisibility(scene).items() if share >= MIN_COVISIBILITY]
    pairs, images = [], pictures(scene / "images")
    for name in sorted(drawn(names, subset, seed)):  # by the first image: it is encoded once
        key0, key1 = name.split("-")
        pairs.append(
            PosePair(
                key=f"{scene.name}:{name}",
                subset=scene.name,
                group=scene.name,
                source0=FileSource(named(images, scene, key0)),
                source1=FileSource(named(images, scene, key1)),
                # K stays as COLMAP wrote it, half a pixel from our pixel centres: the competition's score uses it so.
                truth=relative_pose(cameras[key0], cameras[key1]),
                metres_per_unit=metres[scene.name],
            )
        )
    return pairs


@dataclass(frozen=True, kw_only=True)
class ImcRecord:
    """One pair: errors by estimator, None where there is no fundamental matrix."""

    num_matches: int
    rotation_deg: dict[str, float | None]
    translation_m: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Imc2022(Protocol[PosePair, ImcRecord]):
    """Mean average accuracy of fundamental matrices.

    threshold_px: of MAGSAC, in pixels of the files: 0.2 is where the competition's best settings lay.
    """

    threshold_px: float = 0.2
    seed: int = 0

    record_type = ImcRecord

    def measure(self, pair: PosePair, encoded0: Encoded, encoded1: Encoded, matches: Matches) -> ImcRecord:
        matches = pair.in_files(encoded0.frame, encoded1.frame, matches)
        rotation: dict[str, float | None] = {}
        translation: dict[str, float | None] = {}
        for column in COLUMNS:
            matrix = fundamental(column, matches, threshold_px=self.threshold_px, seed=self.seed)
            errors = None if matrix is None else pose_errors(matrix, pair.truth, pair.metres_per_unit)
            rotation[column], translation[column] = errors or (None, None)
        return ImcRecord(num_matches=len(matches), rotation_deg=rotation, translation_m=translation)

    def failure(self, pair: PosePair) -> ImcRecord:
        return ImcRecord(num_matches=0, rotation_deg=dict.fromkeys(COLUMNS), translation_m=dict.fromkeys(COLUMNS))

    def report(self, results: dict[str, list[Measured[ImcRecord]]]) -> Report:
        """A row for each scene and method, and the mean of the scenes."""
        scenes = by_subset(results, together=False)
        overall = [(method, [m for _, name, m in scenes if name == method]) for method in results]
        rows = [(scene, len(measured), method, *_row([measured])) for scene, method, measured in scenes]
        rows += [("mean of scenes", sum(map(len, parts)), method, *_row(parts)) for method, parts in overall]
        table = Table(
            title=f"Image Matching Challenge 2022, MAGSAC threshold {self.threshold_px:g} px",
            columns=(
                *("scene", "pairs", "method", "matches"),
                *(f"{_title(c)} {what}" for c in COLUMNS for what in ("mAA", "@1/5/10", "failed")),
                *("encode ms", "match ms"),
            ),
            rows=tuple(rows),
            notes=(
                "mAA: share of pairs with both errors under a pair of thresholds, mean over 1 degree and 0.2 m "
                "... 10 degrees and 5 m, in %; @: at 1, 5, 10 degrees alone. A pair without a matrix is wrong.",
                "Of the two rotations in an essential matrix the better counts, as in the competition; the "
                "translation is given its true length.",
                *(f"{note}." for note in COLUMN_NOTES.values()),
            ),
            decimals=2,
        )
        return Report(tables={"imc2022": table}, figures={"imc2022": _charts(overall)})


def fundamental(column: Column, matches: Matches, *, threshold_px: float, seed: int) -> NDArray[np.float64] | None:
    """(3, 3) F between the files the matches lie in, or None."""
    if column == "fit":
        model = fit_fundamental(matches, seed=seed).model
        return None if model is None else model.matrix
    if len(matches) < 8:
        return None
    points0, points1 = matches.points0.astype(np.float64), matches.points1.astype(np.float64)
    return robust.fundamental(points0, points1, threshold_px=threshold_px, estimator="magsac", seed=seed)


def _title(column: Column) -> str:
    return {"magsac": "MAGSAC", "fit": "fit"}[column]


def _accuracies(parts: Sequence[Sequence[Measured[ImcRecord]]], column: Column) -> NDArray[np.float64]:
    """(10,) accuracies of each scene, then their unweighted mean."""
    return np.asarray(
        np.mean(
            [
                accuracies(
                    [one.record.rotation_deg[column] for one in measured],
                    [one.record.translation_m[column] for one in measured],
                )
                for measured in parts
            ],
            axis=0,
        )
    )


def _row(parts: Sequence[Sequence[Measured[ImcRecord]]]) -> tuple[Cell, ...]:
    every = [one for measured in parts for one in measured]
    cells: list[Cell] = []
    for column in COLUMNS:
        values = 100 * _accuracies(parts, column)
        failed = sum(one.record.rotation_deg[column] is None for one in every)
        cells += [float(values.mean()), tuple(float(values[i]) for i in (0, 4, 9)), failed]
    return (round(np.mean([one.record.num_matches for one in every])), *cells, *milliseconds(every))


def _charts(overall: Sequence[tuple[str, Sequence[Sequence[Measured[ImcRecord]]]]]) -> tuple[Chart, ...]:
    return tuple(
        Chart(
            title=_title(column),
            x_label="threshold (degrees; 0.2 ... 5 m with it)",
            y_label="share of pairs under it",
            curves=tuple(
                Curve(label=method, x=THRESHOLDS_DEG, y=_accuracies(parts, column)) for method, parts in overall
            ),
            y_limits=(0, 1),
        )
        for column in COLUMNS
    )
