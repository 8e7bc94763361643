"""Tiny models in Hugging Face's layout whose files depend on no library's defaults and no dice."""

import itertools
import json

import numpy as np
from safetensors.numpy import save_file

_GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 259, "n_embd": 8,
    "n_layer": 1, "n_head": 2, "n_positions": 64, "n_inner": None,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
    "bos_token_id": 257, "eos_token_id": 257, "torch_dtype": "float32",
}  # fmt: skip
_LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 259,
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "rope_scaling": None, "hidden_act": "silu", "attention_bias": False,
    "mlp_bias": False, "tie_word_embeddings": False, "bos_token_id": 257, "eos_token_id": 257,
    "torch_dtype": "float32",
}  # fmt: skip
_BERT = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 259,
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    "hidden_act": "gelu", "position_embedding_type": "absolute", "pad_token_id": 0,
    "torch_dtype": "float32",
}  # fmt: skip


def _gpt2_shapes():
    shapes = {"wte.weight": (259, 8), "wpe.weight": (64, 8)}
    shapes |= _norm("h.0.ln_1", 8) | _norm("h.0.ln_2", 8) | _norm("ln_f", 8)
    # GPT-2 stores these as (in, out).
    for name, shape in {
        "attn.c_attn": (8, 24), "attn.c_proj": (8, 8), "mlp.c_fc": (8, 32), "mlp.c_proj": (32, 8)
    }.items():  # fmt: skip
        shapes |= {f"h.0.{name}.weight": shape, f"h.0.{name}.bias": shape[1:]}
    return {f"transformer.{name}": shape for name, shape in shapes.items()}


def _llama_shapes():
    shapes = {"model.embed_tokens.weight": (259, 32), "model.norm.weight": (32,)}
    for layer in range(2):
        for name, shape in {
            "input_layernorm": (32,), "post_attention_layernorm": (32,),
            "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32),
            "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32), "mlp.gate_proj": (48, 32),
            "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48),
        }.items():  # fmt: skip
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return shapes | {"lm_head.weight": (259, 32)}


def _bert_shapes():
    shapes = {
        "embeddings.word_embeddings.weight": (259, 16),
        "embeddings.position_embeddings.weight": (64, 16),
        "embeddings.token_type_embeddings.weight": (2, 16),
    } | _norm("embeddings.LayerNorm", 16)
    for layer in range(2):
        own = f"encoder.layer.{layer}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _dense(f"{own}attention.{name}", 16, 16)
        shapes |= _norm(f"{own}attention.output.LayerNorm", 16)
        shapes |= _dense(f"{own}intermediate.dense", 32, 16) | _dense(f"{own}output.dense", 16, 32)
        shapes |= _norm(f"{own}output.LayerNorm", 16)
    return {f"bert.{name}": shape for name, shape in shapes.items()}


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _dense(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


_MODELS = {
    "gpt2": (_GPT2, _gpt2_shapes),
    "llama": (_LLAMA, _llama_shapes),
    "bert": (_BERT, _bert_shapes),
}


def write_model(model_type, folder):
    """Writes 'gpt2', 'llama' or 'bert' of 259 tokens, each tensor a number; returns the folder."""
    record, shapes = _MODELS[model_type]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(record))
    numbers = itertools.count(1)
    tensors = {
        name: np.full(shape, next(numbers) / 64, np.float32) for name, shape in shapes().items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
