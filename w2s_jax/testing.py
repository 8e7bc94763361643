"""A tiny model, task and config for tests of w2s_jax and of packages that extend it.

Nothing is downloaded, and only the requested files are written. Imports no JAX.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import config_dict

from w2s_jax.config import default_config
from w2s_jax.data.tokenizers import ByteTokenizer
from w2s_jax.models.config import ModelConfig

#: The tokenizer of the tiny task: bytes, with 259 ids.
TINY_TOKENIZER = ByteTokenizer()

_GOOD = ("fine", "good", "warm", "rich", "superb")
_BAD = ("dull", "bad", "cold", "poor", "dreadful")
_MIXED = ("odd", "mixed", "so-so", "uneven", "curious")
_PLAIN = ("a", "the", "film", "plot", "scene", "and", "of", "so", "very", "long")


def tiny_model(**changes: object) -> ModelConfig:
    """Return a two-layer decoder of width 16 for bytes; keyword arguments replace fields."""
    fields: dict = dict(
        name="tiny",
        vocab_size=TINY_TOKENIZER.vocab_size,
        max_positions=64,
        d_model=16,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        d_mlp=32,
    )
    return ModelConfig(**(fields | changes))


def tiny_records(count: int, seed: int = 0, *, labels: Sequence[Any] = (0, 1)) -> list[dict]:
    """Return records {'text', 'label'} of a task in which one word determines the label.

    The labels take turns. Texts are distinct and have 3 to 9 words.

    Args:
      count: number of records.
      seed: seed of the texts.
      labels: the labels, two or three.
    """
    rng = np.random.default_rng(seed)
    records: list[dict] = []
    seen: set[str] = set()
    while len(records) < count:
        label = len(records) % len(labels)
        words = list(rng.choice(_PLAIN, size=int(rng.integers(2, 9))))
        place = int(rng.integers(len(words) + 1))
        words.insert(place, str(rng.choice((_BAD, _GOOD, _MIXED)[label])))
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            records.append({"text": text, "label": labels[label]})
    return records


def write_tiny_task(
    data_dir: Path,
    name: str = "tiny",
    *,
    train: int = 160,
    test: int = 64,
    labels: Sequence[Any] = (0, 1),
) -> Path:
    """Write the tiny task as local files; return `data_dir`.

    The files are `<name>/train.jsonl`, `validation.jsonl` (32 records) and `test.jsonl`, with
    distinct texts, and `corpus/train.jsonl` with the same texts unlabelled, for pretraining.

    Args:
      data_dir: folder for `task.data_dir`.
      name: name of the task.
      train: number of training records.
      test: number of test records.
      labels: as in `tiny_records`.
    """
    records = tiny_records(train + 32 + test, labels=labels)
    parts = {
        "train": records[:train],
        "validation": records[train : train + 32],
        "test": records[train + 32 :],
    }
    _write_jsonl(data_dir / "corpus" / "train.jsonl", [{"text": r["text"]} for r in records])
    for split, rows in parts.items():
        _write_jsonl(data_dir / name / f"{split}.jsonl", rows)
    return data_dir


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tiny_config(data_dir: Path | str) -> config_dict.ConfigDict:
    """Return the config of a run on the files of `write_tiny_task` that takes a few seconds."""
    config = default_config()
    config.name = "tiny"
    config.task.name = "tiny"
    config.task.data_dir = str(data_dir)
    config.weak.model = "gpt-d8"
    config.strong.model = "gpt-d16"
    config.pretrain.source = "corpus"
    config.pretrain.steps = 10
    config.pretrain.batch_size = 16
    config.train.batch_size = 16
    config.train.steps = 20
    config.train.learning_rate = 1e-2
    config.eval.every = 10
    config.log.every = 5
    config.log.tensorboard = False
    return config
