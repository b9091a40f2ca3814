"""RELF: keypoints of any detector, described by rotation-equivariant features with group aligning.

Lee, Kim, Kim, Cho: Learning Rotation-Equivariant Features for Visual Correspondence (CVPR 2023). The network turns
its features with the image; the orientation read from one of them turns them all back, so that the descriptors
hold at any in-plane rotation. Matched by mutual nearest neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiepoint.geometry import Features
from tiepoint.images import Image, ResizeMap, fitted_size, resize, rgb_view
from tiepoint.matchers.base import Extractor, MatcherOptions, SparseMatcher
from tiepoint.matchers.nearest import NearestKeypoints
from tiepoint.matchers.relf_sampling import (
    align,
    orientation_candidates,
    orientation_histogram,
    published_levels,
    sample_features,
)
from tiepoint.matchers.relf_weights import RelfModel, load_relf
from tiepoint.matchers.sift import Sift
from tiepoint.networks.devices import device_and_dtype
from tiepoint.networks.equivariant_resnet import EquivariantBackbone
from tiepoint.networks.group_convolution import inference_form
from tiepoint.networks.winograd import make_faster
from tiepoint.weights import default_weights

# of RGB in [0, 1]: what the published weights are evaluated with
_IMAGENET_MEAN, _IMAGENET_STD = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
# of RGB in [0, 255]: the paper's training input, used in training and after it here
_GREY, _RANGE = 127.0, 128.0
_GRID = 16  # the coarsest stride: sides of 16 k + 1 put the pixels of all stages on one symmetric grid


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """The sizes at which a network sees an image; features are their largest values over all levels.

    max_size_px, min_size_px: long side of the first level, to which smaller images are enlarged, and least of
        the last. levels_per_octave: each level is 2^(-1 / levels_per_octave) of the one before.
    The defaults are the paper's: nine levels.
    """

    max_size_px: int = 1024
    min_size_px: int = 256
    levels_per_octave: int = 4


@dataclass(frozen=True, kw_only=True)
class RelfConfig:
    """How an image becomes descriptors.

    published: the published preprocessing, for the published weights: ImageNet's mean and deviation, levels of any
        size, stages resized to one map. Otherwise levels have sides of 16 k + 1 and every stage is read where its
        stride puts it, which is what makes the features turn exactly with the image.
    pyramid: its levels, or None for one level of at most `max_size_px`.
    candidate_ratio: one descriptor for each orientation with at least this share of the best one's response; None
        for the best alone.
    """

    published: bool = False
    pyramid: Pyramid | None = None
    max_size_px: int | None = 1024
    candidate_ratio: float | None = 0.6


PUBLISHED_CONFIG = RelfConfig(published=True, pyramid=Pyramid(), max_size_px=None)


class RelfExtractor:
    """Describes the keypoints of any detector; `features_at` gives what the descriptors are made of.

    network: in training or inference form.
    """

    def __init__(
        self,
        network: EquivariantBackbone,
        detector: Extractor,
        config: RelfConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.network = inference_form(network).to(device, dtype)
        make_faster(self.network)
        self.detector = detector
        self.config = config
        self._device, self._dtype = torch.device(device), dtype

    def extract(self, image: Image) -> Features:
        """The detector's keypoints with (N, D) float32 descriptors of unit length and `angles_deg`, the estimated
        orientation in steps of 360 / order degrees, clockwise as displayed, from a direction of the network's own.

        A keypoint with several likely orientations is repeated, once for each. Positions that the detector gives
        more than once (SIFT's second orientations) count once.
        """
        found = self.detector.extract(image)
        distinct = np.sort(np.unique(found.keypoints, axis=0, return_index=True)[1])
        features = self.features_at(image, found.keypoints[distinct])
        rows, shifts = orientation_candidates(orientation_histogram(features), self.config.candidate_ratio)
        descriptors = align(features, rows, shifts).cpu().numpy()
        kept = distinct[rows.cpu().numpy()]
        turns = shifts.cpu().numpy() / self.network.order  # counter-clockwise, `angles_deg` are clockwise
        return Features(
            keypoints=found.keypoints[kept],
            scores=found.scores[kept],
            descriptors=descriptors,
            image_size=image.size,
            scales_px=None if found.scales_px is None else found.scales_px[kept],
            angles_deg=(-360 * turns % 360).astype(np.float32),
        )

    def extract_batch(self, images: Sequence[Image]) -> list[Features]:
        return [self.extract(image) for image in images]

    @torch.inference_mode()
    def features_at(self, image: Image, keypoints: NDArray[np.float32]) -> Tensor:
        """Equivariant features (K, F, N) at keypoints (K, 2) of the full-size image, the largest of all levels."""
        network = self.network
        features = torch.full((len(keypoints), sum(network.num_fields), network.order), -torch.inf, device=self._device)
        if len(keypoints) == 0:
            return features
        levels = self._published_levels if self.config.published else self._levels
        for level, points in levels(image, keypoints):
            found = sample_features(network, level, points, published_grid=self.config.published)
            torch.maximum(features, found[0], out=features)
        return features

    def _levels(self, image: Image, keypoints: NDArray[np.float32]) -> Iterator[tuple[Tensor, Tensor]]:
        """Every level (1, 3, H, W) with the keypoints (1, K, 2) in its pixels."""
        pixels = rgb_view(image).astype(np.float32)  # rounding to whole levels would not turn with the image
        for size in level_sizes(image.size, self.config):
            level, to_level = resize(pixels, size)
            yield self._to_tensor((level - _GREY) / _RANGE), self._points(keypoints, to_level)

    def _published_levels(self, image: Image, keypoints: NDArray[np.float32]) -> Iterator[tuple[Tensor, Tensor]]:
        rgb, to_working = resize(rgb_view(image), fitted_size(image.size, self.config.max_size_px))
        pixels = (rgb.astype(np.float32) / 255 - _IMAGENET_MEAN) / _IMAGENET_STD
        whole, points = self._to_tensor(pixels), self._points(keypoints, to_working)
        if self.config.pyramid is None:
            yield whole, points
            return
        pyramid = self.config.pyramid
        for level, scale in published_levels(
            whole, pyramid.max_size_px, pyramid.min_size_px, pyramid.levels_per_octave
        ):
            yield level, points * scale

    def _to_tensor(self, pixels: NDArray[Any]) -> Tensor:
        channels_last = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        return channels_last[None].to(self._device, self._dtype)

    def _points(self, keypoints: NDArray[np.float32], to_level: ResizeMap) -> Tensor:
        points = keypoints if to_level == ResizeMap(1.0, 1.0) else to_level.to_resized(keypoints)
        return torch.from_numpy(points.astype(np.float32))[None].to(self._device)


def level_sizes(size: tuple[int, int], config: RelfConfig) -> list[tuple[int, int]]:
    """(width, height) of every level of an image of `size`, largest first, both sides 16 k + 1."""
    if config.pyramid is None:
        return [_on_grid(fitted_size(size, config.max_size_px))]
    pyramid = config.pyramid
    longest = pyramid.max_size_px
    num_steps = int(np.floor(np.log2(longest / pyramid.min_size_px) * pyramid.levels_per_octave + 1e-9))
    sides = [longest / 2 ** (step / pyramid.levels_per_octave) for step in range(num_steps + 1)]
    return [_on_grid((size[0] * side / max(size), size[1] * side / max(size))) for side in sides]


def _on_grid(size: tuple[float, float]) -> tuple[int, int]:
    width, height = (_GRID * max(1, round((side - 1) / _GRID)) + 1 for side in size)
    return width, height


def build_relf(options: MatcherOptions, detector: Extractor | None = None) -> SparseMatcher:
    """RELF as `options` ask for it, over `detector` (SIFT's keypoints by default)."""
    device, dtype = device_and_dtype(options.device, options.precision)
    model = load_relf(options.weights or default_weights("relf"))
    if detector is None:
        detector = Sift(
            max_num_keypoints=options.max_num_keypoints or 2048,
            max_size_px=options.max_size_px or Sift.max_size_px,
        )
    extractor = RelfExtractor(model.network, detector, relf_config(model, options), device=device, dtype=dtype)
    return SparseMatcher("relf", extractor, NearestKeypoints())


def relf_config(model: RelfModel, options: MatcherOptions) -> RelfConfig:
    """The preprocessing that belongs to the weights, within the size that `options` allow."""
    config = PUBLISHED_CONFIG if model.published else RelfConfig()
    if options.max_size_px is None:
        return config
    if config.pyramid is None:
        return replace(config, max_size_px=options.max_size_px)
    smallest = min(config.pyramid.min_size_px, options.max_size_px)
    return replace(config, pyramid=replace(config.pyramid, max_size_px=options.max_size_px, min_size_px=smallest))
