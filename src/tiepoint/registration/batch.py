"""Register many files to one template: in parallel, and safe against interruption at any moment.

Each source's outputs are written whole, its record last; a run started again finds the records, keyed by the
content of source, template and configuration, and goes on where it stopped. The summaries are made from the
records at the end, in the order of the sources, so that they do not depend on who finished first.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import filelock
import numpy as np
import threadpoolctl

import tiepoint
from tiepoint.geometry import Transform
from tiepoint.images import (
    DEFAULT_MAX_PIXELS,
    Image,
    ImageError,
    ResizeMap,
    gray_view,
    read_image,
    suffix_for,
    write_atomically,
    write_image,
)
from tiepoint.matchers import MatcherOptions, matcher
from tiepoint.registration.agreement import Likeness
from tiepoint.registration.cascade import Cascade, auto_steps
from tiepoint.registration.memory import keep_freed_memory
from tiepoint.registration.processes import ignore_interrupts, threads_in_environment
from tiepoint.registration.records import (
    Record,
    failed_record,
    registration_record,
    to_json,
    unreadable_record,
    write_csv,
    write_jsonl,
)
from tiepoint.registration.register import Registrar, RegistrationConfig
from tiepoint.registration.report import write_report
from tiepoint.registration.sources import Source
from tiepoint.registration.thumbnails import thumbnails
from tiepoint.registration.warp import warp_with_mask
from tiepoint.weights import weights_files


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """All that a run's results depend on, beside the pictures.

    template, mask: files; the mask's pixels of value 0 do not count. method, options: the matcher, or
    "auto" for a cascade. registration: how to fit and judge. overlays: write overlays too. max_pixels: limit of
    a picture's size.
    """

    template: Path
    mask: Path | None = None
    method: str = "auto"
    options: MatcherOptions = field(default_factory=MatcherOptions)
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)
    overlays: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS

    def digest(self) -> str:
        """SHA-256 of the configuration, of the content of template, mask and weights files, and of the version.

        For "auto", of its steps too: which there are depends on what is installed.
        """
        total = hashlib.sha256(tiepoint.__version__.encode())
        total.update(repr((self.method, self.options, self.registration, self.overlays, self.max_pixels)).encode())
        if self.method == "auto":
            total.update(repr([step.name for step in auto_steps(self.options)]).encode())
        for path in (self.template, self.mask, *weights_files(self.options.weights)):
            total.update(b"|" + (path.read_bytes() if path is not None and path.is_file() else b""))
        return total.hexdigest()


def output_folders(out: Path) -> tuple[Path, ...]:
    """The folders below `out` that a run writes its pictures and its state to."""
    return tuple(out / name for name in ("aligned", "masks", "overlays", ".tiepoint"))


class RunInUse(RuntimeError):
    """Another run is writing to the same folder."""


@dataclass(frozen=True)
class _Folder:
    """Where a run writes."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / ".tiepoint"

    def aligned(self, name: str, suffix: str) -> Path:
        return self.root / "aligned" / f"{name}{suffix}"

    def mask(self, name: str) -> Path:
        return self.root / "masks" / f"{name}.png"

    def overlay(self, name: str) -> Path:
        return self.root / "overlays" / f"{name}.jpg"

    def record(self, name: str) -> Path:
        return self.state / "records" / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.json"

    def thumbnails(self, name: str) -> Path:
        return self.record(name).with_suffix(".jpg")

    def remove_partial_files(self) -> None:
        """What a killed run left half-written; nobody else writes here while the lock is held.

        `root` may be a folder with much else in it: no deeper than the run's own folders is looked.
        """
        pattern = ".*.partial"
        below = (folder.rglob(pattern) for folder in output_folders(self.root))
        for partial in itertools.chain(self.root.glob(pattern), *below):
            partial.unlink(missing_ok=True)


