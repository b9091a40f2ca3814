"""What is evaluated: methods of the catalogue, and an oracle that shows what the measures say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tiepoint.evaluation.pairs import ImagePair
from tiepoint.evaluation.sources import Frame
from tiepoint.geometry import Matches
from tiepoint.matchers import METHODS, Matcher, MatcherOptions, matcher


@dataclass(frozen=True, eq=False)
class Encoded:
    """A picture with its encoding, what made that, and the seconds it took, reading not counted."""

    frame: Frame
    encoding: Any
    encoder: Encoder
    seconds: float


class Contestant(ABC):
    """What is evaluated. Travels to worker processes, so it holds settings; `prepare` builds the rest there."""

    name: str

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that its results depend on."""

    @abstractmethod
    def prepare(self) -> Encoder:
        """Ready to encode and match."""


class Encoder(ABC):
    """A contestant at work."""

    @abstractmethod
    def encode(self, frame: Frame) -> Any: ...

    @abstractmethod
    def match(self, pair: ImagePair, encoded0: Encoded, encoded1: Encoded) -> Matches: ...


@dataclass(frozen=True)
class CatalogueMethod(Contestant):
    """A method of the catalogue, called ", four-way" where that makes it turn."""

    method: str
    options: MatcherOptions

    @property
    def name(self) -> str:  # type: ignore[override]
        made_to_turn = self.options.four_way and not METHODS[self.method].turns
        return f"{self.method}, four-way" if made_to_turn else self.method

    def settings(self) -> dict[str, Any]:
        return {"method": self.method, **asdict(self.options)}

    def prepare(self) -> Encoder:
        return CatalogueEncoder(matcher(self.method, self.options))


@dataclass(frozen=True)
class CatalogueEncoder(Encoder):
    """A matcher of the catalogue at work."""

    matcher: Matcher[Any]

    def encode(self, frame: Frame) -> Any:
        return self.matcher.encode(frame.image)

    def match(self, pair: ImagePair, encoded0: Encoded, encoded1: Encoded) -> Matches:
        return self.matcher.match(encoded0.encoding, encoded1.encoding)


@dataclass(frozen=True)
class Oracle(Contestant, Encoder):
    """True correspondences with Gaussian noise of `noise_px` in x and y of image 1: what the metrics must say."""

    noise_px: float
    count: int = 1000
    seed: int = 0

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"oracle, noise {self.noise_px:g} px"

    def settings(self) -> dict[str, Any]:
        return {"method": "oracle", **asdict(self)}

    def prepare(self) -> Encoder:
        return self

    def encode(self, frame: Frame) -> None:
        return None

    def match(self, pair: ImagePair, encoded0: Encoded, encoded1: Encoded) -> Matches:
        rng = np.random.default_rng([self.seed, *pair.key.encode()])
        return pair.true_matches(encoded0.frame, encoded1.frame, count=self.count, noise_px=self.noise_px, rng=rng)
