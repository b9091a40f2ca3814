"""What RELF's ratio test is worth, on the known warps of `held_out_warps.py`.

    python benchmarks/relf_ratio.py PHOTOS [--pairs 40]

Features are computed once, in bf16, and matched at each ratio; 1.0 is no test.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from held_out_warps import CONDITIONS, condition_pairs

from tiepoint.geometry import Features
from tiepoint.images import Image
from tiepoint.matchers import MatcherOptions, SparseMatcher
from tiepoint.matchers.base import Extractor
from tiepoint.matchers.nearest import NearestKeypoints
from tiepoint.matchers.relf import build_relf
from tiepoint.training.validation import judge

RATIOS = (1.0, 0.97, 0.95, 0.93, 0.9, 0.85)


class Remembering:
    """An extractor that looks at every picture once."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.found: dict[bytes, Features] = {}

    def extract(self, image: Image) -> Features:
        key = image.pixels.tobytes()
        if key not in self.found:
            self.found[key] = self.extractor.extract(image)
        return self.found[key]

    def extract_batch(self, images: Sequence[Image]) -> list[Features]:
        return [self.extract(image) for image in images]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--pairs", type=int, default=40)
    options = parser.parse_args()
    extractor = build_relf(MatcherOptions(precision="bf16")).extractor
    print(f"| AUC@5, MMA@3 | {' | '.join(map(str, RATIOS))} |\n|---|{'---|' * len(RATIOS)}")
    for title in CONDITIONS:
        pairs = condition_pairs(options.photographs, title, options.pairs)
        once = Remembering(extractor)
        figures = [judge(SparseMatcher("relf", once, NearestKeypoints(ratio=ratio)), pairs) for ratio in RATIOS]
        cells = [f"{100 * of['AUC_5']:.1f}, {100 * of['MMA_3']:.1f}" for of in figures]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
