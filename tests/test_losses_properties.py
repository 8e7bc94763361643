"""All losses: float64 references of their formulas, invariances, corners; states.

Every variant is computed in one program for each shape of a batch. Soft labels and weights are
multiples of powers of two where an order of summation must not matter to a threshold.
"""

import collections
import functools

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2s_jax import losses
from w2s_jax.losses.windowed import init_window

VARIANTS = {
    "xent": ("xent", {}),
    "confidence": ("confidence", {}),
    "confidence prior": ("confidence", {"threshold": "prior", "alpha_max": 0.75}),
    "logconf": ("logconf", {}),
    "product": ("product", {}),
    "product powers": ("product", {"alpha": 0.5, "beta": 2.0}),
    "entropy": ("entropy", {}),
    "l2_confidence": ("l2_confidence", {"coef": 0.8}),
    "buffered_confidence": ("buffered_confidence", {"buffer_size": 8}),
    "buffered_confidence balanced": ("buffered_confidence", {"balance_batch": True}),
    "soft_buffered_confidence": ("soft_buffered_confidence", {}),
    "soft_buffered_confidence balanced": ("soft_buffered_confidence", {"balance_batch": True}),
    "window": ("window", {}),
    "window of a radius": ("window", {"radius": 0.2}),
    "kl": ("kl", {}),
    "reverse_kl": ("reverse_kl", {}),
    "reverse_kl smoothed": ("reverse_kl", {"label_smoothing": 0.2}),
    "reverse_xent": ("reverse_xent", {}),
    "reverse_xent smoothed": ("reverse_xent", {"label_smoothing": 0.2}),
    "cace": ("cace", {}),
    "adaptive_confidence": ("adaptive_confidence", {"temperature": 0.7}),
    "generalized_xent": ("generalized_xent", {}),
}
#: A document that is at the threshold itself is hardened to 0, whichever column that is.
NOT_SYMMETRIC = ("logconf", "buffered_confidence")
#: Options with which a loss is cross-entropy.
AS_XENT = {
    "confidence": {"alpha_max": 0.0},
    "logconf": {"aux_coef": 0.0},
    "product": {"beta": 0.0},
    "entropy": {"coef": 0.0},
    "l2_confidence": {"coef": 0.0},
    "buffered_confidence": {"aux_coef": 0.0},
    "soft_buffered_confidence": {"aux_coef": 0.0},
    "window": {"radius": 0.51},
    "cace": {"c": 0.0},
}

quickly = hypothesis.settings(
    max_examples=25, deadline=None, derandomize=True, database=None, print_blob=False
)


def computed(variants):
    """Jitted (logits, targets, fraction, weights) -> {name: (value, gradient)}."""

    def all_of(logits, targets, fraction, weights):
        def one(kind, options):
            loss = functools.partial(losses.LOSSES[kind], weights_B=weights, **options)
            return jax.value_and_grad(loss)(logits, targets, fraction)

        return {name: one(*variant) for name, variant in variants.items()}

    return jax.jit(all_of)


every = computed(VARIANTS)


def soft_labels(p1_B):
    p1_B = np.asarray(p1_B, np.float32)
    return np.stack([1 - p1_B, p1_B], axis=1)


@st.composite
def batches(draw, size=6, zero_weights=True):
    """(logits, targets, fraction, weights) with ties, hard labels and documents of weight 0."""
    logits = draw(arrays.arrays(np.float32, (size, 2), elements=st.integers(-8, 8).map(float)))
    p1_B = draw(arrays.arrays(np.float32, size, elements=st.integers(0, 8).map(lambda n: n / 8)))
    allowed = [0.0, 0.5, 1.0, 2.0] if zero_weights else [0.5, 1.0, 2.0]
    weights = draw(arrays.arrays(np.float32, size, elements=st.sampled_from(allowed)))
    fraction = draw(st.sampled_from([0.0, 0.0625, 0.5, 1.0]))
    return logits / 4, soft_labels(p1_B), np.float32(fraction), weights


def assert_same(ours, theirs, rows=slice(None), skip=()):
    """Values, and the gradients of ours against rows of theirs."""
    for name, (value, grad) in ours.items():
        if VARIANTS[name][0] not in skip:
            np.testing.assert_allclose(value, theirs[name][0], rtol=2e-6, atol=2e-6, err_msg=name)
            np.testing.assert_allclose(grad, theirs[name][1][rows], atol=2e-6, err_msg=name)


