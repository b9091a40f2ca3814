"""Methods on held-out photographs seen twice under known homographies, by Markdown tables.

    python benchmarks/held_out_warps.py PHOTOS [--method sift --method superpoint+superglue ...] [--four-way]
        [--pairs 60] [--max-size PX]

Views of 240 x 320, of a seed that no training uses: one near upright, the other changed in light alone, in viewpoint
with rotation up to 45 degrees, in viewpoint with any rotation, or in that and light; all with noise, blur and
compression. Low texture is the viewpoint of the second, on the fourth of the views with the weakest gradients.
`nearest` is mutual nearest neighbours without a ratio test, what SuperGlue is compared with.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from tiepoint.evaluation.contestants import CatalogueMethod
from tiepoint.images import Image
from tiepoint.matchers import Matcher, MatcherOptions, NearestNeighbours, Sift, SparseMatcher, matcher
from tiepoint.matchers.least_squares_matching import Refined
from tiepoint.training.pairs import PairConfig
from tiepoint.training.photographs import Photographs, StoreConfig, open_photographs
from tiepoint.training.photometric import PhotometricConfig
from tiepoint.training.validation import HeldOutPair, held_out_pairs, judge
from tiepoint.training.warps import WarpConfig
from tiepoint.weights.store import cache_folder

SIZE = (240, 320)
SEED = 12345  # no training's
STRONG_LIGHT = PhotometricConfig(contrast=1.5, brightness=0.3, gamma=1.2, shade=0.8)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """How views are made, and how many are drawn for each one kept: those with the least texture."""

    views: PairConfig
    drawn: int = 1


CONDITIONS = {
    "Light": Condition(
        views=PairConfig(
            size=SIZE,
            warp1=WarpConfig(rotation_deg=5, scale=1.1, perspective=0.05, shear=0.02),
            photometric=STRONG_LIGHT,
        )
    ),
    "Viewpoint, rotation within ±45 degrees": Condition(
        views=PairConfig(size=SIZE, warp1=WarpConfig(rotation_deg=45)),
    ),
    "Low texture, rotation within ±45 degrees": Condition(
        views=PairConfig(size=SIZE, warp1=WarpConfig(rotation_deg=45)), drawn=4
    ),
    "Viewpoint, any rotation": Condition(views=PairConfig(size=SIZE, warp1=WarpConfig(rotation_deg=180))),
    "Viewpoint, any rotation, light": Condition(
        views=PairConfig(size=SIZE, warp1=WarpConfig(rotation_deg=180), photometric=STRONG_LIGHT)
    ),
}
METHODS = (
    CatalogueMethod("sift", MatcherOptions()),
    CatalogueMethod("orb", MatcherOptions()),
    CatalogueMethod("superpoint", MatcherOptions()),
    CatalogueMethod("superpoint+superglue", MatcherOptions()),
    CatalogueMethod("superpoint+superglue", MatcherOptions(four_way=True)),
    CatalogueMethod("sift+superglue", MatcherOptions()),
    CatalogueMethod("loftr", MatcherOptions()),
    CatalogueMethod("loftr", MatcherOptions(four_way=True)),
    CatalogueMethod("roma-small", MatcherOptions()),
    CatalogueMethod("relf", MatcherOptions()),
)

Figures = dict[str, dict[str, dict[str, float]]]
"""What `judge` says, by condition and method."""


def figures(photographs: Path, methods: Sequence[CatalogueMethod], count: int, workers: int) -> Figures:
    """Of `count` pairs of each condition, by the methods, and by SIFT without a ratio test."""
    stored(photographs)  # once, before all look
    found: Figures = {title: {} for title in CONDITIONS}
    tasks = [(title, method) for method in (*methods, None) for title in CONDITIONS]
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), _use_threads, (threads,)) as pool:
        for (title, method), measures in zip(tasks, pool.map(partial(judged, photographs, count), tasks), strict=True):
            found[title][method.name if method else "sift, nearest"] = measures
    return found


def _use_threads(count: int) -> None:
    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def judged(photographs: Path, count: int, task: tuple[str, CatalogueMethod | None]) -> dict[str, float]:
    title, method = task
    pairs = condition_pairs(photographs, title, count)
    return judge(matcher(method.method, method.options) if method else _sift_without_ratio(), pairs)


def condition_pairs(photographs: Path, title: str, count: int) -> list[HeldOutPair]:
    """`count` pairs of the condition called `title`, those with the least texture first."""
    condition = CONDITIONS[title]
    drawn = held_out_pairs(stored(photographs), condition.views, condition.drawn * count, SEED)
    return sorted(drawn, key=lambda pair: texture(pair.image0))[:count]


def texture(image: Image) -> float:
    """The mean gradient magnitude of a picture, grey levels per pixel, once its noise is smoothed away."""
    smooth = cv2.GaussianBlur(image.pixels.astype(np.float32), (0, 0), 2)
    return float(np.hypot(cv2.Sobel(smooth, -1, 1, 0, scale=1 / 8), cv2.Sobel(smooth, -1, 0, 1, scale=1 / 8)).mean())


def stored(photographs: Path) -> Photographs:
    return open_photographs(photographs, cache_folder().parent / "photographs", StoreConfig())


def tables(found: Figures, count: int) -> str:
    """A Markdown table for each condition; columns in % but for the count of correct matches."""
    parts = []
    for title, methods in found.items():
        lines = [
            f"**{title}** ({count} pairs of {SIZE[1]} x {SIZE[0]})\n",
            "| method | MMA@1/3 | correct matches | AUC@3/5 | pairs within 3 px |",
            "|---|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {name} | {100 * f['MMA_1']:.1f}/{100 * f['MMA_3']:.1f} | {f['correct']:.0f} "
            f"| {100 * f['AUC_3']:.1f}/{100 * f['AUC_5']:.1f} | {100 * f['within_3']:.1f} |"
            for name, f in methods.items()
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _sift_without_ratio() -> Matcher[Any]:
    return Refined(SparseMatcher("sift", Sift(), NearestNeighbours(ratio=None)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--method", action="append", help="default: all, two of them four-way too")
    parser.add_argument("--four-way", action="store_true", help="make the methods that do not turn turn")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-size", type=int, help="long side of the image the methods work on")
    arguments = parser.parse_args()
    options = MatcherOptions(max_size_px=arguments.max_size, four_way=arguments.four_way)
    if options != MatcherOptions(four_way=False) and not arguments.method:
        parser.error("--four-way and --max-size want a --method")
    methods = [CatalogueMethod(name, options) for name in arguments.method] if arguments.method else METHODS
    found = figures(arguments.photographs, methods, arguments.pairs, arguments.workers)
    print(tables(found, arguments.pairs))


if __name__ == "__main__":
    main()
