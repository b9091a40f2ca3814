"""`tiepoint`: one command for everything."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

import tiepoint


def _match() -> click.Command:
    from tiepoint.cli.match import match

    return match


def _register() -> click.Command:
    from tiepoint.cli.register import register

    return register


def _match_set() -> click.Command:
    from tiepoint.cli.match_set import match_set

    return match_set


def _apply() -> click.Command:
    from tiepoint.cli.apply import apply

    return apply


def _methods() -> click.Command:
    from tiepoint.cli.methods import methods

    return methods


def _weights() -> click.Command:
    from tiepoint.cli.weights import weights

    return weights


def _evaluate() -> click.Command:
    from tiepoint.cli.evaluate import evaluate

    return evaluate


def _train() -> click.Command:
    from tiepoint.cli.train import train

    return train


def _submit() -> click.Command:
    from tiepoint.cli.submit import submit

    return submit


_COMMANDS: dict[str, tuple[str, Callable[[], click.Command]]] = {
    "register": ("Bring photographs into the frame of a template.", _register),
    "match": ("Match two photographs and fit what relates them.", _match),
    "match-set": ("Match a folder's photographs with one another, for COLMAP or hloc.", _match_set),
    "apply": ("Warp other channels of the same shots by a run's transforms.", _apply),
    "evaluate": ("Measure methods by the field's protocols.", _evaluate),
    "submit": ("Write the file a competition asks for.", _submit),
    "train": ("Train the learned methods on plain photographs.", _train),
    "methods": ("List the matching methods.", _methods),
    "weights": ("List, fetch, import, verify and export weights.", _weights),
}


class _Commands(click.Group):
    """Imports a command when it is used: `--help` need not wait for OpenCV or torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _COMMANDS[cmd_name][1]() if cmd_name in _COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (summary, _) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(tiepoint.__version__, prog_name="tiepoint")
def cli() -> None:
    """Find the same points in two photographs, and use them.

    \b
    tiepoint register template.png photos/ --out aligned/    align photographs to a template
    tiepoint match a.jpg b.jpg --plot matches.png            match two photographs
    tiepoint methods                                         what there is, and what it needs
    """


def main() -> None:
    """The entry point: errors a user can mend end in one line, and Ctrl-C in none of Python's."""
    try:
        code = cli(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what is finished is kept, and the same command goes on from there", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
