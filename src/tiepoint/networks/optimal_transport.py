"""Assigning two sets to each other by optimal transport with a dustbin: SuperGlue (Sarlin et al., CVPR 2020), 3.2."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def with_dustbins(scores: Tensor, bin_score: Tensor) -> Tensor:
    """(B, M + 1, N + 1) from (B, M, N): a row and a column for what has no match (equation 8)."""
    batch, rows, columns = scores.shape
    right = bin_score.expand(batch, rows, 1)
    below = bin_score.expand(batch, 1, columns + 1)
    return torch.cat([torch.cat([scores, right], 2), below], 1)


def log_masses(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(M + 1,) and (N + 1,): log of what the rows and columns of (..., M + 1, N + 1) are to sum to (equation 9).

    One each, and a dustbin can take all of the other side if need be.
    """
    rows, columns = scores.shape[-2:]
    log_mass0, log_mass1 = scores.new_zeros(rows), scores.new_zeros(columns)
    log_mass0[-1], log_mass1[-1] = math.log(columns - 1), math.log(rows - 1)
    return log_mass0, log_mass1


def log_optimal_transport(scores: Tensor, bin_score: Tensor, num_iterations: int) -> Tensor:
    """(B, M + 1, N + 1) from (B, M, N), M and N at least 1: log of how much of each row goes to each column.

    The last of both are the dustbins. The entropic problem is solved by Sinkhorn's scaling in the log domain: the
    potentials u, v are set in turn so that the rows, then the columns, of exp(S + u + v) have their masses.
    Differentiable.
    """
    scores = with_dustbins(scores, bin_score)
    batch, rows, columns = scores.shape
    log_mass0, log_mass1 = log_masses(scores)
    u, v = scores.new_zeros(batch, rows, 1), scores.new_zeros(batch, 1, columns)
    for _ in range(num_iterations):
        u = log_mass0[:, None] - (scores + v).logsumexp(dim=2, keepdim=True)
        v = log_mass1 - (scores + u).logsumexp(dim=1, keepdim=True)
    return scores + u + v


def optimal_transport(scores: Tensor, bin_score: Tensor, num_iterations: int) -> Tensor:
    """exp of `log_optimal_transport`."""
    return log_optimal_transport(scores, bin_score, num_iterations).exp()
