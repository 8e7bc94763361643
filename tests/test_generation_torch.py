"""Greedy completions of every family, token for token those of transformers' `generate`."""

import functools
from pathlib import Path

import numpy as np
import peers
import pytest

from w2s_jax import models, sharding

GOLDEN = peers.golden_folders(Path(__file__).parent / "golden")
ENCODERS = ("bert", "minilm", "roberta", "xlm_roberta")
NEW_TOKENS = 12
LENGTHS = (2, 9, 14, 5, 1, 12)


@pytest.mark.parametrize("name", [name for name in GOLDEN if name not in ENCODERS])
def test_greedy_completions_equal_those_of_transformers(name):
    """In float32, a batch of prompts of unequal length, with and without an end token."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, params = peers.load(GOLDEN[name])
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        GOLDEN[name], attn_implementation="eager", dtype=torch.float32
    ).eval()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, config.vocab_size, n).tolist() for n in LENGTHS]
    padded = np.zeros((len(LENGTHS), max(LENGTHS)), np.int64)
    mask = np.zeros_like(padded)
    for i, prompt in enumerate(prompts):
        padded[i, -len(prompt) :], mask[i, -len(prompt) :] = prompt, 1

    def theirs(eos):
        # The defaults of a folder may have penalties and an end token of their own.
        settings = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=eos, pad_token_id=0
        )
        peer.generation_config = settings
        with torch.no_grad():
            out = peer.generate(torch.tensor(padded), attention_mask=torch.tensor(mask))
        new = out[:, padded.shape[1] :].tolist()
        return [row[: row.index(eos)] if eos in row else row for row in new]

    whole = theirs(None)
    assert {len(row) for row in whole} == {NEW_TOKENS}
    ours = functools.partial(
        models.generate,
        config,
        params,
        prompts,
        max_new_tokens=NEW_TOKENS,
        mesh=sharding.mesh_of((1, 1, 1)),
    )
    tokens = ours()
    assert [row[0] for row in tokens] == whole
    eos = whole[1][3]
    ended = theirs(eos)
    assert len(ended[1]) <= 3
    tokens = ours(eos=eos)
    assert [row[0] for row in tokens] == ended
