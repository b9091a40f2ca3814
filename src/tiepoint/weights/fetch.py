"""Fetch named weights from their publisher: resumed when broken off, checked, whole or not at all."""

from __future__ import annotations

import urllib.error
import urllib.request
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from tiepoint.weights.catalogue import WeightsEntry
from tiepoint.weights.store import WeightsError, cache_folder, check_file, entry_of

_CHUNK_BYTES = 1 << 18
_TIMEOUT_S = 30.0


def fetch(name: str, *, progress: bool = True) -> Path:
    """Download named weights into the cache, unless a good copy lies there, and return their path.

    A broken-off download is kept beside the target and continued by the next call. The file takes its name
    only when size and hash agree with the catalogue. progress: show a bar on standard error.
    Raises WeightsError when the weights cannot be fetched or what arrives is not what was published.
    """
    entry = entry_of(name)
    if entry.url is None:
        raise WeightsError(
            f"{name} has no address to fetch from"
            + (": it comes with this package" if entry.shipped else f". {entry.note}")
        )
    target = cache_folder() / entry.file_name
    if target.is_file() and _is_good(entry, target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    try:
        _download(entry.url, partial, name if progress else None)
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise WeightsError(
            f"{name}: {entry.url} could not be fetched ({error}); the same again goes on where it stopped"
        ) from error
    try:
        check_file(entry, partial)
    except WeightsError:
        partial.unlink()
        raise
    partial.replace(target)
    return target


def _is_good(entry: WeightsEntry, path: Path) -> bool:
    try:
        check_file(entry, path)
    except WeightsError:
        return False
    return True


def _download(url: str, partial: Path, title: str | None) -> None:
    """Append to `partial` what it lacks of `url`."""
    offset = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "tiepoint"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return  # nothing is lacking; whether it is the right file, the check tells
    with response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            offset = 0  # the server sends the whole file again
        _append(response, partial, offset, title)


def _append(response: HTTPResponse, partial: Path, offset: int, title: str | None) -> None:
    lacking = response.headers.get("Content-Length")
    total = None if lacking is None else offset + int(lacking)
    bar = tqdm(total=total, initial=offset, unit="B", unit_scale=True, desc=title, disable=title is None)
    with bar, partial.open("ab" if offset else "wb") as file:
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))
        if total is not None and file.tell() != total:
            raise ConnectionError(f"the connection ended after {file.tell()} of {total} bytes")
