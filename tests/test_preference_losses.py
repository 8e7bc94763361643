"""Losses of pairs of completions, against float64 forms, google-tunix and unpacked models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from completion_problem import (
    DOCUMENTS,
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

from w2s_jax import config as config_lib
from w2s_jax import losses, sharding
from w2s_jax.config import validation
from w2s_jax.config.declarations import METHODS
from w2s_jax.core import errors
from w2s_jax.losses import PREFERENCE_LOSSES
from w2s_jax.methods import registry
from w2s_jax.training.answer_scores import completion_logprobs
from w2s_jax.training.batches import Preferences, packed_buckets
from w2s_jax.training.sequences import target_counts

KINDS = ("dpo", "orpo")


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


def by_hand(kind, logp, reference, lengths, w, scale):
    """The terms, float64 [B]; `scale` is beta or lambda."""
    if kind == "dpo":
        delta = scale * ((logp - reference)[:, 0] - (logp - reference)[:, 1])
        return -(w * log_sigmoid(delta) + (1 - w) * log_sigmoid(-delta))
    mean = logp / lengths
    odds = np.exp(mean) / (1 - np.exp(mean))
    delta = np.log(odds[:, 0] / odds[:, 1])
    ratio = w * log_sigmoid(delta) + (1 - w) * log_sigmoid(-delta)
    return -(w * mean[:, 0] + (1 - w) * mean[:, 1]) - scale * ratio


def gradient_by_hand(kind, logp, *others):
    """The gradient of the terms' sum by `logp`: central differences in float64."""
    gradient = np.zeros_like(logp)
    for column in range(2):
        step = np.zeros(2)
        step[column] = 1e-5
        above, below = (by_hand(kind, logp + sign * step, *others) for sign in (1, -1))
        gradient[:, column] = (above - below) / 2e-5
    return gradient


def some_pairs(count=12, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, (count, 2)).astype(np.float64)
    logp = -lengths * rng.uniform(0.05, 4, (count, 2))
    w = np.concatenate([[0.0, 1.0, 0.5], rng.uniform(size=count - 3)])
    return logp, logp + rng.normal(size=(count, 2)), lengths, w


def option_of(kind):
    return {"dpo": "beta", "orpo": "odds_weight"}[kind]


