"""Points, transforms and epipolar geometry, in NumPy alone."""

from tiepoint.geometry.correspondences import Features, Matches

__all__ = ["Features", "Matches"]
