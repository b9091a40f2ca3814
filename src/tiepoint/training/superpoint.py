"""SuperPoint: detector and descriptor together, on pairs of views of labelled photographs (section 3).

Where this leaves the paper: the descriptor's loss may be InfoNCE over sampled points, which converges far
faster than the hinge over all cells; the refined keypoints of both views may be drawn together; the views turn
by any angle; the network is the normalised open one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tiepoint.matchers.base import SparseMatcher
from tiepoint.matchers.nearest import NearestNeighbours
from tiepoint.matchers.superpoint import CELL_PX, Normalisation, SuperPoint, SuperPointMaps, published_tensors
from tiepoint.matchers.superpoint_extractor import PRESETS, SuperPointExtractor
from tiepoint.training.description import choose_points, hinge, info_nce, sample_batch, sparse_hinge
from tiepoint.training.detection import cell_labels, detector_loss, reprojection_loss
from tiepoint.training.engine import Compute, LoopConfig, Loss, Task
from tiepoint.training.label import Labels
from tiepoint.training.magicpoint import untrained
from tiepoint.training.pairs import PairConfig, ViewPairs, difficulty_at, make_pairs
from tiepoint.training.photographs import Photographs
from tiepoint.training.validation import draw_samples, held_out_pairs, judge
from tiepoint.training.warps import transform_points


@dataclass(frozen=True, kw_only=True)
class InfoNCEConfig:
    """num_points sampled of each pair; others within clear_px of the partner count neither way."""

    kind: Literal["info_nce"] = "info_nce"
    weight: float = 1.0
    num_points: int = 200
    temperature: float = 0.06
    clear_px: float = 10.0


@dataclass(frozen=True, kw_only=True)
class HingeConfig:
    """The paper's loss. Its own weight, 1e-4, has not been made to train by others; 1 is ours."""

    kind: Literal["hinge"] = "hinge"
    weight: float = 1.0
    positive_weight: float = 250.0


@dataclass(frozen=True, kw_only=True)
class SparseHingeConfig:
    """num_points sampled of each pair, num_negatives others for each of them."""

    kind: Literal["sparse_hinge"] = "sparse_hinge"
    weight: float = 1.0
    num_points: int = 600
    num_negatives: int = 100


DescriptorLoss = InfoNCEConfig | HingeConfig | SparseHingeConfig

LOSSES: dict[str, DescriptorLoss] = {loss.kind: loss for loss in (InfoNCEConfig(), HingeConfig(), SparseHingeConfig())}


@dataclass(frozen=True, kw_only=True)
class SuperPointTrainingConfig:
    """descriptor_dim, normalisation: of the network, as in `SuperPointConfig`.

    detector_weight: of the detector's loss, the mean of both views'.
    reprojection_weight: of the distance between both views' refined keypoints (`reprojection_loss`). For fine-tuning,
        at 1: it holds up a training from nothing, which has no keypoints yet that both views share.
    num_validation: held-out pairs.
    """

    descriptor_dim: int = 128
    normalisation: Normalisation = "after_relu"
    pairs: PairConfig = field(default_factory=PairConfig)
    descriptor: DescriptorLoss = field(default_factory=InfoNCEConfig)
    detector_weight: float = 2.0
    reprojection_weight: float = 0.0
    num_validation: int = 100
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(learning_rate=1.5e-3, steps=40_000))


