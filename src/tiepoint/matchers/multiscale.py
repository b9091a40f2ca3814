"""Looking again, with any matcher: at several sizes, at the region both images show, and tile by tile.

What the best entries of the Image Matching Challenge 2022 had in common: matches found at several sizes are
joined, the region that both photographs show is found from them, cut out, and matched again at a higher size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Matches
from tiepoint.images import GrayLevel, Image, ResizeMap, fitted_size, resize
from tiepoint.matchers.base import Matcher, MatcherOptions

Encoding = TypeVar("Encoding")


class Box(NamedTuple):
    """Columns left ... right - 1 and rows top ... bottom - 1 of an image."""

    left: int
    top: int
    right: int
    bottom: int


class View(NamedTuple, Generic[Encoding]):
    """A part of an image, encoded at some size.

    resize_map: from the part to the size it was encoded at. box: the part.
    """

    encoding: Encoding
    resize_map: ResizeMap
    box: Box


@dataclass(frozen=True, eq=False, kw_only=True)
class Views(Generic[Encoding]):
    """An image, and views of the whole of it from the smallest to the largest. gray_levels: as in Features."""

    image: Image
    views: tuple[View[Encoding], ...]
    gray_levels: tuple[GrayLevel, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class MultiscaleOptions:
    """How often and how closely images are looked at.

    sizes_px: long sides at which the whole images are matched; smaller images are enlarged, twofold at most.
    region_size_px: long side at which the region that both show is matched again; None leaves that out.
    min_num_matches: with fewer there is no region.
    same_px: matches nearer than about this to a better one, in both images, are taken for the same.
    """

    sizes_px: tuple[int, ...] = (640, 840)
    region_size_px: int | None = 1120
    min_num_matches: int = 20
    same_px: float = 2.0

    def __post_init__(self) -> None:
        if not self.sizes_px or min(self.sizes_px) < 1:
            raise ValueError(f"sizes_px: expected at least one size of at least 1, got {self.sizes_px}")
        _check_positive(self.region_size_px, self.min_num_matches, self.same_px)


class Multiscale(Matcher[Views[Encoding]]):
    """Any matcher at several sizes, and once more where the images overlap.

    matcher: must not resize images itself: its own size limit is at least the largest size asked for here, and
        it enlarges none.
    """

    def __init__(self, matcher: Matcher[Encoding], options: MultiscaleOptions | None = None) -> None:
        self.matcher = matcher
        self.options = MultiscaleOptions() if options is None else options

    @property
    def name(self) -> str:
        return f"{self.matcher.name}, multiscale"

    def encode(self, image: Image) -> Views[Encoding]:
        sizes = sorted(set(self.options.sizes_px))
        return Views(image=image, views=tuple(view(self.matcher, image, whole(image), size) for size in sizes))

    def match(self, encoding0: Views[Encoding], encoding1: Views[Encoding]) -> Matches:
        image0, image1 = encoding0.image, encoding1.image
        found = [
            match_views(self.matcher, view0, view1, image0, image1)
            for view0, view1 in zip(encoding0.views, encoding1.views, strict=True)
        ]
        joined = join(found, self.options.same_px)
        size = self.options.region_size_px
        if size is None or len(joined) < self.options.min_num_matches:
            return replace(joined, method=self.name)
        boxes = dense_region(joined.points0, image0.size), dense_region(joined.points1, image1.size)
        again = match_boxes(self.matcher, image0, image1, boxes, size)
        return replace(join([joined, again], self.options.same_px), method=self.name)


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """How large photographs are cut up.

    guide_size_px: long side at which the whole images are matched first, to find what each tile shows.
    tile_px: side of the tiles of image 0, which are matched at full size.
    overlap_px: by which neighbouring tiles overlap, at most half of that.
    min_num_matches: tiles in which the guide found fewer are left out.
    same_px: as in MultiscaleOptions.
    """

    guide_size_px: int = 840
    tile_px: int = 1024
    overlap_px: int = 64
    min_num_matches: int = 8
    same_px: float = 2.0

    def __post_init__(self) -> None:
        _check_positive(self.guide_size_px, self.tile_px, self.min_num_matches, self.same_px)
        if not 0 <= self.overlap_px <= self.tile_px // 2:
            raise ValueError(f"overlap_px: expected 0 to half of tile_px {self.tile_px}, got {self.overlap_px}")


class Tiled(Matcher[Views[Encoding]]):
    """Any matcher over large photographs in bounded memory: a look at the whole, then tiles at full size.

    Each tile of image 0 is matched with the part of image 1 that the first look saw it in. matcher: its own size
    limit must be at least twice tile_px, for such a part may be larger than the tile, and it enlarges nothing.
    """

    def __init__(self, matcher: Matcher[Encoding], options: TileOptions | None = None) -> None:
        self.matcher = matcher
        self.options = TileOptions() if options is None else options

    @property
    def name(self) -> str:
        return f"{self.matcher.name}, tiled"

    def encode(self, image: Image) -> Views[Encoding]:
        guide = min(self.options.guide_size_px, max(image.size))
        return Views(image=image, views=(view(self.matcher, image, whole(image), guide),))

    def match(self, encoding0: Views[Encoding], encoding1: Views[Encoding]) -> Matches:
        image0, image1 = encoding0.image, encoding1.image
        guide = match_views(self.matcher, encoding0.views[0], encoding1.views[0], image0, image1)
        found = [guide]
        for tile in tiles(image0.size, self.options.tile_px, self.options.overlap_px):
            seen = guide.points1[within(guide.points0, tile)]
            if len(seen) < self.options.min_num_matches:
                continue
            part = dense_region(seen, image1.size)
            limit = 2 * self.options.tile_px
            views = (
                view(self.matcher, image0, tile, limit, enlarge=False),
                view(self.matcher, image1, part, limit, enlarge=False),
            )
            found.append(match_views(self.matcher, *views, image0, image1))
        return replace(join(found, self.options.same_px), method=self.name)


# ------------------------------------------------------------------------------------------------- parts


def whole(image: Image) -> Box:
    return Box(0, 0, image.width, image.height)


def view(matcher: Matcher[Encoding], image: Image, box: Box, size_px: int, *, enlarge: bool = True) -> View[Encoding]:
    """The part `box` of `image`, encoded with a long side of `size_px`; enlarged twofold at most, or not."""
    pixels = image.pixels[box.top : box.bottom, box.left : box.right]
    size = box.right - box.left, box.bottom - box.top
    if enlarge and size_px > max(size):
        factor = min(2.0, size_px / max(size))
        size = round(factor * size[0]), round(factor * size[1])
    resized, resize_map = resize(pixels, fitted_size(size, size_px))
    return View(matcher.encode(Image(np.ascontiguousarray(resized))), resize_map, box)


def match_views(
    matcher: Matcher[Encoding], view0: View[Encoding], view1: View[Encoding], image0: Image, image1: Image
) -> Matches:
    """The matches of two views, in pixels of the full-size images."""
    found = matcher.match(view0.encoding, view1.encoding)
    return Matches(
        points0=_full_size(found.points0, view0),
        points1=_full_size(found.points1, view1),
        scores=found.scores,
        size0=image0.size,
        size1=image1.size,
        method=found.method,
    )


def match_boxes(
    matcher: Matcher[Encoding], image0: Image, image1: Image, boxes: tuple[Box, Box], size_px: int
) -> Matches:
    """The matches between a part of each image, both brought to a long side of `size_px`, in full-size pixels."""
    views = view(matcher, image0, boxes[0], size_px), view(matcher, image1, boxes[1], size_px)
    return match_views(matcher, *views, image0, image1)


def join(found: Sequence[Matches], same_px: float) -> Matches:
    """All matches of one pair of images, best first; of those that say the same, only the best.

    Two say the same when both points fall into the same squares of `same_px`.
    """
    points0 = np.concatenate([matches.points0 for matches in found])
    points1 = np.concatenate([matches.points1 for matches in found])
    scores = np.concatenate([matches.scores for matches in found])
    order = np.argsort(-scores, kind="stable")
    squares = np.floor(np.hstack([points0, points1])[order] / same_px).astype(np.int64)
    first = np.unique(squares, axis=0, return_index=True)[1]
    kept = order[np.sort(first)]
    one = found[0]
    return Matches(
        points0=points0[kept],
        points1=points1[kept],
        scores=scores[kept],
        size0=one.size0,
        size1=one.size1,
        method=one.method,
    )


def dense_region(points: NDArray[np.float32], size: tuple[int, int], num_bins: int = 16) -> Box:
    """The box around the largest crowd among `points` (N, 2) of an image of `size` (width, height), N at least 1.

    The long side is cut into `num_bins` bins. Those that hold at least a quarter of what occupied bins hold on
    average hang together where they touch; the group with most points is the crowd, and a bin of margin is added.
    """
    step = max(size) / num_bins
    columns, rows = (int(np.ceil(side / step)) for side in size)
    place = np.clip(np.floor((points + 0.5) / step).astype(int), 0, (columns - 1, rows - 1))
    counts = np.zeros((rows, columns))
    np.add.at(counts, (place[:, 1], place[:, 0]), 1)
    crowded = counts >= 0.25 * counts[counts > 0].mean()
    num_groups, groups = cv2.connectedComponents(crowded.astype(np.uint8), connectivity=8)
    held = [counts[groups == group].sum() for group in range(1, num_groups)]
    y, x = np.nonzero(groups == 1 + int(np.argmax(held)))
    return Box(
        max(0, int((x.min() - 1) * step)),
        max(0, int((y.min() - 1) * step)),
        min(size[0], int(np.ceil((x.max() + 2) * step))),
        min(size[1], int(np.ceil((y.max() + 2) * step))),
    )


def tiles(size: tuple[int, int], tile_px: int, overlap_px: int) -> list[Box]:
    """Squares of `tile_px` that cover an image of `size` (width, height), row by row, the last flush with it."""
    starts = [
        [min(start, max(0, side - tile_px)) for start in range(0, max(1, side - overlap_px), tile_px - overlap_px)]
        for side in size
    ]
    return [
        Box(left, top, min(size[0], left + tile_px), min(size[1], top + tile_px))
        for top in starts[1]
        for left in starts[0]
    ]


def within(points: NDArray[np.float32], box: Box) -> NDArray[np.bool_]:
    """Where points lie on the pixels of `box`."""
    x, y = points[:, 0] + 0.5, points[:, 1] + 0.5
    inside: NDArray[np.bool_] = (x >= box.left) & (x < box.right) & (y >= box.top) & (y < box.bottom)
    return inside


def _full_size(points: NDArray[np.float32], seen: View[Encoding]) -> NDArray[np.float32]:
    corner = np.array([seen.box.left, seen.box.top])
    moved: NDArray[np.float32] = (seen.resize_map.to_original(points) + corner).astype(np.float32)
    return moved


def _check_positive(*values: float | None) -> None:
    if any(value is not None and value <= 0 for value in values):
        raise ValueError(f"expected sizes, counts and distances above 0, got {values}")


def looking(build: Callable[[MatcherOptions], Matcher[Any]], options: MatcherOptions) -> Matcher[Any]:
    """The matcher that `build` makes, looking as `options.look` says.

    `options.max_size_px` is then of the largest look: the region that both images show (1120 px by default, the whole
    images at 4/7 and 3/4 of that), or a tile (1024 px).
    """
    if options.look == "multiscale":
        largest = options.max_size_px or 1120
        sizes = MultiscaleOptions(sizes_px=(largest * 4 // 7, largest * 3 // 4), region_size_px=largest)
        return Multiscale(build(replace(options, max_size_px=largest, max_enlargement=1)), sizes)
    if options.look == "tiled":
        tile = options.max_size_px or 1024
        tiles = TileOptions(tile_px=tile, guide_size_px=min(tile, 840), overlap_px=min(64, tile // 2))
        return Tiled(build(replace(options, max_size_px=2 * tile, max_enlargement=1)), tiles)
    return build(options)
