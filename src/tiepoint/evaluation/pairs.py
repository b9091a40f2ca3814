"""What is evaluated: pairs of pictures, where their pictures come from, and what is true of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Matches, RelativePose, Transform
from tiepoint.images import Image, ImageError, read_image, resize

PLAIN_SUFFIXES = frozenset({".ppm", ".pgm"})
"""HPatches' own formats, which `read_image` leaves to data sets."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture as it is given to a method.

    image: what the method sees. frame_from_file: where pixels of the file went in it (resized, turned).
    """

    image: Image
    frame_from_file: Transform


class Source(ABC):
    """Where a picture comes from; equal sources are one picture, encoded once."""

    path: Path

    @abstractmethod
    def read(self) -> Frame:
        """The picture. Raises ImageError."""


@dataclass(frozen=True)
class FileSource(Source):
    """A file as it is, or with its short side resized to `short_side_px` and the long one in proportion, cut."""

    path: Path
    short_side_px: int | None = None

    def read(self) -> Frame:
        image = read_plain(self.path) if self.path.suffix.lower() in PLAIN_SUFFIXES else read_image(self.path)
        if self.short_side_px is None:
            return Frame(image, Transform.identity())
        factor = self.short_side_px / min(image.size)
        width, height = (max(1, int(side * factor + 1e-9)) for side in image.size)
        pixels, to_resized = resize(image.pixels, (width, height))
        return Frame(Image(pixels, self.path), Transform(to_resized.matrix, "affine"))


def read_plain(path: Path) -> Image:
    """A PPM or PGM file."""
    pixels: NDArray[Any] | None = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError(f"{path}: cannot be read as PPM or PGM")
    return Image(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB) if pixels.ndim == 3 else pixels, path)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImagePair(ABC):
    """Two pictures to match and what is true of them.

    key: names the pair, once in a run. subset: the part of the data it is summarised under. group: pairs of one
    group share pictures, and are matched one after the other.
    """

    key: str
    subset: str
    group: str
    source0: Source
    source1: Source

    @abstractmethod
    def true_matches(
        self, frame0: Frame, frame1: Frame, *, count: int, noise_px: float, rng: np.random.Generator
    ) -> Matches:
        """Up to `count` points of the scene that both frames see, with Gaussian noise in image 1 (the oracle)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PlanePair(ImagePair):
    """A pair related by a homography.

    truth: file 1 from file 0. points0, points1: (N, 2) where the error is measured, for pictures that overlap in
    part; None for the corners of image 0.
    """

    truth: Transform
    points0: NDArray[np.float64] | None = None
    points1: NDArray[np.float64] | None = None

    def truth_between(self, frame0: Frame, frame1: Frame) -> Transform:
        """The true homography between the pictures as they were matched: S1 H S0⁻¹."""
        return frame1.frame_from_file @ self.truth @ frame0.frame_from_file.inverse()

    def true_matches(
        self, frame0: Frame, frame1: Frame, *, count: int, noise_px: float, rng: np.random.Generator
    ) -> Matches:
        size0, size1 = frame0.image.size, frame1.image.size
        points0 = rng.uniform((0, 0), np.array(size0) - 1.0, (20 * count, 2))
        points1 = self.truth_between(frame0, frame1)(points0)
        seen = ((points1 >= 0) & (points1 <= np.array(size1) - 1.0)).all(axis=1)
        return _matches(points0[seen][:count], points1[seen][:count], size0, size1, noise_px, rng)


@dataclass(frozen=True, eq=False, kw_only=True)
class PosePair(ImagePair):
    """A pair of calibrated views; `truth` is camera 1 from camera 0 in file pixels, its translation unscaled."""

    truth: RelativePose
    metres_per_unit: float = 1.0

    def true_matches(
        self, frame0: Frame, frame1: Frame, *, count: int, noise_px: float, rng: np.random.Generator
    ) -> Matches:
        """Points of a made scene: pixels of image 0 at random depths, kept where camera 1 sees them."""
        size0, size1 = frame0.image.size, frame1.image.size
        pixels = rng.uniform((0, 0), np.array(size0) - 1.0, (200 * count, 2))
        depths = max(float(np.linalg.norm(self.truth.translation)), 1e-9) * rng.uniform(
            1, 20, (200 * count, 1)
        )
        rays = (
            np.concatenate([pixels, np.ones((len(pixels), 1))], axis=1)
            @ np.linalg.inv(self.truth.intrinsics0).T
        )
        seen_from1 = (rays * depths) @ self.truth.rotation.T + self.truth.translation
        projected = seen_from1 @ self.truth.intrinsics1.T
        points1 = projected[:, :2] / np.where(projected[:, 2:] > 0, projected[:, 2:], np.nan)
        seen = ((points1 >= 0) & (points1 <= np.array(size1) - 1.0)).all(axis=1)
        return _matches(pixels[seen][:count], points1[seen][:count], size0, size1, noise_px, rng)


def _matches(
    points0: NDArray[np.float64],
    points1: NDArray[np.float64],
    size0: tuple[int, int],
    size1: tuple[int, int],
    noise_px: float,
    rng: np.random.Generator,
) -> Matches:
    return Matches(
        points0=points0.astype(np.float32),
        points1=(points1 + rng.normal(0, 1, points1.shape) * noise_px).astype(np.float32),
        scores=np.ones(len(points0), np.float32),
        size0=size0,
        size1=size1,
        method="oracle",
    )
