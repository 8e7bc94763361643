"""Pretrained weights do what they did elsewhere: stories260K of llama2.c, read through our import.

The real model and stories are read from `weights/` and `data/` in the folder that W2S_TEST_DATA
names.
"""

import functools
import gzip
import json
import random
import re
import struct

import jax
import jax.numpy as jnp
import llama2c
import numpy as np
import pytest

from w2s_jax import models, sharding
from w2s_jax.data.tokenizers import load_tokenizer
from w2s_jax.models import heads
from w2s_jax.models.convert import convert

CONTEXT = 256
# What llama2.c's own program prints at temperature 0, as its tests and users have published it.
PUBLISHED = {
    "": "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
    "park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
    "Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. "
    'She said, "I want to play with your ball, but I can\'t find it."\n'
    "Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what "
    "to do.\"\nLily didn't want to help her mom, so she",
    "Zoo": "Zoo was a little girl named Lily. She loved to play outside in the park. One day, she "
    "saw a big, red ball. She wanted to play with it, but she didn't want to play with",
}


@functools.partial(jax.jit, static_argnums=0)
def next_token_logits(config, params, tokens_RL):
    hidden_RLD = models.forward(config, params, tokens_RL)
    return heads.language_model_logits(config, params, hidden_RLD)


def load(folder):
    return models.load(folder, sharding.mesh_of((1, 1, 1)))


@pytest.mark.parametrize("vocab_size", [40, -40], ids=["tied", "own unembedding"])
def test_a_random_checkpoint_gives_the_logits_of_the_format(tmp_path, vocab_size):
    """And no others: without the permutation of queries and keys they are far off."""
    header = (24, 20, 3, 4, 2, vocab_size, 16)
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape) for name, shape in llama2c.shapes(*header).items()}
    angles = np.arange(16)[:, None] / 10_000.0 ** (np.arange(3) / 3)[None]
    tensors |= {"freq_cis_real": np.cos(angles), "freq_cis_imag": np.sin(angles)}
    data = b"".join(tensor.astype("<f4").tobytes() for tensor in tensors.values())
    (tmp_path / "model.bin").write_bytes(struct.pack("<7i", *header) + data)
    checkpoint = llama2c.read_checkpoint(tmp_path / "model.bin")
    tokens = rng.integers(0, 40, 16)
    wanted = llama2c.reference_logits(checkpoint, tokens)
    error = {}
    for permute in (True, False):
        llama2c.write_model(checkpoint, tmp_path / str(permute), permute=permute)
        logits = next_token_logits(*load(tmp_path / str(permute)), tokens[None])[0]
        error[permute] = np.abs(logits - wanted).max() / np.abs(wanted).max()
    assert error[True] < 1e-5 and error[False] > 0.1


def test_tokenizer_json_merges_as_the_greedy_encoder_does(tmp_path):
    """Random pieces of few letters, so that the same piece can come about in several ways."""
    rng = random.Random(0)
    made = {"".join(rng.choices(" ab", k=rng.randrange(2, 6))) for _ in range(40)}
    names = [*sorted(made), " ", "a", "b", "é"]
    rng.shuffle(names)
    pieces = {piece: -float(score) for score, piece in enumerate(names)}
    llama2c.write_tokenizer(pieces, tmp_path)
    texts = ["".join(rng.choices(" ab", k=rng.randrange(30))) for _ in range(500)]
    texts += ["aé\n日本b", "<s>ab</s>", "<0x0A>"]
    assert_same_ids(load_tokenizer(str(tmp_path)), pieces, texts)


def assert_same_ids(tokenizer, pieces, texts):
    assert tokenizer.prefix == (llama2c.BOS,) and tokenizer.suffix == ()
    tokens, lengths = tokenizer.encode_batch(texts)
    for text, ids in zip(texts, np.split(tokens, np.cumsum(lengths)[:-1]), strict=True):
        assert [llama2c.BOS, *ids.tolist()] == llama2c.greedy_ids(pieces, text), text


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """(llama2.c's checkpoint, its pieces, the folder in Hugging Face's layout, stories)."""
    root = llama2c.data_folder()
    checkpoint, pieces = llama2c.read_stories260k(root)
    folder = tmp_path_factory.mktemp("stories260K")
    llama2c.write_model(checkpoint, folder)
    llama2c.write_tokenizer(pieces, folder)
    with gzip.open(root / "data/corpus_tinystories_small/train.jsonl.gz", "rt") as file:
        text = json.loads(file.readline())["text"]
    stories = re.split(r"\n\n(?=Once upon a time)", text)[1:]
    # Curly quotes stand in this text as three wrong letters each, which no model has learnt.
    return checkpoint, pieces, folder, [story for story in stories if story.isascii()]


