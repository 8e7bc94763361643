"""`w2s compile`: collectives, slices, verdicts, search order, the memory formula, compilations."""

import dataclasses
import importlib.util
import os
import subprocess
import sys

import pytest

from w2s_jax import testing
from w2s_jax.cli.main import main
from w2s_jax.config import MeshSettings, TrainSettings, default_config
from w2s_jax.config.validation import validate
from w2s_jax.core import errors
from w2s_jax.models import budget, ladders
from w2s_jax.perf.aot import compiler, hlo, inputs, search, tables, topology
from w2s_jax.perf.aot.collectives import Collectives, collectives
from w2s_jax.planning.plan import plan
from w2s_jax.profiling import devices

GIB = 2**30

#: A loop over an unknown number of steps around a loop of 3 iterations with an asynchronous gather
#: (split over fusions) and a scatter in a fusion; and a conditional in the entry computation.
HLO = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%start_fusion (p: bf16[1,8]) -> (bf16[1,8], bf16[4,8]) {
  %all-gather.1 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
  ROOT %custom-call.1 = (bf16[1,8], bf16[4,8]) custom-call(%all-gather.1)
}

%done_fusion (p: bf16[4,8]) -> bf16[4,8] {
  %all-gather.2 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
  ROOT %custom-call.2 = bf16[4,8] custom-call(%all-gather.2)
}

%all-reduce-scatter.1 (p: f32[16]) -> f32[4] {
  %all-reduce.3 = f32[16]{0} all-reduce(%p), channel_id=9, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %dynamic-slice.3 = f32[4]{0} dynamic-slice(%all-reduce.3)
}

%layer (p: (s32[], bf16[1,8])) -> (s32[], bf16[1,8]) {
  %fusion.1 = (bf16[1,8], bf16[4,8]) fusion(%p), kind=kCustom, calls=%start_fusion
  %fusion.2 = bf16[4,8] fusion(%fusion.1), kind=kCustom, calls=%done_fusion
  %fusion.3 = f32[4] fusion(%fusion.2), kind=kCustom, calls=%all-reduce-scatter.1
  %p.3 = s32[] get-tuple-element(%p), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%p.3, %one)
  ROOT %tuple.1 = (s32[], bf16[1,8]) tuple(%next, %fusion.3)
}

%layer_cond (p: (s32[], bf16[1,8])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %p = (s32[], bf16[1,8]) parameter(0)
  %p.0 = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%p.0, %three), direction=LT
}

%step (p: (s32[], s32[])) -> (s32[], s32[]) {
  %while.1 = (s32[], bf16[1,8]) while(%tuple.0), condition=%layer_cond, body=%layer
  %permute = (f32[2,2]{1,0}, f32[2,2]{1,0}, u32[]) collective-permute-start(%x), channel_id=1, source_target_pairs={{0,1}}
  %permute-done = f32[2,2]{1,0} collective-permute-done(%permute)
  %again = f32[2,2]{1,0} collective-permute(%y), channel_id=1, source_target_pairs={{0,1}}
  ROOT %tuple.2 = (s32[], s32[]) tuple(%p)
}

%step_cond (p: (s32[], s32[])) -> pred[] {
  ROOT %lt.2 = pred[] compare(%p.0, %p.1), direction=LT
}

