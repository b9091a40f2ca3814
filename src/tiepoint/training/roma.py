"""RoMa on pairs of views of plain photographs: warp and certainty at every scale (section 3.4 of the paper).

Where this leaves the paper: true warps come from known views rather than from depth; the small network's coarse trunk
learns along, with a loss of its own; unrelated pairs teach certainty to say no; training starts where the network
already reads the Gaussian process's answer (`start_roma`). The full network is trained by the same losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tiepoint.matchers.roma import ROMA_SMALL_CONFIG
from tiepoint.matchers.roma_network import (
    COARSE,
    CoarseMatch,
    GaussianProcess,
    Pyramid,
    Refinement,
    Refiner,
    RomaConfig,
    RomaNetwork,
    pixel_grid,
    resized,
)
from tiepoint.networks.residual_trunk import ResidualTrunk
from tiepoint.networks.vit import Block
from tiepoint.training.engine import Compute, LoopConfig, Loss, Task
from tiepoint.training.pairs import PairConfig, difficulty_at, make_pairs
from tiepoint.training.parallax import ParallaxConfig
from tiepoint.training.photographs import Photographs
from tiepoint.training.photometric import partly_gray
from tiepoint.training.roma_losses import (
    Truth,
    anchor_loss,
    certainty_loss,
    error_px,
    feature_loss,
    robust_loss,
    true_warps,
    window_loss,
    within_reach,
)
from tiepoint.training.roma_validation import RomaValidation, as_seen
from tiepoint.training.warps import WarpConfig

# How far the warp a refiner starts from may be wrong, in cells of its scale; the publication's, at its 512 px.
REACH_CELLS = {8: 8.0, 4: 8.0, 2: 4.0, 1: 4.0}
SCALES = (16, 8, 4, 2, 1)
FINE_FROM = 4  # from this scale on, refiners see but a share of the pairs
_LED_CELLS = 1.5
_NOISE, _STEP, _LOUD = 0.3, 0.3, 10.0  # of the refiners' start
_START_CONTRAST = 10.0  # logit of the right anchor above that of others, where the process is sure


@dataclass(frozen=True, kw_only=True)
class RomaLossConfig:
    """Weights and constants; errors are in pixels of the views.

    anchor_weight, feature_weight, refiner_weight, certainty_weight: of the classification of anchors, of the
        trunk's features (0 for a trunk trained already), of each refiner's regression, of certainty at each scale.
        The paper's certainty_weight, 0.01 beside errors in units of half a frame of 560, is 0.17 beside pixels.
    feature_temperature: of the softmax over cosines.
    softness_px: c; a refiner of scale s has softness c s. The published 1e-4 of half a frame of 560 is 0.03 px.
    exponent: alpha.
    """

    anchor_weight: float = 1.0
    feature_weight: float = 1.0
    feature_temperature: float = 0.1
    refiner_weight: float = 1.0
    certainty_weight: float = 0.17
    softness_px: float = 0.03
    exponent: float = 0.5


@dataclass(frozen=True, kw_only=True)
class RomaTrainingConfig:
    """pairs: square views, sides multiples of 112; little rotation, for RoMa is for upright pictures.

    unrelated_share: of the pairs that show two different photographs.
    gray_share: of the views that are turned grey, so that grey pictures match as well.
    fine_share: of the pairs on which the refiners 4, 2 and 1 are trained, which see 16, 64 and 256 times as many
        cells as the coarse map has.
    guided_share: of the pairs whose refiners start near the truth rather than where the scale before ended, so that
        all scales learn from the first step on; falls to 0 by the end of the training.
    num_validation: held-out pairs of either kind.
    """

    pairs: PairConfig = field(
        default_factory=lambda: PairConfig(
            size=(224, 224),
            warp1=WarpConfig(rotation_deg=30, scale=1.5, perspective=0.3),
            parallax=ParallaxConfig(amplitude=0.1),
        )
    )
    losses: RomaLossConfig = field(default_factory=RomaLossConfig)
    unrelated_share: float = 0.15
    gray_share: float = 0.2
    fine_share: float = 0.25
    guided_share: float = 0.75
    num_validation: int = 24
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=40_000, precision="fp32", learning_rate=1e-3, average_decay=0.995)
    )


class RomaTraining(Task):
    """Trains `roma-small`, or whatever RoMa it is given."""

    # Of every pixel that both views show, planes and parallax alike: what a dense matcher is for. The homographies'
    # AUC says nothing of parallax, and stays 0 for much of a training.
    judged_by = "PCK_3"
    network: RomaNetwork

    def __init__(
        self,
        config: RomaTrainingConfig,
        photographs: Photographs,
        held_out: Photographs,
        network: RomaNetwork | None = None,
    ) -> None:
        """network: one to fine-tune; None starts `roma-small` from nothing. Photographs are in colour."""
        torch.manual_seed(config.loop.seed)
        self.network = network or untrained_roma()
        self.config, self.photographs = config, photographs
        self.validation = RomaValidation(held_out, config.pairs, config.num_validation, config.loop.seed)

    def loss(self, batch_size: int, progress: float, generator: Generator, compute: Compute) -> Loss:
        config = self.config
        indices = torch.randint(len(self.photographs), (batch_size,), generator=generator)
        difficulty = difficulty_at(progress, config.pairs.easy_share)
        pairs = make_pairs(self.photographs, indices, config.pairs, difficulty, generator, compute.device)
        partners = draw_partners(indices, config.unrelated_share, generator)
        related = (partners == torch.arange(batch_size)).repeat(2).to(compute.device)

        # Every view is encoded once and matched both ways: rows are 0 to 1, then 1 to 0.
        views = torch.cat([pairs.views0.images, pairs.views1.images])
        with compute.autocast():
            queries = self.network.encode(as_seen(partly_gray(views, config.gray_share, generator)))
        targets = rows_of(queries, torch.cat([partners + batch_size, partners]).to(compute.device))
        truths = {scale: true_warps(pairs, map_size(queries, scale)).where(related) for scale in SCALES}
        with compute.autocast():
            coarse = self.network.coarse_match(queries, targets)
            stages = self._refined(queries, targets, coarse, truths, config.guided_share * (1 - progress), generator)
        features = queries.maps[COARSE], targets.maps[COARSE]
        parts = coarse_losses(coarse, features, truths[COARSE], config.losses)
        for stage in stages:
            radius = self.network.config.correlation_radii.get(stage.step.scale)
            parts |= refiner_losses(stage, radius, queries.size, config.losses)
        return Loss(weighted_sum(parts, config.losses), parts)

    def _refined(
        self,
        queries: Pyramid,
        targets: Pyramid,
        coarse: CoarseMatch,
        truths: dict[int, Truth],
        guided_share: float,
        generator: Generator,
    ) -> list[Stage]:
        """Every refiner's step, from `FINE_FROM` on of some of the rows."""
        warp, certainty = coarse.warp, coarse.certainty
        guided = torch.rand(len(warp), generator=generator) < guided_share
        chosen = torch.randperm(len(warp), generator=generator)[: max(1, round(self.config.fine_share * len(warp)))]
        stages = []
        for scale in SCALES:
            if scale == FINE_FROM:
                rows = chosen.to(warp.device)
                queries, targets = rows_of(queries, rows), rows_of(targets, rows)
                warp, certainty, guided = warp[rows], certainty[rows], guided[chosen]
                truths = {s: truth.rows(rows) for s, truth in truths.items()}
            start = resized(warp.detach(), map_size(queries, scale))
            start = led(start, truths[scale], guided, scale, queries.size, generator)
            (step,) = self.network.refine(queries, targets, start, certainty, (scale,))
            stages.append(Stage(step, start, truths[scale], queries.maps[scale], targets.maps[scale]))
            warp, certainty = step.warp, step.certainty
        return stages

    def validate(self, network: nn.Module, device: torch.device, pictures: Path) -> dict[str, float]:
        assert isinstance(network, RomaNetwork)
        return self.validation.figures(network, device, pictures)


