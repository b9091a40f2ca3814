"""Evaluate every method on the evaluation photographs and write docs/results.md.

    python benchmarks/results.py [../shared/data] [--out build/results] [--workers 1]

Goes on where it stopped. A new method is one line in METHODS of held_out_warps.py.
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

import dense_warps
import held_out_warps
import pair_cost
from held_out_warps import Figures

from tiepoint.evaluation.contestants import CatalogueMethod, Contestant
from tiepoint.evaluation.homography import Homography
from tiepoint.evaluation.layouts import homography_pairs, pose_pairs
from tiepoint.evaluation.pairs import ImagePair
from tiepoint.evaluation.pose import Pose
from tiepoint.evaluation.provenance import versions
from tiepoint.evaluation.report import Cell, Report, Table
from tiepoint.evaluation.rotation import Rotation, rotation_pairs
from tiepoint.evaluation.run import Protocol
from tiepoint.evaluation.session import SELF_CHECK, run_session
from tiepoint.evaluation.thresholds import Thresholds
from tiepoint.images import write_atomically
from tiepoint.matchers import MatcherOptions
from tiepoint.plot.curves import save_charts

CLASSICAL = tuple(CatalogueMethod(name, MatcherOptions()) for name in ("sift", "orb"))
NUM_WARPS = 60

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
    methods: tuple[Contestant, ...] = held_out_warps.METHODS


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
        "hardly changes from 3 to 0.005 px, the others have their best somewhere between a hundredth of a pixel and "
        "one and lose on both sides.",
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


WHEN = (
    "What to use: `superpoint+superglue --four-way` for the most pairs right, at any rotation, in any light and with "
    "little texture; `sift` for nearly as many in a fifth of the time, where light and texture allow; `loftr` for "
    "twice as many matches; `relf` at any rotation on SIFT's own keypoints; `sift+superglue` for a little more of "
    "SIFT; `roma-small` where every pixel's place is wanted. `register` asks SIFT, and SuperPoint with SuperGlue, "
    "and LoFTR, four-way, for what SIFT refuses."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("build/results"))
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    data, out = arguments.data, arguments.out
    reports = {section.name: _report(section, data, out, arguments.workers) for section in SECTIONS}
    warps = held_out_warps.figures(data / "val", held_out_warps.METHODS, NUM_WARPS, arguments.workers)
    parts = [_section(section, reports[section.name], data, out) for section in SECTIONS]
    parts[1:1] = [_known_warps(data / "val", warps), _dense_warps(data / "val")]
    side_by_side = _side_by_side(reports, warps, data / "eval/homography/deeppcb/00041041")
    text = "\n\n".join([_head(arguments.workers), side_by_side, *parts]) + "\n"
    write_atomically(DOCS / "results.md", text)
    print(f"written to {DOCS / 'results.md'}")


def _report(section: Section, data: Path, out: Path, workers: int) -> Report:
    path = data / section.path
    return run_session(
        section.protocol,
        section.methods,
        section.pairs(path),
        data=path if path.is_dir() else path.parent,
        out=out / section.name,
        workers=workers,
    )


def _side_by_side(reports: dict[str, Report], warps: Figures, pair: Path) -> str:
    """All methods on all sets, with what a pair costs."""
    table = Table(
        title="All methods: AUC in % and the cost of a pair",
        columns=(
            *("method", "homographies", "of these screws", "of these homogr", "pose"),
            *(title.lower() for title in held_out_warps.CONDITIONS),
            *("ms", "MB"),
        ),
        rows=tuple(_row(method, reports, warps, pair) for method in held_out_warps.METHODS),
        notes=(
            "Homographies: AUC@5 of our fit, all sets, and two of them alone; pose: AUC@5 degrees of our fit; the "
            "others: known warps of held-out photographs, AUC@5.",
            "four-way: image 1 turned as SIFT's orientations say, four ways where they do not agree (`--four-way`).",
            "ms, MB: one pair of 640 x 640 from the files' pixels to the matches, and the peak of its process "
            "(`benchmarks/pair_cost.py`).",
        ),
    )
    return "\n\n".join(["## Side by side", str(table), WHEN])


def _row(method: CatalogueMethod, reports: dict[str, Report], warps: Figures, pair: Path) -> tuple[Cell, ...]:
    photographs = (pair / "1.png", pair / "2.png")
    spent = pair_cost.cost(method.method, photographs, four_way=method.options.four_way)
    sets = (("homography", "all"), ("homography", "mvtec_screw"), ("homography", "homogr"), ("pose", "lund_door"))
    return (
        method.name,
        *(_auc_at_5(reports[name], part, method.name) for name, part in sets),
        *(100 * of_methods[method.name]["AUC_5"] for of_methods in warps.values()),
        round(spent.milliseconds),
        round(spent.peak_mb),
    )


def _auc_at_5(report: Report, part: str, method: str) -> float:
    """Of our fit, in a protocol's table that has it."""
    for table in report.tables.values():
        for name in (column for column in table.columns if column.startswith("fit AUC@")):
            column, at = table.columns.index(name), name.partition("@")[2].split("/").index("5")
            (cell,) = (row[column] for row in table.rows if row[0] == part and row[2] == method)
            assert isinstance(cell, tuple)
            return cell[at]
    raise ValueError(f"no table has an AUC of {method} on {part}")


