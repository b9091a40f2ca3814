"""Matching two sets of features by a confidence matrix P (N, M): dual softmax and optimal transport.

LoFTR, section 3.3. `dual_softmax` and `optimal_transport.py` write P down, for training. `match_by_dual_softmax`
and `match_by_optimal_transport` find the same matches without ever holding it: both confidences have the form

    log P_ij = a S_ij + r_i + c_j,    S the scores, r and c one number for each row and column,

so r and c are summed up in blocks of rows, and the blocks, computed again, are searched for mutual maxima.

What is kept from block to block is written into tensors made before the first: kept tensors made in between would
lie in the memory that a block has left, which the C library could then not give to the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tiepoint.networks.linear import linear


class MutualMatches(NamedTuple):
    """rows, columns: (K,) int64, rows ascending; confidence: (K,) float32, P at each."""

    rows: Tensor
    columns: Tensor
    confidence: Tensor


# ---------------------------------------------------------------------------------------------- written down


def dual_softmax(scores: Tensor) -> Tensor:
    """(B, N, M): the softmax of each row times the softmax of each column."""
    return scores.softmax(dim=2) * scores.softmax(dim=1)


def log_dual_softmax(scores: Tensor) -> Tensor:
    """log of `dual_softmax`, which keeps a gradient where that is too small to be told from 0."""
    return scores.log_softmax(dim=2) + scores.log_softmax(dim=1)


# -------------------------------------------------------------------------------------------------- streamed


def match_by_dual_softmax(
    features0: Tensor, features1: Tensor, scale: float, threshold: float, block: int
) -> MutualMatches:
    """The entries of `dual_softmax(scale features0 features1ᵀ)` above `threshold` that lead their row and column.

    features0 (N, C), features1 (M, C), N and M at least 1; `block` rows of scores are held at a time. P is at
    most the row's and at most the column's softmax, so the search leaves out rows and columns whose largest
    softmax does not pass: they could neither match nor outdo a match.
    """
    features0 = scale * features0
    sums, columns = features0.new_empty(2, len(features0)), _ColumnSums(features1)
    for scores, of_rows in zip(
        _score_blocks(features0, features1, block), torch.split(sums, block, dim=1), strict=True
    ):
        torch.stack(_log_sum(scores, dim=1), out=of_rows)
        columns.add(scores)
    row_maximum, row_sum = sums
    # The slack is far above the rounding of the sums: it leaves a few more rows to search, none too few.
    floor = _log(threshold) - 1e-3
    left0 = torch.nonzero(row_maximum - row_sum > floor).squeeze(1)
    left1 = torch.nonzero(columns.maximum - columns.log_sum > floor).squeeze(1)
    found = _mutual_maxima(
        2 * features0[left0], features1[left1], -row_sum[left0], -columns.log_sum[left1], threshold, block
    )
    return MutualMatches(left0[found.rows], left1[found.columns], found.confidence)


def match_by_optimal_transport(
    features0: Tensor,
    features1: Tensor,
    scale: float,
    bin_score: Tensor,
    num_iterations: int,
    threshold: float,
    block: int,
    *,
    prefilter: bool = False,
) -> MutualMatches:
    """The entries of `optimal_transport(scale features0 features1ᵀ, ...)` above `threshold` that lead both ways.

    One pass over the scores for each iteration: the columns' sums are taken up with each block of rows, as soon
    as its potentials are known. prefilter: leave out rows and columns that give the dustbin more than any other.
    """
    features0 = scale * features0
    num_rows, num_columns = len(features0), len(features1)
    z = bin_score.float().reshape(())
    u, v = features0.new_zeros(num_rows), features0.new_zeros(num_columns)
    u_bin, v_bin = z.new_zeros(()), z.new_zeros(())
    for _ in range(num_iterations):
        columns = _ColumnSums(features1)
        for scores, of_rows in zip(_score_blocks(features0, features1, block), torch.split(u, block), strict=True):
            to_columns = (scores + v).logsumexp(dim=1)
            of_rows.copy_(-torch.logaddexp(to_columns, z + v_bin))
            columns.add(scores.add_(of_rows[:, None]))
        u_bin = math.log(num_columns) - torch.logaddexp((z + v).logsumexp(dim=0), z + v_bin)
        v = -torch.logaddexp(columns.log_sum, z + u_bin)
        v_bin = math.log(num_rows) - torch.logaddexp((z + u).logsumexp(dim=0), z + u_bin)
    left0, left1 = torch.arange(num_rows, device=u.device), torch.arange(num_columns, device=u.device)
    if prefilter:
        row_best, column_best = _maxima(features0, features1, u, v, block)
        left0 = left0[row_best >= u + z + v_bin]
        left1 = left1[column_best >= v + z + u_bin]
    found = _mutual_maxima(features0[left0], features1[left1], u[left0], v[left1], threshold, block)
    return MutualMatches(left0[found.rows], left1[found.columns], found.confidence)


def _mutual_maxima(
    features0: Tensor, features1: Tensor, r: Tensor, c: Tensor, threshold: float, block: int
) -> MutualMatches:
    """Where log P = features0 features1ᵀ + r + c is above log threshold and the largest of its row and column."""
    if len(features0) == 0 or len(features1) == 0:
        empty = r.new_zeros(0, dtype=torch.int64)
        return MutualMatches(empty, empty, r.new_zeros(0))
    best, column = torch.full_like(r, -math.inf), r.new_zeros(len(r), dtype=torch.int64)
    column_best = torch.full_like(c, -math.inf)
    for first in range(0, len(features0), block):
        log_p = linear(features0[first : first + block], features1).add_(c).add_(r[first : first + block, None])
        row_best = torch.amax(log_p, dim=1, out=best[first : first + block])
        torch.maximum(column_best, log_p.amax(dim=0), out=column_best)
        passed = torch.nonzero(row_best > _log(threshold)).squeeze(1)
        column[first + passed] = log_p[passed].argmax(dim=1)  # slow beside amax, so only where it is asked for
    # A row's largest entry and its column's are the same number where they are the same entry.
    kept = torch.nonzero((best > _log(threshold)) & (best == column_best[column])).squeeze(1)
    return MutualMatches(kept, column[kept], best[kept].exp())


def _maxima(features0: Tensor, features1: Tensor, r: Tensor, c: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The largest of features0 features1ᵀ + r + c in each row (N,) and in each column (M,)."""
    row_best, column_best = torch.empty_like(r), torch.full_like(c, -math.inf)
    parts = zip(
        _score_blocks(features0, features1, block), torch.split(r, block), torch.split(row_best, block), strict=True
    )
    for scores, of_rows, best in parts:
        log_p = scores.add_(c).add_(of_rows[:, None])
        torch.amax(log_p, dim=1, out=best)
        torch.maximum(column_best, log_p.amax(dim=0), out=column_best)
    return row_best, column_best


def _score_blocks(features0: Tensor, features1: Tensor, block: int) -> Iterator[Tensor]:
    """features0 features1ᵀ, (at most `block`, M) at a time, in float32."""
    for part in torch.split(features0, block):
        yield linear(part, features1)


def _log_sum(scores: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest score along `dim`, and log sum exp."""
    maximum = scores.amax(dim=dim, keepdim=True)
    total = (scores - maximum).exp_().sum(dim=dim)
    maximum = maximum.squeeze(dim)
    return maximum, maximum + total.log()


class _ColumnSums:
    """The largest score of each column and log sum exp, over the blocks of rows added so far."""

    def __init__(self, features1: Tensor) -> None:
        self.maximum, self.log_sum = features1.new_full((2, len(features1)), -math.inf)

    def add(self, scores: Tensor) -> None:
        maximum, log_sum = _log_sum(scores, dim=0)
        torch.maximum(self.maximum, maximum, out=self.maximum)
        torch.logaddexp(self.log_sum, log_sum, out=self.log_sum)


def _log(threshold: float) -> float:
    return math.log(threshold) if threshold > 0 else -math.inf
