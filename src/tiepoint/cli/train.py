"""`tiepoint train`: the learned methods, from a folder of plain photographs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tiepoint.matchers.superpoint import SuperPoint
    from tiepoint.training.engine import LoopConfig, Task
    from tiepoint.training.photographs import Photographs

Config = TypeVar("Config")
Command = TypeVar("Command", bound=Callable[..., Any])

_FOLDER = click.Path(path_type=Path, file_okay=False)
_DATA = click.Path(path_type=Path, file_okay=False, exists=True)
_HELD_OUT_SHARE = 0.05


@click.group()
def train() -> None:
    """Train on a folder of photographs: no depth, no poses, no labels by hand.

    For SuperPoint: `train label` finds keypoints that stay, by homographic adaptation, with a MagicPoint from
    `train magicpoint` or with corners, which need no training; `train superpoint` learns from them.

    A training can be stopped with Ctrl-C at any time and goes on with --resume as if it had not been.
    """


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_settings = _options(
    click.option("--config", "file", type=click.Path(path_type=Path, exists=True), help="JSON of settings."),
    click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Such as loop.steps=5000."),
    click.option("--threads", type=int, default=None, help="CPU threads; torch's own choice if not given."),
)
_run = _options(
    click.option("--out", "run_folder", type=_FOLDER, required=True, help="Folder of this run."),
    click.option("--resume", is_flag=True, help="Go on from the run's checkpoint, with its settings."),
    click.option("--fine-tune", "start", default=None, help="Weights (name or file) to start from."),
)
_store = click.option(
    "--store",
    type=_FOLDER,
    default=None,
    help="Where decoded photographs are kept; the user's cache if not given.",
)


@train.command()
@_run
@_settings
def magicpoint(
    run_folder: Path,
    resume: bool,
    start: str | None,
    file: Path | None,
    assignments: tuple[str, ...],
    threads: int | None,
) -> None:
    """Train SuperPoint's detector on synthetic shapes."""
    from tiepoint.training.magicpoint import MagicPoint, MagicPointConfig

    with _told():
        _prepare(threads)
        config = _configured(MagicPointConfig(), run_folder, resume, file, assignments)
        task = MagicPoint(config, _start(start))
        _train("magicpoint", task, config, config.loop, run_folder, resume, {"shapes": "drawn on the fly"})


@train.command()
@click.argument("data", type=_DATA)
@click.option("--out", "folder", type=_FOLDER, required=True, help="Folder of the labels.")
@click.option(
    "--detector",
    default="corners",
    show_default=True,
    help="`corners` (Shi and Tomasi's, no training needed), or the weights of a MagicPoint or SuperPoint.",
)
@click.option("--device", default="cpu", show_default=True)
@_store
@_settings
def label(
    data: Path,
    folder: Path,
    detector: str,
    device: str,
    store: Path | None,
    file: Path | None,
    assignments: tuple[str, ...],
    threads: int | None,
) -> None:
    """Find the keypoints of the photographs in DATA by homographic adaptation; run again, it goes on."""
    import torch

    from tiepoint.training.configs import changed, read_changes
    from tiepoint.training.label import (
        Detector,
        LabelConfig,
        corner_detector,
        label_photographs,
        network_detector,
    )

    with _told():
        _prepare(threads)
        default = LabelConfig(threshold=0.3, views=16) if detector == "corners" else LabelConfig()
        config = changed(default, read_changes(file, assignments))
        chosen: Detector = corner_detector
        if detector != "corners":
            network = _start(detector)
            assert network is not None
            chosen = network_detector(network.to(device))
        label_photographs(
            _photographs(data, store), folder, chosen, detector, config, torch.device(device),
            lambda done, total: click.echo(f"{done}/{total} photographs labelled"),
        )  # fmt: skip
        click.echo(f"labels: {folder}")


@train.command()
@click.argument("data", type=_DATA)
@click.option("--labels", type=_DATA, required=True, help="Folder that `train label` wrote for DATA.")
@click.option(
    "--held-out",
    type=_DATA,
    default=None,
    help="Photographs to validate on; the last 5 % of DATA if not given, which are then not trained on.",
)
@_run
@_store
@_settings
def superpoint(
    data: Path,
    labels: Path,
    held_out: Path | None,
    run_folder: Path,
    resume: bool,
    start: str | None,
    store: Path | None,
    file: Path | None,
    assignments: tuple[str, ...],
    threads: int | None,
) -> None:
    """Train SuperPoint on the photographs in DATA and their labels."""
    from tiepoint.matchers import matcher
    from tiepoint.training.label import open_labels
    from tiepoint.training.superpoint import LOSSES, SuperPointTraining, SuperPointTrainingConfig
    from tiepoint.training.validation import judge

    with _told():
        _prepare(threads)
        config = _configured(SuperPointTrainingConfig(), run_folder, resume, file, assignments, LOSSES)
        photographs = _photographs(data, store)
        found = open_labels(labels, photographs)
        judged_on = _photographs(held_out, store) if held_out else None
        if judged_on is None:
            kept = round(len(photographs) * (1 - _HELD_OUT_SHARE))
            photographs, judged_on = photographs.subset(slice(0, kept)), photographs.subset(slice(kept, None))
        task = SuperPointTraining(config, photographs, found, judged_on, _start(start))
        beside = {name: judge(matcher(name), task.held_out) for name in ("sift", "orb")}
        for name, figures in beside.items():
            click.echo(f"{name} on the held-out pairs: {_listed(figures)}")
        trained_on = {
            "photographs": str(data),
            "count": len(photographs),
            "fingerprint": photographs.fingerprint,
            "held_out": str(held_out or f"last {_HELD_OUT_SHARE:.0%} of {data}"),
            "labels": json.loads((labels / "labels.json").read_text()),
            "started_from": start or "nothing",
            "others_on_the_held_out_pairs": beside,
        }
        _train("superpoint", task, config, config.loop, run_folder, resume, trained_on)


