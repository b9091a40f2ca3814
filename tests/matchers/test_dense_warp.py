from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tiepoint.matchers.dense_warp import DenseWarp, density

SIZE0, SIZE1 = (200, 100), (300, 150)  # (width, height): image 1 is image 0 enlarged by 1.5, plus a shift


def grid(height: int, width: int) -> np.ndarray:
    x, y = (np.arange(width) * 2 + 1) / width - 1, (np.arange(height) * 2 + 1) / height - 1
    return np.stack(np.meshgrid(x, y), -1).astype(np.float32)


def shifted(shift: tuple[float, float] = (0.1, -0.2), side: int = 40) -> DenseWarp:
    """Points of image 1 lie `shift` (normalised) from those of image 0; certain where that is inside."""
    own = grid(side, side)
    there, back = own + np.float32(shift), own - np.float32(shift)
    warp = np.concatenate([np.concatenate([own, there], -1), np.concatenate([back, own], -1)], 1)
    inside = np.concatenate([np.abs(there).max(-1) <= 1, np.abs(back).max(-1) <= 1], 1)
    return DenseWarp(
        warp=np.clip(warp, -1, 1),
        certainty=inside.astype(np.float32),
        size0=SIZE0,
        size1=SIZE1,
        method="made",
    )


def expected1(points0: np.ndarray, shift: tuple[float, float] = (0.1, -0.2)) -> np.ndarray:
    """The same shift in full-size pixels, half-pixel centres kept."""
    return (points0 + 0.5) * 1.5 + np.array(shift) / 2 * SIZE1 - 0.5


def test_samples_lie_on_the_warp_in_full_size_pixels() -> None:
    matches = shifted().sample(500, seed=1)
    assert len(matches) == 500
    assert (matches.size0, matches.size1, matches.method) == (SIZE0, SIZE1, "made")
    np.testing.assert_allclose(matches.points1, expected1(matches.points0), atol=1e-3)
    assert (matches.scores == 1).all()
    assert len(np.unique(matches.points0, axis=0)) > 400  # either half of the warp may give a point once


def test_the_same_seed_gives_the_same_samples() -> None:
    warp = shifted()
    np.testing.assert_array_equal(warp.sample(100, 3).points0, warp.sample(100, 3).points0)
    assert (warp.sample(100, 3).points0 != warp.sample(100, 4).points0).any()


@pytest.mark.parametrize(("available", "asked"), [(0, 10), (3, 10), (25, 10), (60, 10)])
def test_never_more_than_are_certain_and_never_padded(available: int, asked: int) -> None:
    whole = shifted((0.0, 0.0))
    certainty = np.zeros_like(whole.certainty)
    certainty.flat[:available] = 0.3
    warp = DenseWarp(warp=whole.warp, certainty=certainty, size0=SIZE0, size1=SIZE1)
    matches = warp.sample(asked)
    assert len(matches) == min(asked, available)
    assert (matches.scores == np.float32(0.3)).all()


def test_a_crowd_is_thinned() -> None:
    """Half of the frame maps to one spot; balanced sampling takes far fewer than half of its matches there."""
    whole = shifted((0.0, 0.0), side=64)
    warp = whole.warp.copy()
    warp[:, :, 2:][:, :32] = 0.25
    warp[:, :, :2][:, :32] = grid(64, 64)[:, :32] * 0.02
    crowded = DenseWarp(warp=warp, certainty=np.ones_like(whole.certainty), size0=SIZE0, size1=SIZE1)
    matches = crowded.sample(400, 0)
    spot = np.abs(matches.points1 - (np.array(SIZE1) * 0.625 - 0.5)).max(1) < 1e-3
    assert spot.mean() < 0.1


def test_density_equals_its_definition_across_blocks() -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (4500, 4)).astype(np.float32)
    found = density(rows)
    some = slice(2000, 2100)
    gaps = ((rows[some, None].astype(float) - rows[None].astype(float)) ** 2).sum(-1)
    np.testing.assert_allclose(found[some], np.exp(-gaps / 0.02).sum(1), rtol=2e-4)


