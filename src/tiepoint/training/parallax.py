"""Synthetic parallax: a smooth relief on the plane that two views of a photograph see.

Plane plus parallax: view 1 shows at its pixel x the photograph's point

    p(x) = H_source_from_view1 x + rho(x) e

with a smooth random height rho and one direction e for the whole pair, both in the photograph's pixels. This is what
two cameras see of a rigid surface whose depth differs from a plane's by rho: a point of view 0 lies on a line of
view 1, and where on it says rho. The relief is bounded in slope so that p never folds: every visible point has one
place in each view, and none hides another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tiepoint.training.warps import pixel_grid, transform_points

# p folds where rho changes along e by as much as the plane does, a slope of 1. Half of that halves the error with each
# iteration of `view_points`, too.
_STEEPEST = 0.5
_ITERATIONS = 12


@dataclass(frozen=True, kw_only=True)
class ParallaxConfig:
    """amplitude: greatest height, as a share of what an unwarped view's long side spans; each pair's own is uniform
    up to it, and lower where its slope asks for that. 0 is planes.

    coarsest_cells, num_octaves: the noise of the relief has so many cells to a side of the view, and twice as many
    at half the height in each further octave.
    """

    amplitude: float = 0.0
    coarsest_cells: int = 2
    num_octaves: int = 3

    def __post_init__(self) -> None:
        if not (self.amplitude >= 0 and self.coarsest_cells >= 1 and self.num_octaves >= 1):
            raise ValueError(f"parallax: expected amplitude >= 0, at least 1 cell and octave, got {self}")

    def at(self, difficulty: float) -> ParallaxConfig:
        """The amplitude scaled by `difficulty` in [0, 1]."""
        return replace(self, amplitude=self.amplitude * difficulty)


@dataclass(frozen=True, eq=False)
class Relief:
    """heights: (B, H, W) rho at the pixels of view 1, bilinear between them; direction: (B, 2) unit e."""

    heights: Tensor
    direction: Tensor

    def to(self, device: torch.device) -> Relief:
        return Relief(self.heights.to(device), self.direction.to(device))

    def shift_at(self, points: Tensor) -> Tensor:
        """(B, N, 2) rho e at points of view 1; beyond its rim as at the rim."""
        limit = points.new_tensor([self.heights.shape[2] - 1, self.heights.shape[1] - 1])
        grid = (2 * points / limit - 1).nan_to_num(0.0)[:, None]
        rho = F.grid_sample(self.heights[:, None], grid, padding_mode="border", align_corners=True)[:, 0, 0]
        return rho[..., None] * self.direction[:, None]

    def source_points(self, H_source_from_view1: Tensor, points: Tensor) -> Tensor:
        """(B, N, 2) p of the photograph at points of view 1; NaN behind the camera."""
        return transform_points(H_source_from_view1, points) + self.shift_at(points)

    def view_points(self, H_view1_from_source: Tensor, points: Tensor) -> Tensor:
        """(B, N, 2) where in view 1 the photograph's (B, N, 2) points appear; NaN behind the camera.

        The inverse of `source_points` by the fixed point x = H_view1_from_source (p - rho(x) e), which starts on
        the plane. Exact to 0.01 px within the view.
        """
        found = transform_points(H_view1_from_source, points)
        for _ in range(_ITERATIONS):
            found = transform_points(H_view1_from_source, points - self.shift_at(found))
        return found


def sample_relief(
    config: ParallaxConfig, H_source_from_view1: Tensor, span_px: float, size: tuple[int, int], generator: Generator
) -> Relief:
    """Of a batch of views 1 of `size` (height, width), on the CPU: a seed gives the same one on every device.

    span_px: how much of the photograph the long side of an unwarped view spans.
    """
    count = len(H_source_from_view1)
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    strength = config.amplitude * span_px * torch.rand(count, generator=generator)
    noise = _smooth_noise(config, count, size, generator)
    slope = _slope(noise, direction, H_source_from_view1).flatten(1).amax(1)
    scale = torch.minimum(strength, _STEEPEST / slope)
    return Relief(noise * scale[:, None, None], direction)


def _smooth_noise(config: ParallaxConfig, count: int, size: tuple[int, int], generator: Generator) -> Tensor:
    """(count, H, W), largest magnitude 1."""
    total = torch.zeros(count, *size)
    for octave in range(config.num_octaves):
        side = config.coarsest_cells * 2**octave + 1
        coarse = torch.randn(count, 1, side, side, generator=generator)
        total += F.interpolate(coarse, size, mode="bicubic", align_corners=True)[:, 0] / 2**octave
    return total / total.flatten(1).abs().amax(1)[:, None, None]


def _slope(noise: Tensor, direction: Tensor, H_source_from_view1: Tensor) -> Tensor:
    """(B, H - 1, W - 1) how much the noise (B, H, W) changes over a pixel of the photograph along `direction`.

    The magnitude of the gradient times J^-1 e, J the derivative of the plane's map.
    """
    size = (noise.shape[1], noise.shape[2])
    plane = transform_points(H_source_from_view1, pixel_grid(size, noise.device).expand(len(noise), -1, -1))
    plane = plane.reshape(*noise.shape, 2)
    noise_x, noise_y = noise.diff(dim=2)[:, :-1], noise.diff(dim=1)[:, :, :-1]
    plane_x, plane_y = plane.diff(dim=2)[:, :-1], plane.diff(dim=1)[:, :, :-1]
    e = direction[:, None, None]
    return ((noise_x * _cross(e, plane_y) + noise_y * _cross(plane_x, e)) / _cross(plane_x, plane_y)).abs()


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
