"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def method_options(*, default: str) -> Callable[[Command], Command]:
    """--method and what a matcher can be told."""
    also = "; auto: SIFT, and more only where it is refused" if default == "auto" else ""
    options = (
        click.option("--method", default=default, show_default=True, help=f"See `tiepoint methods`{also}."),
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
            "--four-way",
            is_flag=True,
            help="Try image 1 turned by 0, 90, 180 and 270 degrees, for methods that do not turn.",
        ),
    )

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add
