"""The training step against PyTorch's whole runs, closed forms, and its invariances."""

import contextlib
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_problem import plain_descent, runner

from w2s_jax import models, sharding, testing
from w2s_jax.config import TrainSettings
from w2s_jax.core import errors
from w2s_jax.data import packing, packing_shapes
from w2s_jax.data.documents import Document
from w2s_jax.data.tokenize import soft_labels, tokenize
from w2s_jax.losses import LOSSES
from w2s_jax.models import heads, network
from w2s_jax.training import programs
from w2s_jax.training import step as step_module
from w2s_jax.training.batch_sources import put_batches, put_feature_batches
from w2s_jax.training.batches import Batch
from w2s_jax.training.gradient import loss_and_gradient
from w2s_jax.training.optimizer import learning_rates, make_optimizer
from w2s_jax.training.prediction import Predictor
from w2s_jax.training.programs import compile_step
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import init_state, rounded_up

XENT = ("xent", ())


def one_device():
    return sharding.mesh_of((1, 1, 1))


def token_documents(rows, labels):
    docs = [
        Document(id=i, tokens=tuple(int(t) for t in row), soft_label=float(label))
        for i, (row, label) in enumerate(zip(rows, labels, strict=True))
    ]
    return tokenize(docs, None, max_length=None, overlong="error")[0]


def on_mesh(params, mesh):
    return jax.device_put(params, sharding.replicated(mesh))


