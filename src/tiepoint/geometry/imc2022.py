"""What the training folder of the Image Matching Challenge 2022 says of a scene.

Matrices are written by rows, their numbers separated by spaces. COLMAP made them: K speaks of the corner frame.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from tiepoint.geometry.cameras import Camera


def training_root(folder: Path) -> Path:
    """The folder of the scenes: `folder`, or `train` in it."""
    return folder / "train" if (folder / "train").is_dir() else folder


def training_scenes(root: Path) -> list[Path]:
    """The folders of the scenes. Raises ValueError if there are none."""
    scenes = sorted(path.parent for path in root.glob("*/pair_covisibility.csv"))
    if not scenes:
        raise ValueError(f"{root}: no scene with a pair_covisibility.csv")
    return scenes


def read_cameras(scene: Path) -> dict[str, Camera]:
    """By image id, from `calibration.csv`: image_id, camera_intrinsics, rotation_matrix, translation_vector.

    Raises ValueError for a file that is missing or not so.
    """
    file = scene / "calibration.csv"
    try:
        return {row[0]: _camera(row) for row in csv_rows(file)}
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{file}: expected lines of an id and 9, 9 and 3 numbers: {error}") from error


def _camera(row: list[str]) -> Camera:
    intrinsics, rotation, translation = (np.array(words.split(), np.float64) for words in row[1:4])
    return Camera(intrinsics.reshape(3, 3), rotation.reshape(3, 3), translation.reshape(3))


def read_covisibility(scene: Path) -> dict[str, float]:
    """Of each pair `key0-key1`, from `pair_covisibility.csv`: pair, covisibility, fundamental_matrix.

    Raises ValueError for a file that is missing or not so.
    """
    file = scene / "pair_covisibility.csv"
    try:
        return {row[0]: float(row[1]) for row in csv_rows(file)}
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{file}: expected lines of a pair and its covisibility: {error}") from error


def csv_rows(file: Path) -> list[list[str]]:
    """The lines of a CSV file under its header."""
    with file.open(newline="", encoding="utf-8") as lines:
        return [row for row in csv.reader(lines) if row][1:]
