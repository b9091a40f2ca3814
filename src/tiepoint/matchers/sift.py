"""SIFT: scale-invariant keypoints and gradient histograms (Lowe, IJCV 2004), as OpenCV computes them.

Descriptors are RootSIFT by default (Arandjelović & Zisserman, CVPR 2012, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Features
from tiepoint.images import Image, fitted_size, gray_view, resize
from tiepoint.matchers.base import check_at_least_1


@dataclass(frozen=True, kw_only=True)
class Sift:
    """Detects and describes SIFT keypoints.

    max_num_keypoints: the strongest that many are kept.
    max_size_px: long side of the image worked on. SIFT's first octave doubles the image, and its time and
        memory follow: 12 megapixels take 1.6 s and 3 GB, 1600 px a tenth.
    contrast_threshold: of the difference-of-Gaussians extrema, as OpenCV defines it. A lower one gives
        more keypoints on plain objects and, on the sets of this project, no more right homographies.
    root: RootSIFT descriptors of unit length instead of Lowe's (norm about 512).
    """

    max_num_keypoints: int = 4096
    max_size_px: int | None = 1600
    contrast_threshold: float = 0.04
    root: bool = True

    def __post_init__(self) -> None:
        check_at_least_1(self, "max_size_px", "max_num_keypoints")

    def extract(self, image: Image) -> Features:
        """Keypoints of `image` with (N, 128) float32 descriptors, strongest first; none for a blank image."""
        gray = gray_view(image)
        small, to_small = resize(gray, fitted_size(image.size, self.max_size_px))
        # Without the precise upscale OpenCV's first octave is off by a quarter of a pixel in x and y.
        detector = cv2.SIFT.create(
            nfeatures=self.max_num_keypoints,
            contrastThreshold=self.contrast_threshold,
            enable_precise_upscale=True,
        )
        found, descriptors = detector.detectAndCompute(small, None)
        if not found:
            return no_features(image.size, np.zeros((0, 128), np.float32))
        rows = strongest_first([point.response for point in found], self.max_num_keypoints)
        chosen = [found[row] for row in rows]
        described = np.asarray(descriptors, np.float32)[rows]
        return Features(
            keypoints=to_small.to_original(np.array([point.pt for point in chosen])).astype(np.float32),
            scores=np.array([point.response for point in chosen], np.float32),
            descriptors=root_sift(described) if self.root else described,
            image_size=image.size,
            scales_px=np.array([point.size / to_small.scale_x for point in chosen], np.float32),
            angles_deg=np.array([point.angle for point in chosen], np.float32),
        )

    def extract_batch(self, images: Sequence[Image]) -> list[Features]:
        return [self.extract(image) for image in images]


def root_sift(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 128) square roots of the L1-normalised histograms: of unit length, compared by the Hellinger kernel."""
    total = np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12)
    return np.asarray(np.sqrt(descriptors / total), np.float32)


def strongest_first(responses: Sequence[float], count: int) -> NDArray[np.int64]:
    """Rows of the `count` largest responses in falling order, ties in the order given, so that runs repeat."""
    return np.argsort(-np.asarray(responses), kind="stable")[:count]


def no_features(image_size: tuple[int, int], descriptors: NDArray[np.generic]) -> Features:
    """The features of an image in which nothing was found; `descriptors` is (0, D)."""
    nothing = np.zeros(0, np.float32)
    return Features(
        keypoints=np.zeros((0, 2), np.float32),
        scores=nothing,
        descriptors=descriptors,
        image_size=image_size,
        scales_px=nothing,
        angles_deg=nothing,
    )
