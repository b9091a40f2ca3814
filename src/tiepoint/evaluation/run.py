"""Run methods over pairs: each image encoded once, pairs in parallel, results kept pair by pair."""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import cv2

from tiepoint.evaluation.contestants import Contestant, Encoded, Encoder
from tiepoint.evaluation.pairs import ImagePair
from tiepoint.evaluation.sources import Source
from tiepoint.geometry import Matches
from tiepoint.matchers.kept_encodings import KeptEncodings
from tiepoint.registration.processes import ignore_interrupts, threads_in_environment

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from tiepoint.evaluation.report import Report

Pair = TypeVar("Pair", bound=ImagePair)
Record = TypeVar("Record", bound="DataclassInstance")

Lines: TypeAlias = Generator[tuple[str, str], None, None]
"""(key, JSON line) of each pair."""


class Protocol(ABC, Generic[Pair, Record]):
    """What is measured of each pair. A frozen dataclass of its settings; travels to worker processes."""

    record_type: type[Record]

    @abstractmethod
    def measure(self, pair: Pair, encoded0: Encoded, encoded1: Encoded, matches: Matches) -> Record:
        """The measures of one pair, as a dataclass of plain numbers."""

    @abstractmethod
    def failure(self, pair: Pair) -> Record:
        """The measures of a pair that a method has no answer for: the worst there are."""

    @abstractmethod
    def report(self, results: dict[str, list[Measured[Record]]]) -> Report:
        """Tables and charts of all methods, by name; each has a result for every pair."""


@dataclass(frozen=True, kw_only=True)
class Measured(Generic[Record]):
    """One pair's result: its measures, why the method failed on it (or None), and what it took.

    encode0_s, encode1_s: seconds for each image, spent once even if the image is in many pairs.
    match_s, measure_s: seconds for matching and for the protocol's own work.
    """

    pair: ImagePair
    record: Record
    failed: str | None = None
    encode0_s: float = 0.0
    encode1_s: float = 0.0
    match_s: float = 0.0
    measure_s: float = 0.0


def evaluate(
    protocol: Protocol[Pair, Record],
    contestant: Contestant,
    pairs: Sequence[Pair],
    *,
    journal: Path,
    workers: int = 1,
    progress: Callable[[int], object] = lambda _: None,
) -> list[Measured[Record]]:
    """Every pair's result, in the order of `pairs`.

    journal: a file of one JSON line for each pair done; a run started again reads it and goes on from there. Its
    name must differ for anything the results depend on (see `provenance.fingerprint`).
    workers: processes; 1 works in this one. Pairs of one group go to one worker, which encodes each image once; a
    group larger than a worker's share is cut, and an image on both sides of a cut is encoded by both.
    progress: called with the number of pairs done since.
    Raises what building the method raises; an error of its `encode` or `match` is that pair's failure.
    """
    lines = _read_journal(journal)
    missing = [pair for pair in pairs if pair.key not in lines]
    progress(len(pairs) - len(missing))
    if missing:
        journal.parent.mkdir(parents=True, exist_ok=True)
        with journal.open("a", encoding="utf-8") as file, closing(_run(protocol, contestant, missing, workers)) as run:
            for key, line in run:
                file.write(line + "\n")
                file.flush()
                lines[key] = json.loads(line)
                progress(1)
    return [_measured(protocol, pair, lines[pair.key]) for pair in pairs]


def _read_journal(journal: Path) -> dict[str, dict[str, Any]]:
    """Key -> line. A last line cut short by a crash is dropped, from the file too."""
    if not journal.exists():
        return {}
    text = journal.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        journal.write_text(whole, encoding="utf-8")
    return {line["key"]: line for line in map(json.loads, whole.splitlines())}


def _measured(protocol: Protocol[Pair, Record], pair: Pair, line: dict[str, Any]) -> Measured[Record]:
    values = {key: value for key, value in line.items() if key not in ("key", "record")}
    return Measured(pair=pair, record=protocol.record_type(**line["record"]), **values)


def _run(protocol: Protocol[Pair, Record], contestant: Contestant, pairs: Sequence[Pair], workers: int) -> Lines:
    if workers == 1:
        return _run_block(protocol, contestant.prepare(), pairs)
    return _run_in_processes(protocol, contestant, _blocks(pairs, workers), workers)


