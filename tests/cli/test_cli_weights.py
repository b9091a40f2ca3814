"""`tiepoint weights` on a catalogue of one made entry beside the published ones."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tiepoint.cli.weights import weights
from tiepoint.weights import WEIGHTS, WeightsEntry


def run(*arguments: str) -> Result:
    return CliRunner().invoke(weights, list(arguments))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of weights called "tiny" that is not yet in the empty cache."""
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.delenv("TIEPOINT_WEIGHTS", raising=False)
    path = tmp_path / "tiny.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    entry = WeightsEntry(
        name="tiny",
        method="tiny-method",
        file_name="tiny.pth",
        url=None,
        size_bytes=None,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        licence="For tests: only",
        commercial_use=False,
        source="this test",
        note="A note.",
    )
    monkeypatch.setitem(WEIGHTS, "tiny", entry)
    return path


def test_list() -> None:
    everything, commercial = run("list").output, run("list", "--commercial-only").output
    for entry in WEIGHTS.values():
        assert entry.name in everything
        assert (entry.name in commercial) == entry.commercial_use


def test_show() -> None:
    shown = run("show", "magicleap-superpoint").output
    assert "52b6708629640ca883673b5d5c097c4ddad37d8048b33f09c8ca0d69db12c40e" in shown
    assert "no commercial use" in shown
    unknown = run("show", "magicleap-superpiont")
    assert unknown.exit_code == 1
    assert "did you mean magicleap-superpoint" in unknown.output


def test_import_and_verify(file: Path) -> None:
    assert "could not" not in run("verify").output
    imported = run("import", str(file))
    assert imported.exit_code == 0
    assert Path(imported.output.strip()).read_bytes() == file.read_bytes()
    assert "tiny: good" in run("verify", "tiny").output
    assert "tiny: good" in run("verify").output
    Path(imported.output.strip()).write_bytes(b"?")
    damaged = run("verify", "tiny")
    assert damaged.exit_code == 1
    assert "SHA256" in damaged.output


@pytest.mark.usefixtures("file")
def test_fetch_refuses() -> None:
    refused = run("fetch", "tiny", "--commercial-only")
    assert refused.exit_code == 1
    assert "may not be used commercially" in refused.output
    assert "no address to fetch from" in run("fetch", "tiny").output
    assert "no such file" in run("import", "/nowhere.pth").output


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from tiepoint.cli.weights import weights;"
        "assert CliRunner().invoke(weights, ['list']).exit_code == 0;"
        "assert CliRunner().invoke(weights, ['show', 'magicleap-superpoint']).exit_code == 0;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
