"""stories260K and its tokenizer as transformers reads the same folder (needs the `torch` extra)."""

import jax
import llama2c
import numpy as np
import pytest

from w2s_jax import models, sharding
from w2s_jax.data.tokenizers import load_tokenizer
from w2s_jax.models import heads

torch = pytest.importorskip("torch")


def test_transformers_gives_our_ids_and_our_logits(tmp_path):
    import transformers

    checkpoint, pieces = llama2c.read_stories260k(llama2c.data_folder())
    llama2c.write_model(checkpoint, tmp_path)
    llama2c.write_tokenizer(pieces, tmp_path)
    text = "Once upon a time, there was a little dog.\n\nHe said: “I’m 3 years old!” ☃"
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    tokens_L = [*tokenizer.prefix, *tokenizer.encode_batch([text])[0].tolist()]
    assert peer(text)["input_ids"] == tokens_L
    assert peer.decode(tokens_L, skip_special_tokens=True) == text

    config, params = models.load(tmp_path, sharding.mesh_of((1, 1, 1)))
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager", dtype="float32"
    )
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens_RL = np.array([tokens_L])
    with torch.no_grad():
        wanted = model.eval()(torch.tensor(tokens_RL)).logits.numpy()
    logits = jax.jit(
        lambda params: heads.language_model_logits(
            config, params, models.forward(config, params, tokens_RL)
        )
    )(params)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4)
