"""Workloads to measure: a model, documents, training settings, and their FLOPs. No JAX."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from w2s_jax.config import LOSS_OPTIONS, TrainSettings
from w2s_jax.core import errors
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models import budget, ladders
from w2s_jax.models.config import EMBEDDED_MODELS, ModelConfig, embedded_model
from w2s_jax.perf.data import BATCH_SIZE, mix_documents

#: Vocabulary and positions of embedded models: those of GPT-2.
VOCABULARY, POSITIONS = 50_257, 1_024
#: Target model FLOPs per repetition: 1 to 2 s on two cores, or on one chip.
CPU_FLOPS, DEVICE_FLOPS = 0.2e12, 100e12
#: Limits on the batches per repetition.
MIN_BATCHES, MAX_BATCHES = 2, 400
#: Packing and the reduced vocabulary are those of an epoch of this many documents. A repetition
#: trains on the first of them.
EPOCH_DOCUMENTS = 6_400


@dataclass(frozen=True)
class Workload:
    """A model and the documents it is trained on or labels.

    Attributes:
      mix: display name of the documents.
      model: the model, including trained adapters.
      train: training settings; labelling uses the same compute dtype.
      loss: (kind, options).
      documents: the documents.
      params: mesh -> initial parameters; None: random parameters.
      steps: batches per repetition, the first of an epoch; None: all.
    """

    mix: str
    model: ModelConfig
    train: TrainSettings
    loss: tuple[str, tuple[tuple[str, Any], ...]]
    documents: TokenizedDocuments
    params: Callable[[Any], Any] | None = None
    steps: int | None = None


def find_model(name: str) -> ModelConfig:
    """Return a model by name.

    Args:
      name: '16m' (GPT-2's architecture with 4 layers, width 256 and 4 heads), or the name of an
        embedded model or of one that `w2s models` lists.

    Raises:
      InputError: the name is unknown.
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
    hint = errors.did_you_mean(name, [*names, *short])
    raise errors.InputError(
        f"--model: unknown model {name!r}{hint}; use 16m or a name that w2s models lists"
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
    """Return the workload of a model on documents of random tokens.

    Args:
      model: the model.
      mix: distribution of document lengths, a key of `perf.data.MIXES`.
      dtype: compute dtype; the parameters are float32.
      loss: kind of the loss, with its default options.
      documents: documents per repetition, at least one batch; None: about one second's worth.
      accelerated: whether the devices are accelerators.
      labels: whether the documents are labelled instead of trained on.

    Raises:
      InputError: a document is longer than the model's learned positions.
    """
    train = TrainSettings(learning_rate=5e-5, compute_dtype=dtype, param_dtype="float32")
    if documents is None:
        documents = _count(model, mix, train, accelerated, labels)
    count = documents if labels else max(documents, EPOCH_DOCUMENTS)
    sampled = mix_documents(mix, count)
    if model.positions == "learned" and sampled.longest > model.max_positions:
        raise errors.InputError(
            f"--mix: {mix!r} has documents of {sampled.longest} tokens; {model.name} has only "
            f"{model.max_positions} positions"
        )
    rng = np.random.default_rng(1)
    sampled = dataclasses.replace(
        sampled,
        tokens_T=sampled.tokens_T % model.vocab_size,
        labels_N=rng.random(count).astype(np.float32),
    )
    options = tuple(sorted(LOSS_OPTIONS[loss].items()))
    steps = None if labels else documents // BATCH_SIZE
    return Workload(mix, model, train, (loss, options), sampled, steps=steps)


def _count(
    model: ModelConfig, mix: str, train: TrainSettings, accelerated: bool, labels: bool
) -> int:
    """Return the number of documents that take about a second, in whole batches."""
    sample = mix_documents(mix, 1_000)
    flops = model_flops(model, train, sample, labels=labels) / len(sample)
    batches = (DEVICE_FLOPS if accelerated else CPU_FLOPS) / flops / BATCH_SIZE
    return BATCH_SIZE * int(np.clip(round(batches), MIN_BATCHES, MAX_BATCHES))


def model_flops(
    model: ModelConfig, train: TrainSettings, documents: TokenizedDocuments, *, labels: bool
) -> float:
    """Return the model FLOPs of one epoch of training, or of labelling all documents.

    Sums over the length of each document, because attention is not linear in it. In the last block
    only what the read-outs need counts, so that skipping the rest does not raise the rate. See
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
