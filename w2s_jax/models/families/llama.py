"""Families with RMSNorm, rotary positions and gated MLPs: Llama, Mistral, Qwen2 and Qwen3.

Config keys, tensor names and the computation are those of transformers' classes of these names.
"""

from collections.abc import Callable
from typing import Any

from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families import views as v
from w2s_jax.models.families.base import Family, TensorView
from w2s_jax.models.families.reading import (
    HF,
    activation,
    activation_to_hf,
    common_to_hf,
    flag,
    integer,
    layer_types,
    local_layers,
    number,
    rope,
    rope_to_hf,
    sizes,
)


def _shared(hf: HF, family: str, **defaults: Any) -> dict[str, Any]:
    """Return the fields that the four families read from the same keys."""
    shape = sizes(hf, **defaults)
    return shape | dict(
        name=family,
        family=family,
        d_mlp=integer(hf, "intermediate_size"),
        norm="rmsnorm",
        norm_epsilon=number(hf, "rms_norm_eps", 1e-6),
        activation=activation(hf, "hidden_act", "silu"),
        gated_mlp=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        tied_embeddings=flag(hf, "tie_word_embeddings", False),
        **rope(hf, shape["head_dim"]),
    )


def _shared_to_hf(config: ModelConfig, architecture: str) -> dict[str, Any]:
    return {
        **common_to_hf(config, architecture, config.family),
        **rope_to_hf(config),
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act": activation_to_hf(config.activation, "gelu_pytorch_tanh"),
    }


def _llama_config(hf: HF) -> ModelConfig:
    bias = flag(hf, "attention_bias", False)
    changed = dict(qkv_bias=bias, out_bias=bias, mlp_bias=flag(hf, "mlp_bias", False))
    return ModelConfig(**_shared(hf, "llama") | changed)


def _llama_to_hf(config: ModelConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    return _shared_to_hf(config, "LlamaForCausalLM") | biases


def _mistral_config(hf: HF) -> ModelConfig:
    # null means no window; an absent key means the class's default.
    null = "sliding_window" in hf and hf["sliding_window"] is None
    window = 0 if null else integer(hf, "sliding_window", 4096)
    return ModelConfig(**_shared(hf, "mistral", kv_heads=8) | {"window": window})


def _mistral_to_hf(config: ModelConfig) -> dict[str, Any]:
    return _shared_to_hf(config, "MistralForCausalLM") | {"sliding_window": config.window or None}


def _qwen_window(hf: HF, num_layers: int) -> dict[str, Any]:
    """Return the fields of Qwen's optional window, for the layers from `max_window_layers` on."""
    full = {"window": 0, "local_layers": ()}
    if not flag(hf, "use_sliding_window", False) or hf.get("sliding_window", 4096) is None:
        return full
    first = number(hf, "max_window_layers", 28)
    local = local_layers(hf, [i >= first for i in range(num_layers)])
    if not any(local):
        return full
    window = integer(hf, "sliding_window", 4096)
    return {"window": window, "local_layers": () if all(local) else local}


def _qwen_to_hf(config: ModelConfig, architecture: str) -> dict[str, Any]:
    local = config.local_layers or (config.window > 0,) * config.num_layers
    return _shared_to_hf(config, architecture) | {
        "use_sliding_window": config.window > 0,
        "sliding_window": config.window or None,
        "max_window_layers": local.index(True) if any(local) else config.num_layers,
        "layer_types": layer_types(local),
    }


def _qwen2_config(hf: HF) -> ModelConfig:
    fields = _shared(hf, "qwen2", kv_heads=32)
    changed = {"qkv_bias": True} | _qwen_window(hf, fields["num_layers"])
    return ModelConfig(**fields | changed)


def _qwen2_to_hf(config: ModelConfig) -> dict[str, Any]:
    return _qwen_to_hf(config, "Qwen2ForCausalLM")


def _qwen3_config(hf: HF) -> ModelConfig:
    fields = _shared(hf, "qwen3", head_dim=128, kv_heads=32)
    bias = flag(hf, "attention_bias", False)
    changed = dict(qkv_bias=bias, out_bias=bias, qk_norm=True)
    return ModelConfig(**fields | changed | _qwen_window(hf, fields["num_layers"]))


def _qwen3_to_hf(config: ModelConfig) -> dict[str, Any]:
    return _qwen_to_hf(config, "Qwen3ForCausalLM") | {"attention_bias": config.qkv_bias}


def views(config: ModelConfig) -> dict[str, TensorView]:
    """Return the views of all families with Llama's tensor names, including Gemma's."""
    d, f = config.d_model, config.d_mlp
    block = "model.layers.{layer}."
    attention = v.separate_attention(f"{block}self_attn", config, "o_proj")
    if config.qk_norm:
        attention["query_norm"] = v.norm(f"{block}self_attn.q_norm", config.head_dim)
        attention["key_norm"] = v.norm(f"{block}self_attn.k_norm", config.head_dim)
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if config.post_norms:
        norms = {
            "attention_norm": "input_layernorm",
            "attention_post_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_post_norm": "post_feedforward_layernorm",
        }
    tree = {
        "embedding": TensorView("model.embed_tokens.weight", (config.vocab_size, d)),
        "blocks": {
            "attention": attention,
            "mlp": {
                "gate": v.linear(f"{block}mlp.gate_proj", d, f),
                "up": v.linear(f"{block}mlp.up_proj", d, f),
                "down": v.linear(f"{block}mlp.down_proj", f, d),
            },
            **{ours: v.norm(block + theirs, d) for ours, theirs in norms.items()},
        },
        "final_norm": v.norm("model.norm", d),
        **v.unembedding("lm_head", config),
    }
    return v.flatten(config, tree)


def family(
    name: str,
    model_type: str,
    stem: str,
    to_config: Callable[[HF], ModelConfig],
    to_hf: Callable[[ModelConfig], dict[str, Any]],
    classifier: str = "",
) -> Family:
    """Return a family with Llama's tensor names, whose classes begin with `stem`."""
    classifier = classifier or f"{stem}ForSequenceClassification"
    return Family(
        name=name,
        model_types=(model_type,),
        # Gemma 3's text classes have another stem than its language model.
        architectures=tuple(
            dict.fromkeys(
                (
                    f"{stem}ForCausalLM",
                    f"{stem}Model",
                    classifier.replace("ForSequenceClassification", "Model"),
                )
            )
        ),
        classifier=classifier,
        classifier_head="score.weight",
        to_config=to_config,
        to_hf=to_hf,
        views=views,
        # Rotary tables stored by old versions, and the head of a tied model.
        ignored=(r"(.*\.)?rotary_emb\.inv_freq", r"lm_head\.weight"),
        # The last one is that of classes for question answering.
        prefixes=("model.", "", "transformer."),
    )


FAMILIES = (
    family("llama", "llama", "Llama", _llama_config, _llama_to_hf),
    family("mistral", "mistral", "Mistral", _mistral_config, _mistral_to_hf),
    family("qwen2", "qwen2", "Qwen2", _qwen2_config, _qwen2_to_hf),
    family("qwen3", "qwen3", "Qwen3", _qwen3_config, _qwen3_to_hf),
)
