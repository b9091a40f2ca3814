"""One run of a protocol: every method over all pairs, resumed where it stopped, reported into a folder."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from tiepoint.evaluation.contestants import CatalogueMethod, Contestant, Oracle
from tiepoint.evaluation.pairs import ImagePair
from tiepoint.evaluation.provenance import data_digest, fingerprint, versions
from tiepoint.evaluation.report import Report, slug, write_report
from tiepoint.evaluation.run import Measured, Protocol, evaluate
from tiepoint.matchers import MatcherOptions

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")

SELF_CHECK = (Oracle(0.0), Oracle(1.0))


def contestants(methods: Sequence[str], options: MatcherOptions, *, self_check: bool = False) -> list[Contestant]:
    """Methods of the catalogue, after the oracles if asked for."""
    return [*(SELF_CHECK if self_check else ()), *(CatalogueMethod(name, options) for name in methods)]


def run_session(
    protocol: Protocol[Any, Any],
    methods: Sequence[Contestant],
    pairs: Sequence[ImagePair],
    *,
    data: Path,
    out: Path,
    workers: int = 1,
    settings: dict[str, Any] | None = None,
) -> Report:
    """Evaluate `methods` on `pairs` and write `result.json`, `pairs.csv` and the tables as CSV into `out`.

    Results of single pairs are kept in `out/pairs`, under names made from everything they depend on (settings,
    versions, code, data), so that a run started again goes on, and never with what belongs to another.
    settings: what the caller chose beside the protocol's own, for the record. Progress goes to standard error.
    """
    results = run_methods(protocol, methods, pairs, data=data, journals=out / "pairs", workers=workers)
    report = protocol.report(results)
    repeat = {
        "data": str(data),
        "num_pairs": len(pairs),
        "settings": {**_settings(protocol), **(settings or {})},
        "methods": [_method_settings(method) for method in methods],
        **_conditions(protocol, pairs, data),
    }
    write_report(out, report, results, repeat)
    return report


def run_methods(
    protocol: Protocol[Any, Record],
    methods: Sequence[Contestant],
    pairs: Sequence[ImagePair],
    *,
    data: Path,
    journals: Path,
    workers: int = 1,
) -> dict[str, list[Measured[Record]]]:
    """The results of each method, kept pair by pair in the folder `journals`. Raises ValueError without pairs."""
    if not pairs:
        raise ValueError(f"{data}: no pairs to evaluate")
    conditions = _conditions(protocol, pairs, data)
    results = {}
    for method in methods:
        key = fingerprint(_method_settings(method), _settings(protocol), conditions)
        journal = journals / f"{slug(method.name)}-{key}.jsonl"
        with tqdm(total=len(pairs), desc=method.name, unit="pair", file=sys.stderr, disable=None) as bar:
            results[method.name] = evaluate(
                protocol, method, pairs, journal=journal, workers=workers, progress=bar.update
            )
    return results


def _conditions(protocol: Protocol[Any, Any], pairs: Sequence[ImagePair], data: Path) -> dict[str, Any]:
    """What results depend on beside the settings."""
    return {
        "protocol": type(protocol).__name__.lower(),
        "data_sha256": data_digest(pairs, data),
        "versions": versions(),
    }


def _settings(protocol: Protocol[Any, Any]) -> dict[str, Any]:
    return asdict(protocol)  # type: ignore[call-overload,no-any-return]


def _method_settings(method: Contestant) -> dict[str, Any]:
    """With the content of a file of weights, not its name alone."""
    settings = method.settings()
    weights = settings.get("weights")
    if weights is not None and Path(weights).is_file():
        settings["weights_sha256"] = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    return settings
