"""Losses against closed forms in float64 numpy; registering one; their configs."""

import functools
import inspect
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from w2s_jax import config as config_lib
from w2s_jax import losses
from w2s_jax.config import validation
from w2s_jax.core import errors

DOCS = Path(__file__).parent.parent / "docs" / "losses.md"


def confidence_by_hand(logits_BC, targets_BC, fraction, weights_B, alpha_max, warmup, threshold):
    """The confidence loss in float64 numpy: sort, then hand out the positive mass from the top."""
    logits = logits_BC.astype(np.float64)
    targets = targets_BC.astype(np.float64)
    weights = np.asarray(weights_B, np.float64)
    share = 0.5 if threshold == "half" else (weights @ targets[:, 1]) / weights.sum()
    left = share * weights.sum()
    margins = logits_BC[:, 1] - logits_BC[:, 0]
    positive = np.zeros(len(logits))
    for margin in sorted(set(margins.tolist()), reverse=True):
        tied = margins == margin
        mass = weights[tied].sum()
        if mass > 0:
            positive[tied] = min(1.0, left / mass)
        left = max(0.0, left - mass)
    alpha = alpha_max * min(fraction / warmup, 1.0)
    mixed = (1 - alpha) * targets + alpha * np.stack([1 - positive, positive], 1)
    log_z = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    loss_B = -(mixed * (logits - log_z[:, None])).sum(1)
    p = np.exp(logits - log_z[:, None])
    grad = weights[:, None] * (p - mixed) / weights.sum()
    return (weights @ loss_B) / weights.sum(), grad


@functools.partial(jax.jit, static_argnums=4)
def confidence_and_grad(logits, targets, fraction, weights, threshold):
    def loss(x):
        return losses.LOSSES["confidence"](
            x, targets, fraction, weights_B=weights, alpha_max=0.75, threshold=threshold
        )

    return jax.value_and_grad(loss)(logits)


@pytest.mark.parametrize("threshold", ["half", "prior"])
@pytest.mark.parametrize("batch", [2, 7, 32])
@pytest.mark.parametrize("corner", ["plain", "ties", "weights", "hard labels", "huge logits"])
def test_confidence_equals_its_closed_form(batch, threshold, corner):
    rng = np.random.default_rng(batch)
    logits = rng.normal(size=(batch, 2)).astype(np.float32)
    soft = rng.uniform(size=batch).astype(np.float32)
    weights = np.ones(batch, np.float32)
    if corner == "ties":
        logits = np.round(logits)
    if corner == "weights":
        weights = rng.choice([0.0, 0.5, 2.0], size=batch).astype(np.float32)
        weights[0] = 1.0
    if corner == "hard labels":
        soft = np.round(soft)
    if corner == "huge logits":
        logits *= 300
    targets = np.stack([1 - soft, soft], 1)
    for fraction in (0.0, 0.05, 0.2, 0.7):
        value, grad = confidence_and_grad(logits, targets, fraction, weights, threshold)
        expected, expected_grad = confidence_by_hand(
            logits, targets, fraction, weights, 0.75, 0.2, threshold
        )
        np.testing.assert_allclose(value, expected, rtol=3e-6, atol=1e-6)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-6)


def random_batch(batch=16, seed=0):
    rng = np.random.default_rng(seed)
    soft = rng.uniform(size=batch).astype(np.float32)
    return rng.normal(size=(batch, 2)).astype(np.float32), np.stack([1 - soft, soft], 1)


@pytest.fixture
def registering():
    """Losses that a test registers are taken out again."""
    before = set(losses.LOSSES)
    yield
    for kind in set(losses.LOSSES) - before:
        losses.LOSSES.pop(kind)


def test_register_adds_a_loss_with_options_and_refuses_a_taken_name(registering):
    @losses.register("test_only", scale=2.0)
    def test_only(logits_BC, targets_BC, step_fraction, *, weights_B=None, scale):
        return scale * losses.soft_cross_entropy(logits_BC, targets_BC, weights_B)

    logits, targets = random_batch()
    expected = 2.0 * losses.LOSSES["xent"](logits, targets, 0.0)
    np.testing.assert_allclose(losses.LOSSES["test_only"](logits, targets, 0.0), expected)
    assert config_lib.LOSS_OPTIONS["test_only"] == {"scale": 2.0}
    with pytest.raises(errors.InputError, match="test_only"):
        losses.register("test_only")(lambda *_: None)


def test_a_state_goes_to_losses_that_have_one_and_to_no_other(registering):
    @losses.register("remembers", init_state=lambda targets_NC, **_: {"sum": targets_NC.sum()})
    def remembers(logits_BC, targets_BC, step_fraction, *, weights_B=None, state=None):
        return np.float32(-1 if state is None else state["sum"])

    logits, targets = random_batch(8)
    state = remembers.init_state(targets)
    assert float(remembers(logits, targets, 0.0)) == -1
    assert float(remembers(logits, targets, 0.0, state=state)) == pytest.approx(8)
    with pytest.raises(errors.InputError, match=r"loss 'xent' has no state"):
        losses.LOSSES["xent"](logits, targets, 0.0, state=state)
    with pytest.raises(errors.InputError, match="forgets.*no init_state"):
        losses.register("forgets", update=lambda state, *_, **__: state)(lambda *_: None)
    assert "forgets" not in losses.LOSSES and "forgets" not in config_lib.LOSS_OPTIONS


