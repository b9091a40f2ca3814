"""Reading one map at, and correlating another with it around, sub-pixel positions of a warp.

Both are written on rows of feature vectors, (H * W, C), and never build the (2r + 1)^2 H W C vectors of all
windows: weighted sums of gathered rows are torch's `embedding_bag`, and dot products with gathered rows are the
gradient of that sum by its weights, so each is one call that holds no gathered row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_at(maps: Tensor, warp: Tensor) -> Tensor:
    """`maps` (B, C, H, W) read bilinearly at `warp` (B, 2, h, w); (B, C, h, w) float32, channels last.

    warp: (x, y) in [-1, 1], the borders of the map's outer pixels (`align_corners=False`); zero outside.
    Gradients reach `maps`, not `warp`.
    """
    batch, channels, height, width = maps.shape
    positions = _cells(warp.detach(), height, width)  # (B, h, w, 2)
    corner = positions.floor()
    x, y = (positions - corner).unbind(-1)
    weights = torch.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], -1)  # (B, h, w, 4)
    index, inside = _window_rows(corner, torch.arange(2, device=maps.device), height, width)
    sums = F.embedding_bag(
        index.view(-1, 4), _rows(maps), per_sample_weights=(weights * inside).view(-1, 4), mode="sum"
    )
    return sums.view(batch, *warp.shape[-2:], channels).permute(0, 3, 1, 2)


def local_correlation(map0: Tensor, map1: Tensor, warp: Tensor, radius: int) -> Tensor:
    """Correlation of each vector of `map0` with a window of `map1` around its warp; RoMa, section 3.4.

    map0: (B, C, h, w). map1: (B, C, H, W). warp: (B, 2, h, w), (x, y) in [-1, 1] as in `sample_at`.
    Returns (B, (2 radius + 1)^2, h, w) float32, channels last, entry (dy + radius) (2 radius + 1) + dx + radius
    = <map0(p), map1(warp(p) + (dx, dy))> / sqrt(C), dx and dy in cells of map1, zero outside.

    All offsets share the warp's sub-pixel fraction, so the dot products are taken at the (2 radius + 2)^2
    integer positions around it and blended bilinearly. Gradients reach `map0` alone, as in the publication.
    """
    batch, channels, h, w = map0.shape
    height, width = map1.shape[-2:]
    side = 2 * radius + 2
    positions = _cells(warp.detach(), height, width)
    corner = positions.floor()
    offsets = torch.arange(-radius, radius + 2, device=map1.device)
    index, inside = _window_rows(corner, offsets, height, width)
    products = _gathered_products(_rows(map0), _rows(map1).detach(), index.view(-1, side**2))
    products = (products.view_as(index) * inside).view(batch, h, w, side, side)
    x, y = (positions - corner)[..., None, None].unbind(-3)
    blended = torch.lerp(products[..., :-1], products[..., 1:], x)
    blended = torch.lerp(blended[..., :-1, :], blended[..., 1:, :], y)
    return blended.flatten(-2).div(channels**0.5).permute(0, 3, 1, 2)


def _rows(maps: Tensor) -> Tensor:
    """(B, C, H, W) to (B * H * W, C) float32; no copy for float32 maps with channels last."""
    return maps.float().permute(0, 2, 3, 1).flatten(0, 2)


def _cells(warp: Tensor, height: int, width: int) -> Tensor:
    """(B, 2, h, w) in [-1, 1] to (B, h, w, 2) in cells of a (height, width) map, centres at integers.

    Positions further out than any window reaches are drawn in, so that they fit an integer.
    """
    size = warp.new_tensor([width, height])
    cells = (warp.permute(0, 2, 3, 1).float() + 1) * (size / 2) - 0.5
    reach = 64.0 + size
    return torch.minimum(torch.maximum(torch.nan_to_num(cells, nan=-1e4), -reach), 2 * reach)


def _window_rows(corner: Tensor, offsets: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Row numbers of the square window `offsets` x `offsets` around `corner` (B, h, w, 2), and which exist.

    Both (B, h, w, len(offsets)^2), y-major; int64 and bool. Rows that do not exist are given as a nearby one.
    """
    x = corner[..., 0, None].long() + offsets  # (B, h, w, side)
    y = corner[..., 1, None].long() + offsets
    inside = ((y >= 0) & (y < height))[..., :, None] & ((x >= 0) & (x < width))[..., None, :]
    first = torch.arange(len(corner), device=corner.device).view(-1, 1, 1, 1) * (height * width)
    y = first + y.clamp(0, height - 1) * width
    index = y[..., :, None] + x.clamp(0, width - 1)[..., None, :]
    return index.flatten(-2), inside.flatten(-2)


class _GatheredProducts(torch.autograd.Function):
    """out[n, k] = <queries[n], table[index[n, k]]>, with a gradient for the queries alone."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, table: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(table, index)
        count, size = index.shape
        bag = torch.arange(count, device=index.device).repeat_interleave(size)
        starts = torch.arange(0, count * size, size, device=index.device)
        # The gradient of embedding_bag's sum by its weights: exactly these products, gathered row by row.
        products: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            queries.contiguous(), table.contiguous(), index.flatten(), starts, bag, 0
        )
        return products.view(count, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        table, index = ctx.saved_tensors
        return F.embedding_bag(index, table, per_sample_weights=grads[0].contiguous(), mode="sum"), None, None


_gathered_products = cast(Callable[[Tensor, Tensor, Tensor], Tensor], _GatheredProducts.apply)
