"""Can registration be trusted: what it accepts, what it refuses, and whether its predicted error is true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from tiepoint.evaluation.contestants import CatalogueEncoder, Encoded
from tiepoint.evaluation.pairs import ImagePair, PlanePair
from tiepoint.evaluation.registration_pairs import EXACT_SETS, KNOWN_WARPS
from tiepoint.evaluation.report import Cell, Chart, Curve, Report, Table
from tiepoint.evaluation.run import Measured, Protocol
from tiepoint.evaluation.sources import Frame
from tiepoint.geometry import Matches, Transform, frame_corners
from tiepoint.matchers import Matcher
from tiepoint.registration import Registrar, Registration, RegistrationConfig
from tiepoint.registration.prediction import common_corners

SOLVABLE_PX = 3.0
"""A pair whose result is off by less, accepted or not, could have been accepted."""

WRONG_PX = 10.0
"""An accepted result that is off by more is wrong."""


@dataclass(frozen=True, kw_only=True)
class RegistrationRecord:
    """One pair. Errors are in pixels of the template, None where nothing is known or nothing was found.

    failed_checks: names of the tests it did not pass, or what was wrong before there was anything to test.
    error_px: mean error at the template's corners, or at the points given. worst_px: the largest at the template's
    corners; worst_common_px: at the corners of the area that both pictures show, which the bound is about.
    bound95_px: predicted. fit_error_px: mean error before refinement. refined: refinement was kept.
    """

    accepted: bool
    failed_checks: list[str]
    num_inliers: int = 0
    error_px: float | None = None
    worst_px: float | None = None
    worst_common_px: float | None = None
    bound95_px: float | None = None
    fit_error_px: float | None = None
    refined: bool = False


Results: TypeAlias = Sequence[Measured[RegistrationRecord]]


@dataclass(frozen=True, kw_only=True)
class RegistrationTrust(Protocol[ImagePair, RegistrationRecord]):
    """Acceptance of pairs that belong together and of pairs that do not; predicted against true error.

    Pairs with a known transform are `PlanePair`, all others must not be accepted. Image 0 is the source, image 1
    the template. seed: of the robust fits. Methods are those of the catalogue.
    """

    seed: int = 0

    record_type = RegistrationRecord

    def measure(
        self,
        pair: ImagePair,
        encoded0: Encoded,
        encoded1: Encoded,
        matches: Matches,
    ) -> RegistrationRecord:
        if not isinstance(encoded1.encoder, CatalogueEncoder):
            raise ValueError(f"registration: expected a method of the catalogue, got {matches.method}")
        registrar = _registrar(encoded1.frame, encoded1.encoder.matcher, self.seed)
        result = registrar.register(encoded0.frame.image, encoded0.encoding)
        failed = [check.name for check in result.verdict.checks if not check.passed]
        if result.verdict.failure is not None:
            failed.append(result.verdict.failure.split(":")[0])
        bound = None if result.prediction is None else _finite(result.prediction.bound95_px)
        errors = _Errors(pair, encoded0.frame, encoded1.frame) if isinstance(pair, PlanePair) else None
        transform, fitted = result.transform, result.estimate.model
        return RegistrationRecord(
            accepted=result.accepted,
            failed_checks=failed,
            num_inliers=result.estimate.num_inliers,
            error_px=errors.mean(transform) if errors and transform else None,
            worst_px=errors.worst(transform) if errors and transform else None,
            worst_common_px=errors.worst_common(transform) if errors and transform else None,
            bound95_px=bound,
            fit_error_px=errors.mean(fitted) if errors and fitted else None,
            refined=_is_refined(result),
        )

    def failure(self, pair: ImagePair) -> RegistrationRecord:
        return RegistrationRecord(accepted=False, failed_checks=["the method failed"])

    def report(self, results: dict[str, list[Measured[RegistrationRecord]]]) -> Report:
        """Tables with a row for each part of the data and method; true error over predicted."""
        tables = {
            "related": _related_table(results),
            "unrelated": _unrelated_table(results),
            "calibration": _calibration_table(results),
            "refinement": _refinement_table(results),
            "refusals": _refusals_table(results),
        }
        wrong = _wrong_table(results)
        return Report(
            tables={**tables, "wrong": wrong} if wrong.rows else tables,
            figures={"calibration": tuple(_calibration_chart(name, found) for name, found in results.items())},
        )


@lru_cache(maxsize=4)  # pairs come template by template
def _registrar(template: Frame, matcher: Matcher[Any], seed: int) -> Registrar[Any]:
    return Registrar(template.image, matcher, RegistrationConfig(seed=seed))


def _is_refined(result: Registration) -> bool:
    return result.refinement is not None and result.refinement.kept


class _Errors:
    """How far a transform is from the truth of a pair; None where that is infinite."""

    def __init__(self, pair: PlanePair, source: Frame, template: Frame) -> None:
        truth = pair.truth_between(source, template)
        self._back = truth.inverse()
        self._corners = frame_corners(template.image.size)
        self._common = common_corners(truth, source.image.size, template.image.size)
        self._points = (self._back(self._corners), self._corners)
        if pair.points0 is not None and pair.points1 is not None:
            self._points = (source.frame_from_file(pair.points0), template.frame_from_file(pair.points1))

    def mean(self, transform: Transform) -> float | None:
        return _finite(float(transform.residuals(*self._points).mean()))

    def worst(self, transform: Transform) -> float | None:
        return _finite(float(transform.residuals(self._back(self._corners), self._corners).max()))

    def worst_common(self, transform: Transform) -> float | None:
        return _finite(float(transform.residuals(self._back(self._common), self._common).max()))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def upper_bound95(count: int, total: int) -> float:
    """The share that `count` of `total` is below with 95 % confidence.

    Exact for none (Clopper & Pearson, one-sided: 1 - 0.05^(1/n)); otherwise the upper end of `interval95`.
    """
    if total == 0:
        return 1.0
    return float(1 - 0.05 ** (1 / total)) if count == 0 else interval95(count, total)[1]


def interval95(count: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share (JASA 1927)."""
    if total == 0:
        return 0.0, 1.0
    z = 1.959964
    share, scale = count / total, 1 + z**2 / total
    middle = (share + z**2 / (2 * total)) / scale
    half = z / scale * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def _of_kind(measured: Results, kind: Callable[[ImagePair], bool]) -> list[tuple[str, Results]]:
    """The results of each subset of pairs of a kind, then of all of them."""
    chosen = [one for one in measured if kind(one.pair)]
    subsets = dict.fromkeys(one.pair.subset for one in chosen)
    parts: list[tuple[str, Results]] = [(name, [one for one in chosen if one.pair.subset == name]) for name in subsets]
    return [*parts, ("all", chosen)] if len(parts) > 1 else parts


