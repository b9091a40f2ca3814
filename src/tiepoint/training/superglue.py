"""SuperGlue on features of any detector, from pairs of views with known homographies (section 4, appendix E).

Where this leaves the paper: matched and unmatched keypoints weigh the same, as its authors advise since; and the
network starts as a matcher of nearest neighbours, for which the paper's first hundred thousand steps are spent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from tiepoint.matchers.base import Extractor, SparseMatcher
from tiepoint.matchers.superglue import SuperGlue, SuperGlueConfig
from tiepoint.matchers.superglue_matcher import SuperGlueMatcher, SuperGlueOptions
from tiepoint.networks.optimal_transport import log_optimal_transport
from tiepoint.training.engine import Compute, LoopConfig, Loss, Task, generator_of
from tiepoint.training.feature_pool import FeaturePool, PairOfFeatures, PoolConfig
from tiepoint.training.pairs import PairConfig
from tiepoint.training.photographs import Photographs
from tiepoint.training.validation import draw_samples, held_out_pairs, judge
from tiepoint.training.warps import transform_points

_TEMPERATURES = (0.02, 0.03, 0.05, 0.08, 0.12)
_DUSTBIN_COSINES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_IGNORED = -1
_FEWEST_KEYPOINTS = 16


@dataclass(frozen=True, kw_only=True)
class SuperGlueTrainingConfig:
    """positive_px: greatest reprojection error of a match; negative_px: a keypoint whose best is above has none;
    what lies between counts neither way.

    num_keypoints: fewest and most in a batch, drawn anew for each: at use, both sparse and dense features come.
    num_iterations: of Sinkhorn's algorithm while training.
    deep_supervision: the loss is the mean over the outputs of all cross layers, not of the last alone.
    """

    pairs: PairConfig = field(default_factory=PairConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    num_keypoints: tuple[int, int] = (128, 384)
    positive_px: float = 3.0
    negative_px: float = 5.0
    num_iterations: int = 20
    deep_supervision: bool = False
    num_validation: int = 100
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(learning_rate=4e-5, steps=20_000))


class SuperGlueTraining(Task):
    """Trains a SuperGlue on a pool of features; judged by the homographies of held-out pairs."""

    judged_by = "AUC_5"
    network: SuperGlue

    def __init__(
        self,
        config: SuperGlueTrainingConfig,
        pool: FeaturePool,
        extractor: Extractor,
        held_out: Photographs,
        network: SuperGlue | None = None,
    ) -> None:
        """extractor: of the held-out pairs' features, as users have it. network: one to fine-tune."""
        usable = float((pool.counts.max(2).min(1) >= _FEWEST_KEYPOINTS).mean())
        if usable < 0.5:
            raise ValueError(
                f"expected {_FEWEST_KEYPOINTS} keypoints in views of half the photographs, found them in {usable:.0%}"
            )
        if network is not None and network.config.descriptor_dim != pool.descriptor_dim:
            raise ValueError(
                f"the SuperGlue to start from matches {network.config.descriptor_dim}-dimensional descriptors, "
                f"the features have {pool.descriptor_dim}"
            )
        torch.manual_seed(config.loop.seed)
        self.config, self.pool, self.extractor = config, pool, extractor
        self.network = network or self._untrained()
        self.held_out = held_out_pairs(held_out, config.pairs, config.num_validation, config.loop.seed)

    def loss(self, batch_size: int, progress: float, generator: Generator, compute: Compute) -> Loss:
        pairs = self._drawn(batch_size, generator, compute.device)
        truth = true_matches(pairs, self.config.positive_px, self.config.negative_px)
        outputs = list(self.network.layer_outputs(pairs.features0, pairs.features1))  # in fp32, which it needs
        supervised = outputs[2::2] if self.config.deep_supervision else outputs[-1:]
        losses = [self._loss_of(x0, x1, truth) for x0, x1 in supervised]
        matched, unmatched = (torch.stack(parts).mean() for parts in zip(*losses, strict=True))
        return Loss((matched + unmatched) / 2, {"matched": matched, "unmatched": unmatched})

    def _loss_of(self, x0: Tensor, x1: Tensor, truth: TrueMatches) -> tuple[Tensor, Tensor]:
        similarity = self.network.similarity(x0, x1)
        return balanced_loss(
            log_optimal_transport(similarity, self.network.bin_score, self.config.num_iterations), truth
        )

    def _drawn(self, batch_size: int, generator: Generator, device: torch.device) -> PairOfFeatures:
        """A batch: of twice as many random pairs those with the most keypoints, all cut to one count.

        Pairs with hardly a keypoint would cut the others to nothing and are left out.
        """
        count = 2 * batch_size
        rows = torch.randint(len(self.pool), (count,), generator=generator)
        views0, views1 = torch.randint(self.pool.num_views, (2, count), generator=generator)
        fewest, most = self.config.num_keypoints
        wanted = int(torch.randint(fewest, most + 1, (1,), generator=generator))
        counts = self.pool.counts[rows.numpy()[:, None], (0, 1), torch.stack([views0, views1], 1).numpy()]
        found = torch.from_numpy(counts.min(1))
        kept = found.clamp(max=wanted).sort(descending=True, stable=True).indices[:batch_size]
        kept = kept[found[kept] >= _FEWEST_KEYPOINTS]
        if len(kept) == 0:
            return self._drawn(batch_size, generator, device)
        return self.pool.pairs(rows[kept], views0[kept], views1[kept], wanted, device)

    def _untrained(self) -> SuperGlue:
        network = SuperGlue(SuperGlueConfig(descriptor_dim=self.pool.descriptor_dim))
        pairs = self._drawn(8, generator_of(self.config.loop.seed, -1), torch.device("cpu"))
        start_as_nearest_neighbours(
            network, pairs, true_matches(pairs, self.config.positive_px, self.config.negative_px)
        )
        return network

    def validate(self, network: nn.Module, device: torch.device, pictures: Path) -> dict[str, float]:
        assert isinstance(network, SuperGlue)
        matcher = SparseMatcher(
            "superglue", self.extractor, SuperGlueMatcher(network, SuperGlueOptions(), device=str(device))
        )
        draw_samples(matcher, self.held_out, pictures)
        return judge(matcher, self.held_out)


