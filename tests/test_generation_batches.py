"""How tokens are chosen, and how prompts are put into batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from w2s_jax.models import generation_plan, sampling

# --- sampling ------------------------------------------------------------------------------------

LOGITS = np.log(np.array([0.05, 0.3, 0.02, 0.3, 0.13, 0.15, 0.05], np.float32))


def choices(logits, count, **settings):
    """Chosen tokens of so many documents with these logits, and how many times each."""
    options = dict(greedy=False, nucleus=False, logprobs=True, top_k=0)
    choice = sampling.Choice(**options | {k: v for k, v in settings.items() if k in options})
    ids = np.stack([np.arange(count), np.zeros(count)], 1).astype(np.uint32)

    @jax.jit
    def run(temperature, top_p):
        keys = sampling.row_keys(jnp.uint32(3), ids, jnp.zeros(count, jnp.int32))
        rows = jnp.broadcast_to(jnp.asarray(logits), (count, len(logits)))
        return sampling.choose(choice, rows, keys, jnp.int32(4), temperature, top_p)

    chosen = run(jnp.float32(settings.get("temperature", 1)), jnp.float32(settings.get("top_p", 1)))
    return chosen, np.bincount(chosen.token_R, minlength=len(logits))


@pytest.mark.parametrize(
    "temperature,top_p,kept",
    [
        (1.0, 1.0, range(7)),
        (0.5, 1.0, range(7)),
        (2.0, 1.0, range(7)),
        # 0.3 and 0.3 are not enough.
        (1.0, 0.65, (1, 3, 5)),
        # Squared, the probabilities are .39, .39, ...; of equally probable tokens the lower is in.
        (0.5, 0.3, (1,)),
        # Of the two of 0.05, only the first is needed.
        (1.0, 0.9, (0, 1, 3, 4, 5)),
    ],
)
def test_temperature_and_top_p_give_the_probabilities_that_they_should(temperature, top_p, kept):
    """A chi-square test with a fixed seed; at a level of 1e-3."""
    chosen, counts = choices(
        LOGITS, 20_000, nucleus=top_p < 1, temperature=temperature, top_p=top_p
    )
    wanted = np.zeros(7)
    wanted[list(kept)] = np.exp(LOGITS[list(kept)].astype(float) / temperature)
    wanted *= 20_000 / wanted.sum()
    assert not counts[wanted == 0].any()
    kept = wanted > 0
    if kept.sum() > 1:
        assert stats.chisquare(counts[kept], wanted[kept]).pvalue > 1e-3
    # Log-probabilities are the model's own.
    own = LOGITS - np.log(np.exp(LOGITS).sum())
    np.testing.assert_allclose(chosen.logprob_R, own[chosen.token_R], atol=1e-6)


def test_of_equal_logits_the_lowest_token_is_chosen():
    chosen, _ = choices(LOGITS, 2, greedy=True, top_k=3)
    assert chosen.token_R.tolist() == [1, 1]
    assert chosen.top_ids_Rk.tolist() == [[1, 3, 5]] * 2
    assert choices(np.zeros(5, np.float32), 1, greedy=True)[0].token_R.tolist() == [0]


# --- batches -------------------------------------------------------------------------------------


def test_every_sample_is_in_one_batch_of_few_shapes_with_little_padding():
    rng = np.random.default_rng(0)
    lengths = np.append(rng.integers(3, 200, 500), [1500])
    ids = rng.permutation(501).astype(np.uint64)
    limits = generation_plan.BatchLimits(32, 10**9, 100, 100, shards=2)
    options = dict(num_samples=3, new_tokens=10, limits=limits)
    planned = generation_plan.plan(lengths, ids, **options)
    rows = np.concatenate([d.rows_B for d in planned])
    samples = np.concatenate([d.sample_B for d in planned])
    used = rows >= 0
    pairs = list(zip(rows[used].tolist(), samples[used].tolist(), strict=True))
    assert sorted(pairs) == [(row, sample) for row in range(501) for sample in range(3)]
    for d in planned:
        assert len(d.rows_B) <= 64 and len(d.rows_B) % 2 == 0
        assert lengths[d.rows_B[d.rows_B >= 0]].max() <= d.slots
    assert len({(len(d.rows_B), d.slots) for d in planned}) <= 12
    slots = sum(len(d.rows_B) * d.slots for d in planned[:-1])
    assert 3 * lengths[:-1].sum() > 0.75 * slots
    # The order of the prompts does not matter.
    order = rng.permutation(501)
    again = generation_plan.plan(lengths[order], ids[order], **options)
    for d, e in zip(planned, again, strict=True):
        mine, theirs = d.rows_B[d.rows_B >= 0], e.rows_B[e.rows_B >= 0]
        assert ids[mine].tolist() == ids[order][theirs].tolist()


def test_a_batch_is_as_small_as_memory_and_documents_require():
    def rows(count, length, **changes):
        limits = dataclasses.replace(
            generation_plan.BatchLimits(64, 10_000, 10, 100, shards=2), **changes
        )
        ids = np.arange(count, dtype=np.uint64)
        options = dict(num_samples=1, new_tokens=10, limits=limits)
        return [len(d.rows_B) for d in generation_plan.plan([length] * count, ids, **options)]

    # A row takes 10 * (20 + 10) + 100 bytes.
    assert rows(120, 20) == [50, 50, 50]
    assert rows(120, 20, cache_bytes=10**9) == [120]
    assert rows(120, 20, cache_bytes=10) == [2] * 60
    assert rows(3, 20) == [4]
    assert rows(5, 9000, cache_bytes=10**9) == [2, 2, 2]
    assert (
        generation_plan.plan(
            [],
            np.zeros(0, np.uint64),
            num_samples=1,
            new_tokens=1,
            limits=generation_plan.BatchLimits(1, 1, 1, 1, 1),
        )
        == []
    )
