"""Epipolar geometry against cameras made by hand."""

import numpy as np
import pytest

from tiepoint.geometry import (
    RelativePose,
    direction_error_deg,
    rotation_error_deg,
    sampson_distance,
    symmetric_epipolar_distance,
)

K = np.array([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]])


def turn_y(degrees):
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])


def project(points, rotation, translation):
    x = (points @ rotation.T + translation) @ K.T
    return x[:, :2] / x[:, 2:]


def test_true_points_have_no_distance_and_swapping_images_transposes():
    scene = np.random.default_rng(0).uniform([-2, -2, 4], [2, 2, 9], (40, 3))
    pose = RelativePose(turn_y(10), np.array([0.9, 0.1, 0.2]), K, K)
    points0 = project(scene, np.eye(3), np.zeros(3))
    points1 = project(scene, pose.rotation, pose.translation)
    assert pose.residuals(points0, points1).max() < 1e-9
    assert pose.epipolar.inverse().residuals(points1, points0).max() < 1e-9


def test_sideways_motion_distances_by_hand():
    """Pure x translation: the epipolar lines are rows, so a point 3 rows off is 3 px from its line in each image."""
    pose = RelativePose(np.eye(3), np.array([1.0, 0, 0]), K, K)
    points0, points1 = np.array([[100.0, 50]]), np.array([[140.0, 53]])
    assert symmetric_epipolar_distance(pose.epipolar.matrix, points0, points1)[0] == pytest.approx(9 + 9)
    assert sampson_distance(pose.epipolar.matrix, points0, points1)[0] == pytest.approx(3 / np.sqrt(2))


def test_angles():
    assert rotation_error_deg(turn_y(30), turn_y(12)) == pytest.approx(18)
    assert rotation_error_deg(turn_y(30), turn_y(30)) == 0
    assert rotation_error_deg(turn_y(180), np.eye(3)) == pytest.approx(180)
    assert direction_error_deg(np.array([1, 0, 0]), np.array([-2, 2, 0])) == pytest.approx(45)
