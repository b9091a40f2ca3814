"""What the learned methods register of the pairs that SIFT refuses: what the order of `auto` rests on.

    python benchmarks/auto_rescues.py ../shared/data [--pairs 40] [--method relf ...]

Pairs: the homographies of `tiepoint evaluate homography`, and known warps of `held_out_warps.py` in other light, of
another seed. Right: accepted, and off by less than 5 px on average, at the source's corners or, for the pairs that have
them, at known points.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from held_out_warps import CONDITIONS, stored
from numpy.typing import NDArray

from tiepoint.evaluation.layouts import homography_pairs
from tiepoint.geometry import Transform, frame_corners
from tiepoint.images import Image
from tiepoint.matchers import Matcher, MatcherOptions, matcher
from tiepoint.registration.cascade import Cascade, auto_steps
from tiepoint.registration.register import Registrar, Registration
from tiepoint.training.validation import held_out_pairs

METHODS = ("relf", "superpoint+superglue", "sift+superglue", "loftr", "roma-small")
WARPS = ("Light", "Viewpoint, any rotation, light")
SEED = 4242
RIGHT_PX = 5.0
NUM_SIFT_STEPS = 2


@dataclass(frozen=True)
class Case:
    """A source and a template that belong together, and (N, 2) points of both where the error is measured."""

    source: Image
    template: Image
    points: tuple[NDArray[np.float64], NDArray[np.float64]]


def cases(data: Path, count: int) -> Iterator[tuple[str, Case]]:
    """By the set they are of."""
    for pair in homography_pairs(data / "eval/homography"):
        frame0, frame1 = pair.source0.read(), pair.source1.read()
        points = _corners(frame0.image, pair.truth_between(frame0, frame1))
        if pair.points0 is not None and pair.points1 is not None:
            points = (frame0.frame_from_file(pair.points0), frame1.frame_from_file(pair.points1))
        yield "Homographies", Case(frame0.image, frame1.image, points)
    for title in WARPS:
        for held_out in held_out_pairs(stored(data / "val"), CONDITIONS[title].views, count, SEED):
            points = _corners(held_out.image0, held_out.H_1_from_0)
            yield title, Case(held_out.image0, held_out.image1, points)


def _corners(source: Image, truth: Transform) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return frame_corners(source.size), truth(frame_corners(source.size))


def error_px(case: Case, result: Registration) -> float:
    """Mean at the case's points, in the template."""
    assert result.transform is not None
    return float(result.transform.residuals(*case.points).mean())


@dataclass
class Tally:
    """pairs, refused: of each set, by SIFT. right: numbers of pairs, by method and set. wrong, seconds: by method."""

    pairs: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    right: defaultdict[tuple[str, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    wrong: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def try_all(tally: Tally, methods: dict[str, Matcher[Any]], title: str, case: Case) -> None:
    """What each method makes of a case that SIFT refused."""
    for name, method in methods.items():
        start = time.perf_counter()
        result = Registrar(case.template, method).register(case.source)
        tally.seconds[name].append(time.perf_counter() - start)
        if not result.accepted:
            continue
        error = error_px(case, result)
        if error < RIGHT_PX:
            tally.right[name, title].add(tally.pairs.total())
        else:
            tally.wrong[name] += 1
            print(f"{title}, pair {tally.pairs[title]}: {name} is accepted and off by {error:.1f} px", flush=True)


def table(tally: Tally, methods: Iterable[str]) -> str:
    """Markdown, and below it what each method adds to each other one."""
    sets = " | ".join(f"{title}: {tally.refused[title]} refused of {count}" for title, count in tally.pairs.items())
    lines = [f"| method | {sets} | wrong | s |", "|---|" + "---:|" * (len(tally.pairs) + 2)]
    for name in methods:
        right = " | ".join(str(len(tally.right[name, title])) for title in tally.pairs)
        lines.append(f"| {name} | {right} | {tally.wrong[name]} | {statistics.median(tally.seconds[name]):.1f} |")
    of = {name: set().union(*(tally.right[name, title] for title in tally.pairs)) for name in methods}
    for first in of:
        others = ", ".join(f"{second} {len(of[second] - of[first])}" for second in of if second != first)
        lines.append(f"- right where {first} is not: {others}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--method", action="append", help=f"default: {', '.join(METHODS)}")
    arguments = parser.parse_args()
    options = MatcherOptions().at_any_rotation()
    methods = {name: matcher(name, options) for name in arguments.method or METHODS}
    tally = Tally()
    for title, case in cases(arguments.data, arguments.pairs):
        tally.pairs[title] += 1
        if not Cascade(case.template, auto_steps(options)[:NUM_SIFT_STEPS]).register(case.source).accepted:
            tally.refused[title] += 1
            try_all(tally, methods, title, case)
            print(f"{title}: {tally.pairs[title]} pairs, {tally.refused[title]} refused by SIFT", flush=True)
    print("\n" + table(tally, methods))


if __name__ == "__main__":
    main()
