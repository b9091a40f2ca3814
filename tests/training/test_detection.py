"""The detector's labels, loss and measures against cases worked by hand."""

import math

import pytest
import torch

from tiepoint.matchers.superpoint import keypoint_probability
from tiepoint.training.detection import (
    IGNORED,
    NO_KEYPOINT,
    average_precision,
    cell_labels,
    detections,
    detector_loss,
    reprojection_loss,
)
from tiepoint.training.magicpoint import untrained

SIZE = (16, 24)


def labels_of(points: list[list[float]], valid: torch.Tensor | None = None, seed: int = 0) -> torch.Tensor:
    valid = torch.ones(1, *SIZE, dtype=torch.bool) if valid is None else valid
    return cell_labels(torch.tensor([points]).reshape(1, -1, 2), SIZE, valid, torch.Generator().manual_seed(seed))[0]


def test_labels_by_hand():
    nan = math.nan
    labels = labels_of([[0.0, 0.0], [9.4, 2.0], [23.0, 15.0], [nan, nan], [24.0, 3.0], [-0.6, 3.0]])
    assert labels.tolist() == [[0, 2 * 8 + 1, NO_KEYPOINT], [NO_KEYPOINT, NO_KEYPOINT, 63]]


def corner_logits(x: int, y: int) -> torch.Tensor:
    """(1, 65, 4, 4) of a keypoint at (x, y), half of it one pixel to the right."""
    logits = torch.zeros(1, 65, 4, 4)
    logits[:, NO_KEYPOINT] = 12.0
    cell = logits[0, :, y // 8, x // 8]
    cell[[y % 8 * 8 + x % 8, y % 8 * 8 + x % 8 + 1]] = 20.0
    return logits


def translation(x: float, y: float) -> torch.Tensor:
    return torch.tensor([[[1.0, 0, x], [0, 1, y], [0, 0, 1]]])


@pytest.mark.parametrize(("shift", "distance"), [((8, 0), 0.0), ((9, 0), 1.0), ((7.5, 0.25), 0.75), ((15, 0), 0.0)])
def test_reprojection_is_the_distance_of_refined_keypoints(shift, distance):
    # The keypoint moves by (8, 0); by the last shift they are too far apart to be the same, and nothing counts.
    everywhere = torch.ones(1, 32, 32, dtype=torch.bool)
    loss = reprojection_loss(corner_logits(11, 12), corner_logits(19, 12), everywhere, translation(*shift))
    assert loss.item() == pytest.approx(distance, abs=2e-3)


def test_reprojection_moves_a_keypoint_to_where_it_belongs():
    logits0, logits1 = corner_logits(11, 12), corner_logits(19, 12).requires_grad_()
    everywhere = torch.ones(1, 32, 32, dtype=torch.bool)
    reprojection_loss(logits0, logits1, everywhere, translation(8.3, 0)).backward()
    gradient = logits1.grad[0, :, 12 // 8, 19 // 8]
    left, right = 12 % 8 * 8 + 19 % 8, 12 % 8 * 8 + 19 % 8 + 1
    assert gradient[right] < 0 < gradient[left]


def test_reprojection_without_keypoints_is_zero():
    nothing = torch.zeros(1, 65, 4, 4)
    nothing[:, NO_KEYPOINT] = 20.0
    everywhere = torch.ones(1, 32, 32, dtype=torch.bool)
    nowhere = torch.zeros(1, 32, 32, dtype=torch.bool)
    assert reprojection_loss(nothing, nothing, everywhere, translation(0, 0)) == 0
    assert reprojection_loss(corner_logits(11, 12), corner_logits(11, 12), nowhere, translation(0, 0)) == 0


def test_a_label_is_where_the_decoder_puts_it():
    labels = labels_of([[13.0, 6.0]])
    logits = torch.nn.functional.one_hot(labels, 65).permute(2, 0, 1)[None] * 20.0
    ((points, scores),) = detections(logits, radius_px=2, threshold=0.5)
    assert points.tolist() == [[13.0, 6.0]]
    assert scores[0] > 0.99
    assert keypoint_probability(logits)[0, 6, 13] > 0.99


def test_of_two_keypoints_in_a_cell_each_has_its_chance():
    drawn = [int(labels_of([[1.0, 0.0], [6.0, 0.0]], seed=seed)[0, 0]) for seed in range(60)]
    assert set(drawn) == {1, 6}
    assert 15 < drawn.count(1) < 45


def test_a_cell_with_one_invalid_pixel_does_not_count():
    valid = torch.ones(1, *SIZE, dtype=torch.bool)
    valid[0, 15, 8] = False
    labels = labels_of([[9.0, 9.0]], valid)
    assert labels.tolist() == [[NO_KEYPOINT] * 3, [NO_KEYPOINT, IGNORED, NO_KEYPOINT]]


def test_no_points_at_all():
    assert (labels_of([]) == NO_KEYPOINT).all()


def test_loss_by_hand():
    labels = torch.tensor([[[5, IGNORED]]])
    logits = torch.zeros(1, 65, 1, 2)
    assert detector_loss(logits, labels).item() == pytest.approx(math.log(65))
    logits[0, 5, 0, 0] = math.log(64)  # probability one half
    assert detector_loss(logits, labels).item() == pytest.approx(math.log(2), abs=1e-6)
    assert detector_loss(logits, torch.full((1, 1, 2), IGNORED)).item() == 0


def test_an_untrained_detector_knows_the_odds():
    torch.manual_seed(0)
    network = untrained(32)
    with torch.no_grad():
        probability = network(torch.rand(4, 1, 64, 64)).logits.softmax(1)[:, :-1].sum(1)
    assert 0.03 < probability.mean() < 0.25


def test_average_precision_by_hand():
    points = torch.tensor([[10.0, 10.0], [10.0, 11.0], [50.0, 50.0], [30.0, 30.0]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    corners = torch.tensor([[10.0, 10.0], [30.0, 33.0], [70.0, 70.0]])
    # Right, wrong (its corner is taken), wrong, right 3 px off: precision 1 and 1/2 at the two, of three corners.
    area, error = average_precision([(points, scores)], [corners], distance_px=4)
    assert area == pytest.approx((1 + 0.5) / 3)
    assert error == pytest.approx(1.5)


def test_average_precision_of_nothing():
    nothing = (torch.zeros(0, 2), torch.zeros(0))
    area, error = average_precision([nothing], [torch.zeros(3, 2)], distance_px=4)
    assert area == 0
    assert math.isnan(error)