def value_and_gradient(kind, logp, *others, **options):
    logp, *others = (jnp.asarray(x, jnp.float32) for x in (logp, *others))
    loss = PREFERENCE_LOSSES[kind]
    value, gradient = jax.value_and_grad(lambda x: loss(x, *others, **options))(logp)
    assert value.dtype == jnp.float32 and value.shape == ()
    return float(value), np.asarray(gradient, np.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_values_and_gradients_equal_the_float64_form(kind, scale):
    logp, *others = some_pairs()
    options = {} if scale is None else {option_of(kind): scale}
    scale = 0.1 if scale is None else scale
    value, gradient = value_and_gradient(kind, logp, *others, **options)
    assert value == pytest.approx(by_hand(kind, logp, *others, scale).mean(), rel=1e-5)
    wanted = gradient_by_hand(kind, logp, *others, scale) / len(logp)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_swapping_the_completions_turns_the_preference_around(kind):
    logp, reference, lengths, w = some_pairs()
    one = value_and_gradient(kind, logp, reference, lengths, w)
    swapped = value_and_gradient(kind, *(x[:, ::-1] for x in (logp, reference, lengths)), 1 - w)
    assert swapped[0] == pytest.approx(one[0], rel=1e-6)
    np.testing.assert_allclose(swapped[1][:, ::-1], one[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_a_mean(kind):
    """A pair of weight 0 takes no part; empty completions, which fill up a batch, have it."""
    logp, reference, lengths, w = some_pairs()
    weights = np.array([0.0, 2.0] * 6)
    logp[0], reference[0], lengths[0] = 0, 0, 0
    value, gradient = value_and_gradient(kind, logp, reference, lengths, w, weights_B=weights)
    terms = by_hand(kind, logp[1::2], reference[1::2], lengths[1::2], w[1::2], 0.1)
    assert value == pytest.approx(terms.mean(), rel=1e-5)
    assert (gradient[::2] == 0).all() and (gradient[1::2] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_certain_and_impossible_completions_give_finite_numbers(kind):
    values = [0.0, -1e-30, -1e-8, -1e-4, -1.0, -200.0, -1e6]
    logp = np.array([(a, b) for a in values for b in values])
    for w in (0.0, 0.3, 1.0):
        others = np.zeros_like(logp), np.full_like(logp, 3), np.full(len(logp), w)
        value, gradient = value_and_gradient(kind, logp, *others)
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_odds_are_precise_near_certainty():
    """1 - e^l for l = -1e-6 has one digit in float32, -expm1(l) has all."""
    logp = np.array([[-1e-6, -2e-6], [-2e-5, -1e-3]])
    margin = losses.orpo.margin(jnp.asarray(logp, jnp.float32), None, jnp.ones((2, 2)))
    np.testing.assert_allclose(margin, [np.log(2), np.log(50)], rtol=1e-3)


def test_dpo_needs_a_reference_and_orpo_has_none():
    logp, reference, lengths, w = some_pairs()
    with pytest.raises(errors.InputError, match="loss 'dpo' needs reference_B2"):
        losses.dpo(logp, None, lengths, w)
    value, _ = value_and_gradient("orpo", logp, reference, lengths, w)
    assert float(losses.orpo(logp, None, lengths, w)) == pytest.approx(value)


def test_dpo_equals_google_tunix(golden):
    """Loss and gradient of `DPOTrainer` on the same logits, its label smoothing as w = 1 - e.

    google-tunix 0.1.7 (jax 0.10.2, flax 0.12.8) trained an `nnx.Module` whose logits are a row of a
    6 x 6 table for each token, on four (prompt, chosen, rejected) with up to 3 and 5 tokens, the
    prompts padded on the left, for one step of optax.sgd(1.0): the change of the table is the
    gradient. The reference model is another table. `log_probabilities` and `reference` are those of
    its `compute_logps`.
    """
    run = json.loads((golden / "tunix_dpo.json").read_text())
    texts = [(prompt, c) for prompt, *both in run["documents"] for c in both]
    before = np.array([token for prompt, c in texts for token in [prompt[-1], *c[:-1]]])
    after = np.array([token for _, c in texts for token in c])
    of_text = np.repeat(np.eye(len(texts)), [len(c) for _, c in texts], 0).astype(np.float32)

    def summed(table):
        """The log-probabilities of the completions after their prompts, [B, 2]."""
        log_p = jax.nn.log_softmax(jnp.asarray(table, jnp.float32))
        return (log_p[before, after] @ of_text).reshape(-1, 2)

    lengths = np.array([[len(c) for c in both] for _, *both in run["documents"]], np.float32)
    reference = summed(run["reference"])
    for step in run["steps"]:
        w = np.full(len(lengths), 1 - step["label_smoothing"], np.float32)

        def loss(table, w=w, beta=step["beta"]):
            return losses.dpo(summed(table), reference, lengths, w, beta=beta)

        value, gradient = jax.value_and_grad(loss)(jnp.asarray(run["policy"], jnp.float32))
        np.testing.assert_allclose(summed(run["policy"]), step["log_probabilities"], atol=2e-6)
        np.testing.assert_allclose(reference, step["reference"], atol=2e-6)
        assert float(value) == pytest.approx(step["loss"], rel=1e-6)
        np.testing.assert_allclose(gradient, step["gradient"], atol=5e-7)


# --- the training step ---------------------------------------------------------------------------


def plain_sums(documents):
    """Summed log-probabilities of the completions, float64 [N, 2], each text alone in a row."""
    tokens, _, weights = padded(documents)
    following = np.take_along_axis(plain_log_p(documents)[:, :-1], tokens[:, 1:, None], -1)
    return (weights[:, 1:] * following[..., 0]).sum(1).reshape(-1, documents.num_texts)


def plain_step(documents, kind, reference, w):
    """(loss, gradient), by the chain rule from the gradient of the loss by the sums."""
    tokens, _, weights = padded(documents)
    logp, lengths = plain_sums(documents), target_counts(documents).astype(np.float64)
    by_sum = gradient_by_hand(kind, logp, reference, lengths, w, 0.1).ravel() / len(w)
    cotangent = -np.exp(plain_log_p(documents)[:, :-1])
    np.put_along_axis(
        cotangent,
        tokens[:, 1:, None],
        np.take_along_axis(cotangent, tokens[:, 1:, None], -1) + 1,
        -1,
    )
    cotangent *= (by_sum[:, None] * weights[:, 1:])[..., None]
    value = by_hand(kind, logp, reference, lengths, w, 0.1).mean()
    return value, plain_gradient(documents, np.pad(cotangent, ((0, 0), (0, 1), (0, 0))))


@pytest.mark.parametrize("kind,micro", [("dpo", 4), ("orpo", 1)])
def test_a_step_equals_one_text_per_row(kind, micro):
    documents = completions(num_texts=2)
    rng = np.random.default_rng(5)
    w = rng.uniform(size=DOCUMENTS).astype(np.float32)
    reference = (plain_sums(documents) + rng.normal(size=(DOCUMENTS, 2))).astype(np.float32)
    preferences = Preferences(w, reference if kind == "dpo" else None)
    value, gradient, accuracy = step_gradient(
        documents, (kind, ()), "pairs", micro=micro, preferences=preferences
    )
    wanted, wanted_gradient = plain_step(documents, kind, reference, w)
    assert value == pytest.approx(wanted, rel=1e-5)
    assert relative(gradient, wanted_gradient) < 1e-5
    logp = plain_sums(documents)
    better = logp - reference if kind == "dpo" else logp / target_counts(documents)
    assert accuracy == pytest.approx(np.mean((better[:, 0] > better[:, 1]) == (w > 0.5)))


def test_the_reference_of_the_model_itself_gives_log_2():
    """Its label pass and the step agree; sums and numbers of tokens by text are exact."""
    documents = completions(num_texts=2)
    config, params = model()
    mesh = sharding.mesh_of((1, 1, 1))
    logp, lengths = completion_logprobs(
        config, params, documents, mesh, per_device=False, batch_size=5
    )
    np.testing.assert_allclose(logp, plain_sums(documents), rtol=1e-5)
    completions_P = documents.piece_lengths_P - documents.prompt_lengths_P
    np.testing.assert_array_equal(lengths, completions_P.reshape(-1, 2))
    w = np.linspace(0, 1, DOCUMENTS)
    found = step_gradient(
        documents, ("dpo", ()), "pairs", micro=4, preferences=Preferences(w, logp)
    )
    assert found[0] == pytest.approx(np.log(2), rel=1e-6)


@pytest.mark.medium
def test_log_probabilities_of_answers_by_pmap():
    """On eight devices, each with a batch of its own; some have none."""
    documents = completions().select(np.arange(13))
    config, params = model()
    mesh = sharding.mesh_of((8, 1, 1))
    params = jax.device_put(params, sharding.replicated(mesh))
    logp, lengths = completion_logprobs(config, params, documents, mesh)
    assert logp.shape == lengths.shape == (13, 1)
    np.testing.assert_allclose(logp, plain_sums(documents), rtol=1e-5)


# --- configs -------------------------------------------------------------------------------------


def test_pairs_without_labels_are_refused():
    documents = completions(num_texts=2)
    for preferences in (None, Preferences(np.ones(DOCUMENTS))):
        with pytest.raises(errors.InputError, match="log-probabilities under the reference"):
            extras = spec_of(("dpo", ()), "pairs").extras
            packed_buckets(packed(documents), None, extras, preferences)


def test_a_config_names_them_only_where_a_method_makes_pairs():
    config = config_lib.default_config()
    config.losses = ("xent", "orpo")
    with pytest.raises(errors.InputError, match="'orpo' compares two completions of a prompt"):
        validation.validate(config)
    config.loss.dpo.beta = 0.0
    with pytest.raises(errors.InputError, match="loss.dpo.beta: 0.0; allowed: above 0"):
        validation.validate(config)
    config.loss.dpo.beta = 0.1

    @registry.register("pairing", pairs=True)
    def pairing(planner):
        """Makes pairs."""

    try:
        with pytest.raises(errors.InputError, match="methods that do: .*pairing"):
            validation.validate(config)
        config.method.name = "pairing"
        found = validation.validate(config).losses
        assert [(loss.kind, loss.options) for loss in found] == [
            ("xent", ()),
            ("orpo", (("odds_weight", 0.1),)),
        ]
    finally:
        METHODS.pop("pairing")


def test_no_kind_is_of_classes_and_of_pairs():
    assert list(PREFERENCE_LOSSES) == list(KINDS)
    assert not set(PREFERENCE_LOSSES) & set(losses.LOSSES)