def test_memory_of_sampling_stays_bounded() -> None:
    warp = shifted((0.0, 0.0), side=160)
    tracemalloc.start()
    assert len(warp.sample(5000, 0)) == 5000  # all 20,000 x 20,000 distances at once would be 1.6 GB
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6


def test_padding_and_squashing_place_points_alike() -> None:
    """The same correspondence, seen through a padded frame: pictures of aspect 2 fill half of it."""
    padded = DenseWarp(
        warp=shifted((0.0, 0.0)).warp,
        certainty=shifted((0.0, 0.0)).certainty,
        size0=SIZE0,
        size1=SIZE1,
        extent0=(1.0, 0.5),
        extent1=(1.0, 0.5),
    )
    corner0, corner1 = padded.to_pixel_coordinates(np.array([-1, -1, -1, -1.0]))
    np.testing.assert_allclose([corner0, corner1], -0.5)
    bottom0, bottom1 = padded.to_pixel_coordinates(np.array([1, 0, 1, 0.0]))  # where the pictures end
    np.testing.assert_allclose(bottom0, np.array(SIZE0) - 0.5)
    np.testing.assert_allclose(bottom1, np.array(SIZE1) - 0.5)


def test_keypoints_are_carried_and_matched() -> None:
    warp = shifted()
    generator = np.random.default_rng(0)
    keypoints0 = generator.uniform((10, 30), (170, 90), (300, 2))
    order = generator.permutation(300)[:200]
    keypoints1 = np.concatenate([expected1(keypoints0[order]) + 0.1, generator.uniform(400, 500, (50, 2))])
    found = warp.match_keypoints(keypoints0, keypoints1, max_distance_px=1.0)
    assert len(found.indices) > 190  # two keypoints may happen to lie within the offset of each other
    good = found.indices[:, 1] < 200
    assert good.all()
    assert (order[found.indices[:, 1]] == found.indices[:, 0]).mean() > 0.98
    carried, certainty = warp.transfer(keypoints0)
    np.testing.assert_allclose(carried, expected1(keypoints0), atol=1e-2)
    assert certainty.min() > 0.99


def test_no_keypoints_are_no_matches() -> None:
    warp = shifted()
    for keypoints0, keypoints1 in ((np.zeros((0, 2)), np.ones((3, 2))), (np.ones((3, 2)), np.zeros((0, 2)))):
        found = warp.match_keypoints(keypoints0, keypoints1)
        assert found.indices.shape == (0, 2)
        assert found.scores.shape == (0,)


def test_there_and_back_is_nothing_for_a_consistent_warp() -> None:
    warp = shifted()
    assert warp.forward_backward_error_px()[warp.certainty > 0].max() < 1e-3
    broken = warp.warp.copy()
    broken[:, 40:, 0] += 0.1  # the way back is wrong by 0.05 of the width
    errors = DenseWarp(
        warp=broken, certainty=warp.certainty, size0=SIZE0, size1=SIZE1
    ).forward_backward_error_px()
    assert np.median(errors[:, :40][warp.certainty[:, :40] > 0]) == pytest.approx(0.05 * 200, rel=0.01)


def test_image_1_seen_from_image_0() -> None:
    warp = shifted((0.5, 0.0))
    ramp = np.tile(np.arange(300, dtype=np.float32), (150, 1))
    seen = warp.warped(ramp)
    assert seen.shape == (40, 40, 1)
    columns = (np.arange(20) + 0.5) * 300 / 40 - 0.5 + 75  # shifted by a quarter of image 1's width
    np.testing.assert_allclose(seen[5, :20, 0], columns, atol=1e-2)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="expected a warp"):
        DenseWarp(
            warp=np.zeros((4, 6, 2), np.float32),
            certainty=np.zeros((4, 6), np.float32),
            size0=SIZE0,
            size1=SIZE1,
        )
