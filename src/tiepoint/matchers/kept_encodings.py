"""Encode once, match many, within a bound of memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")
Kept = TypeVar("Kept")

MAX_KEPT_BYTES = 2_000_000_000
"""Encodings kept in memory by one process; beyond it, the one needed last is made anew when its turn comes."""


class KeptEncodings(Generic[Key, Kept]):
    """What was made of each image, kept as long as later pairs need it and it fits in `MAX_KEPT_BYTES`.

    make: from an image's key, whatever holds its encoding. pairs: all that will be asked for, in that order.
    """

    def __init__(self, make: Callable[[Key], Kept], pairs: Sequence[tuple[Key, Key]]) -> None:
        self._make = make
        self._pairs = pairs
        self._uses: dict[Key, list[int]] = {}
        for position, pair in enumerate(pairs):
            for key in pair:
                self._uses.setdefault(key, []).append(position)
        self._kept: dict[Key, Kept] = {}
        self._num_bytes: dict[Key, int] = {}

    def __getitem__(self, key: Key) -> Kept:
        if key not in self._kept:
            self._kept[key] = self._make(key)
        return self._kept[key]

    def done(self, position: int) -> None:
        """Forget what no pair after the one at `position` needs, and what does not fit."""
        for key in self._pairs[position]:
            if self._uses[key][-1] <= position:
                self._forget(key)
            elif key in self._kept:  # some grow while they are matched
                self._num_bytes[key] = num_bytes(self._kept[key])
        while len(self._kept) > 1 and sum(self._num_bytes.values()) > MAX_KEPT_BYTES:
            self._forget(max(self._kept, key=lambda key: self._next_use(key, position)))

    def _forget(self, key: Key) -> None:
        self._kept.pop(key, None)
        self._num_bytes.pop(key, None)

    def _next_use(self, key: Key, position: int) -> int:
        uses = self._uses[key]
        return uses[bisect_right(uses, position)]


def num_bytes(value: Any) -> int:
    """Of all arrays and tensors in dataclasses, tuples, lists and dictionaries."""
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if is_dataclass(value):
        return sum(num_bytes(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, dict):
        return sum(map(num_bytes, value.values()))
    return sum(map(num_bytes, value)) if isinstance(value, (list, tuple)) else 0
