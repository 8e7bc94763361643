"""Tiny GGUF files, written with the package `gguf` from models in Hugging Face's layout.

What llama.cpp's converter does to names and tensors is written down here once more, the other way
round.
"""

import json

import checkpoints
import numpy as np
from checkpoints import change, configure, tensors_of, tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ONCE = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}  # fmt: skip
BLOCK = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
GEMMA = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
#: Architecture in GGUF files -> model_type.
ARCHITECTURES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2",
    "gemma3": "gemma3_text", "gpt2": "gpt2",
}  # fmt: skip


#: What the package can also write, of blocks of 32.
WRITTEN = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
#: Types of blocks that it can only read.
RANDOM = (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    *("IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0"),
)


def model_of(architecture, folder):
    """A tiny model in Hugging Face's layout whose rows are blocks of 32."""
    tiny(ARCHITECTURES[architecture], folder)
    record = json.loads((folder / "config.json").read_text())
    if architecture != "gpt2":
        changed = {"intermediate_size": 64}
        if architecture.startswith("gemma"):
            changed |= {"query_pre_attn_scalar": 8, "sliding_window": 4}
        configure(folder, **changed)
        draw = np.random.default_rng(7)
        change(
            folder,
            **{
                f"model.layers.{i}.mlp.{part}_proj.weight": 0.1
                * draw.standard_normal((32, 64) if part == "down" else (64, 32)).astype("f")
                for i in range(record["num_hidden_layers"])
                for part in ("gate", "up", "down")
            },
        )
    return folder


def permute(weight, heads):
    """`LlamaModel.permute` of llama.cpp's converter."""
    parts = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return parts.swapaxes(1, 2).reshape(weight.shape)


def renamed(architecture, name):
    """The name of a tensor in a GGUF file."""
    stem, kind = name.rsplit(".", 1)
    parts = stem.split(".")
    number = next((n for n, part in enumerate(parts) if part.isdigit()), None)
    if number is None:
        return f"{ONCE[stem]}.{kind}"
    names = BLOCK | GEMMA if architecture.startswith("gemma") else BLOCK
    return f"blk.{parts[number]}.{names['.'.join(parts[number + 1 :])]}.{kind}"


def changed(architecture, record, name, tensor):
    """A tensor as llama.cpp's converter writes it."""
    if architecture == "llama" and ".q_proj." in name:
        return permute(tensor, record["num_attention_heads"])
    if architecture == "llama" and ".k_proj." in name:
        return permute(tensor, record["num_key_value_heads"])
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + np.float32(1)
    if architecture == "gpt2" and tensor.ndim == 2 and ".h." in name:
        return np.ascontiguousarray(tensor.T)
    return tensor


def add_metadata(writer, architecture, record):
    """The keys that llama.cpp's converter writes for a config.json."""
    writer.add_vocab_size(record["vocab_size"])
    if architecture == "gpt2":
        writer.add_context_length(record["n_positions"])
        writer.add_embedding_length(record["n_embd"])
        writer.add_block_count(record["n_layer"])
        writer.add_feed_forward_length(4 * record["n_embd"])
        writer.add_head_count(record["n_head"])
        writer.add_layer_norm_eps(record["layer_norm_epsilon"])
        return
    writer.add_context_length(record["max_position_embeddings"])
    writer.add_embedding_length(record["hidden_size"])
    writer.add_block_count(record["num_hidden_layers"])
    writer.add_feed_forward_length(record["intermediate_size"])
    writer.add_head_count(record["num_attention_heads"])
    writer.add_head_count_kv(record["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(record["rms_norm_eps"])
    writer.add_key_length(record["head_dim"])
    writer.add_value_length(record["head_dim"])
    if architecture.startswith("gemma"):
        writer.add_sliding_window(record["sliding_window"])
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(record["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(record["final_logit_softcapping"])
    theta = record.get("rope_theta") or {"gemma3": 1e6}.get(architecture, 1e4)
    writer.add_rope_freq_base(theta)


def write(folder, file, architecture, kind="F32", *, split=0, raw=None, edit=None, skip=()):
    """Write a folder's model as a GGUF file; return what its tensors are, as float32, by name.

    Args:
      folder: in Hugging Face's layout.
      file: the file to write.
      architecture: as in `ARCHITECTURES`.
      kind: the type of matrices.
      split: tensors of a part, if it is written in parts.
      raw: bytes of matrices by name in the GGUF file, of type `kind`.
      edit: called with the writer, to change the metadata.
      skip: names of tensors that are not written.
    """
    import gguf

    record = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(file, architecture, split_max_tensors=split)
    add_metadata(writer, architecture, record)
    if edit is not None:
        edit(writer)
    found = {}
    for name, tensor in tensors_of(folder).items():
        there = renamed(architecture, name)
        if there in skip or (name == "lm_head.weight" and record.get("tie_word_embeddings")):
            continue
        value = changed(architecture, record, name, tensor)
        of_type = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        data = raw[there] if raw and there in raw else gguf.quantize(value, of_type)
        writer.add_tensor(there, data, raw_dtype=of_type)
        found[there] = np.asarray(gguf.dequantize(np.ascontiguousarray(data), of_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def random_blocks(kind, rows, columns, seed=0):
    """Random blocks whose numbers are finite, and not large."""
    import gguf

    of_type = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[of_type]
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 256, (rows * columns // block, size), np.uint8)
    with np.errstate(all="ignore"):
        while True:
            values = gguf.dequantize(blocks, of_type).reshape(len(blocks), -1)
            bad = ~(np.abs(values) < 1e4).all(1)
            if not bad.any():
                return blocks.reshape(rows, -1)
            blocks[bad] = draw.integers(0, 256, (int(bad.sum()), size), np.uint8)


def random_model(kind, folder, monkeypatch):
    """A tiny Llama with rows of 256, and random bytes of its matrices by name in a GGUF file."""
    sizes = dict(hidden_size=256, num_hidden_layers=1, num_attention_heads=4)
    monkeypatch.setattr(checkpoints, "SIZES", checkpoints.SIZES | sizes)
    own = dict(intermediate_size=256, num_key_value_heads=2, head_dim=64)
    monkeypatch.setattr(checkpoints, "TINY", checkpoints.TINY | {"llama": own})
    return {
        renamed("llama", name): random_blocks(kind, *tensor.shape, seed=number)
        for number, (name, tensor) in enumerate(tiny("llama", folder).items())
        if tensor.ndim == 2
    }


TEXTS = [
    "In 1984, 12345 pandas weren't sad.", "The film was good, and very long   indeed.\n\n",
    "def f(x):\n\treturn x**2  # ünïcödé 日本語 🙂", "IT'S they'll  3.14159 e\u0301",
] * 5  # fmt: skip


def byte_level(pre_tokenizer, size=400):
    """A byte-level tokenizer, trained on a few texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def add_byte_level(writer, backend, pre, **flags):
    """Write a byte-level tokenizer into the metadata."""
    spec = json.loads(backend.to_str())
    vocab = backend.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {token["content"] for token in spec["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in spec["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    for name, value in flags.items():
        getattr(writer, name)(value)
