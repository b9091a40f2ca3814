"""Roto-360's recipe with RELF's best orientation alone and with candidates, as the paper states both.

    python benchmarks/relf_candidates.py PHOTOS [--count 2] [--out FOLDER]

The other rows are those of `tiepoint evaluate rotation PHOTOS --method relf --method sift --precision bf16`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiepoint.evaluation.contestants import CatalogueEncoder, CatalogueMethod, Contestant, Encoder
from tiepoint.evaluation.rotation import Rotation, rotation_pairs
from tiepoint.evaluation.session import run_session
from tiepoint.matchers import MatcherOptions
from tiepoint.matchers.least_squares_matching import Refined
from tiepoint.matchers.relf import RelfExtractor, build_relf

OPTIONS = MatcherOptions(precision="bf16")


@dataclass(frozen=True)
class BestOrientation(Contestant):
    """`relf` with one descriptor a keypoint."""

    name = "relf, best orientation"

    def settings(self) -> dict[str, Any]:
        return {"method": self.name}

    def prepare(self) -> Encoder:
        relf = build_relf(OPTIONS)
        assert isinstance(relf.extractor, RelfExtractor)
        relf.extractor.config = replace(relf.extractor.config, candidate_ratio=None)
        return CatalogueEncoder(Refined(relf))


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
