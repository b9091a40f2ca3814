"""`tiepoint match-set`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiepoint.cli.options import method_options
from tiepoint.images import DEFAULT_MAX_PIXELS
from tiepoint.matchers import MatcherOptions

if TYPE_CHECKING:
    from tiepoint.sets.pairs import Pair


@click.command("match-set")
@click.argument("photographs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Output folder.")
@method_options(default="sift")
@click.option(
    "--pairs",
    "listed",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of pairs, two names a line; by default every photograph is matched with every other.",
)
@click.option(
    "--most-alike",
    type=click.IntRange(1),
    help="Each photograph with so many that share most with it at a glance: for sets of hundreds.",
)
@click.option("--window", type=click.IntRange(1), help="Each photograph with so many that follow it by name.")
@click.option(
    "--format",
    "formats",
    type=click.Choice(["colmap", "hloc"]),
    multiple=True,
    default=("colmap",),
    show_default=True,
    help="May be given twice.",
)
@click.option(
    "--cameras",
    type=click.Choice(["auto", "single", "per-folder", "per-image"]),
    default="auto",
    show_default=True,
    help="Which photographs COLMAP takes for one camera's; auto: those whose EXIF agrees.",
)
@click.option(
    "--merge-px",
    type=click.FloatRange(0),
    help="Points of a photograph in one square of this side are one keypoint."
    "  [default: 0 where all pairs share keypoints, else 4]",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the geometric verification."
)
@click.option("--max-pixels", default=DEFAULT_MAX_PIXELS, show_default=True, help="Refuse larger pictures.")
def match_set(
    photographs: Path,
    out: Path,
    method: str,
    options: MatcherOptions,
    listed: Path | None,
    most_alike: int | None,
    window: int | None,
    formats: tuple[str, ...],
    cameras: Any,
    merge_px: float | None,
    seed: int,
    max_pixels: int,
) -> None:
    """Match the photographs of a folder with one another, for a reconstruction.

    Writes OUT/database.db, with which COLMAP's mapper can begin at once (`--format colmap`), or OUT/features.h5,
    OUT/matches.h5 and OUT/pairs.txt (`--format hloc`). Each pair's matches are kept in OUT/matches: a set that was
    interrupted, or has grown, goes on from there. Ends with 0, with 2 when photographs were left out, with 1 for bad
    input.
    """
    from tiepoint.sets.colmap import check_colmap, write_database
    from tiepoint.sets.hloc import check_hloc, write_hloc
    from tiepoint.sets.matching import SetConfig, match_pairs
    from tiepoint.sets.tie_points import tie_points

    config = SetConfig(folder=photographs, method=method, options=options, max_pixels=max_pixels)
    try:
        if "colmap" in formats:
            check_colmap()
        if "hloc" in formats:
            check_hloc()
        pairs, left_out = _pairs(photographs, out, listed, most_alike, window, max_pixels)
        with _bar(len(pairs), method) as bar:
            found = match_pairs(config, pairs, out / "matches", progress=bar.update)
        left_out |= found.left_out
        for reason in left_out.values():
            click.echo(reason, err=True)
        if not found.files:
            raise ValueError(f"{photographs}: there is no pair of photographs to match")
        points = tie_points(found.matches(), config.merge_px if merge_px is None else merge_px)
        num_matches = sum(map(len, points.rows.values()))
        click.echo(f"{len(points.keypoints)} photographs, {len(points.rows)} pairs, {num_matches} matches")
        if "hloc" in formats:
            click.echo(", ".join(map(str, write_hloc(out, photographs, points))))
        if "colmap" in formats:
            path = out / "database.db"
            with _bar(len(points.rows), "geometry") as bar:
                written = write_database(path, photographs, points, cameras=cameras, seed=seed, progress=bar.update)
            not_taken = f"COLMAP does not read it, or not with --cameras {cameras} beside others of another size"
            for name in written.left_out:
                left_out[name] = f"{photographs / name}: {not_taken}"
                click.echo(left_out[name], err=True)
            click.echo(f"{path}: {len(written.held)} pairs hold geometrically")
            if written.held:
                click.echo(f"next: {_mapper(path, photographs, out)}")
    except (ValueError, OSError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    if left_out:
        click.get_current_context().exit(2)


def _mapper(database: Path, photographs: Path, out: Path) -> str:
    """The command that makes the reconstruction, for a shell."""
    places = ("--database_path", database, "--image_path", photographs, "--output_path", out)
    return shlex.join(["colmap", "mapper", *map(str, places)])


def _bar(total: int, what: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit="pair", file=sys.stderr, disable=None)


def _pairs(
    photographs: Path, out: Path, listed: Path | None, most_alike: int | None, window: int | None, max_pixels: int
) -> tuple[list[Pair], dict[str, str]]:
    """What to match with what, and why photographs were left out of that, by name."""
    from tiepoint.sets.alike import alike_pairs
    from tiepoint.sets.pairs import all_pairs, listed_pairs, photograph_names, window_pairs

    if (listed is not None) + (most_alike is not None) + (window is not None) > 1:
        raise ValueError("--pairs, --most-alike, --window: expected one of them")
    names = photograph_names(photographs, leave_out=out)
    if most_alike is not None:
        with _bar(len(all_pairs(names)), "glance") as bar:
            return alike_pairs(photographs, names, most_alike, max_pixels=max_pixels, progress=bar.update)
    if listed is not None:
        return listed_pairs(listed, names), {}
    return all_pairs(names) if window is None else window_pairs(names, window), {}
