"""ORB: oriented FAST keypoints and rotated BRIEF bits (Rublee et al., ICCV 2011), as OpenCV computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from tiepoint.geometry import Features
from tiepoint.images import Image, fitted_size, gray_view, resize
from tiepoint.matchers.base import check_at_least_1
from tiepoint.matchers.sift import no_features, strongest_first


@dataclass(frozen=True, kw_only=True)
class Orb:
    """Detects and describes ORB keypoints.

    max_num_keypoints: the strongest that many (Harris response) are kept.
    max_size_px: long side of the image worked on.
    fast_threshold: grey levels by which FAST's arc must differ; OpenCV's default of 20 misses plain objects.
    """

    max_num_keypoints: int = 4096
    max_size_px: int | None = 1600
    fast_threshold: int = 10

    def __post_init__(self) -> None:
        check_at_least_1(self, "max_size_px", "max_num_keypoints")

    def extract(self, image: Image) -> Features:
        """Keypoints of `image` with (N, 32) uint8 descriptors of 256 bits, strongest first."""
        small, to_small = resize(gray_view(image), fitted_size(image.size, self.max_size_px))
        detector = cv2.ORB.create(nfeatures=self.max_num_keypoints, fastThreshold=self.fast_threshold)
        try:
            found, descriptors = detector.detectAndCompute(small, None)
        except cv2.error:  # OpenCV cannot build its pyramid for an image of a few pixels
            found, descriptors = (), None
        if not found:
            return no_features(image.size, np.zeros((0, 32), np.uint8))
        rows = strongest_first([point.response for point in found], self.max_num_keypoints)
        chosen = [found[row] for row in rows]
        return Features(
            keypoints=to_small.to_original(np.array([point.pt for point in chosen])).astype(np.float32),
            scores=np.array([point.response for point in chosen], np.float32),
            descriptors=np.asarray(descriptors, np.uint8)[rows],
            image_size=image.size,
            scales_px=np.array([point.size / to_small.scale_x for point in chosen], np.float32),
            angles_deg=np.array([point.angle for point in chosen], np.float32),
        )

    def extract_batch(self, images: Sequence[Image]) -> list[Features]:
        return [self.extract(image) for image in images]
