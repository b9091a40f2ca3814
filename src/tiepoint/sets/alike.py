"""Which photographs of a set show the same: told by a glance at small copies of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from tiepoint.geometry import Features
from tiepoint.images import ImageError, read_image
from tiepoint.matchers import NearestNeighbours, Sift, SparseMatcher
from tiepoint.sets.pairs import Pair, all_pairs

_GLANCE = SparseMatcher("sift", Sift(max_num_keypoints=256, max_size_px=480), NearestNeighbours(ratio=0.75))
_FEWEST_MATCHES = 8  # photographs of different things share one or two by chance, rarely six


def alike_pairs(
    folder: Path,
    names: Sequence[str],
    count: int,
    *,
    max_pixels: int,
    progress: Callable[[int], object] = lambda _: None,
) -> tuple[list[Pair], dict[str, str]]:
    """Each photograph with the `count` that share most SIFT matches with it at a glance, if eight or more.

    Every pair is looked at, in less than a millisecond: a thousand photographs take some eight minutes. Returns the
    pairs, and why photographs are in none, by name. progress: called with the number of pairs looked at since.
    """
    features: dict[str, Features] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            features[name] = _GLANCE.encode(read_image(folder / name, max_pixels=max_pixels))
        except ImageError as error:
            left_out[name] = str(error)
    shared: dict[str, dict[Pair, int]] = defaultdict(dict)
    for pair in all_pairs(names):
        if left_out.keys().isdisjoint(pair):
            num_matches = len(_GLANCE.match(features[pair[0]], features[pair[1]]))
            if num_matches >= _FEWEST_MATCHES:
                for name in pair:
                    shared[name][pair] = num_matches
        progress(1)
    chosen = {pair for of_image in shared.values() for pair in sorted(of_image, key=lambda p: -of_image[p])[:count]}
    for name in names:
        if name not in shared and name not in left_out:
            left_out[name] = f"{folder / name}: shares next to nothing with any other, at a glance"
    return sorted(chosen), left_out
