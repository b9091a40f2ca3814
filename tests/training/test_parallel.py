"""Two processes, as torchrun starts them, train one network."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

_PROGRAM = """
import sys
from pathlib import Path
import torch
from torch import nn
from tiepoint.training import parallel
from tiepoint.training.engine import LoopConfig, Loss, Task, train
from tiepoint.training.record import Run

torch.set_num_threads(1)

class Mean(Task):
    judged_by = "none"

    def __init__(self):
        torch.manual_seed(parallel.rank())  # they start apart, and must be brought together
        self.network = nn.Conv2d(1, 1, 1)

    def loss(self, batch_size, progress, generator, compute):
        x = torch.rand(batch_size, 1, 2, 2, generator=generator)
        return Loss((self.network(x) - parallel.rank()).square().mean(), {})

    def validate(self, network, device, pictures):
        return {"none": 0.0}

parallel.start("cpu")
task = Mean()
folder = Path(sys.argv[1])
loop = LoopConfig(steps=4, precision="fp32", warm_up_steps=1, learning_rate=0.1)
train(task, loop, Run(folder), on_progress=lambda _: None)
torch.save(task.network.state_dict(), folder / f"rank{parallel.rank()}.pt")
"""


@pytest.mark.slow
def test_two_processes_end_with_one_network(tmp_path):
    torch = pytest.importorskip("torch")
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*command, str(program), str(tmp_path)], check=True, timeout=300)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    saved = torch.load(tmp_path / "checkpoint.pt")["network"]
    assert all(torch.equal(first[name], saved[name]) for name in first)


@pytest.mark.slow
def test_two_processes_share_the_features_that_one_makes(tmp_path):
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for index in range(6):
        coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
        cv2.imwrite(str(photographs / f"{index}.png"), cv2.resize(coarse, (100, 90), interpolation=cv2.INTER_NEAREST))
    settings = [
        "loop.steps=2", "loop.batch_size=2", "pairs.size=[64,64]", "num_validation=2", "num_keypoints=[16,32]",
        "pool.num_views=1", "pool.num_keypoints=32",
    ]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "tiepoint.cli.main", "train", "superglue", str(photographs), "--features", "sift"]
    command += ["--out", str(tmp_path / "run"), *(word for one in settings for word in ("--set", one))]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, timeout=300, env=environment, capture_output=True, text=True)
    assert done.stdout.count("sift on the held-out pairs") == 1
    assert done.stdout.count("best: ") == 1
