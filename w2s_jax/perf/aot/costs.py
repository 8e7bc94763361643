"""Memory of a program by formula, and a lower bound on its run time. Compiles nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from w2s_jax.config.mesh_shapes import Shape
from w2s_jax.models import attention_kernels, budget, generation_plan
from w2s_jax.models.config import ModelConfig
from w2s_jax.perf.aot.clock import Estimate
from w2s_jax.perf.aot.collectives import Collectives
from w2s_jax.perf.aot.programs import Program
from w2s_jax.profiling.devices import Rates

_WIDTHS = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class CompiledProgram:
    """The compiler's report on a program, in bytes per chip.

    Attributes:
      arguments, temporaries, code: memory; the temporaries include outputs that do not reuse an
        argument's memory.
      collectives: collectives of one run, by kind.
      estimate: its estimated time; None: the program does not fit, or the chip is unknown.
      attention: what computes attention: 'xla', 'cudnn' or 'splash'; '' if unknown.
      rejection: the compiler's message if the program does not fit, otherwise ''.
      peak: total memory; for a rejected program, what it would need as far as the compiler reports.
    """

    arguments: int
    temporaries: int
    code: int
    collectives: Mapping[str, Collectives]
    estimate: Estimate | None = None
    attention: str = ""
    rejection: str = ""
    peak: int = 0


def estimate(program: Program, shape: Shape) -> dict[str, int]:
    """Estimate the memory of a program by formula.

    Counts
    - the arguments (`Program.parts`, exact except for padding) and what is kept in memory besides;
    - the weights without lookup tables again in the compute dtype, if that differs, because the
      compiler casts them before its loops. Label passes with whole parameters count them even if it
      does not differ: compiled ones take as much more, perhaps for another layout;
    - two layers in the compute dtype if parameters are split, because a chip gathers them;
    - for a label pass, see `_forward_bytes`; of completions, see `_completing`;
    - for a train step, `budget.training_memory`'s activations of a chip's slots, without attention
      scores where a kernel computes them; a float32 gradient of each trained parameter, three with
      several microbatches (their sum and a copy); the whole gradient of one layer if its weights
      are gathered; and float32 copies of all that is trained (bfloat16 parameters) or of half of it
      (arrays in other layouts).

    The numbers of copies were measured on compiled programs.

    Args:
      program: a program of a run.
      shape: shape of the mesh.

    Returns:
      Bytes per chip, by what they are for.
    """
    train, model = program.train, program.model
    width, computed = _WIDTHS[train.param_dtype or "float32"], _WIDTHS[train.compute_dtype]
    micro, rows, length = program.shape
    data, fsdp, tensor = shape if program.chips > 1 else (1, 1, 1)
    tokens = -(-rows // (data * fsdp)) * length
    found = dict(program.parts) | program.results | program.beside
    layer = budget.block_parameters(model) // tensor if fsdp > 1 else 0
    if program.completes:
        return found | _completing(program, shape)
    if width != computed or (fsdp == 1 and not program.trains):
        multiplied = model.num_parameters() - _table_parameters(program)
        found["weights in the compute dtype"] = multiplied * computed // tensor // fsdp
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
    """Return the bytes of activations kept for the backward pass of a microbatch."""
    train, length = program.train, program.shape[2]
    return budget.training_memory(
        program.model,
        adapt=train.adapt,
        trainable=0,
        param_dtype="float32",
        compute_dtype=train.compute_dtype,
        optimizer=train.optimizer,
        tokens=tokens,
        # Kernels never store the scores.
        longest=length if length < attention_kernels.LEAST_LENGTH["tpu"] else 0,
        remat=train.remat,
        logits=program.loss is None and not program.targets,
        last_layers=train.last_layers,
    )["activations"] + int(12 * program.model.vocab_size * tokens * program.targets / length)


def _completing(program: Program, shape: Shape) -> dict[str, int]:
    """Return the bytes that prefill or decode takes besides parameters, cache and logits.

    Prefill: those of a label pass, and keys and values of the prompts before they are put into the
    cache. Decode: of each row what a label pass takes for a token, the logits three times more, and
    the scores of a layer before and after the softmax. Both: two layers, if a chip gathers them.
    """
    model, train = program.model, program.train
    computed = _WIDTHS[train.compute_dtype]
    data, fsdp, tensor = shape if program.chips > 1 else (1, 1, 1)
    rows, length = -(-program.shape[1] // (data * fsdp)), program.shape[2]
    layer = budget.block_parameters(model) // tensor if fsdp > 1 else 0
    found = {"gathered layers": 2 * layer * computed}
    if program.new_tokens:
        scores = 2 * 4 * model.num_heads // tensor * length
        each = _forward_bytes(model, computed, tensor) + 3 * 4 * model.vocab_size + scores
        return found | {"activations": rows * each}
    slots = generation_plan.cache_slot_bytes(model, computed, tensor)
    found["keys and values of the prompts"] = rows * length * slots
    return found | {"activations": _forward_bytes(model, computed, tensor) * rows * length}


def _table_parameters(program: Program) -> int:
    """Return the parameters of tables that are only looked up, and so never cast."""
    model, predicts = program.model, program.trains and program.loss is None
    # Language models multiply with the unembedding, which may be the same table.
    tables = 2 - model.tied_embeddings - predicts
    return tables * model.vocab_size * model.d_model


def _forward_bytes(model: ModelConfig, computed: int, tensor: int = 1) -> int:
    """Return the bytes per token of a forward pass: 2 D + F in the compute dtype and in float32.

    They hold the residual stream and a layer's output, a norm, and the MLP, which may be split over
    `tensor` chips.
    """
    return (computed + 4) * (2 * model.d_model + model.d_mlp // tensor)


@dataclass(frozen=True)
class TimeBound:
    """Lower bound on the time of one run, in seconds, if all but the slowest part overlap with it.

    Attributes:
      compute: matmuls at the peak rate, including padding and recomputation.
      memory: moving weights, gradients and moments between HBM and the chip, each as rarely as
        possible; activations are not counted.
      communication: the bytes a chip sends, over all of its links.
      mfu: upper bound on the model FLOPs utilisation.
    """

    compute: float
    memory: float
    communication: float
    mfu: float

    @property
    def seconds(self) -> float:
        """The time of the slowest part."""
        return max(self.compute, self.memory, self.communication)

    @property
    def by(self) -> str:
        """The name of the slowest part."""
        return max(("compute", "memory", "communication"), key=lambda name: getattr(self, name))


def roofline(
    program: Program, shape: Shape, peak: float, chip: Rates, *, remat: bool, microbatches: int
) -> float:
    """Estimate the seconds of a program on a mesh without compiling it, to order meshes by time.

    The larger of compute and memory traffic, plus all communication. Each microbatch gathers the
    weights that are split over `fsdp` for the forward, backward and recomputed pass, and scatters
    their gradients; `data` reduces them once; `tensor` reduces activations twice a layer and pass.

    Args:
      program: a train step or label pass on any mesh; only its sizes count.
      shape: shape of the mesh.
      peak, chip: rates of a chip.
      remat: whether the backward pass recomputes blocks.
      microbatches: number of microbatches.
    """
    data, fsdp, tensor = shape
    model, chips = program.model, data * fsdp * tensor
    width = _WIDTHS[program.train.compute_dtype]
    passes = (2 + remat) if program.trains else 1
    work = (3 + remat) / 3 if program.trains else 1
    compute = program.flops * work / (chips * peak)
    weights = model.num_parameters()
    moved = width * weights / tensor * passes * microbatches
    sent = 0.0
    if fsdp > 1:
        gathered = width * weights / tensor * (fsdp - 1) / fsdp
        sent += gathered * passes * microbatches
    if program.trains and program.train.adapt == "full":
        # Float32 parameters and two moments are read and written, gradients written and read.
        moved += (6 + 2) * 4 * weights / (fsdp * tensor)
        if fsdp > 1:
            sent += 4 * weights / tensor * (fsdp - 1) / fsdp * microbatches
        sent += 2 * 4 * weights / (fsdp * tensor) * (data - 1) / data
    if tensor > 1:
        tokens = program.slots / (data * fsdp)
        each = 2 * width * tokens * model.d_model * (tensor - 1) / tensor
        sent += 2 * each * model.num_layers * (passes if program.trains else 1)
    return max(compute, moved / chip.memory) + sent / chip.links


def time_bound(
    program: Program,
    collectives: Mapping[str, Collectives],
    peak: float,
    chip: Rates,
    tensor: int,
) -> TimeBound:
    """Return a lower bound on the time of one run of a program: a step, or a label batch.

    Args:
      program: a program of a run.
      collectives: its collectives, by kind.
      peak: peak FLOP/s of a chip.
      chip: rates of a chip.
      tensor: number of chips over which each layer's weights stay split during use.
    """
    micro, rows, length = program.shape
    # In a label pass on single chips, each chip handles its own documents.
    chips = program.chips
    # A program that decodes reads the cache, of which `length` is the size, for each token.
    padding = 1.0 if program.new_tokens else micro * rows * length / max(program.tokens, 1.0)
    times = max(1, program.new_tokens - 1)
    work = (2 + program.passes) / 3 if program.trains else 1.0
    compute = program.flops * max(padding, 1.0) * work / (chips * peak)
    moved = float(2 * (program.parts["parameters"] + program.parts.get("optimiser", 0)))
    if program.trains:
        moved += 2 * 4 * program.trained
    computed = _WIDTHS[program.train.compute_dtype]
    read = computed * program.model.num_parameters() / tensor
    moved += read * micro * (1 + program.passes if program.trains else 1)
    if not program.trains:
        moved = times * (read + program.parts.get("cache", 0))
    memory = moved / chip.memory
    sent = sum(part.moved_bytes for part in collectives.values()) / chip.links
    slowest = max(compute, memory, sent)
    return TimeBound(compute, memory, sent, program.flops / (chips * peak * slowest))
