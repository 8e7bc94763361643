"""Losses of any number of classes: float64 references, exact transport, and what is refused."""

import functools

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse

from w2s_jax import losses, sharding
from w2s_jax.core import errors
from w2s_jax.losses.common import hardened, hardened_share
from w2s_jax.losses.transport import _moved, transported
from w2s_jax.losses.windowed import init_window

VARIANTS = {
    "xent": ("xent", {}),
    "confidence": ("confidence", {}),
    "confidence prior": ("confidence", {"threshold": "prior", "alpha_max": 0.75}),
    "confidence argmax": ("confidence", {"threshold": "argmax"}),
    "logconf": ("logconf", {}),
    "product": ("product", {"alpha": 0.5, "beta": 2.0}),
    "entropy": ("entropy", {}),
    "l2_confidence": ("l2_confidence", {"coef": 0.8}),
    "soft_buffered_confidence": ("soft_buffered_confidence", {}),
    "soft_buffered_confidence balanced": ("soft_buffered_confidence", {"balance_batch": True}),
    "window": ("window", {}),
    "window of a radius": ("window", {"radius": 0.2}),
    "kl": ("kl", {}),
    "reverse_kl": ("reverse_kl", {"label_smoothing": 0.2}),
    "reverse_xent": ("reverse_xent", {"label_smoothing": 0.2}),
    "cace": ("cace", {"c": 0.3}),
    "adaptive_confidence": ("adaptive_confidence", {"temperature": 0.7}),
    "generalized_xent": ("generalized_xent", {}),
}
#: Documents of a batch for each number of classes: 4 a class, or more.
SIZES = {2: 9, 3: 13, 10: 41}

transport = jax.jit(transported)


def computed(variants):
    """Jitted (logits, targets, fraction, weights) -> {name: (value, gradient)}."""

    def all_of(logits, targets, fraction, weights):
        found = {}
        for name, (kind, options) in variants.items():
            loss = functools.partial(losses.LOSSES[kind], weights_B=weights, **options)
            found[name] = jax.value_and_grad(loss)(logits, targets, fraction)
        return found

    return jax.jit(all_of)


every = computed(VARIANTS)


def random_batch(classes, seed=0):
    """(logits, targets, fraction, weights), without ties; a document has the weight 0."""
    rng = np.random.default_rng(seed)
    size = SIZES[classes]
    logits = 2 * rng.normal(size=(size, classes)).astype(np.float32)
    targets = rng.dirichlet(np.full(classes, 0.5), size)
    # Above the floor of log w; and uncertain labels, for `cace`.
    certain = np.full((size, 1), 0.999)
    certain[3:6] = 0.2
    targets = (certain * targets + (1 - certain) / classes).astype(np.float32)
    weights = rng.choice([0.5, 1.0, 2.0], size).astype(np.float32)
    weights[1] = 0
    return logits, targets, np.float32(0.5), weights


def log_softmax(z):
    return z - np.logaddexp.reduce(z, axis=1, keepdims=True)


def linear_programme(scores, shares, weights):
    """(h / w, the best sum of h scores) by SciPy; 0 for documents of weight 0."""
    size, classes = scores.shape
    of_rows = scipy.sparse.kron(scipy.sparse.eye(size), np.ones((1, classes)))
    of_columns = scipy.sparse.kron(np.ones((1, size)), scipy.sparse.eye(classes))
    masses = np.concatenate([weights, shares / shares.sum() * weights.sum()])
    best = scipy.optimize.linprog(
        -scores.ravel(), A_eq=scipy.sparse.vstack([of_rows, of_columns]), b_eq=masses
    )
    assert best.status == 0, best.message
    h = best.x.reshape(size, classes)
    return h / np.where(weights > 0, weights, 1)[:, None], -best.fun


def one_hot(scores):
    """Hard labels where there are no ties."""
    return np.eye(scores.shape[1])[scores.argmax(1)]


