"""Attention: every form against the plain formula, and which form a shape gets."""

import dataclasses
import functools
import itertools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2s_jax import sharding
from w2s_jax.core.errors import InputError
from w2s_jax.models import attention_kernels
from w2s_jax.models.attention import (
    at_slots,
    attention,
    attention_at,
    attention_reference,
)

#: What models ask of attention.
WAYS = {
    "causal": {},
    "scaled": {"scale": 0.3},
    "window": {"window": 70},
    "softcap": {"softcap": 2.0},
    "softcap_window": {"softcap": 2.0, "window": 20, "scale": 0.5},
    "encoder": {"causal": False},
    "encoder_window": {"causal": False, "window": 30},
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def rows(rows=2, length=256, heads=4, kv_heads=2, size=16, dtype=jnp.float32, seed=0):
    """(queries, keys, values, segments): a few documents in each row and padding behind them."""
    rng = np.random.default_rng(seed)
    shapes = [(rows, length, n, size) for n in (heads, kv_heads, kv_heads)]
    q, k, v = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    segments = np.zeros((rows, length), np.int32)
    for row in segments:
        cuts = np.sort(rng.choice(np.arange(1, length), 3, replace=False))
        for number, (start, stop) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True)):
            row[start:stop] = number + 1
    return q, k, v, jnp.asarray(segments)


