"""Least squares for every kind of transform: one Gauss-Newton, one covariance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Transform, TransformKind

Points = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Frame:
    """Coordinates x' = (x - centre) / scale, in which the fit is well conditioned (Hartley 1997)."""

    centre: NDArray[np.float64]
    scale: float

    @property
    def matrix(self) -> NDArray[np.float64]:
        s, (cx, cy) = 1 / self.scale, self.centre
        return np.array([[s, 0, -s * cx], [0, s, -s * cy], [0, 0, 1]])

    def __call__(self, points: Points) -> Points:
        return (points - self.centre) / self.scale


def refine(transform: Transform, points0: Points, points1: Points) -> tuple[Transform, NDArray[np.float64]]:
    """The transform of the same kind that fits the matches best, and the covariance of its matrix.

    Minimises sum of rho(|T(x0) - x1|) with rho(r) = c²/2 log(1 + (r/c)²), Cauchy's, by iteratively reweighted
    Gauss-Newton steps; c is three times the robust scale of the residuals, so that the tails of keypoint noise
    do not count in full. The covariance is the sandwich A⁻¹ B A⁻¹ of M-estimators (Huber 1981, section 6.3),
    right also where the noise differs from point to point.

    transform: a start within the basin, as robust estimators give. points0, points1: (N, 2), at least as many
    as the kind needs; outliers are expected to be gone.
    Returns the transform and the (9, 9) covariance of its row-major matrix, in pixels.
    """
    frame0, frame1 = _frames(points0, points1)
    x0, x1 = frame0(points0), frame1(points1)
    start = Transform(frame1.matrix @ transform.matrix @ np.linalg.inv(frame0.matrix), transform.kind)
    parameters = _parameters(start)
    normal = score = np.eye(len(parameters))
    for _ in range(10):
        jacobian, residuals = _linearised(parameters, transform.kind, x0, x1)
        weights = _weights(residuals)
        normal = np.einsum("nik,n,nil->kl", jacobian, weights, jacobian)
        gradient = np.einsum("nik,n,ni->nk", jacobian, weights, residuals)
        score = gradient.T @ gradient
        step = np.linalg.lstsq(normal, gradient.sum(0), rcond=None)[0]
        parameters = parameters - step
        if np.abs(step).max() < 1e-12:
            break
    matrix, by_parameters = _matrix(parameters, transform.kind)
    count, unknowns = 2 * len(x0), len(parameters)
    inverse = np.linalg.pinv(normal)
    covariance = inverse @ score @ inverse * (count / max(count - unknowns, 1))
    lifted = by_parameters @ covariance @ by_parameters.T
    return _to_pixels(matrix, lifted, frame0, frame1, transform.kind)


def point_covariance(
    transform: Transform, covariance: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N, 2, 2) covariance, in pixels² of the target, of where `transform` sends (N, 2) `points`."""
    by_matrix = _projection_by_matrix(transform.matrix, points)
    return np.asarray(np.einsum("nik,kl,njl->nij", by_matrix, covariance, by_matrix))


def _frames(points0: Points, points1: Points) -> tuple[_Frame, _Frame]:
    """One scale for both images, so that a translation stays a translation."""
    centre0, centre1 = points0.mean(0), points1.mean(0)
    spread = max(
        float(np.sqrt(((p - c) ** 2).sum(1).mean())) for p, c in ((points0, centre0), (points1, centre1))
    )
    return _Frame(centre0, max(spread, 1.0)), _Frame(centre1, max(spread, 1.0))


def _parameters(transform: Transform) -> NDArray[np.float64]:
    """The free numbers of a transform; `_matrix` goes back. A start outside its kind is projected onto it."""
    m = transform.matrix
    cos, sin = (m[0, 0] + m[1, 1]) / 2, (m[1, 0] - m[0, 1]) / 2
    return {
        "translation": np.array([m[0, 2], m[1, 2]]),
        "euclidean": np.array([np.arctan2(sin, cos), m[0, 2], m[1, 2]]),
        "similarity": np.array([cos, sin, m[0, 2], m[1, 2]]),
        "affine": m[:2].ravel().copy(),
        "homography": m.ravel()[:8] / m[2, 2],
    }[transform.kind]


def _matrix(p: NDArray[np.float64], kind: TransformKind) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The (3, 3) matrix of parameters `p`, and its (9, K) derivative, rows in row-major order."""
    matrix, by = np.eye(3), np.zeros((9, len(p)))
    if kind == "translation":
        matrix[:2, 2] = p
        by[[2, 5], [0, 1]] = 1
    elif kind == "euclidean":
        cos, sin = np.cos(p[0]), np.sin(p[0])
        matrix[:2] = [[cos, -sin, p[1]], [sin, cos, p[2]]]
        by[[0, 1, 3, 4], 0] = [-sin, -cos, cos, -sin]
        by[[2, 5], [1, 2]] = 1
    elif kind == "similarity":
        matrix[:2] = [[p[0], -p[1], p[2]], [p[1], p[0], p[3]]]
        by[[0, 4, 1, 3, 2, 5], [0, 0, 1, 1, 2, 3]] = [1, 1, -1, 1, 1, 1]
    else:
        matrix.ravel()[: len(p)] = p
        by[range(len(p)), range(len(p))] = 1
    return matrix, by


def _projection_by_matrix(matrix: NDArray[np.float64], points: Points) -> NDArray[np.float64]:
    """(N, 2, 9) derivative of the projected points by the nine entries of `matrix`."""
    x = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    mapped = x @ matrix.T
    by = np.zeros((len(points), 2, 9))
    scaled = x / mapped[:, 2:]
    by[:, 0, :3] = by[:, 1, 3:6] = scaled
    by[:, :, 6:] = -(mapped[:, :2] / mapped[:, 2:])[:, :, None] * scaled[:, None]
    return by


def _linearised(
    parameters: NDArray[np.float64], kind: TransformKind, x0: Points, x1: Points
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    matrix, by_parameters = _matrix(parameters, kind)
    residuals = Transform(matrix)(x0) - x1
    return _projection_by_matrix(matrix, x0) @ by_parameters, residuals


def _weights(residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    distance = np.linalg.norm(residuals, axis=1)
    # For two-dimensional Gaussian noise the median distance is 1.177 standard deviations.
    scale = 3 * float(np.median(distance)) / 1.177
    return 1 / (1 + (distance / max(scale, 1e-9)) ** 2)


def _to_pixels(
    matrix: NDArray[np.float64],
    covariance: NDArray[np.float64],
    frame0: _Frame,
    frame1: _Frame,
    kind: TransformKind,
) -> tuple[Transform, NDArray[np.float64]]:
    """Undo the frames: M = F1⁻¹ M' F0, scaled to M_33 = 1, and the covariance along with it."""
    back1, to0 = np.linalg.inv(frame1.matrix), frame0.matrix
    unscaled = back1 @ matrix @ to0
    linear = np.kron(back1, to0.T)  # of the row-major entries
    last = unscaled[2, 2]
    divide = (np.eye(9) - np.outer(unscaled.ravel() / last, np.eye(9)[8])) / last
    chain = divide @ linear
    pixels = unscaled / last
    if kind != "homography":
        pixels[2] = (0, 0, 1)
    return Transform(pixels, kind), chain @ covariance @ chain.T
