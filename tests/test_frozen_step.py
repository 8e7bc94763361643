"""The operations of the train step must not change when code moves.

For each trained phase of a few runs, the test counts operations with the types of their operands
and results, with all functions inlined (see `stablehlo_counts`). Frozen are a SHA-256 of the counts
and, to locate a difference, the counts by operation name. W2S_STEP_TEXTS=DIR writes all counts to
one file per program, to compare with those of a checkout where the test passes.
"""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import jax
import pytest
from frozen_files import check, frozen
from frozen_models import write_model
from stablehlo_counts import by_name, operations

from w2s_jax import testing

JAX_VERSION = "0.10.2"

pytestmark = pytest.mark.skipif(
    jax.__version__ != JAX_VERSION,
    reason=f"frozen with jax {JAX_VERSION}; version {jax.__version__} may lower differently",
)

# --- the only internal functions used here -------------------------------------------------------


def step_programs(config, devices, documents=None, tokens=None):
    """Return {title of a phase: its train step as StableHLO}.

    Obtained in the same way as by `w2s compile`, so the devices may be absent. If `documents` and
    `tokens` are given, the documents are synthetic.
    """
    from w2s_jax import sharding
    from w2s_jax.config.validation import validate
    from w2s_jax.perf.aot import inputs, programs
    from w2s_jax.planning.plan import plan

    resolved = inputs.find_inputs(validate(config), documents, tokens)
    mesh = sharding.make_mesh(resolved.settings.mesh, devices)
    made = programs.programs_of(plan(resolved), resolved, mesh, 2**34, devices)[0]
    texts = {}
    with sharding.over(mesh):
        for program in made:
            if program.trains:
                lowered = program.function.lower(*program.args).as_text()
                texts |= dict.fromkeys(program.title.split(", "), lowered)
    return texts


def tpu_devices(monkeypatch):
    """Return eight chips of an absent slice, after setting the compiler's environment."""
    from w2s_jax.perf.aot import compiler, topology

    for name, value in topology.environment(topology.find("v5e:2x4")).items():
        monkeypatch.setenv(name, value)
    return compiler.devices_of(topology.find("v5e:2x4"))


# --- runs ----------------------------------------------------------------------------------------


def embedded_gpt(config, root):
    """Learned positions; both default losses; one microbatch."""
    config.strong.model = "gpt-d32"


def embedded_rotary(config, root):
    """Rotary positions; batch-coupled losses in microbatches (two passes), with dropout."""
    config.strong.model = "rotary-d32"
    config.losses = ("confidence", "buffered_confidence")
    config.train.microbatch_size = 4
    config.strong.train.dropout = 0.1
    config.strong.train.ema = 0.9
    config.train.optimizer, config.train.clip_norm = "adamw", 1.0


def llama_lora(config, root):
    """Grouped queries; bfloat16 adapters; an uncoupled loss, accumulated over microbatches."""
    config.strong.model = str(write_model("llama", root / "llama"))
    config.strong.tokenizer = "bytes"
    config.pretrain.source = None
    config.losses = ("xent", "logconf")
    config.strong.train.update(adapt="lora", microbatch_size=8, compute_dtype="bfloat16")
    config.strong.lora.rank = 2
    config.train.remat = "block"


def bert(config, root):
    """An encoder; losses with state and with an option; Adafactor with bfloat16 parameters."""
    config.strong.model = str(write_model("bert", root / "bert"))
    config.strong.tokenizer = "bytes"
    config.pretrain.source = None
    config.losses = ("kl", "window")
    config.strong.train.update(optimizer="adafactor", param_dtype="bfloat16")
    config.weak.train.adapt = "probe"
    config.probe.steps, config.probe.batch_size = 4, 16


def large(config, root):
    """Synthetic documents, long enough for TPU attention kernels; models without weights."""
    config.weak.model, config.strong.model = "gpt2", "Qwen/Qwen2.5-0.5B"
    config.pretrain.source = None
    config.losses = ("confidence",)
    config.train.update(compute_dtype="bfloat16", batch_size=16, microbatch_size=8, remat="dots")


RUNS = {run.__name__: run for run in (embedded_gpt, embedded_rotary, llama_lora, bert)}
#: Configs returned by the recipes of `test_it_is_the_step_that_a_run_dispatches`.
RECIPES = {}


def config_of(run, root):
    """Return the config of a run of a few steps on the tiny task."""
    data_dir = root / "data"
    if not data_dir.exists():
        testing.write_tiny_task(data_dir)
    config = testing.tiny_config(data_dir)
    config.train.steps, config.pretrain.steps, config.eval.every = 4, 4, 4
    (RUNS | {"large": large})[run](config, root)
    return config


def counted(texts):
    """Return {title: frozen summary of its program}; equal programs are counted once."""
    counts = {text: operations(text) for text in set(texts.values())}
    return {title: summary(title, counts[text]) for title, text in texts.items()}


def summary(title, counts):
    lines = [f"{key}: {count}" for key, count in sorted(counts.items())]
    if folder := os.environ.get("W2S_STEP_TEXTS"):
        name = f"{os.environ['PYTEST_CURRENT_TEST'].split('::')[-1].split(' ')[0]} {title}.txt"
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name.replace("/", "_")).write_text("\n".join(lines) + "\n")
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return {"sha256": digest, "total": sum(counts.values()), "by name": by_name(counts)}


# --- tests ---------------------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize("run", RUNS)
def test_a_step_on_a_cpu(run, tmp_path):
    config = config_of(run, tmp_path)
    config.mesh.data = 1
    texts = step_programs(config, jax.devices())
    check("step", {f"cpu, {run}": counted(texts)})


@pytest.mark.slow
def test_it_is_the_step_that_a_run_dispatches(tmp_path):
    """`w2s run --dump_hlo` on one device; uses no internal functions."""
    from w2s_jax.cli.main import main

    run = "embedded_rotary"
    RECIPES[run] = config_of(run, tmp_path)
    RECIPES[run].mesh.data = 1
    recipe, workdir = tmp_path / "recipe.py", tmp_path / "run"
    recipe.write_text(
        f"from test_frozen_step import RECIPES\ndef get_config():\n    return RECIPES[{run!r}]\n"
    )
    main = getattr(main, "main", main)
    assert main(["run", f"--config={recipe}", f"--workdir={workdir}", "--dump_hlo"]) == 0
    texts = {}
    for stage in json.loads((workdir / "result.json").read_text())["stages"]:
        name = stage["model"] if stage["kind"] == "pretrain" else stage.get("label", "")
        folder = workdir / "phases" / stage["phase"] / "hlo"
        for number, path in enumerate(sorted(folder.glob("*.stablehlo.mlir"))):
            assert number == 0, "one program per phase"
            texts[f"{stage['kind']} {name}".strip()] = path.read_text()
    wanted = {f"cpu, {run}": counted(texts)}
    assert texts.keys() == frozen("step")[f"cpu, {run}"].keys()
    check("step", wanted)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler, libtpu, is not installed: pip install 'libtpu==0.0.42.*'",
)
@pytest.mark.parametrize("run", [*RUNS, "large"])
def test_a_step_on_a_tpu_slice(run, tmp_path, monkeypatch):
    """As compiled by `w2s compile` for eight chips, with parameters split over fsdp and tensor."""
    config = config_of(run, tmp_path)
    config.mesh.fsdp, config.mesh.tensor = 2, 2
    synthetic = dict(documents=400, tokens=512) if run == "large" else {}
    texts = step_programs(config, tpu_devices(monkeypatch), **synthetic)
    check("step", {f"v5e:2x4, {run}": counted(texts)})
