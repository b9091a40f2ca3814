"""What is evaluated: pairs of pictures and what is true of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiepoint.evaluation.sources import Frame, Source
from tiepoint.geometry import Matches, RelativePose, Transform


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
        """Up to `count` points that both frames see, with Gaussian noise in x and y of image 1 (the oracle)."""


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
        points0 = _pixels(frame0, 20 * count, rng)
        points1 = self.truth_between(frame0, frame1)(points0)
        return _seen(points0, points1, frame0, frame1, count, noise_px, rng)


@dataclass(frozen=True, eq=False, kw_only=True)
class PosePair(ImagePair):
    """A pair of calibrated views.

    truth: camera 1 from camera 0, in file pixels, its translation in the data's own unit.
    metres_per_unit: that unit, where known.
    """

    truth: RelativePose
    metres_per_unit: float = 1.0

    def in_files(self, frame0: Frame, frame1: Frame, matches: Matches) -> Matches:
        """`matches` between the frames, in pixels of the files."""
        return Matches(
            points0=frame0.frame_from_file.inverse()(matches.points0).astype(np.float32),
            points1=frame1.frame_from_file.inverse()(matches.points1).astype(np.float32),
            scores=matches.scores,
            size0=matches.size0,
            size1=matches.size1,
            method=matches.method,
        )

    def true_matches(
        self, frame0: Frame, frame1: Frame, *, count: int, noise_px: float, rng: np.random.Generator
    ) -> Matches:
        """Points of a made scene: pixels of image 0 at random depths, kept where camera 1 sees them."""
        points0 = _pixels(frame0, 50 * count, rng)
        baseline = float(np.linalg.norm(self.truth.translation)) or 1.0  # without one, any depth will do
        depths = baseline * rng.uniform(1, 20, (len(points0), 1))
        pixels = np.concatenate([frame0.frame_from_file.inverse()(points0), np.ones((len(points0), 1))], axis=1)
        scene = pixels @ np.linalg.inv(self.truth.intrinsics0).T * depths
        projected = (scene @ self.truth.rotation.T + self.truth.translation) @ self.truth.intrinsics1.T
        in_front = np.where(projected[:, 2:] > 0, projected[:, 2:], np.nan)
        points1 = frame1.frame_from_file(projected[:, :2] / in_front)
        return _seen(points0, points1, frame0, frame1, count, noise_px, rng)


@dataclass(frozen=True, eq=False, kw_only=True)
class UnknownPair(ImagePair):
    """Two pictures of which nothing is known."""

    def true_matches(self, *_: object, **__: object) -> Matches:
        raise ValueError(f"{self.key}: the truth is not known, so there is no oracle")


def _pixels(frame: Frame, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.uniform((0, 0), np.array(frame.image.size) - 1.0, (count, 2))


def _seen(
    points0: NDArray[np.float64],
    points1: NDArray[np.float64],
    frame0: Frame,
    frame1: Frame,
    count: int,
    noise_px: float,
    rng: np.random.Generator,
) -> Matches:
    """The first `count` points that lie in frame 1, as matches with noise there."""
    size1 = frame1.image.size
    rows = np.flatnonzero(((points1 >= 0) & (points1 <= np.array(size1) - 1.0)).all(axis=1))[:count]
    noise = rng.normal(0, 1, (len(rows), 2)) * noise_px
    return Matches(
        points0=points0[rows].astype(np.float32),
        points1=(points1[rows] + noise).astype(np.float32),
        scores=np.ones(len(rows), np.float32),
        size0=frame0.image.size,
        size1=size1,
        method="oracle",
    )
