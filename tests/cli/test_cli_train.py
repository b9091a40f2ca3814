"""`tiepoint train` from photographs to weights, on toys."""

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from tiepoint.cli.train import train
from tiepoint.cli.weights import weights
from tiepoint.weights import load_weights

SMALL = [
    *("--set", "pairs.size=[64,64]", "--set", "num_validation=2", "--set", "descriptor_dim=32"),
    *("--set", "loop.batch_size=2", "--set", "loop.precision=fp32", "--set", "loop.warm_up_steps=1"),
]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(train, list(arguments))


@pytest.fixture
def data(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
        cv2.imwrite(str(folder / f"{index}.png"), cv2.resize(coarse, (100, 90), interpolation=cv2.INTER_NEAREST))
    (folder / "manifest.csv").write_text("file,licence\n" + "".join(f"{index}.png,MIT\n" for index in range(6)))
    return folder


def test_from_photographs_to_weights(data, tmp_path):
    labels, out = tmp_path / "labels", tmp_path / "run"
    made = run("label", str(data), "--out", str(labels), "--set", "views=3", "--set", "side_px=96")
    assert made.exit_code == 0, made.output
    arguments = ["superpoint", str(data), "--labels", str(labels), "--held-out", str(data), "--out", str(out)]
    trained = run(*arguments, *SMALL, "--set", "loop.steps=1")
    assert trained.exit_code == 0, trained.output
    assert "sift on the held-out pairs: MMA_3" in trained.output
    assert "before: " in trained.output
    again = run(*arguments)
    assert again.exit_code == 1
    assert "go on with --resume" in again.output
    more = run(*arguments, "--resume", "--set", "loop.steps=2")
    assert more.exit_code == 0, more.output
    assert json.loads((out / "config.json").read_text())["config"]["pairs"]["size"] == [64, 64]

    path = tmp_path / "mine.safetensors"
    exported = CliRunner().invoke(weights, ["export", str(out), "--to", str(path)])
    assert exported.exit_code == 0, exported.output
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["data"]["labels"]["detector"] == "corners"
    assert card["data"]["licences"] == {"MIT": 6}
    tuning = [*arguments[:-1], str(tmp_path / "tuned"), "--set"]
    tuned = run(*tuning, "loop.steps=1", *SMALL, "--fine-tune", str(path))
    assert tuned.exit_code == 0, tuned.output
    assert run(*tuning, "loop.steps=2", "--resume").exit_code == 0
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["data"]["started_from"] == str(path)


def test_a_resume_that_cannot_be_leaves_the_run_as_it_was(data, tmp_path):
    """Other photographs, another network; and weights of another kind are gone on with as they began."""
    import torch

    from tiepoint.matchers.superpoint import SuperPoint, SuperPointConfig, load_superpoint, published_tensors

    labels, out, start = tmp_path / "labels", tmp_path / "run", tmp_path / "other.pth"
    torch.save(published_tensors(SuperPoint(SuperPointConfig(descriptor_dim=32, normalisation="none"))), start)
    small = ["--set", "views=3", "--set", "side_px=96"]
    assert run("label", str(data), "--out", str(labels), *small).exit_code == 0
    arguments = ["--labels", str(labels), "--held-out", str(data), "--out", str(out)]
    begun = run("superpoint", str(data), *arguments, *SMALL, "--set", "loop.steps=1", "--fine-tune", str(start))
    assert begun.exit_code == 0, begun.output
    config = (out / "config.json").read_text()
    assert json.loads(config)["config"]["normalisation"] == "none"

    narrower = run("superpoint", str(data), *arguments, "--resume", "--set", "descriptor_dim=64")
    assert narrower.exit_code == 1
    assert "its checkpoint is of another network" in narrower.output
    others = tmp_path / "others"
    shutil.copytree(data, others)
    (others / "0.png").unlink()
    assert run("label", str(others), "--out", str(tmp_path / "others' labels"), *small).exit_code == 0
    elsewhere = run("superpoint", str(others), "--labels", str(tmp_path / "others' labels"), *arguments[2:], "--resume")
    assert elsewhere.exit_code == 1
    assert f"has learned from {data}" in elsewhere.output
    assert (out / "config.json").read_text() == config

    more = run("superpoint", str(data), *arguments, "--resume", "--set", "loop.steps=2")
    assert more.exit_code == 0, more.output
    best = load_superpoint(load_weights(out / "best.safetensors"), "best")
    assert best.config == SuperPointConfig(descriptor_dim=32, normalisation="none")


def test_mistakes_are_told_without_a_traceback(data, tmp_path):
    result = run("magicpoint", "--out", str(tmp_path / "run"), "--set", "loop.stps=3")
    assert result.exit_code == 1
    assert "LoopConfig has no 'stps'" in result.output
    (tmp_path / "labels").mkdir()
    missing = run("superpoint", str(data), "--labels", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run"))
    assert missing.exit_code == 2
    unfinished = run("superpoint", str(data), "--labels", str(tmp_path / "labels"), "--out", str(tmp_path / "run"))
    assert unfinished.exit_code == 1
    assert "no labels" in unfinished.output


def test_a_few_photographs_are_enough_and_one_is_told(data, tmp_path):
    settings = ["--set", "pool.num_views=1", "--set", "pool.num_keypoints=32", "--set", "num_keypoints=[16,32]"]
    short = [*settings, *SMALL[:4], *SMALL[6:], "--set", "loop.steps=1"]
    trained = run("superglue", str(data), "--features", "sift", "--out", str(tmp_path / "few"), *short)
    assert trained.exit_code == 0, trained.output
    for file in sorted(data.iterdir())[1:]:
        file.unlink()
    alone = run("superglue", str(data), "--features", "sift", "--out", str(tmp_path / "one"), *short)
    assert alone.exit_code == 1
    assert "2 photographs at least" in alone.output


def test_help_needs_no_torch():
    code = "import sys; from tiepoint.cli.train import train; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
