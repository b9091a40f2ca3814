"""Marks land on the pixels they name, x across and y down, in the colours they mean."""

import numpy as np
import pytest

from tiepoint.geometry import Features, Matches
from tiepoint.images import Image
from tiepoint.plot import draw_checkerboard, draw_difference, draw_keypoints, draw_matches, draw_overlay
from tiepoint.plot.draw import GROUND, INLIER, KEYPOINT, OUTLIER


def gray(width, height, value=0, dtype=np.uint8):
    return Image(np.full((height, width), value, dtype))


def features(points, image, scales=None, angles=None, scores=None):
    return Features(
        keypoints=np.array(points, np.float32).reshape(-1, 2),
        scores=np.ones(len(points), np.float32) if scores is None else np.array(scores, np.float32),
        descriptors=np.zeros((len(points), 1), np.float32),
        image_size=image.size,
        scales_px=None if scales is None else np.array(scales, np.float32),
        angles_deg=None if angles is None else np.array(angles, np.float32),
    )


def matches(points0, points1, image0, image1):
    return Matches(
        points0=np.array(points0, np.float32).reshape(-1, 2),
        points1=np.array(points1, np.float32).reshape(-1, 2),
        scores=np.ones(len(points0), np.float32),
        size0=image0.size,
        size1=image1.size,
        method="test",
    )


def painted(picture, ground=(0, 0, 0)):
    """(x, y) of the painted pixels' centre of mass."""
    weight = np.abs(picture.astype(float) - ground).sum(axis=2)
    ys, xs = np.indices(weight.shape)
    return (xs * weight).sum() / weight.sum(), (ys * weight).sum() / weight.sum()


def test_a_keypoint_without_scale_is_a_dot_at_its_pixel():
    image = gray(60, 40)
    picture = draw_keypoints(image, features([(45, 12)], image))
    assert picture.shape == (40, 60, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[12, 45]) == KEYPOINT
    assert painted(picture) == pytest.approx((45, 12), abs=0.2)
    assert not image.pixels.any()  # the image itself is not drawn on


def test_a_keypoint_has_its_diameter_and_points_where_it_looks():
    image = gray(60, 50)
    picture = draw_keypoints(image, features([(30, 20)], image, scales=[20], angles=[90]))
    ys, xs = np.nonzero(picture[..., 0] > 128)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (20, 40, 10, 30)
    assert picture[25, 30, 0] > 200  # 90 degrees is down, as displayed
    assert not picture[15, 30].any()
    assert not picture[20, 25].any()
    assert not picture[20, 35].any()


def test_only_the_best_keypoints_are_drawn():
    image = gray(60, 40)
    found = features([(10, 10), (50, 30)], image, scores=[0.1, 0.9])
    assert painted(draw_keypoints(image, found, max_num=1)) == pytest.approx((50, 30), abs=0.2)


def test_a_reduced_picture_keeps_places():
    image = gray(400, 200)
    picture = draw_keypoints(image, features([(301, 41)], image), max_size_px=100)
    assert picture.shape == (50, 100, 3)
    x, y = painted(picture)
    assert (x, y) == pytest.approx((74.875, 9.875), abs=0.2)


def test_matches_join_the_right_places_of_images_of_different_sizes():
    image0, image1 = gray(60, 40, 50), gray(90, 110, 50)
    picture = draw_matches(image0, image1, matches([(50, 10)], [(20, 95)], image0, image1), gap_px=4)
    assert picture.shape == (110, 60 + 4 + 90, 3)
    assert tuple(picture[10, 50]) == INLIER
    assert tuple(picture[95, 64 + 20]) == INLIER
    middle = picture[50:56, 64:72].reshape(-1, 3)  # the line runs from (50, 10) to (84, 95)
    assert any(np.abs(pixel.astype(int) - INLIER).max() < 90 for pixel in middle)
    assert tuple(picture[100, 5]) == GROUND
    assert tuple(picture[100, 62]) == GROUND
    assert tuple(picture[0, 64]) == (50, 50, 50)


def test_inliers_and_outliers_have_their_colours_and_inliers_lie_on_top():
    image = gray(60, 40)
    found = matches([(10, 10), (10, 10), (30, 35)], [(20, 20), (20, 20), (50, 5)], image, image)
    picture = draw_matches(image, image, found, np.array([True, False, False]), gap_px=0)
    assert tuple(picture[10, 10]) == INLIER
    assert tuple(picture[20, 80]) == INLIER
    assert tuple(picture[35, 30]) == OUTLIER
    assert tuple(picture[5, 110]) == OUTLIER


