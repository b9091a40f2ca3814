"""Register one source to one template: match, fit, refine, judge."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tiepoint.estimation import Estimate, fit
from tiepoint.geometry import Matches, Transform, TransformKind, frame_corners
from tiepoint.images import GrayLevel, Image, gray_levels, gray_view
from tiepoint.matchers import Matcher
from tiepoint.matchers.least_squares_matching import Refined, refine_matches
from tiepoint.registration.agreement import Agreement, Likeness
from tiepoint.registration.prediction import ErrorPrediction, predict_error
from tiepoint.registration.refinement import (
    Refinement,
    RefinementTemplate,
    prepare_template,
    refine_by_intensity,
)
from tiepoint.registration.verdict import (
    Check,
    Limits,
    Verdict,
    evidence_checks,
    geometric_checks,
    handedness_check,
    outcome_checks,
)

Encoding = TypeVar("Encoding")

_MATCHED = (1.3, 0.10)
_REFINED = (2.4, 0.02)
"""Inflation of the standard deviations and floor in pixels, for fits to matches and to intensities; see
docs/registration.md for the calibration."""

_DOUBTFUL_LIKENESS = 0.75
"""Below it a result that passes all else is held against the mirrored source, which takes another encoding."""


@dataclass(frozen=True, kw_only=True)
class RegistrationConfig:
    """How to register.

    model: a transform's kind, or "transform" for the simplest that explains the matches.
    threshold_px: largest residual of an inlier, in template pixels.
    refine: align by intensity after the fit.
    limits: what it takes to be accepted. seed: the same seed gives the same result.
    """

    model: Literal["transform"] | TransformKind = "homography"
    threshold_px: float = 3.0
    refine: bool = True
    limits: Limits = field(default_factory=Limits)
    seed: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Registration:
    """One source in the template's frame, and how far that can be trusted.

    estimate: the fit to the matches (source is image 0, template image 1). transform: template from source, the
    refined one where refinement was kept; None without a fit. verdict: accepted or why not.
    method: the matcher that made it. seconds: by stage.
    tried: the steps a cascade made until it was accepted; empty for a single method.
    """

    transform: Transform | None
    estimate: Estimate[Transform]
    matches: Matches
    verdict: Verdict
    refinement: Refinement | None
    agreement: Agreement | None
    prediction: ErrorPrediction | None
    method: str
    seconds: dict[str, float]
    tried: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        return self.verdict.accepted


class Registrar(Generic[Encoding]):
    """Registers sources to one template, which is encoded once.

    template: the picture whose frame all others are brought into.
    matcher: its matches are taken as found, since the whole picture is aligned by intensity afterwards.
    mask: (H, W) bool of the template; matches and intensities outside of it do not count, nor do errors outside
        the rectangle around it.
    """

    def __init__(
        self,
        template: Image,
        matcher: Matcher[Encoding],
        config: RegistrationConfig | None = None,
        *,
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        if mask is not None and mask.shape != (template.height, template.width):
            raise ValueError(f"mask: expected shape {(template.height, template.width)}, got {mask.shape}")
        self.template = template
        self.matcher = matcher.matcher if isinstance(matcher, Refined) else matcher
        self.config = config or RegistrationConfig()
        self.mask = mask
        self._counted = None if mask is None else _rectangle_around(mask)
        self._encoding = matcher.encode(template)
        self._gray = gray_view(template)
        self._likeness = Likeness(self._gray, mask)
        self._tiles: RefinementTemplate | None = None
        self._levels: tuple[GrayLevel, ...] | None = None

    def register(self, source: Image, encoding: Encoding | None = None) -> Registration:
        """Where `source` lies in the template; a failure is a rejected registration, never an exception.

        What would be refused is judged once more with its matches refined by least squares.

        encoding: the matcher's encoding of `source`, where it is at hand already.
        """
        clock = _Clock()
        if encoding is None:
            encoding = self.matcher.encode(source)
        clock.lap("encode")
        matches = self._match(encoding)
        clock.lap("match")
        result = self._judge(source, matches, clock)
        if result.accepted:
            return result
        refined = self._refine_matches(source, matches)
        clock.lap("match")
        if refined is matches:  # too few to refine
            return result
        again = self._judge(source, refined, clock, refined=True)
        return again if again.accepted else result

    def _match(self, encoding: Encoding) -> Matches:
        matches = self.matcher.match(encoding, self._encoding)
        return matches if self.mask is None else matches[_inside(matches.points1, self.mask)]

    def _refine_matches(self, source: Image, matches: Matches) -> Matches:
        if self._levels is None:
            self._levels = gray_levels(self.template)
        return refine_matches(matches, gray_levels(source), self._levels)

    def _judge(self, source: Image, matches: Matches, clock: _Clock, *, refined: bool = False) -> Registration:
        """Fit, refine and test, the cheap tests first: what fails them is not looked at further.

        refined: whether `matches` are, so that those of the mirrored source must be, too.
        """
        config = self.config
        estimate = fit(matches, config.model, threshold_px=config.threshold_px, seed=config.seed)
        clock.lap("fit")
        transform = estimate.model
        if transform is None:
            return self._result(matches, estimate, Verdict(checks=(), failure=estimate.reason), clock)
        checks = self._checks(estimate, transform, matches)
        clock.lap("check")
        if not all(check.passed for check in checks):
            return self._result(matches, estimate, Verdict(checks=checks), clock, transform)
        assert estimate.covariance is not None
        gray = gray_view(source)
        prediction = self._predict(transform, estimate.covariance, source, _MATCHED)
        refinement = None
        if config.refine:
            refinement = self._refine(gray, transform, prediction)
            if refinement.kept and refinement.covariance is not None:
                transform = refinement.transform
                prediction = self._predict(transform, refinement.covariance, source, _REFINED)
        clock.lap("refine")
        alike = self._likeness(gray, transform)
        checks += outcome_checks(alike, prediction, self.template.size, config.limits)
        if alike.structure < _DOUBTFUL_LIKENESS and all(check.passed for check in checks):
            checks += (handedness_check(alike.structure, self._mirrored_likeness(source, refined=refined)),)
        clock.lap("check")
        return Registration(
            transform=transform,
            estimate=estimate,
            matches=matches,
            verdict=Verdict(checks=checks),
            refinement=refinement,
            agreement=alike,
            prediction=prediction,
            method=self.matcher.name,
            seconds=clock.seconds,
        )

    def _checks(self, estimate: Estimate[Transform], transform: Transform, matches: Matches) -> tuple[Check, ...]:
        config = self.config
        evidence = evidence_checks(estimate, matches, config.limits, seed=config.seed, counted=self._counted)
        return evidence + geometric_checks(transform, matches, config.limits)

    def _mirrored_likeness(self, source: Image, *, refined: bool) -> float:
        """The likeness that the source reaches turned left to right, 0 where that is no alignment."""
        config = self.config
        mirrored = Image(np.ascontiguousarray(source.pixels[:, ::-1]))
        matches = self._match(self.matcher.encode(mirrored))
        if refined:
            matches = self._refine_matches(mirrored, matches)
        estimate = fit(matches, config.model, threshold_px=config.threshold_px, seed=config.seed)
        if estimate.model is None:
            return 0.0
        if not all(check.passed for check in self._checks(estimate, estimate.model, matches)):
            return 0.0
        return self._likeness(gray_view(mirrored), estimate.model).structure

    def _refine(self, gray: NDArray[np.uint8], start: Transform, prediction: ErrorPrediction) -> Refinement:
        if self._tiles is None:
            self._tiles = prepare_template(self._gray, self.mask)
        allowed = max(3.0, 3 * prediction.bound95_px)
        return refine_by_intensity(self._tiles, gray, start, max_motion_px=allowed)

    def _predict(
        self, transform: Transform, covariance: NDArray[Any], source: Image, calibration: tuple[float, float]
    ) -> ErrorPrediction:
        inflation, floor_px = calibration
        return predict_error(
            transform,
            covariance,
            source.size,
            self.template.size,
            inflation=inflation,
            floor_px=floor_px,
            counted=self._counted,
        )

    def _result(
        self,
        matches: Matches,
        estimate: Estimate[Transform],
        verdict: Verdict,
        clock: _Clock,
        transform: Transform | None = None,
    ) -> Registration:
        return Registration(
            transform=transform,
            estimate=estimate,
            matches=matches,
            verdict=verdict,
            refinement=None,
            agreement=None,
            prediction=None,
            method=self.matcher.name,
            seconds=clock.seconds,
        )


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def _rectangle_around(mask: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """(4, 2) corners of the smallest rectangle that holds all True pixels; None without any."""
    if not mask.any():
        return None
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    corner = (columns[0], rows[0])
    size = (int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1)
    return np.asarray(frame_corners(size) + corner, np.float64)


def _inside(points: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    x, y = np.rint(points).astype(int).T
    return np.asarray(mask[y.clip(0, mask.shape[0] - 1), x.clip(0, mask.shape[1] - 1)])
