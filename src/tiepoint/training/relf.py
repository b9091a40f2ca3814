"""RELF on pairs of views of plain photographs (Lee, Kim, Kim, Cho, CVPR 2023), as published and corrected.

Where the corrected way leaves the paper: points know their own rotation, not the whole view's; the orientation loss
reads the histograms as they are, turns one of them once and does not draw them flat; descriptors are told from others
of their own pair, both ways. In either way views turn by any angle, and the network sees pictures as the matcher shows
them to it.

Rotations are in radians, counter-clockwise as displayed, y downwards; a shift of s moves fields by `roll(+s)`.
Features at K points of B views are (B, K, F, N): F regular fields of N group elements each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tiepoint.matchers.base import SparseMatcher
from tiepoint.matchers.nearest import NearestKeypoints
from tiepoint.matchers.relf import RelfConfig, RelfExtractor
from tiepoint.matchers.relf_sampling import align, sample_features
from tiepoint.matchers.sift import Sift
from tiepoint.networks.equivariant_resnet import EquivariantBackbone, ReResNet, ReWideResNet
from tiepoint.training.description import choose_points, info_nce
from tiepoint.training.engine import Compute, LoopConfig, Loss, Task
from tiepoint.training.pairs import PairConfig, ViewPairs, difficulty_at, make_pairs
from tiepoint.training.photographs import Photographs
from tiepoint.training.photometric import partly_gray
from tiepoint.training.validation import draw_samples, held_out_pairs, judge
from tiepoint.training.warps import transform_points

_GRID = 16  # views gain a row and a column, so that their sides become 16 k + 1, which the matcher brings images to
_EPSILON = 1e-6  # of the published logarithm


@dataclass(frozen=True, kw_only=True)
class CorrectedConfig:
    """temperature: of InfoNCE; others within clear_px of the partner count neither way.

    orientation_temperature: of the softmax over raw histograms. orientation_weight: beside the descriptors' loss.
    """

    kind: Literal["corrected"] = "corrected"
    temperature: float = 0.07
    clear_px: float = 6.0
    orientation_temperature: float = 0.2
    orientation_weight: float = 0.3


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """The paper's constants, with the flaws of its code: see `published_losses`."""

    kind: Literal["published"] = "published"
    temperature: float = 0.07
    orientation_weight: float = 10.0


RelfLoss = CorrectedConfig | PublishedConfig

LOSSES: dict[str, RelfLoss] = {loss.kind: loss for loss in (CorrectedConfig(), PublishedConfig())}


@dataclass(frozen=True, kw_only=True)
class RelfTrainingConfig:
    """backbone: with `order` rotations, which the wide one has 8 of in any case.

    pairs: views of sides that are multiples of 16; num_points sampled of each pair.
    gray_share: of the views that lose their colour. num_validation: held-out pairs.
    """

    backbone: Literal["re_resnet", "e2wrn16_8R"] = "re_resnet"
    order: int = 16
    pairs: PairConfig = field(default_factory=lambda: PairConfig(size=(128, 160), easy_share=0.0))
    losses: RelfLoss = field(default_factory=CorrectedConfig)
    num_points: int = 256
    gray_share: float = 0.3
    num_validation: int = 50
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(steps=20_000, batch_size=4, learning_rate=2e-3, average_decay=0.998)
    )

    def __post_init__(self) -> None:
        if any(side % _GRID for side in self.pairs.size):
            raise ValueError(f"pairs.size: expected multiples of {_GRID}, got {self.pairs.size}")


