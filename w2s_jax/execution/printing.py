"""Output of a run: a table of its phases, and a line per complete phase. Imports no JAX."""

from collections.abc import Collection, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from w2s_jax.config.mesh_shapes import Shape
from w2s_jax.execution.prepare import Prepared
from w2s_jax.planning import mesh_fit
from w2s_jax.planning.memory import memory_estimate
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved


def print_plan(prepared: Prepared, missing: Collection[Phase], console: Console) -> None:
    """Print a table of a run's phases and how many are missing."""
    table = Table(title="phases", title_justify="left", box=None, pad_edge=False)
    columns = ("phase", "what", "model", "trains", "rate", "steps", "state", "memory (estimate)")
    for column in columns:
        table.add_column(column, overflow="fold")
    for phase in prepared.plan.phases:
        total = memory_estimate(phase, prepared.resolved)["total"]
        trains = phase.total_steps > 0
        table.add_row(
            phase.name,
            phase.title,
            phase.model.name,
            phase.train.adapt if trains else "",
            f"{phase.train.learning_rate:g}" if trains else "",
            str(phase.total_steps),
            "missing" if phase in missing else "done",
            gib(total),
        )
    console.print(table)
    console.print(f"{len(missing)} of {len(prepared.plan.phases)} phases to run", highlight=False)


def gib(num_bytes: float) -> str:
    """Return a size in GiB, '0.02 GiB'."""
    size = num_bytes / 2**30
    return f"{size:,.2f} GiB" if size >= 0.005 else "<0.01 GiB"


def warn_of_memory(
    missing: Sequence[Phase],
    resolved: Resolved,
    shape: Shape | None,
    limit: int | None,
    where: str,
    console: Console,
) -> None:
    """Print a warning if phases need more memory than there is, by their estimates.

    Args:
      missing: the phases to run.
      resolved: the input of the run.
      shape: of the mesh, whose axes fsdp and tensor split a phase's memory; None if not known.
      limit: bytes of a device, or of the host; None if not known.
      where: of what `limit` is the memory.
      console: where to print.
    """
    devices = 1 if shape is None else shape[1] * shape[2]
    memory = {phase.title: memory_estimate(phase, resolved) for phase in missing}
    sizes = {title: parts.pop("total") / devices for title, parts in memory.items()}
    beyond = [title for title, size in sizes.items() if limit is not None and size > limit]
    if limit is None or not beyond:
        return
    largest = max(beyond, key=lambda title: sizes[title])
    part = max(memory[largest], key=lambda name: memory[largest][name])
    console.print(
        f"warning: {len(beyond)} phases need more memory (estimate) than the {gib(limit)} of "
        f"{where}; {largest} needs {gib(sizes[largest])}, most of it for {part}: "
        f"{_LESS_MEMORY.get(part, 'use a smaller model or less data')}",
        style="yellow",
        highlight=False,
        markup=False,
    )


#: What lowers each part of a phase's memory.
_LESS_MEMORY = {
    "parameters": "use a smaller model, train.param_dtype=bfloat16, or more devices (mesh.fsdp)",
    "gradients": "use train.adapt=lora, or more devices (mesh.fsdp)",
    "optimizer": "use train.adapt=lora, train.optimizer=adafactor, or more devices (mesh.fsdp)",
    "activations": "lower train.microbatch_size or task.max_length, or set train.remat=block",
    "batches": "lower train.steps or pretrain.steps, or set pretrain.streaming",
    "features": "lower task.train_docs, or use a smaller model",
}


def check_mesh(missing: Sequence[Phase], shape: Shape | None, console: Console) -> None:
    """Refuse a mesh that phases cannot use, and print a warning if it leaves devices idle.

    Args:
      missing: the phases to run.
      shape: of the mesh; None if it is not known.
      console: where to print.

    Raises:
      InputError: for a tensor axis along which nothing would be split.
    """
    if shape is not None:
        mesh_fit.refuse_idle_tensor(missing, shape)
        for line in mesh_fit.explain(missing, shape):
            console.print(line, style="yellow", highlight=False, markup=False)


def print_phase(
    number: int, total: int, phase: Phase, result: dict[str, Any], console: Console
) -> None:
    """Print a line on a complete phase, the `number`-th of `total`."""
    numbers = f"loss {result['train_loss']:.4f}" if "train_loss" in result else ""
    if "test" in result.get("metrics", {}):
        test = result["metrics"]["test"]
        numbers += f"  test accuracy {test['accuracy']:.3f} ± {test['accuracy_se']:.3f}"
    if result.get("kept_step") != result.get("steps"):
        numbers += f"  kept step {result['kept_step']}"
    compiling = result.get("compile_seconds", 0.0)
    if compiling >= max(1.0, 0.25 * result["seconds"]):
        numbers += f"  (compiling: {compiling:.1f} s)"
    console.print(
        f"[{number}/{total}] {phase.title:<20} {phase.model.name:<12} {phase.total_steps:>5} steps "
        f"{result['seconds']:6.1f} s  {numbers}",
        highlight=False,
        markup=False,
    )
