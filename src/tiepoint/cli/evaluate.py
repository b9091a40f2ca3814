"""`tiepoint evaluate`: measure methods by the field's protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiepoint.cli.options import matcher_options, refine_option

if TYPE_CHECKING:
    from tiepoint.evaluation.pairs import ImagePair
    from tiepoint.evaluation.run import Protocol
    from tiepoint.matchers import MatcherOptions

DATA = click.Path(exists=True, path_type=Path)


@click.group()
def evaluate() -> None:
    """Measure methods by the field's protocols.

    Each prints tables and writes result.json, CSV files and curves (PNG, SVG) into --out. A run started again
    with the same --out goes on where it stopped.
    """


def matching_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every protocol takes whose result is the matches' own."""
    return common_options(refine_option(command))


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """What every protocol takes."""
    command = matcher_options(command)
    options = [
        click.option("--method", "methods", multiple=True, help="A method; may be given several times."),
        click.option("--self-check", is_flag=True, help="True correspondences too, exact and with 1 px of noise."),
        click.option("--subset", type=click.IntRange(1), help="A quick look at that many of each part of the data."),
        click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the results."),
        click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of all random choices."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@evaluate.command()
@click.argument("data", type=DATA)
@click.option("--scenes", type=click.Choice(["all", "116", "108"]), default="all", show_default=True,
              help="HPatches' list of scenes.")  # fmt: skip
@click.option("--short-side", type=click.IntRange(1), help="Resize to this short side, px (published: 480).")
@click.option("--threshold-px", type=click.FloatRange(0, min_open=True), default=3.0, show_default=True,
              help="Of the robust estimators.")  # fmt: skip
@matching_options
def homography(
    data: Path,
    scenes: str,
    short_side: int | None,
    threshold_px: float,
    subset: int | None,
    seed: int,
    **common: Any,
) -> None:
    """Homographies: HPatches, or folders of its layout (1.*, k.*, H_1_k).

    Matching accuracy, precision, matching score, repeatability; error and its AUC with four estimators.
    """
    from tiepoint.evaluation.homography import Homography
    from tiepoint.evaluation.layouts import homography_pairs

    with usage_errors():
        pairs = homography_pairs(data, scenes=scenes, short_side_px=short_side, subset=subset)
    protocol = Homography(threshold_px=threshold_px, seed=seed, short_side_px=short_side)
    run(protocol, pairs, data, {"scenes": scenes, "subset": subset}, **common)


@evaluate.command()
@click.argument("data", type=DATA)
@matching_options
def rotation(data: Path, subset: int | None, seed: int, **common: Any) -> None:
    """Rotation in the plane: Roto-360, or pairs made from any folder of photographs.

    Each photograph against itself turned by 10, 20, ... 360 degrees, same canvas and expanded canvas.
    """
    from tiepoint.evaluation.rotation import Rotation, rotation_pairs

    with usage_errors():
        pairs = rotation_pairs(data, subset=subset)
    run(Rotation(), pairs, data, {"subset": subset, "seed": seed}, **common)


@evaluate.command()
@click.argument("pairs_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--threshold-px", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
              help="Of the estimators, in pixels of the full-size images.")  # fmt: skip
@matching_options
def pose(pairs_file: Path, threshold_px: float, subset: int | None, seed: int, **common: Any) -> None:
    """Relative pose of calibrated pairs, listed in SuperGlue's format.

    Pose AUC at 5, 10, 20 degrees, epipolar precision and matching score.
    """
    from tiepoint.evaluation.layouts import pose_pairs
    from tiepoint.evaluation.pose import Pose

    with usage_errors():
        pairs = pose_pairs(pairs_file, subset=subset, seed=seed)
    run(Pose(threshold_px=threshold_px, seed=seed), pairs, pairs_file.parent, {"subset": subset}, **common)


@evaluate.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--threshold-px", type=click.FloatRange(0, min_open=True), default=0.2, show_default=True,
              help="Of MAGSAC, in pixels of the full-size images.")  # fmt: skip
@matching_options
def imc2022(data: Path, threshold_px: float, subset: int | None, seed: int, **common: Any) -> None:
    """Image Matching Challenge 2022: mAA on the competition's training scenes.

    --subset draws that many pairs of each scene.
    """
    from tiepoint.evaluation.imc2022 import Imc2022, training_pairs

    with usage_errors():
        pairs = training_pairs(data, subset=subset, seed=seed)
    run(Imc2022(threshold_px=threshold_px, seed=seed), pairs, data, {"subset": subset}, **common)