def document_by_document(q, k, v, segments, *, window=0, scale=None, softcap=0.0, causal=True):
    """The same in NumPy, one document, head and query at a time."""
    q, k, v, segments = (np.asarray(x, np.float64) for x in (q, k, v, segments))
    out = np.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    scale = q.shape[3] ** -0.5 if scale is None else scale
    for r, l, h in np.ndindex(q.shape[:3]):
        document = np.flatnonzero(segments[r] == segments[r, l])
        seen = document[document <= l] if causal else document
        seen = seen[l - seen < window] if window else seen
        score = k[r, seen, h // group] @ q[r, l, h] * scale
        score = softcap * np.tanh(score / softcap) if softcap else score
        weight = np.exp(score - score.max())
        out[r, l, h] = weight @ v[r, seen, h // group] / weight.sum()
    return out


def value_and_gradients(compute, q, k, v, segments, **way):
    """(the output, the gradients of q, k and v) against a fixed cotangent, in float32."""

    def loss(q, k, v):
        out = compute(q, k, v, segments, **way)
        cotangent = np.random.default_rng(9).normal(size=out.shape).astype(np.float32)
        return jnp.sum(out.astype(jnp.float32) * cotangent), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    assert out.dtype == q.dtype
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


def assert_near(ours, theirs, dtype):
    tolerance = 3e-5 if dtype == jnp.float32 else 3e-2
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=tolerance * np.abs(their).max())


def truth(q, k, v, segments, **way):
    """By formula in float32, whatever the arrays' dtype."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    return value_and_gradients(attention_reference, q, k, v, segments, **way)


@ways
def test_the_formula_is_attention_of_each_document_alone(way):
    arrays = rows(length=40, size=8)
    ours = attention_reference(*arrays, **way)
    np.testing.assert_allclose(ours, document_by_document(*arrays, **way), atol=1e-5)


def forms():
    """(kernel, dtype, way) of each test; interpreted kernels compile for seconds.

    In bfloat16 a few, as the dtype changes roundings alone.
    """
    half = [("xla", "causal"), ("xla", "softcap_window"), ("splash", "softcap_window")]
    quick = [("splash", "float32", way) for way in ("window", "encoder_window")]
    quick += [(kernel, "bfloat16", way) for kernel, way in half]
    quick += [("xla", "float32", way) for way in WAYS]
    slow = [("splash", "float32", way) for way in WAYS]
    slow = [pytest.param(*form, marks=pytest.mark.slow) for form in slow if form not in quick]
    return quick + slow


@pytest.mark.medium
@pytest.mark.parametrize(("kernel", "dtype", "way"), forms())
def test_every_form_computes_the_formula_and_its_gradients(kernel, dtype, way):
    dtype, way = jnp.dtype(dtype), WAYS[way]
    arrays = rows(dtype=dtype)
    with attention_kernels.using(kernel), sharding.over(sharding.mesh_of((1, 1, 1))):
        ours = value_and_gradients(attention, *arrays, **way)
    assert_near(ours, truth(*arrays, **way), dtype)


@pytest.mark.parametrize("causal", [True, False])
def test_splash_attention_pads_rows_and_heads_to_its_tiles(causal):
    arrays = rows(length=150, size=72, heads=3, kv_heads=3)
    with attention_kernels.using("splash"), sharding.over(sharding.mesh_of((1, 1, 1))):
        ours = jax.jit(functools.partial(attention, causal=causal))(*arrays)
    np.testing.assert_allclose(ours, attention_reference(*arrays, causal=causal), atol=2e-5)


def test_on_a_mesh_each_device_computes_its_rows_and_heads():
    arrays = rows(rows=4, length=128)
    mesh = sharding.mesh_of((2, 2, 2))

    def layers(q, k, v, segments):
        """Two layers, scanned and rematerialised as models are."""
        layer = jax.checkpoint(lambda x, _: (attention(x, k, v, segments, window=50), None))
        return jax.lax.scan(layer, q, None, length=2)[0]

    with attention_kernels.using("splash"), sharding.over(mesh):
        ours = value_and_gradients(layers, *arrays)
        jaxpr = str(jax.make_jaxpr(layers)(*arrays))
    assert "shard_map" in jaxpr and "splash_mha_fwd_segmented" in jaxpr
    assert_near(ours, value_and_gradients(layers, *arrays), jnp.float32)


def test_a_program_of_each_device_needs_no_mesh():
    q, k, v, segments = rows(rows=4, length=128)
    split = [x.reshape(2, 2, *x.shape[1:]) for x in (q, k, v, segments)]
    with attention_kernels.using("splash"):
        out = jax.pmap(attention)(*split)
    np.testing.assert_allclose(
        out.reshape(q.shape), attention_reference(q, k, v, segments), atol=2e-5
    )


@pytest.mark.parametrize("window", [0, 30, "array"])
@pytest.mark.parametrize("causal", [True, False])
def test_cudnn_gets_segments_and_windows_as_one_mask_for_all_heads(monkeypatch, causal, window):
    arrays = rows(length=64, dtype=jnp.bfloat16)
    way = {"causal": causal, "window": jnp.int32(30) if window == "array" else window}
    plain, seen = jax.nn.dot_product_attention, []

    def on_cpu(q, k, v, *, implementation, **options):
        seen.append((implementation, q.shape, k.shape, options["mask"].shape, options["is_causal"]))
        return plain(q, k, v, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)
    with attention_kernels.using("cudnn"), sharding.over(sharding.mesh_of((2, 1, 2))):
        ours = value_and_gradients(attention, *arrays, scale=0.3, **way)
    # On each of 2 x 2 devices, one of 2 rows and half of the 4 heads and the 2 key/value heads.
    assert seen == [("cudnn", (1, 64, 2, 16), (1, 64, 1, 16), (1, 1, 64, 64), causal)]
    assert_near(ours, truth(*arrays, scale=0.3, **way), jnp.bfloat16)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN runs on GPUs")
@pytest.mark.parametrize("name", [name for name in WAYS if "softcap" not in name])
def test_cudnn_computes_the_formula_on_a_gpu(name):
    arrays = rows(length=512, size=64, dtype=jnp.bfloat16)
    with attention_kernels.using("cudnn"), sharding.over(sharding.mesh_of((1, 1, 1))):
        ours = value_and_gradients(attention, *arrays, **WAYS[name])
    assert_near(ours, truth(*arrays, **WAYS[name]), jnp.bfloat16)


def some_slots(segments):
    """[R, 6]: slots of each row: first, last, of documents and of padding, one of them twice."""
    rows, length = segments.shape
    drawn = np.random.default_rng(5).integers(0, length, (rows, 3))
    ends = np.tile([0, length - 1, length - 1], (rows, 1))
    return jnp.asarray(np.concatenate([drawn, ends], axis=1))


@ways
def test_queries_at_read_outs_are_those_rows_of_full_attention(way):
    arrays = rows(rows=3, length=60)
    slots = some_slots(arrays[-1])

    def at(q, *rest, **way):
        return attention_at(slots, at_slots(q, slots), *rest, **way)

    def taken(*arrays, **way):
        return attention_reference(*arrays, **way)[jnp.arange(3)[:, None], slots]

    theirs = value_and_gradients(taken, *arrays, **way)
    assert_near(value_and_gradients(at, *arrays, **way), theirs, jnp.float32)


def test_a_window_known_only_at_run_time_counts_at_read_outs_too():
    q, k, v, segments = rows(rows=3, length=60)
    slots = some_slots(segments)
    for window in (1, 7, 1000):
        asked = at_slots(q, slots)
        ours = attention_at(slots, asked, k, v, segments, window=jnp.int32(window), causal=False)
        theirs = attention_reference(q, k, v, segments, window=window, causal=False)
        theirs = theirs[jnp.arange(3)[:, None], slots]
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_read_outs_move_no_row_between_devices_and_scatter_nothing():
    q, k, v, segments = rows(rows=8, length=64)
    mesh = sharding.mesh_of((4, 2, 1))
    whole = (some_slots(segments), q, k, v, segments)
    split = [jax.device_put(x, sharding.rows(mesh, leading=0)) for x in whole]

    def each(slots, q, *rest):
        return attention_at(slots, at_slots(q, slots), *rest) ** 2

    def loss(*arrays):
        return jnp.sum(each(*arrays))

    gradient = jax.jit(jax.grad(loss, (1, 2, 3)))
    compiled = gradient.lower(*split).compile().as_text()
    moves = r"(scatter|all-reduce|all-gather|all-to-all|collective-permute)(-start)?\("
    assert not re.search(moves, compiled)
    for our, their in zip(gradient(*split), gradient(*whole), strict=True):
        np.testing.assert_allclose(our, their, atol=1e-5)


CASE = attention_kernels.Case(
    dtype="bfloat16",
    rows=8,
    length=1024,
    heads=12,
    kv_heads=4,
    head_size=64,
    static_window=True,
    softcap=False,
    shards=(1, 1),
)


@pytest.mark.parametrize(
    ("change", "tpu", "gpu"),
    [
        ({}, "splash", "cudnn"),
        ({"dtype": "float32"}, "splash", "xla"),
        ({"dtype": "float16"}, "xla", "cudnn"),
        ({"length": 511}, "xla", "xla"),
        ({"length": 512}, "splash", "cudnn"),
        ({"length": 255}, "xla", "xla"),
        ({"length": 256}, "xla", "cudnn"),
        ({"length": 601}, "splash", "xla"),
        ({"head_size": 128}, "splash", "cudnn"),
        ({"head_size": 136}, "splash", "xla"),
        ({"head_size": 60}, "splash", "xla"),
        ({"static_window": False}, "xla", "cudnn"),
        ({"softcap": True}, "splash", "xla"),
        ({"shards": None}, "xla", "xla"),
        ({"shards": (8, 4)}, "splash", "cudnn"),
        ({"shards": (3, 1)}, "xla", "xla"),
        ({"shards": (1, 3)}, "xla", "xla"),
        ({"shards": (1, 6), "kv_heads": 12}, "splash", "cudnn"),
        ({"shards": (1, 6), "kv_heads": 4}, "xla", "xla"),
        ({"shards": (1, 2), "heads": 3, "kv_heads": 2}, "xla", "xla"),
    ],
    ids=str,
)
def test_a_kernel_is_chosen_for_what_it_can_compute(change, tpu, gpu):
    case = dataclasses.replace(CASE, **change)
    chosen = [attention_kernels.choose(name, case) for name in ("tpu", "gpu", "cpu", "other_gpu")]
    assert chosen == [tpu, gpu, "xla", "xla"]


def test_rows_are_whole_tiles_where_a_kernel_may_run():
    multiples = {
        name: attention_kernels.row_length_multiple(name)
        for name in ("cpu", "gpu", "tpu", "other_gpu")
    }
    assert multiples == {"cpu": 1, "gpu": 128, "tpu": 128, "other_gpu": 1}


def test_only_nvidia_gpus_since_ampere_have_fused_attention():
    def gpu(version, capability):
        client = SimpleNamespace(platform_version=version)
        return SimpleNamespace(platform="gpu", client=client, compute_capability=capability)

    assert attention_kernels.backend_of(jax.devices("cpu")[0]) == "cpu"
    assert attention_kernels.backend_of(gpu("PJRT C API\ncuda 12080", "9.0")) == "gpu"
    assert attention_kernels.backend_of(gpu("PJRT C API\nNVIDIA H200", "9.0")) == "gpu"
    assert attention_kernels.backend_of(gpu("PJRT C API\ncuda 12080", "7.5")) == "other_gpu"
    assert attention_kernels.backend_of(gpu("PJRT C API\nrocm 60300", "gfx942")) == "other_gpu"


@pytest.mark.parametrize(("length", "kernels"), [(512, True), (256, False)])
def test_on_a_tpu_long_rows_compile_to_splash_kernels(monkeypatch, length, kernels):
    arrays = rows(rows=4, length=length, size=64, dtype=jnp.bfloat16)
    monkeypatch.setattr(attention_kernels, "backend_of", lambda device: "tpu")

    def loss(q, k, v, segments):
        return jnp.sum(attention(q, k, v, segments).astype(jnp.float32))

    with sharding.over(sharding.mesh_of((2, 1, 2))):
        traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == (3 if kernels else 0)


def test_a_program_of_one_kernel_is_not_used_for_another():
    q, k, *_ = rows(length=128)
    traces = []

    @jax.jit
    def program(q, k):
        traces.append(attention_kernels.chosen(q, k, window=0, softcap=0.0))
        return q

    one, two = sharding.mesh_of((1, 1, 1)), sharding.mesh_of((2, 1, 1))
    for kernel, mesh in [("xla", one), ("splash", one), ("splash", two), ("xla", one)]:
        with attention_kernels.using(kernel), sharding.over(mesh):
            program(q, k)
    program(q, k)
    assert traces == ["xla", "splash", "splash", "xla"]


def test_a_kernel_that_cannot_compute_a_shape_is_refused():
    q, k, v, segments = rows(length=128)
    with pytest.raises(InputError, match="unknown value 'splush' .*'splash'.*xla, cudnn, splash"):
        attention_kernels.using("splush")
    with attention_kernels.using("splash"):
        with pytest.raises(InputError, match="'splash' does not support several devices"):
            attention(q, k, v, segments)
        uneven = pytest.raises(InputError, match="2 rows, 4 heads .* over 4 and 1 devices")
        with sharding.over(sharding.mesh_of((4, 1, 1))), uneven:
            attention(q, k, v, segments)
        with sharding.over(sharding.mesh_of((1, 1, 1))):
            with pytest.raises(InputError, match="a window that differs between layers"):
                attention(q, k, v, segments, window=jnp.int32(3))
            with pytest.raises(InputError, match="dtype float16; allowed: bfloat16, float32"):
                attention(*(x.astype(jnp.float16) for x in (q, k, v)), segments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_that_no_query_of_a_chunk_may_see_are_left_out_of_cpu_attention(dtype):
    """Rows of three chunks and a bit; each chunk's documents begin at 0, 100, 230 and 384."""
    q, k, v, _ = rows(length=400, dtype=jnp.dtype(dtype))
    segments = np.zeros((2, 400), np.int32)
    for row, cuts in zip(segments, ([0, 100, 230, 390], [0, 128, 256, 384, 399]), strict=True):
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            row[start:stop] = number + 1
    segments = jnp.asarray(segments)
    compute = functools.partial(attention, first_keys=(0, 96, 224, 224))
    with sharding.over(sharding.mesh_of((1, 1, 1))):
        ours = value_and_gradients(compute, q, k, v, segments)
        counted = jax.make_jaxpr(lambda *x: compute(*x))(q, k, v, segments)
    padding = np.asarray(segments) == 0
    theirs = truth(q, k, v, segments)
    ours, theirs = ([np.where(padding[..., None, None], 0, x) for x in xs] for xs in (ours, theirs))
    assert_near(ours, theirs, jnp.dtype(dtype))
    widths = {
        eqn.outvars[0].aval.shape[-1]
        for eqn in counted.eqns[0].params["call_jaxpr"].eqns
        if eqn.primitive.name == "dot_general"
    }
    assert {128, 160, 176} <= widths


def test_what_a_chunk_sees_is_no_part_of_attention_that_looks_ahead():
    arrays = rows(length=300)
    ours = attention(*arrays, causal=False, first_keys=(0, 128, 256))
    np.testing.assert_allclose(ours, attention_reference(*arrays, causal=False), atol=2e-5)
