"""Matches as files: npz for programs, JSON and CSV for anyone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tiepoint.geometry.correspondences import Matches
from tiepoint.images import write_atomically

_COLUMNS = ("x0", "y0", "x1", "y1", "score")


def save_matches(path: Path | str, matches: Matches) -> None:
    """Write `matches` as .npz, .json or .csv, by the ending of `path`, whole or not at all.

    All hold points in pixels (x, y) of the full-size images, pixel centres at integers. The CSV has a header
    line `x0,y0,x1,y1,score` after one comment line with sizes and method.
    Raises ValueError for another ending.
    """
    path = Path(path)
    writers: dict[str, Callable[[Matches], bytes | str]] = {".npz": _to_npz, ".json": _to_json, ".csv": _to_csv}
    if path.suffix not in writers:
        raise ValueError(
            f"{path}: matches are written as {', '.join(writers)}, not {path.suffix or 'without ending'}"
        )
    write_atomically(path, writers[path.suffix](matches))


def load_matches(path: Path | str) -> Matches:
    """Read what `save_matches` wrote. Raises ValueError for a file that is none, OSError for one not there."""
    path = Path(path)
    readers = {".npz": _from_npz, ".json": _from_json, ".csv": _from_csv}
    if path.suffix not in readers:
        raise ValueError(f"{path}: matches are read from {', '.join(readers)}")
    data = path.read_bytes()
    try:
        return readers[path.suffix](data)
    except Exception as error:  # the three formats' parsers raise each their own
        raise ValueError(f"{path}: is no file of matches: {error}") from error


def _to_npz(matches: Matches) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        points0=matches.points0,
        points1=matches.points1,
        scores=matches.scores,
        size0=matches.size0,
        size1=matches.size1,
        method=matches.method,
    )
    return buffer.getvalue()


def _from_npz(data: bytes) -> Matches:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return _matches(
            arrays["points0"],
            arrays["points1"],
            arrays["scores"],
            arrays["size0"].tolist(),
            arrays["size1"].tolist(),
            str(arrays["method"]),
        )


def _to_json(matches: Matches) -> str:
    return json.dumps(
        {
            "method": matches.method,
            "size0": matches.size0,
            "size1": matches.size1,
            "points0": matches.points0.tolist(),
            "points1": matches.points1.tolist(),
            "scores": matches.scores.tolist(),
        }
    )


def _from_json(data: bytes) -> Matches:
    v = json.loads(data)
    return _matches(v["points0"], v["points1"], v["scores"], v["size0"], v["size1"], str(v["method"]))


def _to_csv(matches: Matches) -> str:
    sizes = [*matches.size0, *matches.size1]
    buffer = io.StringIO()
    buffer.write("# tiepoint matches; width0 {} height0 {} width1 {} height1 {} method ".format(*sizes))
    buffer.write(f"{matches.method}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(np.column_stack([matches.points0, matches.points1, matches.scores]).tolist())
    return buffer.getvalue()


def _from_csv(data: bytes) -> Matches:
    comment, header, *lines = data.decode().splitlines()
    words = comment.split(" ", 11)
    if header != ",".join(_COLUMNS):
        raise ValueError(f"expected the columns {','.join(_COLUMNS)}, got {header}")
    rows = np.array([line.split(",") for line in lines], np.float64).reshape(-1, 5)
    size0, size1 = (int(words[4]), int(words[6])), (int(words[8]), int(words[10]))
    return _matches(rows[:, :2], rows[:, 2:4], rows[:, 4], size0, size1, words[11].removeprefix("method "))


def _matches(points0: Any, points1: Any, scores: Any, size0: Any, size1: Any, method: str) -> Matches:
    return Matches(
        points0=np.asarray(points0, np.float32).reshape(-1, 2),
        points1=np.asarray(points1, np.float32).reshape(-1, 2),
        scores=np.asarray(scores, np.float32),
        size0=(int(size0[0]), int(size0[1])),
        size1=(int(size1[0]), int(size1[1])),
        method=method,
    )
