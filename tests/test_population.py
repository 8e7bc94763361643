"""Populations: members against the same phases alone, on one device and on several."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_problem import forget_programs, plain_descent, runner

from w2s_jax import sharding, testing
from w2s_jax.config import TrainSettings
from w2s_jax.core import errors
from w2s_jax.data import packing, packing_shapes
from w2s_jax.data.documents import Document
from w2s_jax.data.tokenize import soft_labels, tokenize
from w2s_jax.models import network
from w2s_jax.training import loop, optimizer, population
from w2s_jax.training.batch_sources import put_batches, put_feature_batches
from w2s_jax.training.checkpoints import Checkpoints
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import init_state

STEPS = 7
LOSSES = (("xent", ()), ("confidence", ()), ("confidence", (("alpha_max", 0.9),)))


class Recorder:
    """A reporter that keeps what it hears."""

    def __init__(self):
        self.heard = []

    def rows(self, rows):
        self.heard += rows

    def progress(self, step, row, docs_per_second):
        assert row["step"] == step


@functools.cache
def problem():
    """A tiny model, 24 ragged documents, and of three members: spec, parameters, targets, order."""
    rng = np.random.default_rng(0)
    config = testing.tiny_model(vocab_size=32, num_layers=1)
    docs = [
        Document(id=i, tokens=tuple(rng.integers(1, 31, n).tolist()), soft_label=0.5)
        for i, n in enumerate(rng.integers(3, 30, 24))
    ]
    documents = tokenize(docs, None, max_length=None, overlong="error")[0]
    backbone = jax.device_get(network.init_params(config, 0, sharding.mesh_of((1, 1, 1))))
    members = []
    for i, loss in enumerate(LOSSES):
        train = TrainSettings(
            optimizer="adamw",
            weight_decay=0.1 * i,
            batch_size=8,
            learning_rate=0.01 * (i + 1),
            schedule=("cosine", "constant", "linear")[i],
        )
        noisy = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"), backbone)
        head = {"kernel": rng.normal(size=(16, 2)).astype(np.float32)}
        members.append(
            {
                "spec": StepSpec(config, train, STEPS, loss),
                "params": {"backbone": noisy, "head": head},
                "targets": soft_labels(rng.uniform(size=24)),
                "order": np.stack([rng.permutation(24)[:8] for _ in range(STEPS)]).astype("i4"),
            }
        )
    return documents, members


def fresh(member, steps=STEPS):
    """A state of its own."""
    mesh = sharding.mesh_of((1, 1, 1))
    params = jax.device_put(member["params"], sharding.replicated(mesh))
    return init_state(params, optimizer.make_optimizer(member["spec"].train), steps, mesh)


def packed_for(own_order, max_shapes=1):
    """The members' batches: of each its own, or the first one's for all."""
    documents, members = problem()
    if own_order:
        orders = np.stack([m["order"] for m in members])
        return population.pack_members(documents, orders, max_shapes=max_shapes)
    return packing.pack(documents, members[0]["order"], max_shapes=max_shapes)


@functools.cache
def alone(number, own_order, max_shapes, steps):
    """A member's state after each of the given numbers of steps, trained without the others."""
    mesh, member = sharding.mesh_of((1, 1, 1)), problem()[1][number]
    packed = packed_for(own_order, max_shapes)
    packed = packed[number] if own_order else packed
    batches = put_batches(packed, member["targets"], mesh)
    run = runner(member["spec"], mesh, None, batches)
    states, state = [], fresh(member)
    for first, last in zip((0, *steps), steps, strict=False):
        state = run(state, first, last)
        states.append(jax.device_get(state))
    return states


