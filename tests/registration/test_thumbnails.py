"""The report's small pictures: right places, any depth and size, bounded bytes."""

import cv2
import numpy as np
import pytest

from tiepoint.estimation import Estimate
from tiepoint.geometry import Matches, Transform
from tiepoint.images import Image
from tiepoint.registration.register import Registration
from tiepoint.registration.thumbnails import (
    NUM_PANES,
    PANE_PX,
    _round_number,
    shrunk,
    template_thumbnail,
    thumbnails,
)
from tiepoint.registration.verdict import Verdict


def registration(transform, source, template, points=()):
    """One whose matches lie exactly 1 px right of where they belong in the template."""
    points = np.array(points, np.float32).reshape(-1, 2)
    right = points + np.float32([1, 0])
    matches = Matches(
        points0=points if transform is None else transform.inverse()(right).astype(np.float32),
        points1=points,
        scores=np.ones(len(points), np.float32),
        size0=source.size,
        size1=template.size,
        method="test",
    )
    estimate = Estimate(
        model=transform,
        inliers=np.ones(len(points), bool),
        residuals_px=np.ones(len(points)),
        threshold_px=3.0,
    )
    return Registration(
        transform=transform,
        estimate=estimate,
        matches=matches,
        verdict=Verdict(checks=()),
        refinement=None,
        agreement=None,
        prediction=None,
        method="test",
        seconds={},
    )


def panes(strip):
    picture = cv2.imdecode(np.frombuffer(strip, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert picture.shape[1] % NUM_PANES == 0
    return np.split(picture, NUM_PANES, axis=1)


def spotted(width, height, x, y, dtype=np.uint8, channels=()):
    """Dark with a bright disc around (x, y)."""
    pixels = np.full((height, width), 40, np.uint8)
    cv2.circle(pixels, (x, y), round(max(width, height) / 25), 240, -1)
    if channels:
        pixels = np.dstack([pixels] * channels)
        pixels[..., 3:] = 255
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]
    return Image((pixels.astype(np.float64) * scale).astype(dtype))


def spot(pane):
    ys, xs = np.nonzero(pane[..., 1] > 170)
    return xs.mean(), ys.mean()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [(), 3, 4])
def test_the_spot_is_where_it_was_and_where_it_belongs(dtype, channels):
    template = Image(np.zeros((600, 800), np.uint8))
    source = spotted(1600, 1200, 1200, 300, dtype, channels)
    # Half a turn and half the size: the spot goes to the lower left.
    transform = Transform(np.array([[-0.5, 0, 800], [0, -0.5, 600], [0, 0, 1.0]]))
    before, after, residuals = panes(thumbnails(template, source, registration(transform, source, template)))
    assert before.shape == (240, 320, 3)
    assert spot(before) == pytest.approx((240, 60), abs=1)
    assert spot(after) == pytest.approx((80, 180), abs=1)
    assert residuals.max() < 140


def test_residuals_point_the_way_they_err():
    template = source = Image(np.zeros((600, 800), np.uint8))
    found = registration(Transform.identity(), source, template, [(400, 200)])
    _, _, pane = panes(thumbnails(template, source, found))
    ys, xs = np.nonzero(pane[:200, :, 2] > 120)  # the legend is below
    assert ys.min() >= 77
    assert ys.max() <= 83
    assert xs.min() == pytest.approx(158, abs=2)
    assert xs.max() == pytest.approx(160 + 0.4 * 20, abs=2)  # 1 px, drawn 20 times as long at 0.4 of the size


def test_without_a_transform_the_aligned_panes_are_blank():
    template, source = Image(np.zeros((600, 800), np.uint8)), spotted(800, 600, 100, 100)
    before, after, residuals = panes(thumbnails(template, source, registration(None, source, template)))
    assert spot(before) == pytest.approx((40, 40), abs=1)
    assert after.max() < 45
    assert residuals.max() < 45


@pytest.mark.parametrize("size", [(1, 1), (2, 900), (3000, 1), (5, 7)])
def test_any_size_of_source_and_template(size):
    source, template = spotted(*size, 0, 0), Image(np.zeros((90, 60), np.uint8))
    for transform in (
        None,
        Transform.identity(),
        Transform(np.diag([1e-4, 1e-4, 1])),
        Transform(np.diag([1e4, 1e4, 1])),
    ):
        assert len(panes(thumbnails(template, source, registration(transform, source, template)))) == NUM_PANES
    assert panes(thumbnails(source, template, registration(None, template, source)))


def test_a_wild_transform_is_drawn_without_complaint():
    template, source = Image(np.zeros((600, 800), np.uint8)), spotted(800, 600, 100, 100)
    wild = Transform(np.array([[1, 0, 0], [0, 1, 0], [1 / 400, 0, -1.0]]))  # the horizon crosses the frame
    assert thumbnails(template, source, registration(wild, source, template, [(100, 100), (500, 100)]))


def test_shrinking_keeps_the_panes_and_the_limit():
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.integers(0, 255, (600, 800, 3), np.uint8), (0, 0), 2)
    source = template = Image(noise)
    strip = thumbnails(template, source, registration(Transform.identity(), source, template))
    for limit in (20_000, 9_000, 4_000):
        small = shrunk(strip, limit)
        assert len(small) <= limit
        assert len(panes(small)) == NUM_PANES
    assert shrunk(strip, 10**6) is strip
    assert panes(shrunk(strip, 1))[0].shape == (48, 64, 3)


def test_the_template_is_one_pane():
    picture = cv2.imdecode(np.frombuffer(template_thumbnail(spotted(1600, 1200, 400, 300)), np.uint8), 1)
    assert picture.shape == (240, PANE_PX, 3)
    assert cv2.imdecode(np.frombuffer(template_thumbnail(spotted(10, 5, 4, 3)), np.uint8), 1) is not None


def test_round_numbers():
    assert [_round_number(v) for v in (0.1, 1, 1.9, 2, 7, 10, 99.9, 100, 340)] == [
        1,
        1,
        1,
        2,
        5,
        10,
        50,
        100,
        200,
    ]
