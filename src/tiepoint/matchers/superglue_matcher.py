"""SuperGlue on features: SuperPoint's, SIFT's or ORB's, matched to one another by index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tiepoint.geometry import Features
from tiepoint.matchers.base import IndexMatches, MatcherOptions, SparseMatcher
from tiepoint.matchers.nearest import NO_MATCHES, as_vectors
from tiepoint.matchers.orb import Orb
from tiepoint.matchers.sift import Sift, root_sift
from tiepoint.matchers.superglue import FeatureBatch, SuperGlue, load_superglue, mutual_matches
from tiepoint.matchers.superglue_inference import PreparedSuperGlue
from tiepoint.matchers.superpoint_extractor import SuperPointOptions, superpoint_extractor
from tiepoint.networks.devices import device_and_dtype
from tiepoint.weights import default_weights, known_weights, load_weights

_MAX_NUM_CLASSICAL_KEYPOINTS = 2048  # time and memory of attention grow with its square


@dataclass(frozen=True, kw_only=True)
class SuperGlueOptions:
    """match_threshold: least probability of a match. num_iterations: of Sinkhorn's algorithm."""

    match_threshold: float = 0.2
    num_iterations: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.match_threshold <= 1:
            raise ValueError(f"match_threshold: expected a probability in [0, 1], got {self.match_threshold}")
        if self.num_iterations < 1:
            raise ValueError(f"num_iterations: expected at least 1, got {self.num_iterations}")


@dataclass(frozen=True, kw_only=True)
class FeaturesOfWeights:
    """What published SuperGlue weights were trained over: SuperPoint's weights and how keypoints are chosen."""

    weights: str
    options: SuperPointOptions


TRAINED_OVER = {
    "magicleap-superglue-indoor": FeaturesOfWeights(
        weights="magicleap-superpoint", options=SuperPointOptions(sampler="legacy")
    ),
    "magicleap-superglue-outdoor": FeaturesOfWeights(
        weights="magicleap-superpoint",
        options=SuperPointOptions(sampler="legacy", max_size_px=1600, max_num_keypoints=2048, radius_px=3),
    ),
}


class SuperGlueMatcher:
    """Matches features by a SuperGlue network."""

    def __init__(
        self, network: SuperGlue, options: SuperGlueOptions, *, device: str = "cpu", precision: str = "fp32"
    ) -> None:
        self.options = options
        self.descriptor_dim = network.config.descriptor_dim
        self._network = PreparedSuperGlue(network, *device_and_dtype(device, precision))

    def match_features(self, features0: Features, features1: Features) -> IndexMatches:
        """Mutual best matches; an empty side matches nothing.

        Raises ValueError for descriptors of another dimension than the network's.
        """
        if len(features0) == 0 or len(features1) == 0:
            return NO_MATCHES
        log_assigned = self._log_assignment(features0, features1)
        indices, scores = mutual_matches(log_assigned, self.options.match_threshold)
        return IndexMatches(indices.cpu().numpy(), scores.clamp(max=1).cpu().numpy())

    def log_assignment(self, features0: Features, features1: Features) -> NDArray[np.float32]:
        """(M + 1, N + 1) float32 log assignment of M and N keypoints, at least 1 each; dustbins are last."""
        if len(features0) == 0 or len(features1) == 0:
            raise ValueError(f"expected keypoints in both images, got {len(features0)} and {len(features1)}")
        found: NDArray[np.float32] = self._log_assignment(features0, features1).cpu().numpy()
        return found

    def _log_assignment(self, features0: Features, features1: Features) -> torch.Tensor:
        batch0, batch1 = (feature_batch(features, self.descriptor_dim) for features in (features0, features1))
        return self._network(batch0, batch1, self.options.num_iterations)