def together(packed, how, devices, targets=None):
    """(program, state, batches) of the three members."""
    _, members = problem()
    mesh = population.make_mesh(len(members), jax.devices()[:devices])
    targets = [m["targets"] for m in members] if targets is None else targets
    batches = population.put_batches(packed, targets, mesh)
    specs = [m["spec"] for m in members]
    program = population.compile_block(specs, mesh, None, batches, how)
    return program, population.stack([fresh(m) for m in members], mesh), batches


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.medium
@pytest.mark.parametrize(
    "how,devices,own_order,max_shapes",
    [
        ("vmap", 1, False, 1),
        ("vmap", 2, True, 2),
        pytest.param("loop", 8, False, 1, marks=pytest.mark.slow),
    ],
)
def test_members_take_the_steps_that_they_would_take_alone(
    monkeypatch, how, devices, own_order, max_shapes
):
    """By plain gradient descent, so that a step is the gradient: 1e-5 of its norm after one."""
    monkeypatch.setattr(packing_shapes, "SHAPE_STEPS", 0)
    plain_descent(monkeypatch)
    program, state, batches = together(packed_for(own_order, max_shapes), how, devices)
    assert len(batches.buckets) == max_shapes
    assert len({x.sharding for x in jax.tree.leaves(state)}) == 1
    first = jax.device_get(batches.advance(program, state, 0, 1))
    again = jax.device_put(first, state.step.sharding)
    last = jax.device_get(batches.advance(program, again, 1, STEPS))
    for i, one in enumerate(problem()[1]):
        wanted = alone(i, own_order, max_shapes, (1, STEPS))
        mine, before = (population.member(s, i) for s in (first, last)), flat(one["params"])
        for state, other, tolerance in zip(mine, wanted, (1e-5, 1e-4), strict=True):
            step, other_step = (flat(s.params) - before for s in (state, other))
            assert np.linalg.norm(step - other_step) < tolerance * np.linalg.norm(other_step)
            np.testing.assert_allclose(state.history, other.history, rtol=1e-4, atol=1e-6)
            assert int(state.step) == int(other.step) and int(state.failed_step) == -1
    forget_programs()


def test_members_of_several_microbatches_stay_apart():
    documents, members = problem()
    order_PSB = np.stack([m["order"] for m in members])
    for one, order_SB in zip(
        population.pack_members(documents, order_PSB, num_microbatches=2), order_PSB, strict=True
    ):
        np.testing.assert_array_equal(np.sort(one.documents_SB, 1), np.sort(order_SB, 1))
        for bucket in one.buckets:
            assert bucket.tokens_SMRL.shape[1] == 2
            read_SMm = np.take_along_axis(
                bucket.tokens_SMRL.reshape(*bucket.tokens_SMRL.shape[:2], -1),
                bucket.read_outs_SMmK[..., 0],
                2,
            )
            ends = [documents.document(i, 0)[-1] for i in one.documents_SB[bucket.steps_S].flat]
            np.testing.assert_array_equal(read_SMm.ravel(), ends)


def trained(how, devices, *, recorders=None, targets=None, **options):
    """(state, best parameters, stats, what reporters heard) of `loop.train`, batches shared."""
    program, state, batches = together(packed_for(False), how, devices, targets)
    recorders = recorders or [Recorder() for _ in LOSSES]
    plan = loop.Schedule(STEPS, batch_size=8, eval_every=3, select=True)

    def evaluate_one(sign, params):
        score = sign * float(jnp.sum(params["head"]["kernel"]))
        return {"agreement": score, "score": [score]}

    # What is best for one member is worst for another.
    evaluate = population.evaluate_each(
        [functools.partial(evaluate_one, sign) for sign in (1, -1, 1)]
    )
    state, best, stats = loop.train(
        program, state, batches, plan, recorders, evaluate=evaluate, **options
    )
    return jax.device_get(state), jax.device_get(best), stats, [r.heard for r in recorders]


def poisoned_targets(step):
    """The members' targets, of which member 1 meets NaN at a step (and, maybe, again later)."""
    _, members = problem()
    targets = [m["targets"].copy() for m in members]
    order_SB = members[0]["order"]
    new = set(order_SB[step].tolist()) - set(order_SB[:step].ravel().tolist())
    targets[1][new.pop()] = np.nan
    return targets


@pytest.mark.medium
@pytest.mark.parametrize("how,devices", [("vmap", 2), ("loop", 1)])
def test_a_member_that_fails_freezes_alone(how, devices):
    whole = trained(how, devices)
    failed = trained(how, devices, targets=poisoned_targets(1))
    assert failed[0].failed_step.tolist()[:3] == [-1, 1, -1]
    assert failed[0].step.tolist()[:3] == [STEPS, 1, STEPS]
    assert np.isfinite(flat(failed[0].params)).all()
    for i in (0, 2):
        for a, b in zip(whole[:2], failed[:2], strict=True):
            jax.tree.map(
                np.testing.assert_array_equal, population.member(a, i), population.member(b, i)
            )
        assert whole[3][i] == failed[3][i]
        assert whole[2].members[i] == failed[2].members[i]
    assert [row["step"] for row in failed[3][1]] == [1]


