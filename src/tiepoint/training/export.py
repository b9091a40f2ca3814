"""A run's best weights as a file to keep: half precision, with a card that says where they come from."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from tiepoint.images import write_atomically
from tiepoint.training.record import Run, read_log


def export_weights(run: Run, path: Path) -> None:
    """Write the best weights of `run` to `path` (.safetensors) and their card beside it (.json).

    Weights of two and more dimensions are kept in half precision; biases and statistics, a hundredth of all,
    stay as they are. Raises ValueError when the run has no validated weights yet.
    """
    if not run.best.exists():
        raise ValueError(f"{run.folder}: has no best.safetensors; weights are kept at the first validation")
    tensors = {name: _half(tensor) for name, tensor in safetensors.torch.load_file(run.best).items()}
    write_atomically(path, safetensors.torch.save(tensors))
    write_atomically(path.with_suffix(".json"), json.dumps(card(run), indent=2, ensure_ascii=False) + "\n")


def card(run: Run) -> dict[str, Any]:
    """What the weights of `run` are: method, settings, data with its licences, versions and figures."""
    return {
        **run.config(),
        "steps_done": max((row["step"] for row in read_log(run.log)), default=0),
        "figures": json.loads((run.folder / "best.json").read_text()),
    }


def licences(folder: Path) -> dict[str, int]:
    """How many photographs stand under each licence, by the column `licence` of the folder's manifest.csv."""
    manifest = folder / "manifest.csv"
    if not manifest.is_file():
        return {}
    with manifest.open(newline="", encoding="utf-8") as file:
        counted = Counter(row.get("licence", "not stated") for row in csv.DictReader(file))
    return dict(counted.most_common())


def _half(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() and tensor.ndim > 1 else tensor.clone()
