"""Least squares for every kind of transform: one Gauss-Newton, one covariance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Transform, TransformKind

Points = NDArray[np.float64]

_CLUSTER_SIZE = 0.25
"""Side of a cell within which points err alike, in units of the points' root mean square distance from their
centre: some hundred cells where the points fill a frame."""


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates x' = (x - centre) / scale, in which the fit is well conditioned (Hartley 1997)."""

    centre: NDArray[np.float64]
    scale: float

    @property
    def matrix(self) -> NDArray[np.float64]:
        s, (cx, cy) = 1 / self.scale, self.centre
        return np.array([[s, 0, -s * cx], [0, s, -s * cy], [0, 0, 1]])

    @property
    def inverse(self) -> NDArray[np.float64]:
        return np.asarray(np.linalg.inv(self.matrix), np.float64)

    def __call__(self, points: Points) -> Points:
        return (points - self.centre) / self.scale


def refine(transform: Transform, points0: Points, points1: Points) -> tuple[Transform, NDArray[np.float64]]:
    """The transform of the same kind that fits the matches best, and the covariance of its matrix.

    Minimises sum of rho(|T(x0) - x1|) with rho(r) = c²/2 log(1 + (r/c)²), Cauchy's, by iteratively reweighted
    Gauss-Newton steps; c is three times the robust scale of the residuals, so that the tails of keypoint noise
    do not count in full. The covariance is `sandwich_covariance` over the cells of a grid, since the errors of
    neighbouring points have common causes.

    transform: a start within the basin, as robust estimators give. points0, points1: (N, 2), at least as many
    as the kind needs; outliers are expected to be gone.
    Returns the transform and the (9, 9) covariance of its row-major matrix, in pixels. Raises ValueError or
    LinAlgError where the steps lead to no finite transform.
    """
    frame0, frame1 = _frames(points0, points1)
    x0, x1 = frame0(points0), frame1(points1)
    start = Transform(frame1.matrix @ transform.matrix @ np.linalg.inv(frame0.matrix), transform.kind)
    parameters = parameters_of(start)
    normals = scores = np.zeros(0)
    for _ in range(10):
        jacobian, residuals = _linearised(parameters, transform.kind, x0, x1)
        weights = _weights(residuals)
        normals = np.einsum("nik,n,nil->nkl", jacobian, weights, jacobian)
        scores = np.einsum("nik,n,ni->nk", jacobian, weights, residuals)
        step = np.linalg.lstsq(normals.sum(0), scores.sum(0), rcond=None)[0]
        parameters = parameters - step
        if np.abs(step).max() < 1e-12:
            break
    cells = np.floor(x0 / _CLUSTER_SIZE).astype(np.int64)
    covariance = sandwich_covariance(normals, scores, clusters_of(cells))
    return to_pixels(parameters, covariance, transform.kind, frame1.inverse, frame0.matrix)


