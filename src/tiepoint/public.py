"""The public names, gathered from their homes; `tiepoint/__init__.py` hands them out."""

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