@quickly
@hypothesis.given(batches(), st.permutations(range(6)))
def test_the_order_of_the_batch_does_not_matter(batch, order):
    logits, targets, fraction, weights = batch
    order = np.array(order)
    moved = every(logits[order], targets[order], fraction, weights[order])
    assert_same(moved, every(*batch), order)


@quickly
@hypothesis.given(batches())
def test_a_swap_of_the_labels_changes_nothing_but_ties_at_a_quantile(batch):
    logits, targets, fraction, weights = batch
    swapped = every(logits[:, ::-1], targets[:, ::-1], fraction, weights)
    assert_same(swapped, every(*batch), (slice(None), slice(None, None, -1)), NOT_SYMMETRIC)


def test_a_document_at_the_quantile_breaks_the_symmetry_under_a_swap():
    """Else the exceptions of the test above were not needed."""
    logits = np.array([[1, 0], [0, 0], [0, 1]], np.float32)
    targets = soft_labels([0.25, 0.75, 0.5])
    for kind in NOT_SYMMETRIC:
        loss = losses.LOSSES[kind]
        value, swapped = loss(logits, targets, 1.0), loss(logits[:, ::-1], targets[:, ::-1], 1.0)
        grads = [
            jax.grad(loss)(x, t, 1.0)
            for x, t in ((logits, targets), (logits[:, ::-1], targets[:, ::-1]))
        ]
        assert np.isfinite(value) and np.isfinite(swapped)
        assert np.abs(grads[0] - grads[1][:, ::-1]).max() > 0.1, kind


@quickly
@hypothesis.given(batches(zero_weights=False), batches(2))
def test_documents_of_weight_zero_take_no_part(batch, others):
    """Appended to a batch they change nothing, and have no gradient."""
    logits, targets, fraction, weights = batch
    mixed = every(
        np.concatenate([others[0] * 1e3, logits]),
        np.concatenate([others[1], targets]),
        fraction,
        np.concatenate([np.zeros(2, np.float32), weights]),
    )
    assert_same(every(*batch), mixed, slice(2, None))
    for name, (_, grad) in mixed.items():
        np.testing.assert_array_equal(grad[:2], 0, err_msg=name)


@quickly
@hypothesis.given(batches())
def test_a_gradient_sums_to_zero_over_the_classes_of_a_document(batch):
    """A shift of both logits changes no probability."""
    for name, (_, grad) in every(*batch).items():
        np.testing.assert_allclose(grad.sum(1), 0, atol=1e-6, err_msg=name)


@quickly
@hypothesis.given(batches())
def test_without_its_own_term_a_loss_is_cross_entropy(batch):
    expected, expected_grad = every(*batch)["xent"]
    for name, (value, grad) in as_xent(*batch).items():
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(grad, expected_grad, atol=1e-6, err_msg=name)


as_xent = computed({kind: (kind, options) for kind, options in AS_XENT.items()})


def test_adaptive_confidence_begins_as_cross_entropy_and_kl_has_its_gradient():
    logits, targets, _, weights = random_batch(6)
    start = every(logits, targets, np.float32(0), weights)
    for part in (0, 1):
        np.testing.assert_allclose(
            start["adaptive_confidence"][part], start["xent"][part], rtol=1e-6
        )
    np.testing.assert_allclose(start["kl"][1], start["xent"][1], atol=1e-7)


CORNERS = {
    "label 0": soft_labels(np.zeros(6)),
    "label 1": soft_labels(np.ones(6)),
    "both": soft_labels([0, 1, 0, 1, 1, 0]),
    "undecided": soft_labels(np.full(6, 0.5)),
    "nearly hard": np.array([[1, 1e-30], [1e-30, 1], [1, 1e-40]] * 2, np.float32),
}
EXTREMES = {
    "ties": np.zeros((6, 2), np.float32),
    "huge": np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4]] * 2, np.float32),
    "mixed": np.array([[1e4, 0], [0, 0], [0, -1e4], [1, 2], [2, 1], [-1e4, 1e4]], np.float32),
}


@pytest.mark.parametrize("labels", CORNERS)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_value_and_gradient_are_finite_at_the_corners(labels, extreme):
    for fraction in (0.0, 1.0):
        for weights in (np.ones(6, np.float32), np.zeros(6, np.float32)):
            found = every(EXTREMES[extreme], CORNERS[labels], np.float32(fraction), weights)
            for name, (value, grad) in found.items():
                assert np.isfinite(value) and np.all(np.isfinite(grad)), name
                if not weights.any():
                    assert value == 0 and not np.any(grad), name


