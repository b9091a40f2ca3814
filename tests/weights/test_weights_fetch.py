"""Fetching from a server of our own: whole, resumed, refused."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tiepoint.weights import WEIGHTS, WeightsEntry, WeightsError, fetch
from tiepoint.weights.store import cache_folder

CONTENT = bytes(range(256)) * 4000


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `ranges`: what clients asked for, `cut`: where answers end, `resumes`: honour Range."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.cut: int | None = None
        self.resumes = True
        self.content = CONTENT


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        if not self.path.endswith("tiny.pth"):
            self.send_error(404)
            return
        content, start = self.server.content, 0
        if asked and self.server.resumes:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with Server() as made:
        _enter(monkeypatch, f"http://127.0.0.1:{made.server_address[1]}/tiny.pth")
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def _enter(monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    entry = WeightsEntry(
        name="tiny",
        method="tiny-method",
        file_name="tiny.pth",
        url=url,
        size_bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="MIT",
        commercial_use=True,
        source="this test",
        note="Ask its author.",
    )
    monkeypatch.setitem(WEIGHTS, "tiny", entry)


def test_fetches_once(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch("tiny").read_bytes() == CONTENT
    assert "tiny: 100%" in capsys.readouterr().err
    fetch("tiny", progress=False)
    assert server.ranges == [None]
    assert capsys.readouterr().err == ""
    assert [path.name for path in cache_folder().iterdir()] == ["tiny.pth"]


@pytest.mark.parametrize("resumes", [True, False])
def test_goes_on_where_it_stopped(server: Server, resumes: bool) -> None:
    server.cut, server.resumes = 500_000, resumes
    with pytest.raises(WeightsError, match="500000 of 1024000 bytes"):
        fetch("tiny", progress=False)
    assert not (cache_folder() / "tiny.pth").exists()
    server.cut = None
    assert fetch("tiny", progress=False).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=500000-"]


@pytest.mark.usefixtures("server")
def test_a_complete_part_is_taken() -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "tiny.pth.part").write_bytes(CONTENT)
    assert fetch("tiny", progress=False).read_bytes() == CONTENT


def test_what_is_not_the_published_file_is_thrown_away(server: Server) -> None:
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(WeightsError, match="SHA256"):
        fetch("tiny", progress=False)
    assert list(cache_folder().iterdir()) == []


def test_a_web_page_in_place_of_weights_is_thrown_away(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights whose hash nobody has published."""
    monkeypatch.setitem(WEIGHTS, "tiny", replace(WEIGHTS["tiny"], size_bytes=None, sha256=None))
    server.content = b"<html>Sign in to this network</html>"
    with pytest.raises(WeightsError, match="no PyTorch checkpoint"):
        fetch("tiny", progress=False)
    assert not list(cache_folder().iterdir())
    server.content = b"PK\x03\x04" + CONTENT
    assert fetch("tiny", progress=False).read_bytes() == server.content


@pytest.mark.usefixtures("server")
def test_a_damaged_copy_is_replaced() -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / "tiny.pth").write_bytes(CONTENT[:-1])
    assert fetch("tiny", progress=False).read_bytes() == CONTENT


def test_not_found_and_no_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _enter(monkeypatch, f"http://127.0.0.1:{server.server_address[1]}/gone")
    with pytest.raises(WeightsError, match="404"):
        fetch("tiny", progress=False)
    _enter(monkeypatch, "http://127.0.0.1:1/tiny.pth")
    with pytest.raises(WeightsError, match="could not be fetched"):
        fetch("tiny", progress=False)
    _enter(monkeypatch, None)
    with pytest.raises(WeightsError, match="no address to fetch from"):
        fetch("tiny", progress=False)
