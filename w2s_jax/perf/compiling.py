"""`w2s bench compile`: from the start of a process to its first step, cold and from the cache."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from w2s_jax.perf.measuring import Record

PARTS = ("import_seconds", "lower_seconds", "compile_seconds", "seconds")


def measure(model: str, mix: str, dtype: str, loss: str) -> list[Record]:
    """A record for the train step and one for the label pass.

    Each is reached by two fresh processes, one after the other, that share an empty folder for
    compiled programs: 'cold' and 'warm'.

    Args:
      model, mix, dtype, loss: as the command line has them.

    Raises:
      RuntimeError: a process failed.
    """
    records = []
    for bench in ("train", "label"):
        request = {"bench": bench, "model": model, "mix": mix, "dtype": dtype, "loss": loss}
        with tempfile.TemporaryDirectory(prefix="w2s-bench-") as cache:
            cold, warm = (_first_step(request, cache) for _ in range(2))
        records.append(
            {
                "bench": "compile",
                "program": bench,
                **{name: request[name] for name in ("model", "mix", "dtype", "loss")},
                "cold": cold,
                "warm": warm,
            }
        )
    return records


def _first_step(request: Record, cache: str) -> Record:
    """What `first_step` prints; of JAX's settings only those of the cache are changed."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    argument = json.dumps(request | {"started": time.time()})
    done = subprocess.run(
        [sys.executable, "-m", "w2s_jax.perf.first_step", argument],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"bench compile: the process failed: {said[-1]}")
    return json.loads(done.stdout)


def print_records(records: Sequence[Record], console: Console) -> None:
    """A table of both starts of each program."""
    table = Table(title="\nto the first step", title_justify="left", box=None, pad_edge=False)
    for column in ("model", "program", "start"):
        table.add_column(column)
    for column in ("imports", "lowering", "compiling", "in all"):
        table.add_column(column, justify="right")
    for record in records:
        for start in ("cold", "warm"):
            cells = [f"{record[start][part]:.1f}" for part in PARTS]
            table.add_row(record["model"], record["program"], start, *cells)
    console.print(table)
    console.print(
        "Seconds of a fresh process. cold: it compiles everything; warm: a second process, that "
        "finds what the first one compiled on disk; lowering: tracing too; in all: from its start "
        "to the end of its first step, or pass over a batch of documents.",
        highlight=False,
    )
