"""What LoFTR learns from, in batches, and what it is judged on: the interface, and views of plain photographs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from tiepoint.images import Image
from tiepoint.matchers.base import Matcher
from tiepoint.training.engine import generator_of
from tiepoint.training.loftr_losses import TrueCells, true_cells
from tiepoint.training.pairs import PairConfig, ViewPairs, difficulty_at, make_pairs
from tiepoint.training.parallax import ParallaxConfig
from tiepoint.training.photographs import Photographs
from tiepoint.training.validation import draw_samples, held_out_pairs, judge


class PairBatch(NamedTuple):
    """images0, images1: (B, 1, H, W) grey in [0, 1], H and W multiples of 8; truth: of their cells.

    valid0, valid1: (B, H / 8, W / 8) bool, the cells that are picture and not padding; None for all.
    """

    images0: Tensor
    images1: Tensor
    truth: TrueCells
    valid0: Tensor | None = None
    valid1: Tensor | None = None


class TrainingPairs(Protocol):
    """Where batches come from."""

    def draw(self, batch_size: int, progress: float, generator: Generator, device: torch.device) -> PairBatch:
        """All random choices from `generator` (a CPU generator); progress: the share of the training that is done."""


class HeldOut(Protocol):
    """Pairs that are not trained on. judged_by: the figure by which the best weights are kept; higher is better."""

    judged_by: str

    def judge(self, matcher: Matcher[Any], pictures: Path) -> dict[str, float]:
        """Figures of a matcher on pairs that never change; sample pictures go to `pictures` with an ending."""


class PhotographPairs:
    """Two views of each photograph. origin: pixels from the network's point (0, 0) to the first pixel's centre."""

    def __init__(self, photographs: Photographs, config: PairConfig, origin: float) -> None:
        self.photographs, self.config, self.origin = photographs, config, origin

    def draw(self, batch_size: int, progress: float, generator: Generator, device: torch.device) -> PairBatch:
        indices = torch.randint(len(self.photographs), (batch_size,), generator=generator)
        difficulty = difficulty_at(progress, self.config.easy_share)
        pairs = make_pairs(self.photographs, indices, self.config, difficulty, generator, device)
        return PairBatch(pairs.views0.images, pairs.views1.images, true_cells(pairs, self.origin))


class HeldOutViews:
    """Views of held-out photographs: judged by the homographies of planes, with matches under parallax beside them."""

    judged_by = "AUC_5"

    def __init__(self, photographs: Photographs, config: PairConfig, count: int, seed: int) -> None:
        """count: of pairs of planes, and of those with parallax, if `config` has any."""
        self.planes = held_out_pairs(photographs, replace(config, parallax=ParallaxConfig()), count, seed)
        self.with_parallax = held_out_parallax(photographs, config, count, seed)

    def judge(self, matcher: Matcher[Any], pictures: Path) -> dict[str, float]:
        draw_samples(matcher, self.planes, pictures)
        figures = judge(matcher, self.planes)
        if self.with_parallax:
            figures["MMA_3_parallax"] = mean_accuracy(matcher, self.with_parallax, 3.0)
        return figures


def held_out_parallax(photographs: Photographs, config: PairConfig, count: int, seed: int) -> list[ViewPairs]:
    """`count` pairs, each a batch of one, at full difficulty and always the same; none if `config` is of planes."""
    if not config.parallax.amplitude:
        return []
    generator = generator_of(seed, -1, 1)
    chosen = torch.linspace(0, len(photographs) - 1, count).round().long()
    return [make_pairs(photographs, row[None], config, 1.0, generator, torch.device("cpu")) for row in chosen]


def mean_accuracy(matcher: Matcher[Any], pairs: list[ViewPairs], threshold_px: float) -> float:
    """Share of a pair's matches within `threshold_px` of the truth, 0 without matches; the mean over the pairs."""
    shares = []
    for pair in pairs:
        image0, image1 = (Image((v.images[0, 0] * 255).round().byte().numpy()) for v in (pair.views0, pair.views1))
        matches = matcher(image0, image1)
        truth = pair.points1_of(torch.from_numpy(matches.points0)[None])[0]
        right = (truth - torch.from_numpy(matches.points1)).norm(dim=1) <= threshold_px
        shares.append(float(right.float().mean()) if len(right) else 0.0)
    return sum(shares) / len(shares)
