"""Archives with arrays of objects are read, and run nothing."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from tiepoint.training.object_arrays import read_object_arrays


def objects(*values):
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_values_are_as_they_were_written(tmp_path, protocol):
    matrix = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    mixed = objects("a.jpg", None, (1, np.float32(0.5)), [np.int64(3), b"x"], matrix, np.array([True]), np.array("é"))
    file = tmp_path / "a.npz"
    np.savez(file, mixed=np.zeros(0), numbers=np.arange(4))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive, archive.open("mixed.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|O", "fortran_order": False, "shape": mixed.shape})
        pickle.dump(mixed, member, protocol)
    (read,) = read_object_arrays(tmp_path / "b.npz", ["mixed"])
    assert read[:2].tolist() == ["a.jpg", None]
    assert read[2] == (1, 0.5)
    assert read[3] == [3, b"x"]
    assert np.array_equal(read[4], matrix)
    assert read[5].tolist() == [True]
    assert read[6] == "é"
    assert read_object_arrays(file, ["numbers"])[0].tolist() == [0, 1, 2, 3]


class Hostile:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("call", "asked"),
    [
        ((os.mkdir, ("made",)), "posix.mkdir"),
        ((eval, ("__import__('os').mkdir('made')",)), "builtins.eval"),
        ((np.fromfile, ("secret",)), "fromfile"),
        ((np.dtype, ("V8",)), "'V8'"),
    ],
)
def test_hostile_archives_are_refused(tmp_path, monkeypatch, call, asked):
    monkeypatch.chdir(tmp_path)
    np.savez("bad.npz", paths=objects("a.jpg", Hostile(*call)))
    with pytest.raises(ValueError, match=rf"bad\.npz: cannot be read.*{asked}"):
        read_object_arrays(tmp_path / "bad.npz", ["paths"])
    assert not (tmp_path / "made").exists()


def test_bytes_are_no_pointers(tmp_path):
    """An array of objects whose values are bytes would have them followed as addresses."""
    made_by = np.empty(0).__reduce__()[0]
    state = (1, (1,), np.dtype(object), False, b"\x41" * 8)
    np.savez(tmp_path / "bad.npz", paths=objects(Hostile(made_by, (np.ndarray, (0,), b"b"), state)))
    with pytest.raises(ValueError, match="cannot be read"):
        read_object_arrays(tmp_path / "bad.npz", ["paths"])


def test_damaged_and_incomplete_archives_are_named(tmp_path):
    file = tmp_path / "a.npz"
    np.savez(file, paths=objects("a.jpg"))
    with pytest.raises(ValueError, match=r"a\.npz.*no array poses"):
        read_object_arrays(file, ["paths", "poses"])
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a\.npz: cannot be read as an archive"):
        read_object_arrays(file, ["paths"])
    with pytest.raises(ValueError, match="none"):
        read_object_arrays(tmp_path / "none.npz", ["paths"])
