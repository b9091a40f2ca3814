"""Tie points of a set: keypoints of each photograph that all its pairs share, as a reconstruction wants them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Matches
from tiepoint.sets.pairs import Pair


@dataclass(frozen=True, eq=False, kw_only=True)
class TiePoints:
    """Keypoints by photograph, and matches by pair as rows of them.

    keypoints: (N, 2) float32 each, (x, y) in pixels of the upright photograph, pixel centres at integers.
    rows: (M, 2) uint32 each, every keypoint in one row at most. scores: (M,) float32.
    """

    keypoints: dict[str, NDArray[np.float32]]
    rows: dict[Pair, NDArray[np.uint32]]
    scores: dict[Pair, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class _Side:
    """One photograph's points in one pair."""

    pair: Pair
    points: NDArray[np.float32]
    scores: NDArray[np.float32]


def tie_points(matches: Iterable[tuple[Pair, Matches]], merge_px: float) -> TiePoints:
    """The keypoints that the matches of all pairs have in common.

    merge_px: points of a photograph in one square cell of this side are one keypoint, at the place of the best match
    among them: what is needed of methods without keypoints, whose points differ from pair to pair. 0: only
    equal points are one.
    Raises ValueError for a `merge_px` that is negative or not finite.
    """
    if not (math.isfinite(merge_px) and merge_px >= 0):
        raise ValueError(f"merge_px: expected a finite number from 0, got {merge_px}")
    found = dict(matches)
    sides: dict[str, list[_Side]] = {}
    for pair, of_pair in found.items():
        for name, points in zip(pair, (of_pair.points0, of_pair.points1), strict=True):
            sides.setdefault(name, []).append(_Side(pair, points, of_pair.scores))
    keypoints: dict[str, NDArray[np.float32]] = {}
    ends: dict[tuple[str, Pair], NDArray[np.int64]] = {}
    for name, of_image in sides.items():
        keypoints[name], each = _merged(of_image, merge_px)
        ends |= {(name, side.pair): rows for side, rows in zip(of_image, each, strict=True)}
    rows, scores = {}, {}
    for pair, of_pair in found.items():
        both = np.stack([ends[name, pair] for name in pair], axis=1)
        kept = _one_to_one(both, of_pair.scores)
        rows[pair], scores[pair] = both[kept].astype(np.uint32), of_pair.scores[kept]
    return TiePoints(keypoints=keypoints, rows=rows, scores=scores)


def _merged(sides: list[_Side], merge_px: float) -> tuple[NDArray[np.float32], list[NDArray[np.int64]]]:
    """A photograph's keypoints (N, 2), and for each of its pairs the keypoint of each match."""
    points, scores = (np.concatenate(parts) for parts in zip(*((s.points, s.scores) for s in sides), strict=True))
    cells = np.floor(points / merge_px) if merge_px else points
    best_first = np.argsort(-scores, kind="stable")
    _, first, keypoint_of = np.unique(cells[best_first], axis=0, return_index=True, return_inverse=True)
    rows = np.empty(len(points), np.int64)
    rows[best_first] = keypoint_of.reshape(-1)
    return points[best_first[first]], np.split(rows, np.cumsum([len(side.points) for side in sides])[:-1])


def _one_to_one(rows: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Which matches to keep for every keypoint to be in one at most: the best, in their order."""
    kept = np.argsort(-scores, kind="stable")
    for side in (0, 1):
        _, first = np.unique(rows[kept, side], return_index=True)
        kept = kept[np.sort(first)]
    return np.sort(kept)
