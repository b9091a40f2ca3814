"""`tiepoint weights`: list, show, fetch, import, verify and export checkpoints. Only the last three need torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from tiepoint.weights.catalogue import WEIGHTS, WeightsEntry
from tiepoint.weights.fetch import fetch
from tiepoint.weights.store import WeightsError, cache_folder, entry_of, find_weights, import_file, verify


@click.group()
def weights() -> None:
    """Named checkpoints: what there is, its licence, and how to get it.

    Nothing is fetched from the network but by `tiepoint weights fetch`. A folder of files named in
    TIEPOINT_WEIGHTS is searched before the cache.
    """


commercial_only = click.option(
    "--commercial-only",
    is_flag=True,
    help="Leave out, or refuse, weights whose licence forbids commercial use.",
)


@weights.command("list")
@commercial_only
def list_command(commercial_only: bool) -> None:
    """List the named weights: method, commercial use, where they are, licence."""
    rows = [("NAME", "METHOD", "COMMERCIAL", "HERE", "LICENCE")]
    for entry in WEIGHTS.values():
        if entry.commercial_use or not commercial_only:
            commercial = "yes" if entry.commercial_use else "no"
            rows.append(
                (
                    entry.name,
                    entry.method,
                    commercial,
                    "yes" if _path(entry) else "no",
                    entry.licence.split(":")[0],
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        padded = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*padded, row[-1]]))


@weights.command()
@click.argument("name")
def show(name: str) -> None:
    """Show all that is known of the weights NAME."""
    entry = _entry(name)
    size = "unknown" if entry.size_bytes is None else f"{entry.size_bytes:,} bytes"
    for title, value in (
        ("name", entry.name),
        ("method", entry.method),
        ("source", entry.source),
        ("licence", entry.licence),
        ("commercial use", "yes" if entry.commercial_use else "no"),
        ("note", entry.note),
        ("file", entry.file_name),
        ("size", size),
        ("sha256", entry.sha256 or "unknown"),
        ("git sha1", entry.git_sha1 or "unknown"),
        ("address", entry.url or "none"),
        ("here", str(_path(entry) or "no")),
    ):
        click.echo(f"{title + ':':16}{value}")


@weights.command("fetch")
@click.argument("name")
@commercial_only
def fetch_command(name: str, commercial_only: bool) -> None:
    """Download the weights NAME into the cache, checked; broken off, the same again goes on where it stopped."""
    entry = _entry(name)
    if commercial_only and not entry.commercial_use:
        raise click.ClickException(f"{name} may not be used commercially: {entry.licence}")
    click.echo(f"Licence of {name}: {entry.licence}", err=True)
    with _told():
        click.echo(find_weights(name) if entry.shipped else fetch(name))


@weights.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="The weights that FILE holds, where its own name and hash do not tell.")
def import_command(file: Path, name: str | None) -> None:
    """Copy FILE, checked, into the cache, for machines without a network."""
    with _told():
        click.echo(import_file(file, name))


@weights.command("verify")
@click.argument("name", required=False)
def verify_command(name: str | None) -> None:
    """Check that the weights NAME (a name or a file) are whole and unaltered; without NAME, all that are here."""
    names = [name] if name else [entry.name for entry in WEIGHTS.values() if _path(entry)]
    if not names:
        click.echo(f"No named weights are on this machine; fetched ones lie in {cache_folder()}.")
    with _told():
        for each in names:
            click.echo(f"{each}: good ({verify(each)})")


@weights.command("export")
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", "path", type=click.Path(path_type=Path), required=True, help="A .safetensors file.")
def export_command(run: Path, path: Path) -> None:
    """Write the best weights of the training in folder RUN, and their card (.json) beside them."""
    from tiepoint.training.export import export_weights
    from tiepoint.training.record import Run

    try:
        export_weights(Run(run), path)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{path} ({path.stat().st_size:,} bytes) and {path.with_suffix('.json').name}")


@contextmanager
def _told() -> Iterator[None]:
    """Ends the command with the message of a WeightsError in place of a traceback."""
    try:
        yield
    except WeightsError as error:
        raise click.ClickException(str(error)) from error


def _entry(name: str) -> WeightsEntry:
    with _told():
        return entry_of(name)


def _path(entry: WeightsEntry) -> Path | None:
    try:
        return find_weights(entry.name)
    except WeightsError:
        return None
