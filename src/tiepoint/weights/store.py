"""Checkpoint files on this machine: find them, recognise them, load them. Nothing here uses the network."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import os
import pickle
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiepoint.weights.catalogue import WEIGHTS, WeightsEntry, shipped_name

if TYPE_CHECKING:
    import torch

_CONTAINERS = ("state_dict", "model_state_dict")  # what published training checkpoints wrap their tensors in
_PYTORCH_MAGIC = (b"PK\x03\x04", b"\x80")  # an archive, or a bare pickle as before PyTorch 1.6
_CHUNK_BYTES = 1 << 20
_MAX_NAMES_SHOWN = 6


class WeightsError(ValueError):
    """Weights that are unknown, absent, damaged, or not those of the network; the text says what to do."""


def entry_of(name: str) -> WeightsEntry:
    """The catalogue's entry. Raises WeightsError for a name it does not hold, with those that come near."""
    if name not in WEIGHTS:
        near = difflib.get_close_matches(name, WEIGHTS, cutoff=0.5) or list(WEIGHTS)
        raise WeightsError(f"{name!r} is no file and no named weights; did you mean {', '.join(near)}?")
    return WEIGHTS[name]


def known_weights(name_or_path: str | Path) -> WeightsEntry | None:
    """The catalogue's entry of named weights, or of a file called as it was published; None for any other."""
    if str(name_or_path) in WEIGHTS:
        return WEIGHTS[str(name_or_path)]
    return next((entry for entry in WEIGHTS.values() if entry.file_name == Path(name_or_path).name), None)


def identified(name_or_path: str | Path) -> str:
    """The weights' name and the first digits of their SHA-256: what was made with them holds for no others."""
    digest = _file_digest(find_weights(name_or_path), hashlib.sha256())
    return f"{Path(name_or_path).name} {digest[:16]}"


def default_weights(method: str) -> str:
    """The name of the weights shipped for `method`; WeightsError, saying how to get some, if none are."""
    name = shipped_name(method)
    if name is None:
        named = [entry.name for entry in WEIGHTS.values() if entry.method == method]
        raise WeightsError(
            f"no weights for {method} come with this package. Give a file, or the name of published weights "
            f"after `tiepoint weights fetch NAME`: {', '.join(named) or 'none are listed'} "
            "(`tiepoint weights show NAME` prints the licence)"
        )
    return name


