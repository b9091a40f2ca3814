"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path | str, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` so that any reader sees the old file or all of the new one.

    Raises OSError.
    """
    with open_atomically(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def open_atomically(path: Path | str) -> Iterator[BinaryIO]:
    """A file to write to that takes the name `path` when the block ends, and vanishes when it ends by an error.

    The bytes go to a hidden neighbour first, whose name fits where `path`'s does; a kill leaves at most that.
    Raises OSError.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=".", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
