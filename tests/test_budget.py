"""Cost formulas against traced programs, compiled programs and real parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from w2s_jax import sharding
from w2s_jax.config import TrainSettings
from w2s_jax.core import errors
from w2s_jax.models import adapting, budget, heads, lora, network
from w2s_jax.models.config import ModelConfig
from w2s_jax.testing import tiny_model
from w2s_jax.training.batches import Batch, Bucket, Microbatch
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.programs import compile_step
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import init_state

LENGTH = 24
GATED = dict(norm="rmsnorm", positions="rope", activation="silu", gated_mlp=True, mlp_bias=False)
MODELS = {
    "plain": tiny_model(num_layers=3),
    "grouped": tiny_model(
        num_layers=3, num_heads=4, num_kv_heads=2, tied_embeddings=False, **GATED
    ),
    "wide heads": tiny_model(num_layers=3, head_dim=12, num_kv_heads=1, qk_norm=True, **GATED),
    "parallel": tiny_model(num_layers=3, positions="rope", parallel_residual=True),
    "post norms": tiny_model(num_layers=3, post_norms=True, attention_softcap=9.0, **GATED),
}
models = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)


@functools.cache
def params_of(config):
    return network.init_params(config, 0, sharding.mesh_of((1, 1, 1)))


def dot_flops(function, *args):
    """(FLOPs of matrices, FLOPs of attention) of a traced function: those with batch axes last."""
    found = [0, 0]

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                (left, _), (batch, _) = eqn.params["dimension_numbers"]
                shape = eqn.invars[0].aval.shape
                size = 2 * eqn.outvars[0].aval.size * np.prod([shape[i] for i in left])
                found[bool(batch)] += int(size)
            for inner in jaxprs_in_params(eqn.params):
                visit(inner)

    visit(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def forward(config, params, logits=False):
    tokens_RL = jnp.zeros((2, LENGTH), jnp.int32)
    hidden_RLD = network.forward(config, params, tokens_RL, scan=False)
    if logits:
        return heads.language_model_logits(config, params, hidden_RLD).sum()
    return hidden_RLD.sum()


def split(config, length, **options):
    """(of matrices, of attention), from two lengths, as only attention depends on the length."""
    near, far = (budget.flops_per_token(config, n, **options) for n in (length, 3 * length))
    attention = (far - near) / (2 * length) * (length + 1)
    return near - attention, attention


@models
@pytest.mark.parametrize("logits", [False, True])
def test_flops_are_those_of_the_traced_program(config, logits):
    matrices, attention = dot_flops(lambda p: forward(config, p, logits), params_of(config))
    ours = split(config, LENGTH, logits=logits)
    assert 2 * LENGTH * ours[0] == pytest.approx(matrices)
    # The program computes all scores, of which a causal mask leaves (L + 1) / 2 of L.
    assert 2 * LENGTH * ours[1] == pytest.approx(attention * (LENGTH + 1) / (2 * LENGTH))


@models
def test_training_flops_are_those_of_the_traced_gradient(config):
    params = params_of(config)
    ours = split(config, LENGTH)

    def ratios(function, *args):
        found = dot_flops(function, *args)
        unmasked = 2 * LENGTH / (LENGTH + 1)
        return found[0] / (2 * LENGTH * ours[0]), found[1] / (2 * LENGTH * ours[1] * unmasked)

    full = jax.grad(lambda p: forward(config, p))
    assert ratios(full, params) == pytest.approx((3, 3))
    assert budget.train_flops_per_token(config, LENGTH) == pytest.approx(3 * sum(ours))
    # Gradients pass through frozen matrices to the layers below.
    through = jax.grad(lambda e, p: forward(config, {**p, "embedding": e}))
    assert ratios(through, params["embedding"], params) == pytest.approx((2, 3))
    lora = budget.train_flops_per_token(config, LENGTH, "lora", lora_rank=2)
    adapters = budget.trainable_parameters(config, "lora", lora_rank=2)
    assert lora == pytest.approx(2 * ours[0] + 3 * ours[1] + 6 * adapters)
    assert budget.train_flops_per_token(config, LENGTH, "probe") == pytest.approx(sum(ours))


def test_last_layers_cost_a_backward_pass_of_a_model_of_as_many_layers():
    config = MODELS["grouped"]
    whole = budget.flops_per_token(config, LENGTH)
    for count in (1, 2, 3):
        small = dataclasses.replace(config, num_layers=count)
        wanted = whole + 2 * budget.flops_per_token(small, LENGTH)
        found = budget.train_flops_per_token(config, LENGTH, "last_layers", last_layers=count)
        assert found == pytest.approx(wanted)
    assert found == pytest.approx(budget.train_flops_per_token(config, LENGTH))
    none = budget.train_flops_per_token(config, LENGTH, "last_layers", last_layers=0)
    assert none == pytest.approx(whole)


@pytest.mark.parametrize("window", [0, 1, 5, 24, 100])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("last_only", [False, True])
def test_attention_counts_the_slots_that_the_mask_leaves(window, bidirectional, last_only):
    window = 0 if bidirectional else window
    local = (True, False, True) if window else ()
    config = tiny_model(num_layers=3, bidirectional=bidirectional)
    config = dataclasses.replace(config, window=window, local_layers=local)
    query, key = np.arange(LENGTH)[:, None], np.arange(LENGTH)[None]
    flops = 0.0
    for layer, own in enumerate(local or (False,) * 3):
        mask = np.ones((LENGTH, LENGTH), bool) if bidirectional else key <= query
        if own:
            mask = mask & (query - key < window)
        rows = mask[-1:] if last_only and layer == 2 else mask
        # Width 16, MLP width 32: of the matrices, only keys and values are needed everywhere.
        flops += 4 * 16 * rows.sum() + 2 * (2 * 16 * 16) * LENGTH
        flops += 2 * (2 * 16 * 16 + 2 * 16 * 32) * len(rows)
    found = budget.flops_per_token(config, LENGTH, last_only=last_only)
    assert found * LENGTH == pytest.approx(flops)


def test_a_mean_reads_every_slot():
    config = tiny_model(read_out="mean")
    found = budget.flops_per_token(config, LENGTH, last_only=True)
    assert found == budget.flops_per_token(config, LENGTH)


ENCODER = tiny_model(
    num_layers=3, bidirectional=True, token_types=2, pooler=True, read_out="pooler"
)


@pytest.mark.parametrize(
    "config",
    [*MODELS.values(), ENCODER, dataclasses.replace(ENCODER, read_out="mean")],
    ids=[*MODELS, "pooled encoder", "encoder"],
)
@pytest.mark.parametrize("adapt", ["full", "last_layers", "lora", "probe", "probe_then_full"])
@pytest.mark.parametrize("logits", [False, True])
def test_trainable_parameters_are_those_of_the_training_state(config, adapt, logits):
    if logits and (config.bidirectional or adapt.startswith("probe")):
        pytest.skip("not for language models")
    # After its probe, a model is trained in full.
    train = TrainSettings(adapt=adapt.removeprefix("probe_then_"), last_layers=2)
    adapted = config.with_adapters(3, 6.0, ("mlp.*", "attention.out"))
    params = {"backbone": params_of(config)}
    if adapt == "lora":
        mesh = sharding.mesh_of((1, 1, 1))
        params["backbone"] = lora.add(adapted, params["backbone"], 0, mesh)
    if not logits:
        params["head"] = {"kernel": jnp.zeros((16, 2))}
    trained, frozen = adapting.split(train, adapted if adapt == "lora" else config, params)
    size = sum(x.size for x in jax.tree.leaves(trained.get("backbone", {})))
    options = dict(lora_rank=3, lora_targets=("mlp.*", "attention.out"), last_layers=2)
    found = budget.trainable_parameters(config, adapt, logits=logits, **options)
    assert found == size
    assert budget.trainable_parameters(adapted, adapt, logits=logits, **options) == size
    stored = sum(x.size for x in jax.tree.leaves((trained, frozen))) - (0 if logits else 32)
    assert memory(config, adapt=adapt, trainable=found)["parameters"] == 4 * stored


def test_unknown_options_are_refused():
    config = tiny_model()
    with pytest.raises(errors.InputError, match=r"adapt: .*'fulll' .did you mean 'full'"):
        budget.trainable_parameters(config, "fulll")
    with pytest.raises(errors.InputError, match=r"lora.targets: .*'mlp.gate'.*attention.query"):
        budget.trainable_parameters(config, "lora", lora_targets=("mlp.gate",))
    for field in ("adapt", "remat"):
        with pytest.raises(errors.InputError, match=f"{field}: .*'blok'"):
            memory(config, **{field: "blok"})


def memory(config, tokens=LENGTH, longest=LENGTH, **options):
    fields = dict(adapt="full", trainable=0, param_dtype="float32", compute_dtype="float32")
    return budget.training_memory(
        config, **fields | {"optimizer": "adam"} | options, tokens=tokens, longest=longest
    )


@models
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adafactor"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_gradients_and_moments_are_exact(config, optimizer, dtype):
    params = jax.eval_shape(lambda p: jax.tree.map(lambda x: x.astype(dtype), p), params_of(config))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    trainable = budget.trainable_parameters(config, logits=True)
    found = memory(config, trainable=trainable, param_dtype=dtype, optimizer=optimizer)
    assert found["parameters"] == size
    assert found["gradients"] == 4 * sum(x.size for x in jax.tree.leaves(params))
    assert found["total"] == sum(value for name, value in found.items() if name != "total")
    if optimizer == "adafactor":
        assert found["optimizer"] == 0
        return
    # Moments are float32 whatever the parameters are.
    full = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
    state = jax.eval_shape(getattr(optax, optimizer)(1e-3).init, full)
    moments = [x for x in jax.tree.leaves(state) if x.ndim]
    assert found["optimizer"] == sum(x.size * x.dtype.itemsize for x in moments)
    averaged = memory(
        config, trainable=trainable, param_dtype=dtype, optimizer=optimizer, average=True
    )
    assert averaged["optimizer"] - found["optimizer"] == found["gradients"]
    assert averaged["total"] - found["total"] == found["gradients"]


def test_frozen_parameters_have_no_gradients_and_lower_layers_keep_nothing():
    config = tiny_model(num_layers=8)
    size = config.num_parameters()
    adapts = ("full", "last_layers", "lora", "probe")
    trained = {a: budget.trainable_parameters(config, a) for a in adapts}
    found = {a: memory(config, adapt=a, trainable=trained[a]) for a in adapts}
    assert found["lora"]["parameters"] == 4 * (size + trained["lora"])
    for adapt in ("full", "last_layers", "probe"):
        assert found[adapt]["parameters"] == 4 * size
    for adapt, parts in found.items():
        assert parts["gradients"] == 4 * trained[adapt]
        assert parts["optimizer"] == 8 * trained[adapt]
    kept = [found[a]["activations"] for a in ("probe", "last_layers", "lora", "full")]
    assert kept[0] < kept[1] < kept[2] == kept[3]
    half = memory(config, adapt="lora", trainable=trained["lora"], param_dtype="bfloat16")
    assert half["parameters"] == 2 * size + 4 * trained["lora"], "adapters stay float32"
    assert half["gradients"] == 4 * trained["lora"]
    # One layer, its cotangents and its input (24 tokens of width 16), against one layer.
    one = memory(dataclasses.replace(config, num_layers=1))["activations"]
    assert one == 2 * found["probe"]["activations"] + 24 * 4 * 16
    last = memory(config, adapt="last_layers", trainable=1, last_layers=99)
    assert last["activations"] == found["full"]["activations"]


@pytest.mark.medium
@pytest.mark.parametrize(
    "name,remat,layers,dtype,logits",
    [
        ("grouped", "none", 2, "float32", True),
        pytest.param("plain", "none", 4, "bfloat16", False, marks=pytest.mark.slow),
        pytest.param("grouped", "dots", 14, "float32", False, marks=pytest.mark.slow),
        ("plain", "block", 14, "float32", False),
    ],
)
def test_activations_are_within_a_factor_of_two_of_the_compiled_step(
    name, remat, layers, dtype, logits
):
    """XLA's temporary buffers, which include gradients; 13 layers and more are scanned."""
    rows, length = 4, 64
    config = ModelConfig(
        **MODELS[name].to_dict()
        | dict(name=f"{name} {remat}", d_model=64, head_dim=16, num_heads=4, d_mlp=192)
        | dict(num_kv_heads=2 if name == "grouped" else 4, num_layers=layers)
    )
    mesh = sharding.mesh_of((1, 1, 1))
    train = TrainSettings(
        batch_size=rows, compute_dtype=dtype, remat=remat, learning_rate=1e-3, param_dtype="float32"
    )
    whole = sharding.replicated(mesh)
    params = {"backbone": network.init_params(config, 0, mesh)}
    ones = np.ones((1, 1, rows, length), np.int32)
    batches = Batch(Microbatch(ones, ones))
    if not logits:
        params["head"] = {"kernel": jax.device_put(jnp.zeros((64, 2)), whole)}
        slots = np.full((1, 1, rows, 1), length - 1, np.int32)
        batches = Batch(
            Microbatch(ones, ones, slots, np.zeros((1, 1, rows, 1), np.int32)),
            np.full((1, rows, 2), 0.5, np.float32),
            np.ones((1, rows), np.float32),
        )
    trained, frozen = adapting.split(train, config, params)
    state = init_state(trained, make_optimizer(train), 1, mesh)
    spec = StepSpec(config, train, 1, None if logits else ("xent", ()))
    bucket = Bucket(batches, np.zeros(1, np.int32))
    program = compile_step(spec, mesh, frozen)
    step = program.func.lower(*program.args, state, jax.device_put(bucket, whole)).compile()
    found = memory(
        config,
        tokens=rows * length,
        longest=length,
        trainable=budget.trainable_parameters(config, logits=logits),
        compute_dtype=dtype,
        remat=remat,
        logits=logits,
    )
    real = step.memory_analysis().temp_size_in_bytes
    assert 0.5 < (found["gradients"] + found["activations"]) / real < 2


def test_devices_are_a_power_of_two_and_enough():
    device = budget.Device(10.0, "made up")
    nine = 9 * budget.GIB
    assert [budget.devices_needed(n, device) for n in (0, 1, nine, nine + 1)] == [1, 1, 1, 2]
    assert [budget.devices_needed(n * nine, device) for n in (2, 3, 4, 5, 16)] == [2, 4, 4, 8, 16]
    alone = dataclasses.replace(device, alone=True)
    assert budget.devices_needed(nine, alone) == 1
    assert budget.devices_needed(nine + 1, alone) is None
