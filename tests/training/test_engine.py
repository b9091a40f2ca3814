"""The loop: resuming is exact, rates, accumulation, stopping, records."""

import dataclasses
import json
import os
import signal

import pytest
import torch
from torch import nn

from tiepoint.training.average import MovingAverage
from tiepoint.training.engine import Interrupted, LoopConfig, Loss, Task, train
from tiepoint.training.magicpoint import MagicPoint, MagicPointConfig
from tiepoint.training.record import Run, read_log

LOOP = LoopConfig(
    steps=9, batch_size=4, learning_rate=0.05, warm_up_steps=3, precision="fp32", validate_every=3, seed=7
)


class Line(Task):
    """A network with all that has state of its own: normalisation, dropout."""

    judged_by = "closeness"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Conv2d(4, 1, 1)
        )

    def loss(self, batch_size, progress, generator, compute):
        assert 0 <= progress < 1
        x = torch.rand(batch_size, 1, 6, 6, generator=generator).to(compute.device)
        error = (self.network(x) - 2 * x - 1).square().mean()
        return Loss(error, {"root": error.sqrt()})

    def validate(self, network, device, pictures):
        assert not network.training
        x = torch.linspace(0, 1, 36, device=device).reshape(1, 1, 6, 6)
        return {"closeness": -float((network(x) - 2 * x - 1).abs().mean())}


def quiet(_text: str) -> None:
    pass


def same(first: dict, second: dict) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("stops", [[4], [1, 2, 8]])
def test_a_resumed_run_equals_one_in_one_go(tmp_path, stops):
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    best = train(Line(), LOOP, whole, on_progress=quiet)
    for stop in stops:
        with pytest.raises(Interrupted):
            train(Line(), LOOP, parts, resume=True, stop_after=stop, on_progress=quiet)
    resumed = train(Line(), LOOP, parts, resume=True, on_progress=quiet)
    assert resumed == best
    assert same(torch.load(whole.checkpoint), torch.load(parts.checkpoint))
    assert whole.best.read_bytes() == parts.best.read_bytes()
    validated = [[row for row in read_log(run.log) if "val_closeness" in row] for run in (whole, parts)]
    assert validated[0] == validated[1]


def test_a_real_method_resumes_exactly(tmp_path):
    config = MagicPointConfig(size=(32, 40), num_validation=1, loop=dataclasses.replace(LOOP, steps=3, batch_size=3))
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    train(MagicPoint(config), config.loop, whole, on_progress=quiet)
    with pytest.raises(Interrupted):
        train(MagicPoint(config), config.loop, parts, stop_after=2, on_progress=quiet)
    train(MagicPoint(config), config.loop, parts, resume=True, on_progress=quiet)
    assert same(torch.load(whole.checkpoint), torch.load(parts.checkpoint))


def test_lines_after_the_checkpoint_are_written_again_not_twice(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(Interrupted):
        train(Line(), LOOP, run, stop_after=3, on_progress=quiet)
    kept = run.checkpoint.read_bytes()
    train(Line(), LOOP, run, resume=True, on_progress=quiet)
    run.checkpoint.write_bytes(kept)  # as a kill before the next checkpoint would leave it
    train(Line(), LOOP, run, resume=True, on_progress=quiet)
    assert [row["step"] for row in read_log(run.log) if "val_closeness" in row] == [0, 3, 6, 9]


def test_ctrl_c_stops_after_a_whole_step_with_its_checkpoint(tmp_path):
    class Pressed(Line):
        calls = 0

        def loss(self, *arguments):
            self.calls += 1
            if self.calls == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(*arguments)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="step 2 of 9"):
        train(Pressed(), LOOP, Run(tmp_path), on_progress=quiet)
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(tmp_path):
    class Broken(Line):
        def loss(self, *arguments):
            loss = super().loss(*arguments)
            return Loss(loss.total * torch.inf, loss.parts)

    with pytest.raises(FloatingPointError, match="step 0"):
        train(Broken(), LOOP, Run(tmp_path), on_progress=quiet)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_gradient_that_is_not_finite_ends_the_run_and_spares_the_checkpoint(tmp_path):
    """The loss alone does not tell: the root of 0 is 0, its slope is not finite."""
    run = Run(tmp_path)
    with pytest.raises(Interrupted):
        train(Line(), LOOP, run, stop_after=2, on_progress=quiet)
    before = run.checkpoint.read_bytes()

    class Rooted(Line):
        def loss(self, batch_size, progress, generator, compute):
            total = (0 * self.network(torch.zeros(1, 1, 6, 6))).abs().sum().sqrt()
            return Loss(total, {})

    with pytest.raises(FloatingPointError, match="gradient of step 2"):
        train(Rooted(), dataclasses.replace(LOOP, checkpoint_every_s=0.0), run, resume=True, on_progress=quiet)
    assert run.checkpoint.read_bytes() == before


