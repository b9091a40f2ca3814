"""One file per published method, on the protocol of `base.py`."""

from tiepoint.matchers.base import (
    Extractor,
    FeatureMatcher,
    IndexMatches,
    Matcher,
    MatcherOptions,
    SparseMatcher,
)

__all__ = ["Extractor", "FeatureMatcher", "IndexMatches", "Matcher", "MatcherOptions", "SparseMatcher"]
