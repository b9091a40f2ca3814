"""What group aligning is worth, before any training or after it: photographs turned about their centre, as in Roto-360.

    python benchmarks/relf_rotation.py FOLDER [--weights tiepoint-relf] [--photographs 3] [--step-deg 30]

The first photographs of FOLDER are turned on a canvas of their own size with black fill. Without weights the network
is a re_resnet C16 with random ones, whose normalisations are fitted to the last photographs. All descriptors share
SIFT's keypoints, matched as mutual nearest keypoints, without a ratio test, as published, and with that of `relf`;
MMA@t is the share of matches within t px, averaged over the pairs. Last the error of equivariance: how far the
features of a picture turned by 22.5 degrees lie from those of the upright one, shifted by one orientation, relative
to their length.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from tiepoint.geometry import Features
from tiepoint.images import Image, read_image, rgb_view
from tiepoint.matchers.base import MatcherOptions
from tiepoint.matchers.nearest import NearestKeypoints
from tiepoint.matchers.relf import RelfConfig, RelfExtractor, relf_config
from tiepoint.matchers.relf_sampling import align, group_pool, orientation_candidates, orientation_histogram
from tiepoint.matchers.relf_weights import load_relf
from tiepoint.matchers.sift import Sift
from tiepoint.networks.equivariant_resnet import ReResNet
from tiepoint.networks.group_convolution import FieldBatchNorm

THRESHOLDS_PX = (3, 5, 10)
NUM_FITTING = 8
MATCHERS = {"MMA@3 / 5 / 10": NearestKeypoints(ratio=1.0), "with the ratio test": NearestKeypoints()}

Described = tuple[Tensor, Tensor]  # keypoint rows (M,) and descriptors (M, D)


def all_of(features: Tensor) -> Tensor:
    return torch.arange(len(features))


def aligned(features: Tensor, ratio: float | None) -> Described:
    keypoints, shifts = orientation_candidates(orientation_histogram(features), ratio)
    return keypoints, align(features, keypoints, shifts)


DESCRIPTIONS: dict[str, Callable[[Tensor], Described]] = {
    "no invariance": lambda f: (all_of(f), align(f, all_of(f), torch.zeros(len(f), dtype=torch.long))),
    "max pool": lambda f: (all_of(f), group_pool(f, "max")),
    "mean pool": lambda f: (all_of(f), group_pool(f, "mean")),
    "align, best": lambda f: aligned(f, None),
    "align, 0.6": lambda f: aligned(f, 0.6),
}


def untrained_network(photographs: list[Image]) -> ReResNet:
    """Random weights; every normalisation fitted to the photographs, as training would."""
    torch.manual_seed(0)
    network = ReResNet(16).train()
    for module in network.modules():
        if isinstance(module, FieldBatchNorm):
            module.momentum = None  # the plain average
    with torch.no_grad():
        for photograph in photographs:
            pixels = (rgb_view(photograph).astype(np.float32) - 127) / 128
            network(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    return network.eval()


def turned(image: Image, angle_deg: float) -> tuple[Image, np.ndarray]:
    """The picture turned counter-clockwise as displayed, and the (2, 3) matrix to it."""
    centre = (image.width - 1) / 2, (image.height - 1) / 2
    matrix = cv2.getRotationMatrix2D(centre, angle_deg, 1.0)
    return Image(cv2.warpAffine(rgb_view(image), matrix, image.size, flags=cv2.INTER_LINEAR)), matrix


def describe(image: Image, extractor: RelfExtractor) -> dict[str, Features]:
    """The image's keypoints under every description."""
    found = extractor.detector.extract(image)
    distinct = np.sort(np.unique(found.keypoints, axis=0, return_index=True)[1])
    keypoints = found.keypoints[distinct]
    features = extractor.features_at(image, keypoints)

    def made(rows: np.ndarray, descriptors: np.ndarray) -> Features:
        scores = found.scores[distinct][rows]
        return replace(
            found,
            keypoints=keypoints[rows],
            scores=scores,
            descriptors=descriptors,
            scales_px=None,
            angles_deg=None,
        )

    described = {"SIFT": made(np.arange(len(keypoints)), found.descriptors[distinct])}
    for name, of in DESCRIPTIONS.items():
        rows, descriptors = of(features)
        described[name] = made(rows.numpy(), descriptors.numpy())
    return described


def right_matches(
    features0: Features, features1: Features, matrix: np.ndarray, matcher: NearestKeypoints
) -> list[float]:
    """MMA at each threshold in %, and how many matches there are."""
    rows0, rows1 = matcher.match_features(features0, features1).indices.T
    expected = features0.keypoints[rows0] @ matrix[:, :2].T + matrix[:, 2]
    error = np.linalg.norm(expected - features1.keypoints[rows1], axis=1)
    return [*(100 * float((error <= t).mean()) if len(error) else 0.0 for t in THRESHOLDS_PX), len(error)]


def equivariance_error(image: Image, extractor: RelfExtractor) -> float:
    """At keypoints in the disc around the centre that stays in the picture when it turns by 22.5 degrees."""
    other, matrix = turned(image, 360 / extractor.network.order)
    keypoints = extractor.detector.extract(image).keypoints
    centre = (np.array(image.size) - 1) / 2
    inside = np.linalg.norm(keypoints - centre, axis=1) < 0.6 * centre.min()
    there = (keypoints[inside] @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
    before = extractor.features_at(image, keypoints[inside])
    after = extractor.features_at(other, there)
    return float((after - before.roll(1, dims=2)).norm() / before.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photographs", type=int, default=3)
    parser.add_argument("--step-deg", type=float, default=30.0)
    parser.add_argument("--weights", help="by name or file; none for random ones")
    options = parser.parse_args()
    torch.set_num_threads(2)
    files = sorted(options.folder.glob("*.jpg"))
    if options.weights:
        model = load_relf(options.weights)
        network, config = model.network, relf_config(model, MatcherOptions())
    else:
        network, config = untrained_network([read_image(file) for file in files[-NUM_FITTING:]]), RelfConfig()
    extractor = RelfExtractor(network, Sift(max_num_keypoints=1024), config)
    rows: dict[str, list[np.ndarray]] = {}
    for file in files[: options.photographs]:
        image = read_image(file)
        reference = describe(image, extractor)
        for angle in np.arange(options.step_deg, 360, options.step_deg):
            other, matrix = turned(image, angle)
            for name, features in describe(other, extractor).items():
                figures = [right_matches(reference[name], features, matrix, matcher) for matcher in MATCHERS.values()]
                rows.setdefault(name, []).append(np.array(figures))
    print(f"{len(rows['SIFT'])} pairs\n| descriptor | {' | '.join(MATCHERS)} |\n|---|{'---|' * len(MATCHERS)}")
    for name, values in rows.items():
        cells = [f"{a:.1f} / {b:.1f} / {c:.1f} of {count:.0f}" for a, b, c, count in np.mean(values, axis=0)]
        print(f"| {name} | {' | '.join(cells)} |")
    errors = [equivariance_error(read_image(file), extractor) for file in files[: options.photographs]]
    print(f"\nequivariance error at 22.5 degrees: {', '.join(f'{error:.2f}' for error in errors)}")


if __name__ == "__main__":
    main()
