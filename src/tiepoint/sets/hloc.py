"""A set's tie points as hloc's files of features, matches and pairs."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from tiepoint.images import read_file_frame, write_atomically
from tiepoint.sets.tie_points import TiePoints


def check_hloc() -> None:
    """Raise RuntimeError, saying what to install, without h5py."""
    if find_spec("h5py") is None:
        raise RuntimeError("hloc's files need h5py: pip install 'tiepoint[sets]'")


def write_hloc(out: Path, folder: Path, points: TiePoints) -> tuple[Path, Path, Path]:
    """Write OUT/features.h5, OUT/matches.h5 and OUT/pairs.txt, and return their paths.

    Keypoints and image_size by photograph, matches0 and matching_scores0 by pair: for each keypoint of its first
    photograph the row of the second's, or -1. Keypoints lie in the picture as the file holds it, whose EXIF
    orientation hloc leaves alone, pixel centres at integers: it adds the half pixel itself when it fills COLMAP's
    database. Raises ValueError for two photographs that hloc cannot tell apart.
    """
    import h5py

    groups = _groups(points)
    features, matches, pairs = (out / name for name in ("features.h5", "matches.h5", "pairs.txt"))
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, keypoints in points.keypoints.items():
            frame = read_file_frame(folder / name)
            group = file.create_group(name)
            group["keypoints"], group["image_size"] = frame.points(keypoints), np.array(frame.size)
    write_atomically(features, buffer.getvalue())
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for (name0, name1), rows in points.rows.items():
            group = file.create_group(f"{groups[name0]}/{groups[name1]}")
            matches0 = np.full(len(points.keypoints[name0]), -1, np.int32)
            scores0 = np.zeros(len(matches0), np.float16)
            matches0[rows[:, 0]], scores0[rows[:, 0]] = rows[:, 1], points.scores[name0, name1]
            group["matches0"], group["matching_scores0"] = matches0, scores0
    write_atomically(matches, buffer.getvalue())
    write_atomically(pairs, "".join(f"{name0} {name1}\n" for name0, name1 in points.rows))
    return features, matches, pairs


def _groups(points: TiePoints) -> dict[str, str]:
    """What hloc calls each photograph in its matches."""
    called: dict[str, str] = {}
    for name in points.keypoints:
        if (other := called.setdefault(name.replace("/", "-"), name)) != name:
            raise ValueError(f"hloc cannot tell {other} from {name}; rename one of them")
    return {name: group for group, name in called.items()}
