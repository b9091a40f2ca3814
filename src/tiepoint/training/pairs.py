"""Two views of each photograph of a batch: what every method trained on plain photographs starts from."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from tiepoint.training.photographs import Photographs
from tiepoint.training.photometric import PhotometricConfig, disturbed
from tiepoint.training.warps import Views, WarpConfig, render, sample_homographies


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """size: (height, width) of the views, multiples of 8; view 0 stays near upright, view 1 goes the whole way.

    span: share of a photograph's side that an unwarped view's long side spans; both views look at one place.
    easy_share: share of the training in which the warps grow from a quarter to their full range.
    """

    size: tuple[int, int] = (192, 256)
    warp0: WarpConfig = field(
        default_factory=lambda: WarpConfig(rotation_deg=0, scale=1.25, perspective=0.1, shear=0.05)
    )
    warp1: WarpConfig = field(default_factory=WarpConfig)
    photometric: PhotometricConfig = field(default_factory=PhotometricConfig)
    span: float = 0.8
    easy_share: float = 0.2

    def __post_init__(self) -> None:
        if any(side % 8 for side in self.size):
            raise ValueError(f"size: expected multiples of 8, got {self.size}")


@dataclass(frozen=True, eq=False)
class ViewPairs:
    """views0, views1: disturbed in light; H_view0_from_source, H_view1_from_source: (B, 3, 3).

    indices: (B,) rows of the photographs.
    """

    views0: Views
    views1: Views
    H_view0_from_source: Tensor
    H_view1_from_source: Tensor
    indices: Tensor

    @property
    def H_1_from_0(self) -> Tensor:
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
    """Views of the photographs at `indices` (B,), warps scaled by `difficulty` in [0, 1]."""
    pictures = photographs.batch(indices, device)
    slack = (1 - config.span) / 2 * photographs.side_px
    middle = (photographs.side_px - 1) / 2
    centres = middle + slack * (2 * torch.rand(len(indices), 2, generator=generator) - 1)
    views, inverses = [], []
    for warp in (config.warp0, config.warp1):
        span_px = config.span * photographs.side_px
        matrices = sample_homographies(warp.at(difficulty), centres, span_px, config.size, generator)
        view = render(pictures, matrices, config.size, torch.rand(len(indices), generator=generator))
        views.append(Views(disturbed(view.images, config.photometric, generator), view.valid))
        inverses.append(torch.linalg.inv(matrices).to(device))
    return ViewPairs(views[0], views[1], inverses[0], inverses[1], indices)


def difficulty_at(progress: float, easy_share: float) -> float:
    """A quarter at the start, growing evenly to 1 when `progress` reaches `easy_share`."""
    return 1.0 if progress >= easy_share else 0.25 + 0.75 * progress / easy_share
