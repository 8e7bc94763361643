"""GGUF files as models of our families: their config.json, and their tensors as transformers' files
have them.

llama.cpp's converter (convert_hf_to_gguf.py) renames tensors and changes some: it permutes the rows
of Llama's queries and keys for its form of rotary positions, adds 1 to the scales of Gemma's norms,
and transposes GPT-2's matrices. This is undone when a tensor is read. Imports no JAX.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, unknown
from w2s_jax.models.checkpoint_files import StoredTensor
from w2s_jax.models.gguf_files import GgufModel, GgufTensor

_BLOCK = re.compile(r"blk\.(?P<layer>\d+)\.(?P<rest>.+)")
_ONCE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LLAMA = {
    "attn_norm": "input_layernorm",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
_GEMMA = _LLAMA | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GPT2_ONCE = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2 = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


@dataclass(frozen=True)
class _Architecture:
    """An architecture of GGUF files.

    Attributes:
      config: (metadata of the architecture, without its prefix; the model) -> what its config.json
        has beyond what `_common` reads.
      block: names of the tensors of a block, there -> in `prefix`.
      once: names of the other tensors.
      prefix: of the tensors of a block.
      permuted: the rows of queries and keys are permuted.
      added: 1 is added to the scales of norms.
      transposed: matrices of blocks are transposed.
    """

    config: Callable[["_Keys", GgufModel], dict[str, Any]]
    block: Mapping[str, str]
    once: Mapping[str, str]
    prefix: str = "model.layers."
    permuted: bool = False
    added: bool = False
    transposed: bool = False


class _Keys:
    """The metadata of an architecture: 'llama.block_count' is 'block_count'."""

    def __init__(self, model: GgufModel, architecture: str):
        self.model, self.architecture = model, architecture

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or the default; numbers as they would be written in float32."""
        value = self.model.metadata.get(f"{self.architecture}.{key}", default)
        # 9.999999747378752e-06 is 1e-05 in float32.
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a positive integer.

        Raises:
          InputError: it is something else, or missing without a default.
        """
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(
                f"{self.model.path}: {self.architecture}.{key}: {str(value)[:80]}; allowed: a "
                "positive integer"
            )
        return value

    def require(self, key: str, *allowed: Any) -> None:
        """Refuse a value that changes the computation.

        Raises:
          InputError: there is a value that is not in `allowed`.
        """
        value = self.get(key)
        if value is not None and value not in allowed:
            raise InputError(
                f"{self.model.path}: {self.architecture}.{key}: {str(value)[:80]}; allowed: "
                f"{', '.join(map(str, allowed)) or 'nothing'}"
            )


# --- config.json ----------------------------------------------------------------------------------


def _common(keys: _Keys, model: GgufModel) -> dict[str, Any]:
    """Return what config.json files of families with rotary positions share."""
    d, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    size = keys.integer("attention.key_length", max(1, d // heads))
    keys.require("attention.value_length", size)
    keys.require("rope.dimension_count", size)
    keys.require("expert_count", 0)
    record = {
        "vocab_size": _embedding(model).shape[0],
        "hidden_size": d,
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "head_dim": size,
        "intermediate_size": keys.integer("feed_forward_length"),
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": keys.get("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_theta": keys.get("rope.freq_base", 1e4),
    }
    return record | _scaling(keys, model, size, record["rope_theta"])


def _scaling(keys: _Keys, model: GgufModel, size: int, theta: float) -> dict[str, Any]:
    """Return `rope_scaling`, from the metadata or from a table of factors (Llama 3)."""
    kind = keys.get("rope.scaling.type", "none")
    table = model.tensors.get("rope_freqs.weight")
    if table is not None:
        return {"rope_scaling": _llama3(table, size, theta)}
    if kind == "none":
        return {}
    return {"rope_scaling": {"rope_type": kind, "factor": keys.get("rope.scaling.factor", 1.0)}}


def _llama3(table: GgufTensor, size: int, theta: float) -> dict[str, Any]:
    """Return the options of transformers' rope_type 'llama3' that give a table of factors."""
    factors = table.rows(slice(None)).astype(np.float64)
    turns = theta ** -(np.arange(0, size, 2) / size) / (2 * np.pi)
    original, low, high, factor = 8192, 1.0, 4.0, float(factors.max())
    share = ((original * turns - low) / (high - low)).clip(0, 1)
    wanted = 1 / ((1 - share) / factor + share)
    if factors.shape != wanted.shape or not np.allclose(factors, wanted, rtol=1e-3):
        raise InputError(
            f"{table.location}: factors of rotary frequencies other than Llama 3's are not "
            "supported"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _llama(keys: _Keys, model: GgufModel) -> dict[str, Any]:
    biased = {part: f"blk.0.{part}.bias" in model.tensors for part in ("attn_q", "ffn_up")}
    own = {"attention_bias": biased["attn_q"], "mlp_bias": biased["ffn_up"]}
    return _named("llama", "LlamaForCausalLM") | _common(keys, model) | own


def _qwen2(keys: _Keys, model: GgufModel) -> dict[str, Any]:
    return _named("qwen2", "Qwen2ForCausalLM") | _common(keys, model)


def _qwen3(keys: _Keys, model: GgufModel) -> dict[str, Any]:
    biased = "blk.0.attn_q.bias" in model.tensors
    own = {"attention_bias": biased}
    return _named("qwen3", "Qwen3ForCausalLM") | _common(keys, model) | own


def _gemma(keys: _Keys, model: GgufModel, largest: int) -> dict[str, Any]:
    """Return what Gemma 2 and 3 share; `largest`: the blocks of the largest model.

    Files do not say by what the scores of attention are divided. As in llama.cpp, it is the root of
    the size of a head, but of width / heads in the largest model.
    """
    record = _common(keys, model)
    wide = record["num_hidden_layers"] == largest
    scalar = record["hidden_size"] // record["num_attention_heads"] if wide else record["head_dim"]
    return record | {"query_pre_attn_scalar": scalar, "hidden_activation": "gelu_pytorch_tanh"}


def _gemma2(keys: _Keys, model: GgufModel) -> dict[str, Any]:
    return (
        _named("gemma2", "Gemma2ForCausalLM")
        | _gemma(keys, model, 46)
        | {
            "attn_logit_softcapping": keys.get("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": keys.get("final_logit_softcapping", 30.0),
            "sliding_window": keys.integer("attention.sliding_window", 4096),
        }
    )


def _gemma3(keys: _Keys, model: GgufModel) -> dict[str, Any]:
    own = {
        "sliding_window": keys.integer("attention.sliding_window", 4096),
        "sliding_window_pattern": keys.integer("attention.sliding_window_pattern", 6),
        "rope_theta": keys.get("rope.freq_base", 1e6),
        "rope_local_base_freq": keys.get("rope.freq_base_swa", 1e4),
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
    }
    return _named("gemma3_text", "Gemma3ForCausalLM") | _gemma(keys, model, 62) | own


def _gpt2(keys: _Keys, model: GgufModel) -> dict[str, Any]:
    return _named("gpt2", "GPT2LMHeadModel") | {
        "vocab_size": _embedding(model).shape[0],
        "n_embd": keys.integer("embedding_length"),
        "n_layer": keys.integer("block_count"),
        "n_head": keys.integer("attention.head_count"),
        "n_positions": keys.integer("context_length"),
        "n_inner": keys.integer("feed_forward_length"),
        "layer_norm_epsilon": keys.get("attention.layer_norm_epsilon", 1e-5),
    }


def _named(model_type: str, architecture: str) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture]}


