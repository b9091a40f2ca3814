"""SuperPoint on photographs: keypoints and descriptors in full-size pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiepoint.geometry import Features
from tiepoint.images import Image, ResizeMap, fitted_size, gray_view, resize
from tiepoint.matchers.base import MatcherOptions, SparseMatcher, check_at_least_1
from tiepoint.matchers.nearest import NearestNeighbours
from tiepoint.matchers.superpoint import (
    CELL_PX,
    Normalisation,
    Sampler,
    SuperPoint,
    keypoint_probability,
    load_superpoint,
    refined,
    sample_descriptors,
    suppress,
)
from tiepoint.matchers.superpoint_inference import PreparedSuperPoint
from tiepoint.networks.devices import batches_of_one_size, device_and_dtype
from tiepoint.weights import default_weights, known_weights, load_weights


@dataclass(frozen=True, kw_only=True)
class SuperPointOptions:
    """How keypoints are chosen and described. Lengths are pixels of the working image.

    max_size_px: long side of the working image; None works at full size.
    max_enlargement: of a smaller image, up to that long side: keypoints are found to a fraction of its pixels then.
    max_num_keypoints: the strongest so many are kept; None keeps all.
    threshold: least probability of a keypoint.
    radius_px: no two keypoints lie within this of each other along both axes.
    border_px: no keypoint lies nearer to the image's edge.
    sampler: see `superpoint.sample_descriptors`; goes with the weights.
    subpixel: move each keypoint to the mean of the probabilities around it.
    """

    max_size_px: int | None = 640
    max_enlargement: float = 2.0
    max_num_keypoints: int | None = 1024
    threshold: float = 0.005
    radius_px: int = 4
    border_px: int = 4
    sampler: Sampler = "exact"
    subpixel: bool = False

    def __post_init__(self) -> None:
        check_at_least_1(self, "max_size_px", "max_enlargement", "max_num_keypoints")
        for name in ("radius_px", "border_px"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold: expected a probability in [0, 1), got {self.threshold}")


# A checkpoint's variant tells whose it is, and with that its preset; the last is that of what is trained here.
PRESETS: dict[Normalisation, SuperPointOptions] = {
    "none": SuperPointOptions(sampler="legacy"),
    "before_relu": SuperPointOptions(threshold=0.015, subpixel=True),
    "after_relu": SuperPointOptions(threshold=0.015, subpixel=True),
}
_PRESETS_BY_NAME = {"open-superpoint": SuperPointOptions()}


class SuperPointExtractor:
    """Detects and describes keypoints by a SuperPoint network."""

    def __init__(
        self, network: SuperPoint, options: SuperPointOptions, *, device: str = "cpu", precision: str = "fp32"
    ) -> None:
        self.options = options
        self.descriptor_dim = network.config.descriptor_dim
        self._network = PreparedSuperPoint(network, *device_and_dtype(device, precision))

    def extract(self, image: Image) -> Features:
        return self.extract_batch([image])[0]

    def extract_batch(self, images: Sequence[Image]) -> list[Features]:
        """The features of each image; on a GPU, images of one working size run together."""
        limits = (self.options.max_size_px, self.options.max_enlargement)
        sizes = [fitted_size(image.size, *limits) for image in images]
        found: dict[int, Features] = {}
        for members in batches_of_one_size(sizes, self._network.device):
            extracted = self._extract([images[i] for i in members], sizes[members[0]])
            found.update(zip(members, extracted, strict=True))
        return [found[index] for index in range(len(images))]

    @torch.inference_mode()
    def _extract(self, images: list[Image], size: tuple[int, int]) -> list[Features]:
        resized = [resize(gray_view(image), size) for image in images]
        maps = self._network(torch.stack([padded_input(pixels) for pixels, _ in resized]))
        width, height = size
        probability = keypoint_probability(maps.logits)[:, :height, :width]
        peaks = suppress(probability, self.options.radius_px)
        return [
            self._features(image, resize_map, *parts)
            for image, (_, resize_map), *parts in zip(
                images, resized, probability, peaks, maps.descriptors, strict=True
            )
        ]

    def _features(
        self, image: Image, resize_map: ResizeMap, probability: Tensor, peaks: Tensor, descriptors: Tensor
    ) -> Features:
        options = self.options
        keypoints, scores = strongest(peaks, options.threshold, options.border_px, options.max_num_keypoints)
        sampled = sample_descriptors(descriptors, keypoints, options.sampler)
        if options.subpixel:
            keypoints = refined(keypoints, probability)
        return Features(
            keypoints=resize_map.to_original(keypoints.cpu().numpy()).astype(np.float32),
            scores=scores.cpu().numpy(),
            descriptors=sampled.cpu().numpy(),
            image_size=image.size,
        )


def padded_input(pixels: NDArray[np.uint8]) -> Tensor:
    """(1, H', W') float32 in [0, 1] from (H, W) grey, edges repeated to multiples of 8: no cell is lost."""
    height, width = pixels.shape
    padded = cv2.copyMakeBorder(pixels, 0, -height % CELL_PX, 0, -width % CELL_PX, cv2.BORDER_REPLICATE)
    return torch.from_numpy(padded).float()[None] / 255


def strongest(peaks: Tensor, threshold: float, border_px: int, max_num_keypoints: int | None) -> tuple[Tensor, Tensor]:
    """(N, 2) float32 keypoints (x, y) and (N,) scores of the suppressed map (H, W), best first.

    Above the threshold, `border_px` inside the image, the best `max_num_keypoints` of them.
    """
    height, width = peaks.shape
    inside = peaks[border_px : max(height - border_px, border_px), border_px : max(width - border_px, border_px)]
    rows, columns = torch.nonzero(inside > threshold, as_tuple=True)
    scores, order = inside[rows, columns].sort(descending=True, stable=True)
    keypoints = torch.stack([columns, rows], -1)[order] + border_px
    return keypoints[:max_num_keypoints].float(), scores[:max_num_keypoints]


def superpoint_extractor(
    weights: str | Path, options: MatcherOptions, preset: SuperPointOptions | None = None
) -> SuperPointExtractor:
    """The extractor of named weights or a file, with `preset` (None: theirs) and what `options` sets beyond."""
    network = load_superpoint(load_weights(weights), str(weights))
    entry = known_weights(weights)
    named = None if entry is None else _PRESETS_BY_NAME.get(entry.name)
    preset = preset or named or PRESETS[network.config.normalisation]
    preset = replace(
        preset,
        max_size_px=options.max_size_px or preset.max_size_px,
        max_enlargement=options.max_enlargement or preset.max_enlargement,
        max_num_keypoints=options.max_num_keypoints or preset.max_num_keypoints,
    )
    return SuperPointExtractor(network, preset, device=options.device, precision=options.precision)


def build_superpoint(options: MatcherOptions) -> SparseMatcher:
    """The method `superpoint`: SuperPoint's keypoints, matched by mutual nearest neighbours.

    Raises WeightsError when its weights are not on this machine, saying how to get them.
    """
    extractor = superpoint_extractor(options.weights or default_weights("superpoint"), options)
    return SparseMatcher("superpoint", extractor, NearestNeighbours(ratio=None))
