"""Generation: equal to a full forward pass for each token, whatever the batches and devices."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import refusals

from w2s_jax import models, sharding, testing
from w2s_jax.models import heads, lora, network
from w2s_jax.models.generation import Generator

GOLDEN = Path(__file__).parent / "golden"
ENCODERS = ("bert", "minilm", "roberta", "xlm_roberta")
#: Slots of the reference; longer than any prompt with its completion.
LENGTH = 24


def one_device():
    return sharding.mesh_of((1, 1, 1))


def random_prompts(config, lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.vocab_size, n).tolist() for n in lengths]


@functools.partial(jax.jit, static_argnums=(0, 3))
def forward_logits(config, params, tokens_RL, dtype=None):
    """Next-token logits of a full forward pass; the tokens after a slot do not matter to it."""
    hidden_RLD = models.forward(config, params, tokens_RL, compute_dtype=dtype)
    return heads.language_model_logits(config, params, hidden_RLD)


def reference(config, params, prompts, new_tokens):
    """Greedy completions by a full forward pass for each token, and their log-probabilities."""
    rows = np.zeros((len(prompts), LENGTH), np.int32)
    ends = np.array([len(prompt) for prompt in prompts])
    logprobs = np.zeros((len(prompts), new_tokens), np.float32)
    for i, prompt in enumerate(prompts):
        rows[i, : len(prompt)] = prompt
    every = np.arange(len(prompts))
    for t in range(new_tokens):
        logits = np.asarray(forward_logits(config, params, rows))[every, ends + t - 1]
        rows[every, ends + t] = np.argmax(logits, -1)
        logprobs[:, t] = np.max(np.asarray(jax.nn.log_softmax(logits)), -1)
    tokens = [[rows[i, n : n + new_tokens].tolist()] for i, n in enumerate(ends)]
    return tokens, logprobs


def assert_greedy_is_the_reference(config, params, lengths=(3, 9, 14, 5), new_tokens=8):
    prompts = random_prompts(config, lengths)
    tokens, logprobs = models.generate(
        config,
        params,
        prompts,
        max_new_tokens=new_tokens,
        mesh=one_device(),
        return_logprobs=True,
    )
    wanted, wanted_logprobs = reference(config, params, prompts, new_tokens)
    assert tokens == wanted
    # Something depends on what was read.
    assert len({tuple(sample) for row in tokens for sample in row}) > 1
    np.testing.assert_allclose(np.array(logprobs)[:, 0], wanted_logprobs, atol=1e-5)


DECODERS = [name for name in peers.golden_folders(GOLDEN) if name not in ENCODERS]


@pytest.mark.medium
@pytest.mark.parametrize("name", DECODERS)
def test_greedy_completions_of_every_family(monkeypatch, name):
    """Every other one is scanned."""
    monkeypatch.setattr(network, "scan_by_default", lambda config: bool(DECODERS.index(name) % 2))
    config, params = peers.load(peers.golden_folders(GOLDEN)[name])
    assert_greedy_is_the_reference(config, params)


#: All that changes attention or the order within a block, at once.
GEMMA_LIKE = dict(
    vocab_size=40,
    max_positions=0,
    positions="rope",
    norm="rmsnorm",
    num_heads=4,
    num_kv_heads=2,
    num_layers=3,
    window=4,
    local_layers=(True, False, True),
    local_rope_theta=100.0,
    attention_softcap=2.0,
    logit_softcap=5.0,
    query_scalar=3.0,
    qk_norm=True,
    post_norms=True,
    scaled_embeddings=True,
    init_std=0.3,
)


@pytest.mark.parametrize(
    "scan,changes",
    [
        (False, dict(vocab_size=40, window=3, init_std=0.3)),
        (True, GEMMA_LIKE),
        (False, dict(vocab_size=40, parallel_residual=True, positions="none", init_std=0.3)),
    ],
)
def test_greedy_completions_are_those_of_full_forward_passes(monkeypatch, scan, changes):
    monkeypatch.setattr(network, "scan_by_default", lambda config: scan)
    config = testing.tiny_model(**changes)
    assert_greedy_is_the_reference(config, network.init_params(config, 0, one_device()))


@functools.cache
def tiny():
    config = testing.tiny_model(vocab_size=32, init_std=0.3)
    return config, jax.device_get(network.init_params(config, 0, one_device()))


def test_adapters_and_separate_last_blocks_are_applied():
    base, params = tiny()
    config = base.with_adapters(2, 4.0, ["attention.*", "mlp.up"])
    adapted = jax.device_get(lora.add(config, jax.device_put(params), 1, one_device()))
    rng = np.random.default_rng(0)
    adapted = jax.tree_util.tree_map_with_path(
        lambda path, x: rng.normal(size=x.shape).astype("f4") if "lora_b" in str(path) else x,
        adapted,
    )
    prompts = random_prompts(config, (3, 9, 5, 4))
    run = functools.partial(models.generate, max_new_tokens=6, mesh=one_device())
    tokens = run(config, adapted, prompts)
    assert tokens == reference(config, adapted, prompts, 6)[0]
    assert tokens != run(base, params, prompts)
    assert run(config, network.split_tail(config, adapted, 1), prompts) == tokens


def test_bfloat16_log_probabilities_are_close_to_those_of_float32():
    config, params = tiny()
    low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    prompts = random_prompts(config, (6, 6))
    tokens, logprobs = models.generate(
        config, low, prompts, max_new_tokens=5, mesh=one_device(), return_logprobs=True
    )
    rows = np.array([prompt + own[0] for prompt, own in zip(prompts, tokens, strict=True)])
    wanted = jax.nn.log_softmax(forward_logits(config, params, rows[:, :-1]))[:, 5:]
    wanted = np.take_along_axis(np.asarray(wanted), rows[:, 6:, None], 2)[..., 0]
    error = np.abs(np.array(logprobs)[:, 0] - wanted)
    assert 0 < error.max() < 0.3


# --- invariance ----------------------------------------------------------------------------------

IDS = [2**63 + 5, 7, 2**40, 0, 2**32 + 7, 11, 12, 13, 14]
SAMPLED = dict(max_new_tokens=7, eos=3, temperature=1.0, top_p=0.9, num_samples=2, seed=5)


@functools.cache
def sampled():
    """Two samples of nine prompts, completed one at a time."""
    config, params = tiny()
    prompts = random_prompts(config, (3, 8, 4, 5, 8, 2, 3, 3, 8))
    generator = Generator(config, one_device(), batch_size=1, **SAMPLED)
    return prompts, by_id(generator, params, prompts, IDS)


def by_id(generator, params, prompts, ids):
    found = {}
    for _, batch in generator.batches(params, prompts, ids):
        for i, (row, sample) in enumerate(zip(batch.rows_B, batch.sample_B, strict=True)):
            tokens = batch.tokens_BT[i, : batch.lengths_B[i]].tolist()
            found[ids[row], int(sample)] = tokens, bool(batch.ended_B[i]), batch.logprobs(i)
    return found


@pytest.mark.parametrize(
    "shape,per_device,batch_size",
    [
        pytest.param((1, 1, 1), False, 64, marks=pytest.mark.medium),
        ((8, 1, 1), True, 1),
        pytest.param((8, 1, 1), True, 64, marks=pytest.mark.medium),
        ((2, 2, 2), False, 2),
        pytest.param((1, 4, 2), False, 64, marks=pytest.mark.medium),
    ],
)
def test_samples_do_not_depend_on_batches_order_or_devices(shape, per_device, batch_size):
    config, params = tiny()
    prompts, wanted = sampled()
    order = np.random.default_rng(1).permutation(len(prompts))
    generator = Generator(
        config, sharding.mesh_of(shape), batch_size=batch_size, per_device=per_device, **SAMPLED
    )
    assert generator.per_device == per_device
    found = by_id(generator, params, [prompts[i] for i in order], [IDS[i] for i in order])
    assert found.keys() == wanted.keys()
    for key, (tokens, ended, logprobs) in wanted.items():
        assert found[key][:2] == (tokens, ended)
        np.testing.assert_allclose(found[key][2], logprobs, atol=1e-5)
    # Not all samples end, nor are they equal.
    assert {ended for _, ended, _ in wanted.values()} == {True, False}
    assert len({tuple(tokens) for tokens, _, _ in wanted.values()}) > 9


def test_samples_depend_on_seed_id_and_number_of_the_sample():
    config, params = tiny()
    run = functools.partial(
        models.generate,
        config,
        params,
        max_new_tokens=10,
        temperature=2.0,
        num_samples=2,
        mesh=one_device(),
    )
    same = [[1, 2, 3]] * 3
    ids = np.array([7, 7 + 2**32, 7], np.uint64)
    tokens = run(same, ids=ids)
    assert tokens[0] == tokens[2]
    distinct = [*tokens[0], *tokens[1], *run(same, ids=ids, seed=1)[0], *run(same)[0]]
    assert len({tuple(sample) for sample in distinct}) == 8
    assert run(same) == run(same, ids=[0, 1, 2])


# --- the end token, batches and records ----------------------------------------------------------


def test_completions_stop_before_the_end_token():
    config, params = tiny()
    prompts = random_prompts(config, (3, 9, 5, 4))
    run = functools.partial(
        models.generate, config, params, prompts, mesh=one_device(), return_logprobs=True
    )
    free, free_logprobs = run(max_new_tokens=8)
    eos = free[1][0][2]
    tokens, logprobs = run(max_new_tokens=8, eos=eos)
    for whole, of_whole, cut, of_cut in zip(free, free_logprobs, tokens, logprobs, strict=True):
        n = whole[0].index(eos) if eos in whole[0] else 8
        assert cut[0] == whole[0][:n]
        np.testing.assert_allclose(of_cut[0], of_whole[0][: n + 1], atol=1e-6)
    assert len(tokens[1][0]) <= 2 and {len(row[0]) for row in tokens} & {8}


def test_finished_batches_can_be_skipped_and_the_most_probable_tokens_are_recorded():
    config, params = tiny()
    prompts = random_prompts(config, (10, 9, 11, 4, 10, 11))
    options = dict(max_new_tokens=6, eos=9, temperature=1.5, seed=2, top_k=3, batch_size=2)
    generator = Generator(config, one_device(), **options)
    every = dict(generator.batches(params, prompts, IDS[:6]))
    assert list(every) == list(range(len(generator.plan(prompts, IDS[:6])))) == [0, 1, 2]
    assert [number for number, _ in generator.batches(params, prompts, IDS[:6], {0, 2})] == [1]
    assert list(generator.batches(params, prompts, IDS[:6], {0, 1, 2})) == []
    ended = 0
    for batch in every.values():
        assert batch.logprobs_BT1.shape == (2, 7) and batch.top_ids_BTk.shape == (2, 6, 3)
        for i, row in enumerate(batch.rows_B):
            n = int(batch.lengths_B[i] + batch.ended_B[i])
            ended += int(batch.ended_B[i])
            read = np.zeros((4, LENGTH), np.int32)
            own = [*prompts[row], *batch.tokens_BT[i, : batch.lengths_B[i]]]
            read[0, : len(own)] = own
            logprobs = jax.nn.log_softmax(forward_logits(config, params, read)[0])
            logprobs = np.asarray(logprobs)[len(prompts[row]) - 1 :][:n]
            top = np.argsort(-logprobs, axis=-1)[:, :3]
            np.testing.assert_array_equal(batch.top_ids_BTk[i, :n], top)
            np.testing.assert_allclose(
                batch.top_logprobs_BTk[i, :n], np.take_along_axis(logprobs, top, 1), atol=1e-5
            )
            chosen = [*own[len(prompts[row]) :], *[9] * int(batch.ended_B[i])]
            np.testing.assert_allclose(batch.logprobs(i), logprobs[np.arange(n), chosen], atol=1e-5)
            assert not batch.logprobs_BT1[i, n:].any() and not batch.top_ids_BTk[i, n:].any()
    assert 0 < ended < 6


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes,parts",
    [
        (dict(prompts=[[1], []]), ["prompts[1]", "empty"]),
        (dict(prompts=[[1, 32]]), ["prompts[0]", "32", "0 to 31"]),
        (dict(prompts=[[1, -1]]), ["prompts[0]", "-1", "0 to 31"]),
        (dict(prompts=[[1.5]]), ["prompts[0]", "token ids"]),
        (dict(prompts=[[1], [1] * 60]), ["prompts[1]", "60 tokens", "max_new_tokens=5", "64"]),
        (dict(max_new_tokens=0), ["max_new_tokens: 0", "at least 1"]),
        (dict(max_new_tokens=2.0), ["max_new_tokens: 2.0", "integer"]),
        (dict(eos=32), ["eos: 32", "0 to 31"]),
        (dict(temperature=-1), ["temperature: -1"]),
        (dict(temperature=float("nan")), ["temperature: nan"]),
        (dict(temperature="hot"), ["temperature: 'hot'"]),
        (dict(top_p=0), ["top_p: 0", "above 0"]),
        (dict(top_p=1.1), ["top_p: 1.1"]),
        (dict(num_samples=0), ["num_samples: 0", "at least 1"]),
        (dict(seed=-1), ["seed: -1", "0 to"]),
        (dict(ids=[1]), ["ids", "(1,)", "(2,)"]),
        (dict(ids=[1, -2]), ["ids", "unsigned"]),
        (dict(ids=[1.0, 2.0]), ["ids", "unsigned"]),
    ],
)
def test_what_cannot_be_generated_is_refused_in_one_line(changes, parts):
    config, params = tiny()
    arguments = dict(prompts=[[1], [2, 3]], max_new_tokens=5, mesh=one_device()) | changes
    message = refusals.error(models.generate, config, params, **arguments)
    for part in parts:
        assert part in message


def test_an_encoder_is_refused(golden):
    config, params = peers.load(peers.golden_folders(golden)["bert"])
    message = refusals.error(models.generate, config, params, [[1]], max_new_tokens=2)
    assert "encoder" in message and "decoder" in message


def test_no_prompts_have_no_completions():
    config, params = tiny()
    assert models.generate(config, params, [], max_new_tokens=2) == []