%small (p: f32[2]) -> f32[2] {
  ROOT %all-reduce.4 = f32[2]{0} all-reduce(%p), channel_id=11, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%large (p: f32[2]) -> f32[2] {
  %all-reduce.5 = (f32[100]{0}, bf16[10]{0}) all-reduce(%p, %q), channel_id=12, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %r = f32[2]{0} copy(%p)
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %while.2 = (s32[], s32[]) while(%t), condition=%step_cond, body=%step
  %conditional.1 = f32[2] conditional(%which, %p, %p), branch_computations={%small, %large}
  ROOT %out = f32[2] copy(%conditional.1)
}
"""  # noqa: E501


def test_collectives_of_a_program_are_counted_with_loops_and_once_when_asynchronous():
    found = collectives(hlo.parse(HLO), chips=8)
    assert found == {
        # 3 layers, 4 x 8 bfloat16 over the 4 chips of axis x: each chip sends 3/4 of 64 bytes.
        "all-gather": Collectives(3, 3 * 64, 3 * 48),
        # 16 float32 reduced over 4 chips, of which each keeps 4.
        "reduce-scatter": Collectives(3, 3 * 16, 3 * 48),
        # Two collectives with the same channel.
        "collective-permute": Collectives(2, 32, 32),
        # The branch that moves more: 100 float32 and 10 bfloat16 over pairs, each sending 2 x 1/2.
        "all-reduce": Collectives(1, 420, 420),
    }


def test_a_program_on_one_chip_has_no_collectives():
    text = "ENTRY %main (p: f32[2]) -> f32[2] {\n  ROOT %c = f32[2] copy(%p)\n}\n"
    assert collectives(hlo.parse(text), 1) == {}


@pytest.mark.parametrize(
    "name,jax_name,chips,product_name,gib",
    [
        ("v5e:4x4", "v5e:4x4", 16, "v5e-16", 15.75),
        ("v5e-256", "v5e:16x16", 256, "v5e-256", 15.75),
        # Product names count TensorCores, two per chip.
        ("v5p-128", "v5p:4x4x4", 64, "v5p-128", 95.74),
        ("v6e-16", "v6e:4x4", 16, "v6e-16", 31.25),
        ("v5e:1x1", "v5e:1x1", 1, "v5e-1", 15.75),
        ("v4:2x2x1", "v4:2x2x1", 4, "v4-8", 32.0),
    ],
)
def test_slices_have_their_chips_and_memory(name, jax_name, chips, product_name, gib):
    found = topology.find(name)
    assert (found.name, found.chips, found.product_name) == (jax_name, chips, product_name)
    assert found.memory == pytest.approx(gib * GIB)


def test_a_host_of_a_slice_is_a_slice_of_at_most_four_chips():
    for name in topology.names():
        found, host = topology.find(name), topology.host_of(topology.find(name))
        assert host.generation == found.generation and host.memory == found.memory
        assert host.chips == min(found.chips, 4)
    assert topology.host_of(topology.find("v5p-128")).name == "v5p:2x2x1"


def test_the_error_for_an_unknown_slice_names_the_nearest():
    with pytest.raises(errors.InputError, match=r"--topology: unknown value 'v5e:44' .*'v5e:4x4'"):
        topology.find("v5e:44")
    with pytest.raises(errors.InputError, match=r"did you mean 'v6e-16'"):
        topology.find("v6-16")


def test_every_slice_has_peak_rates_and_bandwidths():
    kinds = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
    assert set(kinds) == set(topology.SLICES)
    for generation, kind in kinds.items():
        chip, peak = devices.chip(kind), devices.peak_flops(kind, "bfloat16")
        assert chip is not None and peak is not None, generation
        # FLOPs per byte above which matmuls are compute-bound: 229 to 574.
        assert 150 < peak / chip.memory < 600
        assert chip.links < chip.memory
        # 2 FLOPs per multiplier and cycle: 4 matrix units of 128 x 128 per core, or 4 of 256 x 256.
        units = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2}
        assert 2 * units[generation] * chip.hertz == pytest.approx(peak, rel=2e-3)
    assert devices.chip("NVIDIA H200") is None


def test_the_last_line_shows_what_fits_in_gib():
    assert search.verdict(True, 3.15 * GIB, 15.75 * GIB) == (
        "fits: 3.15 GiB of 15.75 GiB a chip (20% of its memory)"
    )
    line = search.verdict(False, 20 * GIB, 15.75 * GIB, ["--config.mesh.fsdp=4"])
    assert line == (
        "does not fit: needs 20.00 GiB of 15.75 GiB a chip; according to the memory formula, it "
        "would with --config.mesh.fsdp=4"
    )
    assert "fits:" not in search.verdict(False, 20 * GIB, 15.75 * GIB)


def test_search_tries_remat_then_microbatches_then_fsdp_then_tensor():
    current = search.current_options(TrainSettings(batch_size=32), (4, 1, 1))
    tried = [dataclasses.astuple(c) for c in search.candidates(current, chips=4, heads=6)]
    assert tried == [
        ("dots", 32, 1, 1),
        ("block", 32, 1, 1),
        ("block", 16, 1, 1),
        ("block", 8, 1, 1),
        ("block", 4, 1, 1),  # one document per chip: fewer would leave chips idle
        ("block", 4, 2, 1),
        ("block", 4, 4, 1),
        ("block", 4, 2, 2),  # 4 does not divide 6 heads
    ]
    options = list(search.candidates(current, chips=4, heads=6))[6]
    assert options.overrides("strong.train", current) == [
        "--config.strong.train.remat=block",
        "--config.strong.train.microbatch_size=4",
        "--config.mesh.fsdp=4",
    ]


def test_options_apply_to_the_settings_of_their_role_only():
    settings = validate(default_config())
    options = search.MemoryOptions("block", 8, 2, 1)
    new = search.apply_options(settings, "strong.train", options)
    assert (new.strong.train.remat, new.strong.train.microbatch_size) == ("block", 8)
    assert new.weak == settings.weak and new.strong.pretrain == settings.strong.pretrain
    assert (new.mesh.data, new.mesh.fsdp, new.mesh.tensor) == (-1, 2, 1)
    new = search.apply_options(settings, "weak.pretrain", options)
    assert new.weak.pretrain.remat == "block" and new.weak.train == settings.weak.train


@pytest.mark.parametrize(
    "text,needed",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (94.73G) exceeds available HBM (15.75G).",
            1.5 * GIB + 94.73 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 20.18G of 15.75G hbm. Exceeded hbm capacity by 4.43G.",
            20.18 * GIB,
        ),
        ("RESOURCE_EXHAUSTED: in other words", 1.5 * GIB),
    ],
)
def test_the_memory_of_a_rejected_program_is_read_from_the_message(text, needed):
    assert compiler.needed_bytes(text, int(1.5 * GIB)) == int(needed)


def settings_of(**fields):
    config = default_config()
    config.task.name = "sst2"
    with config.unlocked():
        for path, value in fields.items():
            *sections, leaf = path.split("__")
            target = config
            for part in sections:
                target = target[part]
            target[leaf] = value
    return validate(config)


def test_models_and_documents_need_not_exist():
    settings = settings_of(weak__model="gpt2", strong__model="EleutherAI/pythia-12b")
    resolved = inputs.find_inputs(settings, 1000, 100)
    assert inputs.is_synthetic(resolved)
    strong = resolved.roles["strong"]
    known = ladders.find("pythia-12b").config()
    assert strong.model.num_parameters() == known.num_parameters()
    assert {name: len(part) for name, part in strong.splits.items()} == {
        "slice1": 500, "slice2": 500, "validation": 500, "test": 1000
    }  # fmt: skip
    assert set(strong.splits["slice2"].lengths_N) == {100}
    # The learning rates and dtypes are those of a run.
    assert resolved.settings.strong.train.param_dtype == "bfloat16"
    assert resolved.settings.weak.train.learning_rate == 5e-5


def test_synthetic_pairs_are_one_text_inside_a_template():
    def found(**fields):
        settings = settings_of(
            strong__model="gpt2", task__name="hh_rlhf_helpful", method__name="prompting", **fields
        )
        return inputs.find_inputs(settings, 1000, 100)

    bare, inside = found(), found(task__template="letters")
    assert bare.roles["strong"].splits["test"].num_texts == 2
    assert inside.roles["strong"].splits["test"].num_texts == 1
    assert {phase.kind for phase in plan(bare).phases} >= {"labels", "student"}
    with pytest.raises(errors.InputError, match="unknown value 'letter'"):
        found(task__template="letter")


def test_synthetic_documents_of_a_folder_have_the_classes_of_the_config(tmp_path):
    testing.write_tiny_task(tmp_path, labels=("bad", "good", "mixed"))

    def found(**fields):
        settings = settings_of(
            strong__model="gpt2", task__name="tiny", task__data_dir=str(tmp_path), **fields
        )
        return inputs.find_inputs(settings, 1000, 100)

    three = found(task__classes=("bad", "good", "mixed"))
    strong = three.roles["strong"]
    assert three.classes == ("bad", "good", "mixed") and strong.num_classes == 3
    targets_NC = strong.splits["slice2"].targets_NC
    assert targets_NC.shape == (500, 3) and set(targets_NC.argmax(1)) == {0, 1, 2}
    two = found()
    assert two.roles["strong"].num_classes == 2 and "two classes" in two.notes[0]
    with pytest.raises(errors.InputError, match=r"method.name: 'em_posterior' works with two"):
        found(task__classes=("bad", "good", "mixed"), method__name="em_posterior")
    with pytest.raises(errors.InputError, match=r"task.classes: .* 'sst2' defines its own classes"):
        settings = settings_of(strong__model="gpt2", task__classes=("a", "b", "c"))
        inputs.find_inputs(settings, 1000, 100)


def test_bad_models_and_lengths_are_named():
    with pytest.raises(
        errors.InputError, match=r"strong.model: unknown model 'pythia-12bb' .*'pythia-12b'"
    ):
        inputs.find_inputs(settings_of(strong__model="pythia-12bb"), 1000, 100)
    with pytest.raises(errors.InputError, match=r"--tokens: 2000; allowed: at most 1024, .* gpt2"):
        inputs.find_inputs(settings_of(strong__model="gpt2"), 1000, 2000)
    with pytest.raises(errors.InputError, match=r"--documents: 40 leaves 20 for slice1"):
        inputs.find_inputs(settings_of(strong__model="gpt2"), 40, 100)


def test_the_formula_adds_up_to_shards_gradients_and_activations():
    """On CPU devices, because only shapes and shardings matter: a model split over 4 devices."""
    import jax

    from w2s_jax import sharding
    from w2s_jax.perf.aot import costs, programs
    from w2s_jax.planning.plan import plan

    settings = settings_of(strong__model="gpt2", train__remat="block", losses=("xent",))
    resolved = inputs.find_inputs(settings, 1000, 64)
    mesh = sharding.make_mesh(MeshSettings(fsdp=4), jax.devices())
    found, left_out = programs.programs_of(
        plan(resolved), resolved, mesh, 16 * GIB, list(mesh.devices.flat)
    )
    assert left_out == []
    step = next(p for p in found if p.trains and "strong.train" in p.sections)
    model = ladders.find("gpt2").config()
    # gpt2's width of 768 is split by 4; biases of queries, keys, values and the MLP are not split.
    whole = 12 * (3 * 768 + 3072)
    quarter = (model.num_parameters() - whole) // 4
    assert step.trained == pytest.approx(quarter + whole, abs=2 * 768)
    assert step.parts["parameters"] == 4 * step.trained
    assert step.parts["optimiser"] == 2 * 4 * step.trained + 4
    assert step.beside == {"best parameters so far": step.parts["parameters"]}
    shape = mesh.devices.shape
    estimate = costs.estimate(step, shape)
    layer = 4 * 7_087_872
    assert estimate["gradients"] == 4 * step.trained == 2 * estimate["copies"]
    assert estimate["gathered layers"] == 2 * layer
    assert estimate["gradient of a gathered layer"] == layer
    many = dataclasses.replace(step, shape=(2, *step.shape[1:]))
    assert costs.estimate(many, shape)["gradients"] == 3 * 4 * step.trained
    half = dataclasses.replace(step.train, compute_dtype="bfloat16")
    cast = costs.estimate(dataclasses.replace(step, train=half), shape)
    # The embedding is only looked up. So are positions, but the formula counts them.
    multiplied = model.num_parameters() - 50257 * 768
    assert cast["weights in the compute dtype"] == 2 * multiplied // 4
    assert cast["gathered layers"] == layer
    # Parameters and computation are both float32. 8 row shards: 4 rows of 64 slots each.
    assert "weights in the compute dtype" not in estimate
    flops = budget.train_flops_per_token(model, 64, last_only=True)
    assert step.flops == pytest.approx(32 * 64 * flops)
    assert len(step.evaluates) == 1
    # Student and ceiling share the step; the label pass runs on each device separately.
    assert step.title == "ceiling, student xent"
    labels = next(p for p in found if p.key in step.evaluates)
    assert labels.chips == 1 and labels.parts["parameters"] > 4 * model.num_parameters()
    alone = costs.estimate(labels, shape)
    assert alone["activations"] == labels.slots * 8 * (2 * 768 + 3072)
    assert alone["gathered layers"] == 0 and "gradients" not in alone
    assert alone["weights in the compute dtype"] == 4 * (model.num_parameters() - 50257 * 768)


def test_a_table_compiles_the_first_middle_and_last_model_and_each_cell_once(tmp_path, monkeypatch):
    asked = []

    def cell(recipe, model, slice_, *, compiles):
        asked.append((model, slice_, compiles))
        if model == "xl":
            return tables.Cell(None)
        overrides = ("--config.strong.train.remat=block", "--config.mesh.fsdp=4")
        return tables.Cell(overrides, (2, 4, 1), 5 * GIB // 2, 3 * GIB if compiles else 0)

    monkeypatch.setattr(tables, "cell", cell)
    models, cache = ["s", "m", "l", "xl"], tmp_path / "cells.json"
    lines = tables.table("recipe.py", models, ["v5e-16"], cache)
    assert asked == [(m, "v5e-16", m != "m") for m in models]
    assert lines == [
        "| model | v5e-16 |",
        "|---|---|",
        "| s | data=2 fsdp=4, remat=block: **3.0** (2.5) |",
        "| m | data=2 fsdp=4, remat=block: ~2.5 |",
        "| l | data=2 fsdp=4, remat=block: **3.0** (2.5) |",
        "| xl | no |",
    ]
    assert tables.table("recipe.py", models, ["v5e-16"], cache) == lines and len(asked) == 4
    more = tables.table("recipe.py", models, ["v5e-16", "v5e-4"], cache, compiles=False)
    assert more[2] == f"{lines[2][:-2]} | data=2 fsdp=4, remat=block: ~2.5 |"
    assert "v5e-4" not in cache.read_text()


def test_the_lower_bound_on_the_time_of_a_step_is_its_slowest_part():
    from w2s_jax.perf.aot import costs, programs

    program = programs.Program(
        title="t", sections=("strong.train",), trains=True, key=0, function=None, args=(),
        parts={"parameters": 400, "optimiser": 800}, beside={}, chips=4,
        train=TrainSettings(compute_dtype="bfloat16", remat="block"),
        model=ladders.find("gpt2").config(), flops=9000.0, tokens=100.0, slots=120,
        shape=(1, 4, 30), trained=100, passes=2, loss="xent",
    )  # fmt: skip
    sent = {"all-reduce": Collectives(1, 100, 200)}
    least = costs.time_bound(
        program, sent, 1e6, devices.Chip(1.0, 1e12, 1e3, 2, wraps_from=4), tensor=1
    )
    # 9000 FLOPs, plus a third for recomputation and a fifth for padding, on 4 chips.
    assert least.compute == pytest.approx(9000 * 4 / 3 * 1.2 / 4e6)
    assert least.communication == pytest.approx(0.1)
    read = 2 * program.model.num_parameters() * 3
    assert least.memory == pytest.approx((2 * 1200 + 8 * 100 + read) / 1e12)
    assert (least.by, least.seconds) == ("communication", least.communication)
    assert least.mfu == pytest.approx(9000 / 4e6 / 0.1)


def test_bad_input_is_one_line_before_anything_starts(capsys, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from w2s_jax.config import default_config as get_config\n")
    command = ["compile", f"--config={recipe}"]
    assert main([*command, "--topology=v5e:5x5"]) == 2
    assert main([*command, "--topology=v5e:2x2", "--config.sead=1"]) == 2
    assert main([*command, "--topology=v5e:2x2", "--tokens=0"]) == 2
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else find_spec(name)
    )
    assert main([*command, "--topology=v5e:2x2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    parts = ["v5e:5x5", "'sead'", "--tokens: 0", "pip install"]
    assert len(lines) == 4 and all(part in line for part, line in zip(parts, lines, strict=True))


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler, libtpu, is not installed"
)


def compiled(tmp_path, *arguments, **fields):
    """Run `w2s compile` in a new process; return exit status, lines and stderr."""
    lines = "".join(f"    config.{name} = {value!r}\n" for name, value in fields.items())
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from w2s_jax.config import default_config\ndef get_config():\n"
        "    config = default_config()\n    config.task.name = 'sst2'\n"
        f"    config.losses = ('xent',)\n{lines}    return config\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "w2s_jax.cli.main", "compile", f"--config={recipe}", *arguments],
        capture_output=True, text=True, env=os.environ | {"W2S_CACHE_DIR": ""},
    )  # fmt: skip
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.slow
@needs_compiler
def test_a_tiny_run_fits_on_four_chips(tmp_path):
    status, lines, stderr = compiled(
        tmp_path, "--topology=v5e:2x2", "--documents=400", "--tokens=32", "--config.mesh.fsdp=2"
    )
    assert status == 0, stderr
    assert lines[0].startswith("v5e:2x2 (v5e-4): 4 chips of 15.75 GiB; mesh data=2 fsdp=2 tensor=1")
    assert lines[-1].startswith("fits: 0.0") and "of 15.75 GiB a chip" in lines[-1]
    assert any("weak" in line and "4 chips, compiled" in line for line in lines)
    assert any("each chip separately" in line for line in lines)
    gathers = [line for line in lines if "collectives:" in line and "all-gather" in line]
    assert gathers, "parameters split over fsdp are gathered"


@pytest.mark.slow
@needs_compiler
def test_a_model_that_is_too_large_does_not_fit(tmp_path):
    """GPT-2 XL: 5.8 GiB of parameters and 11.6 of moments per chip exceed 15.75."""
    status, lines, stderr = compiled(
        tmp_path, "--topology=v5e:2x2", "--documents=400", "--tokens=32",
        **{"strong.model": "gpt2-xl", "strong.train.compute_dtype": "bfloat16"},
    )  # fmt: skip
    assert status == 1, stderr
    assert lines[-1].startswith("does not fit: needs ") and "of 15.75 GiB a chip" in lines[-1]
    assert float(lines[-1].split()[4]) > 17.4
    assert any("compiler message: " in line and "RESOURCE_EXHAUSTED" in line for line in lines)
    assert "Traceback" not in stderr
