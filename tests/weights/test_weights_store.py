"""Weights files: found, recognised, loaded strictly; damaged, foreign and malicious ones refused."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402

from tiepoint.weights import (  # noqa: E402
    WEIGHTS,
    WeightsEntry,
    WeightsError,
    default_weights,
    find_weights,
    import_file,
    load_strictly,
    load_weights,
    verify,
)
from tiepoint.weights.store import cache_folder  # noqa: E402


class _RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code ran",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TIEPOINT_WEIGHTS folder beside an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("TIEPOINT_WEIGHTS", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsEntry:
    """A catalogue entry "tiny", and its file at tmp_path / "tiny.pth"."""
    path = tmp_path / "tiny.pth"
    torch.save({"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}, path)
    made = WeightsEntry(
        name="tiny",
        method="tiny-method",
        file_name="tiny.pth",
        url=None,
        size_bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        licence="MIT",
        commercial_use=True,
        source="this test",
        note="",
    )
    monkeypatch.setitem(WEIGHTS, "tiny", made)
    return made


def test_catalogue_is_consistent() -> None:
    for name, entry in WEIGHTS.items():
        assert name == entry.name
        assert Path(name).name == name
        assert entry.url is None or entry.url.endswith("/" + entry.file_name)
        assert entry.sha256 is None or len(entry.sha256) == 64
        assert entry.git_sha1 is None or len(entry.git_sha1) == 40
        assert not (entry.shipped and "Magic Leap" in entry.licence)
    assert len({entry.file_name for entry in WEIGHTS.values()}) == len(WEIGHTS)


def test_shipped_files_are_there() -> None:
    for entry in WEIGHTS.values():
        if entry.shipped:
            verify(entry.name)


@pytest.mark.usefixtures("entry")
def test_finds_by_path_folder_and_cache(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.pth"
    assert find_weights(file) == file
    with pytest.raises(WeightsError, match="tiepoint weights fetch tiny"):
        find_weights("tiny")
    assert import_file(file) == cache_folder() / "tiny.pth" == find_weights("tiny")
    (folder / "tiny.pth").write_bytes(file.read_bytes())
    assert find_weights("tiny") == folder / "tiny.pth"
    assert verify("tiny") == folder / "tiny.pth"


def test_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(WeightsError, match="magicleap-superpoint"):
        find_weights("magicleap-superpiont")


def test_default_weights_say_how_to_get_some(entry: WeightsEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"tiepoint weights fetch NAME.*tiny"):
        default_weights("tiny-method")
    monkeypatch.setitem(WEIGHTS, "tiny", dataclasses.replace(entry, shipped=True))
    assert default_weights("tiny-method") == "tiny"


@pytest.mark.usefixtures("folder", "entry")
def test_import_recognises_by_hash_and_refuses_others(tmp_path: Path) -> None:
    renamed = (tmp_path / "tiny.pth").rename(tmp_path / "other.pth")
    assert import_file(renamed).name == "tiny.pth"
    torch.save({"weight": torch.zeros(1)}, tmp_path / "stranger.pth")
    with pytest.raises(WeightsError, match="none of the named weights"):
        import_file(tmp_path / "stranger.pth")
    with pytest.raises(WeightsError, match="bytes expected"):
        import_file(tmp_path / "stranger.pth", "tiny")


@pytest.mark.usefixtures("folder")
def test_git_object_name_recognises(tmp_path: Path, entry: WeightsEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (tmp_path / "tiny.pth").read_bytes()
    known = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    monkeypatch.setitem(WEIGHTS, "tiny", dataclasses.replace(entry, sha256=None, git_sha1=known))
    import_file(tmp_path / "tiny.pth")
    monkeypatch.setitem(WEIGHTS, "tiny", dataclasses.replace(entry, sha256=None, git_sha1="0" * 40))
    with pytest.raises(WeightsError, match="SHA1"):
        import_file(tmp_path / "tiny.pth")


@pytest.mark.usefixtures("entry")
def test_verify_finds_one_changed_byte(folder: Path, tmp_path: Path) -> None:
    content = bytearray((tmp_path / "tiny.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "tiny.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="SHA256"):
        verify("tiny")


@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict"])
def test_containers_are_unwrapped(tmp_path: Path, container: str | None) -> None:
    tensors = {"weight": torch.ones(2)}
    torch.save(tensors if container is None else {"n_iter": 7, container: tensors}, tmp_path / "a.pth.tar")
    assert torch.equal(load_weights(tmp_path / "a.pth.tar")["weight"], torch.ones(2))


def test_safetensors(tmp_path: Path) -> None:
    save_file({"weight": torch.arange(3.0)}, tmp_path / "a.safetensors")
    assert torch.equal(load_weights(tmp_path / "a.safetensors")["weight"], torch.arange(3.0))
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[:-4])
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(tmp_path / "a.safetensors")


def test_code_in_a_file_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.ones(2), "extra": _RunsCode()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(_RunsCode(), protocol=2))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(WeightsError, match="refused"):
            load_weights(tmp_path / name)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("length", [0, 1, 4, 100, 500, -1, -40])
def test_cut_short_files_are_refused(tmp_path: Path, length: int) -> None:
    torch.save({"weight": torch.ones(64)}, tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content[:length])
    with pytest.raises(WeightsError, match=r"a\.pth is damaged"):
        load_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\x80\x02", b"PK\x03\x04", b"\0" * 99, b"hello"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError):
        load_weights(tmp_path / "a.pth")


def test_no_tensors_are_refused(tmp_path: Path) -> None:
    for value in ({}, [1, 2], {"epoch": 3}, torch.ones(2), {"weight": torch.ones(1), "epoch": 3}):
        torch.save(value, tmp_path / "a.pth")
        with pytest.raises(WeightsError, match="tensors by name"):
            load_weights(tmp_path / "a.pth")


def test_strict_loading_names_what_does_not_fit() -> None:
    linear = torch.nn.Linear(3, 2)
    load_strictly(linear, {"weight": torch.ones(2, 3), "bias": torch.ones(2)}, "good")
    assert linear.weight.sum() == 6
    with pytest.raises(WeightsError, match=r"bad does not fit Linear: .*1 missing: bias; 1 unknown: extra"):
        load_strictly(linear, {"weight": torch.ones(2, 3), "extra": torch.ones(2)}, "bad")
    with pytest.raises(WeightsError, match=r"weight \(\(2, 3\) expected, got \(3, 2\)\)"):
        load_strictly(linear, {"weight": torch.ones(3, 2), "bias": torch.ones(2)}, "bad")


def test_catalogue_needs_no_torch() -> None:
    code = "import sys, tiepoint.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
