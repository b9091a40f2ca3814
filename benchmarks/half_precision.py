"""What bf16 changes in a method's matches with its own weights.

    python benchmarks/half_precision.py loftr ../shared/data/eval/homography/deeppcb [--pairs 8]

Of the matches in fp32, the share that bf16 finds too: both points within 0.1 px of the image as the method saw it,
whose long side is that of `--working-size` or the image's own, if that is smaller.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from tiepoint.geometry import Matches
from tiepoint.images import read_image
from tiepoint.matchers import MatcherOptions, matcher

CLOSE_PX = 0.1


def num_kept(matches: Matches, others: Matches, close_px: float) -> int:
    """How many of `matches` are among `others`, both points within `close_px`."""
    if not len(matches) or not len(others):
        return 0
    apart = np.maximum(
        *(
            np.linalg.norm(points[:, None] - there[None], axis=2)
            for points, there in ((matches.points0, others.points0), (matches.points1, others.points1))
        )
    )
    return int((apart.min(axis=1) <= close_px).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("method")
    parser.add_argument("data", type=Path, help="folder of HPatches' layout")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--working-size", type=int, default=640)
    arguments = parser.parse_args()
    full, half = (
        matcher(arguments.method, MatcherOptions(precision=precision, refine=False)) for precision in ("fp32", "bf16")
    )
    kept = total = found = 0
    for folder in sorted(path for path in arguments.data.iterdir() if path.is_dir())[: arguments.pairs]:
        images = [read_image(next(folder.glob(f"{name}.*"))) for name in "12"]
        matches, others = full(*images), half(*images)
        scale = max(1.0, max(images[0].size) / arguments.working_size)
        kept += num_kept(matches, others, CLOSE_PX * scale)
        total, found = total + len(matches), found + len(others)
    print(f"{arguments.method}: {total} matches in fp32, {found} in bf16, {100 * kept / max(total, 1):.1f} % kept")


if __name__ == "__main__":
    main()
