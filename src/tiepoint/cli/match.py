"""`tiepoint match`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np

from tiepoint.cli.options import method_options, refine_option
from tiepoint.estimation import Estimate, fit
from tiepoint.geometry import KINDS, Features, Matches, Transform, save_matches
from tiepoint.images import DEFAULT_MAX_PIXELS, Image, ImageError, read_image, write_image
from tiepoint.matchers import METHODS, MatcherOptions, MethodUnavailable, matcher

_MODELS = ("auto", "transform", *KINDS, "fundamental")


@click.command()
@click.argument("image0", type=click.Path(path_type=Path))
@click.argument("image1", type=click.Path(path_type=Path))
@method_options(default="sift")
@refine_option
@click.option(
    "--model",
    type=click.Choice(_MODELS),
    default="auto",
    show_default=True,
    help="What to fit: the simplest transform that explains the matches (transform), that or a fundamental"
    " matrix (auto), or the one named.",
)
@click.option("--threshold", type=click.FloatRange(0, min_open=True), help="Largest residual of an inlier, in pixels.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same answer.")
@click.option("--out", type=click.Path(path_type=Path), help="Write all matches: .npz, .json or .csv.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the matches side by side into this picture.")
@click.option("--max-pixels", default=DEFAULT_MAX_PIXELS, show_default=True, help="Refuse larger pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def match(
    image0: Path,
    image1: Path,
    method: str,
    options: MatcherOptions,
    model: Any,
    threshold: float | None,
    seed: int,
    out: Path | None,
    plot: Path | None,
    max_pixels: int,
    as_json: bool,
) -> None:
    """Match IMAGE0 and IMAGE1, and fit what relates them.

    Coordinates are pixels (x, y) of the full-size upright images, pixel centres at integers; matrices map
    image 0 to image 1. Ends with 0 when a model was found, 2 when not, 1 for bad input.
    """
    try:
        found = matcher(method, options)
        pictures = [read_image(path, max_pixels=max_pixels) for path in (image0, image1)]
        encoding0, encoding1 = found.encode_batch(pictures)
        matches = found.match(encoding0, encoding1)
        estimate = fit(matches, model, threshold_px=threshold, seed=seed)
        if out is not None:
            save_matches(out, matches)
        if plot is not None:
            _plot(plot, pictures, matches, estimate)
    except (ImageError, MethodUnavailable, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    summary = _summary(matches, estimate, [encoding0, encoding1])
    click.echo(json.dumps(summary) if as_json else _in_words(summary))
    if not estimate:
        if not METHODS[method].turns and not options.four_way:
            click.echo(f"{method} holds to 45 degrees of rotation; --four-way matches at any", err=True)
        click.get_current_context().exit(2)


def _plot(path: Path, pictures: list[Image], matches: Matches, estimate: Estimate[Any]) -> None:
    from tiepoint.plot.draw import draw_matches

    write_image(path, Image(draw_matches(pictures[0], pictures[1], matches, inliers=estimate.inliers)))


def _summary(matches: Matches, estimate: Estimate[Any], encodings: list[Any]) -> dict[str, Any]:
    keypoints = [len(encoding) if isinstance(encoding, Features) else None for encoding in encodings]
    model = estimate.model
    kind = None if model is None else model.kind if isinstance(model, Transform) else "fundamental"
    return {
        "method": matches.method,
        "size0": matches.size0,
        "size1": matches.size1,
        "keypoints0": keypoints[0],
        "keypoints1": keypoints[1],
        "matches": len(matches),
        "inliers": estimate.num_inliers,
        "model": kind,
        "matrix": None if model is None else model.matrix.tolist(),
        "residual_px": None if model is None else estimate.rms_px,
        "threshold_px": estimate.threshold_px,
        "reason": estimate.reason,
    }


def _in_words(summary: dict[str, Any]) -> str:
    lines = []
    if summary["keypoints0"] is not None:
        lines.append(f"keypoints  {summary['keypoints0']} and {summary['keypoints1']}")
    lines.append(f"matches    {summary['matches']} ({summary['method']})")
    if summary["model"] is None:
        return "\n".join([*lines, f"no model   {summary['reason']}"])
    lines.append(f"inliers    {summary['inliers']} within {summary['threshold_px']:g} px")
    name = "F" if summary["model"] == "fundamental" else "H_1_from_0"
    matrix = np.array2string(np.array(summary["matrix"]), precision=6, suppress_small=False, prefix=" " * 11)
    lines.append(f"model      {summary['model']}, residual {summary['residual_px']:.2f} px (rms)")
    lines.append(f"{name:10s} {matrix}")
    return "\n".join(lines)
