"""`tiepoint apply`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tiepoint.images import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    from tiepoint.registration.sources import Source
    from tiepoint.registration.warp import Interpolation


@click.command()
@click.argument("registrations", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("images", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Output folder.")
@click.option("--nearest", is_flag=True, help="Take the nearest pixel and mix none: for label maps.")
@click.option("--max-pixels", default=DEFAULT_MAX_PIXELS, show_default=True, help="Refuse larger pictures.")
def apply(registrations: Path, images: tuple[str, ...], out: Path, nearest: bool, max_pixels: int) -> None:
    """Warp IMAGES by the transforms that a run stored in REGISTRATIONS (registrations.jsonl).

    For other channels, exposures or, with --nearest, label maps of the same shots. An image belongs to the source
    with the same file name, whatever its folder and ending; where only the beginning agrees and no letter or digit
    follows it (shot7_ir.tif and shot7.jpg), the longest such source is taken. Images of refused or unknown sources
    are named and left out; the exit code is then 2.
    """
    from tqdm import tqdm

    from tiepoint.images import ImageError
    from tiepoint.registration.records import read_jsonl

    try:
        records = _Records(read_jsonl(registrations))
        found = _find_images(images, out)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    inputs = {source.path.resolve() for source in found}
    left_out = []
    for source in tqdm(found, unit="image", dynamic_ncols=True):
        try:
            _warp(source, records, out, inputs, "nearest" if nearest else "bicubic", max_pixels)
        except (ImageError, ValueError, OSError) as error:
            left_out.append(str(error))
    for line in left_out:
        click.echo(f"left out  {click.format_filename(line)}")  # a name need not be Unicode
    click.echo(f"{len(found) - len(left_out)} of {len(found)} images warped: {click.format_filename(out)}")
    if left_out:
        click.get_current_context().exit(2)


def _find_images(images: Sequence[str], out: Path) -> list[Source]:
    """The files to warp, without what an earlier run wrote into a folder `out` below theirs."""
    from tiepoint.registration.sources import find_sources

    holds_images = any(Path(image).resolve().is_relative_to(out.resolve()) for image in images)
    found = find_sources(images, leave_out=[] if holds_images else [out])
    if not found:
        raise ValueError(f"there is nothing to warp: all the images are in the output folder {out}")
    return found


def _warp(
    source: Source, records: _Records, out: Path, inputs: set[Path], interpolation: Interpolation, max_pixels: int
) -> None:
    """Write one image in the template's frame; raises ValueError saying why it is left out."""
    from tiepoint.geometry import Transform
    from tiepoint.images import read_image, suffix_for, write_image
    from tiepoint.registration.warp import warp_image

    record = records.of(source.path)
    if record is None or record["status"] != "accepted":
        why = "no source of that name" if record is None else f"its source was {record['status']}"
        raise ValueError(f"{source.path}: {why}")
    image = read_image(source.path, max_pixels=max_pixels)
    if list(image.size) != record["source_size"]:
        raise ValueError(f"{source.path}: is {image.size}, its source was {tuple(record['source_size'])}")
    width, height = record["template_size"]
    transform = Transform(record["matrix_template_from_source"], record["model"])
    warped = warp_image(image, transform, (width, height), interpolation=interpolation)
    target = out / f"{source.name}{suffix_for(warped)}"
    if target.resolve() in inputs:
        raise ValueError(f"{source.path}: its result would replace the input {target}; choose another --out")
    write_image(target, warped)


class _Records:
    """Registrations by the file of their source, and by its name without ending."""

    def __init__(self, records: Sequence[Any]) -> None:
        self._by_path: dict[Path, Any] = {}
        self._by_stem: dict[str, list[Any]] = defaultdict(list)
        for record in records:
            path = Path(record["source"])
            self._by_path.setdefault(path.resolve(), record)
            self._by_stem[path.stem].append(record)

    def of(self, path: Path) -> Any | None:
        """The record of this very file, else of the source of the same name, else of the longest beginning of it.

        A beginning ends where a name does: shot1 is none of shot10.
        """
        same = self._by_path.get(path.resolve())
        if same is not None:
            return same
        name = path.stem
        for length in range(len(name), 0, -1):
            if name[:length] in self._by_stem and not name[length : length + 1].isalnum():
                return self._only(path, self._by_stem[name[:length]])
        return None

    def _only(self, path: Path, candidates: list[Any]) -> Any:
        if len(candidates) > 1:
            raise ValueError(f"{path}: belongs to several sources: {', '.join(r['source'] for r in candidates)}")
        return candidates[0]
