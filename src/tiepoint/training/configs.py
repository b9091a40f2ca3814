"""Configurations changed by name: from a file, or from `name=value` on the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def changed(config: Config, changes: dict[str, Any], alternatives: dict[str, Any] | None = None) -> Config:
    """`config`, a dataclass, with `changes` made, which may be nested as it is.

    alternatives: for a field that may hold one of several dataclasses, the default of each by its `kind`.
    Raises ValueError for a name it does not have, listing those it has, and for a value of another type.
    """
    assert dataclasses.is_dataclass(config)
    values: dict[str, Any] = {}
    types = get_type_hints(type(config))
    for name, value in changes.items():
        if name not in (names := [f.name for f in dataclasses.fields(config)]):
            raise ValueError(f"{type(config).__name__} has no {name!r}; it has: {', '.join(names)}")
        values[name] = _converted(getattr(config, name), value, name, alternatives or {})
        if get_origin(types[name]) is Literal and value not in get_args(types[name]):
            raise ValueError(f"{name}: expected one of {', '.join(get_args(types[name]))}, got {value!r}")
        if get_origin(types[name]) is tuple and Ellipsis not in get_args(types[name]):
            _check_length(getattr(config, name), values[name], name)
    made: Config = dataclasses.replace(config, **values)  # type: ignore[type-var]
    return made


def _converted(current: Any, value: Any, name: str, alternatives: dict[str, Any]) -> Any:
    if dataclasses.is_dataclass(current):
        if not isinstance(value, dict):
            raise ValueError(f"{name}: expected its own settings by name, got {value!r}")
        kind = value.get("kind")
        if kind is not None and kind not in alternatives:
            raise ValueError(f"{name}: expected one of {', '.join(alternatives)}, got {kind!r}")
        return changed(current if kind is None else alternatives[kind], value, alternatives)
    if isinstance(current, tuple) and isinstance(value, list):
        value = tuple(_converted(current[0], one, name, alternatives) for one in value) if current else tuple(value)
    if isinstance(current, float) and isinstance(value, int):
        value = float(value)
    if type(value) is not type(current):
        raise ValueError(f"{name}: expected {type(current).__name__}, like {current!r}; got {value!r}")
    return value


def _check_length(current: tuple[Any, ...], value: tuple[Any, ...], name: str) -> None:
    if len(value) != len(current):
        raise ValueError(f"{name}: expected {len(current)} values, like {list(current)!r}; got {list(value)!r}")


def read_changes(file: Path | None, assignments: tuple[str, ...]) -> dict[str, Any]:
    """The changes of a JSON file (its own, or a run's config.json), overlaid by `a.b=value` assignments.

    Values are JSON; what is none is taken as text. Raises ValueError for what is no assignment.
    """
    changes: dict[str, Any] = {}
    if file is not None:
        read = json.loads(file.read_text())
        changes = read["config"] if "method" in read else read
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"expected name=value, got {assignment!r}")
        *path, last = name.split(".")
        inner = changes
        for step in path:
            inner = inner.setdefault(step, {})
        inner[last] = _value(text)
    return changes


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
