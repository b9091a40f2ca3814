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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from held_out_warps import CONDITIONS, stored
from numpy.typing import NDArray

from tiepoint.evaluation.layouts import homography_pairs
from tiepoint.geometry import Transform, frame_corners
from tiepoint.images import Image
from tiepoint.matchers import MatcherOptions, matcher
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
        for held_out in held_out_pairs(stored(data / "val"), CONDITIONS[title], count, SEED):
            points = _corners(held_out.image0, held_out.H_1_from_0)
            yield title, Case(held_out.image0, held_out.image1, points)


def _corners(source: Image, truth: Transform) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return frame_corners(source.size), truth(frame_corners(source.size))


def error_px(case: Case, result: Registration) -> float:
    """Mean at the case's points, in the template."""
    assert result.transform is not None
    return float(result.transform.residuals(*case.points).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--method", action="append", help=f"default: {', '.join(METHODS)}")
    arguments = parser.parse_args()
    options = MatcherOptions().at_any_rotation()
    methods = {name: matcher(name, options) for name in arguments.method or METHODS}
    total: dict[str, int] = {}
    refused: dict[str, int] = {}
    right: dict[tuple[str, str], list[int]] = {}
    wrong: dict[str, int] = dict.fromkeys(methods, 0)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number, (title, case) in enumerate(cases(arguments.data, arguments.pairs)):
        total[title] = total.get(title, 0) + 1
        if Cascade(case.template, auto_steps(options)[:NUM_SIFT_STEPS]).register(case.source).accepted:
            continue
        refused[title] = refused.get(title, 0) + 1
        for name, method in methods.items():
            start = time.perf_counter()
            result = Registrar(case.template, method).register(case.source)
            seconds[name].append(time.perf_counter() - start)
            if result.accepted and (error := error_px(case, result)) < RIGHT_PX:
                right.setdefault((name, title), []).append(number)
            elif result.accepted:
                wrong[name] += 1
                print(f"{title}, pair {total[title]}: {name} is accepted and off by {error:.1f} px", flush=True)
        print(f"{title}: {total[title]} pairs, {refused[title]} refused by SIFT", flush=True)
    print(
        f"\n| method | {' | '.join(f'{t}: {refused.get(t, 0)} refused of {n}' for t, n in total.items())} | wrong | s |"
    )
    print("|---|" + "---:|" * (len(total) + 2))
    for name in methods:
        found = " | ".join(str(len(right.get((name, title), []))) for title in total)
        print(f"| {name} | {found} | {wrong[name]} | {statistics.median(seconds[name]):.1f} |")
    for first in methods:
        others = (
            f"{second} {sum(len(set(right.get((second, t), [])) - set(right.get((first, t), []))) for t in total)}"
            for second in methods
            if second != first
        )
        print(f"- right where {first} is not: {', '.join(others)}")


if __name__ == "__main__":
    main()
