"""Ladders: known pretrained models of one kind in several sizes, as data. Imports no JAX.

Each entry has the architecture keys of the model's official config.json, of which the family's
`to_config` makes a `ModelConfig`. Entries are used for sizes, costs and defaults; when a model is
loaded, its own config.json is used. Names are those of the Hugging Face hub.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from w2s_jax.config import ADAPTS
from w2s_jax.core import errors
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families import family_of

#: Models with at least this many parameters are bfloat16 by default.
_LARGE = 5_000_000_000

#: Models with fewer parameters have the learning rate of the released code's small models.
_SMALL = 500_000_000

#: `default_lr` in the released code of Burns et al. 2023.
_RELEASED_RATES = {
    "openai-community/gpt2": 5e-5,
    "openai-community/gpt2-medium": 5e-5,
    "openai-community/gpt2-large": 1e-5,
    "openai-community/gpt2-xl": 1e-5,
}

#: Notes on ladders, for users.
NOTES = {
    "Pythia": "earlier checkpoints: EleutherAI/pythia-70m@step3000 (step0 to step143000)",
    "OPT": "facebook/opt-350m is not supported: its norms come after the blocks",
    "Llama 2": "gated: accept its terms on the hub",
    "Llama 3": "gated: accept its terms on the hub",
    "Gemma": "gated: accept its terms on the hub",
    "Gemma 2": "gated: accept its terms on the hub",
    "Gemma 3": "gated: accept its terms on the hub; text only",
    "Qwen3": "the 32B model was only released post-trained",
}


@dataclass(frozen=True)
class Known:
    """A pretrained model whose architecture is known without a download.

    Attributes:
      name: its hub id.
      ladder: the ladder that it belongs to.
      huggingface: the keys of its config.json that describe the architecture.
      aliases: other current or former hub ids.
    """

    name: str
    ladder: str
    huggingface: Mapping[str, Any]
    aliases: tuple[str, ...] = ()

    def config(self) -> ModelConfig:
        """Return the `ModelConfig`, whose name is the hub id."""
        config = family_of(self.huggingface, self.name).to_config(self.huggingface)
        return dataclasses.replace(config, name=self.name)


def find(name: str) -> Known | None:
    """Return the known model with that hub id, alias or last part of an id, ignoring case.

    A '@revision' is ignored. None if there is no such model, or more than one.
    """
    wanted = name.partition("@")[0].casefold()
    for known in KNOWN.values():
        if wanted in (id_.casefold() for id_ in (known.name, *known.aliases)):
            return known
    found = [
        known
        for known in KNOWN.values()
        if wanted in (id_.casefold().rpartition("/")[2] for id_ in (known.name, *known.aliases))
    ]
    return found[0] if len(found) == 1 else None


def default_learning_rate(
    name: str, parameters: int, *, embedded: bool = False, adapt: str = "full"
) -> float:
    """Return the default learning rate of a model.

    - GPT-2's models use the `default_lr` of the released code: 5e-5 for gpt2 and gpt2-medium, 1e-5
      for gpt2-large and gpt2-xl (and for Qwen 1.8B to 72B).
    - Other models, including encoders, use 5e-5 below 500M parameters, as models of that size do in
      the released code (BERT's paper tuned 2e-5 to 5e-5), and 1e-5 above.
    - Embedded models are tiny and use 1e-3.
    - Low-rank adapters ('lora') use ten times the rate of full finetuning (Schulman et al. 2025,
      LoRA without regret).
    - A linear probe uses 1e-3 (Burns et al. 2023, linear probing).

    Args:
      name: a name that `find` accepts; the rate of other models depends on `parameters`.
      parameters: number of parameters of the backbone.
      embedded: whether the model is one of `EMBEDDED_MODELS`.
      adapt: what is trained, one of `config.ADAPTS`; 'probe_then_full' has the rate of 'full'.

    Raises:
      InputError: for an unknown `adapt`.
    """
    if adapt not in ADAPTS:
        raise errors.unknown("adapt", adapt, ADAPTS)
    if adapt == "probe":
        return 1e-3
    known = find(name)
    if embedded:
        rate = 1e-3
    elif known is not None and known.name in _RELEASED_RATES:
        rate = _RELEASED_RATES[known.name]
    else:
        rate = 5e-5 if parameters < _SMALL else 1e-5
    # Not 10 * rate, which is 0.0005000000000000001.
    return float(f"{10 * rate:.12g}") if adapt == "lora" else rate


def default_param_dtype(parameters: int) -> str:
    """Return the default dtype of a model: 'float32' below 5e9 parameters, else 'bfloat16'."""
    return "float32" if parameters < _LARGE else "bfloat16"


def _entry(
    ladder: str,
    name: str,
    model_type: str,
    vocab: int,
    positions: int,
    sizes: Sequence[int],
    *,
    aliases: tuple[str, ...] = (),
    **other: Any,
) -> Known:
    """Return an entry with the keys that most families share.

    `sizes` are width, layers, heads and MLP width.
    """
    d, layers, heads, mlp = sizes
    hf = {
        "model_type": model_type,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "hidden_size": d,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": mlp,
        **other,
    }
    return Known(name, ladder, hf, aliases)


def _gpt2(size: str, d: int, layers: int, heads: int) -> Known:
    hf = dict(vocab_size=50257, n_positions=1024, n_embd=d, n_layer=layers, n_head=heads)
    return Known(f"openai-community/{size}", "GPT-2", {"model_type": "gpt2", **hf})


def _pythia(size: str, d: int, layers: int, heads: int, vocab: int = 50304) -> Known:
    sizes = (d, layers, heads, 4 * d)
    name = f"EleutherAI/pythia-{size}"
    return _entry("Pythia", name, "gpt_neox", vocab, 2048, sizes, rotary_pct=0.25)


def _opt(size: str, d: int, layers: int, heads: int) -> Known:
    known = _entry("OPT", f"facebook/opt-{size}", "opt", 50272, 2048, (d, layers, heads, 4 * d))
    hf = dict(known.huggingface)
    hf["ffn_dim"] = hf.pop("intermediate_size")
    return dataclasses.replace(known, huggingface=hf)


def _llama2(size: str, kv_heads: int, *sizes: int) -> Known:
    name = f"meta-llama/Llama-2-{size}-hf"
    other: dict[str, Any] = dict(num_key_value_heads=kv_heads, rms_norm_eps=1e-5)
    return _entry("Llama 2", name, "llama", 32000, 4096, sizes, **other)


def _llama3(name: str, factor: float, tied: bool, sizes: Sequence[int], *aliases: str) -> Known:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return _entry(
        "Llama 3",
        f"meta-llama/{name}",
        "llama",
        128256,
        131072,
        sizes,
        aliases=aliases,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=scaling,
        tie_word_embeddings=tied,
    )


def _mistral(version: str, vocab: int, theta: float, window: int | None) -> Known:
    return _entry(
        "Mistral",
        f"mistralai/Mistral-7B-{version}",
        "mistral",
        vocab,
        32768,
        (4096, 32, 32, 14336),
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        rope_theta=theta,
        sliding_window=window,
    )


def _qwen(
    name: str,
    vocab: int,
    kv_heads: int,
    sizes: Sequence[int],
    *,
    positions: int = 32768,
    tied: bool = False,
    epsilon: float = 1e-6,
    **other: Any,
) -> Known:
    ladder = name.partition("-")[0]
    # The rotary bases of Qwen1.5, which do not affect costs, could not be confirmed for every size.
    theta: dict[str, Any] = {} if ladder == "Qwen1.5" else {"rope_theta": 1e6}
    return _entry(
        ladder,
        f"Qwen/{name}",
        "qwen3" if ladder == "Qwen3" else "qwen2",
        vocab,
        positions,
        sizes,
        num_key_value_heads=kv_heads,
        rms_norm_eps=epsilon,
        tie_word_embeddings=tied,
        **theta,
        **other,
    )


def _qwen3(name: str, kv_heads: int, *sizes: int, tied: bool = False) -> Known:
    positions = 32768 if name.endswith("Base") else 40960
    other: dict[str, Any] = dict(positions=positions, tied=tied, head_dim=128)
    return _qwen(f"Qwen3-{name}", 151936, kv_heads, sizes, **other)


def _gemma(
    version: str, size: str, positions: int, kv_heads: int, sizes: Sequence[int], **other: Any
) -> Known:
    ladder = f"Gemma {version}".strip()
    model_type = {"": "gemma", "2": "gemma2", "3": "gemma3_text"}[version]
    name = f"google/gemma-{version}-{size}" if version else f"google/gemma-{size}"
    vocab = 262144 if version == "3" else 256000
    later = {} if not version else {"query_pre_attn_scalar": 256}
    return _entry(
        ladder,
        name,
        model_type,
        vocab,
        positions,
        sizes,
        num_key_value_heads=kv_heads,
        **{"head_dim": 256, "rms_norm_eps": 1e-6, **later, **other},
    )


def _phi(name: str, rotated: float, *sizes: int) -> Known:
    other: dict[str, Any] = dict(partial_rotary_factor=rotated)
    return _entry("Phi", f"microsoft/{name}", "phi", 51200, 2048, sizes, **other)


def _bert(ladder: str, name: str, *sizes: int) -> Known:
    other: dict[str, Any] = dict(
        layer_norm_eps=1e-12, hidden_act="gelu", architectures=["BertModel"]
    )
    return _entry(ladder, name, "bert", 30522, 512, sizes, type_vocab_size=2, **other)


def _roberta(size: str, *sizes: int) -> Known:
    other: dict[str, Any] = dict(
        type_vocab_size=1, layer_norm_eps=1e-5, hidden_act="gelu", pad_token_id=1
    )
    other |= dict(architectures=["RobertaModel"])
    name = f"FacebookAI/roberta-{size}"
    return _entry("RoBERTa", name, "roberta", 50265, 514, sizes, **other)


def _decoders() -> Iterable[Known]:
    yield _gpt2("gpt2", 768, 12, 12)
    yield _gpt2("gpt2-medium", 1024, 24, 16)
    yield _gpt2("gpt2-large", 1280, 36, 20)
    yield _gpt2("gpt2-xl", 1600, 48, 25)

    yield _pythia("70m", 512, 6, 8)
    yield _pythia("160m", 768, 12, 12)
    yield _pythia("410m", 1024, 24, 16)
    yield _pythia("1b", 2048, 16, 8)
    yield _pythia("1.4b", 2048, 24, 16)
    yield _pythia("2.8b", 2560, 32, 32)
    yield _pythia("6.9b", 4096, 32, 32, vocab=50432)
    yield _pythia("12b", 5120, 36, 40, vocab=50688)

    yield _opt("125m", 768, 12, 12)
    yield _opt("1.3b", 2048, 24, 32)
    yield _opt("2.7b", 2560, 32, 32)
    yield _opt("6.7b", 4096, 32, 32)
    yield _opt("13b", 5120, 40, 40)
    yield _opt("30b", 7168, 48, 56)
    yield _opt("66b", 9216, 64, 72)

    yield _llama2("7b", 32, 4096, 32, 32, 11008)
    yield _llama2("13b", 40, 5120, 40, 40, 13824)
    yield _llama2("70b", 8, 8192, 80, 64, 28672)

    yield _llama3("Llama-3.2-1B", 32.0, True, (2048, 16, 32, 8192))
    yield _llama3("Llama-3.2-3B", 32.0, True, (3072, 28, 24, 8192))
    old = "meta-llama/Meta-Llama-3.1"
    yield _llama3("Llama-3.1-8B", 8.0, False, (4096, 32, 32, 14336), f"{old}-8B")
    yield _llama3("Llama-3.1-70B", 8.0, False, (8192, 80, 64, 28672), f"{old}-70B")

    yield _mistral("v0.1", 32000, 1e4, 4096)
    yield _mistral("v0.3", 32768, 1e6, None)

    yield _qwen("Qwen1.5-0.5B", 151936, 16, (1024, 24, 16, 2816), tied=True)
    yield _qwen("Qwen1.5-1.8B", 151936, 16, (2048, 24, 16, 5504))
    yield _qwen("Qwen1.5-4B", 151936, 20, (2560, 40, 20, 6912))
    yield _qwen("Qwen1.5-7B", 151936, 32, (4096, 32, 32, 11008))
    yield _qwen("Qwen1.5-14B", 152064, 40, (5120, 40, 40, 13696))
    yield _qwen("Qwen1.5-32B", 152064, 8, (5120, 64, 40, 27392))
    yield _qwen("Qwen1.5-72B", 152064, 64, (8192, 80, 64, 24576))

    long: dict[str, Any] = dict(positions=131072)
    yield _qwen("Qwen2.5-0.5B", 151936, 2, (896, 24, 14, 4864), tied=True)
    yield _qwen("Qwen2.5-1.5B", 151936, 2, (1536, 28, 12, 8960), tied=True, **long)
    yield _qwen("Qwen2.5-3B", 151936, 2, (2048, 36, 16, 11008), tied=True)
    yield _qwen("Qwen2.5-7B", 152064, 4, (3584, 28, 28, 18944), **long)
    long["epsilon"] = 1e-5
    yield _qwen("Qwen2.5-14B", 152064, 8, (5120, 48, 40, 13824), **long)
    yield _qwen("Qwen2.5-32B", 152064, 8, (5120, 64, 40, 27648), **long)
    yield _qwen("Qwen2.5-72B", 152064, 8, (8192, 80, 64, 29568), **long)

    yield _qwen3("0.6B-Base", 8, 1024, 28, 16, 3072, tied=True)
    yield _qwen3("1.7B-Base", 8, 2048, 28, 16, 6144, tied=True)
    yield _qwen3("4B-Base", 8, 2560, 36, 32, 9728, tied=True)
    yield _qwen3("8B-Base", 8, 4096, 36, 32, 12288)
    yield _qwen3("14B-Base", 8, 5120, 40, 40, 17408)
    yield _qwen3("32B", 8, 5120, 64, 64, 25600)

    yield _gemma("", "2b", 8192, 1, (2048, 18, 8, 16384))
    yield _gemma("", "7b", 8192, 16, (3072, 28, 16, 24576))
    soft = dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=4096)
    yield _gemma("2", "2b", 8192, 4, (2304, 26, 8, 9216), **soft)
    yield _gemma("2", "9b", 8192, 8, (3584, 42, 16, 14336), **soft)
    large = dict(head_dim=128, query_pre_attn_scalar=144)
    yield _gemma("2", "27b", 8192, 16, (4608, 46, 32, 36864), **soft, **large)
    local = dict(sliding_window=512, rope_theta=1e6, rope_local_base_freq=1e4)
    yield _gemma("3", "270m", 32768, 1, (640, 18, 4, 2048), **local)
    yield _gemma("3", "1b-pt", 32768, 1, (1152, 26, 4, 6912), **local)

    yield _phi("phi-1", 0.5, 2048, 24, 32, 8192)
    yield _phi("phi-1_5", 0.5, 2048, 24, 32, 8192)
    yield _phi("phi-2", 0.4, 2560, 32, 32, 10240)


def _encoders() -> Iterable[Known]:
    yield _bert("BERT", "google-bert/bert-base-uncased", 768, 12, 12, 3072)
    yield _bert("BERT", "google-bert/bert-large-uncased", 1024, 24, 16, 4096)
    yield _roberta("base", 768, 12, 12, 3072)
    yield _roberta("large", 1024, 24, 16, 4096)
    minilm = "sentence-transformers/all-MiniLM"
    yield _bert("MiniLM", f"{minilm}-L6-v2", 384, 6, 12, 1536)
    yield _bert("MiniLM", f"{minilm}-L12-v2", 384, 12, 12, 1536)


#: All known models by hub id, ladder by ladder, each from small to large.
KNOWN: dict[str, Known] = {known.name: known for known in (*_decoders(), *_encoders())}
