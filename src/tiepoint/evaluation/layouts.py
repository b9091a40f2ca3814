"""Where data sets keep their pictures and their truth: folders of sequences, pairs files."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np

from tiepoint.evaluation.pairs import PlanePair, PosePair
from tiepoint.evaluation.sources import PLAIN_SUFFIXES, FileSource, QuarterTurnedSource, Source
from tiepoint.geometry import RelativePose, Transform
from tiepoint.images import SUFFIXES

Item = TypeVar("Item")

HPATCHES_LARGE = (
    "i_contruction",  # so spelt in the archive
    "i_crownnight",
    "i_dc",
    "i_pencils",
    "i_whitebuilding",
    "v_artisans",
    "v_astronautis",
    "v_talent",
)
"""The large scenes left out of the list of 108 (D2-Net and all after it)."""


def homography_pairs(
    folder: Path, *, scenes: str = "all", short_side_px: int | None = None, subset: int | None = None
) -> list[PlanePair]:
    """Pairs (1, k) of every sequence below `folder`: pictures `1.*`, `k.*` and the 3 x 3 text matrix `H_1_k`.

    That is HPatches' layout (subsets "illumination" and "viewpoint" by the names i_*, v_*), and the same in
    folders of sets, each a subset. Where `points_1_k.txt` (x1 y1 xk yk) lies beside, errors are measured at those
    points.

    scenes: "all", or HPatches' "116" or "108". subset: the first that many sequences of each subset.
    Raises ValueError for a folder without sequences, or with a broken one.
    """
    sequences = sorted({path.parent for path in folder.rglob("H_1_*")})
    hpatches = bool(sequences) and all(path.name.startswith(("i_", "v_")) for path in sequences)
    if scenes != "all" and not hpatches:
        raise ValueError(f"{folder}: holds other sequences than HPatches' i_* and v_*: no list of {scenes} scenes")
    if scenes == "108":
        sequences = [path for path in sequences if path.name not in HPATCHES_LARGE]
    if not sequences:
        raise ValueError(f"{folder}: no sequences: expected folders with 1.*, k.* and H_1_k")
    by_subset: dict[str, list[Path]] = {}
    for path in sequences:
        by_subset.setdefault(_subset(folder, path, hpatches), []).append(path)
    return [
        pair
        for name, paths in sorted(by_subset.items())
        for path in paths[:subset]
        for pair in _sequence_pairs(folder, path, name, short_side_px)
    ]


def _subset(folder: Path, sequence: Path, hpatches: bool) -> str:
    if hpatches:
        return "illumination" if sequence.name.startswith("i_") else "viewpoint"
    within = sequence.relative_to(folder).parts[:-1]
    return "/".join(within) or folder.resolve().name


def _sequence_pairs(folder: Path, sequence: Path, subset: str, short_side_px: int | None) -> list[PlanePair]:
    name, found = sequence.relative_to(folder).as_posix(), pictures(sequence)
    pairs = []
    for file in sorted(sequence.glob("H_1_*"), key=lambda path: (len(path.name), path.name)):
        k = file.name.removeprefix("H_1_")
        points = _points(sequence / f"points_1_{k}.txt")
        pairs.append(
            PlanePair(
                key=f"{name}:1-{k}",
                subset=subset,
                group=name,
                source0=FileSource(named(found, sequence, "1"), short_side_px),
                source1=FileSource(named(found, sequence, k), short_side_px),
                truth=Transform(_matrix(file)),
                points0=None if points is None else points[:, :2],
                points1=None if points is None else points[:, 2:],
            )
        )
    return pairs


def pictures(folder: Path) -> dict[str, Path]:
    """The pictures in `folder` by name without ending; of several endings the alphabet's first counts."""
    if not folder.is_dir():
        return {}
    found = sorted((path for path in folder.iterdir() if is_picture(path)), reverse=True)
    return {path.stem: path for path in found}


def named(found: dict[str, Path], folder: Path, stem: str) -> Path:
    """The picture called `stem`. Raises ValueError where there is none."""
    if stem not in found:
        raise ValueError(f"{folder}: no picture named {stem}.*")
    return found[stem]


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES | PLAIN_SUFFIXES


def _matrix(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    try:
        return np.loadtxt(file).reshape(3, 3)
    except ValueError as error:
        raise ValueError(f"{file}: expected a 3 x 3 matrix as text") from error


def _points(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None:
    if not file.exists():
        return None
    points = np.loadtxt(file, ndmin=2)
    if points.shape[1] != 4:
        raise ValueError(f"{file}: expected four numbers a line (x1 y1 xk yk), got {points.shape[1]}")
    return points


def pose_pairs(file: Path, *, subset: int | None = None, seed: int = 0) -> list[PosePair]:
    """Pairs of a file in SuperGlue's format; pictures are named relative to its folder.

    Each line: path0 path1 turns0 turns1 K0 (9) K1 (9) T_1_from_0 (16), matrices by rows: 38 words. Pictures are
    turned counter-clockwise by that many right angles before matching; K and T belong to the files as they are.
    subset: that many pairs, drawn by `seed`. Raises ValueError for a line of another length.
    """
    lines = [(i, line.split()) for i, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)]
    lines = drawn([(i, words) for i, words in lines if words and not words[0].startswith("#")], subset, seed)
    return [_pose_pair(file, number, words) for number, words in lines]


def _pose_pair(file: Path, number: int, words: list[str]) -> PosePair:
    if len(words) != 38:
        raise ValueError(f"{file}:{number}: expected 38 words (2 paths, 2 turns, K0, K1, T), got {len(words)}")
    values = np.array(words[4:], np.float64)
    pose = values[18:].reshape(4, 4)
    sources: list[Source] = [
        FileSource(file.parent / name) if int(turns) % 4 == 0 else QuarterTurnedSource(file.parent / name, int(turns))
        for name, turns in zip(words[:2], words[2:4], strict=True)
    ]
    return PosePair(
        key=f"{number}:{words[0]}:{words[1]}",
        subset=file.parent.resolve().name,
        group="all",
        source0=sources[0],
        source1=sources[1],
        truth=RelativePose(pose[:3, :3], pose[:3, 3], values[:9].reshape(3, 3), values[9:18].reshape(3, 3)),
    )


def photographs(folder: Path) -> list[Path]:
    """Pictures in `folder` by name. Raises ValueError if there are none."""
    found = sorted(path for path in folder.iterdir() if is_picture(path))
    if not found:
        raise ValueError(f"{folder}: no pictures")
    return found


def drawn(items: list[Item], count: int | None, seed: int) -> list[Item]:
    """`count` of `items` without replacement, in their own order; all for None."""
    if count is None or count >= len(items):
        return items
    rows = np.random.default_rng(seed).choice(len(items), count, replace=False)
    return [items[row] for row in sorted(rows)]
