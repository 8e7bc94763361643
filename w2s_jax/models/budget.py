"""The cost of a model by formula: trained parameters, FLOPs, memory, devices.

Nothing is measured, and JAX is not imported. Letters in formulas: D width, F MLP width, Q and K the
widths of queries and keys (heads times head size), H heads, V vocabulary, L slots.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from w2s_jax.config import ADAPTS, REMATS, LoraSettings, TrainSettings
from w2s_jax.core import errors
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.image_models import ImageConfig

GIB = 2**30

#: The defaults of `lora.rank`, `lora.targets` and `train.last_layers` in a config.
LORA_RANK = LoraSettings.rank
LORA_TARGETS = LoraSettings.targets
LAST_LAYERS = TrainSettings.last_layers

_WIDTHS = {"float32": 4, "bfloat16": 2}

#: Usable share of a device's memory; programs and fragmentation take the rest.
USABLE = 0.9


@dataclass(frozen=True)
class Device:
    """A kind of device.

    Attributes:
      memory: memory in GiB.
      source: origin of that figure.
      alone: whether there is only one device, so that a model cannot be sharded.
    """

    memory: float
    source: str
    alone: bool = False


#: Memory of well-known devices: for TPUs the limit per chip that the compiler reports (v4: the
#: documented size), for other devices the nominal size.
DEVICES = {
    "TPU v4": Device(32.0, "documented"),
    "TPU v5e": Device(15.75, "compiler's limit"),
    "TPU v5p": Device(95.74, "compiler's limit"),
    "TPU v6e": Device(31.25, "compiler's limit"),
    "L4": Device(24.0, "nominal"),
    "A100 40 GB": Device(40.0, "nominal"),
    "A100 80 GB": Device(80.0, "nominal"),
    "H100": Device(80.0, "nominal"),
    "H200": Device(141.0, "nominal"),
    "laptop 16 GB": Device(16.0, "nominal", alone=True),
}


def trainable_parameters(
    config: ModelConfig,
    adapt: str = "full",
    *,
    lora_rank: int = LORA_RANK,
    lora_targets: Sequence[str] = LORA_TARGETS,
    last_layers: int = LAST_LAYERS,
    logits: bool = False,
) -> int:
    """Return the number of trained parameters, without a class head (2 D).

    Args:
      config: the model; its own adapters, if any, are ignored.
      adapt: 'full' and 'probe_then_full' train all parameters, but an untied unembedding only with
        `logits`, and a pooler only if it is the read-out; 'last_layers' the last blocks and, in
        decoders, the final norm; 'lora' rank * (I + O) parameters for each adapted matrix [I, O],
        but not the matrix itself; 'probe' none.
      lora_rank: rank of the adapters.
      lora_targets: names in `config.projections()`, or patterns: 'attention.query', 'mlp.*'.
      last_layers: number of blocks that 'last_layers' trains (at most all).
      logits: whether a language model is trained rather than a classifier.

    Raises:
      InputError: for an unknown `adapt`, or a target that matches no projection.
    """
    if adapt not in ADAPTS:
        raise errors.unknown("adapt", adapt, ADAPTS)
    if adapt == "probe":
        return 0
    if adapt == "lora":
        adapted = config.with_adapters(lora_rank, 1.0, lora_targets)
        return adapted.num_adapter_parameters()
    d, pooler = config.d_model, config.pooler * (config.d_model + 1) * config.d_model
    pooled = config.read_out == "pooler"
    if adapt == "last_layers":
        blocks = min(last_layers, config.num_layers) * block_parameters(config)
        norm = 0 if config.bidirectional else d * (1 + (config.norm == "layernorm"))
        return blocks + norm + pooled * pooler
    own_unembedding = d * (not config.tied_embeddings) + config.unembedding_bias
    unused = 0 if logits else config.vocab_size * own_unembedding
    return config.num_parameters() - unused - (not pooled) * pooler


def block_parameters(config: ModelConfig) -> int:
    """Return the number of parameters of one block."""
    one, two = (replace(config, num_layers=n, local_layers=()).num_parameters() for n in (1, 2))
    return two - one


def flops_per_token(
    config: ModelConfig, length: int, *, last_only: bool = False, logits: bool = False
) -> float:
    """Return the model FLOPs per token of a forward pass over documents of `length` tokens.

    Each layer counts 2 per weight of its matrices, and 4 Q S for attention scores and mixing, where
    S is the mean number of slots that a slot attends to: (length + 1) / 2 in a decoder, less with a
    window, `length` in an encoder. Not counted are embedding look-ups, norms, rotary positions,
    softmax, activations, biases, poolers and class heads, and anything that a program
    computes beyond the model (masked scores, padding, rematerialisation).

    Args:
      config: the model.
      length: tokens per document.
      last_only: whether the last block computes queries, mixing, output and MLP only at the one
        read-out of a document (no effect with the read-out 'mean').
      logits: whether to include the language-model head, 2 D V.
    """
    layers = _layer_flops(config, length, last_only)
    return sum(map(sum, layers)) + logits * 2 * config.d_model * config.vocab_size


def train_flops_per_token(
    config: ModelConfig,
    length: int,
    adapt: str = "full",
    *,
    lora_rank: int = LORA_RANK,
    lora_targets: Sequence[str] = LORA_TARGETS,
    last_layers: int = LAST_LAYERS,
    last_only: bool = False,
    logits: bool = False,
) -> float:
    """Return the model FLOPs per token of a training step, counted as in `flops_per_token`.

    With forward FLOPs W of matrices and A of attention, a backward pass takes 2 W (gradients of
    inputs and of weights) and 2 A. So 'full' takes 3 (W + A); 'last_layers' takes W + A plus twice
    those of the last layers; 'lora' takes 2 W + 3 A, as frozen weights need no gradient, plus 3
    times the adapters' own 2 per parameter; 'probe' takes W + A (once per epoch if features are
    kept). The backward pass is counted down to the embeddings, even if nothing below the first
    adapter is trained.

    Args:
      config: see `flops_per_token`, also for `length`, `last_only` and `logits`.
      length: tokens per document.
      adapt: see `trainable_parameters`, also for the next three.
      lora_rank: rank of the adapters.
      lora_targets: projections that have adapters.
      last_layers: number of blocks that 'last_layers' trains.
      last_only: whether the last block is computed only at the read-out.
      logits: whether to include the language-model head.

    Raises:
      InputError: for an unknown `adapt`, or a target that matches no projection.
    """
    trained = trainable_parameters(
        config, adapt, lora_rank=lora_rank, lora_targets=lora_targets, last_layers=last_layers
    )
    layers = _layer_flops(config, length, last_only)
    head = logits * 2 * config.d_model * config.vocab_size
    weights, attention = (sum(part) for part in zip(*layers, strict=True))
    forward = weights + attention + head
    if adapt == "probe":
        return forward
    if adapt == "lora":
        return 2 * (weights + head) + 3 * attention + 3 * 2 * trained
    if adapt == "last_layers":
        last = layers[-min(last_layers, len(layers)) :] if last_layers else []
        return forward + 2 * sum(map(sum, last)) + head
    return 3 * forward


def _layer_flops(config: ModelConfig, length: int, last_only: bool) -> list[tuple[float, float]]:
    """Return forward FLOPs per token of each layer: (of matrices, of attention)."""
    if isinstance(config, ImageConfig):
        return [(config.image_flops() / length, 0.0)]
    matrices = {name: 2 * i * o for name, (i, o) in config.projections().items()}
    per_slot = 4 * config.num_heads * config.head_dim
    local = config.local_layers or (config.window > 0,) * config.num_layers
    windows = [config.window if own else 0 for own in local]
    weights = float(sum(matrices.values()))
    layers = [(weights, per_slot * _mean_seen(config, length, window)) for window in windows]
    if last_only and config.read_out != "mean":
        everywhere = matrices["attention.key"] + matrices["attention.value"]
        seen = min(windows[-1] or length, length)
        layers[-1] = (everywhere + (weights - everywhere) / length, per_slot * seen / length)
    return layers


def _mean_seen(config: ModelConfig, length: int, window: int) -> float:
    """Return the mean number of slots that a slot of a document attends to, itself included."""
    if config.bidirectional:
        return length
    full = min(window or length, length)
    # The first `full` slots attend to 1, 2, ... slots, all others to `full`.
    return (full * (full + 1) / 2 + (length - full) * full) / length


def training_memory(
    config: ModelConfig,
    *,
    adapt: str,
    trainable: int,
    param_dtype: str,
    compute_dtype: str,
    optimizer: str,
    tokens: float,
    longest: int,
    remat: str = "none",
    logits: bool = False,
    last_layers: int = LAST_LAYERS,
    average: bool = False,
) -> dict[str, int]:
    """Estimate the memory of a training step in bytes, as if everything were on one device.

    'parameters' have `param_dtype`, adapters float32. Each trained parameter has a float32 gradient
    and, under 'optimizer', two float32 moments (Adafactor: about one number per row and column,
    not counted) and its float32 average, if one is kept. These three are exact up to a
    class head.

    'activations' is what the backward pass of a microbatch needs. Per token, a layer keeps the
    inputs of its matrices and attention, 3 D + 2 Q + 2 K + 2 F (gated: 4 F) in the compute dtype,
    2 D for each norm in float32, and the attention scores before and after the softmax,
    2 H * longest in float32. With remat 'block' a layer keeps only its input D, and one layer at a
    time the rest; with 'dots' also the outputs of projections, 2 D + Q + 2 K + F (gated: 2 F). The
    layer in which the backward pass currently is needs as much again for cotangents. Frozen lower
    layers keep nothing. Language-model logits are kept three times in float32. Compiled programs
    for CPU were within a factor of 2 of gradients and activations together; attention that never
    materialises its scores needs less.

    Args:
      config: the model.
      adapt: what is trained, as in `trainable_parameters`.
      trainable: number of trained parameters, from `trainable_parameters`.
      param_dtype: 'float32' or 'bfloat16'.
      compute_dtype: 'float32' or 'bfloat16'.
      optimizer: 'adam', 'adamw' or 'adafactor'.
      tokens: tokens of a microbatch, padding included.
      longest: slots of a row, the length of the attention scores.
      remat: one of `config.REMATS`.
      logits: whether a language model is trained rather than a classifier.
      last_layers: number of blocks that 'last_layers' trains.
      average: whether the parameters are averaged (`train.ema`).

    Returns:
      Bytes of 'parameters', 'gradients', 'optimizer' and 'activations', and their 'total'.

    Raises:
      InputError: for an unknown `adapt` or `remat`.
    """
    if adapt not in ADAPTS:
        raise errors.unknown("adapt", adapt, ADAPTS)
    if remat not in REMATS:
        raise errors.unknown("remat", remat, REMATS)
    adapters = trainable if adapt == "lora" else 0
    width = _WIDTHS[compute_dtype]
    layers = {"probe": 0, "last_layers": min(last_layers, config.num_layers)}.get(
        adapt, config.num_layers
    )
    layer = _kept_by_layer(config, longest, width)
    outputs = width * _outputs(config) if remat == "dots" else 0
    kept = layers * layer if remat == "none" else layer + layers * outputs
    cotangents = layer if layers else 0
    per_token = max(kept, layer) + cotangents + layers * width * config.d_model
    per_token += logits * 3 * 4 * config.vocab_size
    memory = {
        "parameters": _WIDTHS[param_dtype] * config.num_parameters() + 4 * adapters,
        "gradients": 4 * trainable,
        "optimizer": 4 * trainable * (average + (0 if optimizer == "adafactor" else 2)),
        "activations": int(tokens * per_token),
    }
    return memory | {"total": sum(memory.values())}


def _kept_by_layer(config: ModelConfig, longest: int, width: int) -> int:
    """Return the bytes that a layer keeps per token; `width` is that of the compute dtype."""
    if isinstance(config, ImageConfig):
        return width * -(-config.image_activations() // longest)
    d, f = config.d_model, config.d_mlp
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    norms = (1 if config.shared_norm else 2) + 2 * config.post_norms
    computed = 2 * d + 2 * queries + 2 * keys + (4 if config.gated_mlp else 2) * f
    return width * computed + 4 * (2 * norms * d + 2 * config.num_heads * longest)


def _outputs(config: ModelConfig) -> int:
    """Return how many numbers a layer's projections produce per token."""
    return sum(outputs for _, outputs in config.projections().values())


def devices_needed(total: int, device: Device) -> int | None:
    """Return how many devices hold `total` bytes evenly sharded, rounded up to a power of two.

    None if there is only one device, and it is too small.
    """
    needed = math.ceil(total / (USABLE * device.memory * GIB))
    if device.alone and needed > 1:
        return None
    return 1 << (max(needed, 1) - 1).bit_length()
