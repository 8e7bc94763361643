"""Losses with a state, in the training program: against a slow loop, and what may not change it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_problem import (
    BATCH,
    STEPS,
    descent,
    flat,
    fresh,
    make_spec,
    order,
    padded,
    placed,
    problem,
    relative,
    runner,
    targets,
)  # fmt: skip

from w2s_jax import losses, sharding
from w2s_jax.core import errors
from w2s_jax.data import packing
from w2s_jax.models import heads, network
from w2s_jax.training import loop, population
from w2s_jax.training.batch_sources import compile_for, put_feature_batches
from w2s_jax.training.batches import NO_EXTRAS
from w2s_jax.training.checkpoints import Checkpoints

__all__ = ["descent"]


def toy_start(targets_NC, *, size, pull):
    del pull
    return {
        "steps": np.float32(0),
        "margins": np.zeros(size, np.float32),
        "prior": np.float32(targets_NC[:, 1].mean()),
    }


def toy_update(state, logits_BC, targets_BC, *, weights_B, size, pull):
    del targets_BC
    margins_B = pull * weights_B * (logits_BC[:, 1] - logits_BC[:, 0])
    margins = jnp.concatenate([state["margins"], margins_B])[-size:]
    return state | {"steps": state["steps"] + 1, "margins": margins}


@pytest.fixture(autouse=True, scope="module")
def toy():
    """A loss whose threshold is the mean of its last margins, and moves with the steps."""

    @losses.register(
        "toy", coupled=False, traced=("pull",), init_state=toy_start, update=toy_update,
        size=12, pull=1.0,
    )  # fmt: skip
    def toy(logits_BC, targets_BC, step_fraction, *, weights_B=None, state, size, pull):
        del size, pull
        margin_B = jax.lax.stop_gradient(logits_BC[:, 1] - logits_BC[:, 0])
        threshold = jnp.mean(state["margins"]) + state["prior"] + 0.1 * state["steps"]
        p_B = jax.nn.sigmoid(margin_B - threshold)
        mixed_BC = 0.5 * targets_BC + 0.5 * jnp.stack([1 - p_B, p_B], axis=1)
        return (1 + step_fraction) * losses.soft_cross_entropy(logits_BC, mixed_BC, weights_B)

    yield toy
    losses.LOSSES.pop("toy")


TOY = ("toy", (("pull", 1.5),))


def slow_loop():
    """(parameters, loss state, losses) after each step, a document at a time, a batch at a time."""
    config, _, params = problem()
    state = toy_start(targets(), size=12, pull=1.5)

    @jax.jit
    def gradient(params, tokens, lengths, soft, state, fraction):
        def loss(params):
            def logits(item):
                hidden = network.forward(config, params["backbone"], item[0][None])
                return heads.class_logits(params["head"], hidden[:, item[1] - 1])[0]

            logits_BC = jax.lax.map(logits, (tokens, lengths))
            value = losses.LOSSES["toy"](logits_BC, soft, fraction, state=state, size=12, pull=1.5)
            return value, logits_BC

        return jax.value_and_grad(loss, has_aux=True)(params)

    found = []
    for number, rows in enumerate(order()):
        # The order in which a state sees the documents of a batch.
        rows = np.array(sorted(rows, key=lambda row: int(row) * 2654435761 % 2**32))
        (value, logits), grads = gradient(
            params, *padded(rows), targets()[rows], state, number / STEPS
        )
        params = jax.tree.map(lambda x, g: x - 0.5 * g, params, grads)
        margins = 1.5 * np.asarray(logits[:, 1] - logits[:, 0])
        state = {
            "steps": np.float32(number + 1),
            "margins": np.concatenate([state["margins"], margins])[-12:],
            "prior": state["prior"],
        }
        found.append((params, state, float(value)))
    return found


@pytest.fixture(scope="module")
def wanted():
    return slow_loop()


@pytest.mark.medium
@pytest.mark.parametrize(
    "micro,shards", [(8, 1), (1, 1), pytest.param(8, 8, marks=pytest.mark.slow)]
)
def test_the_state_of_a_loss_follows_a_slow_loop(descent, wanted, micro, shards):
    """At any microbatch and mesh; 12 margins are kept, of batches of 8."""
    mesh, spec = sharding.mesh_of((shards, 1, 1)), make_spec(TOY, microbatch_size=micro)
    run = runner(spec, mesh, None, placed(spec, mesh))
    state = run(fresh(spec, mesh), 0, STEPS)
    moved, should = (flat(p) - flat(problem()[2]) for p in (state.params, wanted[-1][0]))
    assert relative(moved, should) < 1e-4
    for name, value in wanted[-1][1].items():
        np.testing.assert_allclose(state.loss_state[name], value, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        state.history[:STEPS, 0], [value for _, _, value in wanted], rtol=1e-4
    )


def test_a_step_that_fails_leaves_the_state_as_it_was(descent):
    mesh, spec = sharding.mesh_of((1, 1, 1)), make_spec(TOY, ema=0.5)
    batches = placed(spec, mesh)
    run = runner(spec, mesh, None, batches)
    good = jax.device_get(run(fresh(spec, mesh), 0, 2))
    soft = targets()
    soft[np.setdiff1d(order()[2], order()[:2])[0]] = np.nan
    run = runner(spec, mesh, None, placed(spec, mesh, targets_NC=soft))
    failed = jax.device_get(run(fresh(spec, mesh), 0, STEPS))
    assert int(failed.failed_step) == int(failed.step) == 2
    for part in ("params", "average", "loss_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(failed, part), getattr(good, part))


def test_a_state_that_is_never_updated_stays_and_one_is_refused_where_there_is_none(descent):
    @losses.register("toy_prior", init_state=lambda targets_NC: {"prior": targets_NC.mean(0)})
    def prior(logits_BC, targets_BC, step_fraction, *, weights_B=None, state):
        mixed_BC = 0.5 * targets_BC + 0.5 * state["prior"][None]
        return losses.soft_cross_entropy(logits_BC, mixed_BC, weights_B)

    try:
        mesh, spec = sharding.mesh_of((1, 1, 1)), make_spec(("toy_prior", ()), adapt="probe")
        assert spec.extras == NO_EXTRAS
        rng = np.random.default_rng(0)
        features = rng.normal(size=(24, 1, 16)).astype("f4")
        frozen = {"features_NKD": jax.device_put(features, sharding.replicated(mesh))}
        state = fresh(spec, mesh, params={"head": problem()[2]["head"]})
        run = runner(spec, mesh, frozen, put_feature_batches(order(), targets(), mesh))
        state = run(state, 0, 1)
        np.testing.assert_array_equal(state.loss_state["prior"], targets().mean(0))
        mixed = 0.5 * targets()[order()[0]] + 0.5 * targets().mean(0)[None]
        logits = features[order()[0], 0] @ problem()[2]["head"]["kernel"]
        wanted = -np.mean(np.sum(mixed * jax.nn.log_softmax(logits), axis=1))
        assert float(state.history[0, 0]) == pytest.approx(float(wanted), rel=1e-5)
    finally:
        losses.LOSSES.pop("toy_prior")
    with pytest.raises(errors.InputError, match="'xent' has no state"):
        losses.LOSSES["xent"](np.zeros((2, 2)), np.full((2, 2), 0.5), 0.0, state={})


class Silent:
    """A reporter."""

    def rows(self, rows):
        pass

    def progress(self, step, row, docs_per_second):
        pass


@pytest.mark.medium
def test_training_with_all_of_it_resumes_bit_for_bit(tmp_path):
    """A loss's state, the average and what is dropped; by Adam, with early stopping."""
    mesh = sharding.mesh_of((1, 1, 1))
    spec = make_spec(TOY, ema=0.7, dropout=0.2, learning_rate=0.01, seed=3)
    plan = loop.Schedule(STEPS, batch_size=BATCH, eval_every=1, select=True)
    seen = []

    def evaluate(params):
        score = float(jnp.sum(params["head"]["kernel"]))
        seen.append(score)
        return [{"agreement": score, "score": [score]}]

    def train(checkpoints=None, stops=()):
        batches, asked = placed(spec, mesh), []

        def should_stop():
            asked.append(1)
            return len(asked) in stops

        return loop.train(
            compile_for(batches, spec, mesh), fresh(spec, mesh), batches, plan, [Silent()],
            checkpoints=checkpoints, evaluate=evaluate, should_stop=should_stop,
        )  # fmt: skip

    whole = jax.device_get(train()[:2])
    scores, seen[:] = list(seen), []
    saved = Checkpoints(tmp_path, keep=2)
    with pytest.raises(errors.Interrupted):
        train(saved, stops=(2,))
    saved.close()
    saved = Checkpoints(tmp_path, keep=2)
    again = jax.device_get(train(saved)[:2])
    saved.close()
    assert seen == scores and len(scores) == STEPS
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    assert float(whole[0].loss_state["steps"]) == STEPS