@pytest.mark.medium
@pytest.mark.parametrize(
    "kind,mesh_shape,num_microbatches,max_shapes",
    [
        ("xent", (1, 1, 1), 1, 3),
        ("logconf", (8, 1, 1), 4, 1),
        pytest.param("product", (8, 1, 1), 4, 1, marks=pytest.mark.slow),
    ],
)
def test_a_whole_run_follows_the_released_code(
    golden, monkeypatch, kind, mesh_shape, num_microbatches, max_shapes
):
    """32 Adam steps of the PyTorch original from the same Hugging Face folder, batch by batch.

    Whole batches and microbatches of 8 documents (of the coupled loss too), in one shape and in
    several, on one device and on 8 data shards.
    """
    monkeypatch.setattr(packing_shapes, "SHAPE_STEPS", 0)
    run = np.load(golden / "released_run.npz")
    mesh = sharding.mesh_of(mesh_shape)
    config, backbone = models.load(golden / "gpt2", mesh)
    train_docs, test_docs = (
        token_documents(
            [ids[:n] for ids, n in zip(run[f"{s}_ids"], run[f"{s}_lengths"], strict=True)], labels
        )
        for s, labels in (("train", run["train_soft"]), ("test", run["test_label"]))
    )
    order = np.tile(np.arange(512, dtype=np.int32).reshape(16, 32), (2, 1))
    packed = packing.pack(
        train_docs,
        order,
        num_microbatches=num_microbatches,
        row_multiple=sharding.row_shards(mesh),
        max_shapes=max_shapes,
    )
    assert len(packed.buckets) == max_shapes
    settings = TrainSettings(learning_rate=5e-4, schedule="cosine", batch_size=32)
    head = heads.init_class_head("zeros", config, backbone, (0, 1), mesh)
    params = {"backbone": backbone, "head": head}
    state = init_state(params, make_optimizer(settings), 32, mesh)
    batches = put_batches(packed, soft_labels(train_docs.labels_N), mesh)
    options = {"logconf": (("aux_coef", 0.5),), "product": (("alpha", 1.0),)}.get(kind, ())
    step = compile_step(StepSpec(config, settings, 32, (kind, options)), mesh)
    for number in range(32):
        state = step(state, batches.at(number))
    history = np.asarray(state.history)
    np.testing.assert_allclose(history[:, 0], run[f"{kind}_loss"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(history[:, 2], run[f"{kind}_lr"], rtol=1e-5, atol=1e-10)
    logits = Predictor(config, test_docs, mesh)(state.params)
    np.testing.assert_allclose(logits, run[f"{kind}_test_logits"], rtol=0, atol=5e-5)


@functools.cache
def small_problem(num_texts=1):
    """A tiny model with a random head, and 16 ragged documents with soft labels."""
    rng = np.random.default_rng(0)
    config = testing.tiny_model(vocab_size=32)
    rows = [rng.integers(1, 31, n) for n in rng.integers(3, 30, 16 * num_texts)]
    docs = token_documents(rows, rng.uniform(size=16 * num_texts))
    docs = dataclasses.replace(
        docs, num_texts=num_texts, ids_N=docs.ids_N[:16], labels_N=docs.labels_N[:16]
    )
    backbone = jax.device_get(network.init_params(config, 0, one_device()))
    backbone = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"), backbone)
    head = {"kernel": rng.normal(size=(16, 2 // num_texts)).astype(np.float32)}
    return config, docs, {"backbone": backbone, "head": head}


#: Plain gradient descent with rate 1: the parameters' change is the gradient itself.
def gradient_of_one_step(
    monkeypatch, loss, mesh_shape=(1, 1, 1), micro=1, dtype="float32", num_texts=1
):
    config, docs, params = small_problem(num_texts)
    plain_descent(monkeypatch)
    settings = TrainSettings(
        batch_size=16,
        microbatch_size=16 // micro,
        compute_dtype=dtype,
        learning_rate=1.0,
        schedule="constant",
    )
    mesh = sharding.mesh_of(mesh_shape)
    order = np.tile(np.arange(16, dtype=np.int32), (3, 1))
    multiple = sharding.row_shards(mesh)
    packed = packing.pack(docs, order, num_microbatches=micro, row_multiple=multiple)
    places = jax.tree.map(lambda x: x.sharding, network.abstract_params(config, mesh))
    state_params = on_mesh(params, mesh)
    state_params["backbone"] = jax.device_put(params["backbone"], places)
    if loss is None:
        del state_params["head"]
    state = init_state(state_params, optax.identity(), 4, mesh)
    # Step 2 of 4: step_fraction 1/2, past every warm-up.
    state = dataclasses.replace(state, step=on_mesh(np.int32(2), mesh))
    targets = None if loss is None else soft_labels(docs.labels_N)
    batches = put_batches(packed, targets, mesh).at(2)
    spec = StepSpec(config, settings, 4, loss, 2 // num_texts)
    after = compile_step(spec, mesh)(state, batches)
    programs.programs.cache_clear()
    before = params if loss is not None else {"backbone": params["backbone"]}
    grads = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), before, after.params)
    flat = np.concatenate([g.reshape(-1) for g in jax.tree.leaves(grads)])
    return float(after.history[2, 0]), flat


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def padded_documents(docs):
    """Each text alone in a row, zeros after it: tokens [16 K, 1, L] and lengths [16 K]."""
    lengths = docs.piece_lengths_P
    tokens = np.zeros((len(lengths), 1, lengths.max()), np.int32)
    for i, n in enumerate(lengths):
        tokens[i, 0, :n] = docs.document(*divmod(i, docs.num_texts))
    return tokens, lengths


def one_document_at_a_time(loss_name, num_texts=1):
    """Loss and gradient with a forward pass of its own for each text (nothing is packed)."""
    config, docs, params = small_problem(num_texts)

    def loss(params):
        def logits(item):
            tokens, length = item
            hidden = network.forward(config, params["backbone"], tokens)
            return heads.class_logits(params["head"], hidden[:, length - 1])[0]

        logits_BC = jax.lax.map(logits, padded_documents(docs)).reshape(16, 2)
        return LOSSES[loss_name](logits_BC, soft_labels(docs.labels_N), 0.5)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    return float(value), np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])


@pytest.mark.medium
@pytest.mark.parametrize("num_texts", [1, 2])
def test_packed_gradients_equal_those_of_one_document_at_a_time(monkeypatch, num_texts):
    """Of pairs too, where the logits are the rewards of the two texts."""
    value, grad = gradient_of_one_step(monkeypatch, ("confidence", ()), num_texts=num_texts)
    wanted, wanted_grad = one_document_at_a_time("confidence", num_texts)
    assert value == pytest.approx(wanted, rel=1e-5)
    assert relative(grad, wanted_grad) < 1e-5


def test_a_pair_is_judged_by_the_difference_of_its_rewards(monkeypatch):
    """-[w log sigmoid(r2 - r1) + (1 - w) log sigmoid(r1 - r2)], written out."""
    config, docs, params = small_problem(2)

    @jax.jit
    def rewards(params):
        def reward(item):
            hidden = network.forward(config, params["backbone"], item[0])
            return hidden[0, item[1] - 1] @ params["head"]["kernel"][:, 0]

        return jax.lax.map(reward, padded_documents(docs))

    r = np.asarray(rewards(params), np.float64).reshape(16, 2)
    difference, w = r[:, 1] - r[:, 0], docs.labels_N
    wanted = np.mean(w * np.log1p(np.exp(-difference)) + (1 - w) * np.log1p(np.exp(difference)))
    value, _ = gradient_of_one_step(monkeypatch, XENT, num_texts=2)
    assert value == pytest.approx(wanted, rel=1e-5)
    value, _ = gradient_of_one_step(monkeypatch, XENT, (2, 2, 2), 4, num_texts=2)
    assert value == pytest.approx(wanted, rel=1e-5)


@pytest.mark.medium
def test_microbatches_change_no_gradient(monkeypatch):
    """Of a loss that is a sum over documents; of others see the next test, and test_sharding."""
    value, whole = gradient_of_one_step(monkeypatch, XENT)
    other_value, other = gradient_of_one_step(monkeypatch, XENT, micro=4)
    assert other_value == pytest.approx(value, rel=1e-5)
    assert relative(other, whole) < 1e-5


@functools.cache
def exact_problem():
    """A one-layer model with a random head, and 32 ragged documents."""
    rng = np.random.default_rng(0)
    config = testing.tiny_model(vocab_size=32, num_layers=1)
    docs = token_documents(
        [rng.integers(1, 31, n) for n in rng.integers(3, 20, 32)], rng.uniform(size=32)
    )
    backbone = jax.device_get(network.init_params(config, 0, one_device()))
    backbone = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"), backbone)
    return config, docs, {"backbone": backbone, "head": {"kernel": rng.normal(size=(16, 2))}}


def exact_gradient(kind, micro_size, shards, accumulate=False):
    """The gradient at half of the training, computed `micro_size` documents at a time.

    With `accumulate`, the mean of the microbatches' own gradients: a negative control.
    """
    config, docs, params = exact_problem()
    mesh = sharding.mesh_of((shards, 1, 1))
    settings = TrainSettings(batch_size=32, microbatch_size=micro_size, learning_rate=1e-3)
    count = 32 // micro_size
    order = np.arange(32, dtype=np.int32)[None]
    packed = packing.pack(docs, order, num_microbatches=count, row_multiple=shards)
    batch = put_batches(packed, soft_labels(docs.labels_N), mesh).at(0)
    batch = jax.tree.map(lambda x: x[0], batch.batches)
    spec = StepSpec(config, settings, 4, (kind, ()))

    def whole(params, batch):
        half = jnp.float32(0.5)
        return loss_and_gradient(spec, {}, params, {}, batch, half, ()).grads

    def gradient(params, batch):
        if not accumulate:
            return whole(params, batch)
        parts = Batch(
            jax.tree.map(lambda x: x[:, None], batch.microbatches),
            batch.targets_BC.reshape(count, -1, 2),
            batch.weights_B.reshape(count, -1),
        )
        one = jax.lax.map(lambda part: whole(params, part), parts)
        return jax.tree.map(lambda x: x.mean(0), one)

    params = on_mesh(jax.tree.map(np.float32, params), mesh)
    grads = jax.device_get(jax.jit(gradient)(params, batch))
    return np.concatenate([g.ravel() for g in jax.tree.leaves(grads)])


@pytest.mark.medium
def test_the_gradient_is_exact_at_any_microbatch_and_mesh():
    """1e-6 of its norm; and plain accumulation, which is wrong for this loss, is far off."""
    whole = exact_gradient("confidence", 32, 1)
    for micro_size, shards in ((4, 8), (1, 8)):
        other = exact_gradient("confidence", micro_size, shards)
        assert relative(other, whole) < 1e-6, (micro_size, shards)
    assert relative(exact_gradient("confidence", 4, 1, accumulate=True), whole) > 1e-2


@pytest.mark.medium
def test_language_model_steps_equal_a_plain_next_token_loss(monkeypatch):
    config, docs, params = small_problem()

    def loss(params):
        def nll(item):
            tokens, length = item
            hidden = network.forward(config, params["backbone"], tokens)
            logits = heads.language_model_logits(config, params["backbone"], hidden)[0, :-1]
            log_p = jax.nn.log_softmax(logits)
            picked = jnp.take_along_axis(log_p, tokens[0, 1:, None], axis=1)[:, 0]
            return -jnp.sum(jnp.where(jnp.arange(len(picked)) < length - 1, picked, 0.0))

        tokens, lengths = padded_documents(docs)
        return jnp.sum(jax.lax.map(nll, (tokens, lengths))) / (lengths - 1).sum()

    wanted, grads = jax.jit(jax.value_and_grad(loss))({"backbone": params["backbone"]})
    wanted_grad = np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads)])
    for micro in (1, 4):
        value, grad = gradient_of_one_step(monkeypatch, None, micro=micro)
        assert value == pytest.approx(float(wanted), rel=1e-5)
        assert relative(grad, wanted_grad) < 1e-5


