"""Scenes of photographs with known cameras, as files describe them: MegaDepth's index for LoFTR, and IMC 2022.

Files from elsewhere are not trusted: names may not lead out of the folder, and nothing in them is run.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from tiepoint.geometry import Camera, H_index_from_corner
from tiepoint.geometry.imc2022 import read_cameras, read_covisibility, training_root, training_scenes
from tiepoint.training.object_arrays import read_object_arrays

PosedLayout = Literal["megadepth", "imc2022"]

_HELD_OUT_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class PosedPhotograph:
    """image: its file; camera: with pixel centres at integers; depth: HDF5 file, None where none is known."""

    image: Path
    camera: Camera
    depth: Path | None = None


@dataclass(frozen=True, eq=False)
class Scene:
    """Pairs of photographs that see the same. name: scenes of one name are parts of one place."""

    name: str
    pairs: list[tuple[PosedPhotograph, PosedPhotograph]]


def read_scenes(layout: PosedLayout, folder: Path, overlap: tuple[float, float]) -> list[Scene]:
    """The scenes below `folder` that have pairs whose overlap lies in the band `overlap` (least, most).

    Raises ValueError for a folder that is not laid out so, for files it names that are not there, and where no pair
    is left.
    """
    readers = {"megadepth": _megadepth_scenes, "imc2022": _imc2022_scenes}
    scenes = [scene for scene in readers[layout](folder, overlap) if scene.pairs]
    if not scenes:
        raise ValueError(f"{folder}: no pair has an overlap of {overlap[0]:g} to {overlap[1]:g}")
    return scenes


def kept_back(scenes: list[Scene]) -> tuple[list[Scene], list[Scene]]:
    """The scenes to train on, and those to judge by: the last name's; of one name alone, its last 5 % of pairs.

    Raises ValueError when there is only one pair.
    """
    last = scenes[-1].name
    others = [scene for scene in scenes if scene.name != last]
    if others:
        return others, [scene for scene in scenes if scene.name == last]
    pairs = [pair for scene in scenes for pair in scene.pairs]
    if len(pairs) < 2:
        raise ValueError(f"{last}: expected 2 pairs at least, 1 of them to validate on; got 1")
    kept = min(round(len(pairs) * (1 - _HELD_OUT_SHARE)), len(pairs) - 1)
    return [Scene(last, pairs[:kept])], [Scene(last, pairs[kept:])]


def num_pairs(scenes: list[Scene]) -> dict[str, int]:
    """By name."""
    counted = Counter[str]()
    for scene in scenes:
        counted[scene.name] += len(scene.pairs)
    return dict(counted)


def _megadepth_scenes(folder: Path, overlap: tuple[float, float]) -> list[Scene]:
    """Of scene_info/*.npz, the index that LoFTR's authors made; the files it names lie below `folder`.

    image_paths, depth_paths, intrinsics (3 x 3, COLMAP's corner frame) and poses (4 x 4, camera from scene) by
    photograph, None for those not used; pair_infos: rows of (i, j), overlap, and more that is not read.
    """
    files = sorted((folder / "scene_info").glob("*.npz"))
    if not files:
        raise ValueError(f"{folder}: expected scene_info/*.npz, MegaDepth's index for LoFTR; found none")
    return [_megadepth_scene(folder, file, overlap) for file in files]


def _megadepth_scene(folder: Path, file: Path, overlap: tuple[float, float]) -> Scene:
    names = ("image_paths", "depth_paths", "intrinsics", "poses", "pair_infos")
    image_paths, depth_paths, intrinsics, poses, pair_infos = read_object_arrays(file, names)

    @cache
    def photograph(i: int) -> PosedPhotograph:
        K, pose = np.array(intrinsics[i], np.float64).reshape(3, 3), np.array(poses[i], np.float64).reshape(4, 4)
        camera = Camera(K, pose[:3, :3], pose[:3, 3]).with_pixels(H_index_from_corner)
        return PosedPhotograph(_named(folder, image_paths[i]), camera, _named(folder, depth_paths[i]))

    try:
        chosen = [pair for pair, share, *_ in pair_infos if overlap[0] <= share <= overlap[1]]
        pairs = [(photograph(int(i)), photograph(int(j))) for i, j in chosen]
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{file}: is no scene of MegaDepth's index for LoFTR: {error}") from error
    return Scene(re.split("[_.]", file.stem)[0], pairs)  # 0015_0.1_0.3.npz is a part of 0015


def _imc2022_scenes(folder: Path, overlap: tuple[float, float]) -> list[Scene]:
    return [_imc2022_scene(scene, overlap) for scene in training_scenes(training_root(folder))]


def _imc2022_scene(folder: Path, overlap: tuple[float, float]) -> Scene:
    cameras = read_cameras(folder)

    @cache
    def photograph(key: str) -> PosedPhotograph:
        if key not in cameras:
            raise ValueError(f"{folder / 'calibration.csv'}: has no image {key}, which pair_covisibility.csv names")
        return PosedPhotograph(_named(folder, f"images/{key}.jpg"), cameras[key].with_pixels(H_index_from_corner))

    names = [name for name, share in read_covisibility(folder).items() if overlap[0] <= share <= overlap[1]]
    return Scene(folder.name, [(photograph(key0), photograph(key1)) for key0, key1 in map(_keys, names)])


def _keys(pair: str) -> tuple[str, str]:
    key0, dash, key1 = pair.partition("-")
    if not dash:
        raise ValueError(f"pair_covisibility.csv: expected pairs like key0-key1, got {pair!r}")
    return key0, key1


def _named(folder: Path, name: Any) -> Path:
    """The file `name` below `folder`. Raises ValueError where it is none, is not there, or would lead outside."""
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"expected the name of a file below {folder}, got {name!r}")
    path = folder / name
    if not path.is_file():
        raise ValueError(f"{path}: is not there")
    return path
