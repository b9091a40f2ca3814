"""The batch runner's work on a Ray cluster: the same worker, the same outputs, on other machines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from tiepoint.registration.records import Record
from tiepoint.registration.sources import Source


class Worker(Protocol):
    """Registers one source at a time and writes its outputs."""

    def process(self, source: Source) -> Record: ...


def work_on_ray(
    address: str, start_worker: Callable[[], Worker], sources: Sequence[Source], workers: int
) -> Iterator[tuple[str, Record]]:
    """Records as they are made by `workers` actors, each of which reads and encodes the template once.

    address: of the cluster, as `ray.init` takes it; "local" starts one on this machine. Sources and the output
    folder must be reachable under the same paths on all machines. start_worker: makes a worker, on its machine.

    Raises RuntimeError when Ray is not installed or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise RuntimeError("--ray needs Ray: pip install 'tiepoint[ray]'") from error
    try:
        if address == "local":
            ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RuntimeError(f"the Ray cluster at {address!r} cannot be reached: {error}") from error
    try:
        actor = ray.remote(num_cpus=1)(_Actor)
        idle = [actor.remote(start_worker) for _ in range(workers)]
        under_way: dict[Any, tuple[Any, Source]] = {}
        remaining = iter(sources)
        while True:
            for source in itertools.islice(remaining, len(idle)):
                free = idle.pop()
                under_way[free.process.remote(source)] = (free, source)
            if not under_way:
                return
            done, _ = ray.wait(list(under_way), num_returns=1)
            free, source = under_way.pop(done[0])
            idle.append(free)
            yield source.name, ray.get(done[0])
    finally:
        ray.shutdown()


class _Actor:
    """Holds one worker on a machine of the cluster."""

    def __init__(self, start_worker: Callable[[], Worker]) -> None:
        self.worker = start_worker()

    def process(self, source: Source) -> Record:
        return self.worker.process(source)
