"""What every matcher is: encode each image once, match as many pairs as needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, Protocol, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry import Features, Matches
from tiepoint.images import Image

Encoding = TypeVar("Encoding")
Precision = Literal["fp32", "bf16", "fp16"]
Search = Literal["exact", "flann"]
Look = Literal["once", "multiscale", "tiled"]


class Matcher(ABC, Generic[Encoding]):
    """Finds the same points in two images.

    `encode` does all that depends on one image alone, `match` all that depends on the pair. Both answer any
    image: a blank or tiny one has an encoding, which matches nothing.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The method's name in the catalogue."""

    @abstractmethod
    def encode(self, image: Image) -> Encoding:
        """All that `match` needs to know of one image."""

    @abstractmethod
    def match(self, encoding0: Encoding, encoding1: Encoding) -> Matches:
        """The matches between two encoded images, in pixels of the full-size images."""

    def encode_batch(self, images: Sequence[Image]) -> list[Encoding]:
        """`encode` for each image; networks run images of one size together."""
        return [self.encode(image) for image in images]

    def __call__(self, image0: Image, image1: Image) -> Matches:
        encoding0, encoding1 = self.encode_batch([image0, image1])
        return self.match(encoding0, encoding1)


class Extractor(Protocol):
    """Detects and describes the keypoints of one image."""

    def extract(self, image: Image) -> Features: ...

    def extract_batch(self, images: Sequence[Image]) -> list[Features]: ...


@dataclass(frozen=True, eq=False)
class IndexMatches:
    """Matches as rows of two sets of features.

    indices: (M, 2) int64, row of image 0's features and row of image 1's; each row occurs once at most.
    scores: (M,) float32 in [0, 1].
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]


class FeatureMatcher(Protocol):
    """Finds which keypoints of two images are the same."""

    def match_features(self, features0: Features, features1: Features) -> IndexMatches: ...


class SparseMatcher(Matcher[Features]):
    """Keypoints from an extractor, matched by a feature matcher: SIFT and nearest neighbours, for one."""

    def __init__(self, name: str, extractor: Extractor, feature_matcher: FeatureMatcher) -> None:
        self._name = name
        self.extractor = extractor
        self.feature_matcher = feature_matcher

    @property
    def name(self) -> str:
        return self._name

    def encode(self, image: Image) -> Features:
        return self.extractor.extract(image)

    def encode_batch(self, images: Sequence[Image]) -> list[Features]:
        return self.extractor.extract_batch(images)

    def match(self, encoding0: Features, encoding1: Features) -> Matches:
        found = self.feature_matcher.match_features(encoding0, encoding1)
        return Matches(
            points0=encoding0.keypoints[found.indices[:, 0]],
            points1=encoding1.keypoints[found.indices[:, 1]],
            scores=found.scores,
            size0=encoding0.image_size,
            size1=encoding1.image_size,
            method=self.name,
        )


@dataclass(frozen=True, kw_only=True)
class MatcherOptions:
    """What a user may set of any method; None leaves the method's own default.

    max_size_px: long side of the image a method works on; coordinates are those of the full-size image still.
    max_enlargement: of a smaller image, up to that long side (SuperPoint and LoFTR enlarge; the others never do).
    max_num_keypoints: the most keypoints per image (sparse methods) or samples per pair (dense ones).
    weights: a name of the weights catalogue, or a file (learned methods).
    device: "cpu", "cuda", "cuda:1", "mps" (learned methods).
    precision: number type of the networks (learned methods).
    search: of nearest neighbours of classical descriptors: exact, or approximate by FLANN.
    commercial_only: refuse weights, by name or published file name, whose licence forbids commercial use.
    refine: move each match to where the two pictures agree, to a fraction of a pixel (`least_squares_matching`).
    four_way: match at any in-plane rotation with methods that hold to 45 degrees (`four_way.FourWay`); None: where
        photographs are registered, and not where they are matched.
    look: once; at several sizes and again at the region both images show; or tile by tile (`multiscale.looking`).
    Raises ValueError for counts below 1 and for words that are none of a setting's.
    """

    max_size_px: int | None = None
    max_enlargement: float | None = None
    max_num_keypoints: int | None = None
    weights: str | None = None
    device: str = "cpu"
    precision: Precision = "fp32"
    refine: bool = True
    four_way: bool | None = None
    look: Look = "once"
    commercial_only: bool = False
    search: Search = "exact"

    def __post_init__(self) -> None:
        check_at_least_1(self, "max_size_px", "max_enlargement", "max_num_keypoints")
        for name, words in (("precision", Precision), ("look", Look), ("search", Search)):
            if getattr(self, name) not in get_args(words):
                raise ValueError(f"{name}: expected one of {', '.join(get_args(words))}, got {getattr(self, name)!r}")

    def at_any_rotation(self) -> MatcherOptions:
        """These, `four_way` unless that was refused."""
        return replace(self, four_way=self.four_way is not False)


def check_at_least_1(options: object, *names: str) -> None:
    """Raise ValueError where a field of `options` is a number below 1; None is no number."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
