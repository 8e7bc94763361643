"""Programs of a run as shapes, without an array on any device."""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from w2s_jax.config import TrainSettings
from w2s_jax.models.config import ModelConfig
from w2s_jax.planning.phase import Phase


@dataclass(frozen=True, eq=False)
class Program:
    """A program of a run.

    Attributes:
      title: titles of the phases that run it.
      sections: config sections of the training settings, as 'strong.train'; several if phases of
        several roles run it.
      trains: whether it is a train step; else it labels documents.
      key: equal keys mean the same program.
      function, args: a jitted function and its abstract arguments, for `lower`.
      parts: bytes per chip of its arguments, by kind.
      beside: bytes per chip of other arrays that are on the chip while it runs, by kind.
      chips: number of chips that run it together.
      train: the training settings.
      model: the model, with its full vocabulary.
      flops: model FLOPs of a run (a step, or a batch), by formula.
      slots: slots of a batch, in all microbatches.
      shape: M, R and L of the largest batch.
      tokens: tokens of documents in a batch.
      trained: number of trained parameters per chip.
      loss: kind of the loss of a class head; None where tokens are predicted.
      passes: forward passes of a run; more than one with remat or batch-coupled losses.
      evaluates: keys of the label passes that run while this program's arguments are on the chip.
      targets: slots of a row that predict tokens, where these are completions; 0: no slot, or all.
      results: bytes per chip of results that are an argument of another program, by kind.
      new_tokens: tokens that a program of decoding writes in each row; 0 for others.
    """

    title: str
    sections: tuple[str, ...]
    trains: bool
    key: Any
    function: Any
    args: tuple[Any, ...]
    parts: dict[str, int]
    beside: dict[str, int]
    chips: int
    train: TrainSettings
    model: ModelConfig
    flops: float
    tokens: float
    slots: int
    shape: tuple[int, int, int]
    trained: int = 0
    loss: str | None = None
    passes: int = 1
    evaluates: tuple[Any, ...] = ()
    targets: int = 0
    results: dict[str, int] = field(default_factory=dict)
    new_tokens: int = 0

    @property
    def completes(self) -> bool:
        """Whether it is the prefill or the decode program of completions."""
        return bool(self.new_tokens or self.results)


def section(phase: Phase) -> str:
    """Return the config section of a phase's training settings."""
    role = "strong" if phase.role.startswith("middle") else phase.role
    return f"{role}.{'train' if phase.loss is not None or not phase.total_steps else 'pretrain'}"


def per_chip(tree: Any) -> int:
    """Return the bytes of abstract arrays on each chip, by their shardings."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def numbers_per_chip(tree: Any) -> int:
    """Return the number of elements of abstract arrays on each chip."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) for x in jax.tree.leaves(tree)
    )


def abstract(tree: Any, shardings: Any) -> Any:
    """Return the shapes and dtypes of arrays, with a tree of shardings that is a prefix of it."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(np.shape(x), np.result_type(x), sharding=s),
        tree,
        jax.tree.broadcast(shardings, tree),
    )
