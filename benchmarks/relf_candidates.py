"""Roto-360's recipe with RELF's best orientation alone and with candidates, as the paper states both.

    python benchmarks/relf_candidates.py PHOTOS [--count 2] [--out FOLDER]

That is `tiepoint evaluate rotation` in bf16, but for the second method.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiepoint.evaluation.contestants import CatalogueEncoder, CatalogueMethod, Contestant, Encoder
from tiepoint.evaluation.rotation import Rotation, rotation_pairs
from tiepoint.evaluation.session import run_session
from tiepoint.matchers import MatcherOptions, SparseMatcher
from tiepoint.matchers.least_squares_matching import Refined
from tiepoint.matchers.nearest import NearestKeypoints
from tiepoint.matchers.relf import RelfConfig, RelfExtractor, load_relf
from tiepoint.matchers.sift import Sift
from tiepoint.networks.devices import device_and_dtype

OPTIONS = MatcherOptions(precision="bf16")


@dataclass(frozen=True)
class BestOrientation(Contestant):
    """`relf` with one descriptor a keypoint."""

    name = "relf, best orientation"

    def settings(self) -> dict[str, Any]:
        return {"method": self.name}

    def prepare(self) -> Encoder:
        device, dtype = device_and_dtype(OPTIONS.device, OPTIONS.precision)
        network = load_relf("tiepoint-relf").network
        detector, config = Sift(max_num_keypoints=2048), RelfConfig(candidate_ratio=None)
        extractor = RelfExtractor(network, detector, config, device=device, dtype=dtype)
        return CatalogueEncoder(Refined(SparseMatcher("relf", extractor, NearestKeypoints())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--count", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("build/relf_candidates"))
    arguments = parser.parse_args()
    methods = (BestOrientation(), CatalogueMethod("relf", OPTIONS), CatalogueMethod("sift", MatcherOptions()))
    pairs = rotation_pairs(arguments.photographs, subset=arguments.count)
    print(run_session(Rotation(), methods, pairs, data=arguments.photographs, out=arguments.out))


if __name__ == "__main__":
    main()
