"""Gemma 1, 2 and 3 (text): Llama's tensors, with different norms, scales and windows.

Config keys, tensor names and the computation are those of transformers' classes of these names.
"""

from typing import Any

from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families.base import Family
from w2s_jax.models.families.llama import family
from w2s_jax.models.families.reading import (
    HF,
    activation,
    activation_to_hf,
    check_keys,
    common_to_hf,
    flag,
    integer,
    layer_types,
    local_layers,
    number,
    refusal,
    require,
    rope,
    rope_to_hf,
    section,
    sizes,
)


def _shared(hf: HF, name: str, kv_heads: int) -> dict[str, Any]:
    """Return the fields that all three families read from the same keys."""
    if hf.get("use_bidirectional_attention"):
        raise refusal("use_bidirectional_attention", hf["use_bidirectional_attention"], "False")
    bias = flag(hf, "attention_bias", False)
    return sizes(hf, head_dim=256, kv_heads=kv_heads) | dict(
        name=name,
        family=name,
        d_mlp=integer(hf, "intermediate_size"),
        norm="rmsnorm",
        norm_epsilon=number(hf, "rms_norm_eps", 1e-6),
        gated_mlp=True,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=False,
        tied_embeddings=flag(hf, "tie_word_embeddings", True),
        unit_offset=True,
        scaled_embeddings=True,
    )


def _shared_to_hf(config: ModelConfig, architecture: str, model_type: str) -> dict[str, Any]:
    name = activation_to_hf(config.activation, "gelu_pytorch_tanh")
    return {
        **common_to_hf(config, architecture, model_type),
        **rope_to_hf(config),
        "rms_norm_eps": config.norm_epsilon,
        "hidden_act" if model_type == "gemma" else "hidden_activation": name,
        "attention_bias": config.qkv_bias,
    }


def _gemma_config(hf: HF) -> ModelConfig:
    # In the first released files, gelu means its tanh form.
    act = activation(hf, "hidden_act", "gelu_pytorch_tanh")
    fields = _shared(hf, "gemma", 16)
    return ModelConfig(
        activation="gelu_tanh" if act == "gelu" else act, **fields, **rope(hf, fields["head_dim"])
    )


def _gemma_to_hf(config: ModelConfig) -> dict[str, Any]:
    return _shared_to_hf(config, "GemmaForCausalLM", "gemma")


def _later(hf: HF, name: str, period: int, softcaps: tuple[float, float]) -> dict[str, Any]:
    """Return the fields that Gemma 2 and 3 read from the same keys.

    Args:
      hf: the content of config.json.
      name: the family.
      period: without `layer_types`, every period-th layer has no window.
      softcaps: defaults for absent keys of attention and logits; null means none.
    """
    fields = _shared(hf, name, 4)
    softcap = {
        ours: default if theirs not in hf else number(hf, theirs, 0.0)
        for ours, theirs, default in (
            ("attention_softcap", "attn_logit_softcapping", softcaps[0]),
            ("logit_softcap", "final_logit_softcapping", softcaps[1]),
        )
    }
    layers = range(1, fields["num_layers"] + 1)
    return (
        fields
        | softcap
        | dict(
            activation=activation(hf, "hidden_activation", "gelu_pytorch_tanh"),
            query_scalar=float(integer(hf, "query_pre_attn_scalar", 256)),
            post_norms=True,
            window=integer({"sliding_window": 4096, **hf}, "sliding_window"),
            local_layers=local_layers(hf, [i % period > 0 for i in layers]),
        )
    )


def _later_to_hf(config: ModelConfig, architecture: str, model_type: str) -> dict[str, Any]:
    return _shared_to_hf(config, architecture, model_type) | {
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
        "query_pre_attn_scalar": int(config.query_scalar),
        "sliding_window": config.window,
        "layer_types": layer_types(config.local_layers),
    }


def _gemma2_config(hf: HF) -> ModelConfig:
    fields = _later(hf, "gemma2", 2, (50.0, 30.0))
    return ModelConfig(**fields | rope(hf, fields["head_dim"]))


def _gemma2_to_hf(config: ModelConfig) -> dict[str, Any]:
    return _later_to_hf(config, "Gemma2ForCausalLM", "gemma2")


def _gemma3_config(hf: HF) -> ModelConfig:
    period = integer(hf, "sliding_window_pattern", integer(hf, "_sliding_window_pattern", 6))
    # transformers reads this option but does not apply it; no released model has it.
    require(hf, attn_logit_softcapping=None)
    fields = _later(hf, "gemma3", period, (0.0, 0.0))
    nested = section(hf, "rope_parameters")
    check_keys("rope_parameters", nested, ("full_attention", "sliding_attention"))
    full = {**section(nested, "full_attention"), **section(hf, "rope_scaling")}
    local = section(nested, "sliding_attention")
    check_keys("rope_parameters.sliding_attention", local, ("rope_type", "rope_theta"))
    # Only layers without a window may have scaled frequencies.
    require(local, rope_type="default")
    flat = {**hf, "rope_parameters": full, "rope_scaling": None}
    return ModelConfig(
        qk_norm=True,
        local_rope_theta=number(local, "rope_theta", number(hf, "rope_local_base_freq", 1e4)),
        **fields,
        **rope(flat, fields["head_dim"], theta=1e6),
    )


def _gemma3_to_hf(config: ModelConfig) -> dict[str, Any]:
    hf = _later_to_hf(config, "Gemma3ForCausalLM", "gemma3_text")
    return hf | {"rope_local_base_freq": config.local_rope_theta}


FAMILIES: tuple[Family, ...] = (
    family("gemma", "gemma", "Gemma", _gemma_config, _gemma_to_hf),
    family("gemma2", "gemma2", "Gemma2", _gemma2_config, _gemma2_to_hf),
    family(
        "gemma3",
        "gemma3_text",
        "Gemma3",
        _gemma3_config,
        _gemma3_to_hf,
        classifier="Gemma3TextForSequenceClassification",
    ),
)