class RelfTraining(Task):
    """Trains a RELF; judged by the homographies of held-out pairs, through the method users call."""

    judged_by = "AUC_5"
    network: EquivariantBackbone

    def __init__(
        self,
        config: RelfTrainingConfig,
        photographs: Photographs,
        held_out: Photographs,
        network: EquivariantBackbone | None = None,
    ) -> None:
        """photographs: in colour, or grey; held_out: grey, as other methods are judged.

        network: one to fine-tune, which need not be `config.backbone`; None starts from nothing.
        """
        torch.manual_seed(config.loop.seed)
        self.network = network or untrained(config)
        self.config, self.photographs = config, photographs
        self.held_out = held_out_pairs(held_out, config.pairs, config.num_validation, config.loop.seed)

    def loss(self, batch_size: int, progress: float, generator: Generator, compute: Compute) -> Loss:
        config = self.config
        indices = torch.randint(len(self.photographs), (batch_size,), generator=generator)
        difficulty = difficulty_at(progress, config.pairs.easy_share)
        pairs = make_pairs(self.photographs, indices, config.pairs, difficulty, generator, compute.device)
        keypoints = sift_keypoints(pairs.views0.images, config.num_points)
        points0, points1, kept = choose_points(
            keypoints, pairs.H_1_from_0, pairs.views0.valid, pairs.views1.valid, config.num_points, generator
        )
        images = torch.cat([pairs.views0.images, pairs.views1.images]).expand(-1, 3, -1, -1)
        images = as_seen(partly_gray(images, config.gray_share, generator))
        # Views behind the camera are NaN; they are not kept, but have to be read somewhere.
        points = torch.cat([points0, points1]).nan_to_num(0.0)
        with compute.autocast():
            features = sample_features(
                self.network, images.contiguous(memory_format=torch.channels_last), points, published_grid=False
            )
        features0, features1 = features.float().chunk(2)
        descriptor, orientation = self._losses(features0, features1, points0, points1, kept, pairs)
        true_shifts = shifts_of(local_rotations(pairs.H_1_from_0, points0), self.network.order)
        right = share_of_right_shifts(features0, features1, true_shifts, kept)
        total = descriptor + config.losses.orientation_weight * orientation
        return Loss(total, {"descriptor": descriptor, "orientation": orientation, "right_shifts": right})

    def _losses(
        self, features0: Tensor, features1: Tensor, points0: Tensor, points1: Tensor, kept: Tensor, pairs: ViewPairs
    ) -> RelfLosses:
        losses, order, H_1_from_0 = self.config.losses, self.network.order, pairs.H_1_from_0
        if isinstance(losses, PublishedConfig):
            everywhere = published_rotation(H_1_from_0)[:, None].expand(points0.shape[:2])
            return published_losses(features0, features1, shifts_of(everywhere, order), kept, losses)
        shifts = shifts_of(local_rotations(H_1_from_0, points0), order)
        return corrected_losses(
            features0, features1, shifts, points0.nan_to_num(-1e4), points1.nan_to_num(-1e4), kept, losses
        )

    def validate(self, network: nn.Module, device: torch.device, pictures: Path) -> dict[str, float]:
        assert isinstance(network, EquivariantBackbone)
        matcher = relf_matcher(network, str(device))
        draw_samples(matcher, self.held_out, pictures)
        return judge(matcher, self.held_out)


def untrained(config: RelfTrainingConfig) -> EquivariantBackbone:
    """The configured network, weights drawn from torch's generator."""
    return ReResNet(config.order) if config.backbone == "re_resnet" else ReWideResNet()


def relf_matcher(network: EquivariantBackbone, device: str = "cpu") -> SparseMatcher:
    """The method `relf` over `network`, at most 512 of SIFT's keypoints: its views are small."""
    extractor = RelfExtractor(network, Sift(max_num_keypoints=512), RelfConfig(), device=device)
    return SparseMatcher("relf", extractor, NearestKeypoints())


def as_seen(images: Tensor) -> Tensor:
    """(B, 3, H + 1, W + 1) as the network sees (B, 3, H, W) in [0, 1]: (255 x - 127) / 128, the edge repeated."""
    return F.pad((255 * images - 127) / 128, (0, 1, 0, 1), mode="replicate")


def sift_keypoints(images: Tensor, count: int) -> Tensor:
    """(B, count, 2) where SIFT, the method's own detector, finds keypoints in (B, C, H, W); NaN after the last."""
    detector = cv2.SIFT.create(nfeatures=count, enable_precise_upscale=True)
    found = np.full((len(images), count, 2), np.nan, np.float32)
    for row, image in zip(found, (images.mean(1) * 255).round().byte().cpu().numpy(), strict=True):
        points = cv2.KeyPoint.convert(detector.detect(image, None))[:count]  # ties may give more than asked for
        row[: len(points)] = np.reshape(points, (-1, 2))
    return torch.from_numpy(found).to(images.device)


# ---------------------------------------------------------------- rotations


def local_rotations(H_1_from_0: Tensor, points0: Tensor) -> Tensor:
    """(B, K) by how much the surroundings of each point are turned in view 1, from (B, 3, 3) and (B, K, 2).

    The rotation nearest to the warp's Jacobian J at the point: atan2(J01 - J10, J00 + J11), y downwards.
    """
    x1, y1 = transform_points(H_1_from_0, points0).unbind(-1)
    h = H_1_from_0[..., None]
    # J times the depth, which is positive wherever view 1 has the point
    j00, j01 = h[:, 0, 0] - x1 * h[:, 2, 0], h[:, 0, 1] - x1 * h[:, 2, 1]
    j10, j11 = h[:, 1, 0] - y1 * h[:, 2, 0], h[:, 1, 1] - y1 * h[:, 2, 1]
    return torch.atan2(j01 - j10, j00 + j11)