def _rows(
    results: dict[str, list[Measured[RegistrationRecord]]],
    kind: Callable[[ImagePair], bool],
    cells: Callable[[Results], tuple[Cell, ...]],
) -> tuple[tuple[Cell, ...], ...]:
    return tuple(
        (part, len(found), method, *cells(found))
        for method, measured in results.items()
        for part, found in _of_kind(measured, kind)
    )


def _is_related(pair: ImagePair) -> bool:
    return isinstance(pair, PlanePair) and pair.subset != KNOWN_WARPS


def _is_unrelated(pair: ImagePair) -> bool:
    return not isinstance(pair, PlanePair)


def _is_exact(pair: ImagePair) -> bool:
    return pair.subset in EXACT_SETS


def _share(count: int, total: int) -> tuple[float | None, str]:
    low, high = interval95(count, total)
    return (100 * count / total if total else None), f"{100 * low:.1f} ... {100 * high:.1f}"


def _related_table(results: dict[str, list[Measured[RegistrationRecord]]]) -> Table:
    def cells(found: Results) -> tuple[Cell, ...]:
        records = [one.record for one in found]
        accepted = [record for record in records if record.accepted]
        solvable = [record for record in records if _error(record) < SOLVABLE_PX]
        taken = sum(record.accepted for record in solvable)
        wrong = sum(_error(record) > WRONG_PX for record in accepted)
        worst = max((_error(record) for record in accepted), default=None)
        return (
            len(solvable),
            taken,
            *_share(taken, len(solvable)),
            len(accepted),
            wrong,
            100 * upper_bound95(wrong, len(accepted)),
            worst,
        )

    return Table(
        title="Pairs that belong together",
        columns=(
            *("set", "pairs", "method", "solvable", "of them accepted", "%", "95 % interval"),
            *("accepted", "wrong", "wrong below %", "largest error px"),
        ),
        rows=_rows(results, _is_related, cells),
        notes=(
            f"Solvable: mean error at the template's corners (at given points, where there are) below"
            f" {SOLVABLE_PX:g} px, accepted or not. Wrong: accepted and off by more than {WRONG_PX:g} px; the share"
            " of wrong ones is below the figure given with 95 % confidence.",
        ),
        decimals=2,
    )


def _unrelated_table(results: dict[str, list[Measured[RegistrationRecord]]]) -> Table:
    def cells(found: Results) -> tuple[Cell, ...]:
        accepted = sum(one.record.accepted for one in found)
        return accepted, 100 * upper_bound95(accepted, len(found))

    return Table(
        title="Pairs that do not belong together, or cannot be aligned",
        columns=("kind", "pairs", "method", "accepted", "share below %"),
        rows=_rows(results, _is_unrelated, cells),
        notes=("The share of false acceptances is below the figure given with 95 % confidence.",),
        decimals=3,
    )


