"""A tiny problem of prompts with completions, and how it is solved without packing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax import sharding, testing
from w2s_jax.config import TrainSettings
from w2s_jax.data import packing
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.data.tokenized import offsets_of
from w2s_jax.models import heads, network
from w2s_jax.training import sequences
from w2s_jax.training.batches import packed_buckets
from w2s_jax.training.gradient import loss_and_gradient
from w2s_jax.training.spec import StepSpec

VOCABULARY = 32
DOCUMENTS = 16


def completions(num_texts=1, seed=0):
    """Documents of `num_texts` prompts with completions; loss weight 1 on the latter."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(1, 9, DOCUMENTS * num_texts)
    lengths = prompts + rng.integers(1, 7, len(prompts))
    offsets = offsets_of(lengths)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return TokenizedDocuments(
        ids_N=np.arange(DOCUMENTS, dtype=np.uint64),
        tokens_T=rng.integers(1, VOCABULARY, offsets[-1]).astype(np.int32),
        offsets=offsets,
        labels_N=np.full(DOCUMENTS, np.nan, np.float32),
        loss_weights_T=(within >= np.repeat(prompts, lengths)).astype(np.float32),
        num_texts=num_texts,
        prompt_lengths_P=prompts,
    )


@functools.cache
def model():
    """(a one-layer model, its parameters), with embeddings far from each other."""
    rng = np.random.default_rng(1)
    config = testing.tiny_model(vocab_size=VOCABULARY, num_layers=1)
    backbone = jax.device_get(network.init_params(config, 0, sharding.mesh_of((1, 1, 1))))
    backbone = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype("f4"), backbone)
    return config, {"backbone": backbone}


def padded(documents):
    """Each text alone in a row of 16 slots, zeros behind it: tokens, segments and loss weights."""
    tokens, segments, weights = (np.zeros((len(documents.offsets) - 1, 16), t) for t in "iif")
    for text, (start, stop) in enumerate(
        zip(documents.offsets[:-1], documents.offsets[1:], strict=True)
    ):
        tokens[text, : stop - start] = documents.tokens_T[start:stop]
        segments[text, : stop - start] = 1
        weights[text, : stop - start] = documents.loss_weights_T[start:stop]
    return tokens, segments, weights


@functools.cache
def _unpacked():
    """(parameters, tokens, segments) -> logits; and their gradient, given that of the logits."""

    def logits(params, tokens, segments):
        hidden = network.forward(model()[0], params["backbone"], tokens, segments)
        return heads.language_model_logits(model()[0], params["backbone"], hidden)

    def pull(params, tokens, segments, cotangent):
        return jax.vjp(lambda p: logits(p, tokens, segments), params)[1](cotangent)[0]

    return jax.jit(logits), jax.jit(pull)


def plain_log_p(documents):
    """log p of every token of the vocabulary in each slot of `padded`, float64 [P, 16, V]."""
    tokens, segments, _ = padded(documents)
    logits = np.asarray(_unpacked()[0](model()[1], tokens, segments), np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1))[..., None]
        - (logits.max(-1, keepdims=True))
    )


def plain_gradient(documents, cotangent):
    """The gradient of the parameters, given that of the logits of `padded`; one array."""
    tokens, segments, _ = padded(documents)
    return flat(_unpacked()[1](model()[1], tokens, segments, np.asarray(cotangent, np.float32)))


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def spec_of(loss, targets, micro=1):
    train = TrainSettings(
        batch_size=DOCUMENTS,
        microbatch_size=DOCUMENTS // micro,
        learning_rate=0.01,
        schedule="constant",
    )
    return StepSpec(model()[0], train, 10, loss, targets=targets)


def packed(documents, micro=1, steps=1, **how):
    """Batches of all documents."""
    order = np.tile(np.arange(DOCUMENTS, dtype=np.int32), (steps, 1))
    return packing.pack(documents, order, num_microbatches=micro, **how)


def step_gradient(
    documents, loss, targets, *, micro=1, fraction=0.1, preferences=None, frozen=None
):
    """(loss, gradient, accuracy) of a batch of all documents, as a training step computes it."""
    spec = spec_of(loss, targets, micro)
    numbers = sequences.target_numbers(documents) if spec.extras.rows else None
    batches = packed(documents, micro, numbers_T=numbers)
    (bucket,) = packed_buckets(batches, None, spec.extras, preferences)
    options = {k: jnp.asarray(v) for k, v in spec.hyperparameters().loss_options.items()}
    found = _compiled(spec.program_key())(
        model()[1], frozen or {}, bucket.batch_at(0), options, np.float32(fraction)
    )
    return float(found.loss), flat(found.grads), float(found.accuracy)


@functools.cache
def _compiled(key):
    def run(params, frozen, batch, options, fraction):
        return loss_and_gradient(key, options, params, frozen, batch, fraction, ())

    return jax.jit(run)


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)