def _blocks(pairs: Sequence[Pair], workers: int) -> list[list[Pair]]:
    """Pairs by group, a group cut where it is more than a worker's share."""
    share = -(-len(pairs) // workers)
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    return [group[start : start + share] for group in groups.values() for start in range(0, len(group), share)]


def _run_block(protocol: Protocol[Pair, Record], encoder: Encoder, pairs: Sequence[Pair]) -> Lines:
    encodings = KeptEncodings(partial(_encoded, encoder), [(pair.source0, pair.source1) for pair in pairs])
    for position, pair in enumerate(pairs):
        line = json.dumps({"key": pair.key, **_run_pair(protocol, encoder, pair, encodings)}, allow_nan=False)
        encodings.done(position)
        yield pair.key, line


def _encoded(encoder: Encoder, source: Source) -> Encoded:
    frame = source.read()
    started = time.perf_counter()
    return Encoded(frame, encoder.encode(frame), encoder, time.perf_counter() - started)


def _run_pair(
    protocol: Protocol[Pair, Record], encoder: Encoder, pair: Pair, encodings: KeptEncodings[Source, Encoded]
) -> dict[str, Any]:
    try:
        encoded0, encoded1 = encodings[pair.source0], encodings[pair.source1]
        started = time.perf_counter()
        matches = encoder.match(pair, encoded0, encoded1)
        matched = time.perf_counter()
    except Exception as error:  # whatever a method raises is its failure on this pair
        return {"record": asdict(protocol.failure(pair)), "failed": f"{type(error).__name__}: {error}"}
    record = protocol.measure(pair, encoded0, encoded1, matches)
    return {
        "record": asdict(record),
        "encode0_s": encoded0.seconds,
        "encode1_s": encoded1.seconds,
        "match_s": matched - started,
        "measure_s": time.perf_counter() - matched,
    }


@dataclass
class _Worker:
    """What a worker process works with; the first block builds the method, so that its future carries errors.

    lines: the queue that takes each pair's line. stop: set when no further pair is wanted.
    """

    protocol: Protocol[Any, Any]
    contestant: Contestant
    lines: Any
    stop: Event
    encoder: Encoder | None = None


_worker: _Worker  # one in each worker process


def _run_in_processes(
    protocol: Protocol[Pair, Record], contestant: Contestant, blocks: Sequence[Sequence[Pair]], workers: int
) -> Lines:
    """Lines come through a queue, one by one, so that a crash loses no more than the pairs in work.

    Ended early, by an error or Ctrl-C, it waits for the pairs in work alone: a block may take hours.
    """
    context = multiprocessing.get_context("spawn")  # a forked copy of a process that has used torch hangs
    lines, stop = context.SimpleQueue(), context.Event()
    threads = max(1, (os.cpu_count() or 1) // workers)
    arrived: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
    # Ctrl-C reaches the main thread alone: in the midst of a line it would leave the rest of it in the pipe.
    threading.Thread(target=_forward, args=(lines, arrived), daemon=True).start()
    futures: list[Future[None]] = []
    with (
        threads_in_environment(threads),
        ProcessPoolExecutor(workers, context, _start_worker, (protocol, contestant, lines, stop, threads)) as pool,
    ):
        try:
            for block in blocks:
                futures.append(pool.submit(_work, block))
            running = set(futures)
            while running:
                done, running = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
                while not arrived.empty() and (line := arrived.get()) is not None:
                    yield line
                for future in done:
                    future.result()
            lines.put(None)  # behind the last of all workers' lines
            yield from iter(arrived.get, None)
        finally:
            stop.set()
            wait(futures)


def _forward(lines: Any, arrived: queue.SimpleQueue[tuple[str, str] | None]) -> None:
    """Take over what the workers send until None comes, and that too."""
    for line in iter(lines.get, None):
        arrived.put(line)
    arrived.put(None)


def _start_worker(protocol: Protocol[Any, Any], contestant: Contestant, lines: Any, stop: Event, threads: int) -> None:
    global _worker
    ignore_interrupts()
    cv2.setNumThreads(threads)
    _worker = _Worker(protocol, contestant, lines, stop)


def _work(block: Sequence[Any]) -> None:
    if _worker.stop.is_set():
        return
    if _worker.encoder is None:
        _worker.encoder = _worker.contestant.prepare()
    for result in _run_block(_worker.protocol, _worker.encoder, block):
        _worker.lines.put(result)
        if _worker.stop.is_set():
            return