def test_bfloat16_gradients_stay_near_float32(monkeypatch):
    _, exact = gradient_of_one_step(monkeypatch, XENT)
    _, half = gradient_of_one_step(monkeypatch, XENT, dtype="bfloat16")
    assert 1e-4 < relative(half, exact) < 0.05


def poisoned(bucket, index):
    """The bucket with a target of NaN in one of its batches."""
    targets = bucket.batches.targets_BC.at[index, 0, 0].set(np.nan)
    return dataclasses.replace(
        bucket, batches=dataclasses.replace(bucket.batches, targets_BC=targets)
    )


def run_steps(settings, steps, poison_step=None):
    config, docs, params = small_problem()
    mesh = one_device()
    order = np.tile(np.arange(16, dtype=np.int32), (steps, 1))
    packed = packing.pack(docs, order)
    targets = soft_labels(docs.labels_N)
    state = init_state(on_mesh(params, mesh), make_optimizer(settings), steps, mesh)
    batches = put_batches(packed, targets, mesh).at(0)
    if poison_step is not None:
        batches = poisoned(batches, poison_step)
    step = compile_step(StepSpec(config, settings, steps, XENT), mesh)
    states = [jax.device_get(state)]
    for _ in range(steps):
        state = step(state, batches)
        states.append(jax.device_get(state))
    return states


