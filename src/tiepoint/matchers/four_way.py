"""Any in-plane rotation for methods that do not turn: match image 1 upright and turned, keep the best."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Matches
from tiepoint.images import Image
from tiepoint.matchers.base import Matcher

Encoding = TypeVar("Encoding")
NUM_TURNS = 4


@dataclass(frozen=True, eq=False)
class FourWayEncoding(Generic[Encoding]):
    """turns: encodings of the image turned by 0, 90, 180 and 270 degrees counter-clockwise.

    size: (width, height) of the upright image.
    """

    turns: tuple[Encoding, ...]
    size: tuple[int, int]


class FourWay(Matcher[FourWayEncoding[Encoding]]):
    """A matcher that tries image 1 at four quarter turns and answers with the highest sum of scores.

    Methods that hold to 45 degrees of rotation so match at any. It takes four times the matching, and five
    encodings for a pair.
    """

    def __init__(self, matcher: Matcher[Encoding]) -> None:
        self.matcher = matcher

    @property
    def name(self) -> str:
        return self.matcher.name

    def encode(self, image: Image) -> FourWayEncoding[Encoding]:
        turned = [replace(image, pixels=np.ascontiguousarray(np.rot90(image.pixels, k))) for k in range(NUM_TURNS)]
        return FourWayEncoding(tuple(self.matcher.encode_batch(turned)), image.size)

    def match(self, encoding0: FourWayEncoding[Encoding], encoding1: FourWayEncoding[Encoding]) -> Matches:
        return self._best(encoding0.turns[0], encoding1)

    def __call__(self, image0: Image, image1: Image) -> Matches:
        return self._best(self.matcher.encode(image0), self.encode(image1))

    def _best(self, encoding0: Encoding, encoding1: FourWayEncoding[Encoding]) -> Matches:
        found = [self.matcher.match(encoding0, turned) for turned in encoding1.turns]
        best = int(np.argmax([matches.scores.sum() for matches in found]))
        points1 = turned_back(found[best].points1, best, encoding1.size)
        return replace(found[best], points1=points1, size1=encoding1.size)


def turned_back(points: NDArray[np.float32], num_turns: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """(N, 2) points of an image turned by `num_turns` times 90 degrees counter-clockwise, in the upright one.

    size: (width, height) of the upright image.
    """
    right, bottom = np.float32(size[0] - 1), np.float32(size[1] - 1)
    x, y = points[:, 0], points[:, 1]
    upright = [(x, y), (right - y, x), (right - x, bottom - y), (y, bottom - x)][num_turns]
    return np.stack(upright, axis=1)
