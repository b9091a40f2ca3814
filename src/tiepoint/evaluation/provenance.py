"""Everything needed to repeat a run: versions, code, settings, data."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tiepoint
from tiepoint.evaluation.pairs import ImagePair

_PACKAGES = ("numpy", "opencv-python-headless", "poselib", "torch")
_LAYERS = ("images", "geometry", "estimation", "networks", "weights", "matchers", "evaluation")


def versions() -> dict[str, str | None]:
    """Of Python, tiepoint, its code and the packages that results depend on (None: not installed)."""
    found: dict[str, str | None] = {"python": platform.python_version(), "tiepoint": tiepoint.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return {**found, "code": _code_digest()}


def data_digest(pairs: Sequence[ImagePair], folder: Path) -> str:
    """SHA-256 over the names (below `folder`), bytes and truth of all that is evaluated."""
    digest = hashlib.sha256()
    paths = {source.path for pair in pairs for source in (pair.source0, pair.source1)}
    for path in sorted(paths):
        digest.update(_name(path, folder).encode())
        content = path.read_bytes() if path.exists() else b""  # reading it is that pair's failure
        digest.update(hashlib.sha256(content).digest())
    for pair in pairs:
        digest.update(repr((pair.key, pair.subset, _truth(pair))).encode())
    return digest.hexdigest()


def fingerprint(*parts: Any) -> str:
    """Twelve hexadecimal digits that differ for different `parts` (anything JSON can hold)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def _truth(pair: ImagePair) -> list[Any]:
    """The pair's own numbers: every field that is not a name or a picture."""
    named = ("key", "subset", "group", "source0", "source1")
    return [_numbers(value) for name, value in sorted(vars(pair).items()) if name not in named]


def _numbers(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_numbers(item) for item in vars(value).values()] if hasattr(value, "__dict__") else value


def _code_digest() -> str:
    """Of the source and the shipped weights in the layers below: edited code never reuses old results."""
    root = Path(tiepoint.__file__).parent
    return _digest_of(path for layer in _LAYERS for path in (root / layer).rglob("*") if _counts(path))[:12]


def _counts(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"


def _digest_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
