"""`tiepoint register`."""

from __future__ import annotations

import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from tiepoint.cli.options import method_options
from tiepoint.geometry import KINDS
from tiepoint.images import DEFAULT_MAX_PIXELS, ImageError
from tiepoint.matchers import METHODS, MatcherOptions, MethodUnavailable

_WORKERS_HELP = "Processes; by default one per core, at most 8 (`auto` with PyTorch installed: 4; a learned method: 1)."


@click.command()
@click.argument("template", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Output folder.")
@method_options(default="auto")
@click.option(
    "--model",
    type=click.Choice(["transform", *KINDS]),
    default="homography",
    show_default=True,
    help="The kind of transform; `transform` chooses the simplest that explains the matches.",
)
@click.option(
    "--mask", type=click.Path(path_type=Path), help="A picture of the template's size: where it is 0 is ignored."
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    show_default=True,
    help="Largest residual of an inlier, in template pixels.",
)
@click.option(
    "--refine",
    type=click.Choice(["auto", "none"]),
    default="auto",
    show_default=True,
    help="Align by intensity after the fit, kept where it agrees better; or do not.",
)
@click.option("--max-rotation-deg", type=click.FloatRange(0, 180), help="Refuse what is turned further.")
@click.option(
    "--scale-range",
    type=(float, float),
    default=(0.1, 10.0),
    show_default=True,
    help="Refuse scales (template pixels per source pixel) outside.",
)
@click.option("--overlays", is_flag=True, help="Write overlays too: template red, aligned source cyan.")
@click.option("--workers", type=click.IntRange(1), help=_WORKERS_HELP)
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Run the workers on a Ray cluster; without an address, one started on this machine.",
)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same result.")
@click.option("--max-pixels", default=DEFAULT_MAX_PIXELS, show_default=True, help="Refuse larger pictures.")
@click.option("--overwrite", is_flag=True, help="Do everything again, also what is finished.")
def register(
    template: Path,
    sources: tuple[str, ...],
    out: Path,
    method: str,
    options: MatcherOptions,
    model: Any,
    mask: Path | None,
    threshold: float,
    refine: str,
    max_rotation_deg: float | None,
    scale_range: tuple[float, float],
    overlays: bool,
    workers: int | None,
    ray: str | None,
    seed: int,
    max_pixels: int,
    overwrite: bool,
) -> None:
    """Bring SOURCES (files, folders, patterns) into the frame of TEMPLATE.

    Writes aligned images and masks of their valid area, registrations.jsonl and .csv, and report.html. A run that was
    interrupted goes on where it stopped when started again. Ends with 0 when all sources were accepted, 2 when
    some were refused or unreadable, 1 for bad usage or when nothing could be read.
    """
    from tqdm import tqdm

    from tiepoint.registration.batch import BatchConfig, RunInUse, output_folders, run_batch
    from tiepoint.registration.register import RegistrationConfig
    from tiepoint.registration.sources import find_sources
    from tiepoint.registration.verdict import Limits

    config = BatchConfig(
        template=template,
        mask=mask,
        method=method,
        options=options,
        registration=RegistrationConfig(
            model=model,
            threshold_px=threshold,
            refine=refine == "auto",
            limits=Limits(max_rotation_deg=max_rotation_deg, scale_range=scale_range),
            seed=seed,
        ),
        overlays=overlays,
        max_pixels=max_pixels,
    )
    try:
        found = find_sources(sources, leave_out=[*output_folders(out), template])
        if not found:
            raise ValueError("there is nothing to register: the sources hold no image beside the template")
        counts: Counter[str] = Counter()
        with tqdm(total=len(found), unit="image", dynamic_ncols=True) as bar:

            def progress(record: dict[str, Any], reused: bool) -> None:
                counts[record["status"]] += 1
                counts["reused"] += reused
                if record["status"] != "accepted":
                    bar.write(click.format_filename(_refusal(record)))  # a name need not be Unicode
                bar.set_postfix(accepted=counts["accepted"], refused=sum_refused(counts), refresh=False)
                bar.update()

            run_batch(
                config,
                found,
                out,
                workers=workers or default_workers(method, len(found)),
                ray=ray,
                overwrite=overwrite,
                progress=progress,
            )
    except (ImageError, MethodUnavailable, RunInUse, ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    reused = f", {counts['reused']} of an earlier run" if counts["reused"] else ""
    report = click.format_filename(out / "report.html")
    click.echo(f"{counts['accepted']} accepted, {sum_refused(counts)} refused of {len(found)}{reused}: {report}")
    if counts["unreadable"] + counts["failed"] == len(found):
        click.get_current_context().exit(1)
    if counts["accepted"] < len(found):
        click.get_current_context().exit(2)


def _refusal(record: dict[str, Any]) -> str:
    more = len(record["reasons"]) - 1
    others = f" (and {more} more reasons)" if more > 0 else ""
    return f"{record['status']:10s} {record['source']}: {record['reasons'][0]}{others}"


def sum_refused(counts: Counter[str]) -> int:
    return counts["rejected"] + counts["unreadable"] + counts["failed"] + counts["unwritten"]


def default_workers(method: str, count: int) -> int:
    """One per core up to 8 for classical methods; networks use all cores themselves.

    `auto` may come to load networks: with them each process takes some 500 MB.
    """
    if method in METHODS and METHODS[method].needs_torch:
        return 1
    most = 4 if method == "auto" and find_spec("torch") is not None else 8
    return max(1, min(os.cpu_count() or 1, most, count // 2))
