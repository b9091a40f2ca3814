"""How RoMa is judged while it trains: its dense warp on held-out planes and parallax, its certainty, its matches."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tiepoint.geometry import Transform
from tiepoint.images import Image, encode_image, write_atomically
from tiepoint.matchers.roma import IMAGENET_DEVIATION, IMAGENET_MEAN, Roma, RomaOptions
from tiepoint.matchers.roma_network import RomaNetwork
from tiepoint.training.engine import generator_of
from tiepoint.training.pairs import PairConfig, ViewPairs, make_pairs
from tiepoint.training.photographs import Photographs
from tiepoint.training.roma_losses import error_px, true_warps
from tiepoint.training.validation import HeldOutPair, judge

_CHUNK = 4  # pairs a forward pass
_PCK_PX = (1, 3, 5)
_STRIDE = 4  # of the pixels on which certainty is judged
PARALLAX = 0.1  # amplitude that is judged if none is trained on
_DRAWN = 3  # pairs of either kind


def as_seen(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1], normalised as the network sees pictures."""
    mean, deviation = (images.new_tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    return (images - mean) / deviation


@dataclass(frozen=True, eq=False)
class DenseResult:
    """What a network says of a batch of pairs, from view 0 to view 1, and the truth.

    warp: (B, 2, H, W) in [-1, 1]; errors_px, certainty: (B, H, W); visible: (B, H, W) bool.
    """

    warp: Tensor
    errors_px: Tensor
    certainty: Tensor
    visible: Tensor


class RomaValidation:
    """The same held-out pairs at every call: planes, the same photographs with parallax, and unrelated pairs."""

    def __init__(self, photographs: Photographs, config: PairConfig, count: int, seed: int) -> None:
        """config: the views'; raises ValueError unless square with a side that the matcher takes."""
        height, width = config.size
        if height != width:
            raise ValueError(f"pairs.size: expected a square, as the matcher frames pictures, got {config.size}")
        self.options = RomaOptions(resolution_px=width, upsample_px=None, num_matches=500)
        indices = torch.linspace(0, len(photographs) - 1, count).round().long()

        def pairs(chosen: PairConfig, stream: int) -> ViewPairs:
            return make_pairs(photographs, indices, chosen, 1.0, generator_of(seed, -1, stream), torch.device("cpu"))

        self.kinds = {"planes": pairs(_flat(config), 0), "parallax": pairs(_with_parallax(config), 1)}
        self.homographies = _homographies(self.kinds["planes"])

    def figures(self, network: RomaNetwork, device: torch.device, pictures: Path) -> dict[str, float]:
        """EPE (median, px) and PCK_t (share of pixels within t px) over pixels that both views show.

        Both means of planes and parallax; EPE and PCK_3 of each follow. certainty_AUC: area under the ROC curve of
        certainty, pixels that view 1 shows too against those that it does not. unrelated: mean certainty of pairs
        of different photographs. The rest: `validation.judge` of the matcher on the planes.
        """
        results = {kind: dense_result(network, pairs, device) for kind, pairs in self.kinds.items()}
        each = {kind: accuracy(result) for kind, result in results.items()}
        draw_dense(self.kinds, results, pictures)
        found = {name: float(np.mean([figures[name] for figures in each.values()])) for name in each["planes"]}
        found |= {f"{name}_{kind}": figures[name] for kind, figures in each.items() for name in ("EPE", "PCK_3")}
        found["certainty_AUC"] = roc_auc(
            torch.cat([result.certainty[:, ::_STRIDE, ::_STRIDE].flatten() for result in results.values()]),
            torch.cat([result.visible[:, ::_STRIDE, ::_STRIDE].flatten() for result in results.values()]),
        )
        found["unrelated"] = self._unrelated(network, device)
        # The matcher folds the network for inference for good: it gets a copy.
        matcher = Roma(copy.deepcopy(network), self.options, name="roma-small", device=device)
        return found | judge(matcher, self.homographies)

    def _unrelated(self, network: RomaNetwork, device: torch.device) -> float:
        pairs = self.kinds["planes"]
        others = pairs.views1.images.roll(-1, 0)
        certainties = [certainty for _, certainty in _matched(network, pairs.views0.images, others, device)]
        return float(torch.cat(certainties).mean())


def dense_result(network: RomaNetwork, pairs: ViewPairs, device: torch.device) -> DenseResult:
    found = list(_matched(network, pairs.views0.images, pairs.views1.images, device))
    warp, certainty = (torch.cat(parts) for parts in zip(*found, strict=True))
    size = (warp.shape[2], warp.shape[3])
    truth = true_warps(pairs, size).rows(torch.arange(len(warp)))
    return DenseResult(warp, error_px(warp, truth, size), certainty, truth.visible)


def accuracy(result: DenseResult) -> dict[str, float]:
    """EPE and PCK_t over the visible pixels of all pairs together."""
    errors = result.errors_px[result.visible]
    within = {f"PCK_{t}": float((errors <= t).float().mean()) for t in _PCK_PX}
    return {"EPE": float(errors.median()), **within}


def roc_auc(scores: Tensor, positive: Tensor) -> float:
    """Chance that a positive scores higher than a negative, ties counting half; NaN without both. (N,) each."""
    _, place, counts = np.unique(scores.cpu().numpy(), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[place]  # from 1, equal scores share the mean of theirs
    chosen = positive.cpu().numpy()
    positives, negatives = int(chosen.sum()), int((~chosen).sum())
    if not positives or not negatives:
        return float("nan")
    return float((ranks[chosen].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def draw_dense(kinds: dict[str, ViewPairs], results: dict[str, DenseResult], path: Path) -> None:
    """A PNG, a row for each of the first pairs: view 0, view 1 as view 0 sees it (white where unsure), view 1.

    The fourth picture is the error, from black (none) to white (10 px and more), 0 where nothing is shared.
    """
    rows = []
    for kind, pairs in kinds.items():
        result = results[kind]
        for i in range(min(_DRAWN, len(result.warp))):
            view0, view1 = pairs.views0.images[i], pairs.views1.images[i]
            warped = F.grid_sample(view1[None], result.warp[i].permute(1, 2, 0)[None], align_corners=False)[0]
            sure = result.certainty[i]
            error = (result.errors_px[i] / 10).clamp(max=1) * result.visible[i]
            shown = [view0, warped * sure + (1 - sure), view1, error.expand(3, -1, -1)]
            rows.append(torch.cat(shown, 2))
    write_atomically(path.with_suffix(".png"), encode_image(Image(_pixels(torch.cat(rows, 1))), ".png"))


def _matched(
    network: RomaNetwork, images0: Tensor, images1: Tensor, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Warps (b, 2, H, W) and certainties (b, H, W) on the CPU, some pairs at a time."""
    for views0, views1 in zip(torch.split(images0, _CHUNK), torch.split(images1, _CHUNK), strict=True):
        encoded0, encoded1 = (network.encode(as_seen(views.to(device))) for views in (views0, views1))
        warp, certainty = network.match(encoded0, encoded1)
        yield warp.float().cpu(), certainty.float().cpu()


def _homographies(pairs: ViewPairs) -> list[HeldOutPair]:
    matrices = pairs.H_1_from_0.double().numpy()
    return [
        HeldOutPair(Image(_pixels(view0)), Image(_pixels(view1)), Transform(H / H[2, 2], "homography"))
        for view0, view1, H in zip(pairs.views0.images, pairs.views1.images, matrices, strict=True)
    ]


def _pixels(view: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in [0, 1] to (H, W, 3)."""
    return np.asarray((view.permute(1, 2, 0) * 255).round().byte().numpy(), np.uint8)


def _flat(config: PairConfig) -> PairConfig:
    return replace(config, parallax=replace(config.parallax, amplitude=0.0))


def _with_parallax(config: PairConfig) -> PairConfig:
    return replace(config, parallax=replace(config.parallax, amplitude=config.parallax.amplitude or PARALLAX))
