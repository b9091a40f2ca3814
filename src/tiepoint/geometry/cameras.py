"""Cameras in a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tiepoint.geometry.epipolar import RelativePose


@dataclass(frozen=True, eq=False)
class Camera:
    """x_camera = rotation @ x_scene + translation.

    intrinsics: (3, 3) K; rotation: (3, 3); translation: (3,), in the scene's unit.
    """

    intrinsics: NDArray[np.float64]
    rotation: NDArray[np.float64]
    translation: NDArray[np.float64]

    def with_pixels(self, H_new_from_old: NDArray[np.float64]) -> Camera:
        """The same camera, its pixels counted otherwise: K becomes H K."""
        return Camera(H_new_from_old @ self.intrinsics, self.rotation, self.translation)


H_index_from_corner = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
"""COLMAP's pixels have the first one's centre at (1/2, 1/2), ours at (0, 0)."""


def relative_pose(camera0: Camera, camera1: Camera) -> RelativePose:
    """Camera 1 from camera 0."""
    rotation = camera1.rotation @ camera0.rotation.T
    translation = camera1.translation - rotation @ camera0.translation
    return RelativePose(rotation, translation, camera0.intrinsics, camera1.intrinsics)
