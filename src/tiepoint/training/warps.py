"""Pairs of views of one picture, related by known homographies, made in batches on the device.

All points are (x, y), pixel centres at integers; matrices act on columns (x, y, 1) and are named
target-from-source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class WarpConfig:
    """How far a view may lie from the upright picture; every range is centred on no change.

    rotation_deg: in-plane rotation within +- this.
    scale: zoom between 1 / scale and scale, uniform in its logarithm.
    perspective: least and greatest depth of the plane differ by up to the factor (1 + p) / (1 - p).
    shear: stretch of one axis and slant, each within +- this share.
    translation: shift of the view's middle within +- this share of what its long side spans.
    """

    rotation_deg: float = 180.0
    scale: float = 1.6
    perspective: float = 0.35
    shear: float = 0.15
    translation: float = 0.12

    def __post_init__(self) -> None:
        if not (self.scale >= 1 and 0 <= self.perspective < 1 and 0 <= self.shear < 1):
            raise ValueError(f"warp: expected scale >= 1, perspective and shear in [0, 1), got {self}")

    def at(self, difficulty: float) -> WarpConfig:
        """Every range scaled by `difficulty`: 0 is no change, 1 the whole of it."""
        return WarpConfig(
            rotation_deg=self.rotation_deg * difficulty,
            scale=self.scale**difficulty,
            perspective=self.perspective * difficulty,
            shear=self.shear * difficulty,
            translation=self.translation * difficulty,
        )


def sample_homographies(
    config: WarpConfig, centres: Tensor, span_px: float, size: tuple[int, int], generator: Generator
) -> Tensor:
    """(B, 3, 3) float32 `H_source_from_view`: views of `size` (height, width) into square pictures.

    centres: (B, 2) where in the pictures the views' middles lie without change, span_px: how much of them the
    long side spans then. Drawn on the CPU, so that a seed gives the same views on every device.
    """
    count = len(centres)

    def within(limit: float) -> Tensor:
        return (2 * torch.rand(count, generator=generator) - 1) * limit

    height, width = size
    one, zero = torch.ones(count), torch.zeros(count)
    half = max(size) / 2
    # View pixels to coordinates in which the long side is [-1, 1].
    to_unit = _stack([[one / half, zero, one * (0.5 - width / 2) / half],
                      [zero, one / half, one * (0.5 - height / 2) / half],
                      [zero, zero, one]])  # fmt: skip
    direction = within(math.pi)
    strength = config.perspective * torch.rand(count, generator=generator)
    # |x cos + y sin| <= sqrt(2) inside the view: the denominator stays positive.
    reach = strength / math.sqrt(2)
    tilt = _stack([[one, zero, zero],
                   [zero, one, zero],
                   [reach * direction.cos(), reach * direction.sin(), one]])  # fmt: skip
    shear = _stack([[1 + within(config.shear), within(config.shear), zero],
                    [zero, one, zero],
                    [zero, zero, one]])  # fmt: skip
    angle = within(math.radians(config.rotation_deg))
    zoom = torch.exp(within(math.log(config.scale)))
    turn = _stack([[zoom * angle.cos(), -zoom * angle.sin(), within(2 * config.translation)],
                   [zoom * angle.sin(), zoom * angle.cos(), within(2 * config.translation)],
                   [zero, zero, one]])  # fmt: skip
    to_source = _stack([[one * span_px / 2, zero, centres[:, 0]],
                        [zero, one * span_px / 2, centres[:, 1]],
                        [zero, zero, one]])  # fmt: skip
    return to_source @ turn @ shear @ tilt @ to_unit


def transform_points(H_target_from_source: Tensor, points: Tensor) -> Tensor:
    """(B, N, 2) points of the target from (B, N, 2) of the source; NaN where they lie behind the camera."""
    mapped = points @ H_target_from_source[:, :, :2].mT + H_target_from_source[:, None, :, 2]
    depth = mapped[..., 2:]
    return mapped[..., :2] / torch.where(depth > 1e-6, depth, torch.nan)


def pixel_grid(size: tuple[int, int], device: torch.device) -> Tensor:
    """(H * W, 2) float32 (x, y) of every pixel, row by row."""
    y, x = torch.meshgrid(torch.arange(size[0], device=device), torch.arange(size[1], device=device), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2).float()


def inside(points: Tensor, size: tuple[int, int], border_px: float = 0.0) -> Tensor:
    """(...) bool of (..., 2) points: at least `border_px` within a picture of `size` (height, width)."""
    limit = torch.tensor([size[1] - 1, size[0] - 1], device=points.device) - border_px
    return ((points >= border_px) & (points <= limit)).all(-1)


def valid_at(valid: Tensor, points: Tensor) -> Tensor:
    """(B, N) bool: whether (B, N, 2) points, NaN or not, round to a pixel of `valid` (B, H, W) that is set."""
    return nearest_at(valid, points)


def nearest_at(maps: Tensor, points: Tensor) -> Tensor:
    """(B, N) what `maps` (B, H, W) hold at the pixels (B, N, 2) points round to; 0 or False outside and for NaN."""
    height, width = maps.shape[1:]
    x, y = points.nan_to_num(-1.0).clamp(-1, max(height, width)).round().long().unbind(-1)
    within = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return within * maps.flatten(1).gather(1, index)


@dataclass(frozen=True, eq=False)
class Views:
    """images: (B, C, H, W) in [0, 1]; valid: (B, H, W) bool, where the picture reaches."""

    images: Tensor
    valid: Tensor


def render(pictures: Tensor, H_source_from_view: Tensor, size: tuple[int, int], fill: Tensor) -> Views:
    """Views of `size` (height, width) under matrices (B, 3, 3), as `render_at` makes them."""
    matrices = H_source_from_view.to(pictures.device)
    points = transform_points(matrices, pixel_grid(size, pictures.device).expand(len(pictures), -1, -1))
    return render_at(pictures, points.reshape(len(pictures), *size, 2), fill)


def render_at(pictures: Tensor, points: Tensor, fill: Tensor) -> Views:
    """Views of (B, C, S, S) pictures that show at each pixel the picture's point (B, H, W, 2), NaN for none.

    Bilinear, from a picture halved as often as a view shrinks it.
    fill: (B,) grey level where the picture does not reach.
    """
    device = pictures.device
    size = (points.shape[1], points.shape[2])
    valid = inside(points, (pictures.shape[2], pictures.shape[3]))
    levels = _shrinkage(points).log2().round().clamp(0, 4).int()
    images = torch.empty(len(pictures), pictures.shape[1], *size, device=device)
    for level in sorted(set(levels.tolist())):
        rows = torch.nonzero(levels == level)[:, 0]
        # Average pooling makes pixel i of the halved picture the middle of pixels 2i and 2i + 1.
        coarse = F.avg_pool2d(pictures[rows], 2**level) if level else pictures[rows]
        scaled = (points[rows] + 0.5) / 2**level
        grid = 2 * scaled / torch.tensor([coarse.shape[3], coarse.shape[2]], device=device) - 1
        images[rows] = F.grid_sample(coarse, grid.nan_to_num(-2.0), padding_mode="border", align_corners=False)
    level_of_fill = fill.to(device)[:, None, None, None]
    return Views(torch.where(valid[:, None], images, level_of_fill), valid)


def _shrinkage(points: Tensor) -> Tensor:
    """(B,) source pixels per view pixel at the middle of (B, H, W, 2) sampling points."""
    row, column = points.shape[1] // 2, points.shape[2] // 2
    along_x = points[:, row, column] - points[:, row, column - 1]
    along_y = points[:, row, column] - points[:, row - 1, column]
    area = (along_x[:, 0] * along_y[:, 1] - along_x[:, 1] * along_y[:, 0]).abs()
    return area.nan_to_num(1.0).clamp(min=1e-6).sqrt()


def _stack(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
