"""LoFTR's supervision and losses as pure functions (Sun et al., CVPR 2021, section 3.5).

Cells are counted row by row; a cell's point is the network's, 8 (column, row), which lies at the pixel
8 (column, row) - origin of the view. log P is (B, N, M) over the cells of views 0 and 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from tiepoint.networks.loftr import CELL, FINE, WINDOW, FineMatches
from tiepoint.training.pairs import ViewPairs
from tiepoint.training.warps import pixel_grid, valid_at

_REACH_PX = WINDOW // 2 * FINE  # from the centre of a fine window to its rim
_ALMOST_ONE = 1 - 1e-6
NONE = -1


class TrueCells(NamedTuple):
    """partner: (B, N) int64, the cell of view 1 that is the same as each of view 0; -1 for none.

    points1: (B, N, 2), where view 1 has the points of view 0's cells, in the network's frame; NaN where unseen.
    """

    partner: Tensor
    points1: Tensor

    def labels(self, num_cells1: int) -> Tensor:
        """(B, N, M) bool, whether two cells are the same."""
        return self.partner[:, :, None] == torch.arange(num_cells1, device=self.partner.device)


def true_cells(pairs: ViewPairs, origin: float) -> TrueCells:
    """The mutual cells of two views of photographs."""
    valid0, valid1 = pairs.views0.valid, pairs.views1.valid
    cells = (cell_points(valid0) - origin).expand(len(valid0), -1, -1)
    there1, there0 = pairs.points1_of(cells), pairs.points0_of(cells)
    seen0 = valid_at(valid0, cells) & valid_at(valid1, there1)
    seen1 = valid_at(valid1, cells) & valid_at(valid0, there0)
    return mutual_cells(there1 + origin, seen0, there0 + origin, seen1, grid_of(valid0))


def grid_of(view: Tensor) -> tuple[int, int]:
    """(rows, columns) of the cells of views (..., H, W)."""
    return view.shape[-2] // CELL, view.shape[-1] // CELL


def cell_points(view: Tensor) -> Tensor:
    """(N, 2) the points of the cells of views (..., H, W), on their device, in the network's frame."""
    return CELL * pixel_grid(grid_of(view), view.device)


def mutual_cells(there1: Tensor, seen0: Tensor, there0: Tensor, seen1: Tensor, grid: tuple[int, int]) -> TrueCells:
    """Cells that are each other's nearest: a cell's point is seen in the other view, nearest to a cell whose own
    point is seen in the first, nearest to the cell one began with.

    there1: (B, N, 2) where view 1 has the points of view 0's cells, in the network's frame, there0 the reverse;
    seen0, seen1: (B, N) bool, whether it shows them. Both views have the same `grid` (rows, columns) of cells.
    """
    nearest1 = nearest_cells(there1, seen0, grid)
    nearest0 = nearest_cells(there0, seen1, grid)
    itself = torch.arange(nearest1.shape[1], device=nearest1.device)
    mutual = (nearest1 != NONE) & (nearest0.gather(1, nearest1.clamp(min=0)) == itself)
    points1 = torch.where(seen0[..., None], there1, torch.nan)
    return TrueCells(torch.where(mutual, nearest1, NONE), points1)


def nearest_cells(points: Tensor, seen: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N) int64 cell of `grid` (rows, columns) nearest to (B, N, 2) points; -1 where not `seen` or off the grid."""
    column, row = (points.nan_to_num(-CELL) / CELL).round().long().unbind(-1)
    inside = seen & (row >= 0) & (column >= 0) & (row < grid[0]) & (column < grid[1])
    return torch.where(inside, row * grid[1] + column, NONE)


def dense_focal(log_p: Tensor, labels: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """-alpha (1 - P)^gamma log P at the true matches, and -alpha P^gamma log(1 - P) at all else: two means."""
    p = log_p.exp().clamp(max=_ALMOST_ONE)
    at_matches = -alpha * (1 - p) ** gamma * log_p
    elsewhere = -alpha * p**gamma * torch.log1p(-p)
    return _mean(at_matches, labels), _mean(elsewhere, ~labels)


def sparse_focal(log_p: Tensor, labels: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """-alpha (1 - P)^gamma log P at the true matches, and at the dustbins of cells that have none: two means.

    log_p: (B, N + 1, M + 1) by optimal transport; (B, N, M), without dustbins, by dual softmax: the second is 0.
    """
    rows, columns = labels.shape[1:]
    focal = -alpha * (1 - log_p.exp().clamp(max=_ALMOST_ONE)) ** gamma * log_p
    matched = _mean(focal[:, :rows, :columns], labels)
    if log_p.shape[1] == rows:
        return matched, log_p.new_zeros(())
    dustbins = torch.cat([focal[:, :rows, -1], focal[:, -1, :columns]], 1)
    return matched, _mean(dustbins, ~torch.cat([labels.any(2), labels.any(1)], 1))


class CellPairs(NamedTuple):
    """K pairs of cells to refine. batch, cells0, cells1: (K,) int64."""

    batch: Tensor
    cells0: Tensor
    cells1: Tensor


def pairs_to_refine(
    log_p: Tensor, truth: TrueCells, budget: int, padding: float, threshold: float, generator: Generator
) -> CellPairs:
    """At most `budget` pairs of cells: the network's own matches, and true ones that pad them.

    The refinement is trained on what it will be given, yet from the first step on, when the network matches nothing.
    log_p: (B, N, M). padding: share of the budget that own matches leave to true ones. Own matches are the mutual
    best above `threshold`; which of either kind is random.
    """
    p = log_p.detach().exp()
    own = (p > threshold) & (p == p.amax(2, keepdim=True)) & (p == p.amax(1, keepdim=True))
    chosen = _drawn(own.nonzero(), round(budget * (1 - padding)), generator)
    batch, cells0 = (truth.partner != NONE).nonzero().unbind(1)
    true = torch.stack([batch, cells0, truth.partner[batch, cells0]], 1)
    padded = torch.cat([chosen, _drawn(true, budget - len(chosen), generator)])
    return CellPairs(*padded.unbind(1))


def _drawn(rows: Tensor, count: int, generator: Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:count].to(rows.device)]


def true_offsets(cells: CellPairs, truth: TrueCells, num_columns: int) -> Tensor:
    """(K, 2) where the match lies in view 1's window, its rim at +-1; NaN where view 1 does not show it."""
    row = torch.div(cells.cells1, num_columns, rounding_mode="floor")
    centre = CELL * torch.stack([cells.cells1 % num_columns, row], 1)
    return (truth.points1[cells.batch, cells.cells0] - centre) / _REACH_PX


def fine_loss(found: FineMatches, target: Tensor) -> Tensor:
    """Mean of w |offset - target|^2 over the targets (K, 2) within the window; 0 if there are none.

    w = (1 / sigma) / mean(1 / sigma): the spread of the heat map says how much a match can be held to, and gets
    no gradient, lest it grow to escape the loss.
    """
    within = (target.abs() < 1).all(1)  # not so where it is NaN
    certainty = torch.where(within, 1 / found.sigma.detach(), 0.0)
    weight = certainty / certainty.sum().clamp(min=1e-12) * within.sum()
    return _mean(weight * (found.offset - target.nan_to_num(0.0)).square().sum(1), within)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Over the counted; a zero with a gradient (of zero) if there are none."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)