def run_batch(
    config: BatchConfig,
    sources: Sequence[Source],
    out: Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    overwrite: bool = False,
    progress: Callable[[Record, bool], None] = lambda _record, _reused: None,
) -> Counter[str]:
    """Register every source and write aligned images, masks and summaries into the folder `out`.

    workers: processes; the outputs are the same bytes for any number. ray: address of a Ray cluster on which to
    start them ("local": one on this machine); None: processes of this machine, without Ray. overwrite: do
    everything again. progress: called with each record as it is made, and whether it was there already.
    Returns how many sources came to each status. Records are read back from their files for the summaries, so
    that memory does not grow with the number of sources.

    Raises ImageError when the template or mask cannot be read, ValueError or MethodUnavailable for a method
    that is not there, RunInUse when another run holds the folder, OSError when `out` cannot be written.
    """
    folder = _Folder(out)
    folder.state.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.state / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise RunInUse(f"{out}: another tiepoint run is writing to this folder; wait for it or use another") from error
    try:
        folder.remove_partial_files()
        digest = config.digest()
        counts: Counter[str] = Counter()
        waiting: list[Source] = []
        for source in sources:
            record = None if overwrite else _finished(folder, source, digest)
            if record is None:
                waiting.append(source)
            else:
                counts[record["status"]] += 1
                progress(record, True)
        unwritten: dict[str, Record] = {}
        for name, record in _work_through(config, waiting, folder, digest, workers, ray):
            counts[record["status"]] += 1
            if record["status"] == "unwritten":  # nor may its record be on the disk
                unwritten[name] = record
            progress(record, False)

        def records() -> Iterator[Record]:
            for source in sources:
                yield unwritten.get(source.name) or _stored_record(folder, source)

        write_jsonl(out / "registrations.jsonl", records())
        write_csv(out / "registrations.csv", records())
        template = read_image(config.template, max_pixels=config.max_pixels)
        write_report(out / "report.html", records(), template, lambda index: _thumbnails(folder, sources[index]))
        return counts
    finally:
        lock.release()


def _finished(folder: _Folder, source: Source, digest: str) -> Record | None:
    """The record of a source that needs no more work, or None."""
    try:
        key, record = _read_record(folder, source)
        if key != _key(digest, source.path.read_bytes()) or record["status"] not in ("accepted", "rejected"):
            return None
        if record["status"] == "accepted" and not (folder.root / record["aligned"]).is_file():
            return None
        return record
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not ours
        return None


def _stored_record(folder: _Folder, source: Source) -> Record:
    """The record of a source that was worked on, from its file."""
    try:
        return _read_record(folder, source)[1]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return unreadable_record(str(source.path), f"its record could not be read back: {error}")


def _read_record(folder: _Folder, source: Source) -> tuple[str, Record]:
    """What a source's record was made from, as a key, and the record, with the path by which the source goes now."""
    stored = json.loads(folder.record(source.name).read_text(encoding="utf-8"))
    return stored["key"], {**stored["record"], "source": str(source.path)}


def _thumbnails(folder: _Folder, source: Source) -> bytes | None:
    path = folder.thumbnails(source.name)
    return path.read_bytes() if path.is_file() else None


def _key(digest: str, content: bytes) -> str:
    return hashlib.sha256(digest.encode() + hashlib.sha256(content).digest()).hexdigest()