def published_rotation(H_1_from_0: Tensor) -> Tensor:
    """(B,) the paper's one rotation for a whole view: atan2(H01, H00)."""
    return torch.atan2(H_1_from_0[:, 0, 1], H_1_from_0[:, 0, 0])


def shifts_of(rotations: Tensor, order: int) -> Tensor:
    """Group elements, 0 to order - 1, nearest to rotations; anything of NaN."""
    return (rotations.nan_to_num(0.0) * order / (2 * math.pi)).round().long() % order


# ---------------------------------------------------------------- losses


class RelfLosses(NamedTuple):
    """Scalars, unweighted."""

    descriptor: Tensor
    orientation: Tensor


def corrected_losses(
    features0: Tensor,
    features1: Tensor,
    shifts: Tensor,
    points0: Tensor,
    points1: Tensor,
    kept: Tensor,
    config: CorrectedConfig,
) -> RelfLosses:
    """Of features (B, K, F, N) of the same points in both views; shifts: (B, K) true ones of view 1.

    descriptor: InfoNCE both ways over a pair's own points, view 1's fields moved back by the true shifts.
    orientation: mean of -log sum_g softmax(o0 / t)_g softmax(roll(o1, -s) / t)_g, the likelihood of the true shift
        if each view draws its orientation from its own histogram; o: field 0 as it is. In early training, where
        histograms are mostly noise, the paper's cross-entropy is least for flat ones, and gets stuck there; this is
        not, for it charges nothing for a deviation that the other view does not share.
    """
    descriptors0 = aligned(features0, torch.zeros_like(shifts))
    descriptors1 = aligned(features1, shifts)
    descriptor = info_nce(
        descriptors0, descriptors1, points0, points1, kept, temperature=config.temperature, clear_px=config.clear_px
    )
    histogram0 = (features0[:, :, 0] / config.orientation_temperature).log_softmax(-1)
    histogram1 = (turned(features1[:, :, 0], -shifts) / config.orientation_temperature).log_softmax(-1)
    return RelfLosses(descriptor, -_mean((histogram0 + histogram1).logsumexp(-1), kept))


def published_losses(
    features0: Tensor, features1: Tensor, shifts: Tensor, kept: Tensor, config: PublishedConfig
) -> RelfLosses:
    """The losses that the published code computes, of the same.

    descriptor: InfoNCE from view 0 to view 1 with all the batch's points as classes.
    orientation: cross-entropy over N, 1/N sum_g softmax(o0)_g log(softmax(o1)_g + 1e-6), negated, of histograms cut
        from descriptors of unit length, whose softmax is all but even. View 1's histogram is moved back with its
        descriptor and yet view 0's is moved forth: right only where the shift is 0.
    """
    order = features0.shape[-1]
    descriptors0 = aligned(features0, torch.zeros_like(shifts))
    descriptors1 = aligned(features1, shifts)
    flat0, flat1 = descriptors0[kept], descriptors1[kept]
    classes = torch.arange(len(flat0), device=flat0.device)
    # the sum over max(1, K) in place of the mean: 0 where nothing is kept
    descriptor = F.cross_entropy(flat0 @ flat1.T / config.temperature, classes, reduction="sum") / max(1, len(flat0))
    target = turned(descriptors0[..., :order], shifts).softmax(-1)
    found = (descriptors1[..., :order].softmax(-1) + _EPSILON).log()
    return RelfLosses(descriptor, -_mean((target * found).mean(-1), kept))


@torch.no_grad()
def share_of_right_shifts(features0: Tensor, features1: Tensor, shifts: Tensor, kept: Tensor) -> Tensor:
    """Share of the kept points at which the best entries of both histograms are the true shift apart: scalar."""
    found = features1[:, :, 0].argmax(-1) - features0[:, :, 0].argmax(-1)
    return _mean((found % features0.shape[-1] == shifts).float(), kept)


def aligned(features: Tensor, shifts: Tensor) -> Tensor:
    """(B, K, F * N) descriptors of unit length of (B, K, F, N), fields moved by -shifts (B, K), as when matching."""
    rows = torch.arange(shifts.numel(), device=features.device)
    return align(features.flatten(0, 1), rows, shifts.flatten()).view(*shifts.shape, -1)


def turned(histograms: Tensor, shifts: Tensor) -> Tensor:
    """(B, K, N), each moved by roll(+shift), shifts (B, K)."""
    order = histograms.shape[-1]
    source = (torch.arange(order, device=histograms.device) - shifts[..., None]) % order
    return histograms.gather(-1, source)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over (B, K) of what counts; 0 when nothing does."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)
