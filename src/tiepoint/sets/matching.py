"""Match the pairs of a set: each photograph encoded once, each pair's matches kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tiepoint
from tiepoint.geometry import Matches, load_matches, save_matches
from tiepoint.images import DEFAULT_MAX_PIXELS, ImageError, read_image
from tiepoint.matchers import METHODS, Matcher, MatcherOptions, matcher
from tiepoint.matchers.kept_encodings import KeptEncodings
from tiepoint.sets.pairs import Pair
from tiepoint.weights import weights_files


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """All that the matches of a set depend on, beside the photographs.

    folder: where they are. method, options: the matcher; `options.refine` is set by `at_keypoints`, whatever it is.
    max_pixels: limit of a photograph's size.
    """

    folder: Path
    method: str = "sift"
    options: MatcherOptions = field(default_factory=MatcherOptions)
    max_pixels: int = DEFAULT_MAX_PIXELS

    @property
    def at_keypoints(self) -> bool:
        """Whether a photograph's points are the same keypoints in every pair: not when it is turned or looked at again.

        Where they are, matches stay at them, unrefined: a track wants one keypoint in all its pairs.
        """
        method = METHODS.get(self.method)  # one that is not there is told when it is built
        if method is None or method.kind != "sparse":
            return False
        return self.options.look == "once" and (method.turns or not self.options.four_way)

    @property
    def merge_px(self) -> float:
        """For `tie_points`: half a cell of the grids that LoFTR and RoMa match on, or 0 where pairs share keypoints."""
        return 0.0 if self.at_keypoints else 4.0

    def matcher(self) -> Matcher[Any]:
        """Raises what `tiepoint.matcher` raises."""
        return matcher(self.method, replace(self.options, refine=not self.at_keypoints))

    def digest(self) -> bytes:
        """SHA-256 of the method, its options, its files of weights and the version."""
        total = hashlib.sha256(repr((tiepoint.__version__, self.method, self.options, self.max_pixels)).encode())
        for path in weights_files(self.options.weights):
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.digest()


@dataclass(frozen=True, eq=False, kw_only=True)
class MatchedSet:
    """files: of each pair's matches, in the order of the pairs asked for. left_out: why, by photograph's name."""

    files: dict[Pair, Path]
    left_out: dict[str, str]

    def matches(self) -> Iterator[tuple[Pair, Matches]]:
        """Each pair's, read one by one."""
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
    left_out: dict[str, str] = {}
    files = _files(config, pairs, kept)
    missing = [pair for pair, file in files.items() if not _is_kept(file)]
    progress(len(pairs) - len(missing))
    if missing:
        found = config.matcher()

        def encode(name: str) -> Any:
            try:
                return found.encode(read_image(config.folder / name, max_pixels=config.max_pixels))
            except ImageError as error:
                left_out[name] = str(error)
                return None

        encodings = KeptEncodings(encode, missing)
        for position, pair in enumerate(missing):
            encoding0, encoding1 = (encodings[name] for name in pair)
            if encoding0 is not None and encoding1 is not None:
                save_matches(files[pair], found.match(encoding0, encoding1))
            encodings.done(position)
            progress(1)
    matched = {pair: file for pair, file in files.items() if left_out.keys().isdisjoint(pair)}
    for name in sorted(_names(pairs) - _names(matched) - left_out.keys()):
        left_out[name] = f"{config.folder / name}: none that it was to be matched with could be read"
    return MatchedSet(files=matched, left_out=left_out)


def _names(pairs: Iterable[Pair]) -> set[str]:
    return {name for pair in pairs for name in pair}


def _is_kept(file: Path) -> bool:
    try:
        load_matches(file)
    except (OSError, ValueError):
        return False
    return True


def _files(config: SetConfig, pairs: Sequence[Pair], kept: Path) -> dict[Pair, Path]:
    digest = config.digest()
    contents = {name: _content_digest(config.folder / name) for name in _names(pairs)}
    return {
        pair: kept / f"{hashlib.sha256(digest + contents[pair[0]] + contents[pair[1]]).hexdigest()[:32]}.npz"
        for pair in pairs
    }


def _content_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:  # told when it is to be encoded
        return bytes(32)
