"""Model configuration: `ModelConfig`, and the embedded models. Imports no JAX."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from w2s_jax.config import READ_OUTS
from w2s_jax.core import errors

NORMS = ("layernorm", "rmsnorm")
POSITIONS = ("learned", "rope", "none")
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")
ROPE_SCALINGS = ("none", "linear", "llama3")

#: Of a model that is features of documents: it has no network, just heads.
FEATURES_FAMILY = "features"

# Fields that must keep their defaults in the other kind of model.
_ENCODER_ONLY = ("token_types", "pooler")
_DECODER_ONLY = (
    *("parallel_residual", "shared_norm", "tied_embeddings", "window", "local_layers"),
    *("logit_softcap", "post_norms", "scaled_embeddings", "unembedding_bias"),
)


def _late(default: Any) -> Any:
    """A field that `to_dict` omits at its default, so that earlier fingerprints stay the same."""
    return dataclasses.field(default=default, metadata={"late": True})


@dataclass(frozen=True)
class ModelConfig:
    """A transformer: a decoder, or with `bidirectional` an encoder.

    Attributes:
      name: name shown to users.
      vocab_size: number of token ids.
      max_positions: maximum document length with learned positions; otherwise the length that a
        pretrained model was trained on, which is not a limit (0: unknown).
      d_model: width of the residual stream.
      num_layers: number of blocks.
      num_heads: number of query heads.
      head_dim: size of a head.
      d_mlp: width of the MLP.
      num_kv_heads: number of key/value heads; fewer than `num_heads` means grouped queries.
      norm: 'layernorm' (with bias) or 'rmsnorm'; computed in float32.
      norm_epsilon: added to the variance.
      positions: 'learned' (an embedding per slot), 'rope' (rotary, half-split) or 'none'.
      rope_theta: rotary base.
      rope_fraction: leading share of each head's dimensions that is rotated.
      activation: activation of the MLP.
      gated_mlp: act(x W_gate) * (x W_up) instead of act(x W_up).
      parallel_residual: attention and MLP read the same input, and both outputs are added to it.
      shared_norm: a parallel block has one norm (Phi) instead of two (GPT-NeoX).
      qkv_bias: query, key and value projections have biases.
      out_bias: the output projection of attention has a bias.
      mlp_bias: the projections of the MLP have biases.
      tied_embeddings: the unembedding is the transposed embedding.
      init_std: standard deviation of the normal initialisation; projections back into the residual
        stream are scaled by 1/sqrt(2 * num_layers) as in GPT-2.
      family: name in `models.families.FAMILIES` ('': an embedded model; 'features': see
        `features_model`).
      position_offset: unused leading rows of the position embedding (OPT has 2).
      rope_scaling: 'none', 'linear' (frequencies are divided by `rope_factor`) or 'llama3' (only
        low frequencies are divided: those with fewer than `rope_low_factor` turns in
        `rope_original_length` positions; those with more than `rope_high_factor` turns are
        unchanged, and those in between are interpolated).
      rope_factor: see `rope_scaling`.
      rope_low_factor: see `rope_scaling`.
      rope_high_factor: see `rope_scaling`.
      rope_original_length: see `rope_scaling`.
      window: number of slots that a slot attends to, itself included (0: all before it).
      local_layers: for each layer, whether `window` applies; (): it applies to all.
      local_rope_theta: rotary base, without scaling, of the layers in `local_layers` (0: the same
        as the others).
      query_scalar: attention scores are divided by its square root (0: `head_dim`).
      attention_softcap: c in c tanh(x / c), applied to attention scores (0: none).
      logit_softcap: c in c tanh(x / c), applied to next-token logits (0: none).
      qk_norm: queries and keys are normalised per head before rotation.
      unit_offset: RMSNorm multiplies by 1 + scale (Gemma).
      post_norms: the outputs of attention and MLP are normalised before they are added (Gemma 2).
      scaled_embeddings: token embeddings are multiplied by sqrt(d_model) (Gemma).
      unembedding_bias: next-token logits have a bias (Phi).
      bidirectional: an encoder (BERT): a slot attends to its whole segment; norms come after
        attention and MLP, and after the embeddings instead of at the end; no unembedding.
      token_types: rows of an encoder's token-type embedding, of which only the first is used.
      pooler: has a dense layer with tanh on the first token's hidden state (BERT).
      read_out: what a head reads of a text: the hidden state of its 'last' or 'first' token, the
        'mean' over its tokens, or the 'pooler' applied to the first.
      lora_rank: rank of low-rank adapters (0: none); see `models.lora`.
      lora_alpha: adapters are scaled by lora_alpha / lora_rank.
      lora_targets: the projections with adapters: 'attention.query', 'mlp.up', ...
    """

    name: str
    vocab_size: int
    max_positions: int
    d_model: int
    num_layers: int
    num_heads: int
    head_dim: int
    d_mlp: int
    num_kv_heads: int
    norm: str = "layernorm"
    norm_epsilon: float = 1e-5
    positions: str = "learned"
    rope_theta: float = 10_000.0
    rope_fraction: float = 1.0
    activation: str = "gelu_tanh"
    gated_mlp: bool = False
    parallel_residual: bool = False
    shared_norm: bool = False
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    tied_embeddings: bool = True
    init_std: float = 0.02
    family: str = _late("")
    position_offset: int = _late(0)
    rope_scaling: str = _late("none")
    rope_factor: float = _late(1.0)
    rope_low_factor: float = _late(1.0)
    rope_high_factor: float = _late(4.0)
    rope_original_length: int = _late(0)
    window: int = _late(0)
    local_layers: tuple[bool, ...] = _late(())
    local_rope_theta: float = _late(0.0)
    query_scalar: float = _late(0.0)
    attention_softcap: float = _late(0.0)
    logit_softcap: float = _late(0.0)
    qk_norm: bool = _late(False)
    unit_offset: bool = _late(False)
    post_norms: bool = _late(False)
    scaled_embeddings: bool = _late(False)
    unembedding_bias: bool = _late(False)
    bidirectional: bool = _late(False)
    token_types: int = _late(0)
    pooler: bool = _late(False)
    read_out: str = _late("last")
    lora_rank: int = _late(0)
    lora_alpha: float = _late(0.0)
    lora_targets: tuple[str, ...] = _late(())

    def __post_init__(self) -> None:
        # JSON has no tuples, and a config must be hashable.
        object.__setattr__(self, "local_layers", tuple(self.local_layers))
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        for field, allowed in (
            ("norm", NORMS),
            ("positions", POSITIONS),
            ("activation", ACTIVATIONS),
            ("rope_scaling", ROPE_SCALINGS),
            ("read_out", READ_OUTS),
        ):
            if getattr(self, field) not in allowed:
                raise errors.unknown(f"model.{field}", getattr(self, field), allowed)
        if self.shared_norm and not self.parallel_residual:
            raise errors.InputError("model.shared_norm: True requires parallel_residual")
        if self.num_heads % self.num_kv_heads:
            raise errors.InputError(
                f"model.num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}"
            )
        if self.post_norms and self.parallel_residual:
            raise errors.InputError("model.post_norms: True is not possible with parallel_residual")
        if self.local_layers and len(self.local_layers) != self.num_layers:
            raise errors.InputError(
                f"model.local_layers: {len(self.local_layers)} entries, but there are "
                f"{self.num_layers} layers"
            )
        self._check_encoder()

    def _check_encoder(self) -> None:
        """Raise an `InputError` for fields that encoders, or decoders, do not support."""
        kind = "an encoder" if self.bidirectional else "a decoder"
        for field in _DECODER_ONLY if self.bidirectional else _ENCODER_ONLY:
            value, allowed = getattr(self, field), self.__dataclass_fields__[field].default
            if value != allowed:
                raise errors.InputError(f"model.{field}: {value!r}; allowed in {kind}: {allowed!r}")
        if self.read_out == "pooler" and not self.pooler:
            raise errors.InputError(
                f"model.read_out: 'pooler', but {self.name} has no pooler; allowed: "
                f"{', '.join(name for name in READ_OUTS if name != 'pooler')}"
            )

    @property
    def is_features(self) -> bool:
        """True if there is no network, but features that were computed elsewhere."""
        return self.family == FEATURES_FAMILY

    def num_parameters(self) -> int:
        """Return the size of the backbone: with embeddings, without heads and adapters."""
        if self.is_features:
            return 0
        d, hd = self.d_model, self.head_dim
        queries, keys = self.num_heads * hd, self.num_kv_heads * hd
        vectors = 2 if self.norm == "layernorm" else 1
        attention = d * (queries + 2 * keys) + queries * d
        attention += self.qkv_bias * (queries + 2 * keys) + self.out_bias * d
        attention += self.qk_norm * 2 * hd * vectors
        mlp = (3 if self.gated_mlp else 2) * d * self.d_mlp
        mlp += self.mlp_bias * (d + self.d_mlp * (2 if self.gated_mlp else 1))
        norm = d * vectors
        norms_per_block = (1 if self.shared_norm else 2) + 2 * self.post_norms
        embeddings = self.vocab_size * d * (1 if self.tied_embeddings else 2)
        embeddings += self.unembedding_bias * self.vocab_size
        embeddings += self.token_types * d + self.pooler * (d + 1) * d
        if self.positions == "learned":
            embeddings += (self.max_positions + self.position_offset) * d
        return embeddings + self.num_layers * (attention + mlp + norms_per_block * norm) + norm

    def with_adapters(self, rank: int, alpha: float, patterns: Sequence[str]) -> "ModelConfig":
        """Return the model with low-rank adapters.

        Args:
          rank: rank of the adapters.
          alpha: the adapters are scaled by alpha / rank.
          patterns: the projections that have adapters: names or shell patterns ('attention.*').

        Raises:
          InputError: if rank or alpha is not positive, or a pattern matches nothing.
        """
        if rank < 1:
            raise errors.InputError(f"lora.rank: {rank!r}; allowed: an integer of at least 1")
        if not 0 < alpha < float("inf"):
            raise errors.InputError(f"lora.alpha: {alpha!r}; allowed: a number above 0")
        names = self.projections()
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise errors.unknown("lora.targets", pattern, names)
        targets = [n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in patterns)]
        if not targets:
            raise errors.InputError(f"lora.targets: (); allowed: one or more of {', '.join(names)}")
        return dataclasses.replace(
            self, lora_rank=rank, lora_alpha=float(alpha), lora_targets=tuple(targets)
        )

    def without_adapters(self) -> "ModelConfig":
        """Return the model without adapters."""
        return dataclasses.replace(self, lora_rank=0, lora_alpha=0.0, lora_targets=())

    def projections(self) -> dict[str, tuple[int, int]]:
        """Return the projections of a block by name, each as (input size, output size)."""
        d, hd = self.d_model, self.head_dim
        queries, keys = self.num_heads * hd, self.num_kv_heads * hd
        gate = {"mlp.gate": (d, self.d_mlp)} if self.gated_mlp else {}
        return {
            "attention.query": (d, queries),
            "attention.key": (d, keys),
            "attention.value": (d, keys),
            "attention.out": (queries, d),
            "mlp.up": (d, self.d_mlp),
            **gate,
            "mlp.down": (self.d_mlp, d),
        }

    def num_adapter_parameters(self) -> int:
        """Return the size of the low-rank adapters, which `num_parameters` does not include."""
        sizes = self.projections()
        each = sum(sum(sizes[name]) for name in self.lora_targets)
        return self.num_layers * self.lora_rank * each

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, without late fields that have their defaults."""
        late = {f.name: f.default for f in dataclasses.fields(self) if f.metadata.get("late")}
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }
        return {
            name: value
            for name, value in values.items()
            if name not in late or getattr(self, name) != late[name]
        }