def _calibration_table(results: dict[str, list[Measured[RegistrationRecord]]]) -> Table:
    def cells(found: Results) -> tuple[Cell, ...]:
        known = [one.record for one in found if one.record.accepted and one.record.bound95_px is not None]
        errors = np.array([_or_infinite(record.worst_px) for record in known])
        common = np.array([_or_infinite(record.worst_common_px) for record in known])
        bounds = np.array([_or_infinite(record.bound95_px) for record in known])
        return (
            len(known),
            *_share(int((errors <= bounds).sum()), len(known)),
            100 * float((common <= bounds).mean()) if known else None,
            _median(errors),
            _median(bounds),
        )

    return Table(
        title="Is the predicted error true?",
        columns=(
            *("set", "pairs", "method", "accepted", "below bound %", "95 % interval", "common area %"),
            *("median worst px", "median bound px"),
        ),
        rows=_rows(results, _is_exact, cells),
        notes=(
            "Accepted pairs of the sets with exact truth. Below bound: the largest error at the template's corners"
            " is below the predicted 95 % bound; common area: the largest at the corners of the area that both"
            " pictures show.",
        ),
        decimals=3,
    )


def _refinement_table(results: dict[str, list[Measured[RegistrationRecord]]]) -> Table:
    def cells(found: Results) -> tuple[Cell, ...]:
        accepted = [one.record for one in found if one.record.accepted]
        before = np.array([_or_infinite(record.fit_error_px) for record in accepted])
        after = np.array([_or_infinite(record.error_px) for record in accepted])
        refined = sum(record.refined for record in accepted)
        return (
            len(accepted),
            100 * refined / len(accepted) if accepted else None,
            _median(before),
            _median(after),
            _median(after) / _median(before) if accepted else None,
            100 * float((after <= before).mean()) if accepted else None,
        )

    return Table(
        title="Refinement by intensity",
        columns=(
            *("set", "pairs", "method", "accepted", "kept %", "median error before px", "after px"),
            *("after / before", "no worse %"),
        ),
        rows=_rows(results, _is_exact, cells),
        notes=("Mean error at the template's corners, over accepted pairs of the sets with exact truth.",),
        decimals=4,
    )


def _refusals_table(results: dict[str, list[Measured[RegistrationRecord]]]) -> Table:
    """Solvable pairs that were refused, and why."""
    rows = [
        (one.pair.key, method, record.error_px, record.num_inliers, ", ".join(record.failed_checks))
        for method, measured in results.items()
        for one in measured
        for record in (one.record,)
        if isinstance(one.pair, PlanePair) and not record.accepted and _error(record) < SOLVABLE_PX
    ]
    return Table(
        title="Solvable, and refused",
        columns=("pair", "method", "error px", "inliers", "tests not passed"),
        rows=tuple(rows),
        decimals=2,
    )


def _wrong_table(results: dict[str, list[Measured[RegistrationRecord]]]) -> Table:
    """Every acceptance that should not have been."""
    rows = [
        (one.pair.key, method, record.error_px, record.bound95_px, record.num_inliers)
        for method, measured in results.items()
        for one in measured
        for record in (one.record,)
        if record.accepted and (_is_unrelated(one.pair) or _error(record) > WRONG_PX)
    ]
    return Table(
        title="Accepted, and wrong",
        columns=("pair", "method", "error px", "bound px", "inliers"),
        rows=tuple(rows),
        decimals=2,
    )


def _calibration_chart(method: str, measured: Results) -> Chart:
    curves = []
    for part, found in _of_kind(measured, _is_exact):
        records = [one.record for one in found if one.record.accepted]
        known = [record for record in records if record.bound95_px and record.worst_px]
        if part != "all" and known:
            x = [_or_infinite(record.bound95_px) for record in known]
            y = [_or_infinite(record.worst_px) for record in known]
            curves.append(Curve(label=part, x=x, y=y, style="points"))
    every = [value for curve in curves for value in curve.x] or [1.0]
    line = [min(every), max(every)]
    return Chart(
        title=f"{method}: below the line, the bound holds",
        x_label="predicted 95 % bound (px)",
        y_label="true worst error at the corners (px)",
        curves=(*curves, Curve(label="bound", x=line, y=line, style="dashed")),
        scale="log-log",
    )


def _error(record: RegistrationRecord) -> float:
    return _or_infinite(record.error_px)


def _or_infinite(value: float | None) -> float:
    return float("inf") if value is None else value


def _median(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    return float(np.median(values)) if len(values) else float("nan")
