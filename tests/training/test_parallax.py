"""Parallax: the stated correspondence is exact both ways, is what the pictures show, and is a rigid scene's."""

import dataclasses

import numpy as np
import pytest
import torch

from tiepoint.training.engine import generator_of
from tiepoint.training.pairs import PairConfig, make_pairs
from tiepoint.training.parallax import ParallaxConfig, sample_relief
from tiepoint.training.photographs import Photographs
from tiepoint.training.photometric import PhotometricConfig
from tiepoint.training.warps import inside, pixel_grid, sample_homographies, transform_points

CPU = torch.device("cpu")
SIDE, SIZE, COUNT = 200, (96, 128), 12
STRONG = PairConfig(size=SIZE, parallax=ParallaxConfig(amplitude=0.2))


def waves() -> Photographs:
    """A picture whose grey is smooth and turns at every place another way."""
    y, x = np.mgrid[:SIDE, :SIDE]
    grey = 128 + 60 * np.sin(x / 7 + y / 19) + 60 * np.cos(y / 9 - x / 23)
    return Photographs(["waves.png"], grey.astype(np.uint8)[None, ..., None], "waves")


def pairs(config: PairConfig, seed: int = 0):
    unlit = dataclasses.replace(config.photometric, **{f.name: 0 for f in dataclasses.fields(PhotometricConfig)})
    config = dataclasses.replace(config, photometric=unlit)
    return make_pairs(waves(), torch.zeros(COUNT, dtype=torch.long), config, 1.0, generator_of(seed, 0), CPU)


def grid(size=SIZE):
    return pixel_grid(size, CPU).expand(COUNT, -1, -1)


def test_points_go_there_and_back():
    made = pairs(STRONG)
    points1 = grid()
    back = made.points1_of(made.points0_of(points1))
    assert (back - points1).norm(dim=-1).max() < 0.01
    points0 = grid()
    there = made.points1_of(points0)
    seen = inside(there, SIZE)
    assert seen.float().mean() > 0.3
    assert (made.points0_of(there) - points0).norm(dim=-1)[seen].max() < 0.02


def test_parallax_moves_points_far_off_the_plane():
    made = pairs(STRONG)
    on_plane = transform_points(made.H_view0_from_source @ torch.linalg.inv(made.H_view1_from_source), grid())
    off = (made.points0_of(grid()) - on_plane).norm(dim=-1).amax(1)
    assert off.median() > 5
    with pytest.raises(ValueError, match="points1_of"):
        _ = made.H_1_from_0


def at(images, points):
    """(B, N) grey of (B, 1, H, W) images at (B, N, 2) pixels."""
    places = 2 * (points + 0.5) / torch.tensor([SIZE[1], SIZE[0]]) - 1
    return torch.nn.functional.grid_sample(images, places.nan_to_num(-2.0)[:, None], align_corners=False)[:, 0, 0]


def test_both_views_show_the_same_at_corresponding_points():
    made = pairs(STRONG)
    points1 = grid()
    points0 = made.points0_of(points1)
    x, y = points0.nan_to_num(0).round().long().unbind(-1)
    reached = made.views0.valid[torch.arange(COUNT)[:, None], y.clamp(0, SIZE[0] - 1), x.clamp(0, SIZE[1] - 1)]
    both = inside(points0, SIZE, 2.0) & reached & made.views1.valid.flatten(1)
    assert both.sum() > 20_000
    grey1 = made.views1.images.flatten(1)
    right = (at(made.views0.images, points0) - grey1).abs()[both]
    assert right.quantile(0.99) < 0.05
    on_plane = transform_points(made.H_view0_from_source @ torch.linalg.inv(made.H_view1_from_source), points1)
    wrong = (at(made.views0.images, on_plane) - grey1).abs()[both]
    assert wrong.mean() > 4 * right.mean()


def test_the_map_does_not_fold():
    made = pairs(STRONG)
    assert made.relief is not None
    source = made.relief.source_points(torch.linalg.inv(made.H_view1_from_source), grid()).unflatten(1, SIZE)
    along_x, along_y = source.diff(dim=2)[:, :-1], source.diff(dim=1)[:, :, :-1]
    area = along_x[..., 0] * along_y[..., 1] - along_x[..., 1] * along_y[..., 0]
    assert area.min() > 0


def test_pairs_are_a_rigid_scene_s():
    """Residuals of the plane in view 0 all pass through one point, the epipole: l^T x = 0 for lines through it."""
    made = pairs(STRONG)
    assert made.relief is not None
    on_plane = transform_points(made.H_view0_from_source @ torch.linalg.inv(made.H_view1_from_source), grid())
    there = made.points0_of(grid())
    at_infinity = torch.cat([made.relief.direction, torch.zeros(COUNT, 1)], 1)[..., None]
    epipole = (made.H_view0_from_source @ at_infinity)[..., 0]  # image of the shift's direction
    ones = torch.ones(*there.shape[:2], 1)
    line = torch.linalg.cross(torch.cat([there, ones], 2), epipole[:, None].expand(-1, there.shape[1], -1), dim=-1)
    distance = (line * torch.cat([on_plane, ones], 2)).sum(-1).abs() / line[..., :2].norm(dim=-1)
    assert distance.max() < 0.01


def test_no_amplitude_is_planes_and_draws_nothing():
    plain, zero = pairs(PairConfig(size=SIZE)), pairs(PairConfig(size=SIZE, parallax=ParallaxConfig(num_octaves=5)))
    assert plain.relief is zero.relief is None
    assert torch.equal(plain.views1.images, zero.views1.images)
    there = plain.points1_of(grid())
    assert torch.equal(there, transform_points(plain.H_1_from_0, grid()))
    back = plain.points0_of(there)
    finite = back.isfinite().all(-1)
    torch.testing.assert_close(back[finite], grid()[finite], atol=0.02, rtol=0)
    # View 0 and view 1's matrix are drawn before the relief.
    strong = pairs(STRONG)
    assert torch.equal(plain.views0.images, strong.views0.images)
    assert torch.equal(plain.H_view1_from_source, strong.H_view1_from_source)


def test_heights_stay_within_the_amplitude():
    generator = torch.Generator().manual_seed(0)
    gentle = ParallaxConfig(amplitude=0.02)
    H = sample_homographies(STRONG.warp1, torch.full((64, 2), 100.0), 100.0, SIZE, generator)
    heights = sample_relief(gentle, H, 100.0, SIZE, generator).heights.flatten(1).abs().amax(1)
    assert heights.max() <= 2.0
    assert heights.max() > 1.5
    assert gentle.at(0.5).amplitude == pytest.approx(0.01)
    with pytest.raises(ValueError, match="amplitude"):
        ParallaxConfig(amplitude=-1.0)
