"""Plane transforms as objects: call them on points, invert, compose, measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

TransformKind = Literal["translation", "euclidean", "similarity", "affine", "homography"]
"""From the simplest to the most general; each contains those before it."""

KINDS: tuple[TransformKind, ...] = get_args(TransformKind)

DEGREES_OF_FREEDOM: dict[TransformKind, int] = {
    "translation": 2,
    "euclidean": 3,
    "similarity": 4,
    "affine": 6,
    "homography": 8,
}


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """A transform at one point, in words: p -> shift + R(rotation) shear scale, with perspective beside it.

    The local 2 x 2 Jacobian is R(rotation_deg) @ [[scale_x, shear * scale_y], [0, scale_y]].

    shift_px: (dx, dy), where the point goes minus where it was.
    rotation_deg: in (-180, 180]; positive turns the x axis towards the y axis: clockwise as displayed.
    scale_x, scale_y: of the local Jacobian; scale_y is negative for a mirrored transform.
    shear: dimensionless.
    perspective: (px, py), relative change of the homogeneous scale per pixel at the point; (0, 0) when affine.
    """

    shift_px: tuple[float, float]
    rotation_deg: float
    scale_x: float
    scale_y: float
    shear: float
    perspective: tuple[float, float]

    @property
    def scale(self) -> float:
        """Geometric mean of the two scales."""
        return float(np.sqrt(abs(self.scale_x * self.scale_y)))


@dataclass(frozen=True, eq=False)
class Transform:
    """A map between two image planes, target from source.

    matrix: (3, 3) float64, acting on (x, y, 1); scaled so that its last entry is 1 where that is not 0.
    kind: the family it belongs to.

    Raises ValueError for a matrix that is not finite, singular, or not of its kind.
    """

    matrix: NDArray[np.float64]
    kind: TransformKind = "homography"

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, np.float64)
        if matrix.shape != (3, 3):
            raise ValueError(f"matrix: expected shape (3, 3), got {matrix.shape}")
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        if not np.isfinite(matrix).all() or np.linalg.det(matrix) == 0:
            raise ValueError(f"matrix: expected a finite, invertible matrix, got\n{matrix}")
        if abs(matrix[2, 2]) > 1e-12 * np.abs(matrix).max():
            matrix = matrix / matrix[2, 2]
        if self.kind != "homography" and np.abs(matrix[2] - (0, 0, 1)).max() > 1e-9:
            raise ValueError(f"matrix: expected the last row 0 0 1 for kind {self.kind}, got {matrix[2]}")
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def identity(cls) -> Transform:
        return cls(np.eye(3), "translation")

    @classmethod
    def from_parameters(
        cls, *, shift_px: tuple[float, float] = (0, 0), rotation_deg: float = 0, scale: float = 1,
        centre: tuple[float, float] = (0, 0),
    ) -> Transform:  # fmt: skip
        """The similarity that turns (clockwise as displayed) and scales about `centre`, then shifts."""
        turn = np.deg2rad(rotation_deg)
        linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        matrix = np.eye(3)
        matrix[:2, :2] = linear
        matrix[:2, 2] = np.asarray(centre) + shift_px - linear @ centre
        return cls(matrix, "similarity")

    @property
    def degrees_of_freedom(self) -> int:
        return DEGREES_OF_FREEDOM[self.kind]

    def __call__(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Where (N, 2) points (x, y) go; a point on the horizon goes to infinity (inf or nan)."""
        points = np.asarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"points: expected shape (N, 2), got {points.shape}")
        mapped = points @ self.matrix[:, :2].T + self.matrix[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(mapped[:, :2] / mapped[:, 2:])

    def inverse(self) -> Transform:
        """Source from target."""
        return Transform(np.asarray(np.linalg.inv(self.matrix), np.float64), self.kind)

    def __matmul__(self, other: Transform) -> Transform:
        """First `other`, then this one: H_c_from_b @ H_b_from_a = H_c_from_a."""
        kind = max(self.kind, other.kind, key=KINDS.index)
        return Transform(self.matrix @ other.matrix, kind)

    def residuals(self, source: NDArray[Any], target: NDArray[Any]) -> NDArray[np.float64]:
        """(N,) distances in the target, in pixels, between where `source` points go and `target` points."""
        return np.asarray(np.linalg.norm(self(source) - target, axis=1))

    def jacobian(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """(N, 2, 2) derivative of the target position by the source position at (N, 2) points."""
        points = np.asarray(points, np.float64)
        mapped = points @ self.matrix[:, :2].T + self.matrix[:, 2]
        w = mapped[:, 2, None, None]
        target = mapped[:, :2, None] / w
        return np.asarray((self.matrix[None, :2, :2] - target * self.matrix[None, 2:, :2]) / w)

    def decompose(self, at: tuple[float, float] = (0.0, 0.0)) -> Decomposition:
        """Shift, rotation, scale, shear and perspective at the point `at` of the source."""
        point = np.array([at], np.float64)
        (a, b), (c, d) = self.jacobian(point)[0]
        scale_x = float(np.hypot(a, c))
        determinant = a * d - b * c
        shift = self(point)[0] - point[0]
        w = float(self.matrix[2] @ (*at, 1.0))
        return Decomposition(
            shift_px=(float(shift[0]), float(shift[1])),
            rotation_deg=float(np.rad2deg(np.arctan2(c, a))),
            scale_x=scale_x,
            scale_y=float(determinant / scale_x),
            shear=float((a * b + c * d) / determinant),
            perspective=(float(self.matrix[2, 0] / w), float(self.matrix[2, 1] / w)),
        )


def frame_corners(size: tuple[int, int]) -> NDArray[np.float64]:
    """(4, 2) centres of the corner pixels of a picture of `size` (width, height), clockwise from the top left."""
    right, bottom = size[0] - 1.0, size[1] - 1.0
    return np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]])


def corner_errors(estimate: Transform, truth: Transform, size: tuple[int, int]) -> NDArray[np.float64]:
    """(4,) distances in the target, in pixels, between the two images of each corner of a frame of `size`.

    Their mean is the corner error of DeTone et al., "Deep Image Homography Estimation" (2016), with the corners
    at pixel centres (0 ... W - 1, 0 ... H - 1).
    """
    corners = frame_corners(size)
    return estimate.residuals(corners, truth(corners))