@pytest.mark.medium
def test_adafactor_learns_the_batch():
    """All parameters of a model; the next test has numbers for each optimizer, of a probe."""
    settings = TrainSettings(
        optimizer="adafactor", learning_rate=1e-2, batch_size=16, warmup=0.2, schedule="linear"
    )
    history = run_steps(settings, 30)[-1].history
    assert history[-5:, 0].mean() < history[:3, 0].mean() - 0.05


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adafactor"])
def test_updates_equal_those_of_optax_with_the_schedule_inside(optimizer):
    """Five steps of a probe on 160 features, clipped, against the gradients of a plain formula."""
    rng = np.random.default_rng(0)
    features, targets = (
        rng.normal(size=(24, 1, 160)).astype("f4"),
        soft_labels(rng.uniform(size=24)),
    )
    kernel = rng.normal(size=(160, 2)).astype("f4")
    settings = TrainSettings(
        optimizer=optimizer, learning_rate=0.1, weight_decay=0.2, clip_norm=0.3, batch_size=8,
        schedule="linear", adapt="probe",
    )  # fmt: skip
    order = np.stack([rng.permutation(24)[:8] for _ in range(5)]).astype(np.int32)
    mesh = one_device()
    frozen = {"features_NKD": on_mesh(features, mesh)}
    spec = StepSpec(testing.tiny_model(d_model=160), settings, 5, XENT)
    state = init_state(
        on_mesh({"head": {"kernel": kernel}}, mesh), make_optimizer(settings), 5, mesh
    )
    batches = put_feature_batches(order, targets, mesh)
    state = runner(spec, mesh, frozen, batches)(state, 0, 5)
    rate = optax.linear_schedule(0.1, 0.0, 5)
    whole = optax.chain(
        optax.clip_by_global_norm(0.3),
        {
            "adam": optax.adam(rate),
            "adamw": optax.adamw(rate, weight_decay=0.2),
            "adafactor": optax.adafactor(rate),
        }[optimizer],
    )

    def loss(kernel, x, y):
        return optax.softmax_cross_entropy(x @ kernel, y).mean()

    wanted, moments = jnp.asarray(kernel), whole.init(kernel)
    for rows in order:
        grads = jax.grad(loss)(wanted, features[rows, 0], targets[rows])
        updates, moments = whole.update(grads, moments, wanted)
        wanted = optax.apply_updates(wanted, updates)
    np.testing.assert_allclose(state.params["head"]["kernel"], wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(wanted - kernel).max() > 0.1


@pytest.mark.parametrize("branches", [True, False])
def test_a_non_finite_loss_freezes_the_state_and_names_the_step(monkeypatch, branches):
    """With the choice that CPUs make, and the one that accelerators make."""
    monkeypatch.setattr(step_module, "_uses_branches", lambda: branches)
    programs.programs.cache_clear()
    states = run_steps(TrainSettings(batch_size=16, learning_rate=1e-3), 5, poison_step=3)
    assert [int(s.failed_step) for s in states] == [-1, -1, -1, -1, 3, 3]
    assert [int(s.step) for s in states] == [0, 1, 2, 3, 3, 3]
    good, last = states[3], states[5]
    jax.tree.map(np.testing.assert_array_equal, last.params, good.params)
    jax.tree.map(np.testing.assert_array_equal, last.opt_state, good.opt_state)
    assert np.isfinite(last.history).all()


def test_no_rate_that_is_let_through_makes_an_update_overflow():
    """A larger one is refused: the gradient's norm is all that guards the last good state."""
    settings = TrainSettings(batch_size=16, learning_rate=1e3, optimizer="adamw")
    for changes in ({"learning_rate": 3e38}, {"weight_decay": 0.1}):
        with pytest.raises(errors.InputError, match=f"train.{next(iter(changes))}: .*at most 1"):
            run_steps(dataclasses.replace(settings, **changes), 1)
    last = run_steps(dataclasses.replace(settings, weight_decay=1e-3), 5)[-1]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(last))
    # Adam at its worst: betas without memory, and the largest gradient of finite norm.
    settings = dataclasses.replace(settings, beta1=0.0, beta2=0.0)
    optimizer, params = make_optimizer(settings), jnp.zeros(2)
    state = optimizer.init(params)
    for gradient in (1.8e19, 1e-30):
        direction, state = optimizer.update(jnp.array([gradient, 0.0]), state, params)
        assert np.isfinite(1e3 * direction).all()