def sandwich_covariance(
    normals: NDArray[np.float64], scores: NDArray[np.float64], cluster: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The (K, K) covariance of a least-squares fit whose errors are alike within clusters, by the jackknife.

    A⁻¹ (Σ s'ᵢ s'ᵢᵀ) A⁻¹ with A = Σ Nᵢ and s'ᵢ = (1 - Nᵢ A⁻¹)⁻¹ sᵢ: what leaving out each cluster would change
    (CR3: Bell & McCaffrey, "Bias reduction in standard errors", Survey Methodology 2002, section 3). A cluster
    that alone holds the fit makes it large, as it should.

    normals: (N, K, K) w JᵀJ of each datum. scores: (N, K) w Jᵀr at the solution. cluster: (N,) its cluster's
    number; Nᵢ and sᵢ are their sums over the clusters.
    """
    normals, scores = _sum_by(normals, cluster), _sum_by(scores, cluster)
    inverse = np.linalg.pinv(normals.sum(0))
    without = np.eye(inverse.shape[0]) - normals @ inverse
    left_out = np.einsum("ckl,cl->ck", np.linalg.pinv(without, rcond=1e-3), scores)
    return np.asarray(inverse @ (left_out.T @ left_out) @ inverse)


def clusters_of(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) numbers from 0, equal where the rows of (N, 2) `cells` are."""
    return np.unique(cells, axis=0, return_inverse=True)[1].ravel()


def _sum_by(values: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of the rows of `values` (N, ...) with equal `group` (N,), which counts from 0."""
    total = np.zeros((int(group.max()) + 1, *values.shape[1:]))
    np.add.at(total, group, values)
    return total


def point_covariance(
    transform: Transform, covariance: NDArray[np.float64], points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(N, 2, 2) covariance, in pixels² of the target, of where `transform` sends (N, 2) `points`."""
    by_matrix = projection_by_matrix(transform.matrix, points)
    return np.asarray(np.einsum("nik,kl,njl->nij", by_matrix, covariance, by_matrix))


def _frames(points0: Points, points1: Points) -> tuple[Frame, Frame]:
    """One scale for both images, so that a translation stays a translation."""
    centre0, centre1 = points0.mean(0), points1.mean(0)
    spread = max(float(np.sqrt(((p - c) ** 2).sum(1).mean())) for p, c in ((points0, centre0), (points1, centre1)))
    return Frame(centre0, max(spread, 1.0)), Frame(centre1, max(spread, 1.0))


def parameters_of(transform: Transform) -> NDArray[np.float64]:
    """The free numbers of a transform; `matrix_of` goes back. A start outside its kind is projected onto it."""
    m = transform.matrix
    cos, sin = (m[0, 0] + m[1, 1]) / 2, (m[1, 0] - m[0, 1]) / 2
    by_kind = {
        "translation": np.array([m[0, 2], m[1, 2]]),
        "euclidean": np.array([np.arctan2(sin, cos), m[0, 2], m[1, 2]]),
        "similarity": np.array([cos, sin, m[0, 2], m[1, 2]]),
        "affine": m[:2].ravel().copy(),
        "homography": m.ravel()[:8] / m[2, 2],
    }
    return np.asarray(by_kind[transform.kind], np.float64)


def matrix_of(p: NDArray[np.float64], kind: TransformKind) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
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


def projection_by_matrix(matrix: NDArray[np.float64], points: Points) -> NDArray[np.float64]:
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
    matrix, by_parameters = matrix_of(parameters, kind)
    residuals = Transform(matrix)(x0) - x1
    return projection_by_matrix(matrix, x0) @ by_parameters, residuals


def _weights(residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    distance = np.linalg.norm(residuals, axis=1)
    # For two-dimensional Gaussian noise the median distance is 1.177 standard deviations.
    scale = 3 * float(np.median(distance)) / 1.177
    return np.asarray(1 / (1 + (distance / max(scale, 1e-9)) ** 2))


def to_pixels(
    parameters: NDArray[np.float64],
    covariance: NDArray[np.float64],
    kind: TransformKind,
    left: NDArray[np.float64],
    right: NDArray[np.float64],
) -> tuple[Transform, NDArray[np.float64]]:
    """The transform left @ M(parameters) @ right, and the (9, 9) covariance of its matrix, whose last entry is 1.

    covariance: (K, K) of the parameters. left, right: (3, 3) changes of frame within the family of `kind`.
    Raises ValueError where that last entry is 0, and so cannot be made 1: the horizon goes through pixel (0, 0).
    """
    matrix, by_parameters = matrix_of(parameters, kind)
    unscaled = left @ matrix @ right
    linear = np.kron(left, right.T) @ by_parameters  # of the row-major entries
    last = unscaled[2, 2]
    if last == 0:
        raise ValueError("the horizon of the transform goes through pixel (0, 0)")
    divide = (np.eye(9) - np.outer(unscaled.ravel() / last, np.eye(9)[8])) / last
    chain = divide @ linear
    pixels = unscaled / last
    if kind != "homography":
        pixels[2] = (0, 0, 1)
    return Transform(pixels, kind), chain @ covariance @ chain.T
