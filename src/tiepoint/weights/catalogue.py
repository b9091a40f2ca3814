"""The named checkpoints: where they come from, what they may be used for, how to recognise them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """One checkpoint. How a network must be set up for it is declared beside the network, under this name.

    name: what a user asks for.
    method: the method of the matchers' catalogue that takes it.
    file_name: the file as published; a file of this name in the cache or in TIEPOINT_WEIGHTS is found offline.
    url: where it is fetched from, or None when it is shipped in the package or must be fetched by hand.
    size_bytes, sha256: of the file, None where not known.
    licence: of the weights.
    commercial_use: whether that licence allows it.
    source: paper and publisher.
    note: what a user should know: training data, preset, flags, known faults.
    shipped: whether the file is in this package (weights/shipped).
    """

    name: str
    method: str
    file_name: str
    url: str | None
    size_bytes: int | None
    sha256: str | None
    licence: str
    commercial_use: bool
    source: str
    note: str
    shipped: bool = False
