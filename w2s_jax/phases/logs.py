"""Logs of a phase that trains: metrics.jsonl, TensorBoard, Weights & Biases, a progress bar."""

import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from w2s_jax.config import LogSettings
from w2s_jax.core import errors, processes


class PhaseLog:
    """The `training.interfaces.Reporter` of one phase; a context manager.

    Files are overwritten: a resumed phase reports its earlier rows again. metrics.jsonl has all
    rows. TensorBoard and Weights & Biases get the evaluations, every `log.every`-th training step
    and the last one.

    Args:
      folder: the phase's folder.
      title: the phase's title.
      total_steps: its training steps.
      settings: `config.log`.
      console: where to show the progress bar.
      wandb_run: the Weights & Biases run, or None.
      shows_bar: whether to show the bar; a terminal shows one at a time.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        total_steps: int,
        settings: LogSettings,
        console: Console,
        wandb_run: Any = None,
        *,
        shows_bar: bool = True,
    ):
        self.title, self.settings, self.console = title, settings, console
        self.total_steps = total_steps
        self.wandb_run = wandb_run
        self.file = (folder / "metrics.jsonl").open("w")
        self.board = None
        if settings.tensorboard:
            from tensorboardX import SummaryWriter

            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
            self.board = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)
        self.bar = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not (console.is_terminal and shows_bar),
        )
        self.task = self.bar.add_task(title, total=total_steps, numbers="compiling")
        self.started = time.monotonic()

    def __enter__(self) -> "PhaseLog":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        self.file.close()
        if self.board is not None:
            self.board.close()

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to metrics.jsonl, and a selection of them to the other logs."""
        for row in rows:
            self.file.write(json.dumps(row, allow_nan=False) + "\n")
            if row["split"] == "train" and not self._is_shown(row["step"]):
                continue
            scalars = {k: v for k, v in row.items() if k not in ("step", "split")}
            if self.board is not None:
                for name, value in scalars.items():
                    self.board.add_scalar(f"{row['split']}/{name}", value, row["step"])
            if self.wandb_run is not None:
                named = {f"{self.title}/{row['split']}/{k}": v for k, v in scalars.items()}
                self.wandb_run.log(named | {f"{self.title}/step": row["step"]})
        self.file.flush()

    def _is_shown(self, step: int) -> bool:
        return step % self.settings.every == 0 or step == self.total_steps

    def progress(self, step: int, row: dict[str, Any], docs_per_second: float) -> None:
        """Update the progress bar."""
        processes.note(f"{self.title}: step {step} of {self.total_steps}")
        numbers = (
            f"loss {row['loss']:.4f}  accuracy {row['accuracy']:.3f}  {docs_per_second:,.0f} docs/s"
        )
        self.bar.update(self.task, completed=step, numbers=numbers)


@dataclass(frozen=True)
class ProcessLog:
    """The `training.interfaces.Reporter` of a process that is not the first of its run.

    It writes the progress to the process's own log. Rows are the same in all processes.
    """

    title: str
    total_steps: int

    def __enter__(self) -> "ProcessLog":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Do nothing: the first process writes the rows."""

    def progress(self, step: int, row: dict[str, Any], docs_per_second: float) -> None:
        """Write a line to the process's log."""
        processes.note(f"{self.title}: step {step} of {self.total_steps}")


@dataclass
class NoProfiler:
    """The `training.interfaces.Profiler` of such a process, which traces nothing."""

    start: int
    stop: int

    def begin(self) -> None:
        """Do nothing. Blocks of steps end where they do in the first process."""

    def end(self) -> None:
        """Do nothing."""


def log_result(result: dict[str, Any], workdir: Path, settings: LogSettings) -> None:
    """Write a run's test metrics as TensorBoard scalars into its folder.

    They are called '<weak, ceiling or student>/<metric>'. The step is the run's seed, so the seeds
    of a sweep make a line.
    """
    if not settings.tensorboard:
        return
    from tensorboardX import SummaryWriter

    shutil.rmtree(workdir / "tensorboard", ignore_errors=True)
    entries = {"weak": result["weak"], "ceiling": result["ceiling"] or {}, **result["students"]}
    with SummaryWriter(str(workdir / "tensorboard")) as board:
        for label, entry in entries.items():
            for name, value in entry.items():
                if isinstance(value, int | float):
                    board.add_scalar(f"{label}/{name}", value, result["seed"])


def start_wandb(settings: LogSettings, name: str, workdir: Path, config: dict[str, Any]) -> Any:
    """Return a Weights & Biases run if `log.wandb` is set, else None.

    Its id belongs to the working directory, so a resumed run continues its page.

    Raises:
      InputError: the package wandb is not installed.
    """
    if not settings.wandb:
        return None
    try:
        import wandb
    except ImportError as error:
        raise errors.InputError(
            "log.wandb: True, but the package wandb is not installed; install it with "
            "pip install 'w2s_jax[wandb]'"
        ) from error
    identity = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
    return wandb.init(project="w2s_jax", name=name, config=config, id=identity, resume="allow")
