"""Synthetic shapes: their labels lie on their corners."""

import cv2
import numpy as np
import pytest

from tiepoint.training.shapes import SHAPES, draw_shape

SIZE = (120, 160)


def drawings(kind: str, count: int = 12):
    rng = np.random.default_rng(3)
    return [draw_shape(kind, SIZE, rng) for _ in range(count)]


def test_there_are_nine_kinds():
    assert len(SHAPES) == 9


@pytest.mark.parametrize("kind", SHAPES)
def test_drawings_are_pictures_with_corners_inside(kind):
    for pixels, corners in drawings(kind):
        assert pixels.shape == SIZE
        assert pixels.dtype == np.float32
        assert 0 <= pixels.min() <= pixels.max() <= 1
        assert ((corners >= 0) & (corners <= (SIZE[1] - 1, SIZE[0] - 1))).all()
        assert pixels.std() > 0


@pytest.mark.parametrize("kind", ["ellipses", "noise"])
def test_what_has_no_corner_has_no_label(kind):
    assert all(len(drawing.corners) == 0 for drawing in drawings(kind))


@pytest.mark.parametrize("kind", ["polygon", "polygons", "checkerboard", "cube", "stripes"])
def test_labels_lie_on_corners(kind):
    """A corner detector that knows nothing of the drawing finds a maximum within 3 px of nine labels of ten."""
    found = by_chance = total = 0
    rng = np.random.default_rng(0)
    for pixels, corners in drawings(kind):
        strength = cv2.cornerMinEigenVal(cv2.GaussianBlur(pixels, (0, 0), 0.7), 3)
        peaks = (strength == cv2.dilate(strength, np.ones((3, 3)))) & (strength > 1e-5)
        y, x = np.nonzero(peaks)
        inner = corners[((corners > 5) & (corners < (SIZE[1] - 6, SIZE[0] - 6))).all(1)]
        for corner in inner:
            total += 1
            elsewhere = rng.uniform((6, 6), (SIZE[1] - 6, SIZE[0] - 6))
            found += np.hypot(*(np.stack([x, y], 1) - corner).T).min() < 3
            by_chance += np.hypot(*(np.stack([x, y], 1) - elsewhere).T).min() < 3
    assert total > 20
    assert found / total > 0.9
    assert by_chance / total < 0.5


def test_a_star_has_its_centre_and_tips():
    for drawing in drawings("star"):
        assert 1 <= len(drawing.corners) <= 6


def test_a_seed_gives_the_same_drawing():
    first, second = (draw_shape("cube", SIZE, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first.pixels, second.pixels)
    assert np.array_equal(first.corners, second.corners)
