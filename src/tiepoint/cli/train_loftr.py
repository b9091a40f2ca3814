"""`tiepoint train loftr`: LoFTR, from plain photographs, or from photographs with known depth or cameras."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

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

if TYPE_CHECKING:
    from tiepoint.networks.loftr import LoftrNetwork
    from tiepoint.training.loftr import LoftrTraining, LoftrTrainingConfig
    from tiepoint.training.scenes import PosedLayout

Layout = Literal["photographs", "megadepth", "imc2022"]


@click.command()
@data_options
@click.option(
    "--layout",
    type=click.Choice(["photographs", "megadepth", "imc2022"]),
    default="photographs",
    show_default=True,
    help="What DATA holds. photographs: any pictures; two views of each, made here. megadepth: scene_info/*.npz as "
    "LoFTR's authors made them, and the images and depth (HDF5) they name; true matches by depth and pose. imc2022: "
    "the training folder of the Image Matching Challenge 2022, scenes with calibration.csv, pair_covisibility.csv and "
    "images/; its cameras tell which matches of the weights in --fine-tune, required, are right. The last scene is "
    "held out, unless --held-out names a folder of the same layout.",
)
@run_options
@settings_options
def loftr(data: DataRequest, layout: Layout, request: RunRequest, settings: Settings) -> None:
    """Train LoFTR, by default the small one, on the photographs in DATA.

    They may be plain photographs, or come with cameras and depth (--layout).
    """
    with told():
        train_loftr(data, layout, request, settings)


def train_loftr(data: DataRequest, layout: Layout, request: RunRequest, settings: Settings) -> None:
    from dataclasses import replace

    from tiepoint.matchers.loftr import load_loftr
    from tiepoint.training.loftr import LoftrTrainingConfig

    if layout == "imc2022" and request.start is None:
        raise ValueError("--layout imc2022: give --fine-tune WEIGHTS too, whose own matches are the labels")
    _check_same_data(layout, request)
    network = load_loftr(request.start) if request.start else None
    default = LoftrTrainingConfig()
    if network is not None:
        default = replace(default, network=network.config)
    config = request.configured(default, settings)
    if network is not None and config.network != network.config:
        raise ValueError(f"network: expected that of {request.start}, {network.config}, got {config.network}")
    settings.prepare(config.loop.device)
    if layout == "photographs":
        task, described = _on_photographs(data, config, request, network)
    else:
        task, described = _on_posed(data, layout, config, request, network)
    run_training("loftr", task, config, request, {**described, "layout": layout})


def _check_same_data(layout: Layout, request: RunRequest) -> None:
    """Raises ValueError where a run would go on with another layout, or other weights that label."""
    stored = request.stored()
    if stored is None:
        return
    before = stored["data"]
    if before.get("layout", "photographs") != layout:
        raise ValueError(f"{request.folder}: has learned from --layout {before.get('layout', 'photographs')}; give it")
    if layout == "imc2022" and before["started_from"] != request.start:
        raise ValueError(f"{request.folder}: its labels are those of --fine-tune {before['started_from']}; give it")


def _on_photographs(
    data: DataRequest, config: LoftrTrainingConfig, request: RunRequest, network: LoftrNetwork | None
) -> tuple[LoftrTraining, dict[str, Any]]:
    from tiepoint.training.loftr import LoftrTraining
    from tiepoint.training.loftr_data import HeldOutViews, PhotographPairs

    photographs, held_out = data.opened()
    pairs = PhotographPairs(photographs, config.pairs, config.network.origin)
    views = HeldOutViews(held_out, config.pairs, config.num_validation, config.loop.seed)
    return LoftrTraining(config, pairs, views, network), data.described(photographs, request, views.planes)


def _on_posed(
    data: DataRequest,
    layout: PosedLayout,
    config: LoftrTrainingConfig,
    request: RunRequest,
    network: LoftrNetwork | None,
) -> tuple[LoftrTraining, dict[str, Any]]:
    from tiepoint.training.export import licences
    from tiepoint.training.loftr import LoftrTraining
    from tiepoint.training.posed import DepthTruth, PosedPairs, PseudoLabels, Truth
    from tiepoint.training.posed_validation import HeldOutPosed
    from tiepoint.training.scenes import kept_back, num_pairs, read_scenes

    posed = config.posed
    overlap = (posed.min_overlap, posed.max_overlap)
    scenes = read_scenes(layout, data.folder, overlap)
    if data.held_out is None:
        scenes, held_out = kept_back(scenes)
    else:
        held_out = read_scenes(layout, data.held_out, overlap)
    truth: Truth = DepthTruth(origin=config.network.origin, depth_error=posed.depth_error)
    if layout == "imc2022":
        assert network is not None
        truth = PseudoLabels(network, posed.epipolar_px)
    task = LoftrTraining(
        config,
        PosedPairs(scenes, posed.side_px, truth),
        HeldOutPosed(held_out, posed, config.num_validation),
        network,
    )
    return task, {
        "photographs": str(data.folder),
        "licences": licences(data.folder),
        "scenes": num_pairs(scenes),
        "held_out": num_pairs(held_out),
        "started_from": request.started_from(),
    }
