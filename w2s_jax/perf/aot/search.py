"""What to try when something does not fit, and in what order. Pure; no JAX.

Least costly first: recomputing activations, smaller microbatches, splitting parameters over more
chips, splitting layers.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from w2s_jax.config import MeshSettings, Settings, TrainSettings

#: Policies from the one that keeps most to the one that keeps least.
REMATS = ("none", "dots", "block")


@dataclass(frozen=True)
class Change:
    """Another way to train the model of a role, with the same result.

    Attributes:
      remat, microbatch_size: of `<role>.train`.
      fsdp, tensor: of the mesh.
    """

    remat: str
    microbatch_size: int
    fsdp: int
    tensor: int

    def overrides(self, section: str, old: "Change") -> list[str]:
        """The overrides that lead there from `old`; `section` is 'strong.train' or the like."""
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


def start(train: TrainSettings, mesh: tuple[int, int, int]) -> Change:
    """How it is trained now; `mesh` is its (data, fsdp, tensor) shape."""
    return Change(train.remat, train.microbatch_size or train.batch_size, mesh[1], mesh[2])


def candidates(now: Change, chips: int, heads: int) -> Iterator[Change]:
    """What else to try, each with more of the means that came before it.

    First the policies that keep less; with the least of them, half the microbatch again and again,
    down to as many documents as there are row shards (fewer leave chips idle); then parameters
    split over twice as many chips; at last layers split over 2, 4, ... chips that divide the heads,
    which leaves fewer row shards.

    Args:
      now: see `start`.
      chips: of the slice.
      heads: key/value heads of the model.
    """
    last = now
    for remat in REMATS[REMATS.index(now.remat) + 1 :]:
        last = dataclasses.replace(last, remat=remat)
        yield last
    while last.microbatch_size % 2 == 0 and last.microbatch_size // 2 >= chips // now.tensor:
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


def changed(settings: Settings, section: str, change: Change) -> Settings:
    """The settings with the change; `section` is 'strong.train', 'weak.pretrain' or the like.

    Models between the weak and the strong one are trained as the strong one.
    """
    role, part = section.split(".")
    own = settings.roles[role]
    train = dataclasses.replace(
        getattr(own, part), remat=change.remat, microbatch_size=change.microbatch_size
    )
    new = dataclasses.replace(own, **{part: train})
    mesh = MeshSettings(
        data=-1, fsdp=change.fsdp, tensor=change.tensor, population=settings.mesh.population
    )
    changes: dict[str, Any] = {"mesh": mesh, role: new}
    if role == "strong":
        middle = tuple(dataclasses.replace(m, **{part: train}) for m in settings.middle)
        changes["middle"] = middle
    return dataclasses.replace(settings, **changes)


def verdict(fits: bool, needed: float, memory: float, advice: Sequence[str] = ()) -> str:
    """The last line: whether it fits, and what to do if not.

    Args:
      fits: whether it does.
      needed, memory: bytes of a chip.
      advice: overrides under which it would.
    """
    gib = 2**30
    if fits:
        share = f"{needed / memory:.0%} of its memory"
        return f"fits: {needed / gib:.2f} GiB of {memory / gib:.2f} GiB a chip ({share})"
    line = f"does not fit: needs {needed / gib:.2f} GiB of {memory / gib:.2f} GiB a chip"
    if advice:
        return f"{line}; by the memory formula it would with {' '.join(advice)}"
    return f"{line}; by the memory formula nothing here would: more chips, LoRA or a smaller model"
