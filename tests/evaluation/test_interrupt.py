"""Ctrl-C and errors end a run of several processes after the pairs in work, without a worker's traceback."""

import os
import signal
import subprocess
import sys
import time

import pytest

RUN = '''
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tiepoint.evaluation.contestants import Contestant, Encoder
from tiepoint.evaluation.pairs import UnknownPair
from tiepoint.evaluation.registration_pairs import PatternSource
from tiepoint.evaluation.run import Protocol, evaluate

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Record:
    text: str


@dataclass(frozen=True)
class Long(Protocol):
    """Lines longer than a pipe holds, and an error at the pair called "bad"."""

    record_type = Record

    def measure(self, pair, encoded0, encoded1, matches):
        if pair.key == "bad":
            raise ValueError("a bad pair")
        return Record("x" * 200_000)

    def failure(self, pair): ...
    def report(self, results): ...


class Slow(Contestant, Encoder):
    """A tenth of a second for each pair."""

    def settings(self):
        return {}

    def prepare(self):
        return self

    def encode(self, frame):
        return None

    def match(self, pair, encoded0, encoded1):
        (FOLDER / f"{os.getpid()}.worker").touch()
        time.sleep(0.1)


def pair(key, group):
    source = PatternSource("blank", 0)
    return UnknownPair(key=key, subset="all", group=group, source0=source, source1=source)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it
    pairs = [pair(f"{group}:{number}", group) for group in "abcd" for number in range(150)]
    if sys.argv[1] == "bad":
        pairs.insert(3, pair("bad", "a"))
    try:
        evaluate(Long(), Slow(), pairs, journal=FOLDER / "journal.jsonl", workers=2)
    except KeyboardInterrupt:
        sys.exit(130)
    except ValueError as error:
        sys.exit(str(error))
'''


@pytest.fixture
def start(tmp_path):
    """Starts the run above in a process group of its own; what of it is left is killed at the end."""
    (tmp_path / "run.py").write_text(RUN)
    started = []

    def run(kind):
        command = [sys.executable, str(tmp_path / "run.py"), kind]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="interrupts a process group")
def test_ctrl_c_waits_for_the_pairs_in_work_alone(start, tmp_path):
    process = start("good")
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.worker"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=10)  # the four blocks would take half a minute
    assert process.returncode == 130
    assert errors == ""


def test_an_error_ends_the_other_processes_too(start, tmp_path):
    process = start("bad")
    _, errors = process.communicate(timeout=25)
    assert process.returncode == 1
    assert errors.strip() == "a bad pair"
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert 0 < len(lines) < 300
