"""`tiepoint train superglue`: SuperGlue over the features of any detector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    from tiepoint.matchers.base import Extractor
    from tiepoint.training.superglue import SuperGlueTrainingConfig


@click.command()
@data_options
@click.option(
    "--features",
    type=click.Choice(["superpoint", "sift", "orb"]),
    default="superpoint",
    show_default=True,
    help="Whose features are matched.",
)
@click.option("--superpoint", default=None, help="SuperPoint's weights (name or file); our own if not given.")
@run_options
@settings_options
def superglue(
    data: DataRequest, features: str, superpoint: str | None, request: RunRequest, settings: Settings
) -> None:
    """Train SuperGlue on views of the photographs in DATA.

    The features of all views are computed first, into OUT/features, which can be deleted afterwards.
    """
    with told():
        train_superglue(data, features, superpoint, request, settings)


def train_superglue(
    data: DataRequest, features: str, superpoint: str | None, request: RunRequest, settings: Settings
) -> None:
    from tiepoint.matchers.superglue import load_superglue
    from tiepoint.training import parallel
    from tiepoint.training.feature_pool import make_pool
    from tiepoint.training.superglue import SuperGlueTraining
    from tiepoint.weights import load_weights

    config = request.configured(_default_config(features), settings)
    settings.prepare(config.loop.device)
    photographs, held_out = data.opened()
    chosen = _trained_over(features, superpoint, config.pool.num_keypoints)
    with parallel.first_before_others():
        pool = make_pool(
            photographs, request.folder / "features", chosen.dense, chosen.name, config.pairs, config.pool,
            lambda done, total: click.echo(f"{done}/{total} photographs: features computed"),
        )  # fmt: skip
    network = load_superglue(load_weights(request.start), request.start) if request.start else None
    task = SuperGlueTraining(config, pool, chosen.usual, held_out, network)
    trained_on = {
        **data.described(photographs, request, task.held_out, start="nearest neighbours"),
        "features": chosen.name,
    }
    run_training(f"{features}+superglue", task, config, request, trained_on)


def _default_config(features: str) -> SuperGlueTrainingConfig:
    """SIFT and ORB describe a keypoint along its own orientation and are trained at any angle; SuperPoint is not."""
    from tiepoint.training.pairs import PairConfig
    from tiepoint.training.superglue import SuperGlueTrainingConfig
    from tiepoint.training.warps import WarpConfig

    rotation_deg = 45.0 if features == "superpoint" else 180.0
    return SuperGlueTrainingConfig(pairs=PairConfig(warp1=WarpConfig(rotation_deg=rotation_deg)))


@dataclass(frozen=True)
class _TrainedOver:
    """usual: the detector as users have it; dense: with hardly a threshold, so that every view has keypoints."""

    name: str
    usual: Extractor
    dense: Extractor


def _trained_over(features: str, superpoint: str | None, count: int) -> _TrainedOver:
    from dataclasses import replace

    from tiepoint.matchers.orb import Orb
    from tiepoint.matchers.sift import Sift
    from tiepoint.matchers.superpoint import load_superpoint
    from tiepoint.matchers.superpoint_extractor import PRESETS, SuperPointExtractor
    from tiepoint.weights import default_weights, identified, load_weights

    if features == "sift":
        return _TrainedOver(features, Sift(), Sift(max_num_keypoints=count, contrast_threshold=0.01))
    if features == "orb":
        return _TrainedOver(features, Orb(), Orb(max_num_keypoints=count, fast_threshold=3))
    weights = superpoint or default_weights("superpoint")
    network = load_superpoint(load_weights(weights), weights)
    preset = replace(PRESETS[network.config.normalisation], max_enlargement=1.0)
    return _TrainedOver(
        f"{features}: {identified(weights)}",
        SuperPointExtractor(network, replace(preset, max_num_keypoints=512)),
        SuperPointExtractor(network, replace(preset, max_num_keypoints=count, threshold=0.0)),
    )
