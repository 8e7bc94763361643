"""`w2s compile` of generation tasks: prefill, decode, and steps on completions, as shapes."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from w2s_jax.cli.main import main
from w2s_jax.config import MeshSettings, default_config
from w2s_jax.config.validation import validate
from w2s_jax.core import errors
from w2s_jax.models import ladders
from w2s_jax.perf.aot import inputs, search

GIB = 2**30
#: Tokens of a synthetic document, of which the last ones are its completion.
TOKENS, NEW = 96, 32


def settings_of(model, **fields):
    config = default_config()
    config.task.name, config.task.max_new_tokens = "gsm8k", NEW
    config.train.compute_dtype, config.losses = "bfloat16", ("xent",)
    config.weak.model = config.strong.model = model
    with config.unlocked():
        for path, value in fields.items():
            *sections, leaf = path.split("__")
            target = config
            for part in sections:
                target = target[part]
            target[leaf] = value
    return validate(config)


def resolved_on(settings, mesh=None):
    """Return a run and a mesh of the CPU devices, as only shapes and shardings matter."""
    import jax

    from w2s_jax import sharding

    resolved = inputs.find_inputs(settings, 1000, TOKENS)
    return resolved, sharding.make_mesh(mesh or MeshSettings(fsdp=4), jax.devices())


def programs_of(settings):
    """Return all programs of a run."""
    from w2s_jax.perf.aot import programs
    from w2s_jax.planning.plan import plan

    resolved, mesh = resolved_on(settings)
    host = list(mesh.devices.flat)
    found, left_out = programs.programs_of(plan(resolved), resolved, mesh, 16 * GIB, host)
    assert left_out == []
    return found, mesh


@pytest.fixture
def as_on_accelerators(monkeypatch):
    """Let decode compute in bfloat16, which on CPUs it does not."""
    from w2s_jax.models import decoding

    monkeypatch.setattr(decoding, "arithmetic_dtype", lambda dtype: np.dtype(dtype))


def completing(settings, mesh=None, memory=16 * GIB):
    """Return prefill and decode of a run's weak model, and the mesh."""
    from w2s_jax import sharding
    from w2s_jax.perf.aot import generation
    from w2s_jax.planning.plan import plan

    resolved, mesh = resolved_on(settings, mesh)
    phase = plan(resolved).phases[0]
    with sharding.over(mesh):
        made = generation.completing(phase, resolved, mesh, memory, list(mesh.devices.flat))
    assert [p.title for p in made] == ["weak: prefill", "weak: decode"]
    return *made, mesh


def test_synthetic_prompts_and_completions_add_up_to_the_documents():
    resolved = inputs.find_inputs(settings_of("gpt2"), 1000, TOKENS)
    documents = resolved.roles["strong"].splits["slice1"]
    assert set(documents.lengths_N) == {TOKENS}
    assert set(documents.prompt_lengths_P) == {TOKENS - NEW}
    assert documents.loss_weights_T.reshape(-1, TOKENS).sum(1).tolist() == [NEW] * 500
    assert not documents.loss_weights_T[: TOKENS - NEW].any()
    assert resolved.notes[0] == "synthetic documents: 1,000 of 64 tokens each, completed with 32"
    assert inputs.is_synthetic(resolved)
    half = inputs.find_inputs(settings_of("gpt2", task__max_new_tokens=None), 1000, 50)
    assert half.roles["weak"].completion.max_new_tokens == 25
    with pytest.raises(errors.InputError, match=r"--tokens: 32, .* more than .*max_new_tokens=32"):
        inputs.find_inputs(settings_of("gpt2"), 1000, NEW)
    with pytest.raises(errors.InputError, match=r"strong.model: .* an encoder"):
        inputs.find_inputs(settings_of("gpt2", strong__model="all-MiniLM-L6-v2"), 1000, 64)


def test_a_model_that_fits_on_a_chip_completes_a_batch_on_each(as_on_accelerators):
    prefill, decode, _ = completing(settings_of("gpt2"))
    model = ladders.find("gpt2").config()
    # 256 rows, the most of a batch: 1,000 prompts on 8 devices are 125 rows each.
    rows, slots = 125, TOKENS
    assert (prefill.chips, prefill.shape) == (1, (1, rows, TOKENS - NEW))
    assert (decode.chips, decode.shape) == (1, (1, rows, slots))
    # Keys and values of 12 layers and 12 heads of 64 numbers, in bfloat16.
    cache = 12 * 2 * rows * slots * 12 * 64 * 2
    assert decode.parts["cache"] == prefill.results["cache"] == cache
    assert decode.parts["logits"] == 4 * rows * 50257
    # A copy of the weights in bfloat16, beside the float32 parameters that are split over four
    # devices; biases and norms are not cast.
    assert decode.parts["parameters"] == pytest.approx(2 * model.num_parameters(), rel=2e-3)
    assert sum(decode.beside.values()) == pytest.approx(model.num_parameters(), rel=2e-3)
    # 2 FLOPs per weight but for tables of tokens and positions, and the head for each token.
    weights = model.num_parameters() - (50257 + 1024) * 768
    least = rows * (NEW - 1) * 2 * (weights + 50257 * 768)
    # Attention to at most 96 slots.
    assert least < decode.flops < least + rows * NEW * 12 * 4 * 768 * TOKENS
    assert decode.tokens == rows * NEW