def block_problem(monkeypatch, mesh, **changes):
    """(spec, fresh state, batches in two shapes) of 11 steps."""
    monkeypatch.setattr(packing_shapes, "SHAPE_STEPS", 0)
    config, docs, params = exact_problem()
    rng = np.random.default_rng(1)
    order = np.stack([rng.permutation(32)[:8] for _ in range(11)]).astype(np.int32)
    packed = packing.pack(docs, order, max_shapes=2, row_multiple=sharding.row_shards(mesh))
    settings = TrainSettings(**({"batch_size": 8, "learning_rate": 1e-2} | changes))
    spec = StepSpec(config, settings, 11, ("confidence", ()))
    params = on_mesh(jax.tree.map(np.float32, params), mesh)
    state = init_state(params, make_optimizer(settings), 11, mesh)
    return spec, state, put_batches(packed, soft_labels(docs.labels_N), mesh)


@pytest.mark.medium
def test_a_block_is_its_steps_wherever_it_is_cut(monkeypatch):
    """The same bits, in two shapes that alternate; and single steps agree.

    A profile names each dispatch by its first step.
    """
    mesh, ends, named = one_device(), [], []
    monkeypatch.setattr(
        jax.profiler,
        "StepTraceAnnotation",
        lambda name, *, step_num: named.append(step_num) or contextlib.nullcontext(),
    )
    for cuts in ((0, 11), (0, 3, 4, 11), (0, 1, 8, 11)):
        spec, state, batches = block_problem(monkeypatch, mesh)
        assert len(batches.buckets) == 2 and np.abs(np.diff(batches.host_bucket_S[:11])).sum() > 2
        blocks = runner(spec, mesh, None, batches)
        for first, last in itertools.pairwise(cuts):
            state = blocks(state, first, last)
        ends.append(jax.device_get(state))
    assert named == [0, 0, 3, 4, 0, 1, 8]
    for other in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, ends[0])
    spec, state, batches = block_problem(monkeypatch, mesh)
    step = compile_step(spec, mesh)
    for number in range(11):
        state = step(state, batches.at(number))
    after = jax.device_get(state)
    assert int(after.step) == int(ends[0].step) == 11
    np.testing.assert_allclose(after.history, ends[0].history, rtol=1e-4, atol=1e-6)
    assert (after.history[:11, 1] > 0).all() and not after.history[11:].any()


