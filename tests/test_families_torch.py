"""Random small configurations of every family against transformers' PyTorch, if installed."""

import json

import jax
import numpy as np
import peers
import pytest

from w2s_jax import models
from w2s_jax.models import families, heads, network

LENGTH = 20


def _choices(rng, **options):
    """Choose one value of each option."""
    return {name: values[rng.integers(len(values))] for name, values in options.items()}


def _gpt2(rng):
    heads, size = rng.integers(1, 5), rng.integers(3, 12)
    return _choices(
        rng,
        n_embd=[int(heads * size)],
        n_head=[int(heads)],
        n_inner=[None, 40],
        activation_function=["gelu_new", "relu", "gelu"],
        scale_attn_weights=[True, False],
        tie_word_embeddings=[True, False],
    ) | {"n_layer": 2, "n_positions": 32}


def _opt(rng):
    heads, size = rng.integers(1, 5), rng.integers(3, 12)
    return _choices(
        rng,
        hidden_size=[int(heads * size)],
        num_attention_heads=[int(heads)],
        ffn_dim=[24, 40],
        activation_function=["relu", "gelu"],
        enable_bias=[True, False],
        tie_word_embeddings=[True, False],
    ) | {"num_hidden_layers": 2, "max_position_embeddings": 32}


def _rope(rng):
    theta = float(10 ** rng.uniform(1, 6))
    llama3 = dict(low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
    kinds = [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.5},
        {"rope_type": "llama3", "factor": 8.0, **llama3},
    ]
    return kinds[rng.integers(3)] | {"rope_theta": theta}


def _rotary(rng, **more):
    """Options that all families with rotary positions share, and `more` for one family."""
    shape = [(24, 4, 4), (24, 4, 2), (24, 2, 1), (36, 6, 3), (20, 2, 2)][rng.integers(5)]
    config = dict(
        zip(("hidden_size", "num_attention_heads", "num_key_value_heads"), shape, strict=True)
    )
    shared = dict(
        intermediate_size=[28, 48],
        num_hidden_layers=[2, 3],
        head_dim=[None, 6, 14],
        rope_parameters=[_rope(rng)],
        tie_word_embeddings=[True, False],
        attention_bias=[True, False],
        initializer_range=[0.02],
    )
    config |= _choices(rng, **shared | more)
    return {key: value for key, value in config.items() if key != "head_dim" or value}


def _gpt_neox(rng):
    fraction = [0.25, 0.5, 1.0][rng.integers(3)]
    return _rotary(
        rng,
        num_attention_heads=[3],
        hidden_size=[24],
        head_dim=[None],
        rope_parameters=[_rope(rng) | {"partial_rotary_factor": fraction}],
        use_parallel_residual=[True, False],
        hidden_act=["gelu", "gelu_new"],
    )


def _phi(rng):
    fraction = [0.5, 1.0][rng.integers(2)]
    return _rotary(
        rng,
        head_dim=[None],
        hidden_size=[48],
        num_attention_heads=[4],
        num_key_value_heads=[4, 2, 1],
        qk_layernorm=[True, False],
        rope_parameters=[_rope(rng) | {"partial_rotary_factor": fraction}],
    )


def _qwen(rng, **more):
    window = dict(
        use_sliding_window=[True, False], sliding_window=[4, 9], max_window_layers=[0, 1, 5]
    )
    return _rotary(rng, **window, **more)


def _gemma(rng, **more):
    return _rotary(rng, head_dim=[6, 14], tie_word_embeddings=[True], **more)


def _gemma2(rng, **more):
    own = dict(
        attn_logit_softcapping=[None, 3.0, 50.0],
        final_logit_softcapping=[None, 2.0, 30.0],
        query_pre_attn_scalar=[7, 24],
        sliding_window=[3, 6],
        num_hidden_layers=[3],
    )
    return _gemma(rng, **own | more)


def _gemma3(rng):
    local = {"rope_type": "default", "rope_theta": 100.0}
    full, sliding = "full_attention", "sliding_attention"
    return _gemma2(
        rng,
        attn_logit_softcapping=[None],
        rope_parameters=[{full: _rope(rng), sliding: local}],
        layer_types=[[sliding, full, sliding], [full, sliding, sliding], [sliding] * 3],
    )


RANDOM = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "phi": _phi,
    "llama": lambda rng: _rotary(rng, mlp_bias=[True, False], hidden_act=["silu", "gelu"]),
    "mistral": lambda rng: _rotary(rng, sliding_window=[None, 3, 7, 50]),
    "qwen2": _qwen,
    "qwen3": lambda rng: _qwen(rng, head_dim=[6, 14]),
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}


def test_every_family_is_compared():
    """Encoders are in test_encoder_torch."""
    encoders = {"bert", "roberta", "xlm-roberta"}
    assert set(RANDOM) | encoders == set(families.FAMILIES)


# More of them run with the slow tests.
@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))]
)
@pytest.mark.parametrize("name", RANDOM)
def test_a_random_configuration_agrees_with_pytorch(name, seed, tmp_path):
    """We read weights written by transformers, which accepts the config.json that we write."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    family = families.FAMILIES[name]
    rng = np.random.default_rng([seed, *name.encode()])
    chosen = RANDOM[name](rng)
    hf_class = type(transformers.AutoConfig.for_model(family.model_types[0]))
    hf = hf_class(vocab_size=53, pad_token_id=None, **chosen)
    peer = transformers.AutoModelForCausalLM.from_config(hf, attn_implementation="eager").eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    peer.save_pretrained(tmp_path)
    config, params = peers.load(tmp_path)

    tokens = rng.integers(0, 53, (2, LENGTH))
    with torch.no_grad():
        out = peer(torch.tensor(tokens), output_hidden_states=True)
        again = hf_class(**json.loads(json.dumps(family.to_hf(config))))
        copy = transformers.AutoModelForCausalLM.from_config(again, attn_implementation="eager")
        copy.load_state_dict(peer.state_dict())
        copied = copy.eval()(torch.tensor(tokens)).logits

    @jax.jit
    def run(params):
        hidden = models.forward(config, params, tokens, scan=bool(seed % 2))
        return hidden, heads.language_model_logits(config, params, hidden)

    hidden, logits = run(params)
    _, taps = network.forward_with_taps(
        config, params, tokens, tap=lambda x: x, scan=bool(seed % 2)
    )
    assert len(taps) == len(out.hidden_states) - 2
    for ours, theirs in zip(taps, out.hidden_states[1:-1], strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-4)
    wanted = out.hidden_states[-1].numpy()
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(hidden, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, out.logits.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(copied.numpy(), out.logits.numpy(), atol=1e-6)
