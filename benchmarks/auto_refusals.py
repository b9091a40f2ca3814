"""What `auto` accepts of pictures that have nothing to do with the template, and how long it takes to refuse them.

    python benchmarks/auto_refusals.py ../shared/data [--unrelated 122] [--seed 1]

The pairs of `tiepoint evaluate registration`: photographs, mirrored and tiled pictures, patterns, other templates.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from tiepoint.evaluation.pairs import PlanePair
from tiepoint.evaluation.registration_pairs import registration_pairs
from tiepoint.matchers import MatcherOptions
from tiepoint.registration.cascade import Cascade, auto_steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--unrelated", type=int, default=122)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    pairs = registration_pairs(arguments.data, unrelated=arguments.unrelated, seed=arguments.seed)
    accepted, seconds = [], []
    for template, group in groupby((p for p in pairs if not isinstance(p, PlanePair)), attrgetter("source1")):
        cascade = Cascade(template.read().image, auto_steps(MatcherOptions()))
        for pair in group:
            source = pair.source0.read().image
            start = time.perf_counter()
            result = cascade.register(source)
            seconds.append(time.perf_counter() - start)
            if result.accepted:
                accepted.append(f"{pair.key} by {result.method}")
                print(accepted[-1], flush=True)
        print(f"{len(seconds)} pairs, {len(accepted)} accepted", flush=True)
    print(
        f"{len(seconds)} unrelated pairs: {len(accepted)} accepted; {statistics.median(seconds):.1f} s a pair (median)"
    )


if __name__ == "__main__":
    main()