def test_a_block_ends_at_a_step_that_fails(monkeypatch):
    spec, state, batches = block_problem(monkeypatch, one_device())
    buckets, number = list(batches.buckets), batches.host_bucket_S[5]
    buckets[number] = poisoned(buckets[number], int(buckets[number].index_S[5]))
    batches = dataclasses.replace(batches, buckets=tuple(buckets))
    state = jax.device_get(runner(spec, one_device(), None, batches)(state, 0, 11))
    assert int(state.step) == int(state.failed_step) == 5
    assert np.isfinite(state.history).all() and not state.history[5:].any()


def test_phases_that_differ_in_numbers_share_one_program():
    """Naive student, confidence student, ceiling; rates, schedules, decay, and 11 or 12 steps."""
    config, docs, params = exact_problem()
    mesh = one_device()
    programs.programs.cache_clear()
    train = TrainSettings(batch_size=8, learning_rate=1e-2)
    variants = [
        (train, ("xent", ()), 11),
        (train, ("confidence", (("alpha_max", 0.75), ("threshold", "half"))), 12),
        (dataclasses.replace(train, learning_rate=1e-3, schedule="linear"), XENT, 11),
        (
            dataclasses.replace(train, optimizer="adamw", weight_decay=0.1, warmup=0.5),
            ("confidence", (("warmup_fraction", 0.0),)),
            11,
        ),
    ]
    histories = []
    for settings, loss, steps in variants:
        rng = np.random.default_rng(0)
        order = np.stack([rng.permutation(32)[:8] for _ in range(steps)]).astype(np.int32)
        packed = packing.pack(docs, order, max_shapes=1)
        state = init_state(
            on_mesh(jax.tree.map(np.float32, params), mesh), make_optimizer(settings), steps, mesh
        )
        batches = put_batches(packed, soft_labels(docs.labels_N), mesh)
        spec = StepSpec(config, settings, steps, loss)
        state = runner(spec, mesh, None, batches)(state, 0, steps)
        histories.append(np.asarray(state.history)[:11, 0])
    assert len({h.tobytes() for h in histories}) == len(variants)
    assert programs.programs.cache_info().currsize == 1
    one, block = programs.programs(spec.program_key(), mesh)
    assert (one._cache_size(), block._cache_size()) == (0, 1)
    micro = dataclasses.replace(train, microbatch_size=4)
    keys = [StepSpec(config, micro, 11, loss).program_key() for loss in (XENT, variants[1][1])]
    assert keys[0] != keys[1]
    programs.programs.cache_clear()


