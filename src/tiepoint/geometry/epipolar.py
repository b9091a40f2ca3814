"""Two-view geometry: fundamental and essential matrices, relative pose, their distances and errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class EpipolarGeometry:
    """x1ᵀ F x0 = 0 for the same point x0 = (x, y, 1) of image 0 and x1 of image 1, in pixels.

    matrix: (3, 3) float64 of rank 2, unit Frobenius norm.
    """

    matrix: NDArray[np.float64]

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, np.float64)
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not matrix.any():
            raise ValueError(f"matrix: expected a finite (3, 3) matrix other than zero, got\n{matrix}")
        matrix = matrix / np.linalg.norm(matrix)
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    def residuals(self, points0: NDArray[Any], points1: NDArray[Any]) -> NDArray[np.float64]:
        """(N,) Sampson distances in pixels."""
        return sampson_distance(self.matrix, points0, points1)

    def inverse(self) -> EpipolarGeometry:
        """The geometry with the images swapped."""
        return EpipolarGeometry(self.matrix.T)


@dataclass(frozen=True, eq=False)
class RelativePose:
    """x_camera1 = rotation @ x_camera0 + translation.

    rotation: (3, 3); translation: (3,), of unit length when it comes from images alone.
    intrinsics0, intrinsics1: (3, 3) K of each camera, pixel centres at integers.
    """

    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]
    intrinsics0: NDArray[np.float64]
    intrinsics1: NDArray[np.float64]

    @property
    def essential(self) -> NDArray[np.float64]:
        """(3, 3) E = [t]x R."""
        return cross_matrix(self.translation) @ self.rotation

    @property
    def epipolar(self) -> EpipolarGeometry:
        """F = K1^-T E K0^-1."""
        return EpipolarGeometry(fundamental_from_essential(self.essential, self.intrinsics0, self.intrinsics1))

    def residuals(self, points0: NDArray[Any], points1: NDArray[Any]) -> NDArray[np.float64]:
        """(N,) Sampson distances in pixels."""
        return self.epipolar.residuals(points0, points1)


def cross_matrix(v: NDArray[Any]) -> NDArray[np.float64]:
    """[v]x, with [v]x u = v x u."""
    x, y, z = v
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]], np.float64)


def fundamental_from_essential(
    essential: NDArray[Any], intrinsics0: NDArray[Any], intrinsics1: NDArray[Any]
) -> NDArray[np.float64]:
    """F = K1^-T E K0^-1 (Hartley & Zisserman, eq. 9.12)."""
    return np.asarray(np.linalg.inv(intrinsics1).T @ essential @ np.linalg.inv(intrinsics0))


def _lines(
    matrix: NDArray[Any], points0: NDArray[Any], points1: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Epipolar lines F x0 in image 1 and Fᵀ x1 in image 0, (N, 3) each, and x1ᵀ F x0, (N,)."""
    x0 = np.concatenate([np.asarray(points0, np.float64), np.ones((len(points0), 1))], axis=1)
    x1 = np.concatenate([np.asarray(points1, np.float64), np.ones((len(points1), 1))], axis=1)
    lines1, lines0 = x0 @ matrix.T, x1 @ matrix
    return lines1, lines0, np.einsum("ni,ni->n", x1, lines1)


def sampson_distance(matrix: NDArray[Any], points0: NDArray[Any], points1: NDArray[Any]) -> NDArray[np.float64]:
    """(N,) |x1ᵀFx0| / sqrt(|(Fx0)_12|² + |(Fᵀx1)_12|²), first order in the distance to a fitting pair.

    Hartley & Zisserman, eq. 11.9 (its square root). Points on the epipole give inf.
    """
    lines1, lines0, algebraic = _lines(matrix, points0, points1)
    norm = np.sqrt((lines1[:, :2] ** 2).sum(1) + (lines0[:, :2] ** 2).sum(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(norm > 0, np.abs(algebraic) / norm, np.inf))


def symmetric_epipolar_distance(
    matrix: NDArray[Any], points0: NDArray[Any], points1: NDArray[Any]
) -> NDArray[np.float64]:
    """(N,) squared distances to the epipolar lines, summed over both images (Hartley & Zisserman, eq. 11.10)."""
    lines1, lines0, algebraic = _lines(matrix, points0, points1)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = 1 / (lines1[:, :2] ** 2).sum(1) + 1 / (lines0[:, :2] ** 2).sum(1)
        return np.asarray(algebraic**2 * weight)


def rotation_error_deg(rotation: NDArray[Any], truth: NDArray[Any]) -> float:
    """Angle of the rotation between the two, in degrees, 0 ... 180."""
    difference = np.asarray(rotation).T @ truth
    # By sine and cosine: arccos alone loses all digits near 0 (eps 1e-16 becomes 1e-6 degrees).
    sine = np.linalg.norm(difference - difference.T) / np.sqrt(8)
    return float(np.rad2deg(np.arctan2(sine, (np.trace(difference) - 1) / 2)))


def direction_error_deg(direction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Angle between two lines, in degrees, 0 ... 90: the sign, which two images cannot tell, is ignored."""
    sine, cosine = np.linalg.norm(np.cross(direction, truth)), abs(float(np.dot(direction, truth)))
    return float(np.rad2deg(np.arctan2(sine, cosine)))
