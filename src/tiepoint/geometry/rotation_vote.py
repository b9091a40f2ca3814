"""The in-plane rotation between two images, voted by the orientations of matched keypoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry.correspondences import Features

_BIN_DEG = 1.0
_HALF_WINDOW_DEG = 22.5  # one step of 16 orientations: votes of neighbouring steps support each other


@dataclass(frozen=True, kw_only=True)
class RotationVote:
    """angle_deg: how far image 1's content is turned against image 0's, clockwise as displayed, in [-180, 180).
    support: the share of matches within 22.5 degrees of it, 0 to 1; one angle in eight would be there by chance.
    num_votes: the matches that voted.
    """

    angle_deg: float
    support: float
    num_votes: int


def relative_rotation(
    features0: Features, features1: Features, indices: NDArray[np.int64]
) -> RotationVote | None:
    """The rotation that most matches agree on, or None without matches.

    indices: (M, 2) rows of the two sets of features. The fullest window of 45 degrees is sought, and the mean of
    the angles in it taken, which is finer than the steps that orientations come in.
    Raises ValueError when the features have no `angles_deg`.
    """
    if features0.angles_deg is None or features1.angles_deg is None:
        raise ValueError("angles_deg: expected an orientation for each keypoint, got none")
    if len(indices) == 0:
        return None
    turns = features1.angles_deg[indices[:, 1]].astype(float) - features0.angles_deg[indices[:, 0]]
    num_bins, reach = round(360 / _BIN_DEG), round(_HALF_WINDOW_DEG / _BIN_DEG)
    votes = np.bincount(np.rint(turns / _BIN_DEG).astype(int) % num_bins, minlength=num_bins)
    # A tent over the window: between two steps of the orientations, the middle of the votes wins.
    tent = np.maximum(0, 1 - np.abs(np.arange(-reach, reach + 1)) / (reach + 1))
    smoothed = np.convolve(np.concatenate([votes[-reach:], votes, votes[:reach]]), tent, mode="valid")
    peak = float(np.argmax(smoothed)) * _BIN_DEG
    offset = _wrapped(turns - peak)
    near = np.abs(offset) <= _HALF_WINDOW_DEG + _BIN_DEG / 2
    angle = float(_wrapped(peak + offset[near].mean()))
    return RotationVote(angle_deg=angle, support=float(near.mean()), num_votes=len(indices))


def _wrapped(angle_deg: NDArray[Any] | float) -> NDArray[np.float64]:
    """In [-180, 180)."""
    return (np.asarray(angle_deg, float) + 180) % 360 - 180
