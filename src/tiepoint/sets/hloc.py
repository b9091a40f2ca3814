"""A set's tie points as hloc's files of features and of matches."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tiepoint.images import write_atomically
from tiepoint.sets.tie_points import TiePoints


def check_hloc() -> None:
    """Raise RuntimeError, saying what to install, without h5py."""
    if find_spec("h5py") is None:
        raise RuntimeError("hloc's files need h5py: pip install 'tiepoint[sets]'")


def write_hloc(features: Path, matches: Path, points: TiePoints) -> None:
    """Write keypoints and image_size by photograph, matches0 and matching_scores0 by pair; both in HDF5.

    Pixel centres are at integers, as hloc has it: it adds the half pixel itself when it fills COLMAP's database.
    matches0 holds, for each keypoint of the pair's first photograph, that of the second, or -1.
    """
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, keypoints in points.keypoints.items():
            group = file.create_group(name)
            group["keypoints"] = keypoints
            group["image_size"] = np.array(points.sizes[name])
    write_atomically(features, buffer.getvalue())
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for (name0, name1), rows in points.rows.items():
            group = file.create_group("/".join(name.replace("/", "-") for name in (name0, name1)))
            matches0 = np.full(len(points.keypoints[name0]), -1, np.int32)
            scores0 = np.zeros(len(matches0), np.float16)
            matches0[rows[:, 0]], scores0[rows[:, 0]] = rows[:, 1], points.scores[name0, name1]
            group["matches0"], group["matching_scores0"] = matches0, scores0
    write_atomically(matches, buffer.getvalue())
