"""Options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tiepoint.matchers.base import Look, MatcherOptions, Precision, Search


def method_options(*, default: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--method, and what a matcher can be told, which the command gets as one `options`."""
    also = "; auto: SIFT, and more only where it is refused" if default == "auto" else ""
    method = click.option("--method", default=default, show_default=True, help=f"See `tiepoint methods`{also}.")
    return lambda command: method(matcher_options(command))


def matcher_options(command: Callable[..., None]) -> Callable[..., None]:
    """What a matcher can be told, which the command gets as one `options`."""
    options = (
        click.option("--weights", help="Weights by name or file; see `tiepoint weights list`."),
        click.option(
            "--max-size", type=click.IntRange(16), help="Long side, in pixels, of the image a method works on."
        ),
        click.option("--max-keypoints", type=click.IntRange(1), help="Most keypoints per image."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps."),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "bf16", "fp16"]),
            default="fp32",
            show_default=True,
            help="Number type of the networks.",
        ),
        click.option("--commercial-only", is_flag=True, help="Refuse weights whose licence forbids commercial use."),
        click.option(
            "--search",
            type=click.Choice(["exact", "flann"]),
            default="exact",
            show_default=True,
            help="Nearest neighbours of SIFT and ORB: exact, or approximate by FLANN (KD-trees, LSH).",
        ),
        click.option(
            "--four-way/--upright",
            default=None,
            help="Any in-plane rotation, or up to 45 degrees, with methods that do not turn by themselves: image 1 is"
            " turned as SIFT's orientations say, four ways where they do not agree.  [default: four-way where"
            " photographs are registered, else upright]",
        ),
        click.option(
            "--look",
            type=click.Choice(["once", "multiscale", "tiled"]),
            default="once",
            show_default=True,
            help="multiscale: at two sizes, then at the region both images show, larger (long side --max-size, "
            "1120 px by default). tiled: the whole, then image 0 in tiles of --max-size (1024 px) at full size.",
        ),
    )

    @functools.wraps(command)
    def run(
        *,
        weights: str | None,
        max_size: int | None,
        max_keypoints: int | None,
        device: str,
        precision: Precision,
        commercial_only: bool,
        search: Search,
        four_way: bool | None,
        look: Look,
        **others: Any,
    ) -> None:
        from tiepoint.matchers import MatcherOptions

        matching = MatcherOptions(
            max_size_px=max_size,
            max_num_keypoints=max_keypoints,
            weights=weights,
            device=device,
            precision=precision,
            four_way=four_way,
            look=look,
            commercial_only=commercial_only,
            search=search,
        )
        command(options=matching, **others)

    for option in reversed(options):
        run = option(run)
    return run


def refine_option(command: Callable[..., None]) -> Callable[..., None]:
    """--refine, for commands whose result is the matches' own; below `matcher_options`, in whose `options` it goes."""

    @click.option(
        "--refine/--no-refine",
        default=True,
        show_default=True,
        help="Move each match to where the two pictures agree, to a fraction of a pixel.",
    )
    @functools.wraps(command)
    def run(*, options: MatcherOptions, refine: bool, **others: Any) -> None:
        command(options=replace(options, refine=refine), **others)

    return run
