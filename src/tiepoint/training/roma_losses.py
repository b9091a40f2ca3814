"""RoMa's losses as pure functions of what its network says and the true warp (Edstedt et al. 2024, section 3.4).

Warps are (x, y) in [-1, 1], the borders of the outer pixels; errors are in pixels of the network's frame. All hold
for any trunk, number of anchors and size of frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tiepoint.matchers.roma_network import pixel_grid
from tiepoint.networks.local_correlation import local_correlation
from tiepoint.training.pairs import ViewPairs
from tiepoint.training.warps import valid_at


@dataclass(frozen=True, eq=False)
class Truth:
    """warp: (B, 2, h, w), where each cell of the one view truly lies in the other, anything where unknown.

    visible: (B, h, w) bool, whether both views show that place.
    """

    warp: Tensor
    visible: Tensor

    def where(self, related: Tensor) -> Truth:
        """With nothing visible in the rows that are not `related` (B,)."""
        return Truth(self.warp, self.visible & related[:, None, None])

    def rows(self, rows: Tensor) -> Truth:
        return Truth(self.warp[rows], self.visible[rows])


def true_warps(pairs: ViewPairs, map_size: tuple[int, int]) -> Truth:
    """The truth at the cells of a map of `map_size` (h, w): from views 0 to 1, then from 1 to 0, 2 B in all."""
    valid0, valid1 = pairs.views0.valid, pairs.views1.valid
    size = (valid0.shape[1], valid0.shape[2])
    cells = pixel_grid(map_size, valid0)[0].flatten(1).T  # (h w, 2)
    points = to_pixels(cells, size).expand(len(valid0), -1, -1)
    there1, there0 = pairs.points1_of(points), pairs.points0_of(points)
    visible = torch.cat([
        valid_at(valid0, points) & valid_at(valid1, there1),
        valid_at(valid1, points) & valid_at(valid0, there0),
    ])  # fmt: skip
    there = torch.cat([there1, there0]).nan_to_num(-1e4)
    warp = (2 * there + 1) / there.new_tensor(_width_height(size)) - 1
    return Truth(warp.mT.reshape(-1, 2, *map_size), visible.reshape(-1, *map_size))


def to_pixels(positions: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 2) in [-1, 1] to pixels of a frame of `size` (H, W), centres at integers."""
    scale = positions.new_tensor(_width_height(size)) / 2
    pixels: Tensor = (positions + 1) * scale - 0.5
    return pixels


def error_px(warp: Tensor, truth: Truth, size: tuple[int, int]) -> Tensor:
    """(B, h, w): distance of `warp` (B, 2, h, w) from the truth, in pixels of the frame `size` (H, W)."""
    half = warp.new_tensor(_width_height(size)).view(1, 2, 1, 1) / 2
    distance: Tensor = ((warp - truth.warp) * half).norm(dim=1)
    return distance


def anchor_loss(logits: Tensor, truth: Truth) -> Tensor:
    """Cross-entropy at the anchor nearest to the true warp, mean over visible cells; 0 without any (section 3.4).

    logits: (B, h w, K K), anchors row-major.
    """
    nearest = _nearest_cell(truth.warp, math.isqrt(logits.shape[-1]), math.isqrt(logits.shape[-1]))
    return _mean(F.cross_entropy(logits.mT, nearest, reduction="none"), truth.visible.flatten(1))


def feature_loss(features0: Tensor, features1: Tensor, truth: Truth, temperature: float) -> Tensor:
    """Cross-entropy at the cell of view 1 nearest to the true warp, by the cosine of features (B, C, h, w).

    -log softmax_j(cos(f0_i, f1_j) / temperature), mean over visible cells. Not the paper's, whose coarse trunk is
    trained already: it makes one from nothing tell places apart, which the Gaussian process rests on.
    """
    a, b = (F.normalize(f.float().flatten(2), dim=1) for f in (features0, features1))
    logits = a.mT @ b / temperature
    nearest = _nearest_cell(truth.warp, *features1.shape[2:])
    return _mean(F.cross_entropy(logits.mT, nearest, reduction="none"), truth.visible.flatten(1))


def window_loss(map0: Tensor, map1: Tensor, start: Tensor, truth: Truth, radius: int) -> Tensor:
    """Cross-entropy at the true place within the window that a refiner correlates, mean over where it lies inside.

    The logits are `local_correlation` of maps (B, C, h, w) around `start`. Ours too: a refiner from nothing otherwise
    waits for features that match, and these for a refiner that reads them.
    """
    steps = (truth.warp - start) * start.new_tensor(_width_height(map1.shape[2:])).view(1, 2, 1, 1) / 2
    inside_window = truth.visible & (steps.abs() < radius + 0.5).all(1)
    column, row = steps.clamp(-radius, radius).round().long().unbind(1)
    place = (row + radius) * (2 * radius + 1) + column + radius
    logits = local_correlation(map0, map1, start, radius)
    return _mean(F.cross_entropy(logits, place, reduction="none"), inside_window)


def robust_loss(errors_px: Tensor, counted: Tensor, softness_px: float, exponent: float) -> Tensor:
    """mean (r^2 + softness^2)^(exponent / 2) over the `counted` of the errors r; 0 without any (section 3.4).

    Charbonnier's, generalised (Barron 2019): quadratic below the softness, like r^exponent above it.
    """
    return _mean((errors_px.square() + softness_px**2) ** (exponent / 2), counted)


def certainty_loss(logits: Tensor, matchable: Tensor) -> Tensor:
    """Binary cross-entropy of the certainty (B, 1, h, w) against `matchable` (B, h, w), mean over all cells."""
    return F.binary_cross_entropy_with_logits(logits[:, 0].float(), matchable.float())


def within_reach(warp: Tensor, truth: Truth, size: tuple[int, int], reach_px: float) -> Tensor:
    """(B, h, w) bool: visible cells where the `warp` to start from is at most `reach_px` wrong.

    Refiners are neither asked to mend what they cannot see from where they start nor allowed to be certain there.
    """
    return truth.visible & (error_px(warp.detach(), truth, size) < reach_px)


def _nearest_cell(positions: Tensor, height: int, width: int) -> Tensor:
    """(B, N) row-major index of the cell of a `height` x `width` grid that (B, 2, h, w) positions lie in."""
    columns_rows = (positions.flatten(2).mT + 1) / 2 * positions.new_tensor([width, height])
    column, row = columns_rows.floor().long().unbind(-1)
    return row.clamp(0, height - 1) * width + column.clamp(0, width - 1)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Over the counted; a zero with a gradient (of zero) if there are none."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


def _width_height(size: tuple[int, int] | torch.Size) -> list[float]:
    return [float(size[1]), float(size[0])]
