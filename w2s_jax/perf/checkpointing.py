"""`w2s bench checkpoint`: the time for which a save blocks training, and its whole duration."""

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

#: Seconds between checks whether a save has ended.
_SECONDS = 0.02


def measure(model: ModelConfig, *, repeats: int) -> Record:
    """Save the training state of a model repeatedly, with random parameters.

    The whole model is trained by Adam, with parameters and moments in float32; the state changes
    before each save. Checkpoints are in the folder for temporary files (TMPDIR), and are removed.

    Args:
      model: the model.
      repeats: number of saves, after a first one that is not counted.

    Returns:
      A record with 'stall_seconds', for which `save` blocks the caller; 'save_seconds', until the
      checkpoint has its manifest; and 'read_seconds', until a new process has verified and restored
      the newest checkpoint.
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
    """Print a table with a row for each model."""
    table = Table(title="\ncheckpoints", title_justify="left", box=None, pad_edge=False)
    table.add_column("model")
    for column in ("MiB", "stall (s)", "quartiles", "complete after (s)", "quartiles", "read (s)"):
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
        "stall: training is blocked; complete after: from the start of a save until its manifest "
        "is written, while training continues; read: verified and restored by a new process. The "
        "state is that of Adam.",
        highlight=False,
    )
