"""Weights of the tiny golden PyTorch models, laid out as this package's parameters."""

import json
from pathlib import Path

import numpy as np

from w2s_jax.models.config import ModelConfig


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a float32 safetensors file: an 8-byte length, a JSON header, raw data."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32"
            start, stop = (8 + size + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[start:stop], "<f4").reshape(entry["shape"])
    return tensors


def _stack(layers: list[dict]) -> dict:
    """A list of equal trees as one tree of stacked arrays."""
    first = layers[0]
    if isinstance(first, dict):
        return {key: _stack([layer[key] for layer in layers]) for key in first}
    return np.stack(layers)


def gpt2(folder: Path) -> tuple[ModelConfig, dict]:
    """GPT-2: fused query-key-value, kernels stored input first."""
    raw = json.loads((folder / "config.json").read_text())
    d, heads = raw["n_embd"], raw["n_head"]
    config = ModelConfig(
        name="gpt2",
        vocab_size=raw["vocab_size"],
        max_positions=raw["n_positions"],
        d_model=d,
        num_layers=raw["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=d // heads,
        d_mlp=4 * d,
        norm_epsilon=raw["layer_norm_epsilon"],
    )
    tensors = read_safetensors(folder / "model.safetensors")

    def layer(i: int) -> dict:
        t = {k.split(f".h.{i}.")[1]: v for k, v in tensors.items() if f".h.{i}." in k}
        kernels = np.split(t["attn.c_attn.weight"], 3, axis=1)
        biases = np.split(t["attn.c_attn.bias"], 3)
        attention = {
            name: {"kernel": k.reshape(d, heads, -1), "bias": b.reshape(heads, -1)}
            for name, k, b in zip(("query", "key", "value"), kernels, biases, strict=True)
        }
        attention["out"] = {
            "kernel": t["attn.c_proj.weight"].reshape(heads, -1, d),
            "bias": t["attn.c_proj.bias"],
        }
        return {
            "attention": attention,
            "attention_norm": {"scale": t["ln_1.weight"], "bias": t["ln_1.bias"]},
            "mlp_norm": {"scale": t["ln_2.weight"], "bias": t["ln_2.bias"]},
            "mlp": {
                "up": {"kernel": t["mlp.c_fc.weight"], "bias": t["mlp.c_fc.bias"]},
                "down": {"kernel": t["mlp.c_proj.weight"], "bias": t["mlp.c_proj.bias"]},
            },
        }

    return config, {
        "embedding": tensors["transformer.wte.weight"],
        "position_embedding": tensors["transformer.wpe.weight"],
        "blocks": _stack([layer(i) for i in range(config.num_layers)]),
        "final_norm": {
            "scale": tensors["transformer.ln_f.weight"],
            "bias": tensors["transformer.ln_f.bias"],
        },
    }


def llama(folder: Path) -> tuple[ModelConfig, dict]:
    """Llama: RMSNorm, rotary positions, gated MLP, grouped queries, untied, no biases."""
    raw = json.loads((folder / "config.json").read_text())
    d, size = raw["hidden_size"], raw["head_dim"]
    heads, kv = raw["num_attention_heads"], raw["num_key_value_heads"]
    config = ModelConfig(
        name="llama",
        vocab_size=raw["vocab_size"],
        max_positions=0,
        d_model=d,
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=size,
        d_mlp=raw["intermediate_size"],
        norm="rmsnorm",
        norm_epsilon=raw["rms_norm_eps"],
        positions="rope",
        rope_theta=raw["rope_parameters"]["rope_theta"],
        activation="silu",
        gated_mlp=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        tied_embeddings=False,
    )
    tensors = read_safetensors(folder / "model.safetensors")

    def layer(i: int) -> dict:
        t = {k.split(f".layers.{i}.")[1]: v for k, v in tensors.items() if f".layers.{i}." in k}
        kernel = {
            name: t[f"self_attn.{name[0]}_proj.weight"].T.reshape(d, count, size)
            for name, count in (("query", heads), ("key", kv), ("value", kv))
        }
        return {
            "attention": {
                **{name: {"kernel": k} for name, k in kernel.items()},
                "out": {"kernel": t["self_attn.o_proj.weight"].T.reshape(heads, size, d)},
            },
            "attention_norm": {"scale": t["input_layernorm.weight"]},
            "mlp_norm": {"scale": t["post_attention_layernorm.weight"]},
            "mlp": {n: {"kernel": t[f"mlp.{n}_proj.weight"].T} for n in ("up", "gate", "down")},
        }

    return config, {
        "embedding": tensors["model.embed_tokens.weight"],
        "unembedding": tensors["lm_head.weight"].T,
        "blocks": _stack([layer(i) for i in range(config.num_layers)]),
        "final_norm": {"scale": tensors["model.norm.weight"]},
    }


def gpt_neox(folder: Path) -> tuple[ModelConfig, dict]:
    """GPT-NeoX: parallel residual with two norms, partly rotary, query-key-value by head."""
    raw = json.loads((folder / "config.json").read_text())
    d, heads = raw["hidden_size"], raw["num_attention_heads"]
    config = ModelConfig(
        name="gpt_neox",
        vocab_size=raw["vocab_size"],
        max_positions=0,
        d_model=d,
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=d // heads,
        d_mlp=raw["intermediate_size"],
        norm_epsilon=raw["layer_norm_eps"],
        positions="rope",
        rope_fraction=raw["rope_parameters"]["partial_rotary_factor"],
        activation="gelu",
        parallel_residual=raw["use_parallel_residual"],
        tied_embeddings=False,
    )
    tensors = read_safetensors(folder / "model.safetensors")

    def layer(i: int) -> dict:
        t = {k.split(f".layers.{i}.")[1]: v for k, v in tensors.items() if f".layers.{i}." in k}
        kernel = t["attention.query_key_value.weight"].reshape(heads, 3, -1, d)
        bias = t["attention.query_key_value.bias"].reshape(heads, 3, -1)
        attention = {
            name: {"kernel": kernel[:, j].transpose(2, 0, 1), "bias": bias[:, j]}
            for j, name in enumerate(("query", "key", "value"))
        }
        attention["out"] = {
            "kernel": t["attention.dense.weight"].T.reshape(heads, -1, d),
            "bias": t["attention.dense.bias"],
        }

        def affine(name: str, ours: str = "scale") -> dict:
            weight = t[f"{name}.weight"]
            return {ours: weight if ours == "scale" else weight.T, "bias": t[f"{name}.bias"]}

        return {
            "attention": attention,
            "attention_norm": affine("input_layernorm"),
            "mlp_norm": affine("post_attention_layernorm"),
            "mlp": {
                "up": affine("mlp.dense_h_to_4h", "kernel"),
                "down": affine("mlp.dense_4h_to_h", "kernel"),
            },
        }

    return config, {
        "embedding": tensors["gpt_neox.embed_in.weight"],
        "unembedding": tensors["embed_out.weight"].T,
        "blocks": _stack([layer(i) for i in range(config.num_layers)]),
        "final_norm": {
            "scale": tensors["gpt_neox.final_layer_norm.weight"],
            "bias": tensors["gpt_neox.final_layer_norm.bias"],
        },
    }


FAMILIES = {"gpt2": gpt2, "llama": llama, "gpt_neox": gpt_neox}
