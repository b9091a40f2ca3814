"""Match the pairs of a set: each photograph encoded once, each pair's matches kept in a file."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tiepoint
from tiepoint.geometry import load_matches, save_matches
from tiepoint.geometry.correspondences import Matches
from tiepoint.images import DEFAULT_MAX_PIXELS, ImageError, read_image
from tiepoint.matchers import MatcherOptions, matcher
from tiepoint.matchers.kept_encodings import KeptEncodings
from tiepoint.sets.pairs import Pair
from tiepoint.weights import weights_files


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """All that the matches of a set depend on, beside the photographs.

    folder: where they are. method, options: the matcher. max_pixels: limit of a photograph's size.
    """

    folder: Path
    method: str = "sift"
    options: MatcherOptions = field(default_factory=MatcherOptions)
    max_pixels: int = DEFAULT_MAX_PIXELS

    def digest(self) -> bytes:
        """SHA-256 of the method, its options, its files of weights and the version."""
        total = hashlib.sha256(repr((tiepoint.__version__, self.method, self.options, self.max_pixels)).encode())
        for path in weights_files(self.options.weights):
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.digest()


@dataclass(frozen=True, eq=False, kw_only=True)
class MatchedSet:
    """files: of each pair's matches, in the order of the pairs asked for. unreadable: why, by photograph's name."""

    files: dict[Pair, Path]
    unreadable: dict[str, str]

    def matches(self) -> Iterable[tuple[Pair, Matches]]:
        return ((pair, load_matches(file)) for pair, file in self.files.items())


def match_pairs(
    config: SetConfig, pairs: Sequence[Pair], kept: Path, *, progress: Callable[[int], object] = lambda _: None
) -> MatchedSet:
    """Match `pairs`, and leave out those with a photograph that cannot be read.

    kept: folder of a file for each pair, named by what it depends on: both photographs' content, method, options,
    weights. A set that was interrupted, or has grown, goes on from there.
    progress: called with the number of pairs done since.
    Raises what `matcher` raises.
    """
    unreadable: dict[str, str] = {}
    files = _files(config, pairs, kept, unreadable)
    missing = [pair for pair, file in files.items() if not file.exists()]
    progress(len(pairs) - len(missing))
    if missing:
        found = matcher(config.method, config.options)

        def encode(name: str) -> object:
            try:
                return found.encode(read_image(config.folder / name, max_pixels=config.max_pixels))
            except ImageError as error:
                unreadable[name] = str(error)
                raise

        encodings = KeptEncodings(encode, missing)
        for position, pair in enumerate(missing):
            with contextlib.suppress(ImageError):
                if unreadable.keys().isdisjoint(pair):
                    save_matches(files[pair], found.match(encodings[pair[0]], encodings[pair[1]]))
            encodings.done(position)
            progress(1)
    matched = {pair: file for pair, file in files.items() if unreadable.keys().isdisjoint(pair)}
    return MatchedSet(files=matched, unreadable=unreadable)


def _files(config: SetConfig, pairs: Sequence[Pair], kept: Path, unreadable: dict[str, str]) -> dict[Pair, Path]:
    digest = config.digest()
    contents: dict[str, bytes] = {}
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        try:
            contents[name] = hashlib.sha256((config.folder / name).read_bytes()).digest()
        except OSError as error:
            unreadable[name] = f"{config.folder / name}: cannot be read: {error.strerror or error}"
            contents[name] = b""
    return {
        pair: kept / f"{hashlib.sha256(digest + contents[pair[0]] + contents[pair[1]]).hexdigest()[:32]}.npz"
        for pair in pairs
    }
