"""The descriptor's losses against cases worked by hand."""

import math

import pytest
import torch

from tiepoint.matchers.superpoint import sample_descriptors
from tiepoint.training.description import choose_points, hinge, info_nce, sample_batch, sparse_hinge
from tiepoint.training.warps import transform_points

FAR = torch.tensor([[[0.0, 0.0], [100.0, 0.0]]])
KEPT = torch.ones(1, 2, dtype=torch.bool)
AXES = torch.eye(2)[None]


def nce(descriptors1: torch.Tensor, points1: torch.Tensor = FAR, kept: torch.Tensor = KEPT) -> float:
    loss = info_nce(AXES, descriptors1, FAR, points1, kept, temperature=0.5, clear_px=10.0)
    return float(loss)


def test_info_nce_by_hand():
    # Similarities / temperature: 2 on the diagonal, 0 off it, in rows and columns alike.
    assert nce(AXES) == pytest.approx(math.log(1 + math.exp(-2)))
    assert nce(AXES.flip(1)) == pytest.approx(math.log(1 + math.exp(2)))


def test_info_nce_leaves_neighbours_and_what_does_not_count_out():
    close = torch.tensor([[[0.0, 0.0], [5.0, 0.0]]])
    assert nce(AXES, points1=close) == 0
    assert nce(AXES.flip(1), kept=torch.tensor([[True, False]])) == 0  # its only rival does not count
    assert nce(AXES, kept=torch.zeros(1, 2, dtype=torch.bool)) == 0


def test_info_nce_teaches():
    torch.manual_seed(0)
    maps = torch.randn(2, 8, 16, requires_grad=True)
    points = torch.rand(2, 8, 2) * 500
    kept = torch.ones(2, 8, dtype=torch.bool)
    unit = torch.nn.functional.normalize(torch.randn(2, 8, 16), dim=-1)
    for _ in range(100):
        d = torch.nn.functional.normalize(maps, dim=-1)
        loss = info_nce(d, unit, points, points, kept, temperature=0.1, clear_px=1.0)
        (gradient,) = torch.autograd.grad(loss, maps)
        maps = (maps - 20 * gradient).detach().requires_grad_()
    assert loss < 0.02


def test_hinge_by_hand():
    # Two cells side by side, 8 px apart; the second view is moved by 16 px: only cell 0 of view 1 sees what
    # lies beyond. With the identity every cell is the same as itself, and as its neighbour at exactly 8 px.
    map0 = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T.reshape(1, 2, 1, 2)
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    identity = torch.eye(3)[None]
    near = hinge(map0, map0, identity, valid, valid, positive_weight=3.0, radius_px=4.0)
    assert near.item() == pytest.approx(0.0)
    wide = hinge(map0, map0, identity, valid, valid, positive_weight=3.0, radius_px=8.0)
    assert wide.item() == pytest.approx((3 + 3) / 4)  # two of four pairs ask for similarity and have none
    same = torch.ones(1, 2, 1, 2) / math.sqrt(2)
    alike = hinge(same, same, identity, valid, valid, positive_weight=3.0, radius_px=4.0)
    assert alike.item() == pytest.approx(2 * 0.8 / 4)
    half = valid.clone()
    half[0, 0, 1] = False
    counted = hinge(same, same, identity, valid, half, positive_weight=3.0, radius_px=4.0)
    assert counted.item() == pytest.approx(0.8 / 2)


def test_sparse_hinge_by_hand():
    generator = torch.Generator().manual_seed(0)
    same = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    loss = sparse_hinge(same, same, FAR, FAR, KEPT, generator, num_negatives=50)
    assert loss.item() == pytest.approx(0.8)  # partners agree; every other is at cosine 1, 0.8 over the margin
    assert sparse_hinge(AXES, AXES, FAR, FAR, KEPT, generator).item() == 0
    close = torch.tensor([[[0.0, 0.0], [5.0, 0.0]]])
    # The flaw of the public code: a neighbour, or the partner itself, drawn as a negative.
    assert sparse_hinge(same, same, close, close, KEPT, generator).item() == 0
    against = sparse_hinge(AXES, -AXES, FAR, FAR, KEPT, generator).item()
    assert against == pytest.approx(2.0)


def test_sampling_is_the_matchers_own():
    torch.manual_seed(1)
    maps = torch.nn.functional.normalize(torch.randn(2, 16, 5, 7), dim=1)
    points = torch.rand(2, 40, 2) * torch.tensor([55.0, 39.0])
    for row in range(2):
        expected = sample_descriptors(maps[row], points[row], "exact")
        torch.testing.assert_close(sample_batch(maps, points)[row], expected, atol=1e-5, rtol=1e-5)


def test_chosen_points_are_seen_in_both_views_keypoints_first():
    generator = torch.Generator().manual_seed(0)
    H = torch.tensor([[[1.0, 0, 20], [0, 1, 0], [0, 0, 1]]])
    keypoints = torch.full((1, 12, 2), math.nan)
    keypoints[0, :8] = torch.tensor([[float(10 + i), 10.0] for i in range(8)])
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    valid1 = valid.clone()
    valid1[0, :, 34:36] = False
    points0, points1, kept = choose_points(keypoints, H, valid, valid1, 20, generator)
    torch.testing.assert_close(points1, transform_points(H, points0))
    assert kept.all()
    assert (points0 >= 4).all()
    assert (points1 <= 59).all()
    columns = points1[0, :, 0].round()
    assert not ((columns == 34) | (columns == 35)).any()
    from_keypoints = (points0[0, :, 1] == 10) & (points0[0, :, 0] == points0[0, :, 0].round())
    assert 2 <= from_keypoints.sum() <= 6  # three of four of the six that are seen in both, give or take


def test_nothing_shared_counts_nothing():
    H = torch.tensor([[[1.0, 0, 500], [0, 1, 0], [0, 0, 1]]])
    valid = torch.ones(1, 32, 32, dtype=torch.bool)
    nothing = torch.full((1, 3, 2), math.nan)
    *_, kept = choose_points(nothing, H, valid, valid, 10, torch.Generator())
    assert not kept.any()
