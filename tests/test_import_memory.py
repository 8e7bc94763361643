"""How much host memory an import takes, with one process and with two; export by two."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from checkpoints import assert_same_bits, tensors_of, tiny

from w2s_jax.models import checkpoint_files as files
from w2s_jax.models.families import FAMILIES

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 16_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}

LOAD = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
if len(sys.argv) > 3:
    jax.distributed.initialize(f"localhost:{sys.argv[3]}", 2, int(sys.argv[4]))
import numpy as np
from w2s_jax import models, sharding

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

mesh = sharding.mesh_of((1, len(jax.devices()), 1))
jax.block_until_ready(jax.device_put(np.zeros(8), sharding.replicated(mesh)))
import ml_dtypes, safetensors
before = peak()
config, params = models.load(sys.argv[1], mesh)
jax.block_until_ready(params)
after = peak()
held = [s.data.nbytes for a in jax.tree.leaves(params) for s in a.addressable_shards]
print()
print(before, after, sum(held))
"""


EXPORT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{sys.argv[3]}", 2, int(sys.argv[4]))
from w2s_jax import models, sharding
from w2s_jax.core import errors

config, params = models.load(sys.argv[1], sharding.mesh_of((1, 2, 2)))
models.export_huggingface(config, params, sys.argv[2], shard_bytes=20_000)
try:
    models.export_huggingface(config, params, sys.argv[2])
except errors.InputError:
    print()
    print(1)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(A folder with 2 GB in several files, its size)."""
    folder = tmp_path_factory.mktemp("large")
    (folder / files.CONFIG).write_text(json.dumps(CONFIG))
    family = FAMILIES["llama"]
    config = family.to_config(CONFIG)
    shapes = {
        view.name.format(layer=i): view.stored
        for view in family.views(config).values()
        for i in range(config.num_layers if "{layer}" in view.name else 1)
    }
    sizes = {name: 4 * int(np.prod(shape)) for name, shape in shapes.items()}
    groups = files.group_shards(sizes.items(), 300_000_000)
    draw = np.random.default_rng(0)
    for names, file in zip(groups, files.shard_names(len(groups)), strict=True):
        shard = {name: draw.random(shapes[name], np.float32) for name in names}
        files.write_shard(folder / file, shard)
    files.write_index(folder, groups, sum(sizes.values()))
    yield folder, sum(sizes.values())
    for path in folder.iterdir():
        path.unlink()


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
    )


def numbers(process):
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return [int(number) for number in out.splitlines()[-1].split()]


@pytest.mark.slow
def test_one_process_holds_the_model_once(checkpoint):
    folder, size = checkpoint
    before, peak, held = numbers(start(LOAD, folder, 8))
    print(
        f"size {size:.3e}, before {before / size:.2f}, peak {peak / size:.3f}, held {held / size}"
    )
    assert held == pytest.approx(size, rel=1e-3)  # norms are on every device
    assert peak < 1.35 * size


@pytest.mark.slow
def test_each_of_two_processes_holds_half(checkpoint):
    folder, size = checkpoint
    port = free_port()
    processes = [start(LOAD, folder, 4, port, i) for i in range(2)]
    for before, peak, held in map(numbers, processes):
        print(f"of {size:.3e} bytes: before {before / size:.3f}, peak {peak / size:.3f}")
        assert held == pytest.approx(size / 2, rel=1e-3)
        # Python and JAX take what they take before.
        assert peak - before < 0.6 * size


@pytest.mark.slow
def test_two_processes_export_what_one_imports(tmp_path):
    tensors = tiny("gpt2", tmp_path / "in")
    port = free_port()
    folders = (tmp_path / "in", tmp_path / "out")
    processes = [start(EXPORT, *folders, port, i) for i in range(2)]
    assert [numbers(process) for process in processes] == [[1], [1]]
    assert_same_bits(tensors_of(tmp_path / "out"), tensors)