def test_which_losses_have_a_state_or_are_coupled():
    with_state = {kind for kind, loss in losses.LOSSES.items() if loss.init_state}
    updated = {kind for kind, loss in losses.LOSSES.items() if loss.update}
    coupled = {kind for kind, loss in losses.LOSSES.items() if loss.coupled}
    assert with_state == {"window", "buffered_confidence"}
    assert updated == {"buffered_confidence"}
    assert coupled == {
        "confidence",
        "logconf",
        "buffered_confidence",
        "soft_buffered_confidence",
    }


@pytest.mark.parametrize("kind", sorted(losses.LOSSES))
def test_a_declaration_has_exactly_the_options_of_its_function(kind):
    common = {"logits_BC", "targets_BC", "step_fraction", "weights_B", "state"}
    spec = losses.LOSSES[kind]
    assert set(inspect.signature(spec.fn).parameters) - common == set(spec.options)
    assert set(spec.traced) <= set(spec.options)
    assert spec.summary and spec.source and all(o.meaning for o in spec.options.values())
    for option, declared in spec.options.items():
        assert declared.check(option, declared.default) == declared.default


def test_the_config_of_the_documentation_is_valid():
    (snippet,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    config = config_lib.default_config()
    exec(snippet, {"config": config})
    labels = config_lib.with_labels(config).losses
    assert labels == ("xent", "confidence", "confidence(alpha_max=0.75)")


def labelled(*entries):
    config = config_lib.default_config()
    config.losses = entries
    return config_lib.with_labels(config)


def test_mappings_among_the_losses_become_labels_with_their_options():
    window = {"kind": "window", "label": "narrow", "radius": 0.2}
    config = labelled(
        "xent",
        {"kind": "confidence", "alpha_max": 0.75},
        {"kind": "buffered_confidence", "buffer_size": 8, "balance_batch": True},
        window,
        {"kind": "kl"},
    )
    assert config.losses == (
        "xent",
        "confidence(alpha_max=0.75)",
        "buffered_confidence(buffer_size=8,balance_batch=True)",
        "narrow",
        "kl",
    )
    found = {loss.label: loss for loss in validation.validate(config).losses}
    assert [loss.kind for loss in found.values()] == [
        "xent",
        "confidence",
        "buffered_confidence",
        "window",
        "kl",
    ]
    assert dict(found["confidence(alpha_max=0.75)"].options) == {
        "alpha_max": 0.75,
        "warmup_fraction": 0.2,
        "threshold": "half",
    }
    assert found["narrow"].options == (("radius", 0.2),)
    again = config_lib.with_labels(config)
    assert again.to_dict() == config.to_dict() and again.is_locked
    joined = config_lib.default_config()
    with joined.unlocked():
        joined.loss = config.loss
    joined.losses = (",".join(config.losses),)
    assert validation.validate(joined).losses == validation.validate(config).losses


def test_labelling_leaves_the_given_config_alone():
    config = config_lib.default_config()
    config.losses = ["xent", {"kind": "confidence", "alpha_max": 0.75}]
    before = config.to_dict()
    config_lib.with_labels(config)
    assert config.to_dict() == before
    with pytest.raises(errors.InputError, match=r"losses: \{.*with_labels"):
        validation.validate(config)


@pytest.mark.parametrize(
    "entry,parts",
    [
        ({"alpha_max": 0.5}, ["losses[1]", "no 'kind'", "confidence"]),
        ({"kind": "confidense"}, ["losses[1].kind", "'confidense'", "'confidence'"]),
        ({"kind": "confidence", "alpha": 1.0}, ["losses[1]", "'alpha'", "'alpha_max'"]),
        ({"kind": "xent", "label": "a,b"}, ["losses[1].label", "'a,b'", "commas"]),
        ({"kind": "xent", "label": 3}, ["losses[1].label", "3"]),
        ({"kind": "kl", "label": "xent"}, ["losses[1].label", "'xent' is taken", "another"]),
    ],
)
def test_a_bad_mapping_among_the_losses_is_named(entry, parts):
    with pytest.raises(errors.InputError) as caught:
        labelled("xent", entry)
    for part in parts:
        assert part in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind,option,value,allowed",
    [
        ("product", "alpha", -1.0, "from 0 to 100"),
        ("product", "beta", float("nan"), "a finite number"),
        ("entropy", "coef", float("inf"), "a finite number"),
        ("buffered_confidence", "buffer_size", 0, "from 1 to 65536"),
        ("buffered_confidence", "buffer_size", 8.0, "int"),
        ("buffered_confidence", "balance_batch", 1, "bool"),
        ("soft_buffered_confidence", "warmup_fraction", 1.5, "from 0 to 1"),
        ("window", "radius", -0.1, "from 0 to 1"),
        ("window", "radius", "wide", "float or None"),
        ("reverse_kl", "label_smoothing", 1.1, "from 0 to 1"),
        ("cace", "c", 0.6, "from 0 to 0.5"),
        ("adaptive_confidence", "temperature", 0.0, "from 0.001 to 1000"),
        ("generalized_xent", "q", 0.0, "from 0.001 to 1"),
        ("confidence", "threshold", "third", "half, prior"),
    ],
)
def test_an_option_out_of_range_is_named(kind, option, value, allowed):
    with pytest.raises(errors.InputError) as caught:
        validation.validate(labelled({"kind": kind, "label": "odd", option: value}))
    assert str(caught.value).startswith(f"loss.odd.{option}: ")
    assert allowed in str(caught.value)


def test_every_loss_is_valid_with_its_defaults():
    found = validation.validate(labelled(*losses.LOSSES)).losses
    assert {loss.kind: dict(loss.options) for loss in found} == config_lib.LOSS_OPTIONS