def _embedding(model: GgufModel) -> GgufTensor:
    if "token_embd.weight" not in model.tensors:
        raise InputError(f"{model.path}: tensor 'token_embd.weight' is missing")
    return model.tensors["token_embd.weight"]


#: Architectures by their name in `general.architecture`.
ARCHITECTURES = {
    "llama": _Architecture(_llama, _LLAMA, _ONCE, permuted=True),
    "qwen2": _Architecture(_qwen2, _LLAMA, _ONCE),
    "qwen3": _Architecture(_qwen3, _LLAMA, _ONCE),
    "gemma2": _Architecture(_gemma2, _GEMMA, _ONCE, added=True),
    "gemma3": _Architecture(_gemma3, _GEMMA, _ONCE, added=True),
    "gpt2": _Architecture(_gpt2, _GPT2, _GPT2_ONCE, prefix="transformer.h.", transposed=True),
}


def config_of(model: GgufModel) -> dict[str, Any]:
    """Return the content of the config.json of a GGUF file's model.

    Raises:
      InputError: if its architecture or one of its options is not supported.
    """
    architecture = _architecture(model)
    record = architecture.config(_Keys(model, model.metadata["general.architecture"]), model)
    tokens = {
        f"{name}_token_id": model.metadata[f"tokenizer.ggml.{key}_token_id"]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in model.metadata
    }
    return record | tokens | {"tie_word_embeddings": "output.weight" not in model.tensors}


