"""RELF's features at keypoints: network maps read where the keypoints are, aligned by their orientation.

Lee, Kim, Kim, Cho: Learning Rotation-Equivariant Features for Visual Correspondence (CVPR 2023). Features at K
keypoints are (K, F, N): F regular fields of N group elements each; turning the image counter-clockwise by
360 / N degrees moves every field by one, `roll(+1)`. Points are (x, y), pixel centres at integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tiepoint.networks.equivariant_resnet import EquivariantBackbone

_NORM_EPSILON = 1e-6  # added to the norm, as published


def sample_features(
    network: EquivariantBackbone, images: Tensor, points: Tensor, *, published_grid: bool
) -> Tensor:
    """Features (B, K, F, N) of `images` (B, 3, H, W) at `points` (B, K, 2), float32, coarsest stage first.

    Each stage is read as soon as it is made and then let go, so that no map of all channels ever exists.
    published_grid: read what the published code would find in the map it fuses, at any image size. Otherwise
        every stage is read where its stride puts it, which needs both sides of the images to be 16 k + 1.
    """
    width = images.shape[3]
    fused_size: tuple[int, int] | None = None
    read = []
    for stage, stride in zip(network.stages(images), network.strides, strict=True):
        map_size = stage.shape[3], stage.shape[2]
        fused_size = fused_size or map_size
        columns, rows = (
            _fused_taps(points[..., axis], width / fused_size[0], fused_size[axis], map_size[axis])
            if published_grid
            else _strided_taps(points[..., axis], stride, map_size[axis])
            for axis in (0, 1)
        )
        read.append(_weighted_sum(stage, columns, rows))
    features = torch.cat(read[::-1], dim=2)
    return features.view(*features.shape[:2], -1, network.order)


@dataclass(frozen=True)
class _Taps:
    """The pixels along one axis that an interpolation at each point reads: (B, K, T) each."""

    indices: Tensor
    weights: Tensor


def _strided_taps(points: Tensor, stride: int, length: int) -> _Taps:
    """Linear interpolation at points / stride, held inside the map."""
    return _linear_taps((points / stride).clamp(0, length - 1), length)


def _fused_taps(points: Tensor, ratio: float, fused_length: int, length: int) -> _Taps:
    """The same in the fused map that the published code builds: four taps for each point.

    It resizes every stage to `fused_length`, the finest one's, with corners aligned, and reads that map at
    points / ratio (image width / map width, on both axes) with zeros outside.
    """
    position = points / ratio
    low = position.floor()
    neighbours = torch.stack([low, low + 1], dim=-1)  # pixels of the fused map
    share = torch.stack([1 - (position - low), position - low], dim=-1)
    share = torch.where((neighbours >= 0) & (neighbours <= fused_length - 1), share, 0.0)
    step = (length - 1) / max(fused_length - 1, 1)
    taps = _linear_taps(neighbours.clamp(0, fused_length - 1) * step, length)  # (B, K, 2, 2)
    return _Taps(taps.indices.flatten(-2), (taps.weights * share[..., None]).flatten(-2))


def _linear_taps(position: Tensor, length: int) -> _Taps:
    """Both neighbours of each position in [0, length - 1], on a new last axis."""
    low = position.floor().clamp(max=max(length - 2, 0))
    part = position - low
    indices = torch.stack([low, (low + 1).clamp(max=length - 1)], dim=-1)
    return _Taps(indices.long(), torch.stack([1 - part, part], dim=-1))


def _weighted_sum(stage: Tensor, columns: _Taps, rows: _Taps) -> Tensor:
    """The maps (B, C, H, W) summed over the taps: (B, K, C)."""
    batch, channels, height, width = stage.shape
    pixels = stage.permute(0, 2, 3, 1).reshape(-1, channels)  # no copy where the maps are channels-last
    first = torch.arange(batch, device=stage.device)[:, None, None, None] * (height * width)
    indices = first + rows.indices[..., :, None] * width + columns.indices[..., None, :]
    weights = rows.weights[..., :, None] * columns.weights[..., None, :]
    read = functional.embedding_bag(
        indices.flatten(2).flatten(0, 1),
        pixels,
        per_sample_weights=weights.flatten(2).flatten(0, 1).to(pixels.dtype),
        mode="sum",
    )
    return read.view(batch, -1, channels).float()


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
    """Group aligning: descriptors (M, F * N) of unit length, fields of features[keypoints] moved by -shifts."""
    _, num_fields, order = features.shape
    source = (torch.arange(order, device=features.device) + shifts[:, None]) % order
    aligned = features[keypoints].gather(2, source[:, None].expand(-1, num_fields, -1))
    return _unit(aligned.flatten(1))


def group_pool(features: Tensor, pooling: Literal["max", "mean", "norm"]) -> Tensor:
    """The baseline without orientation: descriptors (K, F) of unit length, pooled over the group."""
    if pooling == "norm":
        return _unit(torch.linalg.vector_norm(features, dim=2))
    return _unit(features.amax(dim=2) if pooling == "max" else features.mean(dim=2))


def _unit(vectors: Tensor) -> Tensor:
    unit: Tensor = vectors / (torch.linalg.vector_norm(vectors, dim=1, keepdim=True) + _NORM_EPSILON)
    return unit
