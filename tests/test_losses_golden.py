"""Losses against the numbers of the PyTorch originals: value and gradient."""

import functools
import gzip
import json

import jax
import numpy as np
import pytest

from w2s_jax import losses

RELEASED_NAMES = {
    "xent": ("xent", {}),
    "logconf": ("logconf", {}),
    "logconf_aux0.75_w0.2": ("logconf", {"aux_coef": 0.75, "warmup_fraction": 0.2}),
    "product": ("product", {}),
    "product_a0.5_b2": ("product", {"alpha": 0.5, "beta": 2.0}),
}
#: Steps in all: the originals' warm-up of 100 steps is a tenth of training.
ELEUTHER_STEPS = 1000


def released_results(golden):
    """(case, loss, options, state, logits, targets, fraction, value, gradient) of every result."""
    cases = json.loads((golden / "losses_released.json").read_text())["cases"]
    for number, case in enumerate(cases):
        logits_BC = np.array(case["logits"], np.float32).reshape(-1, 2)
        targets_BC = np.array(case["labels"], np.float32).reshape(-1, 2)
        for name, fraction, value, gradient in case["results"]:
            kind, options = RELEASED_NAMES[name]
            label = f"case {number} ({case['label_kind']}, {case['logit_kind']}) {name}"
            yield label, kind, options, None, logits_BC, targets_BC, fraction, value, gradient


def eleuther_results(golden):
    """As `released_results`."""
    text = gzip.decompress((golden / "losses_eleuther.json.gz").read_bytes())
    for number, case in enumerate(json.loads(text)["cases"]):
        logits_BC = np.array(case["logits"], np.float32).reshape(-1, 2)
        p1_B = np.array(case["labels"], np.float32)
        targets_BC = np.stack([1 - p1_B, p1_B], axis=1)
        for name, given, value, gradient in case["results"]:
            kind, options, state, fraction = eleuther_loss(name, given)
            label = f"case {number} ({case['label_kind']}, {case['logit_kind']}) {name} {given}"
            yield label, kind, options, state, logits_BC, targets_BC, fraction, value, gradient


def eleuther_loss(name, given):
    """(kind, options, state, fraction) of a result of EleutherAI's code."""
    if name in ("xent", "kl", "window"):
        return name, dict(given), None, 0.5
    options = {
        "aux_coef": given["aux_coef"],
        "warmup_fraction": given["warmup_steps"] / ELEUTHER_STEPS,
        "balance_batch": given["balance_batch"],
    }
    fraction = given["step"] / ELEUTHER_STEPS
    if name == "entropy":
        assert given["buffer"] == [] and not given["harden"]
        return "soft_buffered_confidence", options, None, fraction
    size = given["buffer_size"]
    seen = np.array(given["buffer"], np.float32)[-size:]
    state = {
        "p0_Q": np.pad(seen, (size - len(seen), 0)),
        "count": np.array(len(seen), np.int32),
    }
    return "buffered_confidence", options | {"buffer_size": size}, state, fraction


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_grad(kind, static, numbers, state, logits, targets, fraction):
    def loss(x):
        return losses.LOSSES[kind](x, targets, fraction, state=state, **dict(static), **numbers)

    return jax.value_and_grad(loss)(logits)


def deviations(results):
    """Checks every finite result; how many there were of each loss, and of NaN in the original."""
    checked, missing = {}, {}
    for label, kind, options, state, logits, targets, fraction, value, grad in results:
        numbers = {k: np.float32(v) for k, v in options.items() if isinstance(v, float)}
        static = tuple((k, v) for k, v in options.items() if k not in numbers)
        ours, our_grad = value_and_grad(
            kind, static, numbers, state, logits, targets, np.float32(fraction)
        )
        assert np.isfinite(ours) and np.all(np.isfinite(our_grad)), label
        if value is None:
            missing[kind] = missing.get(kind, 0) + 1
            continue
        grad = np.array(grad, np.float32).reshape(-1, 2)
        np.testing.assert_allclose(ours, value, rtol=2e-6, atol=2e-6, err_msg=label)
        np.testing.assert_allclose(our_grad, grad, rtol=2e-5, atol=5e-7, err_msg=label)
        checked[kind] = checked.get(kind, 0) + 1
    return checked, missing


def test_the_losses_of_the_released_code_are_its_own(golden):
    checked, missing = deviations(released_results(golden))
    assert checked == {"xent": 45, "logconf": 540, "product": 86}
    assert missing == {"product": 4}


@pytest.mark.medium
def test_the_losses_of_eleutherai_are_their_own(golden):
    checked, missing = deviations(eleuther_results(golden))
    assert not missing
    assert checked == {
        "xent": 48,
        "kl": 48,
        "window": 192,
        "buffered_confidence": 576,
        "soft_buffered_confidence": 480,
    }


@pytest.mark.parametrize("alpha,beta", [(1.0, 1.0), (0.5, 2.0)])
def test_where_the_original_product_is_nan_ours_is_the_limit(golden, alpha, beta):
    """In float64 nothing underflows."""
    name = "product" if alpha == 1 else "product_a0.5_b2"
    seen = 0
    for label, _, options, _, logits, targets, _, value, _ in released_results(golden):
        if value is not None or not label.endswith(f" {name}"):
            continue
        assert options.get("alpha", 1.0) == alpha
        log_p = logits.astype(np.float64)
        log_p -= np.logaddexp(log_p[:, :1], log_p[:, 1:])
        with np.errstate(divide="ignore"):
            power = alpha * np.log(targets.astype(np.float64)) + beta * log_p
        mixed = np.exp(power - np.logaddexp(power[:, :1], power[:, 1:]))
        expected = -(mixed * log_p).sum(1).mean()
        ours = losses.LOSSES["product"](logits, targets, 0.5, alpha=alpha, beta=beta)
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
        seen += 1
    assert seen == (1 if alpha == 1 else 3)
