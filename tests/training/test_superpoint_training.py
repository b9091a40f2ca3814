"""SuperPoint's training: every loss reaches every weight, and a small one learns."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from tiepoint.geometry.error_curve import auc
from tiepoint.matchers.superpoint import load_superpoint
from tiepoint.training.engine import Compute, LoopConfig, generator_of, train
from tiepoint.training.export import export_weights, licences
from tiepoint.training.label import Labels
from tiepoint.training.pairs import PairConfig, difficulty_at, make_pairs
from tiepoint.training.photographs import Photographs
from tiepoint.training.photometric import PhotometricConfig
from tiepoint.training.record import Run
from tiepoint.training.superpoint import LOSSES, SuperPointTraining, SuperPointTrainingConfig, whole_cells
from tiepoint.training.validation import held_out_pairs, judge
from tiepoint.training.warps import WarpConfig
from tiepoint.weights import load_weights

CPU = torch.device("cpu")
CONFIG = SuperPointTrainingConfig(
    descriptor_dim=32,
    pairs=PairConfig(size=(64, 64)),
    num_validation=2,
    loop=LoopConfig(steps=2, batch_size=2, precision="fp32", validate_every=2, warm_up_steps=1),
)


def photographs(count: int = 4, side: int = 96) -> Photographs:
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (12, 12), np.uint8)
        pictures.append(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))
    return Photographs([f"{i}.png" for i in range(count)], np.stack(pictures)[..., None], "blobs")


def labels(count: int = 4, side: int = 96) -> Labels:
    points = np.random.default_rng(1).uniform(0, side - 1, (count, 30, 3)).astype(np.float32)
    points[:, 20:] = np.nan
    return Labels(points, "blobs")


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_reaches_every_weight(kind):
    config = dataclasses.replace(CONFIG, descriptor=LOSSES[kind])
    task = SuperPointTraining(config, photographs(), labels(), photographs())
    task.network.train()
    loss = task.loss(2, 0.9, generator_of(0, 0), Compute(CPU))
    loss.total.backward()
    assert loss.total.isfinite()
    assert set(loss.parts) == {"detector", "descriptor"}
    for name, parameter in task.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_reprojection_is_one_more_part():
    config = dataclasses.replace(CONFIG, reprojection_weight=2.0)
    task = SuperPointTraining(config, photographs(), labels(), photographs())
    loss = task.loss(2, 0.9, generator_of(0, 0), Compute(CPU))
    detector, reprojection, descriptor = (loss.parts[name] for name in ("detector", "reprojection", "descriptor"))
    assert reprojection > 0
    assert torch.isclose(loss.total, config.detector_weight * detector + 2 * reprojection + descriptor)


def test_photographs_without_any_label_still_train():
    nothing = Labels(np.full((4, 5, 3), np.nan, np.float32), "blobs")
    task = SuperPointTraining(CONFIG, photographs(), nothing, photographs())
    task.network.train()
    assert task.loss(2, 0.0, generator_of(0, 0), Compute(CPU)).total.isfinite()


def test_a_run_leaves_weights_that_load_and_a_card(tmp_path):
    run = Run(tmp_path / "run")
    (tmp_path / "manifest.csv").write_text("file,licence\n0.png,MIT\n1.png,MIT\n2.png,CC0\n")
    run.describe("superpoint", {"config": CONFIG}, {"licences": licences(tmp_path)})
    task = SuperPointTraining(CONFIG, photographs(), labels(), photographs())
    train(task, CONFIG.loop, run, on_progress=lambda _: None)
    path = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=r"has no best\.safetensors"):
        export_weights(Run(tmp_path / "nothing"), path)
    export_weights(run, path)
    network = load_superpoint(load_weights(path), "out")
    assert network.config.descriptor_dim == 32
    assert '"MIT": 2' in path.with_suffix(".json").read_text()
    assert (tmp_path / "run" / "samples-0000002.png").exists()


@pytest.mark.slow
def test_a_minute_of_training_learns_to_match(tmp_path):
    """Four photographs by heart: from no right match to most."""
    pairs = PairConfig(
        size=(64, 64),
        warp0=WarpConfig(rotation_deg=0, scale=1, perspective=0, shear=0),
        warp1=WarpConfig(rotation_deg=20, scale=1.1, perspective=0.1, shear=0.05),
        photometric=PhotometricConfig(noise=0.01, impulse=0, compression=0, blur_px=0.3, motion_px=0),
    )
    loop = LoopConfig(
        steps=150, batch_size=4, learning_rate=3e-3, warm_up_steps=10, validate_every=150, average_decay=0.9
    )
    config = dataclasses.replace(CONFIG, pairs=pairs, loop=loop, num_validation=8)
    task = SuperPointTraining(config, photographs(), labels(), photographs())
    best = train(task, loop, Run(tmp_path), on_progress=lambda _: None)
    assert best["MMA_3"] > 0.5
    assert best["correct"] > 5


def test_pairs_by_the_seed_and_harder_as_training_goes_on():
    indices = torch.tensor([0, 2])
    first, second = (
        make_pairs(photographs(), indices, PairConfig(size=(64, 64)), 1.0, generator_of(0, 5), CPU) for _ in range(2)
    )
    assert torch.equal(first.views1.images, second.views1.images)
    assert difficulty_at(0.0, 0.2) == pytest.approx(0.25)
    assert difficulty_at(0.1, 0.2) == pytest.approx(0.625)
    assert difficulty_at(0.2, 0.2) == 1.0
    assert difficulty_at(0.0, 0.0) == 1.0


def test_whole_cells():
    valid = torch.ones(1, 16, 24, dtype=torch.bool)
    valid[0, 3, 17] = False
    assert whole_cells(valid)[0].tolist() == [[True, True, False], [True, True, True]]


def test_a_matcher_that_knows_the_truth_is_judged_perfect():
    pairs = held_out_pairs(photographs(), PairConfig(size=(64, 64)), 3, seed=0)

    class Oracle:
        def __call__(self, image0, image1):
            from tiepoint.geometry import Matches

            (pair,) = [p for p in pairs if p.image0 is image0]
            points0 = np.random.default_rng(0).uniform(0, 63, (50, 2)).astype(np.float32)
            points1 = pair.H_1_from_0(points0).astype(np.float32)
            ones = np.ones(50, np.float32)
            return Matches(points0=points0, points1=points1, scores=ones, size0=(64, 64), size1=(64, 64), method="o")

    figures = judge(Oracle(), pairs)
    assert figures["MMA_1"] == figures["MMA_3"] == 1
    assert figures["correct"] == 50
    assert figures["AUC_3"] > 0.99


def test_area_under_the_curve_by_hand():
    # (0, 0), (1, 1/2), then flat to 2: (1 * 1/4 + 1 * 1/2) / 2.
    assert auc(np.array([1.0, np.inf]), 2.0) == pytest.approx(0.375)
    assert auc(np.array([np.inf]), 2.0) == 0