@pytest.fixture(scope="module")
def converted(real, tmp_path_factory):
    """(config, parameters, tokenizer) of what `w2s convert` makes of the folder."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    line = convert(str(real[2]), str(folder), "orbax")
    assert line.endswith("260,032 parameters")
    return *load(folder), load_tokenizer(str(folder / "tokenizer"))


@pytest.fixture(scope="module")
def batch(real, converted):
    """Tokens of every third story, cut, and which of them are there; [R, CONTEXT]."""
    tokens, lengths = converted[2].encode_batch(real[3][::3])
    assert len(lengths) == 39
    tokens_RL = np.zeros((len(lengths), CONTEXT), np.int32)
    for row, ids in zip(tokens_RL, np.split(tokens, np.cumsum(lengths)[:-1]), strict=True):
        ids = [llama2c.BOS, *ids][:CONTEXT]
        row[: len(ids)] = ids
    return tokens_RL, np.arange(CONTEXT)[None] < 1 + lengths[:, None]


def nats_per_token(config, params, batch):
    tokens_RL, there_RL = batch
    log_p_RLV = jax.nn.log_softmax(next_token_logits(config, params, tokens_RL)[:, :-1])
    picked_RL = jnp.take_along_axis(log_p_RLV, tokens_RL[:, 1:, None], axis=2)[..., 0]
    return float(-jnp.sum(picked_RL * there_RL[:, 1:]) / there_RL[:, 1:].sum())


def test_every_story_has_the_ids_of_the_greedy_encoder(real, converted):
    _, pieces, _, stories = real
    rng = random.Random(0)
    letters = [*pieces, "é", "\n", "日", "🙂", "<s>", "</s>", "<0x0A>"]
    noise = ["".join(rng.choices(letters, k=rng.randrange(40))) for _ in range(500)]
    assert_same_ids(converted[2], pieces, [*stories[:50], *noise])


def test_logits_on_a_story_are_those_of_the_format(real, converted, batch):
    """Float32 against float64, of logits up to 22."""
    config, params, _ = converted
    tokens_L = batch[0][0]
    wanted_LV = llama2c.reference_logits(real[0], tokens_L)
    logits_LV = next_token_logits(config, params, tokens_L[None])[0]
    np.testing.assert_allclose(logits_LV, wanted_LV, rtol=0, atol=1e-4)


def test_the_real_model_has_read_stories(real, converted, batch, tmp_path):
    """1.44 nats a token; llama2.c's table of models says 1.297 of its own held-out stories.

    A model whose queries and keys keep llama2.c's order, and one of the same numbers in random
    places, have not read them.
    """
    config, params, _ = converted
    loss = nats_per_token(config, params, batch)
    llama2c.write_model(real[0], tmp_path / "unpermuted", permute=False)
    unpermuted = nats_per_token(*load(tmp_path / "unpermuted"), batch)
    rng = np.random.default_rng(0)
    shuffled = jax.tree.map(
        lambda x: rng.permutation(np.asarray(x).reshape(-1)).reshape(x.shape), params
    )
    control = nats_per_token(config, shuffled, batch)
    assert 1.3 < loss < 1.55
    assert unpermuted > loss + 2
    assert control > np.log(config.vocab_size)


@pytest.mark.parametrize("prompt", PUBLISHED)
def test_the_likeliest_continuation_is_the_published_one(converted, prompt):
    """Each token of it is the likeliest after those before it, so greedy decoding writes it."""
    config, params, tokenizer = converted
    tokens, lengths = tokenizer.encode_batch([PUBLISHED[prompt], prompt])
    tokens_L = np.array([llama2c.BOS, *tokens[: lengths[0]]])
    assert len(tokens_L) - 1 == {"": 200, "Zoo": 60}[prompt]
    likeliest_L = jnp.argmax(next_token_logits(config, params, tokens_L[None])[0], axis=-1)
    np.testing.assert_array_equal(likeliest_L[lengths[1] : -1], tokens_L[1 + lengths[1] :])