def test_each_member_keeps_its_own_best_parameters():
    _, best, stats, heard = trained("vmap", 2)
    for i, member in enumerate(stats.members):
        scores = {r["step"]: r["agreement"] for r in heard[i] if r["split"] == "validation"}
        assert sorted(scores) == [3, 6, 7]
        assert member.best_step == max(scores, key=scores.get)
        kernel = population.member(best, i)["head"]["kernel"]
        assert (1, -1, 1)[i] * float(jnp.sum(kernel)) == scores[member.best_step]
    assert len({s.best_step for s in stats.members}) > 1


@pytest.mark.parametrize("how,devices,stop_at", [("vmap", 2, 1), ("loop", 1, 2)])
def test_a_population_resumes_bit_for_bit(tmp_path, monkeypatch, how, devices, stop_at):
    """One that has lost a member too; stopped at step 3 or 6, later at others."""
    targets = poisoned_targets(1)
    whole = trained(how, devices, targets=targets)
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) == stop_at

    saved = Checkpoints(tmp_path, keep=2)
    with pytest.raises(errors.Interrupted):
        trained(how, devices, targets=targets, checkpoints=saved, should_stop=should_stop)
    saved.close()
    monkeypatch.setattr(loop, "FIRST_BLOCK", 2)
    saved = Checkpoints(tmp_path, keep=2)
    again = trained(how, devices, targets=targets, checkpoints=saved)
    saved.close()
    jax.tree.map(np.testing.assert_array_equal, whole[:2], again[:2])
    assert whole[2].members == again[2].members
    assert [sorted(map(str, heard)) for heard in whole[3]] == [
        sorted(map(str, heard)) for heard in again[3]
    ]


def test_training_fails_when_all_members_have_failed(tmp_path):
    targets = [np.full((24, 2), np.nan, np.float32)] * 3
    with pytest.raises(errors.TrainingFailed, match="at step 0 of 7"):
        trained("vmap", 2, targets=targets)


def test_members_that_need_other_programs_are_refused():
    _, members = problem()
    mesh = population.make_mesh(2, jax.devices()[:1])
    spec = members[0]["spec"]
    for other in (
        dataclasses.replace(spec, total_steps=STEPS + 1),
        dataclasses.replace(spec, loss=("logconf", ())),
        dataclasses.replace(spec, train=dataclasses.replace(spec.train, beta1=0.8)),
    ):
        with pytest.raises(errors.InputError, match="member 1 does not share a program"):
            population.compile_block([spec, other], mesh, None, None, "vmap")
    with pytest.raises(errors.InputError, match="mode: .*'vmapp'.*vmap, loop"):
        population.compile_block([spec], mesh, None, None, "vmapp")


@pytest.mark.medium
@pytest.mark.parametrize("devices,shared_order", [(1, True), (8, False)])
def test_probes_of_many_settings_are_one_program(devices, shared_order):
    """Regularisation, losses and seeds of 12 heads, against each of them alone."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(24, 1, 16)).astype("f4")
    members = []
    for i in range(12):
        train = TrainSettings(
            optimizer="adamw", weight_decay=0.3 * (i % 4), batch_size=8, learning_rate=0.1,
            adapt="probe",
        )  # fmt: skip
        members.append(
            {
                "spec": StepSpec(testing.tiny_model(), train, 30, LOSSES[i % 3]),
                "params": {"head": {"kernel": rng.normal(size=(16, 2)).astype("f4")}},
                "targets": soft_labels(rng.uniform(size=24)),
                "order": np.concatenate([rng.permutation(24) for _ in range(10)])
                .reshape(30, 8)
                .astype("i4"),
            }
        )
    if shared_order:
        members = [m | {"order": members[0]["order"]} for m in members]
    mesh = population.make_mesh(12, jax.devices()[:devices])
    batches = population.put_feature_batches(
        [m["order"] for m in members], [m["targets"] for m in members], mesh
    )
    frozen = {"features_NKD": jax.device_put(features, sharding.replicated(mesh))}
    specs = [m["spec"] for m in members]
    program = population.compile_block(specs, mesh, frozen, batches, "vmap")
    state = population.stack([fresh(m, 30) for m in members], mesh)
    after = jax.device_get(batches.advance(program, state, 0, 30))
    one = sharding.mesh_of((1, 1, 1))
    frozen = {"features_NKD": jax.device_put(features, sharding.replicated(one))}
    for i, m in enumerate(members):
        own = put_feature_batches(m["order"], m["targets"], one)
        alone = runner(m["spec"], one, frozen, own)(fresh(m, 30), 0, 30)
        np.testing.assert_allclose(
            population.member(after, i).params["head"]["kernel"],
            alone.params["head"]["kernel"], rtol=1e-3, atol=1e-4,
        )  # fmt: skip
