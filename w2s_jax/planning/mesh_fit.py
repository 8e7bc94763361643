"""Whether the phases of a plan can use a mesh, said before anything is computed. Imports no JAX."""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from w2s_jax.config.mesh_shapes import Shape, divisors
from w2s_jax.core import errors
from w2s_jax.models.config import ModelConfig
from w2s_jax.planning.phase import Phase


def refuse_idle_tensor(phases: Sequence[Phase], shape: Shape) -> None:
    """Refuses a tensor axis along which nothing of a model's layers would be split.

    Raises:
      InputError: with the sizes that divide the heads or the MLP of each model.
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
      texts: of a microbatch; each lies in one row, so no more rows than these hold anything.
      row_shards: data x fsdp; there are at least as many rows.
      phases: their titles.
    """

    texts: int
    row_shards: int
    phases: tuple[str, ...]

    @property
    def share(self) -> Fraction:
        """Of the slots, that hold nothing at the least."""
        return 1 - Fraction(self.texts, self.row_shards)


def idle_slots(phases: Sequence[Phase], shape: Shape) -> list[Idle]:
    """Which phases leave devices without a document in every step, and to what extent.

    Rows are split over data x fsdp. With fewer texts in a microbatch than that, empty rows fill the
    batch up: they change no result (their weight is 0), and are computed in vain.
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
    """What `idle_slots` finds, as lines for people, with what to set instead."""
    return [_told(idle, shape) for idle in idle_slots(phases, shape)]


def _told(idle: Idle, shape: Shape) -> str:
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
        advice.append("mesh.population, which puts whole phases on devices of their own")
    return (
        f"mesh: data x fsdp = {data} x {fsdp} splits rows in {idle.row_shards}, but "
        f"{', '.join(idle.phases)}: at most {idle.texts} texts at a time; at least "
        f"{float(idle.share):.0%} of the slots are empty. Instead: {'; '.join(advice)}"
    )
