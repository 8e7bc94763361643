"""The interfaces of the training loop: data, evaluations, reporters and profilers."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

#: Parameters (of all members) -> one row per member.
Evaluate = Callable[[Any], Sequence[dict[str, Any]]]


class Data(Protocol):
    """A source of batches (see `batch_sources`)."""

    def advance(self, program: Any, state: Any, first: int, last: int) -> Any:
        """Dispatch the steps [first, last) by `program`; return the state after them."""

    def at(self, step: int) -> Any:
        """Return the batch of a step; streams are read once per step, in order."""

    def position(self) -> Any:
        """Return the position in the data, as JSON; it is part of every checkpoint."""

    def restore(self, position: Any) -> None:
        """Continue from `position`."""


class Reporter(Protocol):
    """A consumer of one member's metrics (metrics.jsonl, a progress bar)."""

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """Take new rows, in the order of their steps."""

    def progress(self, step: int, row: dict[str, Any], docs_per_second: float) -> None:
        """Take the current step, with the row of the last one."""


class Profiler(Protocol):
    """A recorder of the steps [start, stop)."""

    start: int
    stop: int

    def begin(self) -> None:
        """Start; called before the first of the steps (that a resumed run takes)."""

    def end(self) -> None:
        """Stop; called when the last step is done, or training ends or fails."""