def test_the_number_of_lines_is_bounded_and_spread_over_the_rows():
    image = gray(60, 1001)
    rows = [(30, y) for y in range(1, 1000)]
    picture = draw_matches(image, image, matches(rows, rows, image, image), max_num=11)
    lines = np.flatnonzero((picture[:, 62] != GROUND).any(axis=1))
    groups = np.split(lines, np.flatnonzero(np.diff(lines) > 1) + 1)
    assert len(groups) == 11
    assert lines.min() <= 2
    assert lines.max() >= 998


def test_no_matches_and_tiny_images_are_drawn_too():
    image0, image1 = gray(1, 1), gray(3, 2)
    picture = draw_matches(image0, image1, matches([], [], image0, image1), max_size_px=1)
    assert picture.ndim == 3
    assert draw_keypoints(image0, features([], image0)).shape == (1, 1, 3)


def test_matches_of_other_images_are_refused():
    image, other = gray(60, 40), gray(40, 60)
    with pytest.raises(ValueError, match="size1"):
        draw_matches(image, other, matches([], [], image, image))
    with pytest.raises(ValueError, match="features"):
        draw_keypoints(other, features([], image))


def step(edge, low=50, high=200):
    pixels = np.full((40, 60), low, np.uint8)
    pixels[:, edge:] = high
    return Image(pixels)


def test_the_overlay_is_grey_where_they_agree_and_coloured_where_not():
    same = draw_overlay(step(30), step(30))
    assert (same[..., 0] == same[..., 1]).all()
    assert (same[..., 1] == same[..., 2]).all()
    late = draw_overlay(step(30), step(33))  # columns 30 ... 32: template bright, aligned dark
    assert late[5, 31, 0] > late[5, 31, 1] + 100
    assert late[5, 31, 1] == late[5, 31, 2]


def test_light_alone_leaves_no_colour():
    darker = draw_overlay(step(30), step(30, 20, 70))
    assert np.abs(darker[..., 0].astype(int) - darker[..., 1]).max() <= 1
    assert draw_difference(step(30), step(30, 20, 70)).min() >= 252


def test_uncovered_parts_show_the_template_dimmed():
    valid = np.ones((40, 60), bool)
    valid[:, :10] = False
    picture = draw_overlay(step(30), step(30), valid)
    assert tuple(picture[5, 5]) == (25, 25, 25)
    assert tuple(draw_difference(step(30), step(30), valid)[5, 5]) == (128, 128, 128)
    assert draw_overlay(step(30), step(30), np.zeros((40, 60), bool))[0, 59, 1] == 100


def test_the_difference_tells_brighter_from_darker():
    picture = draw_difference(step(30), step(33))
    assert tuple(picture[5, 5]) > (240, 240, 240)
    assert picture[5, 31, 2] > 200 > 60 > picture[5, 31, 0]  # aligned is darker: blue
    picture = draw_difference(step(33), step(30))
    assert picture[5, 31, 0] > 200 > 60 > picture[5, 31, 2]  # brighter: red


def test_the_checkerboard_takes_turns_from_the_upper_left():
    picture = draw_checkerboard(gray(60, 40, 10), gray(60, 40, 200), square_px=10)
    assert picture[5, 5, 0] == 10
    assert picture[5, 15, 0] == 200
    assert picture[15, 5, 0] == 200
    assert picture[15, 15, 0] == 10
    assert picture[35, 59, 0] == 10  # row 3, column 5


def test_images_of_any_depth_and_colour_can_be_compared():
    rng = np.random.default_rng(0)
    deep = Image(rng.integers(0, 4000, (40, 60, 3), np.uint16))
    alpha = Image(rng.integers(0, 255, (40, 60, 4), np.uint8))
    for draw in (draw_overlay, draw_checkerboard, draw_difference):
        assert draw(deep, alpha).shape == (40, 60, 3)
        with pytest.raises(ValueError, match="aligned"):
            draw(deep, gray(40, 60))
        with pytest.raises(ValueError, match="valid"):
            draw(deep, deep, np.ones((60, 40), bool))
