"""The compiled decode program: what it does with the cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax import sharding
from w2s_jax.models import decoding, generation_plan, network
from w2s_jax.models.generation import Generator
from w2s_jax.perf import workloads


def test_the_cache_is_updated_in_place():
    """A copy of it for each token took more time than the rest of a step, on CPUs."""
    model = dataclasses.replace(workloads.find_model("gpt-d8"), vocab_size=300, max_positions=64)
    config = dataclasses.replace(model, num_layers=2, num_heads=2, num_kv_heads=2)
    mesh = sharding.mesh_of((1, 1, 1))
    generator = Generator(config, mesh, max_new_tokens=5, eos=None, logprobs=False)
    prompts = [np.arange(1, 18)] * 3
    (dispatch,) = generator.plan(prompts)
    rows = generation_plan.rows_of(prompts, np.arange(3, dtype=np.uint64), dispatch)
    with sharding.over(mesh):
        params = network.init_params(config, 0, mesh)
        prepared = decoding.prepare(config, params, jnp.dtype("float32"), False)
        cache, logits_RV = generator._prefill(dispatch.slots + 5, prepared, rows)
        lowered = generator._decode.lower(prepared, cache, logits_RV, rows, generator._knobs)
    size = ",".join(map(str, jax.tree.leaves(cache)[0].shape[-4:]))
    lines = lowered.compile().as_text().splitlines()
    assert sum("dynamic-update-slice" in line and size in line for line in lines) >= 4
    assert not [line for line in lines if f"{size}]" in line and " copy(" in line]
