"""`tiepoint train roma`: the small RoMa, from a folder of plain photographs."""

from __future__ import annotations

import click

from tiepoint.cli.training import (
    DataRequest,
    RunRequest,
    Settings,
    data_options,
    run_options,
    run_training,
    settings_options,
    told,
)


@click.command()
@data_options
@run_options
@settings_options
def roma(data: DataRequest, request: RunRequest, settings: Settings) -> None:
    """Train `roma-small` on views of the photographs in DATA."""
    with told():
        train_roma(data, request, settings)


def train_roma(data: DataRequest, request: RunRequest, settings: Settings) -> None:
    from tiepoint.matchers.roma import ROMA_SMALL_CONFIG, load_network
    from tiepoint.training.roma import RomaTraining, RomaTrainingConfig

    config = request.configured(RomaTrainingConfig(), settings)
    settings.prepare(config.loop.device)
    photographs, held_out = data.opened(colour=True)
    network = load_network(ROMA_SMALL_CONFIG, request.start) if request.start else None
    task = RomaTraining(config, photographs, held_out, network)
    run_training(
        "roma-small", task, config, request, data.described(photographs, request, task.validation.homographies)
    )