def test_few_sizes_stand_for_all_numbers_of_steps():
    sizes = [rounded_up(n) for n in range(1, 5000)]
    assert all(n <= size <= max(16, 1.125 * n) for n, size in enumerate(sizes, 1))
    assert len({size for size in sizes if 1024 < size <= 2048}) == 8


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rates_equal_their_formulas(schedule):
    settings = TrainSettings(schedule=schedule, learning_rate=0.3, warmup=0.2)
    rates = learning_rates(settings, 50)
    decay = {
        "cosine": optax.cosine_decay_schedule(0.3, 40),
        "linear": optax.linear_schedule(0.3, 0.0, 40),
        "constant": optax.constant_schedule(0.3),
    }[schedule]
    np.testing.assert_allclose(rates[10:], [decay(i) for i in range(40)], rtol=3e-5, atol=1e-8)
    np.testing.assert_allclose(rates[:10], 0.3 * np.arange(1, 11) / 11, rtol=1e-6)
    assert rates.dtype == np.float32 and len(rates) == 50


def test_a_cosine_of_few_steps_falls_and_rises_again():
    settings = TrainSettings(learning_rate=0.1, schedule="cosine", cosine_steps=4)
    half = 0.1 * (1 + np.sqrt(0.5)) / 2
    expected = [0.1, half, 0.05, 0.1 - half, 0.0, 0.1 - half, 0.05, half, 0.1, half]
    np.testing.assert_allclose(learning_rates(settings, 10), expected, atol=1e-8)


def test_a_probe_s_gradient_is_that_of_logistic_regression():
    """One step of plain gradient descent on a head over features, against the closed form."""
    rng = np.random.default_rng(0)
    features, soft = rng.normal(size=(24, 1, 16)).astype("f4"), rng.uniform(size=24)
    kernel = rng.normal(size=(16, 2)).astype("f4")
    settings = TrainSettings(batch_size=8, learning_rate=0.5, adapt="probe", schedule="constant")
    order = rng.permutation(24).reshape(3, 8).astype(np.int32)
    mesh = sharding.make_mesh()
    batches = put_feature_batches(order, soft_labels(soft), mesh)
    frozen = {"features_NKD": jax.device_put(features, sharding.replicated(mesh))}
    state = init_state(
        on_mesh({"head": {"kernel": kernel}}, mesh), make_optimizer(settings), 3, mesh
    )
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * kernel.size
    spec = StepSpec(testing.tiny_model(), settings, 3, XENT)
    state = compile_step(spec, mesh, frozen)(state, batches.at(0))
    x, y = features[order[0], 0].astype(float), soft_labels(soft)[order[0]]
    p = np.exp(x @ kernel)
    p /= p.sum(1, keepdims=True)
    gradient = x.T @ (p - y) / 8
    history = np.asarray(state.history)[0]
    np.testing.assert_allclose(history[0], -np.mean(np.sum(y * np.log(p), 1)), rtol=1e-5)
    np.testing.assert_allclose(history[1], np.linalg.norm(gradient), rtol=1e-5)
    # Adam's first step is the sign of the gradient.
    np.testing.assert_allclose(
        state.params["head"]["kernel"], kernel - 0.5 * np.sign(gradient), rtol=1e-4, atol=1e-4
    )
