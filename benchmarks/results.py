"""Evaluate every method on the evaluation photographs and write docs/results.md.

    python benchmarks/results.py [../shared/data] [--out build/results] [--workers 1]

Goes on where it stopped. A new method is one line in METHODS.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import held_out_warps

from tiepoint.evaluation.contestants import CatalogueMethod, Contestant
from tiepoint.evaluation.homography import Homography
from tiepoint.evaluation.layouts import homography_pairs, pose_pairs
from tiepoint.evaluation.pairs import ImagePair
from tiepoint.evaluation.pose import Pose
from tiepoint.evaluation.provenance import versions
from tiepoint.evaluation.rotation import Rotation, rotation_pairs
from tiepoint.evaluation.run import Protocol
from tiepoint.evaluation.session import SELF_CHECK, run_session
from tiepoint.evaluation.thresholds import Thresholds
from tiepoint.images import write_atomically
from tiepoint.matchers import MatcherOptions
from tiepoint.plot.curves import save_charts

# RELF's pyramid takes 2.5 s for a photograph: it is measured on the known warps and in its own page.
METHODS = tuple(CatalogueMethod(name, MatcherOptions()) for name in held_out_warps.METHODS if name != "relf")
CLASSICAL = tuple(CatalogueMethod(name, MatcherOptions()) for name in ("sift", "orb"))

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True, kw_only=True)
class Section:
    """One run of a protocol: `path` is below the data folder, `command` what a user types after it."""

    name: str
    title: str
    text: str
    path: str
    command: str
    protocol: Protocol[Any, Any]
    pairs: Callable[[Path], Sequence[ImagePair]]
    methods: tuple[Contestant, ...] = METHODS


SECTIONS = (
    Section(
        name="homography",
        title="Homographies",
        text="61 sequences: DeepPCB boards with real defects (truth good to about 1 px), the real pairs of homogr "
        "(measured at their 8 validation points), MVTec screws with little texture, scanned receipts.",
        path="eval/homography",
        command="evaluate homography {data}",
        protocol=Homography(),
        pairs=homography_pairs,
    ),
    Section(
        name="pose",
        title="Relative pose",
        text="40 pairs of Lund's door; the truth is COLMAP's, made with SIFT.",
        path="eval/pose/lund_door/pairs.txt",
        command="evaluate pose {data}",
        protocol=Pose(),
        pairs=pose_pairs,
    ),
    Section(
        name="rotation",
        title="Rotation in the image plane",
        text="The first ten photographs of `val/`, each turned by 10, 20, ... 360 degrees.",
        path="val",
        command="evaluate rotation {data} --subset 10",
        protocol=Rotation(),
        pairs=lambda data: rotation_pairs(data, subset=10),
        methods=CLASSICAL,
    ),
    Section(
        name="thresholds",
        title="What a threshold does",
        text="Eight pairs of Lund's door, fundamental matrices. The number of inliers within a small threshold is "
        "in proportion to it: it counts the threshold. How wrong the pose is, it does not tell: MAGSAC's error "
        "hardly changes from 3 to 0.001 px, the others have their best at some tenths of a pixel and lose on both "
        "sides.",
        path="eval/pose/lund_door/pairs.txt",
        command="evaluate thresholds {data} --subset 8",
        protocol=Thresholds(model="fundamental"),
        pairs=lambda data: pose_pairs(data, subset=8),
        methods=CLASSICAL,
    ),
    Section(
        name="self_check",
        title="Self-check",
        text="True correspondences through the same protocol: exact ones must score 100 %, and with Gaussian "
        "noise of 1 px in x and y MMA@t must be 1 - exp(-t²/2): 39.3, 98.9, 100, 100 %.",
        path="eval/homography",
        command="evaluate homography {data} --self-check",
        protocol=Homography(),
        pairs=homography_pairs,
        methods=SELF_CHECK,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("build/results"))
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    parts = [_section(section, arguments.data, arguments.out, arguments.workers) for section in SECTIONS]
    parts.insert(1, _known_warps(arguments.data / "val"))
    write_atomically(DOCS / "results.md", "\n\n".join([_head(arguments.workers), *parts]) + "\n")
    print(f"written to {DOCS / 'results.md'}")


def _section(section: Section, data: Path, out: Path, workers: int) -> str:
    path = data / section.path
    report = run_session(
        section.protocol,
        section.methods,
        section.pairs(path),
        data=path if path.is_dir() else path.parent,
        out=out / section.name,
        workers=workers,
    )
    figures = []
    for name, charts in report.figures.items():
        png, _ = save_charts(out / section.name / name, charts)
        target = DOCS / "results" / f"{section.name}_{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(png, target)
        figures.append(f"![{section.title}: {name}](results/{target.name})")
    names = [method.name for method in section.methods if isinstance(method, CatalogueMethod)]
    methods = "".join(f" --method {name}" for name in names)
    command = f"    tiepoint {section.command.format(data=path.as_posix())}{methods}"
    return "\n\n".join([f"## {section.title}", section.text, command, str(report), *figures])


def _known_warps(photographs: Path) -> str:
    text = (
        "Two views of a photograph that no training has seen, related by a known homography: MMA@t as above, matches "
        "within 3 px, AUC of the mean corner error of the homography fitted to them. `nearest`: mutual nearest "
        "neighbours without a ratio test."
    )
    command = f"    python benchmarks/held_out_warps.py {photographs.as_posix()}"
    found = held_out_warps.tables(photographs, held_out_warps.METHODS, 100)
    return "\n\n".join(["## Known warps of held-out photographs", text, command, found])


def _head(workers: int) -> str:
    used = ", ".join(f"{name} {version}" for name, version in versions().items() if version and name != "code")
    return (
        "# Results\n\n"
        "Written by `make results` (`benchmarks/results.py`); what the figures mean: "
        "[evaluation](evaluation.md).\n\n"
        f"{date.today().isoformat()}; {platform.machine()}, {os.cpu_count()} cores, {workers} process(es); "
        f"{used}. Every method with its default settings. Milliseconds are from that machine, idle or not."
    )


if __name__ == "__main__":
    main()
