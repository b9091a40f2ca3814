"""How alike two pictures are where they overlap, whatever the light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Transform
from tiepoint.images import ResizeMap, fitted_size, resize
from tiepoint.registration.warp import valid_mask

AGREEMENT_SIZE_PX = 480


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Zero-mean normalised cross-correlations in the overlap, -1 ... 1, and its share of the template.

    intensity: of grey values. structure: of grey values after local mean and contrast are taken out, which
    shadows and exposure leave alone. overlap: covered share of the template's area (of the mask's, if given).
    """

    intensity: float
    structure: float
    overlap: float


class Likeness:
    """Compares sources with one template, reduced once.

    template: (H, W) uint8 grey. mask: (H, W) of the template; only its True pixels count.
    """

    def __init__(self, template: NDArray[np.uint8], mask: NDArray[np.bool_] | None = None) -> None:
        size = fitted_size(template.shape[::-1], AGREEMENT_SIZE_PX)
        self._small, self._to_small = resize(template, size)
        self._counted = np.ones(size[::-1], bool)
        if mask is not None:
            self._counted = resize(mask.astype(np.uint8), size)[0] > 0

    def __call__(self, source: NDArray[np.uint8], template_from_source: Transform) -> Agreement:
        """Compare a (H, W) uint8 grey source through a transform, at a long side of the template of 480 px."""
        source_small, to_source_small = _reduced_alike(source, template_from_source, self._to_small)
        matrix = self._to_small.matrix @ template_from_source.matrix @ np.linalg.inv(to_source_small.matrix)
        h, w = self._small.shape
        warped = cv2.warpPerspective(source_small, matrix, (w, h), flags=cv2.INTER_LINEAR)
        valid = valid_mask((source_small.shape[1], source_small.shape[0]), Transform(matrix), (w, h))
        inside = valid & self._counted
        overlap = float(inside.sum() / max(self._counted.sum(), 1))
        if inside.sum() < 64:
            return Agreement(intensity=0.0, structure=0.0, overlap=overlap)
        a, b = self._small.astype(np.float32), warped.astype(np.float32)
        structure = correlation(_local_structure(a, inside), _local_structure(b, inside), inside)
        return Agreement(intensity=correlation(a, b, inside), structure=structure, overlap=overlap)


def correlation(a: NDArray[np.float32], b: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Zero-mean normalised cross-correlation over `mask`; 0 where either is constant."""
    x, y = a[mask].astype(np.float64), b[mask].astype(np.float64)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 1e-6 else 0.0


def _reduced_alike(
    source: NDArray[np.uint8], transform: Transform, template_to_small: ResizeMap
) -> tuple[NDArray[np.uint8], ResizeMap]:
    """The source at about the resolution it will have in the small template, so that warping does not alias."""
    middle = np.array([[source.shape[1] / 2, source.shape[0] / 2]])
    scale = np.sqrt(abs(np.linalg.det(transform.jacobian(middle)[0]))) * template_to_small.scale_x
    scale = float(np.clip(scale, 8 / min(source.shape), 1.0)) if np.isfinite(scale) else 1.0
    size = (max(8, round(source.shape[1] * scale)), max(8, round(source.shape[0] * scale)))
    return resize(source, size)


def _local_structure(gray: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(value - local mean) / local contrast, over the mask alone; flat places, where noise rules, fade to 0."""
    sigma, noise = 6.0, 4.0
    weight = mask.astype(np.float32)
    total = cv2.GaussianBlur(weight, (0, 0), sigma) + 1e-6
    mean = cv2.GaussianBlur(gray * weight, (0, 0), sigma) / total
    deviation = (gray - mean) * weight
    variance = cv2.GaussianBlur(deviation**2, (0, 0), sigma) / total
    return np.asarray(cv2.GaussianBlur(deviation, (0, 0), 0.7) / np.sqrt(variance + noise**2))
