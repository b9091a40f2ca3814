"""One line per source: what a run says about each registration, as JSON lines and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from tiepoint.geometry import Transform
from tiepoint.images import open_atomically
from tiepoint.registration.register import Registration
from tiepoint.registration.verdict import hull_share, occupied_cells

Record = dict[str, Any]
"""The JSON object of one source; docs/registration.md lists its keys."""

CONVENTION = "pixels (x, y) of the full-size upright images, pixel centres at integers; acts on (x, y, 1)"

_CSV_COLUMNS = (
    "source",
    "status",
    "reasons",
    "aligned",
    "model",
    "num_matches",
    "num_inliers",
    "residual_px",
    "coverage",
    "predicted_error_px",
    "error_bound95_px",
    "similarity_before",
    "similarity_after",
    "shift_x_px",
    "shift_y_px",
    "rotation_deg",
    "scale",
    *(f"h{row}{column}" for row in (1, 2, 3) for column in (1, 2, 3)),
)


def unreadable_record(source: str, reason: str) -> Record:
    """The line of a source that could not be read."""
    return {**_empty(source), "status": "unreadable", "reasons": [reason]}


def failed_record(source: str, reason: str) -> Record:
    """The line of a source on which the program itself failed; it is tried again by the next run."""
    return {**_empty(source), "status": "failed", "reasons": [reason]}


def registration_record(
    source: str, result: Registration, *, similarity_before: float, seed: int, weights: str | None
) -> Record:
    """The line of a source that was registered or refused."""
    record = _empty(source)
    matches, transform = result.matches, result.transform
    record |= {
        "status": "accepted" if result.accepted else "rejected",
        "reasons": list(result.verdict.reasons),
        "checks": [vars(check) for check in result.verdict.checks],
        "method": result.method,
        "tried": list(result.tried),
        "weights": weights,
        "seed": seed,
        "source_size": list(matches.size0),
        "template_size": list(matches.size1),
        "num_matches": len(matches),
        "num_inliers": result.estimate.num_inliers,
        "similarity_before": similarity_before,
    }
    if result.prediction is not None:
        record |= {
            "predicted_error_px": result.prediction.worst_px,
            "error_bound95_px": result.prediction.bound95_px,
            "corner_errors_px": list(result.prediction.corners_px),
        }
    if result.agreement is not None:
        record |= {"similarity_after": result.agreement.structure, "overlap": result.agreement.overlap}
    if result.refinement is not None:
        record["refinement"] = {
            "kept": result.refinement.kept,
            "reason": result.refinement.reason,
            "motion_px": result.refinement.motion_px,
            "num_tiles": result.refinement.num_tiles,
        }
    if transform is not None:
        record |= _geometry(transform, result)
    return record


def _geometry(transform: Transform, result: Registration) -> Record:
    width, height = result.matches.size0
    parts = transform.decompose(((width - 1) / 2, (height - 1) / 2))
    inliers = result.matches.points1[result.estimate.inliers]
    frame = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (np.array(result.matches.size1) - 1.0)
    return {
        "model": transform.kind,
        "matrix_template_from_source": transform.matrix.tolist(),
        "matrix_source_from_template": transform.inverse().matrix.tolist(),
        "residual_px": result.estimate.rms_px,
        "coverage": hull_share(inliers, frame),
        "occupied_cells": occupied_cells(inliers, frame),
        "shift_px": list(parts.shift_px),
        "rotation_deg": parts.rotation_deg,
        "scale": parts.scale,
        "shear": parts.shear,
        "perspective": list(parts.perspective),
    }


def _empty(source: str) -> Record:
    keys = (
        "method weights seed model matrix_template_from_source matrix_source_from_template residual_px coverage"
        " predicted_error_px error_bound95_px similarity_before similarity_after shift_px rotation_deg scale aligned"
    )
    record: Record = {"source": source, "status": "", "reasons": [], "convention": CONVENTION}
    record |= dict.fromkeys(keys.split())
    return record | {"num_matches": 0, "num_inliers": 0, "checks": []}


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """One JSON object a line, whole or not at all."""
    with open_atomically(path) as file:
        for record in records:
            file.write(f"{to_json(record)}\n".encode())


def to_json(record: Record) -> str:
    """JSON without NaN and infinity, which become null; names that are no Unicode are kept escaped."""
    return json.dumps(_finite(record), allow_nan=False)


def read_jsonl(path: Path) -> list[Record]:
    """The lines of `write_jsonl`. Raises ValueError naming the file and line that is none."""
    records = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no registrations.jsonl: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: is no JSON: {error}") from error
        if not isinstance(record, dict) or "source" not in record:
            raise ValueError(f"{path}, line {number}: is no registration record")
        records.append(record)
    return records


def write_csv(path: Path, records: Iterable[Record]) -> None:
    """A line per source with the columns a spreadsheet wants, whole or not at all."""
    with (
        open_atomically(path) as binary,
        io.TextIOWrapper(binary, encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        _write_csv(file, records)


def _write_csv(file: TextIO, records: Iterable[Record]) -> None:
    writer = csv.DictWriter(file, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in records:
        row = {**record, "reasons": "; ".join(record["reasons"])}
        row["shift_x_px"], row["shift_y_px"] = record["shift_px"] or (None, None)
        matrix = record["matrix_template_from_source"]
        if matrix is not None:
            row |= {f"h{i + 1}{j + 1}": matrix[i][j] for i in range(3) for j in range(3)}
        writer.writerow(row)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
