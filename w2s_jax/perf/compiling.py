"""`w2s bench compile`: time from process start to the first step, with and without a cache."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from rich.console import Console

from w2s_jax.perf.measuring import Record, print_table

PARTS = ("import_seconds", "lower_seconds", "compile_seconds", "seconds")


def measure(model: str, mix: str, dtype: str, loss: str) -> list[Record]:
    """Measure the start of the train step and of the label pass.

    Each is started twice, in fresh processes that share an initially empty compilation cache:
    'cold' and 'warm'.

    Args:
      model, mix, dtype, loss: as on the command line.

    Returns:
      One record for the train step and one for the label pass.

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
    """Run `perf.first_step` in a fresh process with this compilation cache."""
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
        output = done.stderr.strip().splitlines() or ["no error message"]
        raise RuntimeError(f"bench compile: the process failed: {output[-1]}")
    return json.loads(done.stdout)


def print_records(records: Sequence[Record], console: Console) -> None:
    """Print a table with the cold and the warm start of each program."""
    print_table(
        console,
        "time to the first step",
        ("model", "program", "start", "imports", "lowering", "compiling", "total"),
        [
            [record["model"], record["program"], start]
            + [f"{record[start][part]:.1f}" for part in PARTS]
            for record in records
            for start in ("cold", "warm")
        ],
        "Seconds in a fresh process. cold: empty compilation cache; warm: a second process that "
        "uses the cache of the first; lowering includes tracing; total: from process start to the "
        "end of the first train step or label pass.",
        text=("model", "program", "start"),
    )
