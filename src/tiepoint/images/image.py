"""A photograph in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a file says about its picture and a copy should keep.

    resolution_dpi: (x, y) pixels per inch, or None where the file has none.
    icc_profile: the colour profile's bytes, or None.
    """

    resolution_dpi: tuple[float, float] | None = None
    icc_profile: bytes | None = None


@dataclass(frozen=True, eq=False)
class Image:
    """A photograph, upright, in its file's own number type.

    pixels: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16 or float32.
    path: where it was read from, or None.
    metadata: resolution and colour profile.

    Raises ValueError for any other shape or number type.
    """

    pixels: NDArray[Any]
    path: Path | None = None
    metadata: Metadata = field(default_factory=Metadata)

    def __post_init__(self) -> None:
        shape, dtype = self.pixels.shape, self.pixels.dtype
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (3, 4)):
            raise ValueError(f"pixels: expected (H, W), (H, W, 3) or (H, W, 4), got shape {shape}")
        if dtype not in (np.uint8, np.uint16, np.float32):
            raise ValueError(f"pixels: expected uint8, uint16 or float32, got {dtype}")
        if shape[0] == 0 or shape[1] == 0:
            raise ValueError(f"pixels: expected at least one pixel, got shape {shape}")

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height
