"""Which photographs of a set are matched with which. A photograph's name is its path below the set's folder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from tiepoint.images import SUFFIXES

Pair: TypeAlias = tuple[str, str]


def photograph_names(folder: Path, *, leave_out: Path | None = None) -> list[str]:
    """The images in a folder and all below it, sorted; hidden ones are passed over.

    leave_out: a folder below it to pass over, such as that of the output.
    Raises ValueError for a folder with fewer than two, and for a name that is not in UTF-8.
    """
    below = None if leave_out is None or leave_out.resolve() == folder.resolve() else leave_out.resolve()
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        ours = below is not None and path.resolve().is_relative_to(below)
        if path.suffix.lower() in SUFFIXES and not hidden and not ours and not path.is_dir():
            names.append(_checked(folder, name.as_posix()))
    if len(names) < 2:
        raise ValueError(f"{folder}: expected at least two photographs, found {len(names)}")
    return sorted(names)


def _checked(folder: Path, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{folder}: {name!r} is no name in UTF-8; rename that file") from error
    return name


def all_pairs(names: Sequence[str]) -> list[Pair]:
    """Every photograph with every other one."""
    return list(itertools.combinations(names, 2))


def window_pairs(names: Sequence[str], reach: int) -> list[Pair]:
    """Every photograph with the `reach` that follow it: for a walk or a film, whose names are in its order."""
    return [(name, other) for i, name in enumerate(names) for other in names[i + 1 : i + 1 + reach]]


def listed_pairs(file: Path, names: Sequence[str]) -> list[Pair]:
    """The pairs of a text file, two names a line (COLMAP's and hloc's format); none twice, in either order.

    Empty lines and those that begin with # do not count; names with spaces cannot be listed.
    Raises ValueError for a line that is no pair of `names` and for a file that is not in UTF-8.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is no text in UTF-8") from error
    known, found = set(names), dict[frozenset[str], Pair]()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if len(words) != 2 or words[0] == words[1] or not known.issuperset(words):
            raise ValueError(f"{file}, line {number}: expected two photographs' names without spaces, got {line!r}")
        found.setdefault(frozenset(words), (words[0], words[1]))
    return list(found.values())