def test_a_batch_of_one_document_is_finite():
    for logits in ([[1e4, -1e4]], [[0, 0]], [[-3, 2]]):
        for p1 in (0.0, 0.5, 1.0):
            for name, (value, grad) in every(
                np.array(logits, np.float32), soft_labels([p1]), np.float32(1), np.ones(1, "f4")
            ).items():
                assert np.isfinite(value) and np.all(np.isfinite(grad)), name


def test_bfloat16_logits_are_computed_in_float32():
    logits, targets, fraction, weights = random_batch(6)
    half = jnp.asarray(logits, jnp.bfloat16)
    wide = every(np.asarray(half, np.float32), targets, fraction, weights)
    for name, (value, _) in every(half, targets, fraction, weights).items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, wide[name][0], rtol=1e-6, err_msg=name)


def test_a_product_without_the_labels_is_the_entropy_even_where_they_are_hard():
    """w^0 is 1, also of a label of 0: the target is f itself, without gradient."""
    logits = random_batch(6)[0]
    loss = functools.partial(losses.LOSSES["product"], alpha=0.0)
    value, grad = jax.value_and_grad(loss)(logits, CORNERS["both"], 0.5)
    lp = log_softmax(logits.astype(np.float64))
    np.testing.assert_allclose(value, -(np.exp(lp) * lp).sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(grad, 0, atol=1e-7)


def random_batch(size, seed=0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(size, 2)).astype(np.float32)
    weights = rng.choice([0.5, 1.0, 2.0], size).astype(np.float32)
    weights[1] = 0
    return logits, soft_labels(rng.uniform(size=size)), np.float32(0.5), weights


def log_softmax(z):
    return z - np.logaddexp(z[:, :1], z[:, 1:])


def hard(scores):
    positive = np.where(scores[:, 1] == scores[:, 0], 0.5, scores[:, 1] > scores[:, 0])
    return np.stack([1 - positive, positive], 1)


def below_quantile(p0, values, level):
    positive = (p0 < np.quantile(values, level)).astype(np.float64)
    return np.stack([1 - positive, positive], 1)


def balanced(w, weights, options):
    if not options.get("balance_batch"):
        return w, (weights @ w[:, 1]) / weights.sum()
    odds = np.log(w[:, 1] + 1e-7) - np.log(1 - w[:, 1] + 1e-7)
    p1 = 1 / (1 + np.exp(-(odds - (weights @ odds) / weights.sum())))
    return np.stack([1 - p1, p1], 1), 0.5


def confidence_target(p0, prior, weights, options):
    """The paper's target: the positive mass is handed out from the top."""
    share = prior if options.get("threshold") == "prior" else 0.5
    left, positive = share * weights.sum(), np.zeros(len(p0))
    for index in np.argsort(p0):  # no ties here
        if weights[index] > 0:
            positive[index] = np.clip(left / weights[index], 0, 1)
            left -= weights[index]
    return np.stack([1 - positive, positive], 1)


def reference(kind, options, z, frozen, w, fraction, weights):
    """The formula in float64; what has no gradient is computed from the logits `frozen`."""
    lp, lp0, p = log_softmax(z), log_softmax(frozen), np.exp(log_softmax(z))
    p0, taken = np.exp(lp0[:, 0]), weights > 0
    half = options.get("aux_coef", 0.5)
    target, extra = w, 0.0
    if kind in ("confidence", "logconf", "buffered_confidence"):
        target, prior = balanced(w, weights, options)
        if kind == "confidence":
            own, half = (
                confidence_target(p0, prior, weights, options),
                options.get("alpha_max", 0.5),
            )
        else:
            own = below_quantile(p0, p0[taken], prior)
        target = (1 - half) * target + half * own
    elif kind == "soft_buffered_confidence":
        target = (1 - half) * balanced(w, weights, options)[0] + half * np.exp(lp0)
    elif kind == "product":
        target = w ** options.get("alpha", 1) * np.exp(lp0) ** options.get("beta", 1)
        target = target / target.sum(1, keepdims=True)
    elif kind == "entropy":
        extra = -0.5 * (p * lp).sum(1)
    elif kind == "l2_confidence":
        extra = -options["coef"] * (p[:, 1] - 0.5) ** 2
    elif kind == "window":
        confidence = np.sort(np.abs(w[taken, 1] - 0.5))
        radius = options.get("radius", confidence[(len(confidence) - 1) // 2])
        target = w * (np.exp(lp0).max(1) < 0.5 + radius)[:, None]
    elif kind == "kl":
        extra = (w * np.log(w)).sum(1)
    elif kind == "adaptive_confidence":
        own, weak = -(hard(lp0) * lp0).sum(1), -(hard(w) * lp0).sum(1)
        up, down = np.exp(own / options["temperature"]), np.exp(weak / options["temperature"])
        alpha = (up / (up + down))[:, None]
        target = (1 - alpha) * w + alpha * hard(lp0)
    loss = -(target * lp).sum(1) + extra
    smooth = options.get("label_smoothing", 0.0)
    backward = -(p * np.log((1 - smooth) * w + smooth / 2)).sum(1)
    if kind == "reverse_kl":
        loss = (p * lp).sum(1) + backward
    elif kind == "reverse_xent":
        loss = backward
    elif kind == "cace":
        loss = np.where(np.abs(w[:, 1] - 0.5) >= 0.1, loss, backward)
    elif kind == "generalized_xent":
        loss = (w * (1 - p**0.7) / 0.7).sum(1)
    return (weights @ loss) / weights.sum()


@pytest.mark.parametrize("seed", range(4))
def test_every_loss_is_its_formula_in_float64_and_so_is_its_gradient(seed):
    logits, targets, fraction, weights = random_batch(7, seed)
    targets[2] = [0.45, 0.55]  # an uncertain label, for `cace`
    found = every(logits, targets, fraction, weights)
    z, w, mass = (x.astype(np.float64) for x in (logits, targets, weights))
    for name, (kind, options) in VARIANTS.items():
        expected = functools.partial(reference, kind, options)
        np.testing.assert_allclose(
            found[name][0], expected(z, z, w, 0.5, mass), rtol=3e-6, atol=1e-6, err_msg=name
        )
        grad = np.zeros_like(z)
        for index in np.ndindex(z.shape):
            step = np.zeros_like(z)
            step[index] = 1e-5
            ends = [expected(z + sign * step, z, w, 0.5, mass) for sign in (1, -1)]
            grad[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(found[name][1], grad, rtol=1e-4, atol=1e-6, err_msg=name)


def test_warmups_are_linear_and_end():
    logits, targets, _, weights = random_batch(6)
    ends = {
        "confidence": 0.2,
        "buffered_confidence": 0.1,
        "soft_buffered_confidence": 0.1,
        "adaptive_confidence": 0.25,
    }
    at = {
        f: every(logits, targets, np.float32(f), weights)
        for f in (0.0, *{e / 2 for e in ends.values()}, *ends.values(), 1.0)
    }
    for name, end in ends.items():
        start, middle, final, last = (at[f][name][0] for f in (0.0, end / 2, end, 1.0))
        assert abs(final - start) > 1e-3
        np.testing.assert_allclose(middle, (start + final) / 2, rtol=1e-5)
        np.testing.assert_allclose(last, final, rtol=1e-5)


def test_the_soft_buffered_gradient_is_a_share_of_that_of_cross_entropy():
    batch = random_batch(6)
    found = every(*batch)
    np.testing.assert_allclose(
        found["soft_buffered_confidence"][1], 0.5 * found["xent"][1], atol=1e-7
    )


# States


@pytest.mark.parametrize("size,batch", [(7, 5), (7, 3), (4, 9)])
def test_a_buffer_is_a_deque_of_the_predictions_of_documents_that_take_part(size, batch):
    loss = losses.LOSSES["buffered_confidence"]
    state, slow = (
        loss.init_state(np.zeros((0, 2)), buffer_size=size),
        collections.deque(maxlen=size),
    )
    rng = np.random.default_rng(size)
    update = jax.jit(functools.partial(loss.update, buffer_size=size))
    compute = jax.jit(functools.partial(loss, buffer_size=size))
    for number in range(8):
        logits = rng.normal(size=(batch, 2)).astype(np.float32)
        targets = soft_labels(rng.uniform(size=batch))
        weights = rng.choice([0.0, 1.0, 2.0], batch).astype(np.float32)
        if number == 3:
            weights[:] = 0
        before = state
        state = update(before, logits, targets, weights_B=weights)
        p0 = np.exp(log_softmax(logits.astype(np.float64)))[:, 0]
        slow.extend(p0[weights > 0])
        assert state["p0_Q"].shape == (size,) and state["p0_Q"].dtype == np.float32
        assert int(state["count"]) == len(slow) and state["count"].dtype == np.int32
        filled = np.asarray(state["p0_Q"])[size - len(slow) :]
        np.testing.assert_allclose(filled, np.array(slow), rtol=1e-5)
        if weights.any():
            w, mass = targets.astype(np.float64), weights.astype(np.float64)
            several = (weights > 0).sum() > 1
            prior = (mass @ w[:, 1]) / mass.sum() if several else 0.5
            own = below_quantile(p0, np.array(slow), prior)
            lp = log_softmax(logits.astype(np.float64))
            expected = mass @ -((0.5 * w + 0.5 * own) * lp).sum(1) / mass.sum()
            found = compute(logits, targets, 0.5, weights_B=weights, state=before)
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_buffer_changes_the_threshold_and_none_is_an_empty_one():
    loss = losses.LOSSES["buffered_confidence"]
    logits, targets, _, weights = random_batch(6)
    empty = loss.init_state(targets)
    assert {k: (v.shape, v.dtype) for k, v in empty.items()} == {
        "p0_Q": ((32,), np.float32),
        "count": ((), np.int32),
    }
    alone = loss(logits, targets, 1.0, weights_B=weights)
    np.testing.assert_array_equal(loss(logits, targets, 1.0, weights_B=weights, state=empty), alone)
    certain = loss.update(empty, np.tile([[9.0, 0.0]], (26, 1)), None, weights_B=None)
    assert abs(loss(logits, targets, 1.0, weights_B=weights, state=certain) - alone) > 0.01


def test_buffers_of_several_students_are_updated_side_by_side():
    loss = losses.LOSSES["buffered_confidence"]
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 2, 5, 2)).astype(np.float32)  # students, steps, B, C
    targets, weights = soft_labels(rng.uniform(size=5)), np.array([1, 0, 1, 1, 1], np.float32)

    def two_steps(logits_2BC):
        state, values = loss.init_state(None), []
        for logits_BC in logits_2BC:
            values.append(loss(logits_BC, targets, 1.0, weights_B=weights, state=state))
            state = loss.update(state, logits_BC, targets, weights_B=weights)
        return state, jnp.stack(values)

    together = jax.jit(jax.vmap(two_steps))(logits)
    for student in range(3):
        alone = two_steps(logits[student])
        jax.tree.map(
            lambda x, y, n=student: np.testing.assert_allclose(x[n], y, rtol=1e-6), together, alone
        )


@pytest.mark.parametrize("count", [1, 4, 5])
def test_the_radius_of_a_window_is_the_lower_median_of_all_weak_confidences(count):
    p1_N = np.random.default_rng(count).uniform(size=count).astype(np.float32)
    state = init_window(soft_labels(p1_N), radius=None)
    ordered = sorted(abs(float(p) - 0.5) for p in p1_N)
    assert float(state["radius"]) == pytest.approx(ordered[(count - 1) // 2], abs=1e-7)
    assert state["radius"].shape == () and state["radius"].dtype == np.float32
    assert float(init_window(soft_labels(p1_N), radius=0.25)["radius"]) == 0.25


def test_a_window_with_a_state_is_exact_in_microbatches():
    loss = losses.LOSSES["window"]
    assert not loss.coupled and loss.update is None
    logits, targets, _, weights = random_batch(8)
    state = loss.init_state(targets)
    whole = loss(logits, targets, 0.5, weights_B=weights, state=state)
    parts = sum(
        weights[half].sum()
        * loss(logits[half], targets[half], 0.5, weights_B=weights[half], state=state)
        for half in (slice(0, 4), slice(4, 8))
    )
    np.testing.assert_allclose(parts / weights.sum(), whole, rtol=1e-6)
    assert 0 < float(whole) < float(losses.LOSSES["xent"](logits, targets, 0.5, weights_B=weights))


def test_an_uncoupled_loss_is_the_weighted_mean_of_its_microbatches():
    logits, targets, fraction, weights = random_batch(8)
    weights[1] = 1
    whole = every(logits, targets, fraction, weights)
    halves = [
        (weights[h], every(logits[h], targets[h], fraction, weights[h]))
        for h in (slice(0, 4), slice(4, 8))
    ]
    for name, (kind, options) in VARIANTS.items():
        if losses.LOSSES[kind].coupled or name == "window":
            continue
        parts = sum(mass.sum() * found[name][0] for mass, found in halves) / weights.sum()
        np.testing.assert_allclose(parts, whole[name][0], rtol=2e-6, err_msg=f"{name} {options}")
