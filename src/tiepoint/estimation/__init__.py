"""Robust fitting of every model, model choice and covariance: what the geometry is, and how sure."""

from tiepoint.estimation.choice import gric, noise_sigma_px
from tiepoint.estimation.estimate import Estimate
from tiepoint.estimation.fit import ModelName, fit, fit_fundamental, fit_pose, fit_transform
from tiepoint.estimation.refine import point_covariance, refine

__all__ = [
    "Estimate",
    "ModelName",
    "fit",
    "fit_fundamental",
    "fit_pose",
    "fit_transform",
    "gric",
    "noise_sigma_px",
    "point_covariance",
    "refine",
]
