"""NumPy archives (.npz) with arrays of Python objects, read without running what they may hold.

Arrays of objects are stored as pickles, and a pickle may call any function. Here it may name nothing but the few
functions of NumPy that make arrays and numbers, and gets stand-ins even for those, which only keep what they are
given: an array is made once its type, its shape and its values have been looked at.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_PLAIN_DTYPE = re.compile(r"[biuf]\d{1,2}|U\d{1,6}|O8?")


def read_object_arrays(file: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    """The arrays called `names`, of numbers, text, None, tuples, lists and arrays of them.

    Raises ValueError for a file that is not there or no archive, lacks an array, or holds anything else.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = set(archive.namelist())
            missing = [name for name in names if f"{name}.npy" not in members]
            if missing:
                raise ValueError(f"has no array {', '.join(missing)}")
            return [_read_array(archive, f"{name}.npy") for name in names]
    except Exception as error:  # damaged zips and pickles raise nearly anything
        raise ValueError(f"{file}: cannot be read as an archive of arrays: {error}") from error


def _read_array(archive: zipfile.ZipFile, member: str) -> NDArray[Any]:
    with archive.open(member) as stream:
        is_of_objects = _read_dtype(stream).hasobject
        if is_of_objects:
            value = _plain(_StandInUnpickler(stream).load())
            if not isinstance(value, np.ndarray):
                raise ValueError(f"{member}: expected an array, got {type(value).__name__}")
            return value
    with archive.open(member) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def _read_dtype(stream: IO[bytes]) -> np.dtype[Any]:
    """Of the array whose header `stream` begins with; what follows in it are the values."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"format {version} of .npy is not known")
    return readers[version](stream)[2]


class _StandInDtype:
    def __init__(self, code: str, *_: object) -> None:
        if not _PLAIN_DTYPE.fullmatch(code):
            raise ValueError(f"it holds values of type {code!r}; only numbers, text and objects are read")
        self.code, self.byte_order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]

    def made(self) -> np.dtype[Any]:
        return np.dtype(self.byte_order + self.code)


class _StandInArray:
    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def made(self) -> NDArray[Any]:
        _, shape, dtype, is_fortran, values = self.state
        if isinstance(values, list):
            flat = np.fromiter((_plain(value) for value in values), object, len(values))
        else:
            flat = np.frombuffer(values, dtype.made())  # refuses a type of objects: bytes are no pointers
        return flat.reshape(shape, order="F" if is_fortran else "C")


def _scalar(dtype: _StandInDtype, values: bytes) -> Any:
    return np.frombuffer(values, dtype.made())[0]


def _encoded(text: str, encoding: str) -> bytes:
    """How Python 3 wrote bytes into the pickles of Python 2."""
    if encoding != "latin1":
        raise ValueError(f"expected bytes as latin1, got {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    "numpy.core.multiarray._reconstruct": _StandInArray,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.ndarray": None,  # an argument of _reconstruct; never called
    "numpy.dtype": _StandInDtype,
    "_codecs.encode": _encoded,
}


class _StandInUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if asked not in _STAND_INS:
            raise ValueError(f"it asks for {module}.{name}; only numbers, text and arrays of them are read, no code")
        return _STAND_INS[asked]


def _plain(value: Any) -> Any:
    """`value` with arrays in place of stand-ins. Raises ValueError for what is neither plain nor a stand-in."""
    if isinstance(value, _StandInArray):
        return value.made()
    if isinstance(value, tuple | list):
        return type(value)(_plain(part) for part in value)
    if value is None or isinstance(value, str | bytes | int | float | np.generic):
        return value
    raise ValueError(f"it holds a {type(value).__name__}; only numbers, text and arrays of them are read")
