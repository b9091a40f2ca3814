"""Every model is recovered from noisy matches with outliers; every failure says why."""

import re

import numpy as np
import pytest

from tiepoint.estimation import fit, fit_pose, fit_transform, point_covariance
from tiepoint.estimation.refine import to_pixels
from tiepoint.geometry import KINDS, EpipolarGeometry, Matches, RelativePose, Transform, corner_errors

SIZE = (640, 480)
TRUTHS = {
    "translation": np.array([[1, 0, 31.5], [0, 1, -12.25], [0, 0, 1]]),
    "euclidean": Transform.from_parameters(rotation_deg=25, shift_px=(40, -9)).matrix,
    "similarity": Transform.from_parameters(rotation_deg=-140, scale=1.4, centre=(300, 200)).matrix,
    "affine": np.array([[1.2, 0.3, -20], [-0.1, 0.8, 35], [0, 0, 1]]),
    "homography": np.array([[1.1, 0.2, 30], [-0.1, 0.9, -12], [4e-4, -3e-4, 1]]),
}


def matches_of(transform, *, count=400, outliers=0.4, noise_px=0.5, seed=0):
    rng = np.random.default_rng(seed)
    points0 = rng.uniform((0, 0), SIZE, (count, 2))
    points1 = transform(points0) + rng.normal(0, noise_px, (count, 2))
    wrong = rng.permutation(count)[: int(outliers * count)]
    points1[wrong] = rng.uniform((0, 0), SIZE, (len(wrong), 2))
    return as_matches(points0, points1), wrong


