"""Losses on the tokens of completions, against closed forms in float64 and unpacked models."""

import dataclasses

import jax
import numpy as np
import pytest
from completion_problem import (
    DOCUMENTS,
    VOCABULARY,
    completions,
    model,
    packed,
    padded,
    plain_gradient,
    plain_log_p,
    relative,
    spec_of,
    step_gradient,
)

from w2s_jax import losses, sharding
from w2s_jax.core import errors
from w2s_jax.models import network
from w2s_jax.training import population, sequences
from w2s_jax.training.batch_sources import compile_for, put_batches
from w2s_jax.training.batches import packed_buckets
from w2s_jax.training.nonfinite import locate
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.sequences import distributions, target_counts, target_numbers
from w2s_jax.training.state import init_state

XENT = ("xent", ())
KINDS = ("xent", "confidence", "kl", "reverse_kl")


def distributions_of_a_supervisor(count, k=4, seed=0):
    """For each of `count` tokens k distinct tokens and their log-probabilities."""
    rng = np.random.default_rng(seed)
    ids = rng.random((count, VOCABULARY)).argsort(1)[:, :k].astype(np.int32)
    return ids, np.log(rng.dirichlet(np.ones(k + 1), count))[:, :k].astype(np.float32)


def by_hand(kind, log_p, targets, ids=None, logprobs=None, alpha=0.0):
    """Terms, and their gradients by the logits, in float64; log_p is [n, V]."""
    p, rows = np.exp(log_p), np.arange(len(log_p))
    one_hot = np.eye(log_p.shape[1])
    if kind in ("xent", "confidence"):
        own = log_p.argmax(1)
        terms = -(1 - alpha) * log_p[rows, targets] - alpha * log_p[rows, own]
        return terms, p - (1 - alpha) * one_hot[targets] - alpha * one_hot[own]
    q = np.exp(logprobs.astype(np.float64))
    q /= q.sum(1, keepdims=True)
    chosen = np.take_along_axis(log_p, ids, 1)
    if kind == "kl":
        gradient = p.copy()
        np.put_along_axis(gradient, ids, np.take_along_axis(p, ids, 1) - q, 1)
        return (q * (np.log(q) - chosen)).sum(1), gradient
    restricted = np.exp(chosen) / np.exp(chosen).sum(1, keepdims=True)
    ratio = np.log(restricted / q)
    terms = (restricted * ratio).sum(1)
    gradient = np.zeros_like(p)
    np.put_along_axis(gradient, ids, restricted * (ratio - terms[:, None]), 1)
    return terms, gradient


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def on_tokens(kind, logits, targets, fraction=0.1, **options):
    """Terms and the gradient of their sum; each [1, n, ...]."""

    def total(x):
        terms = losses.LOSSES[kind].on_tokens(x, targets, fraction, **options)
        return terms.sum(), terms

    (_, terms), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    return np.asarray(terms), np.asarray(gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_terms_and_gradients_equal_their_closed_forms(kind):
    rng = np.random.default_rng(3)
    logits = 3 * rng.normal(size=(1, 20, VOCABULARY)).astype(np.float32)
    targets = rng.integers(0, VOCABULARY, (1, 20))
    options, hand = {}, {}
    if kind == "confidence":
        # A quarter of the warm-up is done.
        options, hand = {"alpha_max": 0.8, "warmup_fraction": 0.4}, {"alpha": 0.2}
    if kind.endswith("kl"):
        ids, logprobs = distributions_of_a_supervisor(20)
        options = {"top_ids_RQk": ids[None], "top_logprobs_RQk": logprobs[None]}
        hand = {"ids": ids, "logprobs": logprobs}
    terms, gradient = on_tokens(kind, logits, targets, **options)
    wanted, wanted_gradient = by_hand(kind, log_softmax(logits[0]), targets[0], **hand)
    np.testing.assert_allclose(terms[0], wanted, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(gradient[0], wanted_gradient, rtol=0, atol=2e-6)


def test_divergences_vanish_at_the_supervisor_and_bear_impossible_tokens():
    """Of the supervisor's own distribution over k tokens; with one that it never says."""
    ids = np.arange(4)[None, None]
    logprobs = np.append(np.log([0.5, 0.3, 0.2]), -np.inf).astype(np.float32)
    logits = np.full((1, 1, 8), -1e4, np.float32)
    logits[0, 0, :3] = logprobs[:3]
    options = {"top_ids_RQk": ids, "top_logprobs_RQk": logprobs[None, None]}
    for kind in ("kl", "reverse_kl"):
        terms, gradient = on_tokens(kind, logits, np.zeros((1, 1), int), **options)
        np.testing.assert_allclose(terms, 0, atol=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)
        terms, gradient = on_tokens(kind, np.zeros_like(logits), np.zeros((1, 1), int), **options)
        assert terms > 0.1 and np.isfinite(terms).all() and np.isfinite(gradient).all()


# --- the training step ---------------------------------------------------------------------------


def unpacked(documents, kind, **hand):
    """(loss, gradient, accuracy) with each text alone in a row and the loss in numpy."""
    tokens, _, weights = padded(documents)
    log_p = plain_log_p(documents)
    row, slot = np.nonzero(weights[:, 1:])
    weight = weights[row, slot + 1].astype(np.float64)
    targets = tokens[row, slot + 1]
    terms, gradients = by_hand(kind, log_p[row, slot], targets, **hand)
    share = weight / weight.sum()
    cotangent = np.zeros(log_p.shape)
    cotangent[row, slot] = share[:, None] * gradients
    right = share @ (log_p[row, slot].argmax(1) == targets)
    return share @ terms, plain_gradient(documents, cotangent), right


def check(found, wanted):
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert relative(found[1], wanted[1]) < 1e-5
    assert found[2] == pytest.approx(wanted[2], abs=1e-5)


def test_a_step_equals_one_document_per_row_in_whole_batches_and_microbatches():
    """Every target token counts the same: weighted sum over sum of weights of the batch."""
    documents = completions()
    wanted = unpacked(documents, "xent")
    check(step_gradient(documents, XENT, "tokens"), wanted)
    check(step_gradient(documents, XENT, "tokens", micro=4), wanted)


def test_documents_count_the_same_if_their_tokens_weigh_so():
    documents = completions()
    counts = target_counts(documents)[:, 0]
    shares = documents.loss_weights_T / np.repeat(counts, documents.lengths_N)
    by_document = dataclasses.replace(documents, loss_weights_T=shares.astype(np.float32))
    tokens, _, weights = padded(documents)
    log_p = plain_log_p(documents)
    means = []
    for row in range(DOCUMENTS):
        slots = np.flatnonzero(weights[row, 1:])
        means.append(-log_p[row, slots, tokens[row, slots + 1]].mean())
    found = step_gradient(by_document, XENT, "tokens")
    assert found[0] == pytest.approx(np.mean(means), rel=1e-5)
    check(found, unpacked(by_document, "xent"))
    assert abs(found[0] - step_gradient(documents, XENT, "tokens")[0]) > 0.01


def test_confidence_mixes_in_the_students_own_tokens():
    """Its warm-up is that of classes: alpha is 0.2 after a quarter of it."""
    documents = completions()
    loss = ("confidence", (("alpha_max", 0.8), ("warmup_fraction", 0.4)))
    found = step_gradient(documents, loss, "tokens")
    check(found, unpacked(documents, "confidence", alpha=0.2))
    loss = ("confidence", (("alpha_max", 0.0),))
    check(step_gradient(documents, loss, "tokens"), unpacked(documents, "xent"))


def test_distributions_reach_their_tokens():
    """A table of one row per target token, which packing keeps together with the token."""
    documents = completions()
    ids, logprobs = distributions_of_a_supervisor(int(documents.loss_weights_T.sum()))
    frozen = distributions(documents, ids, logprobs, sharding.mesh_of((1, 1, 1)))
    found = step_gradient(documents, ("kl", ()), "tokens", micro=4, frozen=frozen)
    check(found, unpacked(documents, "kl", ids=ids, logprobs=logprobs))
    with pytest.raises(errors.InputError, match=f"the documents have {len(ids)} target tokens"):
        distributions(documents, ids[:-1], logprobs[:-1], sharding.mesh_of((1, 1, 1)))


def test_targets_are_where_a_loop_over_texts_finds_them():
    documents = completions(num_texts=2)
    batches = packed(documents, 2, numbers_T=target_numbers(documents))
    (bucket,) = batches.buckets
    found = sequences.target_tokens(bucket, batches.documents_SB, by_text=True, with_rows=True)
    numbers = iter(range(int(documents.loss_weights_T.sum())))
    wanted = {}
    for text in range(2 * DOCUMENTS):
        tokens = documents.document(*divmod(text, 2))
        for token in tokens[documents.prompt_lengths_P[text] :]:
            wanted.setdefault(text, []).append((int(token), next(numbers)))
    seen = {}
    for where in zip(*np.nonzero(found.weights_RQ), strict=True):
        micro, text = where[1], int(found.texts_RQ[where])
        document = batches.documents_SB.reshape(2, -1)[micro, text // 2]
        item = int(found.tokens_RQ[where]), int(found.rows_RQ[where])
        seen.setdefault(2 * int(document) + text % 2, []).append(item)
        row = bucket.tokens_SMRL[where[:3]]
        assert row[found.slots_RQ[where] + 1] == item[0]
    assert seen == wanted
    assert [len(wanted[text]) for text in range(2 * DOCUMENTS)] == target_counts(
        documents
    ).ravel().tolist()


def test_the_first_token_of_a_text_is_no_target():
    """Nothing predicts it. Without loss weights all others are targets."""
    documents = dataclasses.replace(completions(), loss_weights_T=None)
    batches = packed(documents)
    (bucket,) = packed_buckets(batches, None, spec_of(XENT, "tokens").extras)
    weights = bucket.batches.microbatches.targets.weights_RQ
    assert weights.sum() == documents.offsets[-1] - DOCUMENTS == target_counts(documents).sum()


# --- what is refused -----------------------------------------------------------------------------


def test_documents_without_targets_are_refused():
    documents = completions()
    nothing = dataclasses.replace(documents, loss_weights_T=0 * documents.loss_weights_T)
    with pytest.raises(errors.InputError, match="no token has a loss weight above 0"):
        packed_buckets(packed(nothing), None, spec_of(XENT, "tokens").extras)
    with pytest.raises(errors.InputError, match="have no loss weights"):
        target_numbers(dataclasses.replace(documents, loss_weights_T=None))


def test_losses_of_classes_and_their_options_are_refused_by_name():
    assert losses.token_losses() == KINDS
    for kind in losses.LOSSES:
        if kind not in KINDS:
            with pytest.raises(
                errors.InputError, match=rf"^loss.mine.kind: '{kind}' .* {KINDS[0]}"
            ):
                losses.LOSSES[kind].require_on_tokens("mine", {})
    confidence = losses.LOSSES["confidence"]
    assert confidence.token_options == ("alpha_max", "warmup_fraction")
    confidence.require_on_tokens("mine", {"alpha_max": 0.75, "threshold": "half"})
    with pytest.raises(errors.InputError, match="^loss.mine.threshold: 'prior' does not apply"):
        confidence.require_on_tokens("mine", {"threshold": "prior"})
    with pytest.raises(errors.InputError, match="label_smoothing: 0.1"):
        losses.LOSSES["reverse_kl"].require_on_tokens("x", {"label_smoothing": 0.1})


def test_populations_are_of_classifiers():
    specs = [spec_of(XENT, "tokens")] * 2
    assert not population.may_share(specs[0])
    with pytest.raises(errors.InputError, match="member 0 learns tokens"):
        population.require_shared_program(specs)


# --- programs ------------------------------------------------------------------------------------


def trained(mesh_shape, micro, documents, params, steps=4):
    """(batches, spec, mesh, state after steps on all documents), by the program of the loop."""
    mesh, spec = sharding.mesh_of(mesh_shape), spec_of(XENT, "tokens", micro)
    spec = dataclasses.replace(spec, total_steps=steps)
    batches = packed(documents, micro, steps, row_multiple=sharding.row_shards(mesh))
    places = jax.tree.map(lambda x: x.sharding, network.abstract_params(spec.model, mesh))
    params = {"backbone": jax.device_put(params["backbone"], places)}
    state = init_state(params, make_optimizer(spec.train), steps, mesh)
    resident = put_batches(batches, None, mesh, spec.extras)
    program = compile_for(resident, spec, mesh)
    return resident, spec, mesh, resident.advance(program, state, 0, steps)


@pytest.mark.medium
def test_a_block_of_steps_on_one_device_and_on_eight():
    documents, params = completions(), model()[1]
    _, _, _, one = trained((1, 1, 1), 1, documents, params)
    _, _, _, eight = trained((2, 2, 2), 2, documents, params)
    history = np.asarray(one.history)[:4]
    assert history[3, 0] < history[0, 0] - 0.05
    np.testing.assert_allclose(np.asarray(eight.history)[:4], history, rtol=1e-3, atol=1e-5)
    assert "head" not in one.params


@pytest.mark.medium
def test_a_step_that_is_not_finite_is_located():
    documents, params = completions(), model()[1]
    broken = params["backbone"] | {"embedding": params["backbone"]["embedding"] * np.nan}
    resident, spec, mesh, state = trained((1, 1, 1), 1, documents, {"backbone": broken}, steps=1)
    assert int(state.failed_step) == 0
    assert "NaN in" in locate(spec, mesh, {}, state, resident.at(0))