def _section(section: Section, report: Report, data: Path, out: Path) -> str:
    path = data / section.path
    figures = []
    for name, charts in report.figures.items():
        png, _ = save_charts(out / section.name / name, charts)
        target = DOCS / "results" / f"{section.name}_{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(png, target)
        figures.append(f"![{section.title}: {name}](results/{target.name})")
    command = f"    tiepoint {section.command.format(data=path.as_posix())}"
    named = [method for method in section.methods if isinstance(method, CatalogueMethod)]
    commands = [command + "".join(f" --method {method.method}" for method in named if not method.options.four_way)]
    if turning := [method for method in named if method.options.four_way]:
        commands += [command + "".join(f" --method {method.method}" for method in turning) + " --four-way"]
    return "\n\n".join([f"## {section.title}", section.text, "\n".join(commands), str(report), *figures])


def _known_warps(photographs: Path, warps: Figures) -> str:
    text = (
        "Two views of a photograph that no training has seen, related by a known homography: MMA@t as above, matches "
        "within 3 px, AUC of the mean corner error of the homography fitted to them. `nearest`: mutual nearest "
        "neighbours without a ratio test."
    )
    tables = held_out_warps.tables(warps, NUM_WARPS)
    return _by_benchmark("Known warps of held-out photographs", text, "held_out_warps", photographs, tables)


def _dense_warps(photographs: Path) -> str:
    text = (
        "`roma-small` on views of 224 x 224 of photographs that no training has seen: EPE is the median error over all "
        "pixels that both views show, PCK@t the share of them within t px, in %. Certainty is judged as a classifier "
        "of the pixels that the other view shows, and by its mean where the other picture is of something else."
    )
    found = dense_warps.table(photographs, NUM_WARPS)
    return _by_benchmark("Dense warps of held-out photographs", text, "dense_warps", photographs, found)


def _by_benchmark(title: str, text: str, benchmark: str, photographs: Path, found: str) -> str:
    command = f"    python benchmarks/{benchmark}.py {photographs.as_posix()} --pairs {NUM_WARPS}"
    return "\n\n".join([f"## {title}", text, command, found])


def _head(workers: int) -> str:
    used = ", ".join(f"{name} {version}" for name, version in versions().items() if version and name != "code")
    return (
        "# Results\n\n"
        "Written by `make results` (`benchmarks/results.py`); what the figures mean: "
        "[evaluation](evaluation.md).\n\n"
        f"{date.today().isoformat()}; {platform.machine()}, {os.cpu_count()} cores, {workers} process(es); "
        f"{used}. Every method with its default settings but for four-way. Milliseconds in the tables of protocols are "
        "from processes that shared those cores; in the table side by side, of one process alone."
    )


if __name__ == "__main__":
    main()
