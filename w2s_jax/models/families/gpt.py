"""Families with LayerNorm and plain MLPs: GPT-2, GPT-NeoX (Pythia), OPT and Phi.

Config keys, tensor names and the computation are those of transformers' classes of these names.
"""

from typing import Any

from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families import views as v
from w2s_jax.models.families.base import Family, TensorView
from w2s_jax.models.families.reading import (
    HF,
    MOST_LAYERS,
    activation,
    activation_to_hf,
    common_to_hf,
    flag,
    integer,
    number,
    refusal,
    require,
    rope,
    rope_to_hf,
    sizes,
)


def _gpt2_config(hf: HF) -> ModelConfig:
    require(hf, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    d, heads = integer(hf, "n_embd"), integer(hf, "n_head")
    if d % heads:
        raise refusal("n_head", heads, f"a divisor of n_embd = {d}")
    renamed: dict[str, Any] = {
        "hidden_size": d,
        "num_attention_heads": heads,
        "num_hidden_layers": integer(hf, "n_layer", most=MOST_LAYERS),
        "max_position_embeddings": integer(hf, "n_positions", 1024),
    }
    for option in ("vocab_size", "initializer_range", "quantization_config"):
        renamed[option] = hf.get(option)
    return ModelConfig(
        name="gpt2",
        family="gpt2",
        d_mlp=integer(hf, "n_inner", 4 * d),
        norm_epsilon=number(hf, "layer_norm_epsilon", 1e-5),
        activation=activation(hf, "activation_function", "gelu_new"),
        query_scalar=0.0 if flag(hf, "scale_attn_weights", True) else 1.0,
        tied_embeddings=flag(hf, "tie_word_embeddings", True),
        **sizes(renamed),
    )


def _gpt2_to_hf(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.d_model,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.d_mlp,
        "activation_function": activation_to_hf(config.activation, "gelu_new"),
        "layer_norm_epsilon": config.norm_epsilon,
        "scale_attn_weights": config.query_scalar == 0,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied_embeddings,
    }


def _gpt2_views(config: ModelConfig) -> dict[str, TensorView]:
    d, f, heads, size = config.d_model, config.d_mlp, config.num_heads, config.head_dim
    block = "transformer.h.{layer}."

    def conv(name: str, rows_in: int, rows_out: int) -> v.Views:
        # GPT-2 stores kernels as [in, out].
        return {
            "kernel": TensorView(f"{block}{name}.weight", (rows_in, rows_out)),
            "bias": v.vector(f"{block}{name}.bias", rows_out),
        }

    def fused(part: int) -> v.Views:
        name = f"{block}attn.c_attn"
        return {
            "kernel": TensorView(
                f"{name}.weight", (d, 3 * d), (d, 3, heads, size), (None, part, None, None)
            ),
            "bias": TensorView(f"{name}.bias", (3 * d,), (3, heads, size), (part, None, None)),
        }

    out = {
        "kernel": TensorView(f"{block}attn.c_proj.weight", (d, d), (heads, size, d)),
        "bias": v.vector(f"{block}attn.c_proj.bias", d),
    }
    tree = {
        "embedding": TensorView("transformer.wte.weight", (config.vocab_size, d)),
        "position_embedding": TensorView("transformer.wpe.weight", (config.max_positions, d)),
        "blocks": {
            "attention_norm": v.norm(f"{block}ln_1", d),
            "attention": {"query": fused(0), "key": fused(1), "value": fused(2), "out": out},
            "mlp_norm": v.norm(f"{block}ln_2", d),
            "mlp": {"up": conv("mlp.c_fc", d, f), "down": conv("mlp.c_proj", f, d)},
        },
        "final_norm": v.norm("transformer.ln_f", d),
        **v.unembedding("lm_head", config),
    }
    return v.flatten(config, tree)


def _gpt_neox_config(hf: HF) -> ModelConfig:
    bias = flag(hf, "attention_bias", True)
    # This family has neither option, but transformers would apply head_dim in the rotation.
    shape = sizes({**hf, "head_dim": None, "num_key_value_heads": None})
    size = shape["head_dim"]
    require(hf, head_dim=size)
    return ModelConfig(
        name="gpt_neox",
        family="gpt_neox",
        d_mlp=integer(hf, "intermediate_size"),
        norm_epsilon=number(hf, "layer_norm_eps", 1e-5),
        activation=activation(hf, "hidden_act", "gelu"),
        parallel_residual=flag(hf, "use_parallel_residual", True),
        qkv_bias=bias,
        out_bias=bias,
        tied_embeddings=flag(hf, "tie_word_embeddings", False),
        **shape,
        **rope(hf, size, theta_key="rotary_emb_base", fraction=0.25, fraction_key="rotary_pct"),
    )


def _gpt_neox_to_hf(config: ModelConfig) -> dict[str, Any]:
    hf = common_to_hf(config, "GPTNeoXForCausalLM", "gpt_neox") | rope_to_hf(config)
    del hf["num_key_value_heads"], hf["head_dim"]
    return hf | {
        "rotary_emb_base": hf.pop("rope_theta"),
        "rotary_pct": config.rope_fraction,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": activation_to_hf(config.activation, "gelu_new"),
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": config.qkv_bias,
    }


def _gpt_neox_views(config: ModelConfig) -> dict[str, TensorView]:
    d, f, heads, size = config.d_model, config.d_mlp, config.num_heads, config.head_dim
    block = "gpt_neox.layers.{layer}."

    def fused(part: int) -> v.Views:
        # Fused by head, with query, key and value within each head.
        name = f"{block}attention.query_key_value"
        return {
            "kernel": TensorView(
                f"{name}.weight",
                (3 * d, d),
                (heads, 3, size, d),
                (None, part, None, None),
                (2, 0, 1),
            ),
            "bias": TensorView(f"{name}.bias", (3 * d,), (heads, 3, size), (None, part, None)),
        }

    tree = {
        "embedding": TensorView("gpt_neox.embed_in.weight", (config.vocab_size, d)),
        "blocks": {
            "attention_norm": v.norm(f"{block}input_layernorm", d),
            "attention": {
                "query": fused(0),
                "key": fused(1),
                "value": fused(2),
                "out": v.heads_out(f"{block}attention.dense", config),
            },
            "mlp_norm": v.norm(f"{block}post_attention_layernorm", d),
            "mlp": {
                "up": v.linear(f"{block}mlp.dense_h_to_4h", d, f),
                "down": v.linear(f"{block}mlp.dense_4h_to_h", f, d),
            },
        },
        "final_norm": v.norm("gpt_neox.final_layer_norm", d),
        **v.unembedding("embed_out", config),
    }
    return v.flatten(config, tree)


def _opt_config(hf: HF) -> ModelConfig:
    d = integer(hf, "hidden_size")
    require(
        hf,
        do_layer_norm_before=True,
        _remove_final_layer_norm=False,
        layer_norm_elementwise_affine=True,
        word_embed_proj_dim=d,
    )
    bias = flag(hf, "enable_bias", True)
    shape = sizes({**hf, "head_dim": None, "num_key_value_heads": None})
    return ModelConfig(
        name="opt",
        family="opt",
        d_mlp=integer(hf, "ffn_dim"),
        position_offset=2,
        activation=activation(hf, "activation_function", "relu"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        tied_embeddings=flag(hf, "tie_word_embeddings", True),
        **shape | {"init_std": number(hf, "init_std", 0.02)},
    )


def _opt_to_hf(config: ModelConfig) -> dict[str, Any]:
    hf = common_to_hf(config, "OPTForCausalLM", "opt")
    del hf["num_key_value_heads"], hf["head_dim"]
    return hf | {
        "ffn_dim": hf.pop("intermediate_size"),
        "init_std": hf.pop("initializer_range"),
        "word_embed_proj_dim": config.d_model,
        "activation_function": activation_to_hf(config.activation, "gelu_new"),
        "enable_bias": config.qkv_bias,
        "do_layer_norm_before": True,
    }


def _opt_views(config: ModelConfig) -> dict[str, TensorView]:
    d, f = config.d_model, config.d_mlp
    block = "model.decoder.layers.{layer}."
    rows = config.max_positions + config.position_offset
    tree = {
        "embedding": TensorView("model.decoder.embed_tokens.weight", (config.vocab_size, d)),
        "position_embedding": TensorView("model.decoder.embed_positions.weight", (rows, d)),
        "blocks": {
            "attention_norm": v.norm(f"{block}self_attn_layer_norm", d),
            "attention": v.separate_attention(f"{block}self_attn", config, "out_proj"),
            "mlp_norm": v.norm(f"{block}final_layer_norm", d),
            "mlp": {
                "up": v.linear(f"{block}fc1", d, f),
                "down": v.linear(f"{block}fc2", f, d),
            },
        },
        "final_norm": v.norm("model.decoder.final_layer_norm", d),
        **v.unembedding("lm_head", config),
    }
    return v.flatten(config, tree)


def _phi_config(hf: HF) -> ModelConfig:
    shape = sizes(hf)
    return ModelConfig(
        name="phi",
        family="phi",
        d_mlp=integer(hf, "intermediate_size"),
        norm_epsilon=number(hf, "layer_norm_eps", 1e-5),
        activation=activation(hf, "hidden_act", "gelu_new"),
        parallel_residual=True,
        shared_norm=True,
        qk_norm=_phi_qk_norm(hf, shape),
        tied_embeddings=flag(hf, "tie_word_embeddings", False),
        unembedding_bias=True,
        **shape,
        **rope(hf, shape["head_dim"], fraction=0.5, fraction_key="partial_rotary_factor"),
    )


def _phi_qk_norm(hf: HF, shape: dict[str, Any]) -> bool:
    # In transformers these norms have size hidden_size / heads, whatever head_dim is.
    normed = flag(hf, "qk_layernorm", False)
    if normed and shape["head_dim"] * shape["num_heads"] != shape["d_model"]:
        raise refusal("qk_layernorm", normed, "False where head_dim * heads is not hidden_size")
    return normed


def _phi_to_hf(config: ModelConfig) -> dict[str, Any]:
    return {
        **common_to_hf(config, "PhiForCausalLM", "phi"),
        **rope_to_hf(config),
        "partial_rotary_factor": config.rope_fraction,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": activation_to_hf(config.activation, "gelu_new"),
        "qk_layernorm": config.qk_norm,
    }


def _phi_views(config: ModelConfig) -> dict[str, TensorView]:
    d, f = config.d_model, config.d_mlp
    block = "model.layers.{layer}."
    attention = v.separate_attention(f"{block}self_attn", config, "dense")
    if config.qk_norm:
        attention["query_norm"] = v.norm(f"{block}self_attn.q_layernorm", config.head_dim)
        attention["key_norm"] = v.norm(f"{block}self_attn.k_layernorm", config.head_dim)
    tree = {
        "embedding": TensorView("model.embed_tokens.weight", (config.vocab_size, d)),
        "blocks": {
            "attention_norm": v.norm(f"{block}input_layernorm", d),
            "attention": attention,
            "mlp": {
                "up": v.linear(f"{block}mlp.fc1", d, f),
                "down": v.linear(f"{block}mlp.fc2", f, d),
            },
        },
        "final_norm": v.norm("model.final_layernorm", d),
        **v.unembedding("lm_head", config),
    }
    return v.flatten(config, tree)


#: Causal masks and rotary tables stored by old versions, and heads of tied models.
_IGNORED = (r"(.*\.)?rotary_emb\.inv_freq", r"(.*\.)?masked_bias", r"lm_head\.weight")

FAMILIES = (
    Family(
        name="gpt2",
        model_types=("gpt2",),
        architectures=("GPT2LMHeadModel", "GPT2Model"),
        classifier="GPT2ForSequenceClassification",
        classifier_head="score.weight",
        to_config=_gpt2_config,
        to_hf=_gpt2_to_hf,
        views=_gpt2_views,
        ignored=(r"(transformer\.)?h\.\d+\.attn\.bias", *_IGNORED),
        prefixes=("transformer.", ""),
    ),
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        architectures=("GPTNeoXForCausalLM", "GPTNeoXModel"),
        classifier="GPTNeoXForSequenceClassification",
        classifier_head="score.weight",
        to_config=_gpt_neox_config,
        to_hf=_gpt_neox_to_hf,
        views=_gpt_neox_views,
        ignored=(r"(gpt_neox\.)?layers\.\d+\.attention\.bias", r"embed_out\.weight", *_IGNORED),
        prefixes=("gpt_neox.", ""),
        old_names=(("embed_out.weight", "lm_head.weight"),),
    ),
    Family(
        name="opt",
        model_types=("opt",),
        architectures=("OPTForCausalLM", "OPTModel"),
        classifier="OPTForSequenceClassification",
        classifier_head="score.weight",
        to_config=_opt_config,
        to_hf=_opt_to_hf,
        views=_opt_views,
        ignored=_IGNORED,
        prefixes=("model.decoder.", "decoder.", ""),
    ),
    Family(
        name="phi",
        model_types=("phi",),
        architectures=("PhiForCausalLM", "PhiModel"),
        classifier="PhiForSequenceClassification",
        classifier_head="score.weight",
        to_config=_phi_config,
        to_hf=_phi_to_hf,
        views=_phi_views,
        ignored=_IGNORED,
        prefixes=("model.", ""),
    ),
)