def led(start: Tensor, truth: Truth, guided: Tensor, scale: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """`start` (B, 2, h, w), in the `guided` (B,) rows replaced by the truth and a smooth error.

    The error is up to 1.5 cells of `scale`, which the scale before leaves when it is trained; unseen places keep
    their start. size: (H, W) of the views.
    """
    batch, _, height, width = start.shape
    coarse = 2 * torch.rand(batch, 2, 4, 4, generator=generator) - 1
    strength = torch.rand(batch, 1, 1, 1, generator=generator) * _LED_CELLS * scale
    cell = torch.tensor([2 / size[1], 2 / size[0]]).view(1, 2, 1, 1)
    error = F.interpolate(coarse * strength * cell, (height, width), mode="bilinear", align_corners=True)
    replaced = guided.to(start.device)[:, None, None] & truth.visible
    return torch.where(replaced[:, None], truth.warp + error.to(start.device), start)


@dataclass(frozen=True, eq=False)
class Stage:
    """A refiner's step, the warp (B, 2, h, w) it started from, the truth at its cells, both views' features."""

    step: Refinement
    start: Tensor
    truth: Truth
    features0: Tensor
    features1: Tensor


def coarse_losses(
    coarse: CoarseMatch, features: tuple[Tensor, Tensor], truth: Truth, config: RomaLossConfig
) -> dict[str, Tensor]:
    """`anchors`, `certainty_coarse`, and `features` if they weigh anything.

    features: of queries and targets, (B, C, h, w).
    """
    parts = {
        "anchors": anchor_loss(coarse.logits.float(), truth),
        "certainty_coarse": certainty_loss(coarse.certainty, truth.visible),
    }
    if config.feature_weight:
        parts["features"] = feature_loss(*features, truth, config.feature_temperature)
    return parts


def refiner_losses(
    stage: Stage, radius: int | None, size: tuple[int, int], config: RomaLossConfig
) -> dict[str, Tensor]:
    """`warp_s` and `certainty_s` of the refiner of scale s, and `features_s` if they weigh anything.

    radius: of the window it correlates, None for none; size: (H, W) of the views.
    """
    scale, warp, truth = stage.step.scale, stage.step.warp.float(), stage.truth
    matchable = truth.visible
    if scale in REACH_CELLS:
        matchable = within_reach(stage.start.float(), truth, size, REACH_CELLS[scale] * scale)
    errors = error_px(warp, truth, size)
    parts = {
        f"warp_{scale}": robust_loss(errors, matchable, config.softness_px * scale, config.exponent),
        f"certainty_{scale}": certainty_loss(stage.step.certainty, matchable),
    }
    if radius is not None and config.feature_weight:
        parts[f"features_{scale}"] = window_loss(stage.features0, stage.features1, stage.start, truth, radius)
    return parts


def weighted_sum(parts: dict[str, Tensor], config: RomaLossConfig) -> Tensor:
    """The total of all parts; scales weigh the same, as published."""
    weights = {
        "anchors": config.anchor_weight,
        "features": config.feature_weight,
        "warp": config.refiner_weight,
        "certainty": config.certainty_weight,
    }
    return torch.stack([weights[name.partition("_")[0]] * part for name, part in parts.items()]).sum()


def draw_partners(indices: Tensor, unrelated_share: float, generator: Generator) -> Tensor:
    """(B,) whose other view each pair's view is matched with: its own, or by chance the next pair's.

    Where the next pair happens to show the same photograph of `indices` (B,), it stays its own.
    """
    own = torch.arange(len(indices))
    following = own.roll(-1)
    unrelated = torch.rand(len(indices), generator=generator) < unrelated_share
    return torch.where(unrelated & (indices != indices[following]), following, own)


def rows_of(pyramid: Pyramid, rows: Tensor) -> Pyramid:
    """The pyramid of some images of a batch, in the order of `rows`."""
    maps = {scale: features.index_select(0, rows) for scale, features in pyramid.maps.items()}
    posterior = None if pyramid.posterior is None else pyramid.posterior.index_select(0, rows)
    return Pyramid(size=pyramid.size, maps=maps, posterior=posterior)


def map_size(pyramid: Pyramid, scale: int) -> tuple[int, int]:
    height, width = pyramid.maps[scale].shape[2:]
    return height, width


def untrained_roma(config: RomaConfig = ROMA_SMALL_CONFIG) -> RomaNetwork:
    """A network of our own kind, weights drawn from torch's generator, at `start_roma`."""
    network = RomaNetwork(config)
    start_roma(network)
    return network


@torch.no_grad()
def start_roma(network: RomaNetwork) -> None:
    """Begin where the Gaussian process's answer is read as it stands, in place.

    The process regresses E(x) = cos(8 pi (W x + b)) of the place x in the other image. The transformers' blocks
    begin as the identity, and the decoder's logit of anchor a as k (2 / D) <E(a), mean>, about k where E(a) agrees
    and 0 elsewhere: random weights would first have to find the inverse of E. Refiners: `_start_refiner`.
    """
    decoder = network.decoder
    blocks = list(decoder.embedding_decoder.blocks)
    if isinstance(network.trunk, ResidualTrunk):  # DINOv2's blocks know what they do
        blocks += list(network.trunk.blocks)
    for block in blocks:
        assert isinstance(block, Block)
        for layer in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    side = network.config.anchors_per_side
    dim = network.config.gp_dim
    to_out = decoder.embedding_decoder.to_out
    process = decoder.gps[str(COARSE)]
    assert isinstance(process, GaussianProcess)
    embedded = torch.cos(8 * math.pi * process.pos_conv(pixel_grid((side, side), to_out.weight)))  # (1, D, K, K)
    nn.init.zeros_(to_out.weight)
    nn.init.zeros_(to_out.bias)
    to_out.weight[:-1, :dim] = embedded[0].flatten(1).T * (_START_CONTRAST * 2 / dim)
    for refiner in decoder.conv_refiner.values():
        assert isinstance(refiner, Refiner)
        _start_refiner(refiner)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # the refiners' 0.01 is for hundreds of thousands of steps


def _start_refiner(refiner: Refiner) -> None:
    """Blocks that nearly hand on what they get, and a step towards the offsets that correlate; without any, no step.

    One without correlation gets loud blocks instead: its step is up to tens of units, its last layer is narrow, and
    Adam moves a weight by no more than the rate.
    """
    refiner.out_conv.weight.zero_()
    refiner.out_conv.bias.zero_()  # type: ignore[union-attr]
    convolutions = [layer for layer in refiner.modules() if isinstance(layer, nn.Conv2d)]
    spreading = [layer for layer in convolutions if layer.kernel_size == (5, 5)]  # (C, 1, 5, 5)
    mixing = [layer for layer in convolutions if layer.in_channels == layer.out_channels and layer.groups == 1]
    if refiner.radius is None:
        mixing[-1].weight.mul_(_LOUD)
        return
    for spread, mixed in zip(spreading, mixing, strict=True):
        spread.weight.mul_(_NOISE)[:, 0, 2, 2] += 1
        mixed.weight.mul_(_NOISE)[:, :, 0, 0] += torch.eye(mixed.in_channels)
    side = 2 * refiner.radius + 1
    offsets = torch.arange(side) - float(refiner.radius)
    x, y = torch.meshgrid(offsets, offsets, indexing="xy")
    # A step of 8 is a cell; the window is the last of what the refiner sees.
    refiner.out_conv.weight[:2, -(side**2) :, 0, 0] = torch.stack([x.flatten(), y.flatten()]) * (_STEP * 8 / side**2)
