"""What the commands of `tiepoint train` share: what they are asked, the photographs, the run itself."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from tiepoint.training.engine import Task
    from tiepoint.training.photographs import Photographs
    from tiepoint.training.validation import HeldOutPair

Config = TypeVar("Config")

OUTPUT_FOLDER = click.Path(path_type=Path, file_okay=False)
DATA_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
_HELD_OUT_SHARE = 0.05

store_option = click.option(
    "--store",
    type=OUTPUT_FOLDER,
    default=None,
    help="Where decoded photographs are kept; the user's cache if not given.",
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Changes of a configuration, by a file and by assignments; threads: of the CPU, None for torch's choice."""

    file: Path | None = None
    assignments: tuple[str, ...] = ()
    threads: int | None = None

    def changed(self, default: Config, alternatives: dict[str, Any] | None = None) -> Config:
        from tiepoint.training.configs import changed, read_changes

        return changed(default, read_changes(self.file, self.assignments), alternatives)

    def prepare(self, device: str = "cpu") -> None:
        """Set this process up, and join the others if `torchrun` started it."""
        import torch

        from tiepoint.training import parallel
        from tiepoint.training.record import keep_freed_memory

        parallel.start(device)
        keep_freed_memory()
        if self.threads is not None:
            torch.set_num_threads(self.threads)


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """folder: of the run; start: weights to fine-tune, None for none."""

    folder: Path
    resume: bool
    start: str | None = None

    def configured(self, default: Config, settings: Settings, alternatives: dict[str, Any] | None = None) -> Config:
        """The default, or on --resume the run's own settings, with the changes asked for."""
        if self.stored() is not None:
            default = Settings(file=self.folder / "config.json").changed(default, alternatives)
        return settings.changed(default, alternatives)

    def started_from(self, otherwise: str = "nothing") -> str:
        """The weights asked for, or `otherwise`; on --resume what the run says it began with."""
        before = self.stored()
        return self.start or otherwise if before is None else str(before["data"]["started_from"])

    def stored(self) -> dict[str, Any] | None:
        """On --resume the config.json of the run, if it has begun."""
        path = self.folder / "config.json"
        if not (self.resume and path.exists()):
            return None
        found: dict[str, Any] = json.loads(path.read_text())
        return found


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """folder: photographs to train on; held_out: to validate on, None for the last of the folder itself."""

    folder: Path
    held_out: Path | None
    store: Path | None

    def opened(self, *, colour: bool = False) -> tuple[Photographs, Photographs]:
        """The photographs to train on, and those to validate on.

        Raises ValueError when there are too few to keep any back.
        """
        photographs = open_stored(self.folder, self.store, colour=colour)
        if self.held_out is not None:
            return photographs, open_stored(self.held_out, self.store, colour=colour)
        if len(photographs) < 2:
            raise ValueError(f"{self.folder}: expected 2 photographs at least, 1 of them to validate on; got 1")
        kept = min(round(len(photographs) * (1 - _HELD_OUT_SHARE)), len(photographs) - 1)
        return photographs.subset(slice(0, kept)), photographs.subset(slice(kept, None))

    def described(
        self, photographs: Photographs, request: RunRequest, pairs: list[HeldOutPair], start: str = "nothing"
    ) -> dict[str, Any]:
        """What the run's config.json says of its data; start: what it starts from without weights.

        SIFT and ORB are judged on the held-out pairs beside it, and their figures said.
        Raises ValueError where a run would go on with other photographs than it began with.
        """
        from tiepoint.training.export import licences

        before = request.stored()
        if before is not None and before["data"]["fingerprint"] != photographs.fingerprint:
            raise ValueError(f"{request.folder}: has learned from {before['data']['photographs']}, which were others")
        return {
            "photographs": str(self.folder),
            "count": len(photographs),
            "fingerprint": photographs.fingerprint,
            "licences": licences(self.folder),
            "held_out": str(self.held_out or f"last {_HELD_OUT_SHARE:.0%} of {self.folder}"),
            "started_from": request.started_from(start),
            "others_on_the_held_out_pairs": _judged_beside(("sift", "orb"), pairs),
        }


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """--config, --set and --threads, which the command gets as `settings`."""

    @click.option("--config", "file", type=click.Path(path_type=Path, exists=True), help="JSON of settings.")
    @click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Such as loop.steps=5000.")
    @click.option("--threads", type=int, default=None, help="CPU threads; torch's own choice if not given.")
    @functools.wraps(command)
    def run(*, file: Path | None, assignments: tuple[str, ...], threads: int | None, **others: Any) -> None:
        command(settings=Settings(file=file, assignments=assignments, threads=threads), **others)

    return run


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """--out, --resume and --fine-tune, which the command gets as `request`."""

    @click.option("--out", "run_folder", type=OUTPUT_FOLDER, required=True, help="Folder of this run.")
    @click.option("--resume", is_flag=True, help="Go on from the run's checkpoint, with its settings.")
    @click.option("--fine-tune", "start", default=None, help="Weights (name or file) to start from.")
    @functools.wraps(command)
    def run(*, run_folder: Path, resume: bool, start: str | None, **others: Any) -> None:
        command(request=RunRequest(folder=run_folder, resume=resume, start=start), **others)

    return run


