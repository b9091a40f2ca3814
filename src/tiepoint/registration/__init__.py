"""Many images to one template: fit, refinement, verdict, batch runner, records."""

from tiepoint.registration.register import Registrar, Registration, RegistrationConfig
from tiepoint.registration.verdict import Limits, Verdict
from tiepoint.registration.warp import valid_mask, warp_image

__all__ = ["Limits", "Registrar", "Registration", "RegistrationConfig", "Verdict", "valid_mask", "warp_image"]
