"""What moving matches to where the pictures agree gains, and takes.

    python benchmarks/refinement_gain.py ../shared/data [--pairs 40] [--method sift ...] [--upright]

Pairs: those of `auto_rescues.py`. The matches of each method, as found and refined (`least_squares_matching`), are
fitted by a homography; errors as there. ms: the mean time that a pair takes, its grey levels included.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from auto_rescues import Case, cases

from tiepoint.estimation import fit
from tiepoint.evaluation.contestants import CatalogueMethod
from tiepoint.evaluation.homography import mean_error_px
from tiepoint.evaluation.report import failures_as_infinite
from tiepoint.geometry import Matches
from tiepoint.geometry.error_curve import auc
from tiepoint.images import gray_levels
from tiepoint.matchers import Matcher, MatcherOptions, matcher
from tiepoint.matchers.least_squares_matching import refine_matches

METHODS = ("sift", "orb", "superpoint+superglue", "loftr")
LIMITS_PX = (1, 3, 5)


def error_px(case: Case, matches: Matches) -> float | None:
    """Mean distance at the case's points; None without a homography."""
    return mean_error_px(fit(matches, "homography").model, *case.points)


def measured(method: Matcher[Any], found: list[Case]) -> tuple[list[float], list[float], list[float]]:
    """Errors as found and refined, infinite without a homography, and milliseconds, pair by pair."""
    before, after, milliseconds = [], [], []
    for case in found:
        matches = method(case.source, case.template)
        before.append(error_px(case, matches))
        start = time.perf_counter()
        refined = refine_matches(matches, gray_levels(case.source), gray_levels(case.template))
        milliseconds.append(1e3 * (time.perf_counter() - start))
        after.append(error_px(case, refined))
    return failures_as_infinite(before), failures_as_infinite(after), milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=40, help="of each kind of known warps")
    parser.add_argument("--method", action="append", help=f"default: {', '.join(METHODS)}")
    parser.add_argument("--upright", action="store_true", help="no four-way matching of the methods that do not turn")
    arguments = parser.parse_args()
    options = MatcherOptions(refine=False, four_way=not arguments.upright)
    by_set: dict[str, list[Case]] = defaultdict(list)
    for title, case in cases(arguments.data, arguments.pairs):
        by_set[title].append(case)
    limits = "/".join(map(str, LIMITS_PX))
    print(f"| pairs | method | AUC@{limits} as found | refined | ms |\n|---|---|---:|---:|---:|")
    for title, found in by_set.items():
        for name in arguments.method or METHODS:
            before, after, milliseconds = measured(matcher(name, options), found)
            curves = ("/".join(f"{100 * auc(errors, limit):.1f}" for limit in LIMITS_PX) for errors in (before, after))
            row = (
                f"{title} ({len(found)})",
                CatalogueMethod(name, options).name,
                *curves,
                f"{np.mean(milliseconds):.0f}",
            )
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
