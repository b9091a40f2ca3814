"""Losses that teach descriptors: three published ways, as pure functions on batches of pairs.

Everywhere `points0[b, k]` and `points1[b, k]` are the same point of pair b's scene; `kept` says which rows count.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tiepoint.matchers.superpoint import CELL_PX
from tiepoint.training.warps import inside, pixel_grid, transform_points


def sample_batch(descriptors: Tensor, points: Tensor) -> Tensor:
    """(B, N, D) unit descriptors of (B, D, h, w) maps at (B, N, 2) pixels, bilinear; NaN points give anything.

    The batched form of `matchers.superpoint.sample_descriptors` with the exact sampler.
    """
    size = torch.tensor([descriptors.shape[3], descriptors.shape[2]], device=points.device) * CELL_PX
    grid = (2 * (points + 0.5) / size - 1).nan_to_num(0.0)[:, None]
    sampled = F.grid_sample(descriptors.float(), grid, padding_mode="border", align_corners=False)
    return F.normalize(sampled[:, :, 0].mT, dim=-1)


def info_nce(
    descriptors0: Tensor,
    descriptors1: Tensor,
    points0: Tensor,
    points1: Tensor,
    kept: Tensor,
    *,
    temperature: float,
    clear_px: float,
) -> Tensor:
    """Each point's own partner against all other points of its pair, both ways: scalar.

    Mean of -log softmax(d0 d1ᵀ / temperature) over rows and over columns at the true partner (InfoNCE, van den
    Oord et al. 2018; the product of both softmaxes is LoFTR's dual-softmax, equation 2). Points within
    `clear_px` of the partner are neither right nor wrong and are left out of the sums.
    descriptors: (B, N, D) of unit length; points: (B, N, 2); kept: (B, N) bool. 0 when nothing is kept.
    """
    similarity = torch.einsum("bnd,bmd->bnm", descriptors0, descriptors1) / temperature
    near = (torch.cdist(points0, points0) < clear_px) | (torch.cdist(points1, points1) < clear_px)
    partner = torch.eye(points0.shape[1], dtype=torch.bool, device=points0.device)
    left_out = (near | ~kept[:, None, :] | ~kept[:, :, None]) & ~partner
    similarity = similarity.masked_fill(left_out, -torch.inf)
    forward = similarity.log_softmax(2).diagonal(dim1=1, dim2=2)
    backward = similarity.log_softmax(1).diagonal(dim1=1, dim2=2)
    return -_mean((forward + backward) / 2, kept)


def hinge(
    descriptors0: Tensor,
    descriptors1: Tensor,
    H_1_from_0: Tensor,
    valid0: Tensor,
    valid1: Tensor,
    *,
    positive_weight: float,
    positive_margin: float = 1.0,
    negative_margin: float = 0.2,
    radius_px: float = 8.0,
) -> Tensor:
    """The paper's loss over all pairs of cells of two maps (SuperPoint, equations 4 to 6): scalar.

    Cells are the same if the first's centre falls within `radius_px` of the second's. The mean is over the
    pairs of valid cells, each pair of pictures for itself.
    descriptors: (B, D, h, w) of unit length; valid: (B, h, w) bool.
    """
    batch, _, rows, columns = descriptors0.shape
    centres = pixel_grid((rows, columns), descriptors0.device) * CELL_PX + (CELL_PX - 1) / 2
    mapped = transform_points(H_1_from_0, centres.expand(batch, -1, -1)).nan_to_num(torch.inf)
    same = (mapped[:, :, None] - centres).norm(dim=-1) <= radius_px  # (B, hw, hw)
    similarity = descriptors0.float().flatten(2).mT @ descriptors1.float().flatten(2)
    positive = positive_weight * (positive_margin - similarity).clamp(min=0)
    negative = (similarity - negative_margin).clamp(min=0)
    counted = valid0.flatten(1)[:, :, None] & valid1.flatten(1)[:, None, :]
    return _mean(torch.where(same, positive, negative).flatten(1), counted.flatten(1))


def sparse_hinge(
    descriptors0: Tensor,
    descriptors1: Tensor,
    points0: Tensor,
    points1: Tensor,
    kept: Tensor,
    generator: Generator,
    *,
    positive_margin: float = 1.0,
    negative_margin: float = 0.2,
    num_negatives: int = 100,
    clear_px: float = 8.0,
) -> Tensor:
    """The hinge on sampled points: true partners against `num_negatives` random others for each: scalar.

    As in pytorch-superpoint, with what its code meant and did not do: a random other within `clear_px` of the
    true partner is no negative. Positives: mean of max(0, m+ - cos). Negatives: the mean over the active ones.
    """
    count = points0.shape[1]
    positive = (positive_margin - (descriptors0 * descriptors1).sum(-1)).clamp(min=0)
    others = torch.randint(count, (len(points0), count, num_negatives), generator=generator).to(points0.device)
    rows = torch.arange(len(points0), device=points0.device)[:, None, None]
    cosine = torch.einsum("bnd,bnkd->bnk", descriptors0, descriptors1[rows, others])
    apart = (points1[rows, others] - points1[:, :, None]).norm(dim=-1) >= clear_px
    active: Tensor = apart & kept[:, :, None] & kept[rows, others] & (cosine > negative_margin)
    negative: Tensor = (cosine - negative_margin)[active].sum() / active.sum().clamp(min=1)
    return _mean(positive, kept) + negative


def choose_points(
    keypoints: Tensor, H_1_from_0: Tensor, valid0: Tensor, valid1: Tensor, count: int, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, count, 2) points of view 0, the same in view 1, and (B, count) which of them count.

    Most are keypoints seen in both views, as far as there are any: it is there that descriptors are asked for.
    The rest lie anywhere both views reach.
    keypoints: (B, N, 2) in view 0, NaN where there is none; valid: (B, H, W) bool.
    """
    batch, height, width = valid0.shape
    anywhere = torch.rand(batch, 2 * count, 2, generator=generator) * torch.tensor([width - 1.0, height - 1.0])
    points0 = torch.cat([keypoints, anywhere.to(keypoints.device)], 1)
    points1 = transform_points(H_1_from_0, points0)
    kept = _reached(points0, valid0) & _reached(points1, valid1)
    luck = torch.rand(points0.shape[:2], generator=generator).to(keypoints.device)
    # Three keypoints of four come before all else, in random order; what does not count comes last.
    is_keypoint = torch.arange(points0.shape[1], device=points0.device) < keypoints.shape[1]
    rank = kept * (1 + luck + (is_keypoint & (luck > 0.25)))
    best = rank.topk(min(count, points0.shape[1]), dim=1).indices
    chosen = best[..., None].expand(-1, -1, 2)
    return points0.gather(1, chosen), points1.gather(1, chosen), kept.gather(1, best)


def _reached(points: Tensor, valid: Tensor, border_px: float = 4.0) -> Tensor:
    """(B, N) whether each point lies in the view, off its edge, where `valid` (B, H, W) holds."""
    size = (valid.shape[1], valid.shape[2])
    within = inside(points, size, border_px)
    x, y = points.nan_to_num(0.0).round().long().unbind(-1)
    rows = torch.arange(len(points), device=points.device)[:, None]
    return within & valid[rows, y.clamp(0, size[0] - 1), x.clamp(0, size[1] - 1)]


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over (B, N) of what counts; 0 when nothing does."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)
