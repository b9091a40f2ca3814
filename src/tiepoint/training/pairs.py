"""Two views of each photograph of a batch: what every method trained on plain photographs starts from."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from tiepoint.training.parallax import ParallaxConfig, Relief, sample_relief
from tiepoint.training.photographs import Photographs
from tiepoint.training.photometric import PhotometricConfig, disturbed
from tiepoint.training.warps import Views, WarpConfig, pixel_grid, render_at, sample_homographies, transform_points


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """size: (height, width) of the views, multiples of 8; view 0 stays near upright, view 1 goes the whole way.

    span: share of a photograph's side that an unwarped view's long side spans; both views look at one place.
    easy_share: share of the training in which the warps grow from a quarter to their full range.
    parallax: what the scene departs from a plane by; nothing by default.
    """

    size: tuple[int, int] = (192, 256)
    warp0: WarpConfig = field(
        default_factory=lambda: WarpConfig(rotation_deg=0, scale=1.25, perspective=0.1, shear=0.05)
    )
    warp1: WarpConfig = field(default_factory=WarpConfig)
    photometric: PhotometricConfig = field(default_factory=PhotometricConfig)
    span: float = 0.8
    easy_share: float = 0.2
    parallax: ParallaxConfig = field(default_factory=ParallaxConfig)

    def __post_init__(self) -> None:
        if any(side % 8 for side in self.size):
            raise ValueError(f"size: expected multiples of 8, got {self.size}")


@dataclass(frozen=True, eq=False)
class ViewPairs:
    """views0, views1: disturbed in light; H_view0_from_source, H_view1_from_source: (B, 3, 3).

    indices: (B,) rows of the photographs.
    relief: of the scene, seen from view 1; None where every pair shows a plane.
    """

    views0: Views
    views1: Views
    H_view0_from_source: Tensor
    H_view1_from_source: Tensor
    indices: Tensor
    relief: Relief | None = None

    @property
    def H_1_from_0(self) -> Tensor:
        """(B, 3, 3). Raises ValueError where the scene has relief: no homography then relates the views."""
        if self.relief is not None:
            raise ValueError("expected views of planes; with parallax ask for points1_of and points0_of")
        return self._plane_1_from_0

    def points1_of(self, points0: Tensor) -> Tensor:
        """(B, N, 2) where view 1 has what view 0 shows at (B, N, 2); NaN behind the camera, whether seen or not."""
        if self.relief is None:
            return transform_points(self._plane_1_from_0, points0)
        source = transform_points(torch.linalg.inv(self.H_view0_from_source), points0)
        return self.relief.view_points(self.H_view1_from_source, source)

    def points0_of(self, points1: Tensor) -> Tensor:
        """(B, N, 2) where view 0 has what view 1 shows at (B, N, 2); NaN behind the camera, whether seen or not."""
        if self.relief is None:
            return transform_points(self.H_view0_from_source @ torch.linalg.inv(self.H_view1_from_source), points1)
        source = self.relief.source_points(torch.linalg.inv(self.H_view1_from_source), points1)
        return transform_points(self.H_view0_from_source, source)

    @property
    def _plane_1_from_0(self) -> Tensor:
        H_source_from_view0: Tensor = torch.linalg.inv(self.H_view0_from_source)
        return self.H_view1_from_source @ H_source_from_view0


def make_pairs(
    photographs: Photographs,
    indices: Tensor,
    config: PairConfig,
    difficulty: float,
    generator: Generator,
    device: torch.device,
) -> ViewPairs:
    """Views of the photographs at `indices` (B,), warps and parallax scaled by `difficulty` in [0, 1]."""
    pictures = photographs.batch(indices, device)
    span_px = config.span * photographs.side_px
    slack = (1 - config.span) / 2 * photographs.side_px
    middle = (photographs.side_px - 1) / 2
    centres = middle + slack * (2 * torch.rand(len(indices), 2, generator=generator) - 1)
    pixels = pixel_grid(config.size, device).expand(len(indices), -1, -1)

    def view(warp: WarpConfig, parallax: ParallaxConfig) -> tuple[Views, Tensor, Relief | None]:
        matrices = sample_homographies(warp.at(difficulty), centres, span_px, config.size, generator)
        points = transform_points(matrices.to(device), pixels)
        relief = None
        if parallax.amplitude:
            relief = sample_relief(parallax.at(difficulty), matrices, span_px, config.size, generator).to(device)
            points = points + relief.shift_at(pixels)
        fill = torch.rand(len(indices), generator=generator)
        seen = render_at(pictures, points.reshape(-1, *config.size, 2), fill)
        lit = Views(disturbed(seen.images, config.photometric, generator), seen.valid)
        return lit, torch.linalg.inv(matrices).to(device), relief

    views0, H_view0_from_source, _ = view(config.warp0, ParallaxConfig())
    views1, H_view1_from_source, relief = view(config.warp1, config.parallax)
    return ViewPairs(views0, views1, H_view0_from_source, H_view1_from_source, indices, relief)


def difficulty_at(progress: float, easy_share: float) -> float:
    """A quarter at the start, growing evenly to 1 when `progress` reaches `easy_share`."""
    return 1.0 if progress >= easy_share else 0.25 + 0.75 * progress / easy_share
