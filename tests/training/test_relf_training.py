"""RELF's training: losses by hand, rotations of known warps, and a small run that learns and turns as before."""

import dataclasses
import math

import cv2
import numpy as np
import pytest
import torch

from tiepoint.images import Image
from tiepoint.matchers.base import MatcherOptions
from tiepoint.matchers.relf import RelfConfig, RelfExtractor, build_relf
from tiepoint.matchers.relf_sampling import sample_features
from tiepoint.matchers.sift import Sift
from tiepoint.networks.equivariant_resnet import ReResNet
from tiepoint.training.description import choose_points
from tiepoint.training.engine import Compute, Interrupted, LoopConfig, generator_of, train
from tiepoint.training.export import export_weights
from tiepoint.training.pairs import PairConfig, make_pairs
from tiepoint.training.parallax import ParallaxConfig
from tiepoint.training.photographs import Photographs
from tiepoint.training.photometric import PhotometricConfig
from tiepoint.training.record import Run, read_log
from tiepoint.training.relf import (
    LOSSES,
    CorrectedConfig,
    PublishedConfig,
    RelfTraining,
    RelfTrainingConfig,
    aligned,
    as_seen,
    corrected_losses,
    local_rotations,
    published_losses,
    published_rotation,
    shifts_of,
    sift_keypoints,
    turned,
)
from tiepoint.training.warps import WarpConfig, transform_points

CPU = torch.device("cpu")
ORDER = 16
UNLIT = PhotometricConfig(
    contrast=0, brightness=0, gamma=0, shade=0, blur_px=0, motion_px=0, noise=0, impulse=0, compression=0
)
TURNS_ONLY = WarpConfig(scale=1, perspective=0, shear=0, translation=0)
CONFIG = RelfTrainingConfig(
    order=8,
    pairs=PairConfig(size=(64, 64)),
    num_points=40,
    num_validation=2,
    loop=LoopConfig(
        steps=2, batch_size=2, precision="fp32", validate_every=2, warm_up_steps=1, learning_rate=2e-3, seed=1
    ),
)


def photographs(count: int = 4, side: int = 96, channels: int = 3) -> Photographs:
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (16, 16, channels), np.uint8)
        fine = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        pictures.append(fine.reshape(side, side, channels))
    return Photographs([f"{i}.png" for i in range(count)], np.stack(pictures), "blobs")


def task(config: RelfTrainingConfig = CONFIG) -> RelfTraining:
    return RelfTraining(config, photographs(), photographs(channels=1))


# ---------------------------------------------------------------- rotations


def rotation(degrees: float) -> torch.Tensor:
    """(3, 3), counter-clockwise as displayed, about (30, 20)."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    there, back = torch.eye(3), torch.eye(3)
    there[:2, 2] = torch.tensor([30.0, 20])
    back[:2, 2] = -there[:2, 2]
    return there @ turn @ back


@pytest.mark.parametrize("degrees", [0, 30, 90, -135, 179])
def test_a_turn_is_found_everywhere_and_zoom_changes_nothing(degrees):
    zoom = torch.diag(torch.tensor([1.7, 1.7, 1.0]))
    H = (zoom @ rotation(degrees))[None]
    found = local_rotations(H, torch.rand(1, 20, 2) * 50)
    assert torch.allclose(found, torch.tensor(math.radians(degrees)), atol=1e-5)
    assert published_rotation(H)[0] == pytest.approx(math.radians(degrees), abs=1e-5)
    assert (shifts_of(found, ORDER) == round(degrees * ORDER / 360) % ORDER).all()


def test_rotations_of_a_perspective_are_those_of_its_derivatives():
    tilt = torch.tensor([[1.0, 0.1, 5], [-0.1, 0.9, 2], [2e-3, -1e-3, 1]])
    H = (tilt @ rotation(70))[None].double() * 3  # whatever its scale
    points = torch.rand(1, 20, 2, dtype=torch.float64) * 50
    step = 1e-4
    columns = [
        (transform_points(H, points + step * axis) - transform_points(H, points - step * axis)) / (2 * step)
        for axis in torch.eye(2, dtype=torch.float64)
    ]
    (j00, j10), (j01, j11) = (column.unbind(-1) for column in columns)
    found = local_rotations(H, points)
    assert torch.allclose(found, torch.atan2(j01 - j10, j00 + j11), atol=1e-5)
    assert (found - published_rotation(H)[:, None]).abs().max() > math.radians(3)  # that is what was wrong with it


def test_points_behind_the_camera_have_some_shift():
    H = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]]])
    assert shifts_of(local_rotations(H, torch.tensor([[[40.0, 0.0]]])), ORDER).item() == 0


def test_pictures_turned_by_the_pipeline_turn_features_by_the_true_shift():
    """Turns alone, in unchanged light: even an untrained network's features agree best when moved back by it."""
    generator = generator_of(0, 0)
    upright = WarpConfig(rotation_deg=0, scale=1, perspective=0, shear=0, translation=0)
    config = PairConfig(size=(64, 64), warp0=upright, warp1=TURNS_ONLY, photometric=UNLIT, span=0.6)
    pairs = make_pairs(photographs(), torch.arange(4), config, 1.0, generator, CPU)
    nothing = torch.full((4, 1, 2), torch.nan)
    points0, points1, kept = choose_points(
        nothing, pairs.H_1_from_0, pairs.views0.valid, pairs.views1.valid, 60, generator
    )
    torch.manual_seed(0)
    images, points = torch.cat([pairs.views0.images, pairs.views1.images]), torch.cat([points0, points1])
    with torch.no_grad():
        features = sample_features(ReResNet(16).train(), as_seen(images), points.nan_to_num(0.0), published_grid=False)
    features0, features1 = features.chunk(2)
    shifts = shifts_of(local_rotations(pairs.H_1_from_0, points0), 16)
    assert len(shifts.unique()) > 2
    cosines = [
        (aligned(features0, torch.zeros_like(shifts)) * aligned(features1, (shifts + s) % 16)).sum(-1)[kept].mean()
        for s in range(16)
    ]
    assert np.argmax(cosines) == 0


