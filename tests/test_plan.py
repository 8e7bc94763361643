"""Fingerprints: what changes a result changes them, and nothing else does."""

import subprocess
import sys

import pytest

from w2s_jax import testing
from w2s_jax.config import METHODS
from w2s_jax.config.validation import validate
from w2s_jax.planning.memory import memory_estimate
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve

ALL = {"pretrain gpt-d8", "pretrain gpt-d16", "weak", "ceiling", "student xent",
       "student confidence"}  # fmt: skip
WEAK_SIDE = {"weak", "student xent", "student confidence"}
STRONG_SIDE = {"ceiling", "student xent", "student confidence"}
FINETUNED = WEAK_SIDE | STRONG_SIDE


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return testing.write_tiny_task(tmp_path_factory.mktemp("data"))


def fingerprints(config):
    return {p.title: p.fingerprint for p in plan(resolve(validate(config))).phases}


def changed(data_dir, **changes):
    config = testing.tiny_config(data_dir)
    before = fingerprints(config)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    after = fingerprints(config)
    return {title for title, fingerprint in after.items() if before.get(title) != fingerprint}


@pytest.mark.parametrize(
    "changes,titles",
    [
        ({"seed": 1}, FINETUNED),
        ({"pretrain__seed": 1}, ALL),
        ({"task__split_seed": 1}, FINETUNED),
        ({"train__learning_rate": 0.5}, FINETUNED),
        ({"train__steps": 21}, FINETUNED),
        ({"weak__train__learning_rate": 0.5}, WEAK_SIDE),
        ({"strong__train__learning_rate": 0.5}, STRONG_SIDE),
        ({"strong__pretrain__steps": 11}, {"pretrain gpt-d16"} | STRONG_SIDE),
        ({"weak__pretrain__steps": 11}, {"pretrain gpt-d8"} | WEAK_SIDE),
        ({"train__compute_dtype": "bfloat16"}, FINETUNED),
        ({"protocol__head_init": "zeros"}, FINETUNED),
        ({"protocol__halves": "separate"}, {"ceiling"}),
        ({"protocol__early_stopping": "none"}, {"student xent", "student confidence"}),
        ({"eval__every": 5}, {"student xent", "student confidence"}),
        ({"loss__confidence__alpha_max": 0.7}, {"student confidence"}),
        ({"task__max_length": 20}, FINETUNED | {"pretrain gpt-d8", "pretrain gpt-d16"}),
        ({"strong__train__adapt": "lora"}, STRONG_SIDE),
        ({"strong__train__adapt": "last_layers"}, STRONG_SIDE),
        ({"strong__train__param_dtype": "bfloat16"}, STRONG_SIDE),
        ({"strong__train__dropout": 0.1}, STRONG_SIDE),
        ({"strong__train__ema": 0.9}, STRONG_SIDE),
        ({"strong__train__label_smoothing": 0.1}, STRONG_SIDE),
        ({"pretrain__dropout": 0.1}, ALL),
        ({"strong__read_out": "mean"}, STRONG_SIDE),
        ({"lora__rank": 2, "probe__steps": 5, "train__last_layers": 2}, set()),
        ({"train__microbatch_size": 4}, set()),
        ({"train__remat": "block"}, set()),
        ({"log__every": 3, "checkpoint__keep": 5, "mesh__data": 2, "name": "other"}, set()),
        ({"loss__logconf__aux_coef": 0.1}, set()),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_a_change_reaches_exactly_the_phases_whose_result_it_can_change(data_dir, changes, titles):
    if "task__max_length" in changes:
        # Pretraining text is longer than that; the learnt positions are as many as before.
        titles = FINETUNED
    assert changed(data_dir, **changes) == titles


@pytest.mark.parametrize(
    "changes,kinds",
    [
        ({"probe__learning_rate": 0.5}, {"probe", "ceiling"}),
        ({"probe__compute_dtype": "bfloat16"}, set()),
        ({"strong__train__learning_rate": 0.5}, {"ceiling"}),
        ({"strong__train__compute_dtype": "bfloat16"}, {"features", "probe", "ceiling"}),
        ({"strong__read_out": "mean"}, {"features", "probe", "ceiling"}),
        ({"strong__pretrain__steps": 11}, {"pretrain", "features", "probe", "ceiling"}),
        ({"seed": 1}, {"probe", "ceiling"}),
        ({"protocol__head_init": "zeros"}, {"probe", "ceiling"}),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)
def test_a_change_reaches_features_and_probes_where_it_can(data_dir, changes, kinds):
    def names(**more):
        config = testing.tiny_config(data_dir)
        config.strong.train.adapt, config.probe.steps = "probe_then_full", 4
        config.probe.batch_size = 16
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in more.items()})
        made = plan(resolve(validate(config)))
        ceiling = made.phase(made.ceiling)
        probe = made.phase(ceiling.parents["head"])
        features = made.phase(probe.parents["features"])
        parts = (ceiling, probe, features, made.phase(features.parents["init"]))
        return {phase.kind: phase.name for phase in parts}

    before, after = names(), names(**changes)
    assert {kind for kind in before if before[kind] != after[kind]} == kinds


def test_phases_come_after_their_parents_and_once(data_dir):
    config = testing.tiny_config(data_dir)
    config.strong.model = "gpt-d8"
    made = plan(resolve(validate(config)))
    names = [p.name for p in made.phases]
    assert len(set(names)) == len(names) == 5, "one pretraining serves both roles"
    for n, phase in enumerate(made.phases):
        assert all(parent in names[:n] for parent in phase.parents.values())


@pytest.mark.parametrize("halves", ["shared", "separate"])
def test_who_labels_for_another_model_has_labels_of_all_that_it_is_asked_for(data_dir, halves):
    """A model that was planned without labels is not taken for the one that has some."""
    config = testing.tiny_config(data_dir)
    config.losses = ("xent",)
    config.protocol.halves = halves
    config.probe.batch_size = 16
    config.method.prompting.shots = 1
    config.method.name = ",".join(
        name
        for name, spec in METHODS.items()
        if "classification" in spec.kinds and not spec.middle_models
    )
    made = plan(resolve(validate(config)))
    phases = {phase.name: phase for phase in made.phases}
    for phase in made.phases:
        labels = phase.parents.get("labels")
        if labels is None or phase.kind == "labels":
            continue
        assert phase.inputs["train"] in phases[labels].label_splits, phase.title
        assert phase.label_sources[phase.inputs["train"]] == labels, phase.title
    student = made.students["xent+strong_to_strong"].phase
    chain = [phases[student]]
    while "labels" in chain[-1].parents:
        chain.append(phases[chain[-1].parents["labels"]])
    assert [phase.kind for phase in chain] == ["student", "student", "student", "weak"]


def test_planning_imports_no_jax(data_dir):
    code = (
        "import sys\n"
        "from w2s_jax import testing, validation\n"
        "from w2s_jax.planning.plan import plan\n"
        "from w2s_jax.planning.resolve import resolve\n"
        f"plan(resolve(validation.validate(testing.tiny_config({str(data_dir)!r}))))\n"
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_memory_estimate_is_near_what_the_compiler_says(data_dir):
    """Parameters, moments and gradients exactly; the whole within a factor of 2.5."""
    import jax
    import numpy as np

    from w2s_jax import sharding
    from w2s_jax.data import packing
    from w2s_jax.models import network
    from w2s_jax.training.batch_sources import put_batches
    from w2s_jax.training.optimizer import make_optimizer
    from w2s_jax.training.programs import compile_step
    from w2s_jax.training.spec import StepSpec
    from w2s_jax.training.state import init_state

    config = testing.tiny_config(data_dir)
    config.strong.model = "gpt-d64"
    resolved = resolve(validate(config))
    phase = next(p for p in plan(resolved).phases if p.title == "pretrain gpt-d64")
    estimate = memory_estimate(phase, resolved)
    mesh = sharding.mesh_of((1, 1, 1))
    documents = resolved.roles["strong"].splits[phase.inputs["train"]]
    order = packing.training_order(
        documents.ids_N, batch_size=phase.train.batch_size, num_steps=phase.total_steps, seed=0
    )
    batches = put_batches(packing.pack(documents, order, max_shapes=1), None, mesh)
    params = {"backbone": network.init_params(phase.model, 0, mesh)}
    state = init_state(params, make_optimizer(phase.train), phase.total_steps, mesh)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    assert estimate["parameters"] == estimate["gradients"] == size
    moments = sum(x.nbytes for x in jax.tree.leaves(state.opt_state) if np.ndim(x))
    assert estimate["optimizer"] == moments
    spec = StepSpec(phase.model, phase.train, phase.total_steps, None)
    program = compile_step(spec, mesh)
    analysis = program.func.lower(*program.args, state, batches.at(0)).compile().memory_analysis()
    real = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    assert 0.4 < estimate["total"] / real < 2.5