@evaluate.command()
@click.argument("data", type=DATA, nargs=-1, required=True)
@click.option("--model", type=click.Choice(["homography", "fundamental"]), default="fundamental",
              show_default=True, help="For two images; sets know theirs.")  # fmt: skip
@matching_options
def thresholds(data: tuple[Path, ...], model: Any, subset: int | None, seed: int, **common: Any) -> None:
    """Inliers and error over estimators' thresholds of 3 ... 0.001 px.

    DATA: two images, a folder of sequences (1.*, k.*, H_1_k), or a pairs file in SuperGlue's format.
    """
    from tiepoint.evaluation.layouts import homography_pairs, pose_pairs
    from tiepoint.evaluation.thresholds import Thresholds, image_pair

    with usage_errors():
        pairs: Sequence[ImagePair]
        if len(data) == 2:
            pairs, folder = [image_pair(*data)], data[0].parent
        elif len(data) > 2:
            raise ValueError(f"expected two images, a folder or a pairs file, got {len(data)} paths")
        elif data[0].is_dir():
            model, pairs, folder = "homography", homography_pairs(data[0], subset=subset), data[0]
        else:
            model, folder = "fundamental", data[0].parent
            pairs = pose_pairs(data[0], subset=subset, seed=seed)
    run(Thresholds(model=model, seed=seed), pairs, folder, {"subset": subset}, **common)


@evaluate.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--unrelated", type=click.IntRange(0), default=5000, show_default=True,
              help="Pairs that must be refused.")  # fmt: skip
@common_options
def registration(data: Path, unrelated: int, subset: int | None, seed: int, **common: Any) -> None:
    """Registration: what it accepts and refuses, whether its predicted error is true, what refinement gains.

    DATA: a folder with eval/homography (sequences: 1.*, k.*, H_1_k), train and val (photographs).
    """
    from tiepoint.evaluation.registration import RegistrationTrust
    from tiepoint.evaluation.registration_pairs import registration_pairs

    if common["self_check"]:
        raise click.UsageError("--self-check: true correspondences cannot be registered; name a --method")
    common["methods"] = common["methods"] or ("sift",)
    common["options"] = common["options"].at_any_rotation()
    with usage_errors():
        pairs = registration_pairs(data, unrelated=unrelated, subset=subset, seed=seed)
    protocol = RegistrationTrust(seed=seed)
    run(protocol, pairs, data, {"subset": subset, "unrelated": unrelated}, **common)


@contextmanager
def usage_errors() -> Iterator[None]:
    """What is the user's to mend (values, files, weights, packages, memory) ends in one line, exit code 1."""
    from tiepoint.matchers import MethodUnavailable

    try:
        yield
    except BrokenProcessPool as error:
        raise click.ClickException(
            "a worker process died, most likely for want of memory; run the same command again with fewer --workers"
            " to go on where this run stopped"
        ) from error
    except (MethodUnavailable, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def run(
    protocol: Protocol[Any, Any],
    pairs: Sequence[ImagePair],
    data: Path,
    settings: dict[str, Any],
    *,
    methods: Sequence[str],
    self_check: bool,
    out: Path | None,
    options: MatcherOptions,
    workers: int,
) -> None:
    """Evaluate, print the tables, write the files, draw the curves."""
    from tiepoint.evaluation.session import contestants, run_session
    from tiepoint.matchers import METHODS
    from tiepoint.plot.curves import save_charts

    if not methods and not self_check:
        raise click.UsageError(f"name a --method: {', '.join(METHODS)}")
    for name in methods:
        if name not in METHODS:
            raise click.UsageError(f"unknown method {name!r}; there are: {', '.join(METHODS)}")
    folder = out or Path("evaluation") / type(protocol).__name__.lower()
    with usage_errors():
        report = run_session(
            protocol,
            contestants(methods, options, self_check=self_check),
            pairs,
            data=data,
            out=folder,
            workers=workers,
            settings=settings,
        )
    click.echo(str(report))
    for name, charts in report.figures.items():
        save_charts(folder / name, charts)
    click.echo(f"\nwritten to {folder}", err=True)