def feature_batch(features: Features, descriptor_dim: int) -> FeatureBatch:
    """The features of one image as the network takes them. Raises ValueError for another descriptor dimension."""
    descriptors = unit_descriptors(features.descriptors)
    if descriptors.shape[1] != descriptor_dim:
        raise ValueError(
            f"descriptors: this SuperGlue was trained for {descriptor_dim} dimensions, got {descriptors.shape[1]}"
        )
    return FeatureBatch(
        torch.from_numpy(features.keypoints)[None],
        torch.from_numpy(features.scores)[None],
        torch.from_numpy(descriptors)[None],
        torch.tensor([features.image_size]),
    )


def unit_descriptors(descriptors: NDArray[Any]) -> NDArray[np.float32]:
    """(N, D) float32 of unit length: bits as ±1 / √D, Lowe's histograms (norm 512) as RootSIFT, others kept."""
    vectors = as_vectors(descriptors)
    if descriptors.dtype == np.uint8:
        return vectors / np.float32(vectors.shape[1] ** 0.5)
    if len(vectors) > 0 and np.linalg.norm(vectors, axis=1).max() > 2:
        return root_sift(vectors)
    return vectors


def superglue_matcher(weights: str | Path, options: MatcherOptions) -> SuperGlueMatcher:
    """The matcher of named weights or a file."""
    network = load_superglue(load_weights(weights), str(weights))
    return SuperGlueMatcher(network, SuperGlueOptions(), device=options.device, precision=options.precision)


def build_superpoint_superglue(options: MatcherOptions) -> SparseMatcher:
    """The method `superpoint+superglue`, over the SuperPoint that its weights were trained over.

    Weights are SuperGlue's, over the features in `TRAINED_OVER` or else this package's SuperPoint; or
    "SUPERPOINT+SUPERGLUE", two names or files. Raises WeightsError when either's weights are not on this
    machine, saying how to get them.
    """
    superpoint, weights = _superpoint_and_superglue(options.weights or default_weights("superpoint+superglue"))
    matcher = superglue_matcher(weights, options)
    entry = known_weights(weights)
    trained_over = None if entry is None else TRAINED_OVER.get(entry.name)
    if superpoint is None and trained_over is not None:
        extractor = superpoint_extractor(trained_over.weights, options, trained_over.options)
    else:
        extractor = superpoint_extractor(superpoint or default_weights("superpoint"), options)
    _check_dim(matcher, extractor.descriptor_dim, weights, "their SuperPoint")
    return SparseMatcher("superpoint+superglue", extractor, matcher)


def _check_dim(matcher: SuperGlueMatcher, descriptor_dim: int, weights: str, detector: str) -> None:
    if descriptor_dim != matcher.descriptor_dim:
        raise ValueError(
            f"weights: {weights} match {matcher.descriptor_dim}-dimensional descriptors, but {detector} "
            f"gives {descriptor_dim}"
        )


def _superpoint_and_superglue(weights: str) -> tuple[str | None, str]:
    if "+" not in weights or Path(weights).exists():
        return None, weights
    superpoint, superglue = weights.split("+", 1)
    return superpoint, superglue


def build_sift_superglue(options: MatcherOptions) -> SparseMatcher:
    """The method `sift+superglue`; weights are of D = 128."""
    extractor = Sift(
        max_num_keypoints=options.max_num_keypoints or _MAX_NUM_CLASSICAL_KEYPOINTS,
        max_size_px=options.max_size_px or Sift.max_size_px,
    )
    weights = options.weights or default_weights("sift+superglue")
    matcher = superglue_matcher(weights, options)
    _check_dim(matcher, 128, weights, "SIFT")
    return SparseMatcher("sift+superglue", extractor, matcher)


def build_orb_superglue(options: MatcherOptions) -> SparseMatcher:
    """The method `orb+superglue`; weights are of D = 256, one for each bit."""
    extractor = Orb(
        max_num_keypoints=options.max_num_keypoints or _MAX_NUM_CLASSICAL_KEYPOINTS,
        max_size_px=options.max_size_px or Orb.max_size_px,
    )
    weights = options.weights or default_weights("orb+superglue")
    matcher = superglue_matcher(weights, options)
    _check_dim(matcher, 256, weights, "ORB")
    return SparseMatcher("orb+superglue", extractor, matcher)
