"""Building blocks for a family's views: linear layers, heads and norms in PyTorch's layout."""

from typing import Any

from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families.base import TensorView

Views = dict[str, Any]


def linear(name: str, rows_in: int, rows_out: int) -> Views:
    """Views of a PyTorch Linear, whose weight is [out, in]."""
    return {
        "kernel": TensorView(f"{name}.weight", (rows_out, rows_in), axes=(1, 0)),
        "bias": TensorView(f"{name}.bias", (rows_out,)),
    }


def vector(name: str, size: int) -> TensorView:
    """View of a tensor with one axis."""
    return TensorView(name, (size,))


def norm(name: str, size: int) -> Views:
    """Views of a LayerNorm or RMSNorm."""
    return {"scale": vector(f"{name}.weight", size), "bias": vector(f"{name}.bias", size)}


def heads_in(name: str, config: ModelConfig, count: int) -> Views:
    """Views of a Linear from the width to `count` heads."""
    d, size = config.d_model, config.head_dim
    return {
        "kernel": TensorView(
            f"{name}.weight", (count * size, d), shape=(count, size, d), axes=(2, 0, 1)
        ),
        "bias": TensorView(f"{name}.bias", (count * size,), shape=(count, size)),
    }


def heads_out(name: str, config: ModelConfig) -> Views:
    """Views of a Linear from the heads to the width."""
    d, heads, size = config.d_model, config.num_heads, config.head_dim
    return {
        "kernel": TensorView(
            f"{name}.weight", (d, heads * size), shape=(d, heads, size), axes=(1, 2, 0)
        ),
        "bias": vector(f"{name}.bias", d),
    }


def separate_attention(name: str, config: ModelConfig, out: str) -> Views:
    """Views of attention with separate Linears for query, key and value."""
    return {
        "query": heads_in(f"{name}.q_proj", config, config.num_heads),
        "key": heads_in(f"{name}.k_proj", config, config.num_kv_heads),
        "value": heads_in(f"{name}.v_proj", config, config.num_kv_heads),
        "out": heads_out(f"{name}.{out}", config),
    }


def unembedding(name: str, config: ModelConfig) -> Views:
    """Views of the language-model head."""
    return {
        "unembedding": TensorView(
            f"{name}.weight", (config.vocab_size, config.d_model), axes=(1, 0)
        ),
        "unembedding_bias": vector(f"{name}.bias", config.vocab_size),
    }


def flatten(config: ModelConfig, tree: Views) -> dict[str, TensorView]:
    """Flatten a tree of views, without the parameters that a model of this `config` lacks."""
    flat: dict[str, TensorView] = {}

    def visit(node: Views, path: tuple[str, ...]) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                visit(value, (*path, key))
            elif _exists(config, (*path, key)):
                flat[".".join((*path, key))] = value

    visit(tree, ())
    return flat


def _exists(config: ModelConfig, path: tuple[str, ...]) -> bool:
    """Return whether a model has the parameter, by the same rules as `Decoder` and `Encoder`."""
    if path[0] == "pooler":
        return config.pooler
    if path[-1] == "token_type_embedding":
        return config.token_types > 0
    if path[-1] == "unembedding":
        return not config.tied_embeddings
    if path[-1] == "unembedding_bias":
        return config.unembedding_bias
    if "gate" in path and not config.gated_mlp:
        return False
    if path[-1] != "bias":
        return True
    if path[-2].endswith("norm"):
        return config.norm == "layernorm"
    if "mlp" in path:
        return config.mlp_bias
    return config.out_bias if "out" in path else config.qkv_bias
