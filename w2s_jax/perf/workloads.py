"""What is measured: a model, documents, how it is trained; and its FLOPs. Imports no JAX."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2s_jax.config import DTYPES, LOSS_OPTIONS, TrainSettings
from w2s_jax.core import errors
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models import budget, ladders
from w2s_jax.models.config import EMBEDDED_MODELS, ModelConfig, embedded_model
from w2s_jax.perf.data import BATCH_SIZE, MIXES, mix_documents

#: Vocabulary and positions of models that have none of their own: GPT-2's.
VOCABULARY, POSITIONS = 50_257, 1_024
#: A repetition is to have about this many model FLOPs: 1 to 2 s on two cores, or on one chip.
CPU_FLOPS, DEVICE_FLOPS = 0.2e12, 100e12
#: Batches of a repetition.
LEAST_BATCHES, MOST_BATCHES = 2, 400
#: Batches are packed, and vocabularies cut, as for an epoch of so many documents, of which a
#: repetition takes the first.
EPOCH_DOCUMENTS = 6_400


@dataclass(frozen=True)
class Workload:
    """A model on documents.

    Attributes:
      mix: what the documents are, for people.
      model: the model, with adapters if some are trained.
      train: how it is trained; its compute dtype is also that of labelling.
      loss: (kind, options).
      documents: what it is trained on, or labels.
      steps: how many batches a repetition trains on, the first ones of an epoch; None: all.
      params: mesh -> what the model starts from; None: random parameters.
    """

    mix: str
    model: ModelConfig
    train: TrainSettings
    loss: tuple[str, tuple[tuple[str, Any], ...]]
    documents: TokenizedDocuments
    params: Callable[[Any], Any] | None = None
    steps: int | None = None


def find_model(name: str) -> ModelConfig:
    """'16m' (GPT-2's form: 4 layers, width 256, 4 heads), an embedded or a known model.

    Raises:
      InputError: for an unknown name.
    """
    if name == "16m":
        return ModelConfig(
            name=name,
            d_model=256,
            num_layers=4,
            num_heads=4,
            num_kv_heads=4,
            head_dim=64,
            d_mlp=1024,
            vocab_size=VOCABULARY,
            max_positions=POSITIONS,
        )
    if name in EMBEDDED_MODELS:
        return embedded_model(name, vocab_size=VOCABULARY, max_positions=POSITIONS)
    known = ladders.find(name)
    if known is not None:
        return known.config()
    names = ["16m", *EMBEDDED_MODELS, *ladders.KNOWN]
    short = {known.rpartition("/")[2]: known for known in names}
    match = errors.nearest(name, [*names, *short])
    hint = f" (did you mean {match!r}?)" if match else ""
    raise errors.InputError(
        f"--model: unknown model {name!r}{hint}; allowed: 16m, or a name that w2s models lists"
    )


def mix_workload(
    model: ModelConfig,
    mix: str,
    *,
    dtype: str,
    loss: str = "xent",
    documents: int | None = None,
    accelerated: bool = False,
    labels: bool = False,
) -> Workload:
    """A model on random tokens, the lengths of the documents being those of a mix.

    Args:
      model: the model.
      mix: a key of `perf.data.MIXES`.
      dtype: of the computation; the parameters are float32.
      loss: its kind, with the options that it has by default.
      documents: how many a repetition takes; None: enough for about a second.
      accelerated: the devices are no CPUs.
      labels: they are labelled, not trained on.

    Raises:
      InputError: for an unknown mix, dtype or loss; too few documents; a document longer than the
        model's learned positions.
    """
    for field, value, allowed in (
        ("--mix", mix, MIXES),
        ("--dtype", dtype, DTYPES),
        ("--loss", loss, LOSS_OPTIONS),
    ):
        if value not in allowed:
            raise errors.unknown(field, value, allowed)
    train = TrainSettings(learning_rate=5e-5, compute_dtype=dtype, param_dtype="float32")
    if documents is None:
        documents = _count(model, mix, train, accelerated, labels)
    if documents < BATCH_SIZE:
        raise errors.InputError(
            f"--documents: {documents}; allowed: at least {BATCH_SIZE}, one batch"
        )
    count = documents if labels else max(documents, EPOCH_DOCUMENTS)
    drawn = mix_documents(mix, count)
    if model.positions == "learned" and drawn.longest > model.max_positions:
        raise errors.InputError(
            f"--mix: {mix!r} has documents of {drawn.longest} tokens; allowed with {model.name}: "
            f"at most its {model.max_positions} positions"
        )
    rng = np.random.default_rng(1)
    drawn = dataclasses.replace(
        drawn,
        tokens_T=drawn.tokens_T % model.vocab_size,
        labels_N=rng.random(count).astype(np.float32),
    )
    options = tuple(sorted(LOSS_OPTIONS[loss].items()))
    steps = None if labels else documents // BATCH_SIZE
    return Workload(mix, model, train, (loss, options), drawn, steps=steps)


def _count(
    model: ModelConfig, mix: str, train: TrainSettings, accelerated: bool, labels: bool
) -> int:
    """How many documents take about a second, in whole batches."""
    sample = mix_documents(mix, 1_000)
    flops = model_flops(model, train, sample, labels=labels) / len(sample)
    batches = (DEVICE_FLOPS if accelerated else CPU_FLOPS) / flops / BATCH_SIZE
    return BATCH_SIZE * int(np.clip(round(batches), LEAST_BATCHES, MOST_BATCHES))


def model_flops(
    model: ModelConfig, train: TrainSettings, documents: TokenizedDocuments, *, labels: bool
) -> float:
    """Model FLOPs of training once on all documents, or of labelling them, by formula.

    The sum over the actual lengths, as attention is not linear in them; of the last block only what
    the read-outs need, so that a program that leaves the rest out is not credited with it. See
    `models.budget` for what is counted.
    """
    lengths_V, counts_V = np.unique(documents.piece_lengths_P, return_counts=True)

    def per_token(length: int) -> float:
        if labels:
            return budget.flops_per_token(model, length, last_only=True)
        return budget.train_flops_per_token(
            model,
            length,
            train.adapt,
            lora_rank=model.lora_rank or budget.LORA_RANK,
            lora_targets=model.lora_targets or budget.LORA_TARGETS,
            last_layers=train.last_layers,
            last_only=True,
        )

    pairs = zip(lengths_V.tolist(), counts_V.tolist(), strict=True)
    return float(sum(count * length * per_token(length) for length, count in pairs))