# ---------------------------------------------------------------- losses


def one_pair(shift: int, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, K, F, N) features, and the same in a view turned by `shift`."""
    features = torch.rand(1, count, 3, ORDER, generator=torch.Generator().manual_seed(0)) * 0.1
    features[:, :, 0, 5] = 2.0
    return features, features.roll(shift, -1)


@pytest.mark.parametrize("shift", [0, 3, 15])
def test_the_true_shift_costs_least(shift):
    features0, features1 = one_pair(shift)
    points = torch.arange(6.0)[None, :, None].expand(1, 6, 2) * 20
    kept = torch.ones(1, 6, dtype=torch.bool)
    costs = [
        corrected_losses(
            features0, features1, torch.full((1, 6), s), points, points, kept, CorrectedConfig()
        )
        for s in range(ORDER)
    ]  # fmt: skip
    assert np.argmin([cost.orientation for cost in costs]) == shift
    assert np.argmin([cost.descriptor for cost in costs]) == shift
    assert costs[shift].orientation < 0.05


def test_a_histogram_costs_nothing_where_the_other_view_is_flat():
    """log 16 whether view 1's is flat too or not: that is what keeps histograms from being drawn flat."""
    features0, features1 = one_pair(3)
    points, kept = torch.zeros(1, 6, 2), torch.ones(1, 6, dtype=torch.bool)
    shifts = torch.full((1, 6), 3)
    for other in (features1, torch.ones_like(features1)):
        losses = corrected_losses(torch.ones_like(features0), other, shifts, points, points, kept, CorrectedConfig())
        assert losses.orientation.item() == pytest.approx(math.log(ORDER), abs=1e-5)


def test_what_is_not_kept_costs_nothing():
    features0, features1 = one_pair(3)
    none = torch.zeros(1, 6, dtype=torch.bool)
    points, shifts = torch.zeros(1, 6, 2), torch.zeros(1, 6, dtype=torch.long)
    assert corrected_losses(features0, features1, shifts, points, points, none, CorrectedConfig()) == (0, 0)
    assert published_losses(features0, features1, shifts, none, PublishedConfig()) == (0, 0)


def test_the_published_orientation_loss_turns_twice():
    """One field, a one-hot histogram: 0.1701 is the least there is, had for no turn alone; 0.1761 is all else."""
    features0 = torch.zeros(1, 1, 1, ORDER)
    features0[..., 5] = 1
    kept = torch.ones(1, 1, dtype=torch.bool)
    for shift, expected in ((0, 0.1701), (3, 0.1761)):
        losses = published_losses(
            features0, features0.roll(shift, -1), torch.tensor([[shift]]), kept, PublishedConfig()
        )
        assert losses.orientation.item() == pytest.approx(expected, abs=1e-4)
        assert losses.descriptor.item() == pytest.approx(0, abs=1e-6)


def test_turned_is_a_roll():
    histograms = torch.arange(8.0).view(1, 2, 4)
    found = turned(histograms, torch.tensor([[1, -2]]))
    assert found.tolist() == [[[3, 0, 1, 2], [6, 7, 4, 5]]]


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("backbone", ["re_resnet", "e2wrn16_8R"])
def test_every_loss_reaches_every_weight(kind, backbone):
    learning = task(dataclasses.replace(CONFIG, losses=LOSSES[kind], backbone=backbone))
    learning.network.train()
    loss = learning.loss(1, 0.9, generator_of(0, 0), Compute(CPU))
    loss.total.backward()
    assert loss.total.isfinite()
    for name, parameter in learning.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_step_in_lower_precision():
    learning = task()
    learning.network.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = learning.loss(1, 0.9, generator_of(0, 0), Compute(CPU))
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning.network.parameters())


