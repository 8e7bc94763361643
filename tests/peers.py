"""Load the tiny golden PyTorch models as parameters of this package."""

import json
from pathlib import Path

import numpy as np
from flax import traverse_util

from w2s_jax.models import families
from w2s_jax.models.config import ModelConfig


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a float32 safetensors file: 8-byte length, JSON header, raw data."""
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


def load(folder: Path) -> tuple[ModelConfig, dict]:
    """Load the config and parameters of a folder in Hugging Face's format."""
    raw = json.loads((folder / "config.json").read_text())
    family = families.family_of(raw, str(folder / "config.json"))
    config = family.to_config(raw)
    tensors = read_safetensors(folder / "model.safetensors")
    return config, assemble(family, config, tensors)


def assemble(family: families.Family, config: ModelConfig, tensors: dict) -> dict:
    """Return parameters made of tensors in memory: what importing does piece by piece."""
    names = families.file_names(family, config, tensors.keys())

    def read(view: families.TensorView, **layer: int) -> np.ndarray:
        return view.take(tensors[names[view.name.format(**layer)]])

    params = {
        path: np.stack([read(view, layer=i) for i in range(config.num_layers)])
        if "{layer}" in view.name
        else np.array(read(view))
        for path, view in family.views(config).items()
    }
    return traverse_util.unflatten_dict(params, sep=".")


def disassemble(family: families.Family, config: ModelConfig, params: dict) -> dict:
    """Return the checkpoint tensors of parameters in memory: the exact inverse of `assemble`."""
    flat = traverse_util.flatten_dict(params, sep=".")
    tensors: dict[str, np.ndarray] = {}
    for path, view in family.views(config).items():
        value = np.asarray(flat[path])
        layers = enumerate(value) if "{layer}" in view.name else [(0, value)]
        for i, layer in layers:
            tensor = tensors.setdefault(
                view.name.format(layer=i), np.empty(view.stored, value.dtype)
            )
            view.put(layer, tensor)
    return tensors


def golden_folders(golden: Path) -> dict[str, Path]:
    """Return the folders of the golden models by name."""
    files = [*golden.glob("*/config.json"), *golden.glob("models/*/config.json")]
    return {file.parent.name: file.parent for file in sorted(files)}
