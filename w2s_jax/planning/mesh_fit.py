"""Check whether the phases of a plan can use a mesh, before anything runs. Imports no JAX."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from w2s_jax.config.mesh_shapes import Shape, divisors
from w2s_jax.core import errors
from w2s_jax.models.config import ModelConfig
from w2s_jax.planning.phase import Phase


def refuse_idle_tensor(phases: Sequence[Phase], shape: Shape) -> None:
    """Refuse a tensor axis along which nothing of a model's layers would be split.

    Raises:
      InputError: the size divides neither the heads nor the MLP of a model; names the nearest size
        that fits all models.
    """
    tensor = shape[2]
    models = {_layers_of(phase.model): phase.model for phase in phases}
    for model in models.values():
        if not _splits(model, tensor):
            allowed = [
                n
                for n in divisors(max(m.d_mlp for m in models.values()))
                if all(_splits(m, n) for m in models.values())
            ]
            near = min(allowed, key=lambda n: (abs(n - tensor), n))
            raise errors.InputError(
                f"mesh.tensor: {tensor} divides neither the {model.num_heads} heads nor the MLP's "
                f"width {model.d_mlp} of {model.name}; nearest allowed: {near}"
            )


def _layers_of(model: ModelConfig) -> tuple[int, int]:
    return model.num_heads, model.d_mlp


def _splits(model: ModelConfig, tensor: int) -> bool:
    return any(not size % tensor for size in _layers_of(model))


@dataclasses.dataclass(frozen=True)
class Idle:
    """Phases whose batches cannot fill the rows that the mesh asks for.

    Attributes:
      texts: texts per microbatch. Each is in one row, so at most that many rows are used.
      row_shards: data x fsdp, the least number of rows.
      phases: titles of the phases.
    """

    texts: int
    row_shards: int
    phases: tuple[str, ...]

    @property
    def share(self) -> Fraction:
        """The least share of slots that are empty."""
        return 1 - Fraction(self.texts, self.row_shards)


def idle_slots(phases: Sequence[Phase], shape: Shape) -> list[Idle]:
    """Return the phases that leave devices without a document in every step.

    Rows are split over data x fsdp. If a microbatch has fewer texts, the batch is filled up with
    empty rows, which have weight 0: they change no result but are computed.
    """
    row_shards = shape[0] * shape[1]
    found: dict[int, list[str]] = {}
    for phase in phases:
        # Probes have no rows; every device computes their steps.
        if not phase.total_steps or phase.train.adapt == "probe":
            continue
        documents = phase.train.microbatch_size or phase.train.batch_size
        texts = documents * phase.num_texts
        if texts < row_shards:
            found.setdefault(texts, []).append(phase.title)
    return [Idle(texts, row_shards, tuple(titles)) for texts, titles in sorted(found.items())]


def explain(phases: Sequence[Phase], shape: Shape) -> list[str]:
    """Return a line for each result of `idle_slots`, with advice."""
    return [_explained(idle, shape) for idle in idle_slots(phases, shape)]


def _explained(idle: Idle, shape: Shape) -> str:
    data, fsdp, tensor = shape
    advice = []
    if idle.texts >= fsdp:
        fewer = idle.texts // fsdp
        spare = (data - fewer) * fsdp * tensor
        advice.append(f"mesh.data={fewer} (frees {spare} of {data * fsdp * tensor} devices)")
    else:
        advice.append(f"mesh.fsdp={idle.texts} or less, and more of mesh.tensor")
    advice.append(f"a batch_size or microbatch_size of {idle.row_shards} or more")
    if fsdp == tensor == 1:
        advice.append("mesh.population, which gives whole phases their own devices")
    return (
        f"mesh: data x fsdp = {data} x {fsdp} splits rows into {idle.row_shards} parts, but "
        f"{', '.join(idle.phases)}: at most {idle.texts} texts at a time, so at least "
        f"{float(idle.share):.0%} of the slots are empty. Try {'; '.join(advice)}"
    )
