"""LoFTR's training: labels and losses on worked cases, the start, and that a run resumes exactly and exports."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tiepoint.cli.train import train as train_commands
from tiepoint.cli.weights import weights
from tiepoint.geometry import Matches
from tiepoint.images import Image, write_image
from tiepoint.matchers.base import MatcherOptions
from tiepoint.matchers.loftr import build_loftr, load_loftr
from tiepoint.networks.loftr import FineMatches, LoftrConfig, LoftrNetwork
from tiepoint.networks.mutual_matching import dual_softmax, log_dual_softmax
from tiepoint.networks.optimal_transport import log_optimal_transport, optimal_transport
from tiepoint.training import loftr_data
from tiepoint.training.engine import Compute, Interrupted, LoopConfig, generator_of, train
from tiepoint.training.export import export_weights
from tiepoint.training.loftr import (
    LoftrLossConfig,
    LoftrTraining,
    LoftrTrainingConfig,
    draw_cell,
    start_as_correlation,
)
from tiepoint.training.loftr_data import HeldOutViews, PhotographPairs, held_out_parallax, mean_accuracy
from tiepoint.training.loftr_losses import (
    CellPairs,
    TrueCells,
    dense_focal,
    fine_loss,
    nearest_cells,
    pairs_to_refine,
    sparse_focal,
    true_cells,
    true_offsets,
)
from tiepoint.training.pairs import PairConfig, ViewPairs
from tiepoint.training.parallax import ParallaxConfig
from tiepoint.training.photographs import Photographs
from tiepoint.training.photometric import PhotometricConfig
from tiepoint.training.record import Run
from tiepoint.training.warps import Views, WarpConfig

CPU = torch.device("cpu")
TINY = LoftrConfig(widths=(8, 16, 16), num_heads=2, num_coarse_pairs=1)
CONFIG = LoftrTrainingConfig(
    network=TINY,
    pairs=PairConfig(size=(64, 64), parallax=ParallaxConfig(amplitude=0.05)),
    num_validation=2,
    loop=LoopConfig(steps=4, batch_size=2, precision="fp32", warm_up_steps=1, validate_every=10, average_decay=0.5),
)


def photographs(count: int = 4, side: int = 96) -> Photographs:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 16, 16), np.uint8)
    pictures = [cv2.resize(blobs, (side, side), interpolation=cv2.INTER_CUBIC) for blobs in coarse]
    return Photographs([f"{i}.png" for i in range(count)], np.stack(pictures)[..., None], "blobs")


def training(config: LoftrTrainingConfig = CONFIG) -> LoftrTraining:
    pairs = PhotographPairs(photographs(), config.pairs, config.network.origin)
    held_out = HeldOutViews(photographs(), config.pairs, config.num_validation, config.loop.seed)
    return LoftrTraining(config, pairs, held_out)


def shifted_pairs(x: float, y: float, size=(48, 64)) -> ViewPairs:
    H = torch.tensor([[[1.0, 0, x], [0, 1, y], [0, 0, 1]]])
    views = Views(torch.zeros(1, 1, *size), torch.ones(1, *size, dtype=torch.bool))
    return ViewPairs(views, views, torch.eye(3)[None], H, torch.zeros(1))


def test_cells_of_a_shifted_view():
    pairs = shifted_pairs(11.0, -2.0)  # one cell and 3 px to the right: 6 rows and 8 columns of cells
    truth = true_cells(pairs, origin=0.0)
    partner = truth.partner.reshape(6, 8)
    assert partner[1, :7].tolist() == [-1, 10, 11, 12, 13, 14, 15]  # the first: cell 9 is not seen in view 0
    assert (partner[0] == -1).all()  # two pixels above the view
    assert partner[1, 7] == -1  # 56 + 11 is past the last pixel
    assert truth.points1[0, 8].tolist() == [11.0, 6.0]
    assert truth.points1[0, 0].isnan().all()


def test_cells_that_view_1_does_not_reach_match_nothing():
    pairs = shifted_pairs(0.0, 0.0)
    valid = torch.ones(1, 48, 64, dtype=torch.bool)
    valid[:, :, :20] = False
    covered = dataclasses.replace(pairs, views1=Views(pairs.views1.images, valid))
    partner = true_cells(covered, origin=0.0).partner.reshape(6, 8)
    assert (partner[:, :3] == -1).all()
    assert torch.equal(partner[:, 3:], torch.arange(48).reshape(6, 8)[:, 3:])


def test_only_mutual_cells_match():
    zoom = torch.diag(torch.tensor([0.5, 0.5, 1.0]))[None]  # two cells of view 0 in each of view 1
    pairs = dataclasses.replace(shifted_pairs(0.0, 0.0), H_view1_from_source=zoom)
    partner = true_cells(pairs, origin=0.0).partner.reshape(6, 8)
    assert partner[0].tolist() == [0, -1, 1, -1, 2, -1, 3, -1]


def test_the_corner_frame_begins_half_a_pixel_before():
    doubled = torch.diag(torch.tensor([2.0, 2.0, 1.0]))[None]
    pairs = dataclasses.replace(shifted_pairs(0.0, 0.0), H_view1_from_source=doubled)
    # The network's point 8 is the pixel 7.5, seen at the pixel 15, which is the network's 15.5.
    assert true_cells(pairs, origin=0.5).points1[0, 9].tolist() == [15.5, 15.5]
    assert true_cells(pairs, origin=0.0).points1[0, 9].tolist() == [16.0, 16.0]


def test_nearest_cells_by_hand():
    points = torch.tensor([[[3.9, 4.1], [23.0, 8.0], [-5.0, 0.0], [60.0, 0.0], [torch.nan, 0.0]]])
    seen = torch.tensor([[True, False, True, True, True]])
    assert nearest_cells(points, seen, (2, 4)).tolist() == [[4, -1, -1, -1, -1]]


def test_focal_losses_by_hand():
    p = torch.tensor([[[0.5, 0.1], [0.2, 0.4]]])
    labels = torch.tensor([[[True, False], [False, False]]])
    matched, elsewhere = dense_focal(p.log(), labels, alpha=0.25, gamma=2)
    assert matched.item() == pytest.approx(0.25 * 0.5**2 * np.log(2))
    assert elsewhere.item() == pytest.approx(
        -0.25 * np.mean([0.1**2 * np.log(0.9), 0.2**2 * np.log(0.8), 0.4**2 * np.log(0.6)])
    )
    assert sparse_focal(p.log(), labels, 0.25, 2)[0].item() == pytest.approx(matched.item())
    assert sparse_focal(p.log(), labels, 0.25, 2)[1] == 0
    nothing = dense_focal(p.log(), torch.zeros_like(labels), 0.25, 2)[0]
    assert nothing == 0


def test_sparse_focal_asks_the_dustbins():
    p = torch.full((1, 3, 3), 0.1)
    p[0, 1, 2], p[0, 2, 1] = 0.7, 0.6  # the second cells of both images match nothing
    labels = torch.tensor([[[True, False], [False, False]]])
    _, dustbins = sparse_focal(p.log(), labels, alpha=1, gamma=0)
    assert dustbins.item() == pytest.approx(-(np.log(0.7) + np.log(0.6)) / 2)


def test_log_confidence_is_the_log_and_has_a_gradient_where_p_vanishes():
    scores = torch.randn(2, 5, 7, dtype=torch.float64)
    bin_score = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(log_dual_softmax(scores).exp(), dual_softmax(scores))
    torch.testing.assert_close(
        log_optimal_transport(scores, bin_score, 3).exp(), optimal_transport(scores, bin_score, 3)
    )
    far = torch.tensor([[[0.0, 300.0], [300.0, 0.0]]], requires_grad=True)
    log_dual_softmax(far)[0, 0, 0].backward()
    assert far.grad[0, 0, 0] == pytest.approx(2.0)


def test_true_matches_pad_what_the_network_matches():
    truth = TrueCells(torch.tensor([[1, 0, -1], [-1, 2, 0]]), torch.zeros(2, 3, 2))
    none = torch.full((2, 3, 3), -9.0)
    drawn = pairs_to_refine(none, truth, 10, 0.3, 0.2, torch.Generator())
    assert sorted(zip(*(column.tolist() for column in drawn), strict=True)) == [
        (0, 0, 1),
        (0, 1, 0),
        (1, 1, 2),
        (1, 2, 0),
    ]
    sure = none.clone()
    sure[0, 2, 2] = np.log(0.9)
    sure[0, 2, 1] = np.log(0.5)  # not the best of its row
    drawn = pairs_to_refine(sure, truth, 3, 0.3, 0.2, torch.Generator())
    assert len(drawn.batch) == 3
    assert [column[0].item() for column in drawn] == [0, 2, 2]
    assert pairs_to_refine(sure, truth, 1, 1.0, 0.2, torch.Generator()).cells0[0] != 2 or len(drawn.batch) == 1


def test_offsets_are_parts_of_the_window():
    truth = TrueCells(torch.tensor([[4]]), torch.tensor([[[9.0, 6.0]]]))
    cells = CellPairs(torch.tensor([0]), torch.tensor([0]), torch.tensor([4]))
    assert true_offsets(cells, truth, num_columns=3).tolist() == [[0.25, -0.5]]  # from (8, 8)


def test_the_fine_loss_weighs_by_certainty_and_leaves_out_what_lies_outside():
    offset = torch.tensor([[0.1, 0.0], [0.0, 0.2], [0.0, 0.0], [0.0, 0.0]], requires_grad=True)
    sigma = torch.tensor([0.5, 1.0, 0.1, 0.1], requires_grad=True)
    target = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.5, 0.0], [torch.nan, 0.0]])
    loss = fine_loss(FineMatches(offset, sigma), target)
    # 1 / sigma is 2 and 1, over their mean 4/3 and 2/3.
    assert loss.item() == pytest.approx((4 / 3 * 0.01 + 2 / 3 * 0.04) / 2)
    loss.backward()
    assert sigma.grad is None
    assert offset.grad.isfinite().all()
    empty = fine_loss(FineMatches(torch.zeros(0, 2, requires_grad=True), torch.zeros(0)), torch.zeros(0, 2))
    assert empty.requires_grad
    assert empty == 0


def test_views_lie_anywhere_in_the_largest_picture():
    generator = generator_of(0, 0)
    drawn = torch.tensor([draw_cell((48, 64), 640, generator) for _ in range(400)])
    assert drawn.min() == 0
    assert drawn.amax(0).tolist() == [72, 74]  # a view of 8 x 6 cells in one of 80 x 80
    assert draw_cell((48, 64), 0, generator) == (0, 0)


def test_a_place_is_that_of_the_larger_map():
    network = LoftrNetwork(TINY)
    whole, part = torch.zeros(1, TINY.widths[2], 10, 12), torch.zeros(1, TINY.widths[2], 4, 5)
    of_whole = network.position_coded(whole).reshape(10, 12, -1)
    of_part = network.position_coded(part, (3, 2)).reshape(4, 5, -1)
    torch.testing.assert_close(of_part, of_whole[2:6, 3:8])


def test_half_precision_leaves_views_and_truth_exact(monkeypatch):
    seen = []

    def watched(pairs, origin):
        seen.append(pairs)
        return true_cells(pairs, origin)

    monkeypatch.setattr(loftr_data, "true_cells", watched)
    task = training()
    for dtype in (torch.float32, torch.bfloat16):
        assert task.loss(2, 0.9, generator_of(0, 0), Compute(CPU, dtype)).total.isfinite()
    full, half = seen
    assert torch.equal(full.H_view1_from_source, half.H_view1_from_source)
    assert torch.equal(full.views1.images, half.views1.images)


def test_it_starts_as_correlation():
    torch.manual_seed(0)
    network = LoftrNetwork(TINY)
    start_as_correlation(network)
    network.eval()
    maps0, maps1 = network.maps(torch.rand(1, 1, 48, 64), torch.rand(1, 1, 48, 64))
    tokens0, _ = network.coarse_tokens(maps0.coarse, maps1.coarse)
    torch.testing.assert_close(tokens0, network.position_coded(maps0.coarse))
    windows = network.fine_windows(maps0, tokens0, torch.tensor([0]), torch.tensor([9]))
    torch.testing.assert_close(windows[0, 12], maps0.fine[0, :, 4, 4])
    assert torch.equal(network.fine_matches(windows, windows)[0], windows)


@pytest.mark.parametrize("focal", ["dense", "sparse"])
@pytest.mark.parametrize("matching", ["dual_softmax", "optimal_transport"])
def test_the_loss_reaches_every_weight(focal, matching):
    config = dataclasses.replace(
        CONFIG, network=dataclasses.replace(TINY, matching=matching), losses=LoftrLossConfig(focal=focal)
    )
    task = training(config)
    for layer in (*task.network.loftr_coarse.layers, *task.network.loftr_fine.layers):
        torch.nn.init.ones_(layer.norm2.weight)  # closed at the start, to what is behind it
    task.network.train()
    loss = task.loss(2, 0.9, generator_of(0, 0), Compute(CPU))
    loss.total.backward()
    assert loss.total.isfinite()
    for name, parameter in task.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_loss_falls():
    """On one batch of easy pairs, by heart."""
    easy = PairConfig(
        size=(64, 64),
        warp1=WarpConfig(rotation_deg=10, scale=1.1, perspective=0.1, shear=0.05),
        photometric=PhotometricConfig(noise=0.01, impulse=0, compression=0, blur_px=0.3, motion_px=0),
    )
    task = training(dataclasses.replace(CONFIG, pairs=easy))
    optimiser = torch.optim.AdamW(task.network.parameters(), lr=5e-3)
    seen = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = task.loss(2, 0.9, generator_of(0, 0), Compute(CPU))
        loss.total.backward()
        optimiser.step()
        seen.append({name: part.item() for name, part in loss.parts.items()})
    assert seen[-1]["coarse"] < 0.5 * seen[0]["coarse"]
    assert seen[-1]["fine"] < 0.7 * seen[0]["fine"]


def test_accuracy_under_parallax():
    pairs = held_out_parallax(photographs(), CONFIG.pairs, 3, seed=0)
    assert held_out_parallax(photographs(), PairConfig(size=(64, 64)), 3, seed=0) == []

    class Oracle:
        """Right at half of its matches, and 5 px off at the others; it finds nothing in the last pair."""

        def __init__(self):
            self.left = list(pairs)

        def __call__(self, image0, image1):
            pair = self.left.pop(0)
            count = 8 if self.left else 0
            points0 = np.random.default_rng(0).uniform(20, 40, (count, 2)).astype(np.float32)
            points1 = pair.points1_of(torch.from_numpy(points0)[None])[0].numpy()
            points1[::2, 0] += 5
            ones = np.ones(count, np.float32)
            return Matches(points0=points0, points1=points1, scores=ones, size0=(64, 64), size1=(64, 64), method="o")

    assert mean_accuracy(Oracle(), pairs, 3.0) == pytest.approx(1 / 3)


def weights_of(run: Run) -> dict:
    return torch.load(run.checkpoint, weights_only=True)["network"]


def test_a_resumed_run_equals_one_that_was_not_interrupted(tmp_path):
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    train(training(), CONFIG.loop, whole, on_progress=lambda _: None)
    with pytest.raises(Interrupted):
        train(training(), CONFIG.loop, parts, on_progress=lambda _: None, stop_after=2)
    train(training(), CONFIG.loop, parts, resume=True, on_progress=lambda _: None)
    resumed = weights_of(parts)
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, resumed[name]), name


def test_exported_weights_are_set_up_by_their_card_and_match(tmp_path):
    network = dataclasses.replace(TINY, position_code="old", frame="corner", matching="optimal_transport")
    config = dataclasses.replace(CONFIG, network=network, loop=dataclasses.replace(CONFIG.loop, steps=1))
    run = Run(tmp_path / "run")
    run.describe("loftr", {"config": config}, {})
    train(training(config), config.loop, run, on_progress=lambda _: None)
    path = tmp_path / "mine.safetensors"
    export_weights(run, path)
    matcher = build_loftr(MatcherOptions(weights=str(path)))
    assert matcher.config == network
    image = Image(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    assert matcher(image, image).size0 == (64, 64)
    # Without the card the tensors tell what they can; fine-tuning starts from the same network.
    path.with_suffix(".json").unlink()
    assert load_loftr(str(path)).config.matching == "optimal_transport"
    assert load_loftr(str(path)).config.position_code == "fixed"


def test_the_command_trains_and_fine_tunes(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for index, pixels in enumerate(photographs(3, 96).pixels):
        write_image(folder / f"{index}.png", Image(pixels[..., 0]))
    settings = [
        "network.widths=[8,16,16]", "network.num_heads=2", "pairs.size=[64,64]", "num_validation=2", "loop.steps=1",
        "loop.batch_size=2", "loop.precision=fp32",
    ]  # fmt: skip
    common = ["loftr", str(folder), "--held-out", str(folder), "--store", str(tmp_path / "store")]
    common += [word for setting in settings for word in ("--set", setting)]

    def run(*options: str) -> str:
        done = CliRunner().invoke(train_commands, [*common, *options])
        assert done.exit_code == 0, done.output
        return done.output

    assert "best:" in run("--out", str(tmp_path / "run"))
    exported = str(tmp_path / "mine.safetensors")
    assert CliRunner().invoke(weights, ["export", str(tmp_path / "run"), "--to", exported]).exit_code == 0
    run("--out", str(tmp_path / "tuned"), "--fine-tune", exported)
    other = ["--out", str(tmp_path / "other"), "--fine-tune", exported, "--set", "network.widths=[8,16,32]"]
    refused = CliRunner().invoke(train_commands, [*common, *other])
    assert "network: expected that of" in refused.output
