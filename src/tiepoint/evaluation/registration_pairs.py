"""What registration is tried on: pairs that belong together, pairs that do not, and known warps of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.evaluation.layouts import drawn, homography_pairs, photographs
from tiepoint.evaluation.pairs import ImagePair, PlanePair, UnknownPair
from tiepoint.evaluation.sources import FileSource, Frame, Source, read_picture
from tiepoint.geometry import Transform, frame_corners
from tiepoint.images import Image

KNOWN_WARPS = "known warps"
"""The subset of photographs warped by a known homography."""

EXACT_SETS = ("sroie_doc", "mvtec_screw", KNOWN_WARPS)
"""Subsets whose truth is exact, so that the predicted error can be held against it."""

Pattern = Literal["blank", "noise", "chequer", "stripes", "dots"]

# Shares of the unrelated pairs. Pictures of other things are the everyday case; a mirrored picture of the very
# template is the hardest, of which there are only a few.
_SHARES = {"other": 0.4, "photograph": 0.25, "mirrored": 0.1, "pattern": 0.15, "tiled": 0.1}

# Sequences of the evaluation sets that show the same thing: no pair of these can be called unrelated.
_LIKE = {"mvtec_screw": 0, "deeppcb": 5, "homogr": 6}
"""Set -> the first that many characters of a sequence's name tell what it shows; elsewhere the whole name does."""


@dataclass(frozen=True)
class WarpedSource(Source):
    """A photograph seen again: a homography, other light, blur and noise, all drawn by `seed`; grey around it.

    Turned any way, 0.8 to 1.25 times as large, corners moved by up to 6 % of the long side; on a canvas that holds
    all of it.
    """

    path: Path
    seed: int

    def read(self) -> Frame:
        image = read_picture(self.path)
        rng = np.random.default_rng([self.seed, *self.path.name.encode()])
        warp, size = _random_homography(image.size, rng)
        background = (128,) * (1 if image.pixels.ndim == 2 else 3)
        pixels = cv2.warpPerspective(image.pixels, warp.matrix, size, flags=cv2.INTER_CUBIC, borderValue=background)
        return Frame(Image(_in_other_light(pixels, rng), self.path), warp)


@dataclass(frozen=True)
class MirroredSource(Source):
    """A file, its left and right exchanged."""

    path: Path

    def read(self) -> Frame:
        image = read_picture(self.path)
        return Frame(Image(np.ascontiguousarray(image.pixels[:, ::-1]), self.path), Transform.identity())


