"""`tiepoint apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("registrations", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("images", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Output folder.")
def apply(registrations: Path, images: tuple[str, ...], out: Path) -> None:
    """Warp IMAGES by the transforms that a run stored in REGISTRATIONS (registrations.jsonl).

    For other channels, exposures or label maps of the same shots. An image belongs to the source with the same
    file name, whatever its folder and ending; where only the beginning agrees (shot7_ir.tif and shot7.jpg), the
    longest such source is taken. Images of refused or unknown sources are named and left out; the exit code is
    then 2.
    """
    from tqdm import tqdm

    from tiepoint.geometry import Transform
    from tiepoint.images import ImageError, read_image, suffix_for, write_image
    from tiepoint.registration.records import read_jsonl
    from tiepoint.registration.sources import find_sources
    from tiepoint.registration.warp import warp_image

    try:
        records = read_jsonl(registrations)
        found = find_sources(images, leave_out=[out])
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    left_out = []
    for source in tqdm(found, unit="image", dynamic_ncols=True):
        try:
            record = _record_for(source.path, records)
            if record is None or record["status"] != "accepted":
                why = "no source of that name" if record is None else f"its source was {record['status']}"
                left_out.append(f"{source.path}: {why}")
                continue
            image = read_image(source.path)
            if list(image.size) != record["source_size"]:
                left_out.append(f"{source.path}: is {image.size}, its source was {tuple(record['source_size'])}")
                continue
            width, height = record["template_size"]
            transform = Transform(record["matrix_template_from_source"], record["model"])
            write_image(out / f"{source.name}{suffix_for(image)}", warp_image(image, transform, (width, height)))
        except (ImageError, ValueError, OSError) as error:
            left_out.append(str(error))
    for line in left_out:
        click.echo(f"left out  {line}")
    click.echo(f"{len(found) - len(left_out)} of {len(found)} images warped: {out}")
    if left_out:
        click.get_current_context().exit(2)


def _record_for(path: Path, records: list[Any]) -> Any | None:
    """The record of this very file, else of the source of the same name, else of the longest beginning of it."""
    same = [record for record in records if Path(record["source"]).resolve() == path.resolve()]
    if same:
        return same[0]
    beginnings = [record for record in records if path.stem.startswith(Path(record["source"]).stem)]
    if not beginnings:
        return None
    longest = max(len(Path(record["source"]).stem) for record in beginnings)
    candidates = [record for record in beginnings if len(Path(record["source"]).stem) == longest]
    if len(candidates) > 1:
        raise ValueError(f"{path}: belongs to several sources: {', '.join(r['source'] for r in candidates)}")
    return candidates[0]
