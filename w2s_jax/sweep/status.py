"""`w2s sweep status`: the state of a sweep, read from its folder. Imports no JAX."""

import json
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.sweep import records

#: Bytes read from the end of a metrics.jsonl for its last row.
_TAIL_BYTES = 4096


def print_status(workdir: Path, console: Console) -> None:
    """Print a line for each phase of a sweep, and counts by kind and state.

    Raises:
      InputError: the folder is not that of a sweep.
    """
    console.print(_status(workdir, records.STATES)[0])


def watch_status(workdir: Path, console: Console, seconds: float = 2.0) -> None:
    """Show the state of a sweep, refreshed every `seconds` until it is finished.

    There is a line for each phase that is running or has failed; the others are counted.

    Raises:
      InputError: the folder is not that of a sweep.
    """
    shown, states = _status(workdir, ("running", "failed"))
    with Live(shown, console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while {"running", "waiting"} & set(states.values()):
            time.sleep(seconds)
            shown, states = _status(workdir, ("running", "failed"))
            live.update(shown, refresh=True)


def _status(workdir: Path, detailed: Collection[str]) -> tuple[Group, dict[str, str]]:
    """Return what to show, with lines for phases in the states `detailed`; and all states."""
    record = records.read_sweep(workdir)
    store, phases = Path(record["store"]), record["phases"]
    states = records.states(store, {name: phase["parents"] for name, phase in phases.items()})
    jobs = records.read_jobs(workdir)
    table = _table("phases", "phase", "what", "model", "state", "")
    for name, phase in phases.items():
        if states[name] not in detailed:
            continue
        detail = _detail(PhaseFolder(store / name), phase, states[name], states)
        if name in jobs and states[name] != "done":
            detail = ", ".join(filter(None, [f"job {jobs[name]}", detail]))
        table.add_row(name, phase["title"], phase["model"], states[name], detail)
    counts = _counts({name: phase["kind"] for name, phase in phases.items()}, states)
    complete = sum(
        all(states[name] == "done" for name in run["phases"]) for run in record["runs"].values()
    )
    last = f"{complete} of {len(record['runs'])} runs have all phases complete"
    return Group(*([table] if table.row_count else []), counts, last), states


def print_counts(kinds: dict[str, str], states: dict[str, str], console: Console) -> None:
    """Print the number of phases by kind and state.

    Args:
      kinds: phase -> kind.
      states: phase -> state.
      console: where to print.
    """
    console.print(_counts(kinds, states))


def _counts(kinds: dict[str, str], states: dict[str, str]) -> Table:
    shown = [state for state in records.STATES if state in states.values()]
    table = _table("", "kind", "phases", *shown)
    for kind in dict.fromkeys(kinds.values()):
        counts = Counter(states[name] for name, own in kinds.items() if own == kind)
        table.add_row(kind, str(counts.total()), *(str(counts[state]) for state in shown))
    counts = Counter(states.values())
    table.add_row("all", str(len(states)), *(str(counts[state]) for state in shown))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _detail(folder: PhaseFolder, phase: dict[str, Any], state: str, states: dict[str, str]) -> str:
    """Return details of a phase in a state: progress, error, or what it waits for."""
    if state == "running":
        return _progress(folder, phase["steps"])
    if state == "failed":
        return records.read_failure(folder) or ""
    if state == "waiting":
        before = [p for p in phase["parents"] if states.get(p) != "done"]
        return f"for {', '.join(before)}" if before else ""
    if state == "blocked":
        before = [p for p in phase["parents"] if states.get(p) in ("failed", "blocked")]
        return f"by {', '.join(before)}"
    return ""


def _progress(folder: PhaseFolder, total: int) -> str:
    """Return the process that runs a phase, its step, its rate, and the time left.

    The rate is the mean since the process claimed the phase, compilation included.
    """
    holder = records.read_holder(folder)
    who = "" if holder is None else f"{holder.host}, process {holder.pid}: "
    if holder is None or not total or not folder.metrics.exists():
        return f"{who}running" if not total else f"{who}step 0 of {total}"
    step, written = _last_step(folder.metrics), folder.metrics.stat().st_mtime
    if written < holder.since:
        # Rows of an earlier attempt.
        return f"{who}step {holder.from_step} of {total}"
    text = f"{who}step {step} of {total}"
    rate = (step - holder.from_step) / max(written - holder.since, 1e-3)
    if step >= total or rate <= 0:
        return text
    left = max(0.0, (total - step) / rate - (time.time() - written))
    return f"{text}, {rate:,.1f} steps/s, {duration(left)} left"


def _last_step(path: Path) -> int:
    """Return the step of the last complete row of a metrics.jsonl; 0 if there is none."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


def duration(seconds: float) -> str:
    """Return a duration for people: '45 s', '12 min' or '3.4 h'."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
