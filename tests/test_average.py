"""The average of the weights, and smoothed labels: against their formulas, and in a whole run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from training_problem import BATCH, STEPS, fresh, make_spec, order, problem, runner, targets

from w2s_jax import models, sharding, testing
from w2s_jax.config.validation import validate
from w2s_jax.execution import execute
from w2s_jax.phases import inputs
from w2s_jax.planning.resolve import resolve
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.training import loop
from w2s_jax.training.batch_sources import put_feature_batches
from w2s_jax.training.prediction import Predictor
from w2s_jax.training.spec import average_weights
from w2s_jax.training.state import HISTORY, TrainState, result_of, rounded_up


def probe(spec, mesh):
    """(runner, fresh state) of a head on features."""
    features = np.random.default_rng(0).normal(size=(24, 1, 16)).astype("f4")
    frozen = {"features_NKD": jax.device_put(features, sharding.replicated(mesh))}
    batches = put_feature_batches(order(), targets(), mesh)
    params = {"head": problem()[2]["head"]}
    return runner(spec, mesh, frozen, batches), fresh(spec, mesh, params=params)


@pytest.mark.parametrize("decay,shards", [(0.5, 1), (0.99, 8)])
def test_the_average_follows_a_recursion_over_the_parameters_of_each_step(decay, shards):
    """m = decay m + (1 - decay) p from m = 0, and m / (1 - decay^t); programs are shared."""
    mesh, spec = sharding.mesh_of((shards, 1, 1)), make_spec(ema=decay, adapt="probe")
    assert spec.program_key() == make_spec(ema=0.9, adapt="probe").program_key()
    assert spec.program_key() != make_spec(adapt="probe").program_key()
    run, state = probe(spec, mesh)
    np.testing.assert_array_equal(state.average["head"]["kernel"], problem()[2]["head"]["kernel"])
    moment, found = 0.0, []
    for step in range(STEPS):
        state = run(state, step, step + 1)
        params = np.asarray(state.params["head"]["kernel"], np.float64)
        moment = decay * moment + (1 - decay) * params
        wanted = moment / (1 - decay ** (step + 1))
        average = np.asarray(state.average["head"]["kernel"])
        np.testing.assert_allclose(average, wanted, rtol=1e-5, atol=1e-6)
        found.append(average)
    assert np.abs(found[-1] - params).max() > 0.1
    run, state = probe(spec, mesh)
    state = run(state, 0, STEPS)
    np.testing.assert_allclose(state.average["head"]["kernel"], found[-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result_of(state)["head"]["kernel"], found[-1])


def test_a_tiny_update_of_a_long_average_is_not_lost():
    """Weights sum to one and stay exact where decay^t is nearly 1."""
    for decay in (0.9, 0.999999):
        weights = average_weights(decay, 1000)
        shares = weights * np.append(np.cumprod((1 - weights.astype(float))[:0:-1])[::-1], 1)
        assert shares.sum() == pytest.approx(1, abs=1e-5)
        wanted = decay ** np.arange(1000)[::-1]
        np.testing.assert_allclose(shares, wanted / wanted.sum(), rtol=1e-3, atol=1e-30)


def test_the_result_has_the_dtypes_of_the_parameters():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3)}
    average = {"a": jnp.full(3, 1.001), "b": jnp.full(3, 1.001)}
    state = TrainState(params, (), 0, -1, (), average)
    result = result_of(state)
    assert (result["a"].dtype, result["b"].dtype) == (jnp.bfloat16, jnp.float32)
    assert result_of(dataclasses.replace(state, average=())) is params


class Silent:
    """A reporter."""

    def rows(self, rows):
        pass

    def progress(self, step, row, docs_per_second):
        pass


class Nothing:
    """Data."""

    def advance(self, program, state, first, last):
        for _ in range(first, last):
            state = program(state)
        return state

    def at(self, step):
        return None

    def position(self):
        return None

    def restore(self, position):
        pass


@pytest.mark.parametrize("select,kept", [(True, 20.0), (False, 40.0)])
def test_evaluations_see_the_average_and_the_best_or_last_is_kept(select, kept):
    """The parameter counts the updates, the average ten times as fast."""
    state = TrainState(
        params={"count": jnp.float32(0)},
        opt_state=(),
        step=jnp.int32(0),
        failed_step=jnp.int32(-1),
        history=jnp.zeros((rounded_up(STEPS), len(HISTORY))),
        average={"count": jnp.float32(0)},
    )

    @jax.jit
    def step(state):
        count = state.params["count"] + 1
        return dataclasses.replace(
            state,
            params={"count": count},
            average={"count": 10 * count},
            step=state.step + 1,
        )

    seen = []

    def evaluate(params):
        seen.append(float(params["count"]))
        score = -abs(seen[-1] - 20)
        return [{"agreement": score, "score": [score]}]

    plan = loop.Schedule(STEPS, batch_size=BATCH, eval_every=1, select=select)
    _, result, _ = loop.train(step, state, Nothing(), plan, [Silent()], evaluate=evaluate)
    assert seen == [10.0, 20.0, 30.0, 40.0]
    assert float(result["count"]) == kept


def test_smoothed_labels_have_their_closed_form():
    soft = targets()
    for epsilon in (0.0, 0.1, 0.5):
        found = inputs.smoothed(soft, epsilon)
        wanted = (1 - epsilon) * soft.astype(float) + epsilon / 2
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_a_run_takes_them_all_and_labels_and_evaluates_without_them(tmp_path):
    """What a phase predicts is what its stored parameters predict, against unsmoothed labels."""
    config = testing.tiny_config(testing.write_tiny_task(tmp_path / "data"))
    config.pretrain.source, config.losses = None, ("xent",)
    config.train.update({"steps": 4, "dropout": 0.3, "ema": 0.9, "label_smoothing": 0.1})
    config.eval.every = 2
    result = execute.run(config, tmp_path / "run", console=Console(quiet=True))
    documents = resolve(validate(config)).roles["strong"].splits["test"]
    stages = {
        stage["kind"]: tmp_path / "run" / "phases" / stage["phase"] for stage in result["stages"]
    }
    mesh = sharding.mesh_of((1, 1, 1))
    for kind in ("ceiling", "student"):
        rows = artifacts.read_predictions(PhaseFolder(stages[kind]).predictions, "test")
        model, params = models.load_with_head(stages[kind], mesh)
        logits = Predictor(model, documents, mesh)(params)
        np.testing.assert_allclose(
            rows["p"], 1 / (1 + np.exp(logits[:, 0] - logits[:, 1])), atol=1e-5
        )
        if kind == "ceiling":
            assert set(rows["label"]) == {0.0, 1.0}
