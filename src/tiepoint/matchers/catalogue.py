"""The methods by name: what each is, what it needs, how it is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tiepoint.matchers.base import FeatureMatcher, Matcher, MatcherOptions, SparseMatcher
from tiepoint.matchers.four_way import FourWay
from tiepoint.matchers.least_squares_matching import Refined
from tiepoint.matchers.multiscale import looking
from tiepoint.matchers.nearest import Flann, NearestNeighbours
from tiepoint.matchers.orb import Orb
from tiepoint.matchers.sift import Sift
from tiepoint.weights import known_weights


@dataclass(frozen=True, kw_only=True)
class Method:
    """An entry of the catalogue.

    name: what a user asks for. summary: one line. kind: sparse, semi-dense or dense.
    licence: of the method's code here and of its default weights. needs_torch: whether the extra `learned` must
    be installed. turns: whether it matches at any in-plane rotation by itself; the others hold to 45 degrees.
    build: makes the matcher; imports what it needs only then.
    """

    name: str
    summary: str
    kind: str
    licence: str
    needs_torch: bool
    turns: bool
    build: Callable[[MatcherOptions], Matcher[Any]]


class MethodUnavailable(RuntimeError):
    """A method whose packages are not installed; the message says what to install."""


def matcher(name: str, options: MatcherOptions | None = None) -> Matcher[Any]:
    """The matcher called `name`, set up by `options`.

    Raises ValueError for an unknown name, listing those there are, and for weights of another method; WeightsError
    when its weights are not on this machine; MethodUnavailable when a package it needs is not installed.
    """
    method = METHODS.get(name)
    if method is None:
        raise ValueError(f"unknown method {name!r}; there are: {', '.join(METHODS)}")
    if method.needs_torch and find_spec("torch") is None:
        raise MethodUnavailable(f"method {name!r} needs PyTorch: pip install 'tiepoint[learned]'")
    options = options or MatcherOptions()
    if options.weights is not None and method.needs_torch:  # the others have none: one option serves several methods
        _check_weights(name, options.weights, commercial_only=options.commercial_only)
    built = looking(method.build, options)
    if options.four_way and not method.turns:
        built = FourWay(built, voter=SparseMatcher("sift", Sift(), NearestNeighbours()))
    return Refined(built) if options.refine else built


def _check_weights(method: str, weights: str, *, commercial_only: bool) -> None:
    """Raise ValueError for known weights, by name or published file name, that `method` may not or cannot use.

    weights: of the method, or "SUPERPOINT+SUPERGLUE".
    """
    entries = [known_weights(part) for part in ([weights] if Path(weights).exists() else weights.split("+", 1))]
    for entry, takes in zip(entries, ("superpoint", method)[-len(entries) :], strict=True):
        if entry is None:
            continue
        if entry.method != takes:
            raise ValueError(f"weights {entry.name}: they are of {entry.method}, not of {takes}")
        if commercial_only and not entry.commercial_use:
            raise ValueError(f"weights {entry.name}: their licence forbids commercial use: {entry.licence}")


def _build_sift(options: MatcherOptions) -> Matcher[Any]:
    extractor = Sift(
        max_num_keypoints=options.max_num_keypoints or Sift.max_num_keypoints,
        max_size_px=options.max_size_px or Sift.max_size_px,
    )
    return SparseMatcher("sift", extractor, _search(options))


def _build_orb(options: MatcherOptions) -> Matcher[Any]:
    extractor = Orb(
        max_num_keypoints=options.max_num_keypoints or Orb.max_num_keypoints,
        max_size_px=options.max_size_px or Orb.max_size_px,
    )
    return SparseMatcher("orb", extractor, _search(options))


def _search(options: MatcherOptions) -> FeatureMatcher:
    return Flann() if options.search == "flann" else NearestNeighbours()


def _build_superpoint(options: MatcherOptions) -> Matcher[Any]:
    from tiepoint.matchers.superpoint_extractor import build_superpoint

    return build_superpoint(options)


def _build_superpoint_superglue(options: MatcherOptions) -> Matcher[Any]:
    from tiepoint.matchers.superglue_matcher import build_superpoint_superglue

    return build_superpoint_superglue(options)


def _build_sift_superglue(options: MatcherOptions) -> Matcher[Any]:
    from tiepoint.matchers.superglue_matcher import build_sift_superglue

    return build_sift_superglue(options)


def _build_orb_superglue(options: MatcherOptions) -> Matcher[Any]:
    from tiepoint.matchers.superglue_matcher import build_orb_superglue

    return build_orb_superglue(options)


def _build_loftr(options: MatcherOptions) -> Matcher[Any]:
    from tiepoint.matchers.loftr import build_loftr

    return build_loftr(options)


def _build_relf(options: MatcherOptions) -> Matcher[Any]:
    from tiepoint.matchers.relf import build_relf

    return build_relf(options)


def _build_roma(options: MatcherOptions) -> Matcher[Any]:
    from tiepoint.matchers.roma import build_roma

    return build_roma(options)


def _build_roma_small(options: MatcherOptions) -> Matcher[Any]:
    from tiepoint.matchers.roma import build_roma_small

    return build_roma_small(options)


_ALL = (
    Method(
        name="sift",
        summary="SIFT keypoints, RootSIFT descriptors, exact mutual nearest neighbours with ratio test",
        kind="sparse",
        licence="Apache-2.0 (OpenCV)",
        needs_torch=False,
        turns=True,
        build=_build_sift,
    ),
    Method(
        name="orb",
        summary="ORB keypoints and bits, exact mutual nearest neighbours with ratio test",
        kind="sparse",
        licence="Apache-2.0 (OpenCV)",
        needs_torch=False,
        turns=True,
        build=_build_orb,
    ),
    Method(
        name="superpoint",
        summary="SuperPoint keypoints and descriptors, exact mutual nearest neighbours",
        kind="sparse",
        licence="Apache-2.0; weights as `tiepoint weights list` says",
        needs_torch=True,
        turns=False,
        build=_build_superpoint,
    ),
    Method(
        name="superpoint+superglue",
        summary="SuperPoint keypoints, matched by the attention network SuperGlue",
        kind="sparse",
        licence="Apache-2.0; weights as `tiepoint weights list` says",
        needs_torch=True,
        turns=False,
        build=_build_superpoint_superglue,
    ),
    Method(
        name="sift+superglue",
        summary="SIFT keypoints, matched by SuperGlue",
        kind="sparse",
        licence="Apache-2.0; weights as `tiepoint weights list` says",
        needs_torch=True,
        turns=True,
        build=_build_sift_superglue,
    ),
    Method(
        name="orb+superglue",
        summary="ORB keypoints and bits, matched by SuperGlue",
        kind="sparse",
        licence="Apache-2.0; weights as `tiepoint weights list` says",
        needs_torch=True,
        turns=True,
        build=_build_orb_superglue,
    ),
    Method(
        name="loftr",
        summary="LoFTR: semi-dense matches by a transformer, without keypoints",
        kind="semi-dense",
        licence="Apache-2.0; weights as `tiepoint weights list` says",
        needs_torch=True,
        turns=False,
        build=_build_loftr,
    ),
    Method(
        name="roma",
        summary="RoMa: a dense warp with its certainty (DINOv2 and VGG19 features)",
        kind="dense",
        licence="Apache-2.0; weights as `tiepoint weights list` says",
        needs_torch=True,
        turns=False,
        build=_build_roma,
    ),
    Method(
        name="roma-small",
        summary="RoMa in a small configuration that needs no DINOv2",
        kind="dense",
        licence="Apache-2.0; weights as `tiepoint weights list` says",
        needs_torch=True,
        turns=False,
        build=_build_roma_small,
    ),
    Method(
        name="relf",
        summary="RELF: rotation-equivariant descriptors with group aligning, at SIFT keypoints",
        kind="sparse",
        licence="Apache-2.0; weights as `tiepoint weights list` says",
        needs_torch=True,
        turns=True,
        build=_build_relf,
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
