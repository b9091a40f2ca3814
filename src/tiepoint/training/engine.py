"""The one training loop: what a method supplies, and what is done with it.

Step k of a run sees random numbers that follow from (seed, k, process) alone, never from what was drawn before.
So a run that was interrupted and resumed equals one that was not, with no generator's state to be kept.
"""

from __future__ import annotations

import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

from tiepoint.networks.devices import computes_in_bf16, device_and_dtype
from tiepoint.training import parallel
from tiepoint.training.average import MovingAverage
from tiepoint.training.record import Record, Run


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How any method is trained.

    steps: optimiser steps; batch_size: pairs (or pictures) in one forward pass; accumulation: passes per step.
    learning_rate: after `warm_up_steps` of linear growth; falls by a cosine to `final_rate` of it.
    weight_decay: AdamW's, on weights; biases and normalisations are left free.
    clip_norm: greatest norm of the gradient.
    average_decay: of the moving average of the weights, which is what is validated and exported.
    precision: of the forward pass; auto: bf16 where the device has instructions for it, else fp32.
    validate_every: steps between validations; checkpoint_every_s: seconds between checkpoints.
    """

    steps: int = 20_000
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float = 1e-3
    warm_up_steps: int = 200
    final_rate: float = 0.02
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    average_decay: float = 0.999
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "cpu"
    seed: int = 0
    validate_every: int = 500
    checkpoint_every_s: float = 150.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        if step < self.warm_up_steps:
            return self.learning_rate * (step + 1) / self.warm_up_steps
        progress = (step - self.warm_up_steps) / max(1, self.steps - self.warm_up_steps)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.learning_rate * (self.final_rate + (1 - self.final_rate) * cosine)


class Loss(NamedTuple):
    """total: scalar that is minimised; parts: what it is made of, for the record."""

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Compute:
    """Where a step is computed, and the number type of the network's products."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    def autocast(self) -> torch.autocast:
        """The context the network runs in. Nothing else does: homographies and points would lose their digits."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


class Task(ABC):
    """What a method supplies: its network, its loss on freshly drawn data, its figures on held-out data.

    judged_by: the figure of `validate` by which the best weights are kept; higher is better.
    """

    network: nn.Module
    judged_by: str

    @abstractmethod
    def loss(self, batch_size: int, progress: float, generator: Generator, compute: Compute) -> Loss:
        """Of one batch, all its random choices from `generator` (a CPU generator).

        progress: the share of the training that is done, for what grows with it.
        """

    def exported(self, network: nn.Module) -> dict[str, Tensor]:
        """The tensors of `network` by the names under which the method's matcher loads them."""
        return network.state_dict()

    @abstractmethod
    def validate(self, network: nn.Module, device: torch.device, pictures: Path) -> dict[str, float]:
        """Figures of `network` (the averaged weights, in evaluation mode) on data that never changes.

        pictures: a folder for sample pictures, named by this validation's step.
        """


class Interrupted(Exception):
    """Training stopped on request after a whole step; its checkpoint is written."""