def test_a_model_that_does_not_fit_is_split_over_the_mesh(as_on_accelerators):
    # 8 billion parameters, twice in bfloat16, exceed half of a chip.
    settings = settings_of("Llama-3.1-8B")
    _, decode, _ = completing(settings, MeshSettings(fsdp=4, tensor=2))
    assert decode.chips == 8
    model = ladders.find("Llama-3.1-8B").config()
    # A quarter of the memory of a chip holds the cache, and what logits take four times.
    slot = 2 * 32 * 8 * 128 * 2 // 2
    row = 4 * 4 * model.vocab_size
    rows = 4 * min(256, 16_384 // (TOKENS - NEW), 4 * GIB // (slot * TOKENS + row), 250)
    assert decode.shape == (1, rows, TOKENS)
    # A chip has a quarter of the rows and half of the heads.
    assert decode.parts["cache"] == 32 * 2 * (rows // 4) * TOKENS * (8 // 2) * 128 * 2
    assert decode.args[1].k_nRKSE.sharding.shard_shape(decode.args[1].k_nRKSE.shape) == (
        32, rows // 4, 4, TOKENS, 128
    )  # fmt: skip
    # Parameters are bfloat16 already: nothing is copied, and training shares them.
    assert decode.beside == {}
    assert decode.parts["parameters"] == pytest.approx(2 * model.num_parameters() / 8, rel=0.01)
    _, alone, _ = completing(settings, MeshSettings(fsdp=4, tensor=2), memory=96 * GIB)
    assert alone.chips == 1
    assert alone.parts["parameters"] == pytest.approx(2 * model.num_parameters(), rel=1e-3)


def test_the_programs_fit_together_as_in_a_run(as_on_accelerators):
    """Prefill's results, as compiled for CPUs, are decode's arguments, shardings included."""
    import jax
    import jax.numpy as jnp

    from w2s_jax import sharding
    from w2s_jax.models import decoding, network

    for shape in (MeshSettings(fsdp=4, tensor=2), MeshSettings()):
        memory = GIB if shape.tensor == 1 else 0
        settings = settings_of("rotary-d32", task__max_new_tokens=8)
        prefill, decode, mesh = completing(settings, shape, memory)
        assert prefill.chips == (1 if shape.tensor == 1 else 8)
        with sharding.over(mesh):
            lowered = prefill.function.lower(*prefill.args)
            decode.function.lower(*decode.args)
        given = jax.tree.map(lambda x: (x.shape, x.dtype), decode.args[1:3])
        assert jax.tree.map(lambda x: (x.shape, x.dtype), tuple(lowered.out_info)) == given
        if shape.tensor > 1:
            made = jax.tree.leaves(lowered.compile().output_shardings[0])
            for array, where in zip(jax.tree.leaves(decode.args[1]), made, strict=True):
                assert where.is_equivalent_to(array.sharding, len(array.shape))
            params = network.init_params(prefill.model, 0, mesh)
            real = decoding.prepare(prefill.model, params, jnp.bfloat16, scan=False)
            assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), real) == jax.tree.map(
                lambda x: (x.shape, x.dtype, x.sharding), prefill.args[1]
            )


def test_the_largest_batch_is_that_of_a_generator(monkeypatch):
    """On devices with 32 MiB, which are none of CPUs."""
    import jax

    from w2s_jax.data.completions import prompts_of
    from w2s_jax.models import generation, generation_plan, inference

    memory = 2**25
    settings = settings_of("gpt-d64", train__compute_dtype="float32")
    _, decode, mesh = completing(settings, MeshSettings(fsdp=4), memory)
    splits = resolved_on(settings)[0].roles["weak"].splits
    monkeypatch.setattr(inference, "memory_limit", lambda: memory)
    monkeypatch.setattr(generation_plan, "CPU_BATCH_SIZE", generation_plan.BATCH_SIZE)
    generator = generation.Generator(decode.model, mesh, max_new_tokens=NEW, eos=0)
    planned = [
        dispatch
        for split in ("validation", "test", "slice2")
        for dispatch in generator.plan(prompts_of(splits[split]), splits[split].ids_N)
    ]
    # The cache bounds it: 1,000 prompts would be 125 for each device.
    rows = max(len(dispatch.rows_B) for dispatch in planned) // jax.device_count()
    assert decode.chips == 1 and decode.shape == (1, rows, TOKENS) and rows < 125


