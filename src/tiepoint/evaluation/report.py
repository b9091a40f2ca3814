"""What a protocol answers: tables, charts, and files with everything needed to repeat them."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from tiepoint.evaluation.run import Measured
from tiepoint.images import write_atomically

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")

Cell: TypeAlias = str | float | int | tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under column names; `notes` say what each figure is. None prints as "-".

    title: what it shows. decimals: of numbers that are not whole. A cell of several numbers stands under a column
    named like "AUC@1/3/5/10", and becomes as many columns of a CSV file.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    decimals: int = 1

    def __str__(self) -> str:
        """A table that reads in a terminal and is Markdown."""
        cells = [self.columns, *(tuple(map(self._text, row)) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        numeric = [not any(isinstance(row[i], str) for row in self.rows) for i in range(len(widths))]
        lines = ["| " + " | ".join(_aligned(row, widths, numeric)) + " |" for row in cells]
        rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numeric, strict=True))
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"**{self.title}**", "", lines[0], rule + "|", *lines[1:], *([""] if notes else []), *notes])

    def _text(self, cell: Cell) -> str:
        if cell is None or (isinstance(cell, float) and np.isnan(cell)):
            return "-"
        if isinstance(cell, tuple):
            return "/".join(f"{value:.1f}" for value in cell)
        return f"{cell:.{self.decimals}f}" if isinstance(cell, float) else str(cell)

    def as_csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        several = [any(isinstance(row[i], tuple) for row in self.rows) for i in range(len(self.columns))]
        columns = [_split(name) if split else [name] for name, split in zip(self.columns, several, strict=True)]
        writer.writerow([name for names in columns for name in names])
        for row in self.rows:
            writer.writerow([value for cell in row for value in (cell if isinstance(cell, tuple) else (cell,))])
        return buffer.getvalue()


def _split(column: str) -> list[str]:
    """ "AUC@1/3" -> "AUC@1", "AUC@3"."""
    name, _, thresholds = column.partition("@")
    return [f"{name}@{threshold}" for threshold in thresholds.split("/")]


def _aligned(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> list[str]:
    return [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(row, widths, numeric, strict=True)
    ]


Numbers: TypeAlias = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart; angles in degrees on a polar one.

    style: solid, dashed for a reference, or points without a line.
    """

    label: str
    x: Numbers
    y: Numbers
    style: Literal["solid", "dashed", "points"] = "solid"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one pair of axes, drawn by `tiepoint.plot.curves`."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    scale: Literal["linear", "log-x", "log-log", "polar"] = "linear"
    y_limits: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """A protocol's answer for all methods. tables and figures (charts side by side) by file name."""

    tables: dict[str, Table]
    figures: dict[str, tuple[Chart, ...]]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables.values()))


def write_report(folder: Path, report: Report, results: dict[str, list[Measured[Any]]], repeat: dict[str, Any]) -> None:
    """Write `result.json`, `pairs.csv` and one CSV for each table into `folder`, each whole or not at all.

    repeat: what is needed to repeat the run; goes into `result.json` beside the tables.
    """
    made = datetime.now(timezone.utc).isoformat(timespec="seconds")
    tables = {name: asdict(table) for name, table in report.tables.items()}
    seconds = {method: total_seconds(measured) for method, measured in results.items()}
    content = {"made": made, **repeat, "seconds": seconds, "failures": _failures(results), "tables": tables}
    write_atomically(folder / "result.json", json.dumps(_finite(content), indent=1) + "\n")
    write_atomically(folder / "pairs.csv", _pairs_csv(results))
    for name, table in report.tables.items():
        write_atomically(folder / f"{name}.csv", table.as_csv())


def total_seconds(measured: Sequence[Measured[Any]]) -> dict[str, float]:
    """Encoding (each image once), matching and measuring, of all pairs together."""
    encoding = {}
    for one in measured:
        encoding[one.pair.source0], encoding[one.pair.source1] = one.encode0_s, one.encode1_s
    return {
        "encode": sum(encoding.values()),
        "match": sum(one.match_s for one in measured),
        "measure": sum(one.measure_s for one in measured),
    }


def milliseconds(measured: Sequence[Measured[Any]]) -> tuple[float, float]:
    """Median of encoding an image and of matching a pair, where the method did not fail; nan if it always did."""
    done = [one for one in measured if one.failed is None]
    if not done:
        return float("nan"), float("nan")
    images = {one.pair.source0: one.encode0_s for one in done} | {one.pair.source1: one.encode1_s for one in done}
    return 1e3 * float(np.median(list(images.values()))), 1e3 * float(np.median([one.match_s for one in done]))


def _failures(results: dict[str, list[Measured[Any]]]) -> dict[str, dict[str, str]]:
    return {
        method: {one.pair.key: one.failed for one in measured if one.failed is not None}
        for method, measured in results.items()
    }


def _pairs_csv(results: dict[str, list[Measured[Any]]]) -> str:
    """One line for each method and pair; lists and mappings become one column for each entry."""
    rows: list[dict[str, Any]] = []
    for method, measured in results.items():
        for one in measured:
            row: dict[str, Any] = {
                "method": method,
                "pair": one.pair.key,
                "subset": one.pair.subset,
                "failed": one.failed,
            }
            row |= {"encode0_s": one.encode0_s, "encode1_s": one.encode1_s, "match_s": one.match_s}
            rows.append(row | dict(_flat(asdict(one.record))))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, (list, tuple)):
            value = {str(i): item for i, item in enumerate(value)}
        flat += _flat(value, f"{prefix}{name}_") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return flat


def _finite(value: Any) -> Any:
    """JSON has no nan or infinity: null and "inf"."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    return value


Parts: TypeAlias = list[tuple[str, str, list[Measured[Record]]]]
"""(part of the data, method, the results of that method there)."""


def by_subset(results: dict[str, list[Measured[Record]]], *, together: bool = True) -> Parts[Record]:
    """The results of each subset in turn, then of "all" where there are several (and `together`)."""
    pairs = [one.pair for one in next(iter(results.values()))]
    subsets = list(dict.fromkeys(pair.subset for pair in pairs))
    return [
        (part, method, [one for one in measured if part in ("all", one.pair.subset)])
        for part in ([*subsets, "all"] if together and len(subsets) > 1 else subsets)
        for method, measured in results.items()
    ]


def slug(name: str) -> str:
    """`name` as part of a file's name."""
    return re.sub("[^a-z0-9.+]+", "_", name)


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Mean where a method has such a figure at all, a pair without one counting 0; None where it never has."""
    known = [value for value in values if value is not None]
    return sum(known) / len(values) if known else None


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Mean of a number that is no merit, as that of keypoints, over the pairs that have one; None where none has."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def failures_as_infinite(errors: Sequence[float | None]) -> list[float]:
    return [float("inf") if error is None else error for error in errors]
