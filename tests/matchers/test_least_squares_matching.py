"""Least squares matching: known motions come back, and what cannot be measured stays."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tiepoint.geometry import Matches, Transform
from tiepoint.images import Image, gray_levels
from tiepoint.matchers import MatcherOptions, matcher
from tiepoint.matchers.least_squares_matching import Refined, local_affinities, refine_matches

SIZE = (480, 360)
TILTED = Transform(
    np.array([[0.98, -0.12, 30.0], [0.10, 1.03, -12.0], [1e-4, -5e-5, 1.0]]), "homography"
)  # some 6 degrees, with perspective


def texture(seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random grey, of blobs of several sizes."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(size=SIZE[::-1]), (0, 0), sigma) * sigma for sigma in (1.5, 4, 10)]
    total = np.sum(layers, axis=0)
    return np.asarray(np.clip(128 + 40 * total / total.std(), 0, 255).astype(np.uint8))


def seen(pixels: NDArray[np.uint8], transform: Transform) -> NDArray[np.uint8]:
    return np.asarray(cv2.warpPerspective(pixels, transform.matrix, SIZE, flags=cv2.INTER_CUBIC))


def pair(transform: Transform, noise_px: float, count: int = 200) -> tuple[NDArray[np.uint8], Matches]:
    """Image 1 of the texture under `transform`, and matches with Gaussian noise in image 1."""
    rng = np.random.default_rng(1)
    points0 = rng.uniform((40, 40), (SIZE[0] - 40, SIZE[1] - 40), (4 * count, 2))
    points1 = transform(points0)
    inside = ((points1 > 25) & (points1 < np.array(SIZE) - 25)).all(axis=1)
    points0, points1 = points0[inside][:count], points1[inside][:count]
    return seen(texture(), transform), matches_of(points0, points1 + rng.normal(0, noise_px, points1.shape))


def matches_of(points0: NDArray[np.float64], points1: NDArray[np.float64]) -> Matches:
    return Matches(
        points0=points0.astype(np.float32),
        points1=points1.astype(np.float32),
        scores=np.ones(len(points0), np.float32),
        size0=SIZE,
        size1=SIZE,
        method="made",
    )


def refined(pixels0: NDArray[np.uint8], pixels1: NDArray[np.uint8], matches: Matches) -> Matches:
    return refine_matches(matches, gray_levels(Image(pixels0)), gray_levels(Image(pixels1)))


def errors(transform: Transform, matches: Matches) -> NDArray[np.float64]:
    return transform.residuals(matches.points0, matches.points1)


@pytest.mark.parametrize(
    "transform",
    [
        TILTED,
        Transform.from_parameters(rotation_deg=70, centre=(240, 180)),
        Transform.from_parameters(scale=0.5, centre=(240, 180)),
        Transform.from_parameters(scale=1.9, centre=(240, 180)),
    ],
    ids=["tilted", "turned", "half", "double"],
)
def test_noisy_matches_of_a_known_homography_come_back_to_a_tenth_of_a_pixel(transform: Transform) -> None:
    pixels1, matches = pair(transform, noise_px=1.0)
    found = refined(texture(), pixels1, matches)
    assert np.median(errors(transform, matches)) > 0.8
    assert np.median(errors(transform, found)) < 0.1
    assert (found.points0 == matches.points0).all()


def test_another_light_changes_nothing() -> None:
    pixels1, matches = pair(TILTED, noise_px=1.0)
    darker = np.asarray(cv2.convertScaleAbs(pixels1, alpha=0.4, beta=70))
    assert np.median(errors(TILTED, refined(texture(), darker, matches))) < 0.1


def test_wrong_matches_are_not_made_to_agree() -> None:
    pixels1, matches = pair(TILTED, noise_px=0.3)
    points1 = matches.points1.copy()
    wrong = np.arange(0, len(points1), 4)
    points1[wrong] = np.roll(points1[wrong], 1, axis=0)
    found = refined(texture(), pixels1, matches_of(matches.points0, points1))
    assert (np.linalg.norm(found.points1[wrong] - points1[wrong], axis=1) < 0.01).mean() > 0.9
    right = np.delete(np.arange(len(points1)), wrong)
    assert np.median(errors(TILTED, found[right])) < 0.1


@pytest.mark.parametrize("blank", [(True, True), (False, True), (True, False)])
def test_where_there_is_nothing_to_see_matches_stay(blank: tuple[bool, bool]) -> None:
    pixels1, matches = pair(TILTED, noise_px=1.0)
    pictures = [np.full(SIZE[::-1], 90, np.uint8) if is_blank else pixels
                for is_blank, pixels in zip(blank, (texture(), pixels1), strict=True)]  # fmt: skip
    np.testing.assert_allclose(refined(pictures[0], pictures[1], matches).points1, matches.points1, atol=1e-3)


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.full((3, 2), 50.0), np.full((30, 2), 50.0),
                                    np.linspace((10, 10), (300, 300), 30), np.full((30, 2), -5000.0)],
                         ids=["none", "few", "one place", "a line", "outside"])  # fmt: skip
def test_degenerate_matches_stay_finite(points: NDArray[np.float64]) -> None:
    pixels = texture()
    found = refined(pixels, pixels, matches_of(points, points))
    np.testing.assert_allclose(found.points1, points, atol=0.5)


def test_a_picture_of_one_pixel_is_answered() -> None:
    points = np.zeros((10, 2))
    found = refined(texture(), np.zeros((1, 1), np.uint8), matches_of(points, points))
    assert np.isfinite(found.points1).all()


def test_points_that_are_none_stay_and_harm_no_other() -> None:
    pixels1, matches = pair(TILTED, noise_px=1.0)
    odd = matches_of(
        np.concatenate([matches.points0, [[np.nan, 0], [5, 5], [3e38, 0]]]),
        np.concatenate([matches.points1, [[5, 5], [np.inf, 0], [0, 0]]]),
    )
    found = refined(texture(), pixels1, odd)
    np.testing.assert_array_equal(found.points1[-3:], odd.points1[-3:])
    assert np.median(errors(TILTED, found[:-3])) < 0.1


def test_points_given_many_times_are_measured_all_the_same() -> None:
    pixels1, matches = pair(TILTED, noise_px=0.5, count=20)
    found = refined(texture(), pixels1, matches_of(matches.points0.repeat(30, 0), matches.points1.repeat(30, 0)))
    assert np.median(errors(TILTED, found)) < 0.1


def test_affinities_are_those_of_the_neighbours_that_agree() -> None:
    rng = np.random.default_rng(0)
    points0 = rng.uniform(0, 400, (300, 2))
    turned = Transform.from_parameters(rotation_deg=40, scale=1.3)
    points1 = turned(points0)
    points1[::4] = rng.uniform(0, 400, (75, 2))
    right = np.delete(np.arange(300), np.arange(0, 300, 4))
    found, support = local_affinities(points0, points1)
    off = np.abs(found[right] - turned.matrix[:2, :2]).max(axis=(1, 2))
    assert np.median(off) < 0.01
    assert np.median(support[right]) > 0.6 > 0.2 > np.median(support[::4])


def test_neighbours_on_a_line_tell_a_similarity() -> None:
    points0 = np.stack([np.linspace(0, 60_000, 40)] * 2, axis=1)
    turned = Transform.from_parameters(rotation_deg=25, scale=0.8)
    found, _ = local_affinities(points0, turned(points0))
    np.testing.assert_allclose(found, np.broadcast_to(turned.matrix[:2, :2], found.shape), atol=1e-3)


def test_a_point_on_an_edge_does_not_drift_along_it() -> None:
    rng = np.random.default_rng(0)
    edge = np.where(np.arange(SIZE[0]) < 240, 80.0, 180.0)[None].repeat(SIZE[1], axis=0)
    pictures = [cv2.GaussianBlur(edge, (0, 0), 1) + rng.normal(0, 5, edge.shape) for _ in range(2)]
    points = np.stack([np.full(60, 240.0), np.linspace(40, 320, 60)], axis=1) + rng.normal(0, 0.5, (60, 2))
    found = refined(*(picture.clip(0, 255).astype(np.uint8) for picture in pictures), matches_of(points, points))
    drift = np.abs(found.points1[:, 1] - points[:, 1])
    assert np.median(drift) < 0.05
    assert np.quantile(drift, 0.9) < 0.5


def test_levels_halve_down_to_500_px_and_once_at_least() -> None:
    def sizes(width: int, height: int) -> list[tuple[int, ...]]:
        return [level.pixels.shape[::-1] for level in gray_levels(Image(np.zeros((height, width), np.uint8)))]

    assert sizes(1600, 1200) == [(400, 300), (800, 600), (1600, 1200)]
    assert sizes(320, 240) == [(160, 120), (320, 240)]
    assert sizes(1, 1) == [(1, 1), (1, 1)]
    assert sizes(32_767, 2)[-1] == (16_384, 1)  # OpenCV samples no longer ones


def test_levels_of_deep_pictures_keep_what_eight_bits_show() -> None:
    deep = Image(texture().astype(np.uint16) * 200)
    assert gray_levels(deep)[-1].pixels.std() > 5000


@pytest.mark.parametrize("options", [MatcherOptions(look="multiscale"), MatcherOptions(four_way=True)])
def test_matches_are_measured_last_and_on_the_whole_picture(options: MatcherOptions) -> None:
    found = matcher("sift", options)
    image = Image(texture())
    encoding = found.encode(image)
    assert encoding.gray_levels[-1].pixels.shape == image.pixels.shape
    assert isinstance(found, Refined)
    assert found.name == found.matcher.name


def test_a_method_refines_unless_told_not_to() -> None:
    pixels = texture()
    image0, image1 = Image(pixels), Image(seen(pixels, TILTED))
    exact, found = matcher("orb")(image0, image1), matcher("orb", MatcherOptions(refine=False))(image0, image1)
    assert len(exact) == len(found)
    assert np.median(errors(TILTED, exact)) < 0.3 * np.median(errors(TILTED, found))
