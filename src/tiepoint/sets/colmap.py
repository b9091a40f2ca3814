"""A set's tie points as COLMAP's database, through pycolmap."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tiepoint.images import points_in_file
from tiepoint.sets.pairs import Pair
from tiepoint.sets.tie_points import TiePoints

Cameras = Literal["auto", "single", "per-folder", "per-image"]
CAMERAS: tuple[Cameras, ...] = get_args(Cameras)


def check_colmap() -> None:
    """Raise RuntimeError, saying what to install, without pycolmap."""
    if find_spec("pycolmap") is None:
        raise RuntimeError("COLMAP's database needs pycolmap: pip install 'tiepoint[sets]'")


def write_database(
    path: Path,
    folder: Path,
    points: TiePoints,
    *,
    cameras: Cameras = "auto",
    seed: int = 0,
    progress: Callable[[int], object] = lambda _: None,
) -> list[Pair]:
    """Write the photographs of `folder` that have tie points, their matches, and which of these hold geometrically.

    COLMAP guesses the cameras, from EXIF where it can, and verifies each pair: epipolar geometry or a homography with
    15 inliers at least. Its mapper can begin at once.

    cameras: which photographs share one; auto: those of one folder whose EXIF agrees. progress: called with the
    number of pairs done since. Returns the pairs that hold. The file appears whole or not at all.
    Raises ValueError for a photograph that COLMAP cannot read.
    """
    import pycolmap

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as scratch:
        partial = Path(scratch) / "database.db"
        pycolmap.Database.open(partial).close()
        mode = getattr(pycolmap.CameraMode, cameras.upper().replace("-", "_"))
        pycolmap.import_images(partial, folder, mode, sorted(points.keypoints))
        database = pycolmap.Database.open(partial)
        held = _write_points(database, folder, points, seed, progress)
        database.close()
        os.replace(partial, path)
    return held


def _write_points(
    database: Any, folder: Path, points: TiePoints, seed: int, progress: Callable[[int], object]
) -> list[Pair]:
    import pycolmap

    images = {image.name: image for image in database.read_all_images()}
    if unread := sorted(points.keypoints.keys() - images.keys()):
        raise ValueError(f"{folder}: COLMAP cannot read {', '.join(unread)}; convert it to JPEG, PNG or TIFF")
    keypoints = {name: _in_colmap(folder / name, of_image) for name, of_image in points.keypoints.items()}
    for name, of_image in keypoints.items():
        database.write_keypoints(images[name].image_id, of_image)
    cameras = {name: database.read_camera(image.camera_id) for name, image in images.items()}
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = seed
    held = []
    for (name0, name1), rows in points.rows.items():
        ids = images[name0].image_id, images[name1].image_id
        database.write_matches(*ids, rows)
        geometry = pycolmap.estimate_two_view_geometry(
            *(cameras[name0], keypoints[name0], cameras[name1], keypoints[name1]), rows, options
        )
        database.write_two_view_geometry(*ids, geometry)
        if len(geometry.inlier_matches) > 0:
            held.append((name0, name1))
        progress(1)
    return held


def _in_colmap(file: Path, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points of the upright picture where COLMAP has them.

    It leaves the EXIF orientation alone, and puts (0, 0) at the corner of the first pixel, not at its centre.
    """
    return points_in_file(points, file) + np.float32(0.5)
