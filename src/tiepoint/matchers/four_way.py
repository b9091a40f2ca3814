"""Any in-plane rotation for methods that do not turn: match image 1 upright and turned, keep the best."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Features, Matches
from tiepoint.geometry.rotation_vote import relative_rotation
from tiepoint.images import GrayLevel, Image
from tiepoint.matchers.base import Matcher, SparseMatcher

Encoding = TypeVar("Encoding")
NUM_TURNS = 4
_FEWEST_VOTES = 10
_LEAST_SUPPORT = 0.6
_REACH_DEG = 60.0  # the methods hold to 45; beyond 30 from one turn, the next may be the better


@dataclass(frozen=True, eq=False)
class Turns(Generic[Encoding]):
    """An image, its encodings when turned, each made when it is first asked for, and the voter's features of it.

    gray_levels: as in Features.
    """

    image: Image
    matcher: Matcher[Encoding]
    oriented: Features | None
    encodings: dict[int, Encoding] = field(default_factory=dict)
    gray_levels: tuple[GrayLevel, ...] | None = None

    def turned(self, num_turns: int) -> Encoding:
        """The encoding of the image turned by `num_turns` times 90 degrees counter-clockwise."""
        if num_turns not in self.encodings:
            pixels = np.ascontiguousarray(np.rot90(self.image.pixels, num_turns))
            self.encodings[num_turns] = self.matcher.encode(replace(self.image, pixels=pixels))
        return self.encodings[num_turns]


class FourWay(Matcher[Turns[Encoding]]):
    """A matcher that tries image 1 at four quarter turns and answers with the highest sum of scores.

    Methods that hold to 45 degrees of rotation so match at any. It takes four times the matching, and five
    encodings for a pair; with a voter, as a rule, what the method itself takes and the voter.

    voter: a method whose keypoints have an orientation. Where its matches agree on the rotation (six of ten
    within 22.5 degrees, ten at least), only quarter turns within 60 degrees of it are tried, one or two: not the
    angle itself, for that resamples the picture, where quarters map its pixels and the points back exactly.
    """

    def __init__(self, matcher: Matcher[Encoding], voter: SparseMatcher | None = None) -> None:
        self.matcher, self.voter = matcher, voter

    @property
    def name(self) -> str:
        return self.matcher.name

    def encode(self, image: Image) -> Turns[Encoding]:
        return Turns(image, self.matcher, self.voter.encode(image) if self.voter else None)

    def match(self, encoding0: Turns[Encoding], encoding1: Turns[Encoding]) -> Matches:
        turns = self._turns_to_try(encoding0, encoding1)
        found = [self.matcher.match(encoding0.turned(0), encoding1.turned(turn)) for turn in turns]
        best = int(np.argmax([matches.scores.sum() for matches in found]))
        points1 = turned_back(found[best].points1, turns[best], encoding1.image.size)
        return replace(found[best], points1=points1, size1=encoding1.image.size)

    def _turns_to_try(self, encoding0: Turns[Encoding], encoding1: Turns[Encoding]) -> tuple[int, ...]:
        oriented0, oriented1 = encoding0.oriented, encoding1.oriented
        if self.voter is None or oriented0 is None or oriented1 is None:
            return tuple(range(NUM_TURNS))
        indices = self.voter.feature_matcher.match_features(oriented0, oriented1).indices
        vote = relative_rotation(oriented0, oriented1, indices)
        if vote is None or vote.num_votes < _FEWEST_VOTES or vote.support < _LEAST_SUPPORT:
            return tuple(range(NUM_TURNS))
        # Image 1 is turned clockwise and goes back the other way.
        left = {turn: abs((vote.angle_deg - 90 * turn + 180) % 360 - 180) for turn in range(NUM_TURNS)}
        return tuple(turn for turn in range(NUM_TURNS) if left[turn] <= _REACH_DEG)


def turned_back(points: NDArray[np.float32], num_turns: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """(N, 2) points of an image turned by `num_turns` times 90 degrees counter-clockwise, in the upright one.

    size: (width, height) of the upright image.
    """
    right, bottom = np.float32(size[0] - 1), np.float32(size[1] - 1)
    x, y = points[:, 0], points[:, 1]
    upright = [(x, y), (right - y, x), (right - x, bottom - y), (y, bottom - x)][num_turns]
    return np.stack(upright, axis=1)
