"""What a program takes of a chip: memory by formula, and the least time that a run can take.

Pure arithmetic on sizes; nothing here compiles.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from w2s_jax.config.mesh_shapes import Shape
from w2s_jax.models import attention_kernels, budget
from w2s_jax.models.config import ModelConfig
from w2s_jax.perf.aot.collectives import Collectives
from w2s_jax.perf.aot.programs import Program
from w2s_jax.profiling.devices import Bandwidth

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


def estimate(program: Program, shape: Shape) -> dict[str, int]:
    """Bytes on a chip by formula: what a program is given, and what it computes with.

    What it is given (`Program.parts`, exact but for padding) and what lies beside it; the weights
    but for look-up tables once more in the compute dtype, if that is another, as the compiler casts
    them before its loops, and in a label pass with whole parameters even if it is not (compiled
    ones take as much more, perhaps for another layout); where parameters are split, two layers in
    the compute dtype, which a chip gathers. Of a train step `budget.training_memory`'s activations
    for the slots of a chip, without attention scores where a kernel computes them; of a label pass
    see `_forward_bytes`.

    A train step has a float32 gradient for each trained parameter, and where a layer's weights are
    gathered the whole gradient of one; with several microbatches two more, their sum and a copy.
    Beside it are float32 copies of all that is trained (of bfloat16 parameters) or of half
    (arrays in other layouts; measured on compiled programs, as are the two above).

    Args:
      program: of a run.
      shape: of the mesh.
    """
    train, model = program.train, program.model
    width, computed = _WIDTHS[train.param_dtype or "float32"], _WIDTHS[train.compute_dtype]
    micro, rows, length = program.shape
    data, fsdp, tensor = shape if program.chips > 1 else (1, 1, 1)
    tokens = -(-rows // (data * fsdp)) * length
    found = dict(program.parts) | program.beside
    layer = budget.block_parameters(model) // tensor if fsdp > 1 else 0
    if width != computed or (fsdp == 1 and not program.trains):
        multiplied = model.num_parameters() - _looked_up(program)
        found["weights as computed with"] = multiplied * computed // tensor // fsdp
    found["gathered layers"] = 2 * layer * computed
    if program.trains:
        found["gradients"] = 4 * program.trained * (3 if micro > 1 else 1)
        if train.adapt == "full":
            found["copies"] = 4 * program.trained // (1 if width == 2 else 2)
            found["gradient of a gathered layer"] = 4 * layer
        if train.adapt != "probe":
            found["activations"] = _activations(program, tokens)
    else:
        found["activations"] = _forward_bytes(model, computed) * tokens
    return found


def _activations(program: Program, tokens: int) -> int:
    """What the backward pass of a microbatch keeps."""
    train, length = program.train, program.shape[2]
    return budget.training_memory(
        program.model,
        adapt=train.adapt,
        trainable=0,
        param_dtype="float32",
        compute_dtype=train.compute_dtype,
        optimizer=train.optimizer,
        tokens=tokens,
        # A kernel never forms the scores.
        longest=length if length < attention_kernels.LEAST_LENGTH["tpu"] else 0,
        remat=train.remat,
        logits=program.loss is None,
        last_layers=train.last_layers,
    )["activations"]


def _looked_up(program: Program) -> int:
    """Parameters of tables that are looked up and multiplied with nothing, so never cast."""
    model, predicts = program.model, program.trains and program.loss is None
    # Of a language model's two tables, or its one, the unembedding is multiplied with.
    tables = 2 - model.tied_embeddings - predicts
    return tables * model.vocab_size * model.d_model


def _forward_bytes(model: ModelConfig, computed: int) -> int:
    """Bytes a token of a forward pass: the stream and what a layer adds, a norm, and the MLP.

    2 D in the compute dtype and 2 D in float32, and F in both.
    """
    return (computed + 4) * (2 * model.d_model + model.d_mlp)


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
