"""The files a run is to register, and the name each one's outputs take."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiepoint.images import SUFFIXES


@dataclass(frozen=True)
class Source:
    """A file and the name, unique in its run, under which its outputs are written (no ending)."""

    path: Path
    name: str


def find_sources(arguments: Sequence[str], *, leave_out: Sequence[Path] = ()) -> list[Source]:
    """The image files that files, folders (with all below them) and glob patterns stand for, in sorted order.

    A file named outright is taken whatever its ending, so that a wrong one is reported and not passed over; in
    folders only files with an image's ending count, and hidden ones do not. A file named twice counts once.
    leave_out: files and folders to pass over, such as the output folder.

    Names: the path below the folder given, or the file's own name; where two agree, ~2, ~3 ... is added.
    Raises ValueError for an argument that stands for nothing.
    """
    excluded = [path.resolve() for path in leave_out]
    found: dict[Path, str] = {}
    for argument in arguments:
        for path, name in _expand(argument):
            resolved = path.resolve()
            if resolved not in found and not any(resolved.is_relative_to(folder) for folder in excluded):
                found[path if path.is_symlink() else resolved] = name
    return _with_unique_names(found)


def _expand(argument: str) -> list[tuple[Path, str]]:
    path = Path(argument)
    if path.is_dir():
        below = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not below:
            raise ValueError(f"{argument}: there are no images in this folder ({', '.join(sorted(SUFFIXES))})")
        return [(file, str(file.relative_to(path).with_suffix("").as_posix())) for file in below]
    if path.exists():
        return [(path, path.stem)]
    matched = sorted(Path(name) for name in glob.glob(argument, recursive=True))
    files = [file for file in matched if file.is_file() and file.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"{argument}: there is no such file, folder or pattern with images")
    return [(file, file.stem) for file in files]


def _with_unique_names(found: dict[Path, str]) -> list[Source]:
    taken: set[str] = set()
    sources = []
    for path, name in found.items():
        unique, number = name, 1
        while unique.lower() in taken:  # file systems may not tell upper from lower case
            number += 1
            unique = f"{name}~{number}"
        taken.add(unique.lower())
        sources.append(Source(path, unique))
    return sources