@train.command()
@click.argument("data", type=_DATA)
@click.option("--out", "folder", type=_FOLDER, required=True, help="Receives magicpoint/, labels/, superpoint/.")
@click.option(
    "--corners",
    is_flag=True,
    help="Label with corners in place of a MagicPoint: hours sooner, and as good a start on a small machine.",
)
@click.option("--held-out", type=_DATA, default=None, help="As for `train superpoint`.")
@_store
@_settings
@click.pass_context
def chain(
    context: click.Context,
    data: Path,
    folder: Path,
    corners: bool,
    held_out: Path | None,
    store: Path | None,
    file: Path | None,
    assignments: tuple[str, ...],
    threads: int | None,
) -> None:
    """Everything in order: MagicPoint, labels, SuperPoint. Run again, it goes on where it stopped.

    The settings are SuperPoint's.
    """
    from tiepoint.training.record import Run

    plain: dict[str, Any] = {"file": None, "assignments": (), "threads": threads}
    going_on: dict[str, Any] = {"resume": True, "start": None}
    detector = "corners"
    if not corners:
        context.invoke(magicpoint, run_folder=folder / "magicpoint", **going_on, **plain)
        detector = str(Run(folder / "magicpoint").best)
    labels = folder / "labels"
    context.invoke(label, data=data, folder=labels, detector=detector, device="cpu", store=store, **plain)
    context.invoke(
        superpoint, data=data, labels=labels, held_out=held_out, run_folder=folder / "superpoint", store=store,
        file=file, assignments=assignments, threads=threads, **going_on,
    )  # fmt: skip


def _listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())


# ---------------------------------------------------------------- shared


def _prepare(threads: int | None) -> None:
    import torch

    from tiepoint.training.record import keep_freed_memory

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)


def _configured(
    default: Config,
    run_folder: Path,
    resume: bool,
    file: Path | None,
    assignments: tuple[str, ...],
    alternatives: dict[str, Any] | None = None,
) -> Config:
    """The default, or on --resume the run's own settings, with the changes asked for."""
    from tiepoint.training.configs import changed, read_changes

    stored = run_folder / "config.json"
    if resume and stored.exists():
        default = changed(default, read_changes(stored, ()), alternatives)
    return changed(default, read_changes(file, assignments), alternatives)


def _photographs(folder: Path, store: Path | None) -> Photographs:
    from tiepoint.training.photographs import StoreConfig, open_photographs
    from tiepoint.weights.store import cache_folder

    return open_photographs(folder, store or cache_folder().parent / "photographs", StoreConfig())


def _start(weights: str | None) -> SuperPoint | None:
    from tiepoint.matchers.superpoint import load_superpoint
    from tiepoint.weights import load_weights

    return None if weights is None else load_superpoint(load_weights(weights), weights)


def _train(
    method: str,
    task: Task,
    config: Any,
    loop: LoopConfig,
    run_folder: Path,
    resume: bool,
    data: dict[str, Any],
) -> None:
    from tiepoint.training import parallel
    from tiepoint.training.engine import Interrupted
    from tiepoint.training.engine import train as run_loop
    from tiepoint.training.record import Run, read_log

    run = Run(run_folder)
    if run.checkpoint.exists() and not resume:
        raise ValueError(f"{run_folder}: holds a run already; go on with --resume or give another folder")
    parallel.start(loop.device)
    if parallel.rank() == 0:
        run.describe(method, {"config": config}, data)
        click.echo(json.dumps(dataclasses.asdict(config), indent=2))
    try:
        best = run_loop(task, loop, run, resume=resume, on_progress=click.echo)
    except Interrupted as stopped:
        raise click.ClickException(str(stopped)) from stopped
    validated = [row for row in read_log(run.log) if f"val_{task.judged_by}" in row]
    before = {name.removeprefix("val_"): value for name, value in validated[0].items()}
    click.echo(f"before: {_listed(before)}")
    click.echo(f"best: {_listed(best)}")


@contextmanager
def _told() -> Iterator[None]:
    """Ends the command with the message of an expected error in place of a traceback."""
    try:
        yield
    except (ValueError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from error
