"""Curves as PNG and SVG: lines, logarithmic axes, accuracy over the circle."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tiepoint.evaluation.report import Chart
from tiepoint.images import write_atomically

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
_DPI = 120
_INCHES = (4.6, 3.7)


def save_charts(stem: Path, charts: Sequence[Chart]) -> list[Path]:
    """Draw `charts` side by side into `<stem>.png` and `<stem>.svg`; the files written.

    The same charts give the same bytes. Imports matplotlib, draws without a display.
    """
    import matplotlib

    figure = draw(charts)
    written = []
    for suffix in SUFFIXES:
        buffer = io.BytesIO()
        dateless = {"Date": None} if suffix == ".svg" else {"Software": None}
        with matplotlib.rc_context({"svg.hashsalt": "tiepoint"}):  # or names in it would be random
            figure.savefig(buffer, format=suffix[1:], dpi=_DPI, metadata=dateless)
        path = stem.with_name(stem.name + suffix)
        write_atomically(path, buffer.getvalue())
        written.append(path)
    return written


def draw(charts: Sequence[Chart]) -> Figure:
    """`charts` side by side (more than three in two rows), one legend for all under them."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        across = len(charts) if len(charts) <= 3 else -(-len(charts) // 2)
        down = -(-len(charts) // across)
        figure = Figure(figsize=(_INCHES[0] * across, _INCHES[1] * down), layout="constrained")
        for i, chart in enumerate(charts):
            polar = "polar" if chart.scale == "polar" else None
            _draw_chart(figure.add_subplot(down, across, i + 1, projection=polar), chart)
        _add_legend(figure)
    return figure


def _draw_chart(axes: Axes, chart: Chart) -> None:
    for i, curve in enumerate(chart.curves):
        x = np.deg2rad(curve.x) if chart.scale == "polar" else curve.x
        if curve.style == "dashed":
            axes.plot(x, curve.y, "--", color="0.5", linewidth=1, label=curve.label)
        elif curve.style == "points":
            axes.plot(x, curve.y, "o", color=f"C{i % 10}", markersize=2.5, alpha=0.6, label=curve.label)
        else:
            axes.plot(x, curve.y, color=f"C{i % 10}", linewidth=1.6, label=curve.label,
                      marker="o" if len(x) <= 12 else None, markersize=3)  # fmt: skip
    axes.set_title(chart.title, fontsize=10)
    if chart.scale == "polar":
        axes.set_theta_zero_location("N")  # type: ignore[attr-defined]
        axes.set_theta_direction(-1)  # type: ignore[attr-defined]
    else:
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
    if chart.scale in ("log-x", "log-log"):
        axes.set_xscale("log")
    if chart.scale == "log-log":
        axes.set_yscale("log")
    if chart.y_limits is not None:
        low, high = chart.y_limits
        axes.set_ylim(low, high + 0.02 * (high - low))  # a line along the top stays whole
    axes.grid(alpha=0.3)


def _add_legend(figure: Figure) -> None:
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(str(label), handle)
    columns = max(1, min(len(handles), 2 if len(figure.axes) == 1 else 4))  # or a single chart's is cut off
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        fontsize=9,
        frameon=False,
    )
