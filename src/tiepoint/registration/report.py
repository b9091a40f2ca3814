"""report.html: a whole run in one file that opens without a network."""

from __future__ import annotations

import base64
import heapq
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np

from tiepoint.images import Image, fitted_size, write_atomically
from tiepoint.registration.records import Record
from tiepoint.registration.thumbnails import PANE_PX, shrunk, template_thumbnail

MAX_NUM_ROWS = 10_000
"""Rows of the table: a browser sorts as many at once; registrations.csv has all."""

MAX_NUM_PICTURES = 1_000
PICTURE_BYTES = 9_000_000
"""Of all thumbnails together; a third more in the file, as text."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of numbers. key: its name in the page's address. digits: after the point. hint: its explanation."""

    key: str
    title: str
    digits: int
    hint: str
    value: Callable[[Record], float | None]

    def cell(self, record: Record) -> Cell:
        value = self.value(record)
        return Cell("–" if value is None else _text(value, self.digits), value)


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the number that it is sorted by."""

    text: str
    value: float | None


def _number(key: str) -> Callable[[Record], float | None]:
    return lambda record: record.get(key)


def _shift(axis: int) -> Callable[[Record], float | None]:
    return lambda record: record["shift_px"][axis] if record.get("shift_px") else None


COLUMNS = (
    Column(
        key="bound",
        title="error ≤",
        digits=3,
        hint="pixels of the template; 95 of 100 times the worst place is off by less",
        value=_number("error_bound95_px"),
    ),
    Column(
        key="error",
        title="error",
        digits=3,
        hint="pixels of the template; predicted for the worst place",
        value=_number("predicted_error_px"),
    ),
    Column(
        key="residual",
        title="residual",
        digits=2,
        hint="pixels; root mean square of the inliers of the fit to the matches",
        value=_number("residual_px"),
    ),
    Column(key="inliers", title="inliers", digits=0, hint="matches that agree", value=_number("num_inliers")),
    Column(key="matches", title="matches", digits=0, hint="all matches", value=_number("num_matches")),
    Column(
        key="before",
        title="before",
        digits=2,
        hint="likeness to the template before alignment, -1 ... 1",
        value=_number("similarity_before"),
    ),
    Column(
        key="after",
        title="after",
        digits=2,
        hint="likeness to the template after alignment, -1 ... 1",
        value=_number("similarity_after"),
    ),
    Column(
        key="x",
        title="x shift",
        digits=1,
        hint="pixels, of the source's middle, to the right",
        value=_shift(0),
    ),
    Column(key="y", title="y shift", digits=1, hint="pixels, of the source's middle, down", value=_shift(1)),
    Column(key="turn", title="turn °", digits=2, hint="degrees, clockwise", value=_number("rotation_deg")),
    Column(
        key="scale", title="scale", digits=4, hint="template pixels per source pixel", value=_number("scale")
    ),
)

_PLOTTED = ("x", "y", "turn", "scale", "bound")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table. index: of its record in the run. order: rejected first, then by the error's bound.
    details: JSON of what the side panel shows beside the cells."""

    index: int
    order: tuple[int, float, int]
    source: str
    status: str
    reasons: tuple[str, ...]
    cells: tuple[Cell, ...]
    details: str
    has_alignment: bool


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """bars: share of the highest (0 ... 1), lower edge, upper edge and count of each bin."""

    title: str
    bars: tuple[tuple[float, str, str, int], ...]
    low: str
    median: str
    high: str


def write_report(
    path: Path | str,
    records: Iterable[Record],
    template: Image,
    thumbnails_of: Callable[[int], bytes | None] = lambda _index: None,
) -> None:
    """Write the report of a run, whole or not at all.

    records: read once; what is kept of them is bounded: the table holds the 10,000 that need looking at most,
    rejected ones first, then those with the largest error bound; the first 1,000 with pictures.
    thumbnails_of: the strip that `thumbnails` made for the record at an index, or None.

    Raises OSError where the disk does not take it.
    """
    run = _Run()
    rows = heapq.nsmallest(MAX_NUM_ROWS, run.rows_of(records), key=lambda row: row.order)
    num_pictures = min(len(rows), MAX_NUM_PICTURES)
    limit = PICTURE_BYTES // max(num_pictures, 1)

    def picture(position: int) -> str | None:
        strip = thumbnails_of(rows[position].index) if position < num_pictures else None
        return None if strip is None else _data_uri(shrunk(strip, limit))

    width, height = fitted_size(template.size, PANE_PX)
    page = _environment().from_string(
        files("tiepoint.registration").joinpath("report.html.jinja").read_text("utf-8")
    )
    parts = page.generate(
        rows=rows,
        columns=COLUMNS,
        picture=picture,
        num_pictures=num_pictures,
        statuses=run.statuses,
        total=run.statuses.total(),
        histograms=run.histograms(),
        template_name=template.path.name if template.path else "the template",
        template_size=template.size,
        template_picture=_data_uri(template_thumbnail(template)),
        aspect=f"{width} / {height}",
    )
    # File names that are no Unicode hold lone surrogates, which UTF-8 does not.
    write_atomically(path, b"".join(part.encode("utf-8", "replace") for part in parts))


class _Run:
    """Counts and distributions of all records, gathered while they pass."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self._values: dict[str, array[float]] = {key: array("d") for key in _PLOTTED}

    def rows_of(self, records: Iterable[Record]) -> Iterator[Row]:
        for index, record in enumerate(records):
            row = _row(index, record)
            self.statuses[row.status] += 1
            if row.status == "accepted":
                for column, cell in zip(COLUMNS, row.cells, strict=True):
                    if column.key in _PLOTTED and cell.value is not None:
                        self._values[column.key].append(cell.value)
            yield row

    def histograms(self) -> list[Histogram]:
        """Of the accepted ones, for each quantity that there are values of."""
        columns = {column.key: column for column in COLUMNS}
        return [
            _histogram(columns[key], np.array(self._values[key])) for key in _PLOTTED if self._values[key]
        ]


def _row(index: int, record: Record) -> Row:
    bound = record.get("error_bound95_px")
    accepted = record["status"] == "accepted"
    details = {
        "method": record.get("method"),
        "model": record.get("model"),
        "aligned": quote(record["aligned"], errors="replace") if record.get("aligned") else None,
        "checks": [
            [check["name"], _short(check["value"]), _short(check["limit"]), bool(check["passed"])]
            for check in record.get("checks") or ()
        ],
    }
    return Row(
        index=index,
        order=(int(accepted), -(bound if accepted and bound is not None else float("inf")), index),
        source=record["source"],
        status=record["status"],
        reasons=tuple(record["reasons"]),
        cells=tuple(column.cell(record) for column in COLUMNS),
        details=json.dumps(details),
        has_alignment=record.get("matrix_template_from_source") is not None,
    )


def _text(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _histogram(column: Column, values: np.ndarray[Any, np.dtype[np.float64]]) -> Histogram:
    low, high = float(values.min()), float(values.max())
    smallest = 10.0**-column.digits  # a narrower range than the digits tell would show rounding alone
    if high - low < smallest:
        low, high = low - smallest / 2, high + smallest / 2
    counts, edges = np.histogram(values, bins=24, range=(low, high))
    texts = [_text(float(edge), column.digits) for edge in edges]
    return Histogram(
        title=column.title,
        bars=tuple(
            (float(count / counts.max()), start, end, int(count))
            for count, start, end in zip(counts, texts[:-1], texts[1:], strict=True)
        ),
        low=texts[0],
        median=_text(float(np.median(values)), column.digits),
        high=texts[-1],
    )


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
