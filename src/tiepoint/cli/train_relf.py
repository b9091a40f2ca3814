"""`tiepoint train relf`: RELF, from a folder of plain photographs."""

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
def relf(data: DataRequest, request: RunRequest, settings: Settings) -> None:
    """Train RELF, features that turn with the image, on views of the photographs in DATA."""
    with told():
        train_relf(data, request, settings)


def train_relf(data: DataRequest, request: RunRequest, settings: Settings) -> None:
    from dataclasses import replace
    from typing import Literal

    from tiepoint.matchers.relf_weights import load_relf
    from tiepoint.networks.equivariant_resnet import ReResNet
    from tiepoint.training.relf import LOSSES, RelfTraining, RelfTrainingConfig

    model = load_relf(request.start) if request.start else None
    default = RelfTrainingConfig()
    if model is not None:
        if model.published:
            raise ValueError(f"{request.start}: published weights go with another preprocessing; give our own")
        backbone: Literal["re_resnet", "e2wrn16_8R"]
        backbone = "re_resnet" if isinstance(model.network, ReResNet) else "e2wrn16_8R"
        default = replace(default, backbone=backbone, order=model.network.order)
    config = request.configured(default, settings, LOSSES)
    if model is not None and (config.backbone, config.order) != (default.backbone, default.order):
        raise ValueError(
            f"network: expected that of {request.start}, {default.backbone} of order {default.order}, "
            f"got {config.backbone} of order {config.order}"
        )
    settings.prepare(config.loop.device)
    photographs, _ = data.opened(colour=True)
    _, held_out = data.opened()  # grey, as the other methods are judged
    task = RelfTraining(config, photographs, held_out, model.network if model else None)
    run_training("relf", task, config, request, data.described(photographs, request, task.held_out))