@dataclass(frozen=True)
class TiledSource(Source):
    """A photograph reduced and repeated `times` across and down."""

    path: Path
    times: int

    def read(self) -> Frame:
        pixels = read_picture(self.path).pixels
        size = [max(8, 2 * side // self.times) for side in pixels.shape[1::-1]]
        tile = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        repeats = (self.times, self.times) + (1,) * (tile.ndim - 2)
        return Frame(Image(np.tile(tile, repeats), self.path), Transform.identity())


@dataclass(frozen=True)
class PatternSource(Source):
    """A drawn picture of no thing, drawn by `seed`."""

    pattern: Pattern
    seed: int

    @property
    def path(self) -> Path:  # type: ignore[override]
        return Path(f"{self.pattern}-{self.seed}")

    def read(self) -> Frame:
        rng = np.random.default_rng([self.seed, *self.pattern.encode()])
        width, height = (int(side) for side in rng.integers(320, 900, 2))
        return Frame(Image(_pattern(self.pattern, width, height, rng)), Transform.identity())


def registration_pairs(
    data: Path, *, unrelated: int = 5000, subset: int | None = None, seed: int = 0
) -> list[ImagePair]:
    """The pairs of a folder with `eval/homography` (sequences), `train` and `val` (photographs).

    Image 0 is the source, image 1 the template, the truth template from source. In order: the pairs of the
    sequences; two known warps of every photograph of `val`; `unrelated` pairs that must not be accepted, spread
    evenly over the templates of the sequences.
    subset: the first that many sequences of each set, photographs of `val`, and patterns.
    Raises ValueError where a folder holds nothing.
    """
    sequences = homography_pairs(data / "eval/homography", subset=subset)
    warped = photographs(data / "val")[:subset]
    other = drawn(photographs(data / "train"), 400 if subset is None else 4 * subset, seed)
    return [
        *(_from_template(pair) for pair in sequences),
        *(_known_warp(path, number) for path in warped for number in (2 * seed, 2 * seed + 1)),
        *_unrelated_pairs(sequences, other, unrelated, subset or 24, seed),
    ]


def _from_template(pair: PlanePair) -> PlanePair:
    """The pair the other way round: image 1 of a sequence is the template."""
    return PlanePair(
        key=pair.key,
        subset=pair.subset,
        group="all",
        source0=pair.source1,
        source1=pair.source0,
        truth=pair.truth.inverse(),
        points0=pair.points1,
        points1=pair.points0,
    )


def _known_warp(path: Path, seed: int) -> PlanePair:
    return PlanePair(
        key=f"{path.name}:{seed}",
        subset=KNOWN_WARPS,
        group="all",
        source0=WarpedSource(path, seed),
        source1=FileSource(path),
        truth=Transform.identity(),  # between the files, which are one; the frames hold the warp
    )


def _unrelated_pairs(
    sequences: Sequence[PlanePair], others: Sequence[Path], count: int, num_patterns: int, seed: int
) -> list[ImagePair]:
    """`count` pairs of a template with something it does not show, template by template."""
    rng = np.random.default_rng(seed)
    templates = {pair.source0: pair for pair in sequences}
    pictures = {source.path: pair.group for pair in sequences for source in (pair.source0, pair.source1)}
    everywhere: dict[str, list[Source]] = {
        "photograph": [FileSource(path) for path in others],
        "tiled": [TiledSource(path, 4 + i % 8) for i, path in enumerate(others)],
        "pattern": [PatternSource(name, i) for name in get_args(Pattern) for i in range(num_patterns)],
    }
    pairs: list[ImagePair] = []
    for number, (template, pair) in enumerate(templates.items()):
        share = count * (number + 1) // len(templates) - count * number // len(templates)
        own = [path for path, group in pictures.items() if group == pair.group]
        unlike = [path for path, group in pictures.items() if _shown(group) != _shown(pair.group)]
        kinds: dict[str, Sequence[Source]] = {
            **everywhere,
            "other": [FileSource(path) for path in unlike],
            "mirrored": [MirroredSource(path) for path in (*own, *_some(unlike, share, rng))],
        }
        for kind, source in _choose(kinds, share, rng):
            name = f"{source.path.parent.name}/{source.path.name}"
            subset = source.pattern if isinstance(source, PatternSource) else kind
            key = f"{pair.group} <- {subset}:{name}"
            pairs.append(UnknownPair(key=key, subset=subset, group="all", source0=source, source1=template))
    return pairs


def _shown(sequence: str) -> str:
    """What a sequence shows, by its name `set/sequence`."""
    folder, _, name = sequence.rpartition("/")
    name = "Boston" if name.startswith("Boston") else name
    return f"{folder}/{name[: _LIKE.get(folder, len(name))]}"


def _some(paths: Sequence[Path], count: int, rng: np.random.Generator) -> list[Path]:
    return [paths[row] for row in rng.permutation(len(paths))[:count]]


def _choose(kinds: dict[str, Sequence[Source]], count: int, rng: np.random.Generator) -> list[tuple[str, Source]]:
    """`count` different sources by the kinds' shares; what one kind lacks, patterns make up."""
    chosen: list[tuple[str, Source]] = []
    for kind in ("mirrored", "tiled", "photograph", "other", "pattern"):
        wanted = count - len(chosen) if kind == "pattern" else round(_SHARES[kind] * count)
        sources = kinds[kind]
        # A mirrored picture of the template itself comes first, as it is the likeliest to be taken for it.
        rows = range(len(sources)) if kind == "mirrored" else rng.permutation(len(sources))
        chosen += [(kind, sources[row]) for row in rows[: max(wanted, 0)]]
    return chosen[:count]


def _random_homography(size: tuple[int, int], rng: np.random.Generator) -> tuple[Transform, tuple[int, int]]:
    """A view of a picture of `size`, and the size of the canvas that holds all of it."""
    corners = frame_corners(size)
    turn = Transform.from_parameters(rotation_deg=rng.uniform(-180, 180), scale=np.exp(rng.uniform(-0.22, 0.22)))
    moved = turn(corners) + rng.uniform(-0.06, 0.06, (4, 2)) * max(size)
    moved += 8 - moved.min(axis=0) + rng.uniform(0, 1, 2)
    width, height = (int(side) + 9 for side in moved.max(axis=0))
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), moved.astype(np.float32))
    return Transform(np.asarray(matrix, np.float64)), (width, height)


def _in_other_light(pixels: NDArray[Any], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blurred, brighter on one side than on the other, of another contrast, with noise."""
    blurred = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, 1.2)).astype(np.float32)
    height, width = pixels.shape[:2]
    direction = rng.uniform(0, 2 * np.pi)
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    light = rng.uniform(0.75, 1.15) * (1 + rng.uniform(0, 0.2) * (np.cos(direction) * x + np.sin(direction) * y))
    light = light.reshape(light.shape + (1,) * (pixels.ndim - 2))
    lit = 255 * (np.clip(blurred * light, 0, 255) / 255) ** rng.uniform(0.8, 1.25)
    noisy = lit + rng.normal(0, rng.uniform(1, 5), lit.shape)
    return np.asarray(np.rint(np.clip(noisy, 0, 255)), np.uint8)


def _pattern(name: Pattern, width: int, height: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    dark, bright = sorted(rng.integers(0, 256, 2))
    x, y = np.arange(width), np.arange(height)[:, None]
    period = int(rng.integers(8, 60))
    if name == "blank":
        return np.full((height, width), bright, np.uint8)
    if name == "noise":
        noise = rng.normal(128, 50, (height, width)).astype(np.float32)
        return np.asarray(np.clip(cv2.GaussianBlur(noise, (0, 0), rng.uniform(0.3, 3)), 0, 255), np.uint8)
    if name == "chequer":
        on = (x // period + y // period) % 2 == 1
    elif name == "stripes":
        angle = rng.uniform(0, np.pi)
        on = (np.cos(angle) * x + np.sin(angle) * y) % period < period / 2
    else:
        on = ((x % period) - period / 2) ** 2 + ((y % period) - period / 2) ** 2 < (period / 3) ** 2
    drawing = np.where(on, bright, dark).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(drawing, (0, 0), 0.8), np.uint8)
