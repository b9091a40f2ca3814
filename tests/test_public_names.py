"""What users import from the root is there, and nothing heavy comes with it."""

import json
import subprocess
import sys
import time

import tiepoint
from tiepoint import public


def test_every_public_name_is_there_and_only_those():
    assert sorted(tiepoint.__all__) == sorted(public.__all__)
    assert all(getattr(tiepoint, name) is getattr(public, name) for name in tiepoint.__all__)


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout


def test_no_classical_path_imports_torch():
    code = """
import json, sys, numpy as np, tiepoint
image = tiepoint.Image(np.zeros((64, 64), np.uint8))
tiepoint.fit(tiepoint.matcher("sift")(image, image))
tiepoint.Registrar(image, tiepoint.matcher("orb")).register(image)
import tiepoint.registration.batch, tiepoint.cli.main, tiepoint.cli.match, tiepoint.cli.register, tiepoint.cli.methods
import tiepoint.cli.weights
print(json.dumps([name for name in ("torch", "matplotlib", "tiepoint.training") if name in sys.modules]))
"""
    assert json.loads(run("-c", code)) == []


def test_help_and_version_answer_at_once():
    for option in ("--help", "--version"):
        taken = []
        for _ in range(5):  # the best of five: other work on the machine is not what is tested
            start = time.perf_counter()
            run("-m", "tiepoint.cli.main", option)
            taken.append(time.perf_counter() - start)
        assert min(taken) < 0.3
