"""`w2s bench population`: several seeds of a model, one after another and as one program."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from w2s_jax import sharding
from w2s_jax.data import packing
from w2s_jax.models import adapting, network
from w2s_jax.models.attention import row_preferences
from w2s_jax.perf import measuring, programs
from w2s_jax.perf.measuring import Record, Run
from w2s_jax.perf.workloads import Workload
from w2s_jax.training import population

#: Number of seeds that are trained.
MEMBERS = 8


def measure(workload: Workload, *, repeats: int, members: int = MEMBERS) -> Record:
    """Return the record of `members` seeds, each trained on all documents of a workload.

    A population is spread over all devices, each of which trains its members at once ('vmap') or
    one after another within one program ('loop'). 'one after another' runs the seeds separately,
    each over all devices. Each seed has its own data order. The ways alternate.

    Args:
      workload: the model, its training, and the documents.
      repeats: runs of each way.
      members: number of seeds.
    """
    alone = programs.training(workload, sharding.make_mesh())
    runs = {"one after another": lambda: sum(alone.run() for _ in range(members))}
    runs |= {mode: population_run(workload, members, mode) for mode in population.MODES}
    for run in runs.values():
        run()
    seconds = dict(zip(runs, measuring.interleaved(list(runs.values()), repeats), strict=True))
    assert alone.order_SB is not None
    lengths_N = workload.documents.lengths_N[alone.order_SB.reshape(-1)]
    tokens = members * int(lengths_N.sum())
    ways = {}
    for name, taken in seconds.items():
        times = measuring.spread(taken)
        ways[name] = {
            "seconds": times,
            "tokens_per_second": tokens / times["median"],
            **measuring.paired_ratio(taken, seconds["one after another"]),
        }
    return {
        "bench": "population",
        "model": workload.model.name,
        "mix": workload.mix,
        "dtype": workload.train.compute_dtype,
        **measuring.surroundings(),
        "members": members,
        "documents": len(lengths_N),
        "useful_tokens": tokens,
        "repeats": repeats,
        "ways": ways,
        **measuring.peak_memory(),
    }


def population_run(workload: Workload, members: int, mode: str) -> Run:
    """Return a function that trains all members for an epoch by one program.

    Args:
      workload: the model (its parameters are random), its training, and the documents.
      members: number of seeds.
      mode: one of `population.MODES`.
    """
    train, documents = workload.train, workload.documents
    steps = packing.steps_per_epoch(len(documents), train.batch_size)
    order_PSB = np.stack(
        [
            packing.training_order(
                documents.ids_N, batch_size=train.batch_size, num_steps=steps, seed=seed
            )
            for seed in range(members)
        ]
    )
    packed = population.pack_members(
        documents,
        order_PSB,
        max_shapes=train.max_shapes,
        **row_preferences(workload.model),
    )
    mesh = population.make_mesh(members)
    targets_NC = documents.targets_NC
    specs = [programs.spec_of(workload, steps)] * members
    batches = population.put_batches(packed, [targets_NC] * members, mesh, specs[0].extras)
    program = population.compile_block(specs, mesh, {}, batches, mode)
    states = [population.stack(_fresh_states(workload, steps, members), mesh)]

    def run() -> float:
        state = states.pop()
        first_P = jax.device_put(np.zeros(state.step.shape, np.int32), state.step.sharding)
        state = dataclasses.replace(state, step=first_P)
        jax.block_until_ready(state)
        started = time.perf_counter()
        state = batches.advance(program, state, 0, workload.steps or steps)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - started
        states.append(state)
        if (jax.device_get(state.failed_step)[:members] >= 0).any():
            raise RuntimeError("a loss or gradient was not finite: nothing was measured")
        return seconds

    return run


def _fresh_states(workload: Workload, steps: int, members: int) -> list[Any]:
    """Return the initial state of each seed, on the host."""
    mesh: Mesh = sharding.mesh_of((1, 1, 1))
    states = []
    for seed in range(members):
        params = {
            "backbone": network.init_params(workload.model, seed, mesh),
            "head": programs.random_head(workload.model, workload.documents.num_texts, mesh),
        }
        trained, _ = adapting.split(workload.train, workload.model, params)
        states.append(jax.device_get(programs.fresh_state(workload, steps, trained, mesh)))
    return states


def print_records(records: Sequence[Record], console: Console) -> None:
    """Print a table of the ways to train a population."""
    table = Table(title="\npopulations", title_justify="left", box=None, pad_edge=False)
    for column in ("model", "mix", "members", "way"):
        table.add_column(column)
    for column in ("tokens/s", "seconds", "ratio"):
        table.add_column(column, justify="right")
    for record in records:
        for way, found in record["ways"].items():
            table.add_row(
                record["model"],
                record["mix"],
                str(record["members"]),
                way,
                f"{found['tokens_per_second']:,.0f}",
                f"{found['seconds']['median']:.3f}",
                f"{found['ratio']:.2f}",
            )
    console.print(table)
    around = records[0]
    console.print(
        f"{around['dtype']} on {around['device_count']} x {around['device_kind']}. Seeds of one "
        "model, each with its own data order: one after another, each over all devices; or as one "
        "program, spread over the devices, with the members of a device at once (vmap) or in a "
        "loop. ratio: tokens/s relative to one after another.",
        highlight=False,
    )
