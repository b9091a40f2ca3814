"""Keypoints that all pairs of a photograph share."""

import numpy as np
import pytest

from tiepoint.geometry import Matches
from tiepoint.sets.tie_points import tie_points

A, B, C = "a.jpg", "b.jpg", "c.jpg"


def matches(points0, points1, scores=None):
    points0, points1 = (np.array(points, np.float32).reshape(-1, 2) for points in (points0, points1))
    scores = np.ones(len(points0)) if scores is None else scores
    return Matches(
        points0=points0,
        points1=points1,
        scores=np.array(scores, np.float32),
        size0=(100, 80),
        size1=(100, 80),
        method="sift",
    )


def linked(points, pair):
    """The pair's matches as pairs of places."""
    return {
        tuple(tuple(points.keypoints[name][row].tolist()) for name, row in zip(pair, rows, strict=True))
        for rows in points.rows[pair].tolist()
    }


def test_equal_points_are_one_keypoint():
    found = {
        (A, B): matches([(1, 2), (3, 4)], [(5, 6), (7, 8)]),
        (A, C): matches([(3, 4), (9, 9)], [(0, 1), (2, 2)]),
    }
    points = tie_points(found.items(), 0)
    assert {name: len(of_image) for name, of_image in points.keypoints.items()} == {A: 3, B: 2, C: 2}
    assert linked(points, (A, B)) == {((1, 2), (5, 6)), ((3, 4), (7, 8))}
    assert linked(points, (A, C)) == {((3, 4), (0, 1)), ((9, 9), (2, 2))}


def test_points_of_a_cell_are_one_at_the_best_of_them():
    found = {
        (A, B): matches([(1, 1), (9, 9)], [(20, 20), (30, 30)], [0.5, 0.9]),
        (A, C): matches([(2.5, 3.5), (40, 40)], [(50, 50), (60, 60)], [0.8, 0.7]),
    }
    points = tie_points(found.items(), 4)
    assert linked(points, (A, B)) == {((2.5, 3.5), (20, 20)), ((9, 9), (30, 30))}
    assert linked(points, (A, C)) == {((2.5, 3.5), (50, 50)), ((40, 40), (60, 60))}


def test_a_keypoint_keeps_its_best_match():
    of_pair = matches([(1, 1), (2, 2), (9, 9)], [(0, 0), (50, 50), (50, 51)], [0.2, 0.6, 0.9])
    points = tie_points({(A, B): of_pair}.items(), 4)
    assert linked(points, (A, B)) == {((9, 9), (50, 51))}
    assert points.scores[A, B].tolist() == [np.float32(0.9)]


def test_a_pair_without_matches():
    points = tie_points({(A, B): matches([], []), (B, C): matches([(1, 1)], [(2, 2)])}.items(), 0)
    assert points.keypoints[A].shape == (0, 2)
    assert points.rows[A, B].shape == (0, 2)
    assert linked(points, (B, C)) == {((1, 1), (2, 2))}
    assert tie_points([], 4).keypoints == {}


@pytest.mark.parametrize("merge_px", [-1, float("nan"), float("inf")])
def test_a_cell_has_a_size(merge_px):
    with pytest.raises(ValueError, match="merge_px: expected a finite number"):
        tie_points([], merge_px)
