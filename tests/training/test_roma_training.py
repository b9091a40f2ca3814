"""RoMa's training: the truth costs least, wrong certainty costs, and a small one learns."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from tiepoint.images import Image
from tiepoint.matchers.base import MatcherOptions
from tiepoint.matchers.roma import ROMA_SMALL_CONFIG, build_roma_small, load_network
from tiepoint.matchers.roma_network import CoarseMatch, Refinement, RomaNetwork, decode_anchors, pixel_grid
from tiepoint.networks.residual_trunk import TrunkConfig
from tiepoint.networks.vit import VitConfig
from tiepoint.training.engine import Compute, Interrupted, LoopConfig, generator_of, train
from tiepoint.training.export import export_weights
from tiepoint.training.pairs import make_pairs
from tiepoint.training.parallax import ParallaxConfig
from tiepoint.training.photographs import Photographs
from tiepoint.training.record import Run
from tiepoint.training.roma import (
    RomaLossConfig,
    RomaTraining,
    RomaTrainingConfig,
    Stage,
    coarse_losses,
    draw_partners,
    led,
    partly_gray,
    refiner_losses,
    untrained_roma,
)
from tiepoint.training.roma_losses import (
    Truth,
    anchor_loss,
    certainty_loss,
    error_px,
    feature_loss,
    robust_loss,
    true_warps,
    valid_at,
    window_loss,
    within_reach,
)
from tiepoint.training.roma_validation import roc_auc

CPU = torch.device("cpu")
SIZE = (112, 112)
CONFIG = RomaTrainingConfig(
    pairs=dataclasses.replace(RomaTrainingConfig().pairs, size=SIZE),
    num_validation=1,
    loop=LoopConfig(steps=2, batch_size=2, precision="fp32", validate_every=2, warm_up_steps=1),
)
TINY = dataclasses.replace(
    ROMA_SMALL_CONFIG,
    # Not narrower: torch 2.13 corrupts memory in strided 1 x 1 convolutions from 8 channels, as from 3.
    trunk=TrunkConfig(widths=(16, 16, 16, 32), attention_blocks=1, num_heads=2),
    vgg_widths=(4, 8, 16, 16),
    feature_dims={16: 32, 8: 16, 4: 8, 2: 4, 1: 4},
    gp_dim=32,
    decoder_blocks=1,
    decoder_heads=2,
    anchors_per_side=14,
    correlation_radii={16: 2, 8: 2, 4: 1},
    displacement_dims={16: 4, 8: 4, 4: 4, 2: 2, 1: 2},
    hidden_blocks=1,
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def photographs(count: int = 4, side: int = 160) -> Photographs:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (20, 20, 3), np.uint8) for _ in range(count)]
    pictures = [cv2.resize(c, (side, side), interpolation=cv2.INTER_CUBIC) for c in coarse]
    return Photographs([f"{i}.png" for i in range(count)], np.stack(pictures), "blobs")


def tiny() -> RomaNetwork:
    torch.manual_seed(0)
    return untrained_roma(TINY)


def quiet(_text: str) -> None:
    pass


def truth_of(warp: torch.Tensor) -> Truth:
    return Truth(warp, (warp.abs() < 1).all(1))


# ---------------------------------------------------------------- true warps


def test_true_warps_are_those_of_the_pairs_and_come_back():
    config = dataclasses.replace(CONFIG.pairs, parallax=ParallaxConfig(amplitude=0.1))
    pairs = make_pairs(photographs(), torch.tensor([0, 1]), config, 1.0, generator_of(0, 0), CPU)
    truth = true_warps(pairs, (14, 14))
    assert truth.warp.shape == (4, 2, 14, 14)
    assert truth.visible.any((1, 2)).all()
    # By hand: the middle of cell (row 6, column 8) of view 0 is pixel (67.5, 51.5) of 112.
    point = torch.tensor([[[67.5, 51.5]]]).expand(2, -1, -1)
    there = (2 * pairs.points1_of(point)[:, 0] + 1) / 112 - 1
    assert torch.allclose(truth.warp[:2, :, 6, 8], there, atol=1e-4)
    cells = (truth.warp[2:].permute(0, 2, 3, 1) + 1) * 56 - 0.5  # rows 2 and 3 go from view 1 to view 0
    back = pairs.points1_of(cells.reshape(2, -1, 2)).reshape(2, 14, 14, 2)
    own = (pixel_grid((14, 14), cells)[0].permute(1, 2, 0) + 1) * 56 - 0.5
    assert ((back - own).norm(dim=-1)[truth.visible[2:]] < 0.1).all()


def test_valid_only_within_the_view_and_its_picture():
    valid = torch.ones(1, 4, 6, dtype=torch.bool)
    valid[0, 2, 3] = False
    points = torch.tensor([[[0.0, 0.0], [-0.6, 0.0], [5.4, 3.4], [5.6, 0.0], [3.2, 1.8], [torch.nan, 0.0]]])
    assert valid_at(valid, points)[0].tolist() == [True, False, True, False, False, False]


# ---------------------------------------------------------------- losses


def test_anchors_cost_least_where_the_truth_is():
    warp = pixel_grid((3, 3), torch.zeros(1)) * 0.7
    logits = torch.zeros(1, 9, 16)
    # Cell centres -2/3, 0, 2/3 times 0.7 fall into anchors 1, 2, 2 of four, whose edges are -1, -0.5, 0, 0.5, 1.
    places = [1, 2, 2]
    right = torch.tensor([[places[row] * 4 + places[column] for row in range(3) for column in range(3)]])
    sure = logits.scatter(2, right[..., None], 8.0)
    wrong = logits.scatter(2, (right[..., None] + 1) % 16, 8.0)
    unsure = anchor_loss(logits, truth_of(warp))
    assert unsure == pytest.approx(np.log(16), rel=1e-5)
    assert anchor_loss(sure, truth_of(warp)) < 0.01 < unsure < anchor_loss(wrong, truth_of(warp))
    unseen = Truth(warp, torch.zeros(1, 3, 3, dtype=torch.bool))
    assert anchor_loss(wrong, unseen) == 0


def test_robust_loss_by_hand():
    errors = torch.tensor([0.0, 4.0, 100.0]).reshape(1, 1, 3)
    counted = torch.tensor([True, True, False]).reshape(1, 1, 3)
    assert robust_loss(errors, counted, 3.0, 0.5) == pytest.approx((9**0.25 + 25**0.25) / 2)
    assert robust_loss(errors, counted, 3.0, 2.0) == pytest.approx((9 + 25) / 2)
    assert robust_loss(errors, torch.zeros_like(counted), 3.0, 0.5) == 0


def test_error_in_pixels_of_a_frame_that_is_not_square():
    warp = torch.zeros(1, 2, 1, 1)
    truth = truth_of(torch.tensor([0.1, 0.2]).reshape(1, 2, 1, 1))
    assert error_px(warp, truth, (40, 60))[0, 0, 0] == pytest.approx(5.0)  # 0.1 * 30 and 0.2 * 20


def test_features_that_match_cost_less_and_so_do_windows():
    features = torch.eye(16).reshape(1, 16, 4, 4)
    grid = pixel_grid((4, 4), features)
    shifted = truth_of(grid + torch.tensor([0.5, 0.0]).reshape(1, 2, 1, 1))
    assert feature_loss(features, features, truth_of(grid), 0.1) < 0.01
    assert feature_loss(features, features, shifted, 0.1) > 5
    loud = 20 * features
    assert window_loss(loud, loud, grid, truth_of(grid), 1) < 0.01
    assert window_loss(loud, loud, grid, shifted, 1) > 5
    assert window_loss(loud, loud.roll(1, 3), grid, shifted, 1) < 0.01
    # Started a cell off, the window finds the same truth at its other rim.
    assert window_loss(loud, loud, shifted.warp, truth_of(grid), 1) < 0.3


def test_wrong_certainty_costs():
    matchable = torch.tensor([True, False]).reshape(1, 1, 2)
    logits = torch.tensor([3.0, -3.0]).reshape(1, 1, 1, 2)
    assert certainty_loss(logits, matchable) == pytest.approx(np.log(1 + np.exp(-3)), rel=1e-5)
    assert certainty_loss(-logits, matchable) > 3


def test_refiners_learn_only_within_their_reach():
    grid = pixel_grid((4, 4), torch.zeros(1))
    truth = truth_of(grid)
    start = grid.clone()
    start[0, 0, 0, 0] += 2 * 20 / 32  # 20 px of 32
    assert within_reach(start, truth, (32, 32), 16.0).sum() == 15
    features = torch.zeros(1, 3, 4, 4)

    def cost(warp: torch.Tensor, logit: float) -> dict[str, torch.Tensor]:
        certainty = torch.full((1, 1, 4, 4), logit)
        stage = Stage(Refinement(scale=2, warp=warp, certainty=certainty), start, truth, features, features)
        return refiner_losses(stage, None, (32, 32), RomaLossConfig())

    assert cost(grid, 5.0)["warp_2"] == pytest.approx(0.06**0.5, rel=1e-4)
    assert cost(start, 5.0)["warp_2"] == cost(grid, 5.0)["warp_2"]  # reach is 4 cells of 2 px: the far one is out
    assert cost(grid + 0.1, 5.0)["warp_2"] > cost(grid, 5.0)["warp_2"]
    assert cost(grid, 5.0)["certainty_2"] < cost(grid, -5.0)["certainty_2"]


def test_the_true_coarse_match_costs_least():
    grid = pixel_grid((7, 7), torch.zeros(1))
    truth = truth_of(grid)
    features = torch.eye(49).reshape(1, 49, 7, 7)
    right = 10 * torch.eye(49)[None]
    losses = [
        coarse_losses(
            CoarseMatch(logits=logits, certainty=torch.zeros(1, 1, 7, 7), warp=grid),
            (features, features),
            truth,
            RomaLossConfig(),
        )
        for logits in (right, right.roll(1, 2))
    ]
    assert losses[0]["anchors"] < 0.01 < losses[1]["anchors"]
    assert losses[0].keys() == {"anchors", "certainty_coarse", "features"}


def test_our_anchors_do_not_wrap_round_the_rim():
    assert not untrained_roma().config.rim_wraps
    logits = torch.full((1, 32 * 32), -20.0)
    logits[0, 5 * 32] = 5.0  # first column of row 5; the entry before it is the last column of row 4
    logits[0, 5 * 32 - 1] = 4.0
    x, y = decode_anchors(logits, rim_wraps=False)[0].tolist()
    assert (x, y) == pytest.approx((1 / 32 - 1, 11 / 32 - 1), abs=1e-4)


# ---------------------------------------------------------------- what a batch is made of


def test_partners_are_strangers_or_oneself():
    indices = torch.tensor([3, 7, 7, 1])
    assert draw_partners(indices, 0.0, generator_of(0, 0)).tolist() == [0, 1, 2, 3]
    assert draw_partners(indices, 1.0, generator_of(0, 0)).tolist() == [1, 1, 3, 0]  # the second's next is itself


def test_gray_views_lose_their_colour_alone():
    images = torch.rand(4, 3, 5, 5)
    gray = partly_gray(images, 1.0, generator_of(0, 0))
    assert gray.shape == images.shape
    assert torch.equal(gray[:, 0], gray[:, 2])
    assert torch.equal(partly_gray(images, 0.0, generator_of(0, 0)), images)


def test_guided_rows_start_near_the_truth_where_it_is_seen():
    truth = Truth(torch.full((2, 2, 6, 6), 0.3), torch.ones(2, 6, 6, dtype=torch.bool))
    truth.visible[0, 0, 0] = False
    start = torch.full((2, 2, 6, 6), -0.9)
    guided = led(start, truth, torch.tensor([True, False]), 8, (96, 96), generator_of(0, 0))
    assert torch.equal(guided[1], start[1])
    assert torch.equal(guided[0, :, 0, 0], start[0, :, 0, 0])
    off = (guided[0] - truth.warp[0])[:, 1:, 1:].abs() * 48
    assert 0 < off.max() <= 1.5 * 8


# ---------------------------------------------------------------- the training


def test_the_loss_reaches_every_weight():
    task = RomaTraining(CONFIG, photographs(), photographs(), tiny())
    task.network.train()
    loss = task.loss(3, 0.5, generator_of(0, 0), Compute(CPU))
    loss.total.backward()
    assert loss.total.isfinite()
    assert {"anchors", "features", "warp_16", "warp_1", "certainty_8", "features_4"} <= set(loss.parts)
    for name, parameter in task.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_unrelated_pairs_alone_teach_certainty_alone():
    config = dataclasses.replace(CONFIG, unrelated_share=1.0)
    task = RomaTraining(config, photographs(40), photographs(), tiny())
    parts = task.loss(3, 0.5, generator_of(0, 1), Compute(CPU)).parts
    assert all(part == 0 for name, part in parts.items() if name.startswith(("warp", "anchors", "features")))
    assert parts["certainty_16"] > 0


def test_the_full_networks_trunk_and_stride_are_trained_by_the_same_losses():
    network = dataclasses.replace(TINY, trunk=VitConfig(dim=32, num_heads=2, depth=1, table_side=4))
    task = RomaTraining(CONFIG, photographs(), photographs(), RomaNetwork(network))
    task.network.train()
    loss = task.loss(2, 0.5, generator_of(0, 0), Compute(CPU))
    loss.total.backward()
    assert loss.total.isfinite()


def test_the_loss_falls_on_one_batch():
    task = RomaTraining(CONFIG, photographs(), photographs(), tiny())
    network = task.network.train()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    totals = []
    for _ in range(12):
        loss = task.loss(2, 0.5, generator_of(0, 0), Compute(CPU))
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        totals.append({name: float(part.detach()) for name, part in loss.parts.items()})
    for name in ("anchors", "features", "certainty_16"):
        assert totals[-1][name] < totals[0][name], name


def test_a_resumed_run_equals_one_in_one_go(tmp_path, monkeypatch):
    monkeypatch.setattr("tiepoint.training.record.draw_curves", lambda *_: None)  # forty panels take seconds
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")

    def task() -> RomaTraining:
        return RomaTraining(CONFIG, photographs(), photographs(), tiny())

    best = train(task(), CONFIG.loop, whole, on_progress=quiet)
    with pytest.raises(Interrupted):
        train(task(), CONFIG.loop, parts, stop_after=1, on_progress=quiet)
    resumed = train(task(), CONFIG.loop, parts, resume=True, on_progress=quiet)
    assert resumed == pytest.approx(best, nan_ok=True)
    assert whole.best.read_bytes() == parts.best.read_bytes()
    figures = {
        "PCK_1",
        "PCK_3",
        "PCK_5",
        "EPE",
        "PCK_3_planes",
        "PCK_3_parallax",
        "certainty_AUC",
        "unrelated",
        "AUC_5",
    }
    assert figures <= best.keys()
    assert (tmp_path / "whole" / "samples-0000002.png").exists()


def test_exported_weights_load_in_the_matcher(tmp_path):
    run = Run(tmp_path / "run")
    run.describe("roma-small", {"config": CONFIG}, {"photographs": str(tmp_path)})
    torch.manual_seed(0)
    network = untrained_roma()
    run.save_best(network.state_dict(), {"PCK_3": 0.0})
    path = tmp_path / "out.safetensors"
    export_weights(run, path)
    assert path.stat().st_size < 16e6
    loaded = load_network(ROMA_SMALL_CONFIG, str(path))
    assert not loaded.config.rim_wraps
    assert torch.allclose(
        loaded.decoder.embedding_decoder.to_out.weight, network.decoder.embedding_decoder.to_out.weight, atol=1e-3
    )
    matcher = build_roma_small(MatcherOptions(weights=str(path), max_size_px=224))
    pixels = photographs().pixels
    matches = matcher(Image(np.ascontiguousarray(pixels[0])), Image(np.ascontiguousarray(pixels[1])))
    assert np.isfinite(matches.points1).all()


def test_views_that_the_matcher_cannot_frame_are_refused():
    for size, message in (((112, 224), "expected a square"), ((96, 96), "expected a multiple of 56")):
        config = dataclasses.replace(CONFIG, pairs=dataclasses.replace(CONFIG.pairs, size=size))
        with pytest.raises(ValueError, match=message):
            RomaTraining(config, photographs(), photographs(), tiny())


def test_area_under_the_roc_curve_by_hand():
    positive = torch.tensor([True, True, False, False])
    assert roc_auc(torch.tensor([0.9, 0.8, 0.2, 0.1]), positive) == 1
    assert roc_auc(torch.tensor([0.9, 0.1, 0.5, 0.1]), positive) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert np.isnan(roc_auc(torch.tensor([0.5, 0.5]), torch.tensor([True, True])))
