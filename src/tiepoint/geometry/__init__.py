"""Points, transforms and epipolar geometry, in NumPy alone."""

from tiepoint.geometry.cameras import Camera, H_index_from_corner, relative_pose
from tiepoint.geometry.correspondences import Features, Matches
from tiepoint.geometry.epipolar import (
    EpipolarGeometry,
    RelativePose,
    cross_matrix,
    direction_error_deg,
    fundamental_from_essential,
    rotation_error_deg,
    sampson_distance,
    symmetric_epipolar_distance,
)
from tiepoint.geometry.files import load_matches, save_matches
from tiepoint.geometry.transforms import (
    DEGREES_OF_FREEDOM,
    KINDS,
    Decomposition,
    Transform,
    TransformKind,
    corner_errors,
    frame_corners,
)

__all__ = [
    "DEGREES_OF_FREEDOM",
    "KINDS",
    "Camera",
    "Decomposition",
    "EpipolarGeometry",
    "Features",
    "H_index_from_corner",
    "Matches",
    "RelativePose",
    "Transform",
    "TransformKind",
    "corner_errors",
    "cross_matrix",
    "direction_error_deg",
    "frame_corners",
    "fundamental_from_essential",
    "load_matches",
    "relative_pose",
    "rotation_error_deg",
    "sampson_distance",
    "save_matches",
    "symmetric_epipolar_distance",
]
