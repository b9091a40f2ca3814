"""SuperPoint weights beside SIFT and ORB on held-out photographs warped by known homographies.

    python benchmarks/held_out_warps.py PHOTOS --weights mine.safetensors

Pairs are those of the training's own validation at another size and seed: one near-upright view and one that is
turned, zoomed and tilted, both in other light, with noise and compression. Prints a Markdown table for each range of
rotation. `mutual` is nearest neighbours both ways as SuperPoint is matched; `ratio` adds Lowe's test.
"""

import argparse
from pathlib import Path

import torch

from tiepoint.matchers.base import MatcherOptions, SparseMatcher
from tiepoint.matchers.nearest import NearestNeighbours
from tiepoint.matchers.orb import Orb
from tiepoint.matchers.sift import Sift
from tiepoint.matchers.superpoint_extractor import superpoint_extractor
from tiepoint.training.pairs import PairConfig
from tiepoint.training.photographs import StoreConfig, open_photographs
from tiepoint.training.validation import held_out_pairs, judge
from tiepoint.training.warps import WarpConfig
from tiepoint.weights.store import cache_folder

SIZE = (240, 320)
SEED = 12345  # no training's


def contestants(weights: list[str]) -> dict[str, SparseMatcher]:
    """SIFT and ORB, with and without the ratio test, and SuperPoint with each of `weights`, by name."""
    mutual, ratio = NearestNeighbours(ratio=None), NearestNeighbours()
    chosen = {
        f"{name} {how}": SparseMatcher(name, extractor, matcher)
        for name, extractor in (("sift", Sift()), ("orb", Orb()))
        for how, matcher in (("ratio", ratio), ("mutual", mutual))
    }
    for each in weights:
        extractor = superpoint_extractor(each, MatcherOptions())
        chosen[f"superpoint {Path(each).stem} mutual"] = SparseMatcher("superpoint", extractor, mutual)
        chosen[f"superpoint {Path(each).stem} ratio"] = SparseMatcher("superpoint", extractor, ratio)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--weights", action="append", default=[], help="a file or a name; may be given again")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rotation-deg", type=float, action="append", help="default: 45 and 180")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    photographs = open_photographs(arguments.photographs, cache_folder().parent / "photographs", StoreConfig())
    for rotation_deg in arguments.rotation_deg or (45.0, 180.0):
        config = PairConfig(size=SIZE, warp1=WarpConfig(rotation_deg=rotation_deg))
        pairs = held_out_pairs(photographs, config, arguments.pairs, SEED)
        print(f"\nrotation within ±{rotation_deg:.0f} degrees, {len(pairs)} pairs of {SIZE[1]} x {SIZE[0]}")
        print("| method | MMA@3 | MMA@1 | correct matches | AUC@3 | AUC@5 |\n|---|---|---|---|---|---|")
        for name, matcher in contestants(arguments.weights).items():
            f = judge(matcher, pairs)
            print(
                f"| {name} | {100 * f['MMA_3']:.1f} | {100 * f['MMA_1']:.1f} | {f['correct']:.0f} "
                f"| {100 * f['AUC_3']:.1f} | {100 * f['AUC_5']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
