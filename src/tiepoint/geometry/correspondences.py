"""Keypoints of one image, and matches between two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiepoint.images import GrayLevel


@dataclass(frozen=True, eq=False, kw_only=True)
class Features:
    """The keypoints of one image and what describes them.

    keypoints: (N, 2) float32, (x, y) in pixels of the full-size upright image, pixel centres at integers.
    scores: (N,) float32, the detector's confidence, higher is better.
    descriptors: (N, D); float32, or uint8 for binary ones (8 bits an entry).
    image_size: (width, height) of the full-size image.
    scales_px: (N,) float32 diameter of each keypoint's support, or None where the detector has none.
    angles_deg: (N,) float32 orientation, clockwise as displayed from the x axis, or None likewise.
    gray_levels: the picture at falling sizes, on which matches are refined; None where they are not to be.
    """

    keypoints: NDArray[np.float32]
    scores: NDArray[np.float32]
    descriptors: NDArray[Any]
    image_size: tuple[int, int]
    scales_px: NDArray[np.float32] | None = None
    angles_deg: NDArray[np.float32] | None = None
    gray_levels: tuple[GrayLevel, ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.keypoints)
        if self.keypoints.shape != (count, 2):
            raise ValueError(f"keypoints: expected shape (N, 2), got {self.keypoints.shape}")
        for name in ("scores", "descriptors", "scales_px", "angles_deg"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"{name}: expected {count} rows, one for each keypoint, got {len(value)}")

    def __len__(self) -> int:
        return len(self.keypoints)


@dataclass(frozen=True, eq=False, kw_only=True)
class Matches:
    """Points seen in both images: row i of points0 and row i of points1 are the same point of the scene.

    points0, points1: (N, 2) float32, (x, y) in pixels of the full-size upright images 0 and 1, pixel centres
        at integers.
    scores: (N,) float32 in [0, 1], higher is better.
    size0, size1: (width, height) of the full-size images.
    method: the name of the matcher.
    """

    points0: NDArray[np.float32]
    points1: NDArray[np.float32]
    scores: NDArray[np.float32]
    size0: tuple[int, int]
    size1: tuple[int, int]
    method: str

    def __post_init__(self) -> None:
        count = len(self.scores)
        for name in ("points0", "points1"):
            shape = getattr(self, name).shape
            if shape != (count, 2):
                raise ValueError(f"{name}: expected shape ({count}, 2), one row for each score, got {shape}")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: NDArray[Any] | slice) -> Matches:
        """The matches at `rows` (a mask, indices or a slice)."""
        return Matches(
            points0=self.points0[rows],
            points1=self.points1[rows],
            scores=self.scores[rows],
            size0=self.size0,
            size1=self.size1,
            method=self.method,
        )

    def swapped(self) -> Matches:
        """The same matches from image 1 to image 0."""
        return Matches(
            points0=self.points1,
            points1=self.points0,
            scores=self.scores,
            size0=self.size1,
            size1=self.size0,
            method=self.method,
        )
