"""Views and the homographies said to relate them: a picture whose grey is a known function of place tells."""

import math

import pytest
import torch

from tiepoint.training.warps import (
    WarpConfig,
    inside,
    pixel_grid,
    render,
    sample_homographies,
    transform_points,
)

SIDE, SIZE = 160, (48, 64)
STRONG = WarpConfig(rotation_deg=180, scale=1.8, perspective=0.5, shear=0.2, translation=0.1)


def ramp(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.1 + (0.5 * x + 0.3 * y) / SIDE


def ramps(count: int) -> torch.Tensor:
    x, y = pixel_grid((SIDE, SIDE), torch.device("cpu")).unbind(-1)
    return ramp(x, y).reshape(1, 1, SIDE, SIDE).expand(count, -1, -1, -1)


def matrices(count: int, config: WarpConfig, span_px: float, seed: int = 0) -> torch.Tensor:
    middle = torch.full((count, 2), (SIDE - 1) / 2)
    return sample_homographies(config, middle, span_px, SIZE, torch.Generator().manual_seed(seed))


def test_points_by_hand():
    H = torch.tensor([[[2.0, 0, 1], [0, 2, 0], [0, 0.5, 1]]])
    points = torch.tensor([[[3.0, 2.0], [0.0, -4.0]]])
    mapped = transform_points(H, points)
    torch.testing.assert_close(mapped[0, 0], torch.tensor([3.5, 2.0]))
    assert mapped[0, 1].isnan().all()  # behind the camera


def test_no_change_is_the_picture_itself():
    still = WarpConfig(rotation_deg=0, scale=1, perspective=0, shear=0, translation=0)
    middle = torch.full((1, 2), (SIDE - 1) / 2)
    H = sample_homographies(still, middle, SIDE, (SIDE, SIDE), torch.Generator())
    torch.testing.assert_close(H[0], torch.eye(3), atol=1e-5, rtol=0)
    assert STRONG.at(0.0) == still
    picture = torch.rand(1, 1, SIDE, SIDE)
    view = render(picture, H, (SIDE, SIDE), torch.zeros(1))
    torch.testing.assert_close(view.images, picture, atol=1e-3, rtol=0)


@pytest.mark.parametrize("span_px", [40.0, 150.0])  # with and without halving
def test_a_view_shows_at_each_pixel_what_its_matrix_says(span_px):
    H = matrices(12, STRONG, span_px)
    views = render(ramps(12), H, SIZE, torch.full((12,), 0.7))
    seen = transform_points(H, pixel_grid(SIZE, H.device).expand(12, -1, -1))
    expected = ramp(*seen.unbind(-1)).reshape(12, 1, *SIZE)
    # Halved pictures repeat their outermost pixels: compare a little inside.
    well_inside = inside(seen, (SIDE, SIDE), 8.0).reshape(12, *SIZE)
    assert well_inside.float().mean() > 0.3
    assert (views.images - expected)[:, 0][well_inside].abs().max() < 2e-3
    assert (views.images[:, 0][~views.valid] == 0.7).all()
    assert (views.valid | ~well_inside).all()


def test_two_views_agree_by_the_product_of_their_matrices():
    H0, H1 = matrices(8, STRONG, 60.0, seed=1), matrices(8, STRONG, 60.0, seed=2)
    views = [render(ramps(8), H, SIZE, torch.zeros(8)) for H in (H0, H1)]
    H_1_from_0 = torch.linalg.inv(H1) @ H0
    points0 = pixel_grid(SIZE, H0.device).expand(8, -1, -1)
    points1 = transform_points(H_1_from_0, points0)
    grid = (2 * (points1 + 0.5) / torch.tensor([SIZE[1], SIZE[0]]) - 1).nan_to_num(-2.0)[:, None]
    found = torch.nn.functional.grid_sample(views[1].images, grid, align_corners=False)[:, 0, 0]
    both = inside(points1, SIZE, 1.0) & views[0].valid.flatten(1)
    both &= inside(transform_points(H0, points0), (SIDE, SIDE), 8.0)
    assert both.sum() > 1000
    assert (found - views[0].images.flatten(1))[both].abs().max() < 3e-3


def test_warps_stay_within_their_ranges_and_reach_them():
    config = WarpConfig(rotation_deg=60, scale=1.5, perspective=0, shear=0, translation=0)
    H = matrices(2000, config, 64.0)
    J = H[:, :2, :2]
    angle = torch.atan2(J[:, 1, 0], J[:, 0, 0]).rad2deg()
    scale = torch.linalg.det(J).sqrt()
    assert angle.abs().max() <= 60.01
    assert angle.abs().max() > 58
    assert scale.max() <= 1.501
    assert scale.min() >= 1 / 1.501
    assert scale.log().mean().abs() < 0.02
    assert not math.isclose(float(scale.min()), float(scale.max()))


def test_a_seed_gives_the_same_views():
    assert torch.equal(matrices(4, STRONG, 60.0, seed=3), matrices(4, STRONG, 60.0, seed=3))
    assert not torch.equal(matrices(4, STRONG, 60.0, seed=3), matrices(4, STRONG, 60.0, seed=4))


def test_every_view_lies_before_the_camera():
    extreme = WarpConfig(perspective=0.95, shear=0.3)
    corners = torch.tensor([[0.0, 0], [SIZE[1] - 1, 0], [0, SIZE[0] - 1], [SIZE[1] - 1, SIZE[0] - 1]])
    assert transform_points(matrices(500, extreme, 64.0), corners.expand(500, -1, -1)).isfinite().all()


def test_bad_ranges_are_refused():
    with pytest.raises(ValueError, match="scale >= 1"):
        WarpConfig(scale=0.5)
