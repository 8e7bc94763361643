"""Load the tiny golden PyTorch models as parameters of this package."""

import json
from pathlib import Path

import numpy as np

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
    return config, families.assemble(family, config, tensors)


def golden_folders(golden: Path) -> dict[str, Path]:
    """Return the folders of the golden models by name."""
    files = [*golden.glob("*/config.json"), *golden.glob("models/*/config.json")]
    return {file.parent.name: file.parent for file in sorted(files)}
