"""`tiepoint methods`."""

from __future__ import annotations

from importlib.util import find_spec

import click

from tiepoint.matchers import METHODS


@click.command()
def methods() -> None:
    """List the matching methods: what they are, their licence, what they need."""
    width = max(len(name) for name in METHODS)
    click.echo(f"{'auto':{width}}  register's default: SIFT, then weaker keypoints, then SuperPoint with SuperGlue,")
    click.echo(f"{'':{width}}  then LoFTR, each only where the one before is refused")
    installed = find_spec("torch") is not None
    for method in METHODS.values():
        needs = "PyTorch" if method.needs_torch else "nothing more"
        missing = method.needs_torch and not installed
        click.echo(f"{method.name:{width}}  {method.summary}")
        click.echo(f"{'':{width}}  {method.kind}; {method.licence}; needs {needs}")
        if missing:
            click.echo(f"{'':{width}}  not installed: pip install 'tiepoint[learned]'")
