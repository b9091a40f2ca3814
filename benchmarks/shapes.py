"""Corners of synthetic shapes: mean average precision and localisation error of detectors, clean and noisy.

    python benchmarks/shapes.py [--weights RUN/best.safetensors ...]

FAST, Harris and Shi-Tomasi are OpenCV's. The protocol is SuperPoint's (appendix B): a detection within 4 px of a
corner that no stronger one took is right. 500 drawings of 120 x 160, as MagicPoint is trained on, of a seed that
no training uses.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiepoint.matchers.superpoint import load_superpoint, suppress
from tiepoint.training.detection import average_precision, detections
from tiepoint.training.magicpoint import MagicPointConfig, drawings
from tiepoint.training.photometric import disturbed
from tiepoint.training.shapes import SHAPES
from tiepoint.weights import load_weights

Found = list[tuple[Tensor, Tensor]]
RADIUS_PX = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", nargs="*", default=[], help="of MagicPoints or SuperPoints: names or files")
    parser.add_argument("--count", type=int, default=500)
    arguments = parser.parse_args()
    detectors: dict[str, Callable[[Tensor], Found]] = {
        "FAST": lambda images: [fast(image) for image in pixels(images)],
        "Harris": lambda images: [peaks(cv2.cornerHarris(image, 3, 3, 0.04)) for image in pixels(images)],
        "Shi-Tomasi": lambda images: [peaks(cv2.cornerMinEigenVal(image, 3, ksize=3)) for image in pixels(images)],
        **{name: by_network(name) for name in arguments.weights},
    }
    generator = torch.Generator().manual_seed(987654321)
    kinds = [list(SHAPES)[i % len(SHAPES)] for i in range(arguments.count)]
    clean, corners = drawings(kinds, (120, 160), generator)
    noisy = disturbed(clean, MagicPointConfig().photometric, generator)
    print("| detector | mAP clean | mAP noisy | error clean px | error noisy px |\n|---|---|---|---|---|")
    for name, detect in detectors.items():
        (precise, error), (precise_noisy, error_noisy) = (
            average_precision(detect(images), corners, 4.0) for images in (clean, noisy)
        )
        print(f"| {name} | {precise:.3f} | {precise_noisy:.3f} | {error:.2f} | {error_noisy:.2f} |", flush=True)


def pixels(images: Tensor) -> list[NDArray[np.uint8]]:
    return [np.asarray(image) for image in (images[:, 0] * 255).round().byte().numpy()]


def fast(image: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    heat = np.zeros(image.shape, np.float32)
    for point in cv2.FastFeatureDetector.create(threshold=5).detect(image):
        heat[round(point.pt[1]), round(point.pt[0])] = point.response
    return peaks(heat)


def peaks(heat: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """The local maxima of a response, strongest first."""
    kept = suppress(torch.from_numpy(heat)[None], RADIUS_PX)[0]
    y, x = torch.nonzero(kept > 1e-3 * kept.max().clamp(min=1e-12), as_tuple=True)
    scores, order = kept[y, x].sort(descending=True, stable=True)
    return torch.stack([x, y], -1)[order].float(), scores


def by_network(weights: str) -> Callable[[Tensor], Found]:
    network = load_superpoint(load_weights(weights), weights)

    @torch.inference_mode()
    def detect(images: Tensor) -> Found:
        return [
            found
            for chunk in torch.split(images, 32)
            for found in detections(network.detector(network.encoded(chunk)), radius_px=RADIUS_PX, threshold=0.001)
        ]

    return detect


if __name__ == "__main__":
    main()
