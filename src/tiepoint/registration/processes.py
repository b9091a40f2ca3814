"""What worker processes need besides their work: few threads, and no part in Ctrl-C."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def threads_in_environment(threads: int) -> Iterator[None]:
    """Let processes started inside use `threads` threads each in NumPy's and torch's libraries.

    These read the variables once, when loaded, so an initialiser in the worker would be too late.
    """
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def ignore_interrupts() -> None:
    """Leave Ctrl-C, which reaches every process of the terminal, to the parent alone.

    The parent ends the workers in order; theirs would be a traceback each.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
