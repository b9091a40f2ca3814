"""Four quarter turns: the best is found and mapped back exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from tiepoint.geometry import Features, Matches
from tiepoint.images import Image
from tiepoint.matchers.base import Matcher, MatcherOptions, SparseMatcher
from tiepoint.matchers.catalogue import matcher
from tiepoint.matchers.four_way import FourWay, turned_back
from tiepoint.matchers.nearest import NearestNeighbours
from tiepoint.matchers.sift import Sift


class ByPatch(Matcher[Features]):
    """A matcher that does not turn: keypoints at the brightest pixels, described by the 5 x 5 around them."""

    def __init__(self) -> None:
        self.encoded: list[tuple[int, int]] = []

    @property
    def name(self) -> str:
        return "by-patch"

    def encode(self, image: Image) -> Features:
        self.encoded.append(image.size)
        inside = image.pixels[2:-2, 2:-2]
        rows, columns = np.unravel_index(np.argsort(-inside, axis=None)[:40], inside.shape)
        patches = [image.pixels[y : y + 5, x : x + 5].ravel() for y, x in zip(rows, columns, strict=True)]
        return Features(
            keypoints=np.stack([columns + 2, rows + 2], 1).astype(np.float32),
            scores=np.ones(len(rows), np.float32),
            descriptors=np.array(patches, np.float32).reshape(-1, 25),
            image_size=image.size,
        )

    def encode_batch(self, images: Sequence[Image]) -> list[Features]:
        return [self.encode(image) for image in images]

    def match(self, encoding0: Features, encoding1: Features) -> Matches:
        return SparseMatcher("by-patch", Sift(), NearestNeighbours(ratio=0.5)).match(encoding0, encoding1)


@pytest.fixture
def image() -> Image:
    return Image(np.random.default_rng(0).random((37, 53), np.float32))


@pytest.mark.parametrize("turns", range(4))
def test_any_quarter_turn_is_mapped_back_exactly(image: Image, turns: int) -> None:
    turned = dataclasses.replace(image, pixels=np.rot90(image.pixels, -turns).copy())
    matches = FourWay(ByPatch())(image, turned)
    assert len(matches) == 40
    assert matches.size0 == image.size
    assert matches.size1 == turned.size
    x0, y0 = matches.points0.astype(int).T
    x1, y1 = matches.points1.astype(int).T
    assert np.array_equal(image.pixels[y0, x0], turned.pixels[y1, x1])
    assert matches.method == "by-patch"


def test_encodings_are_those_of_the_protocol(image: Image) -> None:
    matcher = FourWay(ByPatch())
    encoding0, encoding1 = matcher.encode_batch([image, image])
    assert np.array_equal(matcher.match(encoding0, encoding1).points1, matcher(image, image).points1)


def test_a_pair_takes_five_encodings(image: Image) -> None:
    inner = ByPatch()
    FourWay(inner)(image, image)
    assert inner.encoded == [(53, 37), (53, 37), (37, 53), (53, 37), (37, 53)]


@pytest.mark.parametrize("turns", range(4))
def test_points_turned_back(turns: int) -> None:
    index = np.arange(5 * 8).reshape(5, 8)
    turned = np.rot90(index, turns)
    rows, columns = np.indices(turned.shape).reshape(2, -1)
    points = turned_back(np.stack([columns, rows], 1).astype(np.float32), turns, (8, 5))
    assert np.array_equal(index[points[:, 1].astype(int), points[:, 0].astype(int)], turned.ravel())
    assert points.dtype == np.float32


def test_nothing_matches_a_blank_image(image: Image) -> None:
    sift = SparseMatcher("sift", Sift(), NearestNeighbours())
    blank = Image(np.zeros((1, 9), np.uint8))
    matches = FourWay(sift)(image, blank)
    assert len(matches) == 0
    assert matches.size1 == (9, 1)


@pytest.mark.parametrize("turns", range(4))
def test_a_voter_spares_the_turns_it_speaks_against(turns: int) -> None:
    rng = np.random.default_rng(1)
    picture = cv2.resize(rng.integers(0, 256, (12, 16), np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC)
    inner, sift = ByPatch(), SparseMatcher("sift", Sift(), NearestNeighbours())
    turned = Image(np.rot90(picture, -turns).copy())
    matches = FourWay(inner, sift)(Image(picture), turned)
    assert inner.encoded == [(320, 240), (320, 240)]  # image 1 turned back is as wide as image 0
    x1, y1 = matches.points1.astype(int).T
    assert len(matches) > 5
    assert np.array_equal(
        turned.pixels[y1, x1], picture[matches.points0[:, 1].astype(int), matches.points0[:, 0].astype(int)]
    )


@pytest.mark.parametrize(("angle_deg", "tried"), [(20, {0}), (40, {0, 1}), (-40, {0, 3}), (140, {1, 2}), (-160, {2})])
def test_between_two_turns_both_are_tried(angle_deg: float, tried: set[int]) -> None:
    rng = np.random.default_rng(1)
    picture = cv2.resize(rng.integers(0, 256, (24, 24), np.uint8), (240, 240), interpolation=cv2.INTER_CUBIC)
    clockwise = cv2.getRotationMatrix2D((119.5, 119.5), -angle_deg, 1)
    four_way = FourWay(ByPatch(), SparseMatcher("sift", Sift(), NearestNeighbours()))
    encoding0, encoding1 = four_way.encode_batch(
        [Image(picture), Image(cv2.warpAffine(picture, clockwise, (240, 240)))]
    )
    four_way.match(encoding0, encoding1)
    assert encoding1.encodings.keys() == tried


def test_without_a_clear_vote_all_turns_are_tried(image: Image) -> None:
    inner = ByPatch()
    FourWay(inner, SparseMatcher("sift", Sift(), NearestNeighbours()))(image, Image(np.zeros((9, 9), np.uint8)))
    assert len(inner.encoded) == 5


def test_only_methods_that_do_not_turn_are_made_to() -> None:
    asked, refused, silent = (MatcherOptions(four_way=choice, refine=False) for choice in (True, False, None))
    assert isinstance(matcher("superpoint", asked), FourWay)
    for method, options in (("superpoint", silent), ("superpoint", refused.at_any_rotation()), ("sift", asked)):
        assert isinstance(matcher(method, options), SparseMatcher)
    assert silent.at_any_rotation() == asked
