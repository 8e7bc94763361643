"""`w2s compile` for GPUs: names, descriptions, the compiler's times, and its quiet presence."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from w2s_jax.core import errors
from w2s_jax.perf.aot import gpus, hlo, topology
from w2s_jax.perf.aot.clocks import GpuClock
from w2s_jax.profiling import devices


def test_gpus_are_found_by_name_hosts_and_count():
    one = topology.find("h100:8")
    assert (one.chips, one.memory, one.product_name) == (8, 84942979072, "NVIDIA H100 80GB HBM3")
    assert one.options["topology"] == "1x1x8" and one.sizes == (8,)
    two = topology.find("b200:2x8")
    assert two.chips == 16 and two.options["topology"] == "1x2x8"
    assert topology.host_of(two).name == "b200:8"


@pytest.mark.parametrize(
    "name,message",
    [
        ("h100:3", r"unknown value 'h100:3' \(did you mean 'h100:8'\?\)"),
        ("l4:8", r"no description of the GPU 'l4' for the compiler; allowed: a100, h100, "),
        ("v5e:4x5", r"did you mean 'v5e:4x8'"),
        ("", r"unknown value ''"),
    ],
)
def test_other_names_are_refused_in_one_line(name, message):
    with pytest.raises(errors.InputError, match=message):
        topology.find(name)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(gpus, "compiler_folder", lambda: None)
    with pytest.raises(errors.InputError, match=r"pip install 'w2s_jax\[cuda-compiler\]'"):
        topology.check_compiler(topology.find("a100:8"))


@pytest.mark.parametrize("name", gpus.GPUS)
def test_descriptions_agree_with_the_stated_peaks(name):
    """2 operations per multiply-add, 4 tensor cores per multiprocessor."""
    gpu = gpus.GPUS[name]
    peak = 2 * gpu.matrix_ops * 4 * gpu.cores * gpu.matrix_hertz
    assert peak == pytest.approx(devices.peak_flops(gpu.kind, "bfloat16"), rel=0.02)
    text = gpus.description(gpu)
    assert f"device_memory_size: {gpu.size}" in text and f'"{gpu.kind}"' in text
    assert text.count("{") == text.count("}")
    # NVLink, one way: half of what is stated for both ways.
    assert 2 * gpu.links == {"a100": 600e9, "b200": 1800e9}.get(name, 900e9)


def costs(**models):
    """Return the attributes of an operation with (time, compute, memory) in us by model."""
    each = [
        f'{{"end_to_end_cycles":0,"exec_time_us":{time},"compute_time_us":{compute},'
        f'"memory_access_time_us":{memory},"name":"{model.replace("_", "-")}"}}'
        for model, (time, compute, memory) in models.items()
    ]
    return f'backend_config={{"reification_cost":[{",".join(each)}]}}'


@pytest.mark.parametrize(
    "models,product,expected",
    [
        ({"sol": (28.5, 0, 0), "": (63, 62, 6)}, False, 28.5),
        ({"": (1.5, 1, 1)}, False, 1.5),
        ({}, False, None),
        # Times of products assume an untuned tiling.
        (
            {
                "sol": (618, 0, 0),
                "": (200, 200, 7.4),
                "experimental_gemm_cost_model": (221, 11, 13),
            },
            True,
            11,
        ),
        ({"sol": (618, 0, 0), "": (200, 200, 7.4)}, True, None),
    ],
)
def test_times_are_read_from_the_models_that_hold(models, product, expected):
    assert gpus.microseconds(costs(**models), product=product) == expected


def test_synchronous_collectives_block_and_others_hide_behind_work():
    text = """\
ENTRY %main (p: f32[8]) -> f32[8] {{
  %s = (f32[4], f32[8]) all-gather-start(%x), replica_groups={{{{0,1}}}}, \
backend_config={{"is_sync":{sync},"reification_cost":[{cost}]}}
  %w = f32[8] fusion(%x), kind=kLoop, calls=%f, {work}
  %d = f32[8] all-gather-done(%s)
  ROOT %r = f32[8] tuple(%d)
}}
"""
    cost = costs(sol=(100, 0, 0)).partition("[")[2].rpartition("]")[0]
    for sync, seconds in (("false", 1e-4), ("true", 1.6e-4)):
        module = hlo.parse(text.format(sync=sync, cost=cost, work=costs(sol=(60, 0, 0))))
        estimate = GpuClock(gpus.GPUS["h100"], 989e12, 2).estimate(module)
        assert estimate.seconds == pytest.approx(seconds)
        assert estimate.no_overlap == pytest.approx(1.6e-4)
        assert estimate.all_hidden == pytest.approx(6e-5)
        assert estimate.fallback_share == 0


has_compiler = pytest.mark.skipif(
    gpus.compiler_folder() is None, reason="the CUDA compiler is not installed"
)


@has_compiler
def test_other_commands_print_nothing_of_the_compiler(tmp_path):
    program = "from w2s_jax.cli.main import main\nmain(['data', 'list'])\nimport jax\njax.devices()"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    # The TPU compiler, if it is here too, has things of its own to say.
    assert done.returncode == 0 and "cuda" not in done.stderr.lower(), done.stderr


@pytest.mark.slow
@has_compiler
def test_a_run_is_compiled_for_gpus(tmp_path):
    """GPT-2 on eight H100: memory and times are those of an H100's order."""
    recipe, target = tmp_path / "recipe.py", tmp_path / "figures.json"
    recipe.write_text(
        "from w2s_jax.config import default_config\ndef get_config():\n"
        "    config = default_config()\n    config.task.name = 'sst2'\n"
        "    config.losses = ('xent',)\n    config.weak.model = config.strong.model = 'gpt2'\n"
        "    config.train.compute_dtype = 'bfloat16'\n    return config\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "w2s_jax.cli.main", "compile", f"--config={recipe}",
         "--topology=h100:8", "--documents=400", "--tokens=128", "--config.mesh.fsdp=8",
         f"--json={target}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "attention: XLA's operations" in done.stdout
    programs = json.loads(target.read_text())["programs"]
    step = next(p for p in programs if p["title"].startswith("weak,"))
    assert 1e-4 < step["estimated_seconds"] < 0.1 and 0 < step["predicted_mfu"] < 1
    assert step["parts"]["collectives"]["seconds"] > 0 and step["peak_bytes"] < 84942979072
    assert importlib.util.find_spec("jax_cuda12_plugin") is not None