class TrueMatches(NamedTuple):
    """partner0: (B, M) int64, for each keypoint of image 0 the one of image 1, N for none, -1 for ignored;
    partner1: (B, N) likewise the other way, M for none."""

    partner0: Tensor
    partner1: Tensor


def true_matches(pairs: PairOfFeatures, positive_px: float, negative_px: float) -> TrueMatches:
    """Keypoints that are each other's nearest under the homography, the larger error of both ways under
    `positive_px` (SuperGlue, appendix E); none where the nearest is beyond `negative_px`; else ignored."""
    keypoints0, keypoints1 = pairs.features0.keypoints, pairs.features1.keypoints
    forward = torch.cdist(_mapped(pairs.H_1_from_0, keypoints0), keypoints1)
    backward = torch.cdist(keypoints0, _mapped(torch.linalg.inv(pairs.H_1_from_0), keypoints1))
    error = torch.maximum(forward, backward)
    best0, nearest0 = error.min(2)
    best1, nearest1 = error.min(1)
    return TrueMatches(
        _partners(best0, nearest0, nearest1, positive_px, negative_px),
        _partners(best1, nearest1, nearest0, positive_px, negative_px),
    )


def _partners(best: Tensor, nearest: Tensor, back: Tensor, positive_px: float, negative_px: float) -> Tensor:
    mutual = back.gather(1, nearest) == torch.arange(nearest.shape[1], device=nearest.device)
    partner = torch.where(mutual & (best < positive_px), nearest, _IGNORED)
    return torch.where(best > negative_px, back.shape[1], partner)


def _mapped(H_target_from_source: Tensor, points: Tensor) -> Tensor:
    return transform_points(H_target_from_source, points).nan_to_num(1e6)


def balanced_loss(log_assigned: Tensor, truth: TrueMatches) -> tuple[Tensor, Tensor]:
    """Mean negative log likelihood of the matched keypoints, and of the unmatched, of both images: two scalars.

    Equation 10 of the paper with each kind's sum over its own count. log_assigned: (B, M + 1, N + 1).
    """
    count0, count1 = log_assigned.shape[1] - 1, log_assigned.shape[2] - 1
    forward = log_assigned[:, :-1].gather(2, truth.partner0.clamp(min=0)[..., None])[..., 0]
    backward = log_assigned[:, :, :-1].gather(1, truth.partner1.clamp(min=0)[:, None])[:, 0]
    matched = (truth.partner0 >= 0) & (truth.partner0 < count1)
    alone0, alone1 = truth.partner0 == count1, truth.partner1 == count0
    of_matched = -torch.where(matched, forward, 0.0).sum() / matched.sum().clamp(min=1)
    of_alone = -(torch.where(alone0, forward, 0.0).sum() + torch.where(alone1, backward, 0.0).sum())
    return of_matched, of_alone / (alone0.sum() + alone1.sum()).clamp(min=1)


@torch.no_grad()
def start_as_nearest_neighbours(network: SuperGlue, pairs: PairOfFeatures, truth: TrueMatches) -> None:
    """Set an untrained network to score a pair of keypoints by the cosine of their descriptors over a temperature.

    What keypoints learn of one another starts at zero, and grows from there. Temperature and dustbin are those
    with the least loss on `pairs`.
    """
    for module in network.modules():
        if isinstance(module, nn.Sequential):  # the encoder and each layer's perceptron
            last = module[-1]
            assert isinstance(last, nn.Conv1d)
            nn.init.zeros_(last.weight)
    assert network.final_proj.bias is not None
    nn.init.zeros_(network.final_proj.bias)
    dim = network.config.descriptor_dim
    cosines = pairs.features0.descriptors @ pairs.features1.descriptors.mT

    def loss(setting: tuple[float, float]) -> float:
        temperature, cosine = setting
        assigned = log_optimal_transport(cosines / temperature, torch.tensor(cosine / temperature), 20)
        return float(sum(balanced_loss(assigned, truth)))

    temperature, cosine = min(((t, c) for t in _TEMPERATURES for c in _DUSTBIN_COSINES), key=loss)
    network.final_proj.weight.copy_((dim**0.5 / temperature) ** 0.5 * torch.eye(dim)[..., None])
    network.bin_score.fill_(cosine / temperature)
