"""The submission file of the Image Matching Challenge 2022."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tiepoint.evaluation.contestants import Encoded
from tiepoint.evaluation.imc2022 import fundamental
from tiepoint.evaluation.layouts import pictures
from tiepoint.evaluation.pairs import UnknownPair
from tiepoint.evaluation.report import Report, Table, milliseconds
from tiepoint.evaluation.run import Measured, Protocol
from tiepoint.evaluation.sources import FileSource
from tiepoint.geometry import Matches

FALLBACK = np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]], np.float64)
"""F of a camera that moved sideways without turning (y0 = y1): valid, and where nothing is known the likeliest for
upright street photographs. Zeros would be decomposed into an arbitrary pose."""


def sample_pairs(folder: Path) -> list[UnknownPair]:
    """The pairs of `test.csv` (sample_id, batch_id, image_1_id, image_2_id), pictures in `test_images/<batch>/`.

    A picture that is not there fails when it is read, as .png: its sample still gets its row.
    """
    images = folder / "test_images"
    with (folder / "test.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    columns = {"sample_id", "batch_id", "image_1_id", "image_2_id"}
    if not rows or not columns <= rows[0].keys():
        raise ValueError(f"{folder / 'test.csv'}: expected lines under the columns {', '.join(sorted(columns))}")
    folders = {row["batch_id"]: pictures(images / row["batch_id"]) for row in rows}

    def source(batch: str, name: str) -> FileSource:
        return FileSource(folders[batch].get(name, images / batch / f"{name}.png"))

    return [
        UnknownPair(
            key=row["sample_id"],
            subset=row["batch_id"],
            group=row["batch_id"],
            source0=source(row["batch_id"], row["image_1_id"]),
            source1=source(row["batch_id"], row["image_2_id"]),
        )
        for row in rows
    ]


@dataclass(frozen=True, kw_only=True)
class SubmissionRecord:
    """One sample: F by rows in pixels of the files, image 1 to image 2 of the sample; None where there is none."""

    num_matches: int
    matrix: list[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Submission(Protocol[UnknownPair, SubmissionRecord]):
    """Fundamental matrices of the test pairs by USAC_MAGSAC."""

    threshold_px: float = 0.2
    seed: int = 0

    record_type = SubmissionRecord

    def measure(self, _pair: UnknownPair, _encoded0: Encoded, _encoded1: Encoded, matches: Matches) -> SubmissionRecord:
        matrix = fundamental("magsac", matches, threshold_px=self.threshold_px, seed=self.seed)
        return SubmissionRecord(num_matches=len(matches), matrix=None if matrix is None else matrix.ravel().tolist())

    def failure(self, pair: UnknownPair) -> SubmissionRecord:
        return SubmissionRecord(num_matches=0)

    def report(self, results: dict[str, list[Measured[SubmissionRecord]]]) -> Report:
        """How many samples have a matrix of their own."""
        rows = [
            (
                method,
                len(measured),
                sum(one.record.matrix is None for one in measured),
                *milliseconds(measured),
            )
            for method, measured in results.items()
        ]
        columns = ("method", "samples", "with the fallback matrix", "encode ms", "match ms")
        return Report(tables={"submission": Table(title="Submission", columns=columns, rows=tuple(rows))}, figures={})


def submission_csv(results: Iterable[Measured[SubmissionRecord]]) -> str:
    """`sample_id,fundamental_matrix`, nine numbers by rows; `FALLBACK` where there is none. One row per sample."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["sample_id", "fundamental_matrix"])
    for one in results:
        matrix = FALLBACK.ravel() if one.record.matrix is None else one.record.matrix
        writer.writerow([one.pair.key, " ".join(f"{value:.8e}" for value in matrix)])
    return buffer.getvalue()
