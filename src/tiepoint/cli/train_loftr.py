"""`tiepoint train loftr`: LoFTR, from a folder of plain photographs."""

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
def loftr(data: DataRequest, request: RunRequest, settings: Settings) -> None:
    """Train LoFTR, by default the small one, on views of the photographs in DATA."""
    with told():
        train_loftr(data, request, settings)


def train_loftr(data: DataRequest, request: RunRequest, settings: Settings) -> None:
    from dataclasses import replace

    from tiepoint.matchers.loftr import load_loftr
    from tiepoint.training.loftr import LoftrTraining, LoftrTrainingConfig

    settings.prepare()
    network = load_loftr(request.start) if request.start else None
    default = LoftrTrainingConfig()
    if network is not None:
        default = replace(default, network=network.config)
    config = request.configured(default, settings)
    if network is not None and config.network != network.config:
        raise ValueError(f"network: expected that of {request.start}, {network.config}, got {config.network}")
    photographs, held_out = data.opened()
    task = LoftrTraining(config, photographs, held_out, network)
    run_training("loftr", task, config, request, data.described(photographs, request, task.held_out))
