"""One file per published method, on the protocol of `base.py`; `catalogue.py` finds them by name."""

from tiepoint.matchers.base import (
    Extractor,
    FeatureMatcher,
    IndexMatches,
    Matcher,
    MatcherOptions,
    SparseMatcher,
)
from tiepoint.matchers.catalogue import METHODS, Method, MethodUnavailable, matcher
from tiepoint.matchers.nearest import Flann, NearestNeighbours
from tiepoint.matchers.orb import Orb
from tiepoint.matchers.sift import Sift

__all__ = [
    "METHODS",
    "Extractor",
    "FeatureMatcher",
    "Flann",
    "IndexMatches",
    "Matcher",
    "MatcherOptions",
    "Method",
    "MethodUnavailable",
    "NearestNeighbours",
    "Orb",
    "Sift",
    "SparseMatcher",
    "matcher",
]
