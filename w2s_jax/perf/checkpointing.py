"""`w2s bench checkpoint`: how long training stands still for a save, and what goes on beside it."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from w2s_jax import sharding
from w2s_jax.config import TrainSettings
from w2s_jax.models import network
from w2s_jax.models.config import ModelConfig
from w2s_jax.perf.measuring import Record, spread, surroundings
from w2s_jax.training.checkpoints import Checkpoints
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.state import TrainState, init_state

#: How often a save is looked at that goes on.
_SECONDS = 0.02


def measure(model: ModelConfig, *, repeats: int) -> Record:
    """Saves the training state of a model again and again, with random parameters.

    The state is that of Adam, parameters and moments in float32, all of the model trained; it is
    changed before each save. It lies in the folder for temporary files (TMPDIR), and is removed.

    Args:
      model: the model.
      repeats: saves; the first, in which folders and programs are made, is one more.

    Returns:
      'stall_seconds': in which `save` holds the caller up, with nothing to wait for;
      'save_seconds': until the checkpoint has its manifest, and counts; 'read_seconds': until a
      fresh start has checked and restored the newest.
    """
    mesh = sharding.make_mesh()
    train = TrainSettings(learning_rate=1e-5)
    params = {"backbone": network.init_params(model, 0, mesh)}
    state = init_state(params, make_optimizer(train), 1, mesh)
    del params
    stalls: list[float] = []
    saves: list[float] = []
    with tempfile.TemporaryDirectory(prefix="w2s-bench-") as folder:
        saved = Checkpoints(Path(folder), keep=1)
        for number in range(repeats + 1):
            state = jax.block_until_ready(_changed(state))
            started = time.monotonic()
            saved.save(number, {"state": _arrays(state)}, {})
            stalled = time.monotonic() - started
            while saved.saving is not None:
                time.sleep(_SECONDS)
                saved.poll()
            if number:
                stalls.append(stalled)
                saves.append(time.monotonic() - started)
        saved.close()
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(_arrays(state)))
        started = time.monotonic()
        saved = Checkpoints(Path(folder), keep=1)
        restored, _ = saved.restore(repeats, {"state": _arrays(state)})
        jax.block_until_ready(restored)
        read = time.monotonic() - started
        saved.close()
    return {
        "bench": "checkpoint",
        "model": model.name,
        "parameters": model.num_parameters(),
        "bytes": num_bytes,
        "repeats": repeats,
        "stall_seconds": spread(stalls),
        "save_seconds": spread(saves),
        "read_seconds": read,
        **surroundings(),
    }


def _arrays(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "opt_state": state.opt_state}


@jax.jit
def _changed(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state)


def print_records(records: Sequence[Record], console: Console) -> None:
    """A table with a row for each model."""
    table = Table(title="\ncheckpoints", title_justify="left", box=None, pad_edge=False)
    table.add_column("model")
    for column in ("MiB", "stall (s)", "quartiles", "whole after (s)", "quartiles", "read (s)"):
        table.add_column(column, justify="right")
    for record in records:
        cells = [f"{record['bytes'] / 2**20:,.0f}"]
        for name in ("stall_seconds", "save_seconds"):
            found = record[name]
            cells.append(f"{found['median']:.2f}")
            cells.append(f"{found['lower_quartile']:.2f}-{found['upper_quartile']:.2f}")
        table.add_row(record["model"], *cells, f"{record['read_seconds']:.2f}")
    console.print(table)
    console.print(
        "stall: training stands still; whole after: from the start of a save until its manifest is "
        "written, beside training; read: checked and restored by a fresh start. The state of Adam.",
        highlight=False,
    )