def _gpt(name: str, d_model: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    return dict(
        name=name,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=d_model // num_heads,
        d_mlp=4 * d_model,
        init_std=d_model**-0.5,
    )


def _rotary(name: str, d_model: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    return _gpt(name, d_model, num_layers, num_heads) | dict(
        norm="rmsnorm",
        positions="rope",
        activation="silu",
        gated_mlp=True,
        d_mlp=8 * d_model // 3 // 8 * 8,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
    )


# GPT-2's init_std of 0.02 suits its width of 768. At the widths below, captions are learnt far
# better from d_model ** -0.5, which preserves the scale of each layer's output.

#: Models that need no download: the task sets their vocabulary and length, and a phase of the run
#: pretrains them. `gpt-*` have the architecture of GPT-2, `rotary-*` that of Llama.
EMBEDDED_MODELS: dict[str, dict[str, Any]] = {
    spec["name"]: spec
    for spec in (
        _gpt("gpt-d8", 8, 1, 1),
        _gpt("gpt-d16", 16, 1, 1),
        _gpt("gpt-d32", 32, 2, 2),
        _gpt("gpt-d40", 40, 2, 2),
        _gpt("gpt-d48", 48, 3, 3),
        _gpt("gpt-d64", 64, 3, 4),
        _rotary("rotary-d32", 32, 2, 2),
        _rotary("rotary-d64", 64, 3, 2),
        _rotary("rotary-d128", 128, 4, 4),
        _rotary("rotary-d256", 256, 6, 4),
    )
}


def features_model(name: str, width: int) -> ModelConfig:
    """Return what stands for a model whose features of documents, float32 [N, K, D], are given.

    Args:
      name: for users.
      width: D.
    """
    return ModelConfig(
        name=name,
        vocab_size=0,
        max_positions=0,
        d_model=width,
        num_layers=0,
        num_heads=1,
        head_dim=width,
        d_mlp=0,
        num_kv_heads=1,
        positions="none",
        family=FEATURES_FAMILY,
    )


def embedded_model(name: str, *, vocab_size: int, max_positions: int) -> ModelConfig:
    """Return the embedded model `name` for a vocabulary size and a maximum document length.

    Only learned positions have a maximum length; other models get `max_positions` 0, so that one
    pretrained model can be used for tasks of any length.

    Raises:
      InputError: for an unknown name.
    """
    if name not in EMBEDDED_MODELS:
        raise errors.unknown("model", name, EMBEDDED_MODELS)
    spec = EMBEDDED_MODELS[name]
    learned = spec.get("positions", "learned") == "learned"
    return ModelConfig(vocab_size=vocab_size, max_positions=max_positions if learned else 0, **spec)