def train(
    task: Task,
    config: LoopConfig,
    run: Run,
    *,
    resume: bool = False,
    on_start: Callable[[], None] = lambda: None,
    on_progress: Callable[[str], None] = print,
    stop_after: int | None = None,
) -> dict[str, float]:
    """Train `task` to the last step; the figures of its best validation.

    The first validation comes before the first step: the weights kept are never worse than those a fine-tuning
    started from.

    run: the folder that receives checkpoints, the best weights, the record and its curves.
    resume: go on from the run's last checkpoint, if it has one.
    on_start: called once the checkpoint has turned out to fit, before anything is trained or written.
    stop_after: raise Interrupted after this step, as Ctrl-C would.
    Raises Interrupted on Ctrl-C and SIGTERM, FloatingPointError when loss or gradient is no longer finite, and
    ValueError for the checkpoint of another network.
    """
    device = device_and_dtype(parallel.local_device(config.device), "fp32")[0]
    in_bf16 = config.precision == "bf16" or (config.precision == "auto" and computes_in_bf16(device))
    compute = Compute(device, torch.bfloat16 if in_bf16 else torch.float32)
    task.network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(
        _parameter_groups(task.network, config.weight_decay), lr=config.learning_rate, foreach=True
    )
    average = MovingAverage(task.network, config.average_decay)
    state = _State(task.network, optimiser, average)
    if resume and run.checkpoint.exists():
        try:
            state.restore(torch.load(run.checkpoint, map_location=device, weights_only=True))
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"{run.folder}: its checkpoint is of another network; go on with the settings it began with"
            ) from error
    on_start()
    parallel.broadcast(task.network)
    record = Record(run, state.step, config.steps, on_progress)

    with _stop_requests() as stop:
        if state.step == 0:
            _validate(task, state, record, run, device)
        saved_at = time.monotonic()
        while state.step < config.steps:
            parts = _step(task, config, optimiser, state.step, compute)
            average.update(task.network, state.step)
            state.step += 1
            record.add(state.step, parts, optimiser.param_groups[0]["lr"])
            if state.step % config.validate_every == 0 or state.step == config.steps:
                _validate(task, state, record, run, device)
            stopping = parallel.any_true(stop.requested or state.step == stop_after)
            due = parallel.any_true(time.monotonic() - saved_at > config.checkpoint_every_s)
            if due or stopping or state.step == config.steps:
                record.flush()
                run.save_checkpoint(state.snapshot())
                saved_at = time.monotonic()
            if stopping and state.step < config.steps:
                raise Interrupted(f"stopped after step {state.step} of {config.steps}; go on with --resume")
    return state.best


class _State:
    """All that a run needs to go on from where it was."""

    def __init__(self, network: nn.Module, optimiser: torch.optim.Optimizer, average: MovingAverage) -> None:
        self.network, self.optimiser, self.average = network, optimiser, average
        self.step = 0
        self.best: dict[str, float] = {}

    def snapshot(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best": self.best,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.network.state_dict(),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Take up the snapshot, all but the weight decay, which is the configuration's and may have been changed."""
        self.step, self.best = snapshot["step"], snapshot["best"]
        self.network.load_state_dict(snapshot["network"])
        decays = [group["weight_decay"] for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(snapshot["optimiser"])
        for group, decay in zip(self.optimiser.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        self.average.network.load_state_dict(snapshot["average"])


def _step(
    task: Task, config: LoopConfig, optimiser: torch.optim.Optimizer, step: int, compute: Compute
) -> dict[str, float]:
    """One optimiser step over `accumulation` batches; the mean of each part of the loss."""
    task.network.train()
    generator = generator_of(config.seed, step, parallel.rank())
    torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))  # for dropout and its like
    for group in optimiser.param_groups:
        group["lr"] = config.rate_at(step)
    optimiser.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for _ in range(config.accumulation):
        loss = task.loss(config.batch_size, step / config.steps, generator, compute)
        (loss.total / config.accumulation).backward()  # type: ignore[no-untyped-call]
        for name, part in {"loss": loss.total, **loss.parts}.items():
            sums[name] = sums.get(name, 0.0) + part.detach().item() / config.accumulation
    if not math.isfinite(sums["loss"]):
        raise FloatingPointError(f"the loss of step {step} is {sums['loss']}: {sums}")
    parallel.average_gradients(task.network)
    norm = nn.utils.clip_grad_norm_(task.network.parameters(), config.clip_norm)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient of step {step} is not finite: {sums}")
    optimiser.step()
    return sums


def generator_of(seed: int, step: int, process: int = 0) -> Generator:
    """The CPU generator of one step in one process; -1 stands for validation."""
    mixed = (seed * 1_000_003 + step + 1) * 1_000_003 + process
    return Generator().manual_seed(mixed % 2**63)


def _validate(task: Task, state: _State, record: Record, run: Run, device: torch.device) -> None:
    if parallel.rank() == 0:
        network = state.average.network.eval()
        with torch.no_grad():
            figures = task.validate(network, device, run.folder / f"samples-{state.step:07d}")
        record.add_validation(state.step, figures)
        best = state.best.get(task.judged_by, -math.inf)
        if figures[task.judged_by] >= best:  # of equals the later, as when nothing is right yet
            state.best = {"step": float(state.step), **figures}
            run.save_best(task.exported(network), state.best)


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


class _Stop:
    requested = False


@contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """Inside, the first Ctrl-C or SIGTERM only sets `requested`; a second Ctrl-C breaks off at once."""
    stop = _Stop()

    def request(number: int, _frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.requested = True

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
