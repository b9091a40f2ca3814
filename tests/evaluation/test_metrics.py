"""Every measure against a case worked by hand, and against kornia where that is installed."""

import numpy as np
import pytest

from tiepoint.evaluation.metrics import (
    SCORE_BINS,
    inside,
    keypoint_measures,
    matching_accuracy,
    matching_score,
    precision_recall,
    score_histogram,
    share_within,
    transfer_errors,
)
from tiepoint.evaluation.report import mean_of_known, mean_or_none
from tiepoint.geometry import Features, Transform, symmetric_epipolar_distance
from tiepoint.geometry.error_curve import auc


def test_auc_by_hand():
    # (0, 0), (1, 1/2), (3, 1), (4, 1): 1/4 + 3/2 + 1 = 2.75 of 4
    assert auc([3, 1], 4) == pytest.approx(2.75 / 4)
    # a failure never counts: (0, 0), (1, 1/2), (2, 1/2)
    assert auc([1, float("inf")], 2) == pytest.approx(0.75 / 2)
    assert auc([0, 0, 0], 5) == 1
    assert auc([float("inf")], 5) == 0
    assert np.isnan(auc([], 5))


def test_an_error_at_the_threshold_adds_no_area():
    assert auc([2.0, 2.0], 2) == auc([2.0001, 2.0001], 2) == 0


def test_shares_and_matching_accuracy_by_hand():
    assert share_within([0.5, 1, 3, float("inf")], 1) == 0.5
    errors = np.array([0.5, 1.0, 2.5, 20.0])
    assert matching_accuracy(errors, (1, 2, 3, 10)) == [0.5, 0.5, 0.75, 0.75]
    assert matching_accuracy(np.zeros(0), (1, 3)) == [0, 0]


def test_transfer_errors_by_hand():
    double = Transform(np.diag([2.0, 2, 1]))
    forward, backward = transfer_errors(double, np.array([[1.0, 1]]), np.array([[2.0, 5]]))
    assert forward == pytest.approx([3])
    assert backward == pytest.approx([1.5])


def test_a_point_on_the_horizon_is_infinitely_wrong():
    with_horizon = Transform(np.array([[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]]))
    forward, _ = transfer_errors(with_horizon, np.array([[10.0, 0]]), np.array([[0.0, 0]]))
    assert np.isinf(forward[0])


def test_inside_is_up_to_the_pixels_rims():
    points = np.array([[-0.5, 0], [-0.6, 0], [9.4, 4.4], [9.5, 0], [0, 4.5]])
    assert inside(points, (10, 5)).tolist() == [True, False, True, False, False]


def features(points, scores, size=(100, 100)):
    points = np.array(points, np.float32)
    return Features(
        keypoints=points,
        scores=np.array(scores, np.float32),
        descriptors=np.zeros((len(points), 2), np.float32),
        image_size=size,
    )


SHIFT = Transform.from_parameters(shift_px=(20, 0))


def test_repeatability_by_hand():
    """(90, 50) leaves image 1, (10, 10) is not in image 0: of 2 + 2 shared keypoints 1 + 1 repeat, 2 px apart."""
    first = features([[10, 50], [40, 50], [90, 50]], [1, 1, 1])
    second = features([[30, 52], [70, 80], [10, 10]], [1, 1, 1])
    measures = keypoint_measures(SHIFT, first, second)
    assert (measures.num_shared0, measures.num_shared1) == (2, 2)
    assert measures.repeatability == pytest.approx(0.5)
    assert measures.localization_px == pytest.approx(2)


def test_repeatability_counts_both_directions():
    """One keypoint of image 0 is near two of image 1: 1 of 1 there, 2 of 2 back."""
    measures = keypoint_measures(SHIFT, features([[10, 50]], [1]), features([[30, 51], [30, 47]], [1, 1]))
    assert measures.repeatability == 1
    assert measures.localization_px == pytest.approx((1 + 1 + 3) / 3)


def test_only_the_strongest_keypoints_count():
    first = features([[10, 50], [40, 50]], [0.1, 0.9])
    second = features([[60, 50], [30, 50]], [0.9, 0.1])
    assert keypoint_measures(SHIFT, first, second, top=1).repeatability == 1
    assert keypoint_measures(SHIFT, first, features([[60, 50], [30, 50]], [0.1, 0.9]), top=1).repeatability == 0


def test_nothing_shared_repeats_nothing():
    measures = keypoint_measures(SHIFT, features(np.zeros((0, 2)), []), features([[1, 1]], [1]))
    assert measures.repeatability == 0
    assert measures.localization_px is None


def test_matching_score_by_hand():
    assert matching_score(10, 20, 40) == pytest.approx((0.5 + 0.25) / 2)
    assert matching_score(0, 0, 5) == 0


def test_a_failure_lowers_a_merit_and_not_a_count():
    assert mean_or_none([0.8, None, 0.4, None]) == pytest.approx(0.3)
    assert mean_of_known([100, None, 300, None]) == 200
    assert mean_or_none([None, None]) is mean_of_known([None]) is mean_of_known([]) is None


def test_precision_recall_by_hand():
    """Scores 0.9 right, 0.7 wrong, 0.5 right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1."""
    every, right = score_histogram(np.array([0.9, 0.7, 0.5]), np.array([True, False, True]))
    assert sum(every) == 3
    assert sum(right) == 2
    recall, precision = precision_recall(np.array(every), np.array(right))
    points = sorted(set(zip(recall.round(6), precision.round(6), strict=True)))
    assert points == [(0.5, 0.5), (0.5, 1.0), (1.0, round(2 / 3, 6))]


def test_score_of_one_has_a_bin():
    every, _ = score_histogram(np.array([1.0, 0.0]), np.array([True, True]))
    assert (len(every), every[0], every[-1]) == (SCORE_BINS, 1, 1)


def test_agrees_with_kornia():
    torch = pytest.importorskip("torch")
    geometry = pytest.importorskip("kornia.geometry")
    rng = np.random.default_rng(0)
    matrix = np.array([[1.1, 0.1, -5], [-0.05, 0.9, 3], [1e-4, 2e-4, 1]])
    points0, points1 = rng.uniform(0, 100, (2, 50, 2))
    forward, backward = transfer_errors(Transform(matrix), points0, points1)
    tensors = [torch.from_numpy(values)[None] for values in (points0, points1, matrix)]
    theirs = geometry.homography.oneway_transfer_error(*tensors, squared=False)[0].numpy()
    np.testing.assert_allclose(forward, theirs, rtol=1e-4)
    both = geometry.homography.symmetric_transfer_error(*tensors, squared=True)[0].numpy()
    np.testing.assert_allclose(forward**2 + backward**2, both, rtol=1e-4)
    epipolar = geometry.epipolar.symmetrical_epipolar_distance(*tensors)[0].numpy()
    np.testing.assert_allclose(symmetric_epipolar_distance(matrix, points0, points1), epipolar, rtol=1e-3)
