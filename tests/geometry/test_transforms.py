"""Transforms against cases worked by hand and against finite differences."""

import numpy as np
import pytest

from tiepoint.geometry import Transform, corner_errors, frame_corners

PERSPECTIVE = Transform(np.array([[1.1, 0.2, 30], [-0.1, 0.9, -12], [2e-4, -1e-4, 1]]))


def test_quarter_turn_about_a_centre():
    turn = Transform.from_parameters(rotation_deg=90, centre=(10, 20), shift_px=(1, 2))
    np.testing.assert_allclose(turn(np.array([[10, 20], [11, 20]])), [[11, 22], [11, 23]], atol=1e-12)


def test_inverse_and_composition_cancel():
    points = np.random.default_rng(0).uniform(0, 500, (50, 2))
    np.testing.assert_allclose(PERSPECTIVE.inverse()(PERSPECTIVE(points)), points, atol=1e-9)
    shift = Transform.from_parameters(shift_px=(5, -3))
    np.testing.assert_allclose((shift @ PERSPECTIVE)(points), shift(PERSPECTIVE(points)), atol=1e-9)
    assert (shift @ PERSPECTIVE).kind == "homography"
    assert (shift @ shift).kind == "similarity"


def test_residuals_are_distances_in_the_target():
    shift = Transform(np.array([[1, 0, 3.0], [0, 1, 4], [0, 0, 1]]), "translation")
    np.testing.assert_allclose(shift.residuals(np.zeros((1, 2)), np.zeros((1, 2))), [5])


def test_jacobian_equals_finite_differences():
    points = np.array([[10.0, 20], [300, 150]])
    step = 1e-5
    numeric = np.stack(
        [(PERSPECTIVE(points + d) - PERSPECTIVE(points - d)) / (2 * step) for d in step * np.eye(2)], axis=2
    )
    np.testing.assert_allclose(PERSPECTIVE.jacobian(points), numeric, rtol=1e-8)


def test_decomposition_gives_back_what_was_put_in():
    similarity = Transform.from_parameters(rotation_deg=-37, scale=1.7, shift_px=(8, 9), centre=(50, 60))
    parts = similarity.decompose(at=(50, 60))
    assert parts.rotation_deg == pytest.approx(-37)
    assert (parts.scale_x, parts.scale_y, parts.scale) == pytest.approx((1.7, 1.7, 1.7))
    assert parts.shift_px == pytest.approx((8, 9))
    assert parts.shear == pytest.approx(0)
    assert parts.perspective == (0, 0)


def test_decomposition_rebuilds_the_jacobian():
    parts = PERSPECTIVE.decompose(at=(40, 70))
    turn = np.deg2rad(parts.rotation_deg)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    upper = np.array([[parts.scale_x, parts.shear * parts.scale_y], [0, parts.scale_y]])
    np.testing.assert_allclose(rotation @ upper, PERSPECTIVE.jacobian(np.array([[40, 70.0]]))[0], atol=1e-12)


def test_a_mirrored_transform_has_negative_scale_y():
    assert Transform(np.diag([1.0, -1, 1]), "affine").decompose().scale_y == -1


def test_corner_error_of_a_shift_is_its_length():
    shift = Transform.from_parameters(shift_px=(3, 4))
    np.testing.assert_allclose(corner_errors(shift, Transform.identity(), (640, 480)), [5] * 4)
    np.testing.assert_array_equal(frame_corners((640, 480)), [[0, 0], [639, 0], [639, 479], [0, 479]])


@pytest.mark.parametrize(
    ("matrix", "kind", "message"),
    [
        (np.zeros((3, 3)), "homography", "invertible"),
        (np.full((3, 3), np.nan), "homography", "finite"),
        (np.eye(2), "affine", "shape"),
        (np.eye(3), "projective", "one of"),
        (PERSPECTIVE.matrix, "affine", "last row"),
    ],
)
def test_what_is_no_transform_raises(matrix, kind, message):
    with pytest.raises(ValueError, match=message):
        Transform(matrix, kind)
