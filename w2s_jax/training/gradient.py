"""Loss and gradient of one batch, as pure functions.

The file reads from top to bottom:

  loss       class_loss, next_token_loss, token_loss, pair_loss, accuracy, updated_loss_state
  gradient   loss_and_gradient, of one of: whole_, additive_, coupled_ (classes), next_token_,
             token_, pair_gradient

Shapes in names: M microbatches, R rows, L slots, Q some slots, m documents per microbatch, K texts
per document, B = M * m documents per batch, C classes, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from w2s_jax.losses import LOSSES, PREFERENCE_LOSSES
from w2s_jax.models import adapting, heads
from w2s_jax.models.config import ModelConfig
from w2s_jax.training.batches import Batch, FeatureMicrobatch, Microbatch
from w2s_jax.training.forward import (
    class_logits,
    hidden_states,
    per_text,
    target_logits,
    text_log_probabilities,
)
from w2s_jax.training.spec import StepSpec

Array = jax.Array

# --- loss ----------------------------------------------------------------------------------------


def class_loss(
    kind: str,
    options: dict[str, Any],
    state: Any,
    step_fraction: Array,
    logits_BC: Array,
    targets_BC: Array,
    weights_B: Array,
) -> Array:
    """Return the weighted mean of a classifier's loss over documents."""
    loss = LOSSES[kind]
    state = None if loss.init_state is None else state
    with jax.named_scope("loss"):
        return loss(
            logits_BC, targets_BC, step_fraction, weights_B=weights_B, state=state, **options
        )


def next_token_loss(
    model: ModelConfig, params: Any, micro: Microbatch, weights_RL: Array, **how: str
) -> tuple[Array, Array]:
    """Return the weighted sums of next-token losses and of correct predictions of a microbatch."""
    hidden_RLD = hidden_states(model, params, micro, **how)
    logits_RLV = heads.language_model_logits(model, params["backbone"], hidden_RLD)
    targets_RL = jnp.roll(micro.tokens_RL.astype(jnp.int32), -1, axis=1)
    nll_RL = optax.softmax_cross_entropy_with_integer_labels(logits_RLV, targets_RL)
    right_RL = jnp.argmax(logits_RLV, axis=-1) == targets_RL
    return jnp.sum(weights_RL * nll_RL), jnp.sum(weights_RL * right_RL)


def next_token_weights(microbatches: Microbatch) -> Array:
    """Return each slot's weight of predicting the next one, [M, R, L]: 0 at ends and in padding."""
    segments_MRL = microbatches.segment_ids_RL.astype(jnp.int32)
    following_MRL = jnp.pad(segments_MRL[..., 1:], ((0, 0), (0, 0), (0, 1)))
    same_MRL = (segments_MRL == following_MRL) & (segments_MRL > 0)
    weights_MRL = microbatches.loss_weights_RL
    if weights_MRL is None:
        return same_MRL.astype(jnp.float32)
    return same_MRL * jnp.pad(weights_MRL[..., 1:], ((0, 0), (0, 0), (0, 1)))


def token_loss(
    spec: StepSpec, options: dict[str, Any], step_fraction: Array, params: Any, micro: Microbatch
) -> tuple[Array, Array]:
    """Return the weighted sums over target tokens of a loss and of correct predictions."""
    assert spec.loss is not None and micro.targets is not None
    loss, targets = LOSSES[spec.loss[0]], micro.targets
    assert loss.on_tokens is not None
    logits_RQV = target_logits(spec.model, params, micro, **_how(spec))
    tokens_RQ = targets.tokens_RQ.astype(jnp.int32)
    if loss.top_k_labels:
        rows_RQ = targets.rows_RQ
        options = options | {
            "top_ids_RQk": params["top_ids_Uk"][rows_RQ],
            "top_logprobs_RQk": params["top_logprobs_Uk"][rows_RQ],
        }
    with jax.named_scope("loss"):
        terms_RQ = loss.on_tokens(logits_RQV, tokens_RQ, step_fraction, **options)
        right_RQ = jnp.argmax(logits_RQV, axis=-1) == tokens_RQ
        weights_RQ = targets.weights_RQ
        return jnp.sum(weights_RQ * terms_RQ), jnp.sum(weights_RQ * right_RQ)


