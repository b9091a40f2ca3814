"""`tiepoint submit`: files for competitions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tiepoint.cli.evaluate import usage_errors
from tiepoint.cli.options import method_options, refine_option

if TYPE_CHECKING:
    from tiepoint.matchers import MatcherOptions


@click.group()
def submit() -> None:
    """Write the file a competition asks for."""


@submit.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@method_options(default="sift")
@refine_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("submission.csv"),
              show_default=True, help="The file; matrices are kept in <out>.pairs meanwhile.")  # fmt: skip
@click.option("--threshold-px", type=click.FloatRange(0, min_open=True), default=0.2, show_default=True,
              help="Of MAGSAC, in pixels of the original images.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the estimator's sampling.")
def imc2022(
    data: Path,
    method: str,
    out: Path,
    threshold_px: float,
    options: MatcherOptions,
    workers: int,
    seed: int,
) -> None:
    """Image Matching Challenge 2022: read DATA/test.csv, write a fundamental matrix for every sample.

    F maps image 1 to image 2 in pixels of the original images. A sample without enough matches gets a valid
    fallback, sideways motion (0 0 0 0 0 -1 0 1 0). A run started again goes on where it stopped.
    """
    from tiepoint.evaluation.session import contestants, run_methods
    from tiepoint.evaluation.submission import Submission, sample_pairs, submission_csv
    from tiepoint.images import write_atomically

    with usage_errors():
        pairs = sample_pairs(data)
        results = run_methods(
            Submission(threshold_px=threshold_px, seed=seed),
            contestants([method], options),
            pairs,
            data=data,
            journals=out.with_name(f"{out.name}.pairs"),
            workers=workers,
        )[method]
        write_atomically(out, submission_csv(results))
    failed = [one for one in results if one.record.matrix is None]
    for one in failed:
        click.echo(f"{one.pair.key}: {one.failed or f'{one.record.num_matches} matches, no matrix'}", err=True)
    click.echo(f"{out}: {len(results)} samples, {len(failed)} with the fallback matrix")