def data_options(command: Callable[..., None]) -> Callable[..., None]:
    """DATA, --held-out and --store, which the command gets as `data`."""

    @click.argument("folder", metavar="DATA", type=DATA_FOLDER)
    @click.option(
        "--held-out",
        type=DATA_FOLDER,
        default=None,
        help="Photographs to validate on; the last 5 % of DATA if not given, which are then not trained on.",
    )
    @store_option
    @functools.wraps(command)
    def run(*, folder: Path, held_out: Path | None, store: Path | None, **others: Any) -> None:
        command(data=DataRequest(folder=folder, held_out=held_out, store=store), **others)

    return run


def open_stored(folder: Path, store: Path | None, *, colour: bool = False) -> Photographs:
    from tiepoint.training.photographs import StoreConfig, open_photographs
    from tiepoint.weights.store import cache_folder

    return open_photographs(folder, store or cache_folder().parent / "photographs", StoreConfig(colour=colour))


def listed(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())


def _judged_beside(methods: tuple[str, ...], pairs: list[HeldOutPair]) -> dict[str, dict[str, float]]:
    """The figures of methods that need no training on the pairs a run is judged on; said, too.

    By the first process alone, which writes config.json.
    """
    from tiepoint.matchers import MatcherOptions, matcher
    from tiepoint.training import parallel
    from tiepoint.training.validation import judge

    if parallel.rank() != 0:
        return {}
    as_found = MatcherOptions(refine=False)  # as the network in training is judged
    beside = {name: judge(matcher(name, as_found), pairs) for name in methods}
    for name, figures in beside.items():
        click.echo(f"{name} on the held-out pairs: {listed(figures)}")
    return beside


def run_training(method: str, task: Task, config: Any, request: RunRequest, data: dict[str, Any]) -> None:
    """Train to the end and say the figures before and after.

    config: the method's, with its `loop`; data: what config.json says of it.
    """
    from tiepoint.training import parallel
    from tiepoint.training.engine import Interrupted, train
    from tiepoint.training.record import Run, read_log

    run = Run(request.folder)
    if run.checkpoint.exists() and not request.resume:
        raise ValueError(f"{request.folder}: holds a run already; go on with --resume or give another folder")

    def on_start() -> None:
        if parallel.rank() == 0:
            run.describe(method, {"config": config}, data)
            click.echo(json.dumps(dataclasses.asdict(config), indent=2))

    try:
        best = train(task, config.loop, run, resume=request.resume, on_start=on_start, on_progress=click.echo)
    except Interrupted as stopped:
        raise click.ClickException(str(stopped)) from stopped
    if parallel.rank() != 0:
        return
    validated = [row for row in read_log(run.log) if f"val_{task.judged_by}" in row]
    before = {name.removeprefix("val_"): value for name, value in validated[0].items()}
    click.echo(f"before: {listed(before)}")
    click.echo(f"best: {listed(best)}")


@contextmanager
def told() -> Iterator[None]:
    """Ends the command with the message of an expected error in place of a traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        raise click.ClickException("training needs PyTorch: pip install 'tiepoint[learned]'") from error
    except (ValueError, OSError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from error