def pair_loss(
    spec: StepSpec,
    options: dict[str, Any],
    params: Any,
    micro: Microbatch,
    preference_m: Array,
    reference_m2: Array | None,
    weights_m: Array,
) -> tuple[Array, Array]:
    """Return the weighted means over pairs of a loss and of pairs that are ranked as labelled."""
    assert spec.loss is not None and micro.targets is not None
    loss, texts = PREFERENCE_LOSSES[spec.loss[0]], 2 * len(preference_m)
    logp_m2, lengths_m2 = (
        x.reshape(-1, 2)
        for x in (
            text_log_probabilities(spec.model, params, micro, texts, **_how(spec)),
            per_text(micro.targets.weights_RQ, micro.targets.texts_RQ, texts),
        )
    )
    compared = (logp_m2, reference_m2, lengths_m2)
    with jax.named_scope("loss"):
        value = loss(*compared, preference_m, weights_B=weights_m, **options)
        right_m = (loss.margin(*compared) > 0) == (preference_m > 0.5)
        right = jnp.sum(right_m * weights_m) / jnp.maximum(jnp.sum(weights_m), 1e-9)
        return value, right


def _how(spec: StepSpec) -> dict[str, str]:
    """Return the settings of the forward pass."""
    return {"compute_dtype": spec.train.compute_dtype, "remat": spec.train.remat}


def accuracy(logits_BC: Array, targets_BC: Array, weights_B: Array) -> Array:
    """Return the weighted share of documents whose predicted class is that of their target."""
    if logits_BC.shape[1] == 2:
        agree_B = (logits_BC[:, 1] > logits_BC[:, 0]) == (targets_BC[:, 1] > 0.5)
    else:
        agree_B = jnp.argmax(logits_BC, axis=1) == jnp.argmax(targets_BC, axis=1)
    return jnp.sum(agree_B * weights_B) / jnp.maximum(jnp.sum(weights_B), 1e-9)


def updated_loss_state(
    kind: str, options: dict[str, Any], state: Any, logits_BC: Array, batch: Batch
) -> Any:
    """Return the loss's state after a batch."""
    update = LOSSES[kind].update
    if update is None:
        return state
    with jax.named_scope("loss_state"):
        documents: tuple[Array, ...] = (logits_BC, batch.targets_BC, batch.weights_B)
        if batch.update_order_B is not None:
            documents = tuple(x[batch.update_order_B] for x in documents)
        logits_BC, targets_BC, weights_B = documents
        return update(state, logits_BC, targets_BC, weights_B=weights_B, **options)


# --- gradient ------------------------------------------------------------------------------------


class Gradient(NamedTuple):
    """The loss of a batch, its gradients, the accuracy, and the loss's state after the batch."""

    loss: Array
    grads: Any
    accuracy: Array
    loss_state: Any


# (trained parameters, microbatch) -> class logits; (logits, targets, weights) -> loss.
LogitsFn = Callable[[Any, Any], Array]
LossFn = Callable[[Array, Array, Array], Array]


