"""Nearest neighbours between two sets of descriptors: exact in blocks, or approximate by FLANN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Features
from tiepoint.matchers.base import IndexMatches

NO_MATCHES = IndexMatches(np.zeros((0, 2), np.int64), np.zeros(0, np.float32))

_BLOCK_ROWS = 512  # 512 x 4096 similarities are 8 MB: they stay in the cache between product and maxima


@dataclass(frozen=True, kw_only=True)
class NearestNeighbours:
    """Exact mutual nearest neighbours by Euclidean distance; of bits (uint8), the root of Hamming's.

    ratio: keep a match if its distance is below `ratio` times that to the second nearest in image 1 (Lowe 2004,
        section 7.1; 0.85 is 0.72 of Hamming's distance); None leaves the test out.
    """

    ratio: float | None = 0.85

    def match_features(self, features0: Features, features1: Features) -> IndexMatches:
        """Rows that are each other's nearest; fewer than two descriptors on a side match nothing.

        Scores are 1 - (nearest / second nearest distance) with the ratio test, the cosine similarity without.
        """
        d0, d1 = as_vectors(features0.descriptors), as_vectors(features1.descriptors)
        if len(d0) < 2 or len(d1) < 2:
            return NO_MATCHES
        best, distance, second, nearest_to1, _ = _two_nearest(d0, d1, np.arange(len(d1))[:, None])
        rows = np.flatnonzero(nearest_to1[best] == np.arange(len(d0)))
        if self.ratio is None:
            norms = np.linalg.norm(d0[rows], axis=1) * np.linalg.norm(d1[best[rows]], axis=1)
            cosine = np.einsum("nd,nd->n", d0[rows], d1[best[rows]]) / np.maximum(norms, 1e-12)
            return _index_matches(rows, best[rows], np.clip(cosine, 0, 1))
        ratios = np.divide(distance, second, out=np.ones_like(second), where=second > 0)
        rows = rows[ratios[rows] < self.ratio]
        return _index_matches(rows, best[rows], 1 - ratios[rows])


@dataclass(frozen=True, kw_only=True)
class NearestKeypoints:
    """Exact mutual nearest neighbours among keypoints of several descriptors, one for each likely orientation.

    Features at one position are one keypoint. Two keypoints are as far apart as their nearest descriptors, and each
    matches at most once.

    ratio: as in `NearestNeighbours`, the second nearest being another keypoint.
    """

    ratio: float = 0.95

    def match_features(self, features0: Features, features1: Features) -> IndexMatches:
        """The rows that make keypoints each other's nearest; fewer than two keypoints on a side match nothing.

        Scores are 1 - (nearest / second nearest distance).
        """
        keypoint0, keypoint1 = _keypoint_numbers(features0), _keypoint_numbers(features1)
        if len(np.unique(keypoint0)) < 2 or len(np.unique(keypoint1)) < 2:
            return NO_MATCHES
        d0, d1 = as_vectors(features0.descriptors), as_vectors(features1.descriptors)
        best, distance, second, nearest_to1, distance_to1 = _two_nearest(d0, d1, _fellows(keypoint1))
        row = _least_rows(keypoint0, distance)
        found = keypoint1[best[row]]
        found_by = keypoint0[nearest_to1[_least_rows(keypoint1, distance_to1)]]
        # A row whose nearest is another keypoint than its fellows' has its keypoint's second nearest there.
        apart = np.where(keypoint1[best] == found[keypoint0], second, distance)
        runner_up = apart[_least_rows(keypoint0, apart)]
        ratios = np.divide(distance[row], runner_up, out=np.ones_like(runner_up), where=runner_up > 0)
        kept = np.flatnonzero((found_by[found] == np.arange(len(row))) & (ratios < self.ratio))
        return _index_matches(row[kept], best[row[kept]], 1 - ratios[kept])


def _keypoint_numbers(features: Features) -> NDArray[np.int64]:
    """(N,) one number from 0 for each distinct position."""
    return np.unique(features.keypoints, axis=0, return_inverse=True)[1].reshape(-1)


def _fellows(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, m) for each row those of its number, itself among them, repeated where they are fewer than others'."""
    counts = np.bincount(numbers)
    first = np.cumsum(counts) - counts
    places = np.minimum(np.arange(counts.max()), counts[:, None] - 1)
    rows: NDArray[np.int64] = np.argsort(numbers, kind="stable")[first[:, None] + places]
    return rows[numbers]


def _least_rows(numbers: NDArray[np.int64], values: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each number from 0 the row that has it and the least of `values`."""
    order = np.lexsort((values, numbers))
    return order[np.unique(numbers[order], return_index=True)[1]]


@dataclass(frozen=True, kw_only=True)
class Flann:
    """Approximate mutual nearest neighbours by FLANN: KD-trees for float, LSH for binary descriptors.

    Below some ten thousand descriptors the exact search is as fast and misses nothing. Settings are those of
    OpenCV's tutorials: 5 trees and 50 checks; 6 tables, keys of 12 bits, one probe.
    """

    ratio: float = 0.85

    def match_features(self, features0: Features, features1: Features) -> IndexMatches:
        """Like `NearestNeighbours.match_features`, except that some neighbours are missed."""
        d0, d1 = features0.descriptors, features1.descriptors
        if len(d0) < 2 or len(d1) < 2:
            return NO_MATCHES
        forward, backward = self._search(d0, d1), self._search(d1, d0)
        kept = [(row, best, ratio) for row, (best, ratio) in forward.items() if backward.get(best, (-1,))[0] == row]
        kept = [match for match in kept if match[2] < self.ratio]
        if not kept:
            return NO_MATCHES
        rows, best, ratios = (np.array(column) for column in zip(*kept, strict=True))
        return _index_matches(rows, best, 1 - ratios)

    @staticmethod
    def _search(queries: NDArray[Any], train: NDArray[Any]) -> dict[int, tuple[int, float]]:
        """Query row -> nearest train row and ratio to the second; LSH may find fewer than two: left out."""
        kd_tree, lsh = 1, 6
        index: dict[str, bool | int | float | str]
        if queries.dtype == np.uint8:
            index = {"algorithm": lsh, "table_number": 6, "key_size": 12, "multi_probe_level": 1}
        else:
            index = {"algorithm": kd_tree, "trees": 5}
        cv2.setRNGSeed(0)  # the trees are random
        matcher = cv2.FlannBasedMatcher(index, {"checks": 50})
        found = matcher.knnMatch(queries, train, k=2)
        pairs = [pair for pair in found if len(pair) == 2]
        distance, second = np.array([[neighbour.distance for neighbour in pair] for pair in pairs]).reshape(-1, 2).T
        ratios = np.divide(distance, second, out=np.ones_like(second), where=second > 0)
        if queries.dtype == np.uint8:  # FLANN's is Hamming's distance
            ratios = np.sqrt(ratios)
        return {pair[0].queryIdx: (pair[0].trainIdx, float(ratio)) for pair, ratio in zip(pairs, ratios, strict=True)}


def as_vectors(descriptors: NDArray[Any]) -> NDArray[np.float32]:
    """Descriptors as (N, D) float32; bits become ±1, so that squared distances are 4 times Hamming's."""
    if descriptors.dtype == np.uint8:
        return np.unpackbits(descriptors, axis=1).astype(np.float32) * 2 - 1
    return descriptors.astype(np.float32, copy=False)


def _two_nearest(
    d0: NDArray[np.float32], d1: NDArray[np.float32], fellows1: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """For each row of d0: nearest row of d1, distance, distance to the second nearest; for each row of d1: nearest row
    of d0, distance.

    fellows1: (len(d1), m) rows of the same keypoint as each row of d1, which are not taken for second nearest.
    """
    square0, square1 = (d0**2).sum(1), (d1**2).sum(1)
    count0, count1 = len(d0), len(d1)
    best, distances = np.empty(count0, np.int64), np.empty((2, count0), np.float32)
    column_least, column_row = np.full(count1, np.inf, np.float32), np.zeros(count1, np.int64)
    for start in range(0, count0, _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, count0))
        square = square0[rows, None] + square1 - 2 * (d0[rows] @ d1.T)
        in_block = np.arange(len(square))
        least_row = square.argmin(axis=0)
        least = square[least_row, np.arange(count1)]
        better = least < column_least
        column_least[better], column_row[better] = least[better], start + least_row[better]
        nearest = square.argmin(axis=1)
        best[rows], distances[0, rows] = nearest, square[in_block, nearest]
        square[in_block[:, None], fellows1[nearest]] = np.inf
        distances[1, rows] = square.min(axis=1)
    distance, second = np.sqrt(np.maximum(distances, 0))
    return best, distance, second, column_row, np.sqrt(np.maximum(column_least, 0))


def _index_matches(rows: NDArray[Any], columns: NDArray[Any], scores: NDArray[Any]) -> IndexMatches:
    return IndexMatches(np.stack([rows, columns], axis=1).astype(np.int64), scores.astype(np.float32))
