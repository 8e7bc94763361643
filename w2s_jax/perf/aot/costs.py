"""What a program takes of a chip: memory by formula, and the least time that a run can take.

Pure arithmetic on sizes; nothing here compiles.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from w2s_jax.models import attention_kernels, budget
from w2s_jax.perf.aot.collectives import Collectives
from w2s_jax.perf.aot.programs import Program
from w2s_jax.perf.devices import Bandwidth

_WIDTHS = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program, in bytes on a chip.

    Attributes:
      arguments, temporaries, code: its memory; what it gives back beyond what it overwrites is part
        of the temporaries.
      collectives: by kind, of one run.
      refused: what the compiler says where it found no way to fit the program; else ''.
      peak: in all; of a refused program what it would need, as far as the compiler tells.
    """

    arguments: int
    temporaries: int
    code: int
    collectives: Mapping[str, Collectives]
    refused: str = ""
    peak: int = 0


def estimate(program: Program, row_shards: int) -> dict[str, int]:
    """Bytes on a chip by formula: what a program is given, and what it computes with.

    What it is given (`Program.parts`, exact but for padding) and what lies beside it; of a train
    step a float32 gradient for each trained parameter and `budget.training_memory`'s activations
    for the slots of a chip, without attention scores where a kernel computes them; the weights once
    more in the compute dtype, if that is another, as the compiler casts them before its loops, and
    of bfloat16 ones a float32 copy of what is trained.

    Args:
      program: of a run.
      row_shards: into how many parts the rows of its batches are split (1 on one chip).
    """
    train, model = program.train, program.model
    width, computed = _WIDTHS[train.param_dtype or "float32"], _WIDTHS[train.compute_dtype]
    _, rows, length = program.shape
    tokens = -(-rows // (row_shards if program.chips > 1 else 1)) * length
    scored = length < attention_kernels.LEAST_LENGTH["tpu"]
    found = dict(program.parts) | program.beside
    adapt = train.adapt if program.trains else "probe"
    activations = budget.training_memory(
        model,
        adapt=adapt,
        trainable=0,
        param_dtype="float32",
        compute_dtype=train.compute_dtype,
        optimizer=train.optimizer,
        tokens=tokens,
        longest=length if scored else 0,
        remat=train.remat if program.trains else "none",
        logits=program.trains and program.loss is None,
        last_layers=train.last_layers,
    )
    if width != computed:
        found["weights as computed with"] = found["parameters"] * computed // width
    if program.trains:
        found["gradients"] = 4 * program.trained
        if width == 2 and program.train.adapt == "full":
            found["float32 weights"] = 4 * program.trained
    if program.train.adapt != "probe" or not program.trains:
        found["activations"] = activations["activations"]
    return found


@dataclass(frozen=True)
class Bound:
    """The least seconds that a run can take, were all else hidden behind the slowest of three.

    Attributes:
      compute: of the matmuls, padding and recomputation included, at the peak rate.
      memory: of moving weights, gradients and moments between HBM and the chip, each as seldom as
        possible; activations are not counted.
      communication: of what the chip sends, over all of its links.
      mfu: model FLOPs of that time's peak, at most.
    """

    compute: float
    memory: float
    communication: float
    mfu: float

    @property
    def seconds(self) -> float:
        """The slowest of the three."""
        return max(self.compute, self.memory, self.communication)

    @property
    def by(self) -> str:
        """Which it is."""
        return max(("compute", "memory", "communication"), key=lambda name: getattr(self, name))


def bound(
    program: Program,
    collectives: Mapping[str, Collectives],
    peak: float,
    bandwidth: Bandwidth,
    tensor: int,
) -> Bound:
    """The least time of one run of a program: a step, or a batch of a label pass.

    Args:
      program: of a run.
      collectives: what `collectives` found in it.
      peak: FLOP/s of a chip.
      bandwidth: of a chip.
      tensor: over how many chips each layer's weights stay split while they are used.
    """
    micro, rows, length = program.shape
    # A label pass on one chip has documents of its own on each.
    chips = program.chips
    padding = micro * rows * length / max(program.tokens, 1.0)
    work = (2 + program.passes) / 3 if program.trains else 1.0
    compute = program.flops * max(padding, 1.0) * work / (chips * peak)
    moved = float(2 * (program.parts["parameters"] + program.parts.get("optimiser", 0)))
    if program.trains:
        moved += 2 * 4 * program.trained
    computed = _WIDTHS[program.train.compute_dtype]
    read = computed * program.model.num_parameters() / tensor
    moved += read * micro * (1 + program.passes if program.trains else 1)
    memory = (moved if program.trains else read) / bandwidth.memory
    sent = sum(part.moved_bytes for part in collectives.values()) / bandwidth.links
    slowest = max(compute, memory, sent)
    return Bound(compute, memory, sent, program.flops / (chips * peak * slowest))