@pytest.mark.medium
@pytest.mark.parametrize(
    "how,own_order", [pytest.param("vmap", True, marks=pytest.mark.slow), ("loop", False)]
)
def test_a_population_of_two_equals_each_alone(descent, how, own_order):
    """They differ in targets, options of the loss, seed, and rates of dropout and averaging."""
    specs = [
        make_spec(("toy", (("pull", 1.0 + i),)), seed=i, dropout=0.1 + 0.2 * i, ema=0.5 + 0.3 * i)
        for i in range(2)
    ]
    soft = [targets(), 1 - targets()]
    one = sharding.mesh_of((1, 1, 1))
    mesh = population.make_mesh(2, jax.devices()[:2])
    orders = [order(i if own_order else 0) for i in range(2)]
    packed = (
        population.pack_members(problem()[1], np.stack(orders), max_shapes=1)
        if own_order
        else packing.pack(problem()[1], orders[0], max_shapes=1)
    )
    batches = population.put_batches(packed, soft, mesh, specs[0].extras)
    states = [fresh(spec, one, targets_NC=t) for spec, t in zip(specs, soft, strict=True)]
    program = population.compile_block(specs, mesh, None, batches, how)
    after = batches.advance(program, population.stack(states, mesh), 0, STEPS)
    after = jax.device_get(after)
    for i, spec in enumerate(specs):
        mine = population.member(after, i)
        alone = placed(spec, one, order_SB=orders[i], targets_NC=soft[i])
        alone = runner(spec, one, None, alone)(fresh(spec, one, targets_NC=soft[i]), 0, STEPS)
        for part in ("params", "average"):
            moved, should = (flat(getattr(s, part)) - flat(problem()[2]) for s in (mine, alone))
            assert relative(moved, should) < 1e-4, (i, part)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
            mine.loss_state, alone.loss_state,
        )  # fmt: skip


def test_losses_with_a_state_share_programs_and_need_no_more_than_they_must():
    specs = [make_spec(("toy", (("pull", 1.0 + i),)), seed=i) for i in range(2)]
    assert specs[0].program_key() == specs[1].program_key()
    assert specs[0].extras.update_order and make_spec().extras == NO_EXTRAS
    state = fresh(make_spec(), sharding.mesh_of((1, 1, 1)))
    assert state.loss_state == state.average == ()
