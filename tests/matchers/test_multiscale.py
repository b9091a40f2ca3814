"""Matching again at other sizes, in the region both images show, and in tiles."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tiepoint.geometry import Matches
from tiepoint.images import Image
from tiepoint.matchers import matcher
from tiepoint.matchers.base import Matcher, MatcherOptions
from tiepoint.matchers.multiscale import (
    Box,
    Multiscale,
    MultiscaleOptions,
    Tiled,
    TileOptions,
    dense_region,
    join,
    looking,
    tiles,
    within,
)


class Reader(Matcher[Image]):
    """Matches by reading: the pixels hold the scene's coordinates, (x, y, whether it is scene)."""

    def __init__(self, step=7):
        self.step = step
        self.sizes = []

    @property
    def name(self):
        return "reader"

    def encode(self, image):
        self.sizes.append(image.size)
        return image

    def match(self, encoding0, encoding1):
        y, x = np.mgrid[2 : encoding0.height - 2 : self.step, 2 : encoding0.width - 2 : self.step].reshape(2, -1)
        scene = encoding0.pixels[y, x]
        on = scene[:, 2] > 0.999
        points0, scene = np.stack([x, y], 1)[on], scene[on, :2]
        other = encoding1.pixels
        slope = (other[1:, 1:, :2] - other[:-1, :-1, :2]).reshape(-1, 2).max(0) if other.shape[0] > 1 else 1
        points1 = (scene - other[0, 0, :2]) / np.maximum(slope, 1e-9)
        inside = ((points1 >= 2) & (points1 <= np.array(encoding1.size) - 3)).all(axis=1)
        at = np.rint(points1[inside]).astype(int)
        on1 = other[at[:, 1], at[:, 0], 2] > 0.999
        points0, points1 = points0[inside][on1], points1[inside][on1]
        return Matches(
            points0=points0.astype(np.float32),
            points1=points1.astype(np.float32),
            scores=np.full(len(points0), 0.5, np.float32),
            size0=encoding0.size,
            size1=encoding1.size,
            method="reader",
        )


def coordinates(size, origin=(0.0, 0.0), scale=1.0, scene=None):
    """An image of `size` whose pixel (x, y) sees origin + scale (x, y); `scene` (a Box) is what counts."""
    y, x = np.mgrid[: size[1], : size[0]].astype(np.float32)
    on = np.ones_like(x)
    if scene is not None:
        on = within(np.stack([x.ravel(), y.ravel()], 1), scene).reshape(x.shape).astype(np.float32)
    return Image(np.stack([origin[0] + scale * x, origin[1] + scale * y, on], axis=-1).astype(np.float32))


def assert_right(matches, origin, scale, atol=0.05):
    np.testing.assert_allclose(origin + scale * matches.points1, matches.points0, atol=atol)


def test_matches_of_all_sizes_are_in_full_size_pixels():
    image0, image1 = coordinates((400, 300)), coordinates((400, 200), origin=(50, 40))
    reader = Reader()
    matches = Multiscale(reader, MultiscaleOptions(sizes_px=(200, 400), region_size_px=None))(image0, image1)
    assert len(matches) > 100
    assert_right(matches, (50, 40), 1)
    assert matches.size0 == (400, 300)
    assert matches.size1 == (400, 200)
    assert matches.method == "reader, multiscale"
    assert reader.sizes == [(200, 150), (400, 300), (200, 100), (400, 200)]


def test_the_shared_region_is_matched_again_closer():
    scene = Box(200, 100, 280, 160)
    image0 = coordinates((400, 300), scene=scene)
    image1 = coordinates((400, 300), origin=(100, 50))
    reader = Reader(step=5)
    once = Multiscale(reader, MultiscaleOptions(sizes_px=(400,), region_size_px=None))(image0, image1)
    reader.sizes.clear()
    again = Multiscale(reader, MultiscaleOptions(sizes_px=(400,), region_size_px=250))(image0, image1)
    assert len(again) > 1.5 * len(once)
    assert_right(again, (100, 50), 1, atol=0.3)
    assert all(max(size) == 250 for size in reader.sizes[2:])


