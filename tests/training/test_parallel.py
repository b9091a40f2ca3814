"""Two processes, as torchrun starts them, train one network."""

import subprocess
import sys

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
