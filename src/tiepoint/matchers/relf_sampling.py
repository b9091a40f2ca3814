"""RELF's features at keypoints: network maps read where the keypoints are, aligned by their orientation.

Lee, Kim, Kim, Cho: Learning Rotation-Equivariant Features for Visual Correspondence (CVPR 2023). Features at K
keypoints are (K, F, N): F regular fields of N group elements each; turning the image counter-clockwise by
360 / N degrees moves every field by one, `roll(+1)`. Points are (x, y), pixel centres at integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tiepoint.networks.equivariant_resnet import EquivariantBackbone

_NORM_EPSILON = 1e-6  # added to the norm, as published


def sample_features(
    network: EquivariantBackbone, image: Tensor, points: Tensor, *, published_grid: bool
) -> Tensor:
    """The features (K, F, N) of `image` (1, 3, H, W) at `points` (K, 2), float32; coarsest stage first.

    Each stage is read as soon as it is made and then let go, so that no map of all channels ever exists.
    published_grid: read what the published code would find in the map it fuses, at any image size. Otherwise
        every stage is read where its stride puts it, which needs both sides of the image to be 16 k + 1.
    """
    size = image.shape[3], image.shape[2]
    fused_size: tuple[int, int] | None = None
    read = []
    for stage, stride in zip(network.stages(image), network.strides, strict=True):
        map_size = stage.shape[3], stage.shape[2]
        fused_size = fused_size or map_size
        taps = [
            _fused_taps(points[:, axis], size[0], fused_size[0], fused_size[axis], map_size[axis])
            if published_grid
            else _strided_taps(points[:, axis], stride, map_size[axis])
            for axis in (0, 1)
        ]
        read.append(_weighted_sum(stage, *taps[0], *taps[1]))
    return torch.cat(read[::-1], dim=1).unflatten(1, (-1, network.order))


def _strided_taps(points: Tensor, stride: int, length: int) -> tuple[Tensor, Tensor]:
    """Indices and weights (K, 2) of the linear interpolation at points / stride, held inside the map."""
    position = (points / stride).clamp(0, length - 1)
    return _linear_taps(position, length)


def _fused_taps(
    points: Tensor, width: int, fused_width: int, fused_length: int, length: int
) -> tuple[Tensor, Tensor]:
    """Indices and weights (K, 4) of the same interpolation in the fused map that the published code builds.

    It resizes every stage to `fused_length`, the finest one's, with corners aligned, and reads that map at
    points / (width / fused_width), the ratio along x on both axes, with zeros outside.
    """
    position = points / (width / fused_width)
    low = position.floor()
    neighbours = torch.stack([low, low + 1], dim=1)  # (K, 2) pixels of the fused map
    share = torch.stack([1 - (position - low), position - low], dim=1)
    share = torch.where((neighbours >= 0) & (neighbours <= fused_length - 1), share, 0.0)
    step = (length - 1) / max(fused_length - 1, 1)
    indices, weights = _linear_taps(neighbours.clamp(0, fused_length - 1) * step, length)  # (K, 2, 2)
    return indices.flatten(1), (weights * share[..., None]).flatten(1)


def _linear_taps(position: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Both neighbours of `position` (...), in [0, length - 1], and their weights, (..., 2)."""
    low = position.floor().clamp(max=max(length - 2, 0))
    part = position - low
    indices = torch.stack([low, (low + 1).clamp(max=length - 1)], dim=-1).long()
    return indices, torch.stack([1 - part, part], dim=-1)


def _weighted_sum(stage: Tensor, columns: Tensor, weights_x: Tensor, rows: Tensor, weights_y: Tensor) -> Tensor:
    """The map (1, C, H, W) summed over taps: (K, C). Columns and rows are (K, T), the weights likewise."""
    channels, _, width = stage.shape[1:]
    pixels = stage[0].permute(1, 2, 0).reshape(-1, channels)  # no copy where the map is channels-last
    indices = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    weights = (weights_y[:, :, None] * weights_x[:, None, :]).flatten(1)
    read = functional.embedding_bag(indices, pixels, per_sample_weights=weights.to(pixels.dtype), mode="sum")
    return read.float()


# ---------------------------------------------------------------- pyramid


def published_levels(
    image: Tensor, max_size_px: int, min_size_px: int, levels_per_octave: int
) -> Iterator[tuple[Tensor, float]]:
    """The published pyramid: every level of `image` (1, 3, H, W) with its scale, largest first.

    A smaller image is first enlarged to a long side of max_size_px; each level is the bilinear reduction of the
    one before, sizes rounded; levels above max_size_px are passed over.
    """
    height, width = image.shape[2:]
    scale = max(1.0, max_size_px / max(height, width))
    while scale * max(height, width) >= min_size_px * (1 - 1e-9):  # 4 steps of 2^(1/4) halve but for rounding
        size = max(1, round(height * scale)), max(1, round(width * scale))
        image = functional.interpolate(image, size, mode="bilinear", align_corners=False)
        if max(size) <= max_size_px:
            yield image, scale
        scale /= 2 ** (1 / levels_per_octave)


# ---------------------------------------------------------------- orientation and descriptor


def orientation_histogram(features: Tensor) -> Tensor:
    """Field 0 of the coarsest stage, (K, N): its largest entry tells how the keypoint is turned."""
    return features[:, 0]


def orientation_candidates(histogram: Tensor, ratio: float | None) -> tuple[Tensor, Tensor]:
    """Keypoint and shift (M,) of every orientation worth trying, by keypoint, shifts ascending.

    ratio: all bins of at least `ratio` times the largest; None: the largest alone. A keypoint whose histogram has
    no positive entry keeps its largest bin (the published code loses it in a division of zero by zero).
    """
    best = histogram.argmax(dim=1)
    if ratio is None:
        return torch.arange(len(histogram), device=histogram.device), best
    largest = histogram.amax(dim=1, keepdim=True)
    chosen = (histogram >= ratio * largest) & (largest > 0)
    chosen.scatter_(1, best[:, None], True)
    keypoints, shifts = chosen.nonzero(as_tuple=True)
    return keypoints, shifts


def align(features: Tensor, keypoints: Tensor, shifts: Tensor) -> Tensor:
    """Group aligning: descriptors (M, F * N) of unit length, the fields of features[keypoints] moved by -shifts."""
    _, num_fields, order = features.shape
    source = (torch.arange(order, device=features.device) + shifts[:, None]) % order
    aligned = features[keypoints].gather(2, source[:, None].expand(-1, num_fields, -1))
    return _unit(aligned.flatten(1))


def group_pool(features: Tensor, pooling: Literal["max", "mean", "norm"]) -> Tensor:
    """The baseline without orientation: descriptors (K, F) of unit length, pooled over the group."""
    if pooling == "norm":
        return _unit(features.norm(dim=2))
    return _unit(features.amax(dim=2) if pooling == "max" else features.mean(dim=2))


def _unit(vectors: Tensor) -> Tensor:
    return vectors / (vectors.norm(dim=1, keepdim=True) + _NORM_EPSILON)
