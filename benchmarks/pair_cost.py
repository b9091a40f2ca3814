"""Time and memory of one pair of photographs by a method, in a process of its own.

    python benchmarks/pair_cost.py PHOTOGRAPH0 PHOTOGRAPH1 [--method sift --method loftr ...] [--four-way]
        [--max-size PX]

Time is the median of five pairs, both images encoded anew, on all cores; memory is the process's peak, Python and
libraries included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tiepoint.images import read_image
from tiepoint.matchers import MatcherOptions, matcher

ROUNDS = 5


@dataclass(frozen=True)
class Cost:
    milliseconds: float
    peak_mb: float


def cost(
    method: str, photographs: tuple[Path, Path], max_size_px: int | None = None, four_way: bool | None = None
) -> Cost:
    """Measured in a new process. max_size_px, four_way: as in MatcherOptions."""
    command = [sys.executable, __file__, *map(str, photographs), "--one", method]
    if max_size_px is not None:
        command += ["--max-size", str(max_size_px)]
    if four_way:
        command += ["--four-way"]
    return Cost(**json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measured(method: str, photographs: tuple[Path, Path], options: MatcherOptions) -> Cost:
    """Measured in this process, whose peak holds whatever ran before."""
    image0, image1 = map(read_image, photographs)
    match = matcher(method, options)
    match(image0, image1)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        match(image0, image1)
        seconds.append(time.perf_counter() - start)
    return Cost(1e3 * statistics.median(seconds), peak_mb())


def peak_mb() -> float:
    """This process's, from Linux: what `getrusage` says includes the parent's up to the start."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photographs", type=Path, nargs=2)
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--four-way", action="store_true")
    parser.add_argument("--max-size", type=int)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    photographs = (arguments.photographs[0], arguments.photographs[1])
    if arguments.one:
        options = MatcherOptions(max_size_px=arguments.max_size, four_way=arguments.four_way)
        found = measured(arguments.one, photographs, options)
        print(json.dumps({"milliseconds": found.milliseconds, "peak_mb": found.peak_mb}))
        return
    for method in arguments.method or ["sift"]:
        found = cost(method, photographs, arguments.max_size, arguments.four_way)
        print(f"{method:22} {found.milliseconds:8.0f} ms  {found.peak_mb:6.0f} MB")


if __name__ == "__main__":
    main()
