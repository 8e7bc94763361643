"""Chess puzzles: a small model teaches larger ones to find the move that solves a position.

    pip install 'w2s_jax[chess]'
    w2s run --config=configs/chess.py:0 --workdir=runs/chess --config.task.data_dir=DIR

The argument is SEED, or SEED,RATING for puzzles rated below RATING only, as in 0,1500. DIR holds
`lichess_puzzles/train.jsonl[.gz]` and `test` with the fields of Lichess's puzzle file, and
`chess_games/train.jsonl[.gz]` with games (`moves_uci`); docs/chess.md describes both.

As in Burns et al. 2023: all models are pretrained on games, then trained for 5 epochs in batches of
32 without early stopping; the labels are greedy completions; and a bootstrapped student learns from
a model between the weak and the strong one (`method.bootstrapping.models`). Seeds share the
pretraining, as `pretrain.seed` stays 0.

All models have learned positions: a square is always at the same place of the prompt. The recipe
was chosen on seed 100; docs/results.md has the results of seeds 0 to 4.
"""

from ml_collections import config_dict

from w2s_jax.config import default_config


def get_config(choice: str = "0") -> config_dict.ConfigDict:
    """Return the recipe for 'SEED' or 'SEED,RATING'."""
    seed, _, rating = choice.partition(",")
    config = default_config()
    config.name = f"chess-{choice.replace(',', '-below-')}"
    config.seed = config.task.split_seed = int(seed)
    config.task.name = "chess_puzzles"
    config.task.validation_docs = 0
    config.task.where = f"Rating<{int(rating)}" if rating else None
    config.protocol.early_stopping = "none"
    config.losses = ("xent",)

    config.pretrain.source = "chess_games"
    config.pretrain.max_docs = 1_000_000
    config.pretrain.chunk_length = 80
    for section in (config.pretrain, config.train):
        section.optimizer = "adamw"
        section.beta2 = 0.98
        section.weight_decay = 0.1
        section.clip_norm = 1.0
        section.warmup = 0.05
        section.compute_dtype = "bfloat16"
    config.pretrain.batch_size = 64
    config.pretrain.learning_rate = 3e-3
    config.train.epochs = 5.0
    config.train.batch_size = 32
    config.train.learning_rate = 1e-3

    config.weak.model = "gpt-d32"
    config.weak.pretrain.steps = 6000
    config.strong.model = "gpt-d64"
    config.strong.pretrain.steps = 15_000
    config.method.name = "bootstrapping"
    config.method.bootstrapping.models = ("gpt-d48",)
    return config