def hard_labels(name, z, w, weights):
    """f_t of a variant of a thresholded loss."""
    classes = z.shape[1]
    if name == "confidence argmax":
        return one_hot(z)
    uniform = name == "confidence"
    shares = np.full(classes, 1 / classes) if uniform else weights @ w / weights.sum()
    return linear_programme(log_softmax(z), shares, weights)[0]


def reference(name, z, fixed, w, weights, own):
    """A loss at step fraction 1/2 in float64.

    `fixed` are the logits where there is no gradient, and `own` the hard labels there.
    """
    kind, options = VARIANTS[name]
    classes = z.shape[1]
    lp, lp0 = log_softmax(z), log_softmax(fixed)
    p, p0 = np.exp(lp), np.exp(lp0)
    target, extra = w, 0.0
    certainty = w.max(1) - 1 / classes
    if kind in ("confidence", "logconf"):
        a = options.get("alpha_max", 0.5)
        target = (1 - a) * w + a * own
    elif kind == "soft_buffered_confidence":
        if options:
            shifted = np.log(w + 1e-7)
            shifted = shifted - weights @ shifted / weights.sum()
            target = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
        target = (target + p0) / 2
    elif kind == "product":
        target = w ** options["alpha"] * p0 ** options["beta"]
        target = target / target.sum(1, keepdims=True)
    elif kind == "entropy":
        extra = -0.5 * (p * lp).sum(1)
    elif kind == "l2_confidence":
        extra = -options["coef"] / 2 * ((p - 1 / classes) ** 2).sum(1)
    elif kind == "window":
        ordered = np.sort(certainty[weights > 0])
        radius = options.get("radius", ordered[(len(ordered) - 1) // 2])
        target = w * (p0.max(1) < 1 / classes + radius)[:, None]
    elif kind == "kl":
        extra = (w * np.log(w)).sum(1)
    elif kind == "adaptive_confidence":
        up = np.exp(-lp0.max(1) / options["temperature"])
        down = np.exp(-(one_hot(w) * lp0).sum(1) / options["temperature"])
        a = (up / (up + down))[:, None]
        target = (1 - a) * w + a * one_hot(fixed)
    loss = -(target * lp).sum(1) + extra
    e = options.get("label_smoothing", 0.0)
    backward = -(p * np.log((1 - e) * w + e / classes)).sum(1)
    if kind == "reverse_kl":
        loss = (p * lp).sum(1) + backward
    elif kind == "reverse_xent":
        loss = backward
    elif kind == "cace":
        assert 0 < (certainty < options["c"]).sum() < len(w)
        loss = np.where(certainty >= options["c"], loss, backward)
    elif kind == "generalized_xent":
        loss = (w * (1 - p**0.7) / 0.7).sum(1)
    return loss


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("seed", range(2))
def test_every_loss_is_its_formula_in_float64_and_so_is_its_gradient(classes, seed):
    """The general formula also at C = 2, except for `logconf`, which has a quantile there."""
    batch = random_batch(classes, seed)
    z, w, weights = (batch[i].astype(np.float64) for i in (0, 1, 3))
    for name, (value, grad) in every(*batch).items():
        if name == "logconf" and classes == 2:
            continue
        coupled = VARIANTS[name][0] in ("confidence", "logconf")
        own = hard_labels(name, z, w, weights) if coupled else None
        terms = functools.partial(reference, name, fixed=z, w=w, weights=weights, own=own)
        expected = weights @ terms(z) / weights.sum()
        np.testing.assert_allclose(value, expected, rtol=3e-6, atol=1e-6, err_msg=name)
        # A term depends on the logits of its own document only, but for those without gradient.
        slope = np.zeros_like(z)
        for c in range(classes):
            step = 1e-5 * np.eye(classes)[c]
            slope[:, c] = (terms(z + step) - terms(z - step)) / 2e-5
        slope *= weights[:, None] / weights.sum()
        np.testing.assert_allclose(grad, slope, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_variants_are_all_losses_but_those_of_two_classes():
    of_two = {kind for kind, spec in losses.LOSSES.items() if spec.two_classes}
    assert of_two == {"buffered_confidence"}
    assert {kind for kind, _ in VARIANTS.values()} == set(losses.LOSSES) - of_two


@pytest.mark.parametrize("classes", [3, 10])
def test_neither_the_order_of_classes_nor_that_of_documents_matters(classes):
    logits, targets, fraction, weights = batch = random_batch(classes)
    whole = every(*batch)
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(len(logits)), rng.permutation(classes)
    mixed = every(logits[rows][:, columns], targets[rows][:, columns], fraction, weights[rows])
    for name, (value, grad) in mixed.items():
        np.testing.assert_allclose(value, whole[name][0], rtol=2e-6, err_msg=name)
        expected = whole[name][1][rows][:, columns]
        np.testing.assert_allclose(grad, expected, atol=1e-6, err_msg=name)


def test_documents_of_weight_zero_take_no_part():
    logits, targets, fraction, weights = random_batch(3)
    present = weights > 0
    before = every(logits, targets, fraction, weights)
    # JAX may still read the arrays that it was given.
    logits, targets = logits.copy(), targets.copy()
    logits[~present], targets[~present] = [1e4, -1e4, 0], [0, 1, 0]
    for name, (value, grad) in every(logits, targets, fraction, weights).items():
        np.testing.assert_allclose(value, before[name][0], rtol=2e-6, err_msg=name)
        np.testing.assert_allclose(grad[present], before[name][1][present], atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(grad[~present], 0, err_msg=name)


@pytest.mark.parametrize("logit", ["zero", "huge", "tied"])
@pytest.mark.parametrize("label", ["hard", "one class", "uniform"])
def test_value_and_gradient_are_finite_at_the_corners(logit, label):
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 0.0, 1.0], (13, 3)).astype(np.float32)
    logits = {"zero": 0 * signs, "huge": 1e4 * signs, "tied": signs}[logit]
    one_class = np.tile(np.float32([0, 1, 0]), (13, 1))
    hard = np.eye(3, dtype=np.float32)[rng.integers(3, size=13)]
    uniform = np.full((13, 3), 1 / 3, np.float32)
    targets = {"hard": hard, "one class": one_class, "uniform": uniform}[label]
    for weights in (np.ones(13, np.float32), np.zeros(13, np.float32)):
        for name, (value, grad) in every(logits, targets, np.float32(1), weights).items():
            assert np.isfinite(value) and np.all(np.isfinite(grad)), name
            if not weights.any():
                assert value == 0 and not np.any(grad), name


def test_losses_without_their_own_term_are_cross_entropy():
    batch = random_batch(3)
    as_xent = {
        "confidence": {"alpha_max": 0.0},
        "logconf": {"aux_coef": 0.0},
        "l2_confidence": {"coef": 0.0},
        "window": {"radius": 0.67},
        "cace": {"c": 0.0},
    }
    expected, slope = every(*batch)["xent"]
    for kind, (value, grad) in computed({k: (k, o) for k, o in as_xent.items()})(*batch).items():
        np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=kind)
        np.testing.assert_allclose(grad, slope, atol=1e-6, err_msg=kind)


def test_the_coefficient_of_logconf_is_its_own_for_three_classes_too():
    logits, targets, _, weights = random_batch(3)
    at = {
        f: every(logits, targets, np.float32(f), weights)["logconf"][0] for f in (0, 0.05, 0.1, 0.2)
    }
    # a is aux_coef * step up to a tenth of training, then it jumps to aux_coef.
    np.testing.assert_allclose(at[0.1] - at[0], 0.1 * (at[0.2] - at[0]), rtol=1e-4)
    np.testing.assert_allclose(at[0.05] - at[0], 0.05 * (at[0.2] - at[0]), rtol=1e-4)


def test_ties_of_classes_share_a_hard_label():
    scores = np.array([[1, 1, 0], [2, 2, 2], [0, 1, 3], [-1e4, 5, 5]], np.float32)
    shared = [[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0, 1], [0, 0.5, 0.5]]
    np.testing.assert_allclose(hardened(scores), shared, rtol=1e-6)
    value = losses.LOSSES["confidence"](scores, scores * 0, 1.0, alpha_max=1.0, threshold="argmax")
    expected = -(np.array(shared) * log_softmax(scores.astype(np.float64))).sum(1).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_the_radius_of_a_window_is_the_lower_median_of_the_largest_labels(count):
    targets = np.random.default_rng(count).dirichlet([1, 1, 1], count).astype(np.float32)
    ordered = sorted(float(max(row)) - 1 / 3 for row in targets)
    radius = init_window(targets, radius=None)["radius"]
    assert radius.dtype == np.float32
    assert float(radius) == pytest.approx(ordered[(count - 1) // 2], abs=1e-7)
    logits = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    window = losses.LOSSES["window"]
    given = window(logits, targets, 0.5, state={"radius": radius})
    np.testing.assert_allclose(window(logits, targets, 0.5), given, rtol=1e-6)


# Transport


PROBLEMS = (
    "plain",
    "weights",
    "shares",
    "one class",
    "collapsed",
    "wide",
    "columns",
    "tied",
    "bfloat16",
)


def problem(kind, size, classes, seed):
    """(scores, shares, weights) of a transport problem."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(size, classes)).astype(np.float32)
    shares, weights = np.full(classes, 1 / classes, np.float32), np.ones(size, np.float32)
    if kind == "weights":
        weights = rng.choice([0, 0.5, 1.0, 2.0], size).astype(np.float32)
        weights[0] = 1
    if kind in ("shares", "wide"):
        shares = rng.dirichlet(np.full(classes, 0.5)).astype(np.float32)
    if kind == "one class":
        shares = np.eye(classes, dtype=np.float32)[1]
    if kind == "collapsed":
        scores = np.float32(0.01) * scores + np.float32([5] + [0] * (classes - 1))
    if kind == "wide":
        scores *= rng.choice([1, 100, 1e4], (size, 1)).astype(np.float32)
    if kind == "columns":
        scores = np.outer(scores[:, 0], scores[0])
        weights = (10 ** rng.uniform(-3, 1, size)).astype(np.float32)
    if kind == "tied":
        scores, weights = np.round(scores), rng.random(size).astype(np.float32)
    if kind == "bfloat16":
        scores = np.asarray(jax.numpy.asarray(scores, jax.numpy.bfloat16), np.float32)
    return scores, shares, weights


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_transported_labels_are_the_best_of_a_linear_programme(classes, kind):
    for seed in range(4):
        scores, shares, weights = problem(kind, SIZES[classes], classes, seed)
        found = np.asarray(transport(scores, shares, weights), np.float64)
        s, m, w = (x.astype(np.float64) for x in (scores, shares, weights))
        s -= s.max(1, keepdims=True)
        labels, best = linear_programme(s, m, w)
        assert np.all(found >= 0) and not np.any(found[w == 0])
        np.testing.assert_allclose(found[w > 0].sum(1), 1, atol=1e-6)
        np.testing.assert_allclose(w @ found, m / m.sum() * w.sum(), atol=1e-6 * w.sum())
        np.testing.assert_allclose(w @ (found * s).sum(1), best, rtol=3e-5, atol=1e-5)
        # Elsewhere there is more than one best solution.
        if kind in ("plain", "weights", "shares"):
            np.testing.assert_allclose(found, labels, atol=3e-5)


@pytest.mark.parametrize("kind", ["plain", "weights", "shares", "tied"])
def test_of_two_classes_the_best_labels_are_those_of_a_threshold(kind):
    for seed in range(5):
        scores, shares, weights = problem(kind, 9, 2, seed)
        positive = hardened_share(scores[:, 1] - scores[:, 0], shares[1], weights)
        expected = np.where(weights > 0, positive, 0)
        np.testing.assert_allclose(transport(scores, shares, weights)[:, 1], expected, atol=2e-6)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_the_order_of_documents_changes_no_bit(kind):
    scores, shares, weights = problem(kind, 13, 3, 0)
    labels = np.asarray(transport(scores, shares, weights))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(13)
        moved = transport(scores[order], shares, weights[order])
        np.testing.assert_array_equal(moved, labels[order])


def test_weights_of_equal_documents_are_added_in_one_order():
    """In float32, small weights are lost if they are added to a large one, one by one."""
    scores = np.array([[2, 1, 0]] * 9 + [[0, 1, 3], [1, 0, 0]], np.float32)
    weights = np.array([2.0**24] + [1] * 8 + [2.0**23, 2.0**23], np.float32)
    shares = np.array([0.3, 0.3, 0.4], np.float32)
    labels = np.asarray(transport(scores, shares, weights))
    moved = transport(scores[::-1], shares, weights[::-1])
    np.testing.assert_array_equal(moved, labels[::-1])


def test_equal_documents_share_as_one_of_their_weight():
    scores, shares, weights = problem("plain", 13, 3, 0)
    scores[6:11] = np.round(8 * scores[6]) / 8
    scores[8] += 16
    weights[6:11] = [0.5, 2, 1, 0, 0.25]
    labels = np.asarray(transport(scores, shares, weights))
    together = np.delete(np.arange(13), [7, 8, 9, 10])
    merged = weights.copy()
    merged[6] = 3.75
    merged[7:11] = 0
    np.testing.assert_allclose(
        labels[together], transport(scores, shares, merged)[together], atol=1e-6
    )
    np.testing.assert_allclose(labels[[7, 8, 10]], np.tile(labels[6], (3, 1)), atol=1e-6)
    np.testing.assert_array_equal(labels[9], 0)
    alike = transport(np.ones((13, 3), np.float32), np.float32([0.5, 0.3, 0.2]), weights)
    np.testing.assert_allclose(alike[weights > 0], np.tile([0.5, 0.3, 0.2], (12, 1)), rtol=1e-6)


def test_a_constant_for_each_class_changes_no_label():
    """Column sums are fixed, so it adds the same to the sum of all labels."""
    scores, shares, weights = problem("shares", 41, 10, 3)
    shift = np.random.default_rng(0).choice([-2, 0, 0.5, 1], 10).astype(np.float32)
    labels = transport(scores, shares, weights)
    np.testing.assert_allclose(transport(scores + shift[None], shares, weights), labels, atol=1e-5)


def test_a_population_maps_it_and_nothing_has_a_gradient():
    problems = [problem(kind, 13, 3, 1) for kind in PROBLEMS]
    stacked = [np.stack(parts) for parts in zip(*problems, strict=True)]
    together = jax.jit(jax.vmap(transported))(*stacked)
    for mapped, one in zip(together, problems, strict=True):
        np.testing.assert_allclose(mapped, transport(*one), atol=1e-6)
    grad = jax.grad(lambda *args: (transported(*args) ** 2).sum(), argnums=(0, 1, 2))
    for part in jax.jit(grad)(*problems[1]):
        np.testing.assert_array_equal(part, 0)


def test_a_batch_on_several_devices_has_the_same_labels():
    scores, shares, weights = problem("weights", 16, 3, 1)
    rows = sharding.rows(sharding.mesh_of((8, 1, 1)), leading=0)
    split = transport(jax.device_put(scores, rows), shares, jax.device_put(weights, rows))
    np.testing.assert_allclose(split, transport(scores, shares, weights), atol=1e-6)


def test_a_batch_without_weight_has_no_labels_and_one_document_has_the_shares():
    scores, shares, weights = problem("shares", 13, 3, 0)
    np.testing.assert_array_equal(transport(scores, shares, 0 * weights), 0)
    one = transport(scores[:1], shares, weights[:1])
    np.testing.assert_allclose(one[0], shares, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_end_and_leave_the_loss_not_finite(bad):
    logits, targets, fraction, weights = random_batch(3)
    logits[0, 1], weights[0] = bad, 1
    value, _ = every(logits, targets, fraction, weights)["confidence"]
    assert not np.isfinite(value)


def test_a_large_batch_of_many_classes_is_balanced():
    scores, shares, weights = problem("collapsed", 256, 20, 0)
    labels = np.asarray(transport(scores, shares, weights), np.float64)
    np.testing.assert_allclose(labels.sum(0), 12.8, atol=1e-4)
    s = scores.astype(np.float64)
    best = linear_programme(s, shares.astype(np.float64), weights.astype(np.float64))[1]
    np.testing.assert_allclose((labels * s).sum(), best, rtol=1e-5)


def test_a_document_that_makes_two_moves_in_a_row_needs_mass_for_the_first_only():
    """By rounding a way over class 2 may be the shortest, where the document has nearly nothing.

    If that bounded the move, paths would be many and each would move nearly nothing.
    """
    mass = np.float32([[1, 0, 0.001], [0, 2, 0]])
    excess, before = np.float32([0.5, -0.75, 0.25]), np.array([-1, 2, 0])
    scores = np.zeros((2, 3), np.float32)
    moved, left = jax.jit(_moved)(scores, mass, excess, before, np.int32(1))
    np.testing.assert_allclose(moved, [[0.5, 0.5, 0.001], [0, 2, 0]])
    np.testing.assert_allclose(left, [0, -0.25, 0.25])


# What is refused


def refused(kind, classes, batch_size, **options):
    with pytest.raises(errors.InputError) as caught:
        losses.check_classes("mine", kind, options, classes=classes, batch_size=batch_size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_loss_of_two_classes_is_refused_for_more_by_name():
    message = refused("buffered_confidence", 3, 32)
    assert message.startswith("loss.mine.kind: 'buffered_confidence' is defined on two classes")
    assert "the task has 3" in message
    allowed = message.partition("allowed: ")[2].split(", ")
    assert allowed == [kind for kind in losses.LOSSES if kind != "buffered_confidence"]


def test_a_balanced_threshold_is_refused_for_a_small_batch_and_argmax_is_named():
    for value in ("half", "prior"):
        message = refused("confidence", 10, 39, threshold=value)
        assert message.startswith(f"loss.mine.threshold: '{value}' ")
        assert "at least 40 (it is 39)" in message and "threshold='argmax'" in message
    assert refused("confidence", 10, 39) == refused("confidence", 10, 39, threshold="half")
    message = refused("logconf", 3, 11)
    assert message.startswith("loss.mine.kind: 'logconf' ")
    assert "kind='confidence' with threshold='argmax'" in message


def test_what_is_allowed_passes():
    for kind, spec in losses.LOSSES.items():
        losses.check_classes("mine", kind, spec.defaults, classes=2, batch_size=1)
        if not spec.two_classes:
            losses.check_classes("mine", kind, spec.defaults, classes=10, batch_size=40)
        if not spec.two_classes and kind not in ("confidence", "logconf"):
            losses.check_classes("mine", kind, spec.defaults, classes=10, batch_size=1)
    argmax = {"threshold": "argmax"}
    losses.check_classes("mine", "confidence", argmax, classes=10, batch_size=1)
    losses.check_classes("mine", "dpo", {}, classes=10, batch_size=1)
    with pytest.raises(errors.InputError, match=r"loss\.mine\.kind.*'xnet'.*'xent'"):
        losses.check_classes("mine", "xnet", {}, classes=3, batch_size=32)


def test_a_registered_loss_declares_what_it_needs():
    fn = losses.LOSSES["xent"].fn
    try:
        losses.register("plain_test")(fn)
        losses.register("pairs_test", two_classes=True)(fn)
        losses.register("shares_test", balanced_by="cut", cut="even")(fn)
        losses.check_classes("mine", "plain_test", {}, classes=10, batch_size=1)
        assert "two classes only" in refused("pairs_test", 3, 32)
        assert refused("shares_test", 3, 8).startswith("loss.mine.cut: 'even' ")
        losses.check_classes("mine", "shares_test", {"cut": "argmax"}, classes=3, batch_size=8)
        with pytest.raises(errors.InputError, match="'odd_test'.*balanced_by.*'cat'"):
            losses.register("odd_test", balanced_by="cat", cut="even")(fn)
    finally:
        for kind in {"plain_test", "pairs_test", "shares_test", "odd_test"} & {*losses.LOSSES}:
            losses.LOSSES.pop(kind)