def loss_and_gradient(
    spec: StepSpec,
    loss_options: dict[str, Any],
    params: Any,
    frozen: Any,
    batch: Batch,
    step_fraction: Array,
    loss_state: Any,
) -> Gradient:
    """Return loss and gradients of a batch with respect to `params`.

    Args:
      spec: the step.
      loss_options: traced options of the loss; `spec` has the others.
      params: trained parameters, float32.
      frozen: the other parameters (see `models.adapting`).
      batch: the batch.
      step_fraction: the step over the total number of steps.
      loss_state: state of the loss before the batch.
    """
    how = _how(spec)
    if spec.loss is None:
        return Gradient(*next_token_gradient(spec.model, how, params, frozen, batch), loss_state)
    kind, static_options = spec.loss
    options = dict(static_options) | loss_options
    if spec.targets != "class":
        of_targets = token_gradient if spec.targets == "tokens" else pair_gradient
        terms = of_targets(spec, options, step_fraction, params, frozen, batch)
        return Gradient(*terms, loss_state)
    loss = LOSSES[kind]

    def logits_fn(params: Any, micro: Microbatch | FeatureMicrobatch) -> Array:
        return class_logits(spec.model, adapting.join(params, frozen), micro, **how)

    loss_fn = functools.partial(class_loss, kind, options, loss_state, step_fraction)
    # The state of a loss depends on the whole batch.
    additive = not loss.coupled and loss.init_state is None
    if batch.num_microbatches > 1 and additive:
        return Gradient(*additive_gradient(logits_fn, loss_fn, params, batch), loss_state)
    gradient = whole_gradient if batch.num_microbatches == 1 else coupled_gradient
    value, grads, logits_BC = gradient(logits_fn, loss_fn, params, batch)
    right = accuracy(logits_BC, batch.targets_BC, batch.weights_B)
    return Gradient(
        value, grads, right, updated_loss_state(kind, options, loss_state, logits_BC, batch)
    )


def whole_gradient(
    logits_fn: LogitsFn, loss_fn: LossFn, params: Any, batch: Batch
) -> tuple[Array, Any, Array]:
    """Return loss, gradients and logits of a batch in one microbatch."""

    def loss_and_logits(params: Any) -> tuple[Array, Array]:
        logits_BC = logits_fn(params, _first(batch.microbatches))
        return loss_fn(logits_BC, batch.targets_BC, batch.weights_B), logits_BC

    (loss, logits_BC), grads = jax.value_and_grad(loss_and_logits, has_aux=True)(params)
    return loss, grads, logits_BC


def additive_gradient(
    logits_fn: LogitsFn, loss_fn: LossFn, params: Any, batch: Batch
) -> tuple[Array, Any, Array]:
    """Return loss, gradients and accuracy of an uncoupled loss, summed over microbatches."""
    total = jnp.maximum(jnp.sum(batch.weights_B), 1e-9)
    targets_MmC, weights_Mm = (
        x.reshape(batch.num_microbatches, -1, *x.shape[1:])
        for x in (batch.targets_BC, batch.weights_B)
    )

    def term(params: Any, micro: Any, targets_mC: Array, weights_m: Array) -> tuple[Array, Array]:
        """Return a microbatch's terms of the weighted means, of the loss and of the accuracy."""
        logits_mC = logits_fn(params, micro)
        share = jnp.sum(weights_m) / total
        loss = share * loss_fn(logits_mC, targets_mC, weights_m)
        return loss, share * accuracy(logits_mC, targets_mC, weights_m)

    (loss, right), grads = _summed(term, params, batch.microbatches, targets_MmC, weights_Mm)
    return loss, grads, right


def coupled_gradient(
    logits_fn: LogitsFn, loss_fn: LossFn, params: Any, batch: Batch
) -> tuple[Array, Any, Array]:
    """Return loss, gradients and logits of a loss of the whole batch, exactly, by two passes.

    The first pass computes all logits without keeping activations. Then the loss and its cotangent
    are computed for the whole batch, and the second pass differentiates each microbatch with its
    part of the cotangent.
    """
    logits_MmC = jax.lax.map(lambda micro: logits_fn(params, micro), batch.microbatches)
    logits_BC = logits_MmC.reshape(-1, logits_MmC.shape[-1])
    loss, cotangent_BC = jax.value_and_grad(loss_fn)(logits_BC, batch.targets_BC, batch.weights_B)

    def accumulate(grads: Any, item: tuple[Any, Array]) -> tuple[Any, None]:
        micro, cotangent_mC = item
        _, pull = jax.vjp(lambda p: logits_fn(p, micro), params)
        return jax.tree.map(jnp.add, grads, pull(cotangent_mC)[0]), None

    cotangent_MmC = cotangent_BC.reshape(logits_MmC.shape)
    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, _ = jax.lax.scan(accumulate, zeros, (batch.microbatches, cotangent_MmC))
    return loss, grads, logits_BC