# ---------------------------------------------------------------- what the network sees


def test_seen_as_the_matcher_shows_it():
    """A view of 16 k + 1 needs no resizing in the matcher: without the added row and column it is the same."""
    pixels = np.random.default_rng(0).integers(0, 256, (49, 65, 3), np.uint8)
    extractor = RelfExtractor(ReResNet(8), Sift(), RelfConfig())
    (level, _), = extractor._levels(Image(pixels), np.zeros((0, 2), np.float32))  # fmt: skip
    view = torch.from_numpy(pixels[:48, :64]).permute(2, 0, 1)[None] / 255
    seen = as_seen(view)
    assert seen.shape == level.shape
    assert torch.allclose(seen[..., :48, :64], level[..., :48, :64], atol=1e-5)


def test_views_have_to_lie_on_the_grid():
    with pytest.raises(ValueError, match="multiples of 16"):
        dataclasses.replace(CONFIG, pairs=PairConfig(size=(64, 72)))


def test_a_blank_view_has_no_keypoints_and_still_trains():
    assert sift_keypoints(torch.full((1, 3, 64, 64), 0.5), 10).isnan().all()
    blank = Photographs(["0.png"], np.full((1, 96, 96, 1), 128, np.uint8), "blank")
    learning = RelfTraining(CONFIG, blank, photographs(channels=1))
    learning.network.train()
    assert learning.loss(2, 0.0, generator_of(0, 0), Compute(CPU)).total.isfinite()


# ---------------------------------------------------------------- runs


def test_a_run_resumes_exactly_and_its_weights_match(tmp_path):
    def silent(_: str) -> None:
        pass

    whole, parted = Run(tmp_path / "whole"), Run(tmp_path / "parted")
    for run in (whole, parted):
        run.describe("relf", {"config": CONFIG}, {"photographs": str(tmp_path)})
    learning = task()
    train(learning, CONFIG.loop, whole, on_progress=silent)
    with pytest.raises(Interrupted):
        train(task(), CONFIG.loop, parted, on_progress=silent, stop_after=1)
    resumed = task()
    train(resumed, CONFIG.loop, parted, resume=True, on_progress=silent)
    for (name, expected), found in zip(
        learning.network.state_dict().items(), resumed.network.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, found), name

    path = tmp_path / "out.safetensors"
    export_weights(whole, path)
    assert path.stat().st_size < 16e6
    matcher = build_relf(MatcherOptions(weights=str(path)))
    assert not matcher.extractor.config.published
    assert matcher.extractor.network.order == 8
    pixels = photographs().pixels[0]
    matches = matcher(Image(pixels), Image(np.rot90(pixels).copy()))
    assert len(matches.points0) > 10


def test_the_loss_falls_and_quarter_turns_stay_exact(tmp_path):
    """Ten steps on four photographs, then a turned picture: its features are the same ones, shifted."""
    loop = dataclasses.replace(CONFIG.loop, steps=10, validate_every=100, learning_rate=4e-3)
    config = dataclasses.replace(
        CONFIG, loop=loop, num_validation=1, pairs=PairConfig(size=(48, 48), warp1=TURNS_ONLY, photometric=UNLIT)
    )
    learning = task(config)
    learning.network.train()
    before = learning.loss(8, 1.0, generator_of(9, 0), Compute(CPU)).total.item()
    train(learning, loop, Run(tmp_path), on_progress=lambda _: None)
    learning.network.train()
    after = learning.loss(8, 1.0, generator_of(9, 0), Compute(CPU)).total.item()
    assert after < 0.8 * before
    assert "right_shifts" in read_log(tmp_path / "log.csv")[1]

    network = learning.network.eval()
    image, points = torch.rand(1, 3, 49, 65), torch.rand(1, 30, 2) * 48
    x, y = points.unbind(-1)
    with torch.no_grad():
        upright = sample_features(network, image, points, published_grid=False)
        quarter = sample_features(network, image.rot90(1, (2, 3)), torch.stack([y, 64 - x], -1), published_grid=False)
    expected = upright.roll(network.order // 4, -1)
    assert (quarter - expected).norm() < 1e-5 * expected.norm()


def test_parallax_is_refused_by_the_truth_it_asks_for():
    config = dataclasses.replace(CONFIG, pairs=PairConfig(size=(64, 64), parallax=ParallaxConfig(amplitude=0.1)))
    with pytest.raises(ValueError, match="expected views of planes"):
        task(config)
