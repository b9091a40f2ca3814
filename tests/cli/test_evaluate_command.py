"""`tiepoint evaluate` as a user calls it: tables, files, usage errors, a quick start."""

import json
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import click
import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from tiepoint.cli.evaluate import evaluate, usage_errors
from tiepoint.matchers import MethodUnavailable
from tiepoint.weights import WeightsError


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data/boards/one"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(0, 1, (120, 160)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    pixels = np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    cv2.imwrite(str(folder / "1.png"), pixels)
    cv2.imwrite(str(folder / "2.png"), np.roll(pixels, (3, 5), axis=(0, 1)))
    np.savetxt(folder / "H_1_2", [[1, 0, 5], [0, 1, 3], [0, 0, 1]])
    return tmp_path / "data"


def test_a_run_prints_tables_and_writes_everything(data, tmp_path):
    out = tmp_path / "out"
    arguments = ["homography", str(data), "--method", "sift", "--method", "orb", "--self-check", "--out", str(out)]
    result = CliRunner().invoke(evaluate, arguments)
    assert result.exit_code == 0, result.output
    assert "| oracle, noise 1 px " in result.output
    names = {path.name for path in out.iterdir()}
    assert {"result.json", "pairs.csv", "matches.csv", "auc.csv", "error.csv", "accuracy.png", "accuracy.svg",
            "error.png", "error.svg", "pairs"} == names  # fmt: skip
    assert json.loads((out / "result.json").read_text())["num_pairs"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["homography", "DATA"], "name a --method"),
        (["homography", "DATA", "--method", "surf"], "unknown method 'surf'"),
        (["homography", "EMPTY", "--method", "sift"], "no sequences"),
        (["imc2022", "EMPTY", "--method", "sift"], "scaling_factors"),
        (["thresholds", "DATA", "DATA", "DATA", "--method", "sift"], "two images"),
        (
            [
                "homography",
                "DATA",
                "--method",
                "superpoint",
                "--weights",
                "magicleap-superpoint",
                "--commercial-only",
                "--out",
                "OUT",
            ],
            "forbids commercial use",
        ),
        (["homography", "DATA", "--method", "sift", "--out", "FILE/out"], "FILE/out"),
    ],
)
def test_mistakes_are_told_in_a_line(data, tmp_path, arguments, message):
    if "superpoint" in arguments:
        pytest.importorskip("torch")
    (tmp_path / "empty").mkdir()
    (tmp_path / "FILE").touch()
    paths = {"DATA": str(data), "EMPTY": str(tmp_path / "empty")}
    paths |= {name: str(tmp_path / name) for name in ("OUT", "FILE/out")}
    result = CliRunner().invoke(evaluate, [paths.get(word, word) for word in arguments])
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MethodUnavailable("pip install it"), "pip install it"),
        (WeightsError("damaged"), "damaged"),
        (OSError("disk full"), "disk full"),
        (BrokenProcessPool("terminated abruptly"), "fewer --workers"),
    ],
)
def test_what_a_user_can_mend_is_told_in_a_line(error, message):
    with pytest.raises(click.ClickException, match=message), usage_errors():
        raise error


def test_help_imports_nothing_heavy():
    code = (
        "import sys; import tiepoint.cli.evaluate, tiepoint.cli.submit; "
        "print([name for name in ('torch', 'cv2', 'numpy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
