"""`tiepoint train`: the learned methods, from a folder of plain photographs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tiepoint.cli.train_loftr import loftr
from tiepoint.cli.train_relf import relf
from tiepoint.cli.train_roma import roma
from tiepoint.cli.train_superglue import superglue, train_superglue
from tiepoint.cli.training import (
    DATA_FOLDER,
    OUTPUT_FOLDER,
    DataRequest,
    RunRequest,
    Settings,
    data_options,
    open_stored,
    run_options,
    run_training,
    settings_options,
    store_option,
    told,
)

if TYPE_CHECKING:
    from tiepoint.matchers.superpoint import SuperPoint
    from tiepoint.training.magicpoint import MagicPointConfig
    from tiepoint.training.photographs import Photographs
    from tiepoint.training.superpoint import SuperPointTrainingConfig

    Config = TypeVar("Config", MagicPointConfig, SuperPointTrainingConfig)


@click.group()
def train() -> None:
    """Train on a folder of photographs: no depth, no poses, no labels by hand.

    For SuperPoint: `train label` finds keypoints that stay, by homographic adaptation, with a MagicPoint from
    `train magicpoint` or with corners, which need no training; `train superpoint` learns from them.

    For SuperGlue: `train superglue`, over the features of any detector. `train chain` does all of these in order.

    For LoFTR: `train loftr`, from the photographs alone. So too RoMa's small form: `train roma`,
    and RELF: `train relf`.

    A training can be stopped with Ctrl-C at any time and goes on with --resume as if it had not been.
    """


train.add_command(roma)
train.add_command(superglue)
train.add_command(loftr)
train.add_command(relf)


@train.command()
@run_options
@settings_options
def magicpoint(request: RunRequest, settings: Settings) -> None:
    """Train SuperPoint's detector on synthetic shapes."""
    with told():
        _train_magicpoint(request, settings)


@train.command()
@click.argument("folder", metavar="DATA", type=DATA_FOLDER)
@click.option("--out", "labels", type=OUTPUT_FOLDER, required=True, help="Folder of the labels.")
@click.option(
    "--detector",
    default="corners",
    show_default=True,
    help="`corners` (Shi and Tomasi's, no training needed), or the weights of a MagicPoint or SuperPoint.",
)
@click.option("--device", default="cpu", show_default=True)
@store_option
@settings_options
def label(folder: Path, labels: Path, detector: str, device: str, store: Path | None, settings: Settings) -> None:
    """Find the keypoints of the photographs in DATA by homographic adaptation; run again, it goes on."""
    with told():
        _label(open_stored(folder, store), labels, detector, device, settings)


@train.command()
@data_options
@click.option("--labels", type=DATA_FOLDER, required=True, help="Folder that `train label` wrote for DATA.")
@run_options
@settings_options
def superpoint(data: DataRequest, labels: Path, request: RunRequest, settings: Settings) -> None:
    """Train SuperPoint on the photographs in DATA and their labels."""
    with told():
        _train_superpoint(data, labels, request, settings)


@train.command()
@data_options
@click.option("--out", type=OUTPUT_FOLDER, required=True, help="Receives a folder for each step.")
@click.option(
    "--corners",
    is_flag=True,
    help="Label with corners in place of a MagicPoint: hours sooner, and as good a start on a small machine.",
)
@settings_options
def chain(data: DataRequest, out: Path, corners: bool, settings: Settings) -> None:
    """Everything in order: MagicPoint, labels, SuperPoint, SuperGlue. Run again, it goes on where it stopped.

    The settings are SuperPoint's.
    """
    from tiepoint.training.record import Run

    def step(name: str) -> RunRequest:
        return RunRequest(folder=out / name, resume=True)

    plain = Settings(threads=settings.threads)
    with told():
        detector = "corners"
        if not corners:
            _train_magicpoint(step("magicpoint"), plain)
            detector = str(Run(out / "magicpoint").best)
        _label(open_stored(data.folder, data.store), out / "labels", detector, "cpu", plain)
        _train_superpoint(data, out / "labels", step("superpoint"), settings)
        train_superglue(data, "superpoint", str(Run(out / "superpoint").best), step("superglue"), plain)


def _train_magicpoint(request: RunRequest, settings: Settings) -> None:
    from tiepoint.training.magicpoint import MagicPoint, MagicPointConfig

    config, network = _configured(MagicPointConfig(), request, settings)
    settings.prepare(config.loop.device)
    task = MagicPoint(config, network)
    run_training("magicpoint", task, config, request, {"shapes": "drawn on the fly"})


def _label(photographs: Photographs, labels: Path, detector: str, device: str, settings: Settings) -> None:
    import torch

    from tiepoint.training.label import Detector, LabelConfig, corner_detector, label_photographs, network_detector
    from tiepoint.weights import identified

    settings.prepare()
    config = settings.changed(LabelConfig(threshold=0.3, views=16) if detector == "corners" else LabelConfig())
    network, name = (None, detector) if detector == "corners" else (_start(detector), identified(detector))
    chosen: Detector = network_detector(network.to(device)) if network else corner_detector
    label_photographs(
        photographs, labels, chosen, name, config, torch.device(device),
        lambda done, total: click.echo(f"{done}/{total} photographs labelled"),
    )  # fmt: skip
    click.echo(f"labels: {labels}")


def _train_superpoint(data: DataRequest, labels: Path, request: RunRequest, settings: Settings) -> None:
    from tiepoint.training.label import open_labels
    from tiepoint.training.superpoint import LOSSES, SuperPointTraining, SuperPointTrainingConfig

    config, network = _configured(SuperPointTrainingConfig(), request, settings, LOSSES)
    settings.prepare(config.loop.device)
    found = open_labels(labels, open_stored(data.folder, data.store))
    photographs, held_out = data.opened()
    task = SuperPointTraining(config, photographs, found, held_out, network)
    trained_on = {
        **data.described(photographs, request, task.held_out),
        "labels": json.loads((labels / "labels.json").read_text()),
    }
    run_training("superpoint", task, config, request, trained_on)


def _configured(
    default: Config, request: RunRequest, settings: Settings, alternatives: dict[str, Any] | None = None
) -> tuple[Config, SuperPoint | None]:
    """The settings of a training of SuperPoint or its detector, and the network it starts from, if any.

    Raises ValueError for settings that speak of another network than that.
    """
    network = _start(request.start)
    if network is None:
        return request.configured(default, settings, alternatives), None
    of_network = asdict(network.config)
    config = request.configured(replace(default, **of_network), settings, alternatives)
    if {name: getattr(config, name) for name in of_network} != of_network:
        raise ValueError(f"network: expected that of {request.start}, {of_network}, got other settings")
    return config, network


def _start(weights: str | None) -> SuperPoint | None:
    from tiepoint.matchers.superpoint import load_superpoint
    from tiepoint.weights import load_weights

    return None if weights is None else load_superpoint(load_weights(weights), weights)
