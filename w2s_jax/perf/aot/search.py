"""The settings that `w2s compile --search` tries. Imports no JAX.

Where a run does not fit, the cheapest come first: recomputing activations, smaller microbatches,
splitting parameters over more chips, splitting layers.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from w2s_jax.config import MeshSettings, Settings, TrainSettings

#: What a search may look for: settings that fit, or those that take least time.
GOALS = ("memory", "time")

#: Which programs of a run can be compiled alone: train steps, or passes that label documents.
ONLY = ("steps", "labels")

#: Remat policies, from the one that keeps most activations to the one that keeps fewest.
REMATS = ("none", "dots", "block")


@dataclass(frozen=True)
class MemoryOptions:
    """Settings that change the memory of training a role's model, but not its result.

    Attributes:
      remat, microbatch_size: fields of `<role>.train`.
      fsdp, tensor: sizes of mesh axes.
    """

    remat: str
    microbatch_size: int
    fsdp: int
    tensor: int

    def overrides(self, section: str, old: "MemoryOptions") -> list[str]:
        """Return the overrides that change `old` to these; `section` is e.g. 'strong.train'."""
        names = {
            "remat": f"{section}.remat",
            "microbatch_size": f"{section}.microbatch_size",
            "fsdp": "mesh.fsdp",
            "tensor": "mesh.tensor",
        }
        return [
            f"--config.{path}={getattr(self, name)}"
            for name, path in names.items()
            if getattr(self, name) != getattr(old, name)
        ]


def current_options(train: TrainSettings, mesh: tuple[int, int, int]) -> MemoryOptions:
    """Return the options in use; `mesh` is the shape (data, fsdp, tensor)."""
    return MemoryOptions(train.remat, train.microbatch_size or train.batch_size, mesh[1], mesh[2])


def candidates(current: MemoryOptions, chips: int, heads: int) -> Iterator[MemoryOptions]:
    """Yield options to try, each a change of the previous one.

    First remat policies that keep less; then, with the last of them, microbatches halved down to
    one document per row shard (fewer would leave chips idle); then parameters split over twice as
    many chips, repeatedly; last, layers split over 2, 4, ... chips as long as that divides the
    heads, which leaves fewer row shards.

    Args:
      current: see `current_options`.
      chips: chips of the slice.
      heads: key/value heads of the model.
    """
    last = current
    for remat in REMATS[REMATS.index(current.remat) + 1 :]:
        last = dataclasses.replace(last, remat=remat)
        yield last
    while last.microbatch_size % 2 == 0 and last.microbatch_size // 2 >= chips // current.tensor:
        last = dataclasses.replace(last, microbatch_size=last.microbatch_size // 2)
        yield last
    while last.fsdp * 2 * last.tensor <= chips:
        last = dataclasses.replace(last, fsdp=last.fsdp * 2)
        yield last
    while last.tensor * 2 <= chips and heads % (last.tensor * 2) == 0:
        tensor = last.tensor * 2
        fsdp = min(last.fsdp, chips // tensor)
        last = dataclasses.replace(last, tensor=tensor, fsdp=fsdp)
        yield last


def all_options(
    current: MemoryOptions, batch_size: int, chips: int, heads: int, *, mesh: bool = True
) -> list[MemoryOptions]:
    """Return all combinations of mesh, microbatch and remat policy for a slice.

    Microbatches are the batch halved any number of times, as long as each row shard has a document.

    Args:
      current: see `current_options`.
      batch_size: documents of a batch.
      chips: chips of the slice.
      heads: key/value heads of the model.
      mesh: whether to change the mesh.
    """
    powers = [2**n for n in range(chips.bit_length()) if chips % 2**n == 0]
    shapes = [(fsdp, tensor) for tensor in powers for fsdp in powers if fsdp * tensor <= chips]
    if not mesh:
        shapes = [(current.fsdp, current.tensor)]
    found = []
    for fsdp, tensor in shapes:
        if heads % tensor:
            continue
        micro = batch_size
        sizes = [micro]
        while micro % 2 == 0 and micro // 2 >= chips // tensor:
            micro //= 2
            sizes.append(micro)
        found += [MemoryOptions(remat, size, fsdp, tensor) for size in sizes for remat in REMATS]
    return found


def apply_options(settings: Settings, section: str, options: MemoryOptions) -> Settings:
    """Return the settings with other options; `section` is e.g. 'strong.train'.

    A change of the strong model also applies to the models between the weak and the strong one.
    """
    role, part = section.split(".")
    own = settings.roles[role]
    train = dataclasses.replace(
        getattr(own, part), remat=options.remat, microbatch_size=options.microbatch_size
    )
    new = dataclasses.replace(own, **{part: train})
    mesh = MeshSettings(
        data=-1, fsdp=options.fsdp, tensor=options.tensor, population=settings.mesh.population
    )
    changes: dict[str, Any] = {"mesh": mesh, role: new}
    if role == "strong":
        middle = tuple(dataclasses.replace(m, **{part: train}) for m in settings.middle)
        changes["middle"] = middle
    return dataclasses.replace(settings, **changes)


def verdict(fits: bool, needed: float, memory: float, advice: Sequence[str] = ()) -> str:
    """Return the last line of output: whether the run fits, and what to change if it does not.

    Args:
      fits: whether it fits.
      needed, memory: bytes per chip.
      advice: overrides with which it would fit.
    """
    sizes = f"{needed / 2**30:.2f} GiB of {memory / 2**30:.2f} GiB a chip"
    if fits:
        return f"fits: {sizes} ({needed / memory:.0%} of its memory)"
    line = f"does not fit: needs {sizes}; according to the memory formula"
    if advice:
        return f"{line}, it would with {' '.join(advice)}"
    return f"{line}, no such settings would: use more chips, LoRA or a smaller model"
