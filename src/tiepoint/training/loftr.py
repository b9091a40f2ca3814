"""LoFTR on pairs of pictures whose true matches are known (section 3.5 of the paper).

Where this leaves the paper: without depth, true matches come from views of plain photographs, or from a network's own
matches and poses; log P is computed as such, so that what the network holds for impossible still learns; and training
starts where tokens are the backbone's features as they stand (`start_as_correlation`), from where short trainings get
further.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from tiepoint.matchers.loftr import Loftr, LoftrOptions
from tiepoint.networks.linear_transformer import LinearTransformerLayer
from tiepoint.networks.loftr import CELL, SMALL, Cell, LoftrConfig, LoftrNetwork
from tiepoint.networks.resnet_fpn import FeatureMaps
from tiepoint.training.engine import Compute, LoopConfig, Loss, Task
from tiepoint.training.loftr_data import HeldOut, TrainingPairs
from tiepoint.training.loftr_losses import (
    TrueCells,
    dense_focal,
    fine_loss,
    pairs_to_refine,
    sparse_focal,
    true_offsets,
)
from tiepoint.training.pairs import PairConfig
from tiepoint.training.parallax import ParallaxConfig
from tiepoint.training.posed import PosedConfig
from tiepoint.training.warps import WarpConfig

_START_SCALE = 0.25


@dataclass(frozen=True, kw_only=True)
class LoftrLossConfig:
    """focal: over all pairs of cells ("dense"), which gives better poses, or over the true ones alone, and the
        dustbins of optimal transport ("sparse"), as the paper has it.
    alpha, gamma: of the focal loss.
    fine_weight: of the refinement's loss beside the coarse one.
    fine_share: pairs of cells that are refined in a step, as a share of the cells of all its views 0.
    padding: share of them that is left to true matches, whatever the network matches by itself.
    """

    focal: Literal["dense", "sparse"] = "dense"
    alpha: float = 0.25
    gamma: float = 2.0
    fine_weight: float = 1.0
    fine_share: float = 0.3
    padding: float = 0.3


@dataclass(frozen=True, kw_only=True)
class LoftrTrainingConfig:
    """network: how it is built, and how the matcher reads it; with weights to fine-tune, theirs.

    pairs: views of one size, multiples of 8; small ones, for a step costs what its pixels do.
    posed: photographs with known geometry, where those are trained on in place of views.
    largest_px: side of the square that views are taken to be cut from, each somewhere else, so that the network
        knows the positions of pictures larger than its views; 0 leaves views in the corner.
    num_validation: held-out pairs of planes, and as many with parallax; or held-out pairs of photographs.
    """

    network: LoftrConfig = SMALL
    pairs: PairConfig = field(
        default_factory=lambda: PairConfig(
            size=(160, 192), warp1=WarpConfig(rotation_deg=45), parallax=ParallaxConfig(amplitude=0.05)
        )
    )
    posed: PosedConfig = field(default_factory=PosedConfig)
    losses: LoftrLossConfig = field(default_factory=LoftrLossConfig)
    largest_px: int = 640
    num_validation: int = 50
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=40_000, batch_size=4, learning_rate=1e-3, average_decay=0.998)
    )


class LoftrTraining(Task):
    """Trains a LoFTR on pairs from anywhere; judged as the held-out pairs judge."""

    network: LoftrNetwork

    def __init__(
        self, config: LoftrTrainingConfig, pairs: TrainingPairs, held_out: HeldOut, network: LoftrNetwork | None = None
    ) -> None:
        """network: one to fine-tune, set up as `config.network`; None starts from nothing."""
        torch.manual_seed(config.loop.seed)
        self.network = network or untrained(config.network)
        self.config, self.pairs, self.held_out = config, pairs, held_out
        self.judged_by = held_out.judged_by

    def loss(self, batch_size: int, progress: float, generator: Generator, compute: Compute) -> Loss:
        config, network = self.config, self.network
        batch = self.pairs.draw(batch_size, progress, generator, compute.device)
        images0, images1 = (
            images.contiguous(memory_format=torch.channels_last) for images in (batch.images0, batch.images1)
        )
        valid, size = (batch.valid0, batch.valid1), (images0.shape[2], images0.shape[3])
        places = (draw_cell(size, config.largest_px, generator), draw_cell(size, config.largest_px, generator))
        with compute.autocast():
            maps0, maps1 = network.maps(images0, images1)
            tokens0, tokens1 = network.coarse_tokens(maps0.coarse, maps1.coarse, *valid, first_cells=places)
        tokens0, tokens1 = tokens0.float(), tokens1.float()
        log_p = network.log_coarse_confidence(tokens0, tokens1, *valid)
        at_matches, elsewhere = self._coarse_losses(log_p, batch.truth)
        fine = self._fine_loss(_in_float(maps0), _in_float(maps1), tokens0, tokens1, log_p, batch.truth, generator)
        total = at_matches + elsewhere + config.losses.fine_weight * fine
        return Loss(total, {"coarse": at_matches, "elsewhere": elsewhere, "fine": fine})

    def _coarse_losses(self, log_p: Tensor, truth: TrueCells) -> tuple[Tensor, Tensor]:
        config = self.config.losses
        cells = truth.partner.shape[1]
        labels = truth.labels(cells)
        if config.focal == "sparse":
            return sparse_focal(log_p, labels, config.alpha, config.gamma)
        return dense_focal(log_p[:, :cells, :cells], labels, config.alpha, config.gamma)

    def _fine_loss(
        self,
        maps0: FeatureMaps,
        maps1: FeatureMaps,
        tokens0: Tensor,
        tokens1: Tensor,
        log_p: Tensor,
        truth: TrueCells,
        generator: Generator,
    ) -> Tensor:
        config, network = self.config.losses, self.network
        cells = truth.partner.shape[1]
        budget = round(config.fine_share * truth.partner.numel())
        chosen = pairs_to_refine(
            log_p[:, :cells, :cells], truth, budget, config.padding, network.config.threshold, generator
        )
        windows0 = network.fine_windows(maps0, tokens0, chosen.batch, chosen.cells0)
        windows1 = network.fine_windows(maps1, tokens1, chosen.batch, chosen.cells1)
        found = network.fine_matches(windows0, windows1)[2]
        return fine_loss(found, true_offsets(chosen, truth, maps1.coarse.shape[3]))

    def validate(self, network: nn.Module, device: torch.device, pictures: Path) -> dict[str, float]:
        assert isinstance(network, LoftrNetwork)
        options = LoftrOptions(max_size_px=network.config.max_size_px, max_enlargement=1.0)
        matcher = Loftr(network, options, device=device)
        return self.held_out.judge(matcher, pictures)


def draw_cell(size: tuple[int, int], largest_px: int, generator: Generator) -> Cell:
    """The cell of a square picture of `largest_px` at which a view of `size` (height, width) begins."""
    height, width = size
    column, row = (
        int(torch.randint(max(largest_px - side, 0) // CELL + 1, (), generator=generator)) for side in (width, height)
    )
    return column, row


def untrained(config: LoftrConfig) -> LoftrNetwork:
    """Weights drawn from torch's generator, at `start_as_correlation`."""
    network = LoftrNetwork(config)
    start_as_correlation(network)
    return network


@torch.no_grad()
def start_as_correlation(network: LoftrNetwork) -> None:
    """Begin where cells, and places in a window, match by the product of the backbone's features, in place.

    Every transformer layer adds norm2(message) to its tokens; at norm2 = 0 they pass, and what layers learn of one
    another grows from there. Windows pass through the mixing with their cell's token. The coarse features are made
    so small that log P begins near even odds, -11 on average; at the width they are drawn in it is -40.
    """
    network.backbone.layer3_outconv.weight *= _START_SCALE
    for transformer in (network.loftr_coarse, network.loftr_fine):
        for layer in transformer.layers:
            assert isinstance(layer, LinearTransformerLayer)
            nn.init.zeros_(layer.norm2.weight)
    merge = network.fine_preprocess.merge_feat
    nn.init.eye_(merge.weight)  # (C, 2 C): the window's half is the identity, the token's is zero
    nn.init.zeros_(merge.bias)


def _in_float(maps: FeatureMaps) -> FeatureMaps:
    return FeatureMaps(maps.coarse.float(), maps.fine.float())