class SuperPointTraining(Task):
    """Trains a SuperPoint on photographs and their labels; judged by the homographies of held-out pairs."""

    judged_by = "AUC_5"  # the share of right matches alone falls when more of them are found
    network: SuperPoint

    def __init__(
        self,
        config: SuperPointTrainingConfig,
        photographs: Photographs,
        labels: Labels,
        held_out: Photographs,
        network: SuperPoint | None = None,
    ) -> None:
        """network: where to start, MagicPoint or a SuperPoint to fine-tune; None starts from nothing."""
        torch.manual_seed(config.loop.seed)
        self.network = network or untrained(config.descriptor_dim, config.normalisation)
        self.config, self.photographs, self.labels = config, photographs, labels
        self.held_out = held_out_pairs(held_out, config.pairs, config.num_validation, config.loop.seed)

    def loss(self, batch_size: int, progress: float, generator: Generator, compute: Compute) -> Loss:
        config = self.config
        indices = torch.randint(len(self.photographs), (batch_size,), generator=generator)
        difficulty = difficulty_at(progress, config.pairs.easy_share)
        pairs = make_pairs(self.photographs, indices, config.pairs, difficulty, generator, compute.device)
        keypoints = self.labels.batch(indices, compute.device)
        keypoints0 = transform_points(pairs.H_view0_from_source, keypoints)
        keypoints1 = transform_points(pairs.H_view1_from_source, keypoints)

        images = torch.cat([pairs.views0.images, pairs.views1.images])
        valid = torch.cat([pairs.views0.valid, pairs.views1.valid])
        with compute.autocast():
            maps = self.network(images.contiguous(memory_format=torch.channels_last))
        labels = cell_labels(torch.cat([keypoints0, keypoints1]), config.pairs.size, valid, generator)
        detector = detector_loss(maps.logits.float(), labels)
        descriptor = self._descriptor_loss(maps, pairs, keypoints0, generator)
        total = config.detector_weight * detector + config.descriptor.weight * descriptor
        if not config.reprojection_weight:
            return Loss(total, {"detector": detector, "descriptor": descriptor})
        logits0, logits1 = maps.logits.chunk(2)
        reprojection = reprojection_loss(logits0, logits1, pairs.views1.valid, pairs.H_1_from_0)
        total = total + config.reprojection_weight * reprojection
        return Loss(total, {"detector": detector, "reprojection": reprojection, "descriptor": descriptor})

    def _descriptor_loss(
        self, maps: SuperPointMaps, pairs: ViewPairs, keypoints0: Tensor, generator: Generator
    ) -> Tensor:
        chosen = self.config.descriptor
        map0, map1 = maps.descriptors.float().chunk(2)
        valid0, valid1 = pairs.views0.valid, pairs.views1.valid
        H_1_from_0 = pairs.H_1_from_0
        if isinstance(chosen, HingeConfig):
            return hinge(
                map0, map1, H_1_from_0, whole_cells(valid0), whole_cells(valid1),
                positive_weight=chosen.positive_weight,
            )  # fmt: skip
        points0, points1, kept = choose_points(keypoints0, H_1_from_0, valid0, valid1, chosen.num_points, generator)
        descriptors0, descriptors1 = sample_batch(map0, points0), sample_batch(map1, points1)
        points0, points1 = points0.nan_to_num(-1e4), points1.nan_to_num(-1e4)
        if isinstance(chosen, SparseHingeConfig):
            return sparse_hinge(
                descriptors0, descriptors1, points0, points1, kept, generator,
                num_negatives=chosen.num_negatives,
            )  # fmt: skip
        return info_nce(
            descriptors0, descriptors1, points0, points1, kept,
            temperature=chosen.temperature, clear_px=chosen.clear_px,
        )  # fmt: skip

    def exported(self, network: nn.Module) -> dict[str, Tensor]:
        assert isinstance(network, SuperPoint)
        return published_tensors(network)

    def validate(self, network: nn.Module, device: torch.device, pictures: Path) -> dict[str, float]:
        assert isinstance(network, SuperPoint)
        matcher = superpoint_matcher(network, str(device))
        draw_samples(matcher, self.held_out, pictures)
        return judge(matcher, self.held_out)


def superpoint_matcher(network: SuperPoint, device: str = "cpu") -> SparseMatcher:
    """The method `superpoint` over `network`, at its views' own size, which is small: 512 keypoints."""
    options = replace(PRESETS[network.config.normalisation], max_num_keypoints=512, max_enlargement=1.0)
    extractor = SuperPointExtractor(network, options, device=device)
    return SparseMatcher("superpoint", extractor, NearestNeighbours(ratio=None))


def whole_cells(valid: Tensor) -> Tensor:
    """(B, H/8, W/8) bool, whether all pixels of a cell are valid, from (B, H, W)."""
    return -F.max_pool2d(-valid[:, None].float(), CELL_PX)[:, 0] > 0.5