def as_matches(points0, points1):
    return Matches(
        points0=np.asarray(points0, np.float32).reshape(-1, 2),
        points1=np.asarray(points1, np.float32).reshape(-1, 2),
        scores=np.ones(len(points0), np.float32),
        size0=SIZE,
        size1=SIZE,
        method="test",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_recovered_from_forty_percent_outliers(kind):
    truth = Transform(TRUTHS[kind], kind)
    matches, wrong = matches_of(truth)
    estimate = fit(matches, kind)
    assert estimate
    assert estimate.model.kind == kind
    assert corner_errors(estimate.model, truth, SIZE).max() < 0.5
    right = np.ones(len(matches), bool)
    right[wrong] = False
    assert (estimate.inliers & right).sum() > 0.98 * right.sum()
    np.testing.assert_array_equal(estimate.inliers, estimate.residuals_px <= estimate.threshold_px)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_matches_give_the_exact_transform_also_far_from_the_origin(kind):
    truth = Transform(TRUTHS[kind], kind)
    points0 = np.random.default_rng(3).uniform((0, 0), SIZE, (60, 2)).astype(np.float32).astype(float)
    estimate = fit_transform(as_matches(points0, truth(points0)), kind)
    assert corner_errors(estimate.model, truth, SIZE).max() < 1e-3  # float32 points


@pytest.mark.parametrize("kind", KINDS)
def test_the_simplest_kind_that_explains_the_matches_is_chosen(kind):
    chosen = [fit(matches_of(Transform(TRUTHS[kind], kind), seed=s)[0], "transform").model.kind for s in range(10)]
    assert chosen.count(kind) >= 9, chosen


@pytest.mark.parametrize("kind", KINDS)
def test_the_covariance_is_that_of_repeated_fits(kind):
    truth = Transform(TRUTHS[kind], kind)
    corners = np.array([[0.0, 0], [639, 0], [639, 479], [0, 479]])
    errors, claimed = [], []
    for seed in range(120):
        estimate = fit_transform(matches_of(truth, count=120, outliers=0.2, seed=seed)[0], kind)
        errors.append(estimate.model(corners) - truth(corners))
        claimed.append(point_covariance(estimate.model, estimate.covariance, corners))
    seen = np.mean(np.square(errors), axis=0).sum()
    told = np.trace(np.mean(claimed, axis=0).sum(0))
    assert told == pytest.approx(seen, rel=0.35)


def test_the_same_seed_gives_the_same_answer():
    matches, _ = matches_of(Transform(TRUTHS["homography"]), outliers=0.7)
    first, second = fit(matches, "homography", seed=5), fit(matches, "homography", seed=5)
    np.testing.assert_array_equal(first.model.matrix, second.model.matrix)


def scene(count=400, outliers=0.3, planar=False, seed=0):
    rng = np.random.default_rng(seed)
    k = np.array([[800.0, 0, 320], [0, 800, 240], [0, 0, 1]])
    world = rng.uniform([-2, -1.5, 4], [2, 1.5, 10], (count, 3))
    if planar:
        world[:, 2] = 6 + 0.3 * world[:, 0]
    a = np.deg2rad(8)
    rotation = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    pose = RelativePose(rotation, np.array([1, 0, 0.1]) / np.sqrt(1.01), k, k)
    points0, points1 = world @ k.T, (world @ rotation.T + pose.translation) @ k.T
    points0, points1 = (p[:, :2] / p[:, 2:] + rng.normal(0, 0.3, (count, 2)) for p in (points0, points1))
    wrong = rng.permutation(count)[: int(outliers * count)]
    points1[wrong] = rng.uniform((0, 0), SIZE, (len(wrong), 2))
    return as_matches(points0, points1), pose


def test_fundamental_matrix_and_pose_of_a_scene_with_depth():
    matches, pose = scene()
    estimate = fit(matches, "fundamental")
    clean, _ = scene(outliers=0)
    assert np.median(estimate.model.residuals(clean.points0, clean.points1)) < 0.5
    posed = fit_pose(matches, pose.intrinsics0, pose.intrinsics1)
    assert posed.iterations > 0
    assert np.degrees(np.arccos(np.clip(posed.model.translation @ pose.translation, -1, 1))) < 2


def test_depth_asks_for_epipolar_geometry_and_a_plane_for_a_transform():
    for seed in range(5):
        assert isinstance(fit(scene(seed=seed)[0]).model, EpipolarGeometry)
        assert isinstance(fit(scene(planar=True, seed=seed)[0]).model, Transform)


LINE = np.stack([np.linspace(0, 600, 50), 0.5 * np.linspace(0, 600, 50)], axis=1)
RANDOM = np.random.default_rng(1).uniform((0, 0), SIZE, (2, 60, 2))


@pytest.mark.parametrize(
    ("points0", "points1", "model", "reason"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2)), "homography", "too few"),
        (RANDOM[0, :3], RANDOM[0, :3], "homography", "too few"),
        (RANDOM[0, :2], RANDOM[0, :2], "affine", "too few"),
        (np.ones((50, 2)), np.ones((50, 2)), "affine", "too few"),
        (LINE, LINE + 3, "affine", "collinear|no consensus"),
        (LINE, LINE + 3, "homography", "collinear|no consensus"),
        (RANDOM[0], (640, 0) + RANDOM[0] * (-1, 1), "homography", "mirrored|no consensus"),
        (RANDOM[0], (640, 0) + RANDOM[0] * (-1, 1), "affine", "mirrored|no consensus"),
        (RANDOM[0, :7], RANDOM[1, :7], "fundamental", "too few"),
    ],
)
def test_failures_are_falsy_and_say_why(points0, points1, model, reason):
    estimate = fit(as_matches(points0, points1), model)
    assert not estimate
    assert estimate.model is None
    assert not estimate.inliers.any()
    assert re.search(reason, estimate.reason), estimate.reason


@pytest.mark.parametrize("model", ["auto", "transform", *KINDS, "fundamental"])
def test_random_matches_find_next_to_no_inliers(model):
    estimate = fit(as_matches(*RANDOM), model)
    assert not estimate or estimate.num_inliers < 25


def test_a_horizon_through_the_first_pixel_is_a_failure_and_no_exception():
    """Least squares over these points of a coarse lattice ends there: the matrix cannot have the last entry 1."""
    rng = np.random.default_rng(882)
    points0, points1 = 80 * rng.integers(0, 8, (40, 2)), 80 * rng.integers(0, 8, (40, 2))
    estimate = fit(as_matches(points0, points1), "homography")
    assert not estimate
    assert "no finite transform" in estimate.reason


def test_a_matrix_whose_last_entry_cannot_be_1_is_refused():
    frame0 = np.array([[1, 0, -1.0], [0, 1, 0], [0, 0, 1]])  # x' = x - 1, and the horizon at x' = -1
    with pytest.raises(ValueError, match="horizon"):
        to_pixels(np.array([1.0, 0, 0, 0, 1, 0, 1, 0]), np.eye(8), "homography", np.eye(3), frame0)


def test_bad_arguments_raise():
    matches, _ = matches_of(Transform(TRUTHS["affine"]))
    with pytest.raises(ValueError, match="positive"):
        fit(matches, "affine", threshold_px=0)
    with pytest.raises(ValueError, match="expected auto"):
        fit(matches, "projective")
