"""Mutate the JSON files of a model's folder: wrong types, missing, nested, huge, negative.

    python tests/mutations.py [COUNT [SEED [NAME]]]

tries COUNT mutations of every file of every family; the tests try a few.
"""

import copy
import json
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
from checkpoints import ENCODERS, TINY, tiny, tokenizer
from safetensors.numpy import save_file

from w2s_jax.core.errors import InputError
from w2s_jax.data.tokenizers import load_tokenizer
from w2s_jax.models import checking, padding, sources
from w2s_jax.models import checkpoint_files as files

VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 10**30, -(10**30), 0.5, -0.5, 1e308, 1e-300),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "gelu", "0", "\0", "a" * 300, "../x"),
    *([], [1], ["x"], [None], [[]], {}, {"x": 1}, {"": {}}, {"content": []}, {"rope_type": []}),
    *({"full_attention": {"rope_theta": 5.0}}, {"rope_type": "linear", "factor": "x"}),
    *([{"content": "<x>", "id": "1"}], [{"content": [], "id": 1}], {"0": 1}, [["a", 0.0]]),
)
KEYS = (
    *("rope_scaling", "rope_parameters", "rope_theta", "layer_types", "sliding_window", "head_dim"),
    *("quantization_config", "tie_word_embeddings", "architectures", "model_type", "id2label"),
    *("pad_token_id", "eos_token_id", "num_key_value_heads", "partial_rotary_factor", "dtype"),
)


def places(record, path=()):
    """All paths within a JSON value."""
    items = record.items() if isinstance(record, dict) else enumerate(record)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def mutate(record, draw):
    """A copy with one or two changes."""
    if draw.random() < 0.02:
        return draw.choice(VALUES)
    record = copy.deepcopy(record)
    for _ in range(draw.choice((1, 1, 1, 2))):
        # Entries of long lists and vocabularies would crowd out the options.
        short = [path for path in places(record) if len(path) < 3 or draw.random() < 0.05]
        if not short and isinstance(record, list):
            return draw.choice(VALUES)
        *parents, last = draw.choice(short) if short else (draw.choice(KEYS),)
        inner = record
        for key in parents:
            inner = inner[key]
        how = draw.random()
        if how < 0.1:
            inner.pop(last, None) if isinstance(inner, dict) else inner.pop(last)
        elif how < 0.25 and isinstance(inner, dict):
            inner[draw.choice(KEYS)] = copy.deepcopy(draw.choice(VALUES))
        elif how < 0.35:
            value = inner[last] if isinstance(inner, list) else inner.get(last)
            inner[last] = draw.choice(([value], {"x": value}, str(value)))
        else:
            inner[last] = copy.deepcopy(draw.choice(VALUES))
    return record


def fails(call, *args):
    """The one line with which a call refuses its input, or None."""
    try:
        call(*args)
    except InputError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 2_000, message
        return message
    return None


def check_model(folder):
    """Load a folder as a run and the export do."""
    if sources.is_huggingface(folder):
        found = checking.check_folder(folder)
        padding.choose(found.config, folder, found.huggingface)


def model_folders(folder):
    """(name, file to mutate, check) for each kind of file of a model's folder."""
    for model_type in TINY | ENCODERS:
        tiny(model_type, folder / model_type)
        yield model_type, folder / model_type / files.CONFIG, check_model
    tensors = tiny("gpt2", folder / "shards")
    (folder / "shards" / files.SINGLE).unlink()
    names = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    save_file(tensors, folder / "shards" / "model-00001-of-00001.safetensors")
    index = folder / "shards" / files.INDEX
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    yield "index", index, check_model
    tiny("bert", folder / "pooling")
    pooling = folder / "pooling" / files.POOLING
    pooling.parent.mkdir()
    pooling.write_text(
        json.dumps({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32})
    )
    yield "pooling", pooling, check_model
    modules = folder / "pooling" / files.MODULES
    modules.write_text(json.dumps([{"path": "1_Pooling", "type": "models.Pooling"}]))
    yield "modules", modules, check_model
    (folder / "adapters").mkdir()
    draw = np.random.default_rng(0)
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
    shapes = {"A": (2, 32), "B": (48, 2)}
    tensors = {name.format(k): draw.normal(size=v).astype("f4") for k, v in shapes.items()}
    save_file(tensors, folder / "adapters" / files.ADAPTER)
    adapters = folder / "adapters" / files.ADAPTER_CONFIG
    record = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {}}
    base = {"base_model_name_or_path": str(folder / "llama")}
    adapters.write_text(json.dumps(record | base))
    yield "adapters", adapters, check_model


def tokenizer_folders(folder):
    """The same for the files of a tokenizer, which the model's folder has too."""
    tiny("llama", folder)
    tokenizer(folder, "<pad>", size=64)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<eos>"}}))

    def check(path):
        # Both must be tried: one may accept what the other refuses.
        fails(load_tokenizer, str(path))
        check_model(path)

    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        yield name, folder / name, check


def attempt(path, check, count, draw):
    """Try mutations of a file; returns (accepted, refused). Anything else is raised."""
    original = path.read_text()
    outcomes = []
    try:
        for _ in range(count):
            text = json.dumps(mutate(json.loads(original), draw))
            path.write_text(text)
            try:
                folder = path.parent.parent if path.parent.name == "1_Pooling" else path.parent
                outcomes.append(fails(check, folder))
            except BaseException:
                print(f"{path}: {text[:3000]}", file=sys.stderr)
                raise
    finally:
        path.write_text(original)
    refused = sum(outcome is not None for outcome in outcomes)
    return count - refused, refused


def main(count=300, seed=0, only=""):
    with tempfile.TemporaryDirectory() as folder:
        cases = [*model_folders(Path(folder) / "m"), *tokenizer_folders(Path(folder) / "t")]
        for name, path, check in cases:
            if only not in name:
                continue
            accepted, refused = attempt(path, check, count, random.Random(f"{name} {seed}"))
            print(f"{name}: {accepted} accepted, {refused} refused", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), *sys.argv[3:])
