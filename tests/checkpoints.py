"""Tiny models in Hugging Face's layout."""

import json

import numpy as np
import tokenizers as tk
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from w2s_jax import sharding
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models.families import FAMILIES

SIZES = dict(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=48,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
_GATED = dict(intermediate_size=48, num_key_value_heads=2, head_dim=8)
#: model_type -> sizes of a tiny model whose axes 2 divides, and 8 its width.
TINY = {
    "gpt2": {},
    "gpt_neox": dict(intermediate_size=48),
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
    "phi": dict(intermediate_size=48, num_key_value_heads=2),
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED | dict(tie_word_embeddings=True),
    "qwen3": _GATED,
    "gemma": _GATED,
    "gemma2": _GATED,
    "gemma3_text": _GATED,
}
_WORDS = ["good", "bad", "film", "a", "very", "long", "and"]
#: The same for encoders.
ENCODERS = {name: dict(intermediate_size=48) for name in ("bert", "roberta", "xlm-roberta")}


def family_of_type(model_type):
    """The family of a config.json's `model_type`."""
    return next(f for f in FAMILIES.values() if model_type in f.model_types)


def tiny(model_type, folder, dtype=np.float32, seed=0):
    """A folder with config.json and random tensors, made by numpy; returns the tensors."""
    from transformers import AutoConfig

    folder.mkdir(parents=True, exist_ok=True)
    family = family_of_type(model_type)
    record = AutoConfig.for_model(model_type, **SIZES | (TINY | ENCODERS)[model_type]).to_dict()
    record |= {"architectures": [family.architectures[0]], "dtype": np.dtype(dtype).name}
    (folder / "config.json").write_text(json.dumps(record))
    config = family.to_config(record)
    draw = np.random.default_rng(seed)
    tensors = {}
    for view in family.views(config).values():
        for layer in range(config.num_layers if "{layer}" in view.name else 1):
            value = 0.1 * draw.standard_normal(view.stored)
            tensors[view.name.format(layer=layer)] = value.astype(dtype)
    save_file(tensors, folder / files.SINGLE, metadata={"format": "pt"})
    return tensors


def tokenizer(folder, *special, size=20, **named):
    """A tokenizer of words; ids 1 and 2 are those of the tiny models' bos and eos."""
    special = ["<unk>", "<bos>", "<eos>", *special]
    vocab = {word: i for i, word in enumerate([*special, *_WORDS])}
    vocab |= {f"word{i}": i for i in range(len(vocab), size)}
    backend = tk.Tokenizer(tk.models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = tk.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special)
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"} | named
    record = {"tokenizer_class": "PreTrainedTokenizerFast"} | named
    (folder / "tokenizer_config.json").write_text(json.dumps(record))


def configure(folder, **fields):
    """Change fields of a folder's config.json."""
    path = folder / files.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change(folder, remove=(), **tensors):
    """Remove and set tensors of a folder."""
    kept = load_file(folder / files.SINGLE) | tensors
    save_file({name: x for name, x in kept.items() if name not in remove}, folder / files.SINGLE)


def whole(params):
    """Parameters by flat path, in host memory."""
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep=".").items()}


def assert_same_bits(ours, theirs):
    """Two sets of named arrays are equal in names, types, shapes and bits."""
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype and ours[name].shape == array.shape, name
        assert ours[name].tobytes() == array.tobytes(), name


def tensors_of(folder):
    """All tensors of a folder's safetensors files."""
    parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for part in parts for name, tensor in part.items()}


def one():
    """A mesh of one device."""
    return sharding.mesh_of((1, 1, 1))
