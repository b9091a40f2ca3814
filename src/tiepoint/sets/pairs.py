"""Which photographs of a set are matched with which. A photograph's name is its path below the set's folder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from tiepoint.images import SUFFIXES

Pair: TypeAlias = tuple[str, str]


def photograph_names(folder: Path) -> list[str]:
    """The images in a folder and all below it, sorted; hidden ones are passed over.

    Raises ValueError for a folder with fewer than two.
    """
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    names = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
    if len(names) < 2:
        raise ValueError(f"{folder}: expected at least two photographs, found {len(names)}")
    return names


def all_pairs(names: Sequence[str]) -> list[Pair]:
    """Every photograph with every other one."""
    return list(itertools.combinations(names, 2))


def window_pairs(names: Sequence[str], reach: int) -> list[Pair]:
    """Every photograph with the `reach` that follow it: for a walk or a film, whose names are in its order."""
    return [(name, other) for i, name in enumerate(names) for other in names[i + 1 : i + 1 + reach]]


def listed_pairs(file: Path, names: Sequence[str]) -> list[Pair]:
    """The pairs of a text file, two names a line (COLMAP's and hloc's format); none twice, in either order.

    Raises ValueError for a line that is no pair of `names`, OSError for a file not there.
    """
    known, found = set(names), dict[frozenset[str], Pair]()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[0] == words[1] or not known.issuperset(words):
            raise ValueError(f"{file}, line {number}: expected two photographs' names, got {line!r}")
        found.setdefault(frozenset(words), (words[0], words[1]))
    return list(found.values())
