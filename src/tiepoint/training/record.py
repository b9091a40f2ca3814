"""What a run leaves behind: configuration, checkpoint, best weights, figures step by step, their curves."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from tiepoint.images import write_atomically
from tiepoint.training import parallel

_SUMMARY_EVERY_S = 20.0


@dataclass(frozen=True)
class Run:
    """The folder of one training.

    config.json: method, every setting, versions, commit; checkpoint.pt: all that is needed to go on;
    best.safetensors and best.json: the averaged weights with the best validation, and its figures;
    log.csv: one line per recorded step; curves.png.
    """

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def best(self) -> Path:
        return self.folder / "best.safetensors"

    @property
    def log(self) -> Path:
        return self.folder / "log.csv"

    def describe(self, method: str, configs: dict[str, Any], data: dict[str, Any]) -> None:
        """Write config.json: `configs` are dataclasses by role, `data` says what was trained on."""
        described = {
            "method": method,
            **{role: dataclasses.asdict(config) for role, config in configs.items()},
            "data": data,
            "made_with": {
                "torch": torch.__version__,
                "python": platform.python_version(),
                "commit": commit(),
                "threads": torch.get_num_threads(),
                "processes": parallel.count(),
            },
        }
        write_atomically(self.folder / "config.json", json.dumps(described, indent=2))

    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return found

    def save_checkpoint(self, snapshot: dict[str, Any]) -> None:
        if parallel.rank() == 0:
            buffer = io.BytesIO()
            torch.save(snapshot, buffer)
            write_atomically(self.checkpoint, buffer.getvalue())

    def save_best(self, tensors: dict[str, Tensor], figures: dict[str, float]) -> None:
        kept = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        write_atomically(self.best, safetensors.torch.save(kept))
        write_atomically(self.folder / "best.json", json.dumps(figures, indent=2))


def commit() -> str:
    """The commit of the source tree this runs from, "+" added when files were changed; "unknown" outside one."""
    here = Path(__file__).parent
    try:
        asked = {"cwd": here, "capture_output": True, "text": True, "check": True}
        name = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], **asked).stdout.strip()  # type: ignore[call-overload]
        changed = subprocess.run(["git", "status", "--porcelain", "."], **asked).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}+" if changed else str(name)


class Record:
    """Figures of a running training: averaged between lines of log.csv, told now and then, drawn as curves."""

    def __init__(self, run: Run, step: int, steps: int, tell: Callable[[str], None]) -> None:
        self.run, self.steps, self.tell = run, steps, tell
        # A run killed between checkpoints goes on from the last one: lines after it will be written again.
        self.rows = [row for row in read_log(run.log) if row["step"] <= step]
        self.pending: list[dict[str, float]] = []
        self.started, self.first_step = time.monotonic(), step
        self.told_at = self.started

    def add(self, step: int, parts: dict[str, float], rate: float) -> None:
        self.pending.append({"step": float(step), "rate": rate, **parts})
        if time.monotonic() - self.told_at > _SUMMARY_EVERY_S or step == self.steps:
            self.flush()

    def flush(self) -> None:
        """Turn what was added since the last line into a line."""
        if not self.pending:
            return
        names = list(self.pending[0])
        row = {name: float(np.mean([added[name] for added in self.pending])) for name in names}
        row["step"] = self.pending[-1]["step"]
        self.pending.clear()
        self.rows.append(row)
        self.told_at = time.monotonic()
        done = row["step"] - self.first_step
        per_second = done / max(self.told_at - self.started, 1e-9)
        left = (self.steps - row["step"]) / max(per_second, 1e-9)
        parts = ", ".join(f"{name} {value:.4f}" for name, value in row.items() if name not in ("step", "rate"))
        self._say(
            f"step {row['step']:.0f}/{self.steps}: {parts}; rate {row['rate']:.2e}, {per_second:.2f} steps/s, "
            f"{_span(left)} left"
        )
        self._write()

    def add_validation(self, step: int, figures: dict[str, float]) -> None:
        self.flush()
        self.rows = [row for row in self.rows if step or row["step"]]  # step 0 may have been told before
        self.rows.append({"step": float(step), **{f"val_{name}": value for name, value in figures.items()}})
        self._say(f"step {step}: validation " + ", ".join(f"{n} {v:.4f}" for n, v in figures.items()))
        self._write()
        if parallel.rank() == 0:
            draw_curves(self.rows, self.run.folder / "curves.png")

    def _say(self, text: str) -> None:
        if parallel.rank() == 0:
            self.tell(text)

    def _write(self) -> None:
        if parallel.rank() != 0:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in self.rows)
        write_atomically(self.run.log, text.getvalue())


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log.csv, without their empty cells; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def draw_curves(rows: list[dict[str, float]], path: Path) -> None:
    """A panel for each figure over the steps, written as PNG."""
    from matplotlib.figure import Figure

    names = [n for n in dict.fromkeys(name for row in rows for name in row) if n != "step"]
    columns = min(4, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.4 * lines), layout="constrained")
    for index, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, index + 1)
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "", linewidth=1)
        axes.set_title(name.replace("val_", "validation: ").replace("_", " "), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_atomically(path, buffer.getvalue())


def keep_freed_memory() -> None:
    """Have the C library keep freed blocks: on a CPU training then takes two thirds of the time.

    Fresh activations above 32 MB otherwise cost page faults on every step. Holds the memory of the largest
    step until the process ends. Does nothing where the C library is not glibc.
    """
    import ctypes

    trim_threshold, mmap_max = -1, -4  # malloc.h: M_TRIM_THRESHOLD, M_MMAP_MAX
    if os.name == "posix" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def _span(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
