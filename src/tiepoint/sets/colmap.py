"""A set's tie points as COLMAP's database, through pycolmap."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiepoint.images import read_file_frame
from tiepoint.sets.pairs import Pair
from tiepoint.sets.tie_points import TiePoints

Cameras = Literal["auto", "single", "per-folder", "per-image"]


@dataclass(frozen=True, kw_only=True)
class WrittenDatabase:
    """held: the pairs that hold geometrically. left_out: the photographs that COLMAP did not take."""

    held: tuple[Pair, ...]
    left_out: tuple[str, ...]


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
) -> WrittenDatabase:
    """Write the photographs of `folder` in `points`, their matches, and which of these hold geometrically.

    COLMAP guesses the cameras, from EXIF where it can, and verifies each pair: epipolar geometry or a homography with
    15 inliers at least. Its mapper can begin at once. A photograph that it does not take is left out: of a format it
    does not read, or of another size than those it is to share a camera with.

    cameras: which photographs share one; auto: those whose EXIF agrees, so that one without EXIF has its own.
    progress: called with the number of pairs done since. The file appears whole or not at all, in place of an older.
    """
    import pycolmap

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as scratch:
        partial = Path(scratch) / "database.db"
        pycolmap.Database.open(partial).close()
        mode = getattr(pycolmap.CameraMode, cameras.upper().replace("-", "_"))
        pycolmap.import_images(partial, folder, mode, sorted(points.keypoints))
        database = pycolmap.Database.open(partial)
        written = _write_points(database, folder, points, seed, progress)
        database.close()
        for of_old in ("-wal", "-shm"):  # of a program that was killed; SQLite would put it into the new file
            path.with_name(path.name + of_old).unlink(missing_ok=True)
        os.replace(partial, path)
    return written


def _write_points(
    database: Any, folder: Path, points: TiePoints, seed: int, progress: Callable[[int], object]
) -> WrittenDatabase:
    import pycolmap

    images = {image.name: image for image in database.read_all_images()}
    keypoints = {name: _in_colmap(folder / name, points.keypoints[name]) for name in images}
    for name, of_image in keypoints.items():
        database.write_keypoints(images[name].image_id, of_image)
    cameras = {name: database.read_camera(image.camera_id) for name, image in images.items()}
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = seed
    held = []
    for (name0, name1), rows in points.rows.items():
        if name0 in images and name1 in images:
            ids = images[name0].image_id, images[name1].image_id
            database.write_matches(*ids, rows)
            geometry = pycolmap.estimate_two_view_geometry(
                cameras[name0], keypoints[name0], cameras[name1], keypoints[name1], rows, options
            )
            database.write_two_view_geometry(*ids, geometry)
            if len(geometry.inlier_matches) > 0:
                held.append((name0, name1))
        progress(1)
    return WrittenDatabase(held=tuple(held), left_out=tuple(sorted(points.keypoints.keys() - images.keys())))


def _in_colmap(file: Path, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Points of the upright picture where COLMAP has them: it puts (0, 0) at the corner of the file's first pixel."""
    return read_file_frame(file).points(points) + np.float32(0.5)
