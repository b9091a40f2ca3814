"""The rotation between two images from their keypoints' orientations."""

from __future__ import annotations

import numpy as np
import pytest

from tiepoint.geometry import Features
from tiepoint.geometry.rotation_vote import relative_rotation


def features(angles: np.ndarray | None, count: int) -> Features:
    return Features(
        keypoints=np.zeros((count, 2), np.float32),
        scores=np.ones(count, np.float32),
        descriptors=np.zeros((count, 4), np.float32),
        image_size=(10, 10),
        angles_deg=None if angles is None else (angles % 360).astype(np.float32),
    )


def vote(angles0: np.ndarray, angles1: np.ndarray):
    count = len(angles0)
    indices = np.stack([np.arange(count), np.arange(count)], axis=1)
    return relative_rotation(features(angles0, count), features(angles1, count), indices)


@pytest.mark.parametrize("turn", [0.0, 37.0, 90.0, 179.0, -91.0, -178.0])
def test_exact_orientations(turn: float) -> None:
    angles = np.random.default_rng(0).uniform(0, 360, 50)
    found = vote(angles, angles + turn)
    assert found.angle_deg == pytest.approx(turn, abs=0.01)
    assert found.support == 1
    assert found.num_votes == 50


@pytest.mark.parametrize("turn", [-174.0, -30.0, 8.0, 100.0])
def test_steps_and_wrong_matches(turn: float) -> None:
    """Orientations in steps of 22.5 degrees, four matches in ten wrong: the mean is finer than the steps."""
    rng = np.random.default_rng(1)
    true = rng.uniform(0, 360, 1000)
    angles0, angles1 = (np.round(angle / 22.5) * 22.5 for angle in (true, true + turn))
    angles1[:400] = np.round(rng.uniform(0, 360, 400) / 22.5) * 22.5
    found = vote(angles0, angles1)
    assert abs((found.angle_deg - turn + 180) % 360 - 180) < 5
    assert 0.55 < found.support < 0.8


def test_nothing_to_vote() -> None:
    assert vote(np.zeros(0), np.zeros(0)) is None
    indices = np.zeros((1, 2), np.int64)
    with pytest.raises(ValueError, match="angles_deg"):
        relative_rotation(features(None, 1), features(np.zeros(1), 1), indices)