def test_the_checkpoint_of_another_network_is_told_before_anything_is_written(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(Interrupted):
        train(Line(), LOOP, run, stop_after=2, on_progress=quiet)

    class Wider(Line):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 1))

    started = []
    with pytest.raises(ValueError, match="its checkpoint is of another network"):
        train(Wider(), LOOP, run, resume=True, on_start=lambda: started.append(True), on_progress=quiet)
    assert not started


def test_a_changed_weight_decay_holds_from_where_the_run_goes_on(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(Interrupted):
        train(Line(), LOOP, run, stop_after=2, on_progress=quiet)
    train(Line(), dataclasses.replace(LOOP, weight_decay=0.25), run, resume=True, on_progress=quiet)
    groups = torch.load(run.checkpoint)["optimiser"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0]


def test_the_rate_warms_up_and_falls_by_a_cosine():
    loop = LoopConfig(steps=110, warm_up_steps=10, learning_rate=1.0, final_rate=0.1)
    assert loop.rate_at(0) == pytest.approx(0.1)
    assert loop.rate_at(9) == pytest.approx(1.0)
    assert loop.rate_at(60) == pytest.approx(0.55)
    assert loop.rate_at(110) == pytest.approx(0.1)


def test_accumulated_batches_make_the_gradient_of_one(tmp_path):
    class Sum(Task):
        judged_by = "none"

        def __init__(self):
            self.network = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.network.weight)

        def loss(self, batch_size, progress, generator, compute):
            x = torch.rand(batch_size, 1, 1, 1, generator=generator)
            return Loss((self.network(x) - 3).square().mean(), {})

        def validate(self, network, device, pictures):
            return {"none": 0.0}

    weights = []
    for batch, accumulation in ((8, 1), (2, 4)):
        loop = dataclasses.replace(LOOP, steps=1, batch_size=batch, accumulation=accumulation)
        # The random numbers are drawn in one order, so four batches of two are the batch of eight.
        task = Sum()
        train(task, loop, Run(tmp_path / str(batch)), on_progress=quiet)
        weights.append(task.network.weight.item())
    assert weights[0] == pytest.approx(weights[1], abs=1e-6)


def test_moving_average_by_hand():
    network = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    average = MovingAverage(network, decay=0.5)
    nn.init.constant_(network.weight, 3.0)
    average.update(network, step=0)  # decay 1 / 10 in the first step
    assert average.network.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 3)
    average.update(network, step=1000)
    assert average.network.weight.item() == pytest.approx(0.5 * 2.8 + 0.5 * 3)


def test_what_a_run_leaves(tmp_path):
    run = Run(tmp_path)
    run.describe("line", {"config": LOOP}, {"photographs": "none"})
    train(Line(), LOOP, run, on_progress=quiet)
    made = json.loads((tmp_path / "config.json").read_text())
    assert made["config"]["seed"] == 7
    assert made["method"] == "line"
    assert {"torch", "commit", "threads"} <= made["made_with"].keys()
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "best.json").read_text())["step"] in (0, 3, 6, 9)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        LoopConfig(batch_size=0)
