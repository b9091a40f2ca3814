"""Does a reconstruction grow from the matches? COLMAP's mapper on the database that `tiepoint match-set` writes.

    python benchmarks/reconstruction.py ../shared/data/eval/pose/lund_door/pairs.txt [--method sift ...] [--out DIR]

The photographs beside the file of true poses are matched, all pairs, and mapped; for each method, the photographs and
points placed, the mean length of a point's track, and against the file the median and largest errors of the
relative rotation and of the direction of the relative translation. The truth is COLMAP's own, made with SIFT. The
mapper does not repeat itself exactly: errors vary by some hundredths of a degree, the largest by tenths.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pycolmap

from tiepoint.evaluation.layouts import pose_pairs
from tiepoint.geometry import rotation_error_deg

METHODS = ("sift", "superpoint+superglue", "loftr", "relf")


def mapped(photographs: Path, method: str, out: Path) -> pycolmap.Reconstruction:
    """The largest model from all pairs of a folder, taken by one camera."""
    arguments = ["match-set", str(photographs), "--out", str(out), "--method", method, "--cameras", "single"]
    subprocess.run([sys.executable, "-m", "tiepoint.cli.main", *arguments], check=True, stdout=sys.stderr)
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = 0
    models = pycolmap.incremental_mapping(out / "database.db", photographs, out, options)
    return max(models.values(), key=lambda model: model.num_reg_images())


def errors_deg(model: pycolmap.Reconstruction, poses: Path) -> np.ndarray:
    """(N, 2) errors of rotation and direction of translation, of the pairs of which both photographs are placed."""
    placed = {image.name: image.cam_from_world() for image in model.images.values() if image.has_pose}
    found = []
    for pair in pose_pairs(poses):
        if {pair.source0.path.name, pair.source1.path.name} <= placed.keys():
            relative = placed[pair.source1.path.name] * placed[pair.source0.path.name].inverse()
            matrix = relative.matrix()
            rotation = rotation_error_deg(matrix[:, :3], pair.truth.rotation)
            found.append((rotation, angle_deg(matrix[:, 3], pair.truth.translation)))
    return np.array(found).reshape(-1, 2)


def angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    """Between two vectors, 0 to 180: which way a mapped camera moved is known."""
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("poses", type=Path)
    parser.add_argument("--method", action="append", help=f"default: {', '.join(METHODS)}")
    parser.add_argument("--out", type=Path, help="keep the databases and models here; matches in it are used again")
    arguments = parser.parse_args()
    print("| method | photographs | points | track length | rotation, median and largest | translation's direction |")
    print("|---|---:|---:|---:|---:|---:|")
    for method in arguments.method or METHODS:
        with tempfile.TemporaryDirectory() as scratch:
            out = (arguments.out or Path(scratch)) / method
            model = mapped(arguments.poses.parent, method, out)
        errors = errors_deg(model, arguments.poses)
        told = [f"{np.median(column):.3f}°, {column.max():.3f}°" for column in errors.T] if len(errors) else ["-", "-"]
        print(f"| {method} | {model.num_reg_images()} | {model.num_points3D()} "
              f"| {model.compute_mean_track_length():.1f} | {' | '.join(told)} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