def cache_folder() -> Path:
    """Where fetched and imported weights are kept; it need not exist yet."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tiepoint" / "weights"


def search_folders() -> list[Path]:
    """Where named weights are looked for, in order: the package, TIEPOINT_WEIGHTS (a folder), the cache."""
    own = os.environ.get("TIEPOINT_WEIGHTS")
    return [Path(__file__).parent / "shipped", *([Path(own)] if own else []), cache_folder()]


def find_weights(name_or_path: str | Path) -> Path:
    """The file of named weights, or the given file itself. Never uses the network.

    Raises WeightsError when there is none, naming the places that were searched and the command that gets it.
    """
    if str(name_or_path) not in WEIGHTS and Path(name_or_path).is_file():
        return Path(name_or_path)
    entry = entry_of(str(name_or_path))
    for folder in search_folders():
        if (folder / entry.file_name).is_file():
            return folder / entry.file_name
    raise WeightsError(
        f"{entry.name} is not on this machine: no {entry.file_name} in "
        f"{', '.join(str(folder) for folder in search_folders())}. Get it with `tiepoint weights fetch "
        f"{entry.name}`, or bring the file and run `tiepoint weights import FILE`. Licence: {entry.licence}"
    )


def weights_files(weights: str | None) -> list[Path]:
    """The files that a matcher's `weights`, names or files joined by +, stand for.

    None stands for the package's own: no files; neither are there any where one of them is not on this machine.
    """
    if weights is None:
        return []
    parts = [weights] if Path(weights).exists() else weights.split("+")
    with contextlib.suppress(WeightsError):  # which the matcher will tell
        return [find_weights(part) for part in parts]
    return []


def check_file(entry: WeightsEntry, path: Path) -> None:
    """Raise WeightsError unless the file is the published one, as far as its size and hashes are known.

    Of a file with no known hash, that it begins like a checkpoint: a web page in its place does not.
    """
    size = path.stat().st_size
    if entry.size_bytes is not None and size != entry.size_bytes:
        raise WeightsError(f"{path} is not {entry.name}: {entry.size_bytes} bytes expected, got {size}")
    if entry.sha256 is not None:
        _compare_digest(entry, path, entry.sha256, hashlib.sha256())
    elif entry.git_sha1 is not None:
        _compare_digest(entry, path, entry.git_sha1, hashlib.sha1(f"blob {size}\0".encode()))
    elif entry.md5 is not None:
        _compare_digest(entry, path, entry.md5, hashlib.md5(usedforsecurity=False))
    else:
        with path.open("rb") as file:
            if not file.read(4).startswith(_PYTORCH_MAGIC):
                raise WeightsError(f"{path} is not {entry.name}: it is no PyTorch checkpoint")


def verify(name_or_path: str | Path) -> Path:
    """Check that the weights are on this machine, unaltered, and hold nothing but tensors; their path.

    Raises WeightsError saying what is wrong.
    """
    path = find_weights(name_or_path)
    if str(name_or_path) in WEIGHTS:
        check_file(WEIGHTS[str(name_or_path)], path)
    load_weights(path)
    return path


def import_file(path: str | Path, name: str | None = None) -> Path:
    """Copy a file brought by hand into the cache, checked, under the name of the weights it holds.

    name: the weights' name; None recognises them by their file name, then by their hash.
    Raises WeightsError when the file is not readable, not recognised, or not what `name` stands for.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    entry = entry_of(name) if name is not None else _recognise(path)
    check_file(entry, path)
    load_weights(path)
    target = cache_folder() / entry.file_name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.copy")
    try:
        shutil.copyfile(path, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def load_weights(name_or_path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of named weights or of a file, on the CPU, by name.

    Reads safetensors, and PyTorch's format with tensors alone: a file that would run code is refused. The
    containers `state_dict` and `model_state_dict` are unwrapped; all else about a container is ignored.
    Raises WeightsError for an absent, damaged or unsafe file, and for one that holds more than tensors.
    """
    path = find_weights(name_or_path)
    tensors = _read(path)
    if isinstance(tensors, dict):
        tensors = next((tensors[key] for key in _CONTAINERS if isinstance(tensors.get(key), dict)), tensors)
    _require_tensors(tensors, path)
    return dict(tensors)


def load_strictly(module: torch.nn.Module, state_dict: dict[str, torch.Tensor], source: str | Path) -> None:
    """Fill `module` with `state_dict`: every tensor present, none unknown, every shape equal.

    source: where the tensors come from, for the message. Raises WeightsError naming those that do not fit.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    faults = {
        "missing": [name for name in wanted if name not in given],
        "unknown": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} ({wanted[name]} expected, got {shape})"
            for name, shape in given.items()
            if name in wanted and wanted[name] != shape
        ],
    }
    if any(faults.values()):
        told = "; ".join(f"{len(names)} {fault}: {_shortened(names)}" for fault, names in faults.items() if names)
        raise WeightsError(f"{source} does not fit {type(module).__name__}: tensors {told}")
    module.load_state_dict(state_dict, strict=True)


def _read(path: Path) -> Any:
    if find_spec("torch") is None or find_spec("safetensors") is None:
        raise WeightsError("reading weights needs PyTorch and safetensors: pip install 'tiepoint[learned]'")
    if path.suffix == ".safetensors":
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(f"{path} is damaged or no safetensors file: {error}") from error
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{path} is damaged, or holds more than tensors and is refused: {reason}") from error
    except (
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        IndexError,
    ) as error:
        raise WeightsError(f"{path} is damaged, cut short or no checkpoint: {error}") from error


def _require_tensors(tensors: Any, path: Path) -> None:
    import torch

    if not isinstance(tensors, dict) or not tensors:
        raise WeightsError(f"{path}: expected tensors by name, got {type(tensors).__name__}")
    others = [str(key) for key, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise WeightsError(f"{path}: expected tensors by name; these are none: {_shortened(others)}")


def _recognise(path: Path) -> WeightsEntry:
    for entry in WEIGHTS.values():
        if entry.file_name == path.name:
            return entry
    for entry in WEIGHTS.values():
        try:
            if entry.sha256 or entry.git_sha1 or entry.md5:
                check_file(entry, path)
                return entry
        except WeightsError:
            continue
    raise WeightsError(f"{path} is none of the named weights by file name or hash; a file can be used by its path")


def _compare_digest(entry: WeightsEntry, path: Path, expected: str, digest: Any) -> None:
    found = _file_digest(path, digest)
    if found != expected:
        raise WeightsError(f"{path} is not {entry.name}: {digest.name.upper()} {expected} expected, got {found}")


def _file_digest(path: Path, digest: Any) -> str:
    """The hexadecimal digest of a file by one of hashlib's fresh objects."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return str(digest.hexdigest())


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return ", ".join(names[:_MAX_NAMES_SHOWN]) + more