def test_evaluations_complete_prompts_and_labels_may_have_distributions():
    found, _ = programs_of(
        settings_of(
            "gpt-d8", losses=("kl",), task__label_top_k=5, protocol__early_stopping="agreement"
        )
    )
    student = next(p for p in found if "student" in p.title and p.trains)
    assert len(student.evaluates) == 2
    assert {p.title.split(": ")[-1] for p in found if p.key in student.evaluates} == {
        "prefill", "decode"
    }  # fmt: skip
    # The table of the supervisor's distributions is a frozen parameter: an entry for each token of
    # a completion.
    assert student.args[1]["top_ids_Uk"].shape == (500 * NEW, 5)
    assert student.targets == NEW and student.loss is None
    (weak,) = (p for p in found if p.title == "weak: decode")
    assert dataclasses.astuple(weak.key[-1])[-1] == 5


def test_steps_lower_on_completions_and_count_their_tokens():
    from w2s_jax import sharding
    from w2s_jax.models import budget

    found, made = programs_of(settings_of("gpt-d8"))
    step = next(p for p in found if p.trains)
    with sharding.over(made):
        assert step.function.lower(*step.args).as_text()
    flops = budget.train_flops_per_token(step.model, TOKENS, logits=True)
    assert step.flops == pytest.approx(step.train.batch_size * TOKENS * flops)
    (bucket,) = step.args[3]
    rows, length = bucket.batches.microbatches.tokens_RL.shape[-2:]
    targets = bucket.batches.microbatches.targets
    assert targets.slots_RQ.shape[-2:] == (rows, NEW * (length // TOKENS))


def test_pairs_have_two_completions_and_their_reference():
    import jax

    from w2s_jax import sharding
    from w2s_jax.perf.aot import programs
    from w2s_jax.planning.plan import plan

    settings = settings_of("gpt-d8", losses=("xent", "dpo"), method__name="preference_pairs")
    resolved = inputs.find_inputs(settings, 1000, TOKENS)
    (phase,) = (p for p in plan(resolved).phases if p.pairs)
    documents = programs.training_documents(phase, resolved)
    assert documents.num_texts == 2 and set(documents.piece_lengths_P) == {TOKENS}
    np.testing.assert_array_equal(documents.document(3, 0), documents.document(3, 1))
    mesh = sharding.make_mesh(MeshSettings(), jax.devices())
    with sharding.over(mesh):
        step = programs.training_program(phase, resolved, mesh, [])
        step.function.lower(*step.args)
    (bucket,) = step.args[3]
    size = phase.train.batch_size
    assert bucket.batches.reference_B2.shape[1:] == (size, 2)
    assert step.tokens == size * 2 * TOKENS


def test_only_some_programs_are_asked_for(capsys, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from w2s_jax.config import default_config as get_config\n")
    assert main(["compile", f"--config={recipe}", "--topology=v5e:2x2", "--only=label"]) == 2
    line = capsys.readouterr().err
    assert "--only: unknown value 'label'" in line and "did you mean 'labels'" in line
    assert search.ONLY == ("steps", "labels")


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler, libtpu, is not installed"
)


@pytest.mark.slow
@needs_compiler
def test_a_tiny_model_completes_prompts_on_four_chips(tmp_path):
    """Compiled for v5e:2x2 in a process of its own; the report has the cache and the parts."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from w2s_jax.config import default_config\ndef get_config():\n"
        "    config = default_config()\n    config.task.name = 'gsm8k'\n"
        "    config.task.max_new_tokens = 16\n    config.losses = ('xent',)\n"
        "    config.weak.model = config.strong.model = 'rotary-d32'\n    return config\n"
    )
    command = [
        sys.executable, "-m", "w2s_jax.cli.main", "compile", f"--config={recipe}", "--only=labels",
        "--topology=v5e:2x2", "--documents=400", "--tokens=48", f"--json={tmp_path / 'out.json'}",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"W2S_CACHE_DIR": ""}
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("fits: 0.0")
    assert any("prefill" in line and "each chip separately" in line for line in lines)
    records = json.loads((tmp_path / "out.json").read_text())["programs"]
    assert len(records) == 2
    decode = next(record for record in records if record["title"].endswith("decode"))
    assert {"projections", "mlp", "attention kernel", "read-out and head"} <= set(decode["parts"])