def _work_through(
    config: BatchConfig, sources: Sequence[Source], folder: _Folder, digest: str, workers: int, ray: str | None
) -> Iterator[tuple[str, Record]]:
    """Records as they are made, by this process or by others, with a bounded number of sources under way."""
    if not sources:
        _Worker(config, folder, digest)  # a template that cannot be read is an error even with nothing to do
        return
    if ray is not None:
        from tiepoint.registration.cluster import work_on_ray

        _Worker(config, folder, digest)  # fail here, with a clear message, and not on every machine
        yield from work_on_ray(ray, functools.partial(_Worker, config, folder, digest), sources, workers)
        return
    if workers == 1:
        worker = _Worker(config, folder, digest)
        for source in sources:
            yield source.name, worker.process(source)
        return
    threads = max(1, multiprocessing.cpu_count() // workers)
    context = multiprocessing.get_context("spawn")  # forking a process with threads of OpenCV or torch can hang
    _Worker(config, folder, digest)  # fail here, with a clear message, and not in every process
    with (
        threads_in_environment(threads),
        ProcessPoolExecutor(
            workers, mp_context=context, initializer=_start_worker, initargs=(config, folder, digest, threads)
        ) as pool,
    ):
        under_way: dict[Future[Record], Source] = {}
        remaining = iter(sources)
        try:
            while True:
                for source in itertools.islice(remaining, 2 * workers - len(under_way)):
                    under_way[pool.submit(_process_in_worker, source)] = source
                if not under_way:
                    return
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    yield under_way.pop(future).name, future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process died, most likely for want of memory; run the same command again with fewer"
                " --workers to go on where this run stopped"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: _Worker | None = None  # of a process of the pool


def _start_worker(config: BatchConfig, folder: _Folder, digest: str, threads: int) -> None:
    global _worker
    ignore_interrupts()
    keep_freed_memory()
    cv2.setNumThreads(threads)
    _worker = _Worker(config, folder, digest)


def _process_in_worker(source: Source) -> Record:
    assert _worker is not None
    return _worker.process(source)


class _Worker:
    """Registers sources one after the other, the template read and encoded once."""

    def __init__(self, config: BatchConfig, folder: _Folder, digest: str) -> None:
        self.config, self.folder, self.digest = config, folder, digest
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            self._prepare()

    def _prepare(self) -> None:
        config = self.config
        template = read_image(config.template, max_pixels=config.max_pixels)
        mask = None
        if config.mask is not None:
            picture = gray_view(read_image(config.mask, max_pixels=config.max_pixels))
            if picture.shape != (template.height, template.width):
                raise ImageError(
                    f"{config.mask}: the mask is {picture.shape[1]} x {picture.shape[0]}, the template"
                    f" {template.width} x {template.height}; they must be alike"
                )
            mask = picture > 0
        self.registrar: Cascade | Registrar[Any]
        if config.method == "auto":
            self.registrar = Cascade(template, auto_steps(config.options), config.registration, mask=mask)
        else:
            found = matcher(config.method, config.options.at_any_rotation())
            self.registrar = Registrar(template, found, config.registration, mask=mask)
        self.template_gray = gray_view(template)
        self.likeness = Likeness(self.template_gray)

    def process(self, source: Source) -> Record:
        """Register one source, write its outputs, then its record; what goes wrong is in the record."""
        # With another number of threads BLAS sums in another order: last digits, and so bytes, would differ.
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            try:
                record, content, seconds = self._process(source)
            except Exception as error:  # one odd file must not end the run of all the others
                reason = f"{type(error).__name__}: {error}"
                record, content, seconds = failed_record(str(source.path), reason), b"", {}
            return self._store(source, record, content, seconds)

    def _process(self, source: Source) -> tuple[Record, bytes, dict[str, float]]:
        """The record of one source, its outputs written; its content; and the seconds by stage."""
        started = time.perf_counter()
        try:
            content = source.path.read_bytes()
            image = read_image(source.path, max_pixels=self.config.max_pixels)
        except (ImageError, OSError) as error:
            return unreadable_record(str(source.path), str(error)), b"", {}
        decoded = time.perf_counter()
        result = self.registrar.register(image)
        record = registration_record(
            str(source.path),
            result,
            similarity_before=self._similarity_before(image),
            seed=self.config.registration.seed,
            weights=self.config.options.weights,
        )
        seconds = {"decode": decoded - started, **result.seconds}
        before_writing = time.perf_counter()
        try:
            write_atomically(self.folder.thumbnails(source.name), thumbnails(self.registrar.template, image, result))
            if result.accepted and result.transform is not None:
                record["aligned"] = self._write_outputs(source, image, result.transform)
        except OSError as error:
            record |= {"status": "unwritten", "reasons": [f"the aligned image could not be written: {error}"]}
        seconds["write"] = time.perf_counter() - before_writing
        return record, content, seconds

    def _similarity_before(self, image: Image) -> float:
        """Likeness of the source, merely brought to the template's size."""
        width, height = self.registrar.template.size
        stretch = ResizeMap(width / image.width, height / image.height)
        return self.likeness(gray_view(image), Transform(stretch.matrix, "affine")).structure

    def _write_outputs(self, source: Source, image: Image, transform: Transform) -> str:
        size = self.registrar.template.size
        self._remove_outputs(source)
        warped, valid = warp_with_mask(image, transform, size)
        aligned = self.folder.aligned(source.name, suffix_for(warped))
        write_image(self.folder.mask(source.name), Image(valid.view(np.uint8) * np.uint8(255)))
        if self.config.overlays:
            write_image(self.folder.overlay(source.name), self._overlay(warped))
        write_image(aligned, warped)
        return aligned.relative_to(self.folder.root).as_posix()

    def _overlay(self, warped: Image) -> Image:
        """Template in red, aligned source in cyan: grey where they agree, coloured where they do not."""
        gray = gray_view(warped)
        return Image(np.dstack([self.template_gray, gray, gray]))

    def _remove_outputs(self, source: Source) -> None:
        """An earlier result of the same name must not outlive a refusal."""
        for suffix in (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"):
            self.folder.aligned(source.name, suffix).unlink(missing_ok=True)
        self.folder.mask(source.name).unlink(missing_ok=True)
        self.folder.overlay(source.name).unlink(missing_ok=True)

    def _store(self, source: Source, record: Record, content: bytes, seconds: dict[str, float]) -> Record:
        """The record file is what says that a source is finished; its timings stay out of the summaries, which
        are the same for the same input."""
        stored = {"key": _key(self.digest, content), "record": record, "seconds": seconds}
        try:
            if record["aligned"] is None:
                self._remove_outputs(source)
            write_atomically(self.folder.record(source.name), to_json(stored))
        except OSError as error:
            record["reasons"] = [*record["reasons"], f"the folder could not be written: {error}"]
        return record
