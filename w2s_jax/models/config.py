"""What a model is, as plain data: `ModelConfig`, and the embedded ladder. Imports no JAX."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from w2s_jax import errors

NORMS = ("layernorm", "rmsnorm")
POSITIONS = ("learned", "rope", "none")
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer.

    Attributes:
      name: what users call it.
      vocab_size, d_model, num_layers, num_heads, head_dim, d_mlp: sizes.
      max_positions: longest document for learned positions; 0: no limit.
      num_kv_heads: key/value heads; fewer than `num_heads` means grouped queries.
      norm: 'layernorm' (with bias) or 'rmsnorm'; computed in float32.
      norm_epsilon: added to the variance.
      positions: 'learned' (an embedding a slot), 'rope' (rotary, half-split) or 'none'.
      rope_theta: rotary base.
      rope_fraction: leading share of each head's dimensions that is rotated.
      activation: of the MLP.
      gated_mlp: act(x W_gate) * (x W_up) instead of act(x W_up).
      parallel_residual: attention and MLP read the same input and are added together.
      shared_norm: a parallel block has one norm, for both (Phi), instead of two (GPT-NeoX).
      qkv_bias, out_bias, mlp_bias: biases of the projections.
      tied_embeddings: the unembedding is the embedding.
      init_std: standard deviation of the normal initialisation; projections back into the residual
        stream are scaled by 1/sqrt(2 * num_layers) as in GPT-2.
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

    def __post_init__(self) -> None:
        for field, allowed in (
            ("norm", NORMS),
            ("positions", POSITIONS),
            ("activation", ACTIVATIONS),
        ):
            if getattr(self, field) not in allowed:
                raise errors.unknown(f"model.{field}", getattr(self, field), allowed)
        if self.shared_norm and not self.parallel_residual:
            raise errors.InputError("model.shared_norm: True; allowed only with parallel_residual")
        if self.num_heads % self.num_kv_heads:
            raise errors.InputError(
                f"model.num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}"
            )

    def num_parameters(self) -> int:
        """Parameters of the backbone, embeddings included and heads not, by formula."""
        d, hd = self.d_model, self.head_dim
        queries, keys = self.num_heads * hd, self.num_kv_heads * hd
        attention = d * (queries + 2 * keys) + queries * d
        attention += self.qkv_bias * (queries + 2 * keys) + self.out_bias * d
        mlp = (3 if self.gated_mlp else 2) * d * self.d_mlp
        mlp += self.mlp_bias * (d + self.d_mlp * (2 if self.gated_mlp else 1))
        norm = d * (2 if self.norm == "layernorm" else 1)
        norms_per_block = 1 if self.shared_norm else 2
        embeddings = self.vocab_size * d * (1 if self.tied_embeddings else 2)
        embeddings += self.max_positions * d if self.positions == "learned" else 0
        return embeddings + self.num_layers * (attention + mlp + norms_per_block * norm) + norm

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self)


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


# GPT-2's init_std of 0.02 suits its width of 768; at these widths captions are learnt far better
# from d_model ** -0.5, which keeps the scale of each layer's output.

#: Models that need no download: their vocabulary and length come from the task, their weights from
#: the run's own pretraining phase. `gpt-*`: GPT-2's form; `rotary-*`: Llama's form.
EMBEDDED_MODELS: dict[str, dict[str, Any]] = {
    spec["name"]: spec
    for spec in (
        _gpt("gpt-d8", 8, 1, 1),
        _gpt("gpt-d16", 16, 1, 1),
        _gpt("gpt-d32", 32, 2, 2),
        _gpt("gpt-d64", 64, 3, 4),
        _rotary("rotary-d32", 32, 2, 2),
        _rotary("rotary-d64", 64, 3, 2),
        _rotary("rotary-d128", 128, 4, 4),
        _rotary("rotary-d256", 256, 6, 4),
    )
}


def embedded_model(name: str, *, vocab_size: int, max_positions: int) -> ModelConfig:
    """The embedded model `name` for a vocabulary and a longest document.

    Only learned positions are tied to a longest document; other forms get `max_positions` 0, so
    that one pretrained model serves tasks of any length.

    Raises:
      InputError: for an unknown name.
    """
    if name not in EMBEDDED_MODELS:
        raise errors.unknown("model", name, EMBEDDED_MODELS)
    spec = EMBEDDED_MODELS[name]
    learned = spec.get("positions", "learned") == "learned"
    return ModelConfig(vocab_size=vocab_size, max_positions=max_positions if learned else 0, **spec)
