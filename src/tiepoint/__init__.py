"""tiepoint finds the same points in two photographs, and uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tiepoint.estimation import Estimate, fit, fit_pose
    from tiepoint.geometry import (
        EpipolarGeometry,
        Features,
        Matches,
        RelativePose,
        Transform,
        load_matches,
        save_matches,
    )
    from tiepoint.images import Image, ImageError, read_image, write_image
    from tiepoint.matchers import Matcher, MatcherOptions, MethodUnavailable, matcher
    from tiepoint.registration import Registrar, Registration, RegistrationConfig, warp_image

__all__ = [
    "EpipolarGeometry",
    "Estimate",
    "Features",
    "Image",
    "ImageError",
    "Matcher",
    "MatcherOptions",
    "Matches",
    "MethodUnavailable",
    "Registrar",
    "Registration",
    "RegistrationConfig",
    "RelativePose",
    "Transform",
    "fit",
    "fit_pose",
    "load_matches",
    "matcher",
    "read_image",
    "save_matches",
    "warp_image",
    "write_image",
]


def __getattr__(name: str) -> object:
    """Public names are imported when first asked for, so that `tiepoint --help` need not wait for OpenCV."""
    if name not in __all__:
        raise AttributeError(f"module 'tiepoint' has no attribute {name!r}")
    from tiepoint import public

    return getattr(public, name)