def _architecture(model: GgufModel) -> _Architecture:
    name = model.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise unknown(f"{model.path}: general.architecture", str(name), ARCHITECTURES)
    return ARCHITECTURES[name]


# --- tensors --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """How a tensor is read: `heads` > 0 if its rows are permuted."""

    tensor: GgufTensor
    heads: int = 0
    added: bool = False
    transposed: bool = False

    def __call__(self, box: Sequence[tuple[int, int]]) -> np.ndarray:
        """Read a slice of the tensor in transformers' form, float32."""
        (start, stop), *inner = box[::-1] if self.transposed else box
        wanted: slice | np.ndarray = slice(start, stop)
        if self.heads:
            wanted = _permutation(self.tensor.shape[0], self.heads)[start:stop]
        data = self.tensor.rows(wanted)
        if inner:
            data = data[:, inner[0][0] : inner[0][1]]
        if self.added:
            data = data - np.float32(1)
        return data.T if self.transposed else data


def _permutation(rows: int, heads: int) -> np.ndarray:
    """Return the row in the file of each row: halves of a head's dimensions are interleaved."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def tensors_of(model: GgufModel, record: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Return the tensors of a GGUF file under their names in transformers' files.

    Args:
      model: the file.
      record: its `config_of`.

    Raises:
      InputError: if it has a tensor that is not known.
    """
    architecture, found = _architecture(model), dict[str, StoredTensor]()
    for tensor in model.tensors.values():
        name = _name(architecture, tensor)
        if name is None:
            continue
        matrix = len(tensor.shape) == 2
        heads = 0
        if architecture.permuted and (part := re.search(r"attn_([qk])\.", tensor.name)):
            key = "num_attention_heads" if part[1] == "q" else "num_key_value_heads"
            heads = record[key]
            if tensor.shape[0] % (2 * heads):
                raise InputError(
                    f"{tensor.location}: has {tensor.shape[0]} rows; expected {heads} heads of an "
                    "even size"
                )
        reading = _Reading(
            tensor,
            heads,
            architecture.added and tensor.name.endswith("norm.weight"),
            architecture.transposed and matrix and tensor.name.startswith("blk."),
        )
        shape = tensor.shape[::-1] if reading.transposed else tensor.shape
        found[name] = StoredTensor(tensor.file, name, shape, "F32", read=reading)
    return found


def _name(architecture: _Architecture, tensor: GgufTensor) -> str | None:
    """Return the name of a tensor in transformers' files; None if it is not needed."""
    if tensor.name == "rope_freqs.weight":
        return None
    block = _BLOCK.fullmatch(tensor.name)
    stem, _, kind = (block["rest"] if block else tensor.name).rpartition(".")
    names = architecture.block if block else architecture.once
    if stem not in names or kind not in ("weight", "bias"):
        raise unknown(f"{tensor.location}: is not known", stem, names)
    if block:
        return f"{architecture.prefix}{int(block['layer'])}.{names[stem]}.{kind}"
    return f"{names[stem]}.{kind}"