def next_token_gradient(
    model: ModelConfig, how: dict[str, str], params: Any, frozen: Any, batch: Batch
) -> tuple[Array, Any, Array]:
    """Return loss, gradients and accuracy of a language model, summed over microbatches."""
    microbatches = batch.microbatches
    assert isinstance(microbatches, Microbatch)
    weights_MRL = next_token_weights(microbatches)
    total = jnp.maximum(jnp.sum(weights_MRL), 1e-9)

    def term(params: Any, micro: Microbatch, weights_RL: Array) -> tuple[Array, Array]:
        params = adapting.join(params, frozen)
        loss, right = next_token_loss(model, params, micro, weights_RL, **how)
        return loss / total, right / total

    (loss, right), grads = _over_microbatches(term, params, microbatches, weights_MRL)
    return loss, grads, right


def token_gradient(
    spec: StepSpec,
    options: dict[str, Any],
    step_fraction: Array,
    params: Any,
    frozen: Any,
    batch: Batch,
) -> tuple[Array, Any, Array]:
    """Return loss, gradients and accuracy of the target tokens of completions.

    Loss and accuracy are means over the weight of all targets of the batch.
    """
    microbatches = batch.microbatches
    assert isinstance(microbatches, Microbatch) and microbatches.targets is not None
    total = jnp.maximum(jnp.sum(microbatches.targets.weights_RQ), 1e-9)

    def term(params: Any, micro: Microbatch) -> tuple[Array, Array]:
        params = adapting.join(params, frozen)
        loss, right = token_loss(spec, options, step_fraction, params, micro)
        return loss / total, right / total

    (loss, right), grads = _over_microbatches(term, params, microbatches)
    return loss, grads, right


def pair_gradient(
    spec: StepSpec,
    options: dict[str, Any],
    step_fraction: Array,
    params: Any,
    frozen: Any,
    batch: Batch,
) -> tuple[Array, Any, Array]:
    """Return loss, gradients and accuracy of pairs of completions, means over the documents."""
    del step_fraction
    total = jnp.maximum(jnp.sum(batch.weights_B), 1e-9)
    labels = jax.tree.map(
        lambda x: x.reshape(batch.num_microbatches, -1, *x.shape[1:]),
        (batch.preference_B, batch.reference_B2, batch.weights_B),
    )

    def term(params: Any, micro: Microbatch, labels_m: tuple[Array, ...]) -> tuple[Array, Array]:
        params = adapting.join(params, frozen)
        share = jnp.sum(labels_m[-1]) / total
        loss, right = pair_loss(spec, options, params, micro, *labels_m)
        return share * loss, share * right

    (loss, right), grads = _over_microbatches(term, params, batch.microbatches, labels)
    return loss, grads, right


def _over_microbatches(
    term: Callable, params: Any, *microbatches: Any
) -> tuple[tuple[Array, Array], Any]:
    """Sum as `_summed`; a single microbatch needs no loop."""
    if len(jax.tree.leaves(microbatches)[0]) == 1:
        return jax.value_and_grad(term, has_aux=True)(params, *_first(microbatches))
    return _summed(term, params, *microbatches)


def _summed(term: Callable, params: Any, *microbatches: Any) -> tuple[tuple[Array, Array], Any]:
    """Sum (loss, accuracy) and gradients of `term(params, *microbatch)` over microbatches."""

    def add(sums: Any, microbatch: Any) -> tuple[Any, None]:
        value = jax.value_and_grad(term, has_aux=True)(params, *microbatch)
        return jax.tree.map(jnp.add, sums, value), None

    zeros = ((jnp.float32(0), jnp.float32(0)), jax.tree.map(jnp.zeros_like, params))
    return jax.lax.scan(add, zeros, microbatches)[0]


def _first(microbatches: Any) -> Any:
    return jax.tree.map(lambda x: x[0], microbatches)
