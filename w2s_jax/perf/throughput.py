"""`w2s bench train` and `w2s bench label`: throughput, optionally relative to a PyTorch peer."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from w2s_jax import sharding
from w2s_jax.perf import measuring, programs
from w2s_jax.perf.measuring import Record, print_table
from w2s_jax.perf.peer import Peer, check_workload
from w2s_jax.perf.programs import Program
from w2s_jax.perf.workloads import Workload, model_flops
from w2s_jax.profiling import devices

#: Largest difference allowed between the peer's first loss (or logits) and ours.
TOLERANCE = {"float32": 2e-3, "bfloat16": 5e-2}


def measure(bench: str, workload: Workload, *, repeats: int, peer: str | None = None) -> Record:
    """Measure the throughput of one model on one set of documents.

    The first run on each side, which compiles, does not count; after it the sides take turns.

    Args:
      bench: 'train' or 'label'.
      workload: model, documents and training settings.
      repeats: repetitions on each side.
      peer: one of `peer.PEERS`, or None.

    Raises:
      InputError: the peer does not support the model or the loss.
      RuntimeError: a loss or logit was not finite, or the peer's results differ from ours.
    """
    if peer is not None:
        check_workload(peer, workload)
    mesh = sharding.make_mesh()
    make = programs.training if bench == "train" else programs.labelling
    program = make(workload, mesh)
    with contextlib.ExitStack() as stack:
        other = None if peer is None else stack.enter_context(Peer(bench, peer, workload, program))
        first = program.run()
        more: Record = {}
        if other is not None:
            other.run()
            more = _agreement(bench, workload, program, other)
        runs = [program.run] if other is None else [program.run, other.run]
        seconds = measuring.interleaved(runs, repeats)
        record = _record(bench, workload, program, seconds[0], first)
        if other is not None:
            record |= measuring.paired_ratio(seconds[0], seconds[1])
            record["peer"] = more | _peer_record(other, workload, seconds[1])
    return record


def _record(
    bench: str, workload: Workload, program: Program, seconds: Sequence[float], first: float
) -> Record:
    documents = workload.documents
    if program.order_SB is None:
        processed = documents
    else:
        processed = documents.select(program.order_SB.reshape(-1))
    tokens = int(processed.lengths_N.sum())
    flops = model_flops(workload.model, workload.train, processed, labels=bench == "label")
    times = measuring.spread(seconds)
    dtype = workload.train.compute_dtype
    around = measuring.surroundings()
    rate = flops / times["median"]
    return {
        "bench": bench,
        "model": workload.model.name,
        "parameters": workload.model.num_parameters(),
        "mix": workload.mix,
        "dtype": dtype,
        "loss": workload.loss[0] if bench == "train" else None,
        **around,
        "documents": len(processed),
        "batch_size": workload.train.batch_size if bench == "train" else None,
        "useful_tokens": tokens,
        **program.facts,
        "repeats": len(seconds),
        "seconds": times,
        "tokens_per_second": tokens / times["median"],
        "documents_per_second": len(processed) / times["median"],
        "model_flops_per_token": flops / tokens,
        "tflops": rate / 1e12,
        **devices.utilisation(rate, around["device_kind"], around["device_count"], dtype),
        "compile_seconds": max(0.0, first - times["median"]),
        **measuring.peak_memory(),
    }


def _agreement(bench: str, workload: Workload, program: Program, peer: Peer) -> Record:
    """Return the largest difference between both sides' first losses, or all logits.

    Raises:
      RuntimeError: it is too large to be rounding.
    """
    theirs, _ = peer.outputs()
    (ours,) = program.outputs
    if bench == "train":
        ours, theirs = ours[:1, 0], theirs[:1]
    difference = float(np.max(np.abs(ours - theirs)))
    limit = TOLERANCE[workload.train.compute_dtype] * max(1.0, float(np.max(np.abs(ours))))
    what = "first_loss_difference" if bench == "train" else "logits_difference"
    if not difference <= limit:
        raise RuntimeError(
            f"the peer computes something else: {what} is {difference:.3g}; rounding explains at "
            f"most {limit:.3g}"
        )
    return {what: difference}


def _peer_record(peer: Peer, workload: Workload, seconds: Sequence[float]) -> Record:
    times = measuring.spread(seconds)
    _, memory = peer.outputs()
    return {
        "name": peer.name,
        "dtype": "float32" if peer.name == "torch-released" else workload.train.compute_dtype,
        **peer.facts,
        "seconds": times,
        "peak_memory": memory,
    }


def print_records(records: Sequence[Record], console: Console) -> None:
    """Print a table of throughput records."""
    if not records:
        return
    columns = ["model", "mix", "tokens/s", "documents/s", "seconds", "padding", "TFLOP/s"]
    columns += ["MFU", "compile"]
    first = records[0]
    note = (
        f"{first['dtype']} on {first['device_count']} x {first['device_kind']}. tokens/s: without "
        "padding; seconds: median of the repetitions (quartiles); TFLOP/s: model FLOPs by formula; "
        "compile: time of the first repetition beyond the median."
    )
    compared = any("ratio" in record for record in records)
    if compared:
        columns += ["ratio", "peer variant"]
        note += (
            f"\nratio: our tokens/s over those of {_peer_name(records)}, median of the pairs of "
            "repetitions (quartiles); the two sides took turns."
        )
    print_table(
        console,
        {"train": "training", "label": "labelling"}[first["bench"]],
        columns,
        [_cells(record) for record in records],
        note,
        text=("model", "mix", "peer variant"),
    )


def _peer_name(records: Sequence[Record]) -> str:
    peer = next(record["peer"] for record in records if "ratio" in record)
    return f"{peer['name']} ({peer['dtype']})"


def _cells(record: Record) -> list[str]:
    mfu: Any = record["mfu"]
    cells = [
        record["model"],
        record["mix"],
        f"{record['tokens_per_second']:,.0f}",
        f"{record['documents_per_second']:,.1f}",
        measuring.with_quartiles(record["seconds"], 3),
        f"{record['padding_share']:.1%}",
        f"{record['tflops']:,.3f}",
        "n/a" if mfu is None else f"{mfu:.1%}",
        f"{record['compile_seconds']:.1f}",
    ]
    if "ratio" in record:
        cells += [measuring.with_quartiles(record["ratio_spread"], 2), record["peer"]["variant"]]
    return cells