def test_small_images_are_enlarged_twofold_at_most():
    reader = Reader()
    Multiscale(reader, MultiscaleOptions(sizes_px=(100, 1000))).encode(coordinates((60, 40)))
    assert reader.sizes == [(100, 67), (120, 80)]


def test_tiles_are_matched_at_full_size():
    image0, image1 = coordinates((500, 420)), coordinates((450, 400), origin=(30, 20))
    reader = Reader()
    options = TileOptions(guide_size_px=150, tile_px=200, overlap_px=20)
    matches = Tiled(reader, options)(image0, image1)
    assert_right(matches, (30, 20), 1)
    assert len(matches) > 4 * len(reader.match(*(Image(cv2.resize(i.pixels, (150, 130))) for i in (image0, image1))))
    assert max(max(size) for size in reader.sizes) <= 400


def test_tiles_cover_every_pixel_and_no_more():
    for size in ((1, 1), (200, 100), (201, 399), (1000, 730)):
        seen = np.zeros(size[::-1], int)
        for box in tiles(size, 200, 20):
            assert 0 <= box.left < box.right <= size[0]
            assert 0 <= box.top < box.bottom <= size[1]
            seen[box.top : box.bottom, box.left : box.right] += 1
        assert (seen > 0).all()


def test_the_better_of_two_equal_matches_is_kept():
    def one(scores, offset):
        points = np.array([[10, 10], [30, 10], [50, 10]], np.float32) + np.float32(offset)
        return Matches(
            points0=points,
            points1=points,
            scores=np.array(scores, np.float32),
            size0=(64, 64),
            size1=(64, 64),
            method="x",
        )

    joined = join([one([0.5, 0.6, 0.7], 0), one([0.9, 0.1, 0.2], 0.5)], same_px=2)
    assert joined.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert len(join([one([0.5, 0.6, 0.7], 0), one([0.9, 0.1, 0.2], 5)], same_px=2)) == 6


def test_the_region_is_where_the_crowd_is():
    rng = np.random.default_rng(0)
    crowd = rng.uniform((300, 200), (500, 400), (500, 2))
    strays = rng.uniform((0, 0), (1000, 800), (10, 2))
    box = dense_region(np.concatenate([crowd, strays]).astype(np.float32), (1000, 800))
    assert box.left <= 300
    assert box.top <= 200
    assert box.right >= 500
    assert box.bottom >= 400
    assert (box.right - box.left) * (box.bottom - box.top) < 400 * 400


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (40, 30)])
def test_images_that_match_nothing_have_an_answer(size):
    blank = Image(np.zeros((size[1], size[0], 3), np.float32))
    assert len(Multiscale(Reader())(blank, coordinates((50, 50)))) == 0
    assert len(Tiled(Reader())(blank, blank)) == 0


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="sizes_px"):
        MultiscaleOptions(sizes_px=())
    with pytest.raises(ValueError, match="overlap_px"):
        TileOptions(tile_px=100, overlap_px=60)
    with pytest.raises(ValueError, match="above 0"):
        MultiscaleOptions(region_size_px=0)


def test_a_look_sets_the_sizes():
    asked = []

    def build(options):
        asked.append(options.max_size_px)
        return Reader()

    assert isinstance(looking(build, MatcherOptions()), Reader)
    several = looking(build, MatcherOptions(look="multiscale", max_size_px=1400))
    assert isinstance(several, Multiscale)
    assert several.options == MultiscaleOptions(sizes_px=(800, 1050), region_size_px=1400)
    cut = looking(build, MatcherOptions(look="tiled", max_size_px=96))
    assert isinstance(cut, Tiled)
    assert cut.options == TileOptions(tile_px=96, guide_size_px=96, overlap_px=48)
    assert asked == [None, 1400, 192]


@pytest.mark.parametrize("method", ["superpoint", "loftr"])
def test_a_method_that_enlarges_does_not_enlarge_what_was_sized_for_it(method):
    pytest.importorskip("torch")
    several = matcher(method, MatcherOptions(look="multiscale", refine=False))
    cut = matcher(method, MatcherOptions(look="tiled", refine=False))
    for looks in (several, cut):
        options = getattr(looks.matcher, "options", None) or looks.matcher.extractor.options
        assert options.max_enlargement == 1
