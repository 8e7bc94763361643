"""Read and write the config.json options that several families share."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from w2s_jax.core import errors
from w2s_jax.models.config import ModelConfig

HF = Mapping[str, Any]

#: Activations: transformers' name -> value of `ModelConfig.activation`.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


#: Integers above these are mistakes; counting up to them would take forever.
MOST, MOST_LAYERS = 2**31 - 1, 10_000

# Keys of rotary positions in transformers 5. A type that does not use a key ignores it.
_ROPE_KEYS = (
    *("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"),
    *("original_max_position_embeddings", "partial_rotary_factor", "attention_factor"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned"),
    *("short_factor", "long_factor", "mrope_section", "mrope_interleaved"),
)
_USED_ROPE_KEYS = {
    "default": _ROPE_KEYS[:3],
    "linear": _ROPE_KEYS[:4],
    "llama3": _ROPE_KEYS[:7],
}


def refusal(key: str, value: Any, allowed: Any) -> errors.InputError:
    """Return the error for an option whose value is not supported."""
    return errors.InputError(f"config.json: {key}: {_short(value)}; allowed: {allowed}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def require(hf: HF, **allowed: Any) -> None:
    """Raise an `InputError` if an option is given (null is not) with another value than allowed."""
    for key, wanted in allowed.items():
        value = hf.get(key)
        if value is not None and value != wanted:
            raise refusal(key, value, repr(wanted))


def integer(hf: HF, key: str, default: int | None = None, most: int = MOST) -> int:
    """Return a positive integer, at most `most`; required if there is no default."""
    value = hf.get(key)
    value = default if value is None else value
    if value is None:
        raise errors.InputError(f"config.json: {key} is missing; allowed: a positive integer")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise refusal(key, value, "a positive integer")
    if value > most:
        raise refusal(key, value, f"a positive integer, at most {most}")
    return value


def number(hf: HF, key: str, default: float) -> float:
    """Return a non-negative finite number; null means the default."""
    value = hf.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise refusal(key, value, "a non-negative number")
    if value > 1e30 or math.isinf(value):
        raise refusal(key, value, "a number up to 1e30")
    return float(value)


def flag(hf: HF, key: str, default: bool) -> bool:
    """Return true or false; null means the default."""
    value = hf.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise refusal(key, value, "true, false")
    return value


def section(hf: HF, key: str) -> HF:
    """Return an object within the config; null and an absent key mean an empty one."""
    value = hf.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise refusal(key, value, "an object")
    return value or {}


def activation(hf: HF, key: str, default: str) -> str:
    """Return the value of `ModelConfig.activation`; null means the default."""
    value = hf.get(key)
    value = default if value is None else value
    if not isinstance(value, str):
        raise refusal(key, value, ", ".join(ACTIVATIONS))
    if value not in ACTIVATIONS:
        raise errors.unknown(f"config.json: {key}", value, ACTIVATIONS)
    return ACTIVATIONS[value]


def activation_to_hf(name: str, tanh: str) -> str:
    """Invert `activation`; `tanh` is the family's name for the tanh form of GELU."""
    return tanh if name == "gelu_tanh" else name


def sizes(hf: HF, *, head_dim: int | None = None, kv_heads: int | None = None) -> dict[str, Any]:
    """Return the `ModelConfig` fields for which nearly all families use the same keys.

    Args:
      hf: the content of config.json.
      head_dim: the family's default (None: width / heads).
      kv_heads: the family's default if the key is absent (None: the number of heads).
    """
    require(hf, quantization_config=None)
    d, heads = integer(hf, "hidden_size"), integer(hf, "num_attention_heads")
    if hf.get("head_dim") is None and head_dim is None and d % heads:
        raise refusal("num_attention_heads", heads, f"a divisor of hidden_size = {d}")
    # In every family null means the number of heads, whatever an absent key means.
    absent = kv_heads if "num_key_value_heads" not in hf and kv_heads else heads
    kv = integer(hf, "num_key_value_heads", absent)
    if heads % kv:
        raise refusal("num_key_value_heads", kv, f"a divisor of num_attention_heads = {heads}")
    return dict(
        vocab_size=integer(hf, "vocab_size"),
        max_positions=integer(hf, "max_position_embeddings", 2048),
        d_model=d,
        num_layers=integer(hf, "num_hidden_layers", most=MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=integer(hf, "head_dim", head_dim or d // heads),
        init_std=number(hf, "initializer_range", 0.02),
    )


def rope(
    hf: HF,
    head_dim: int,
    *,
    theta: float = 10_000.0,
    theta_key: str = "rope_theta",
    fraction: float = 1.0,
    fraction_key: str = "",
) -> dict[str, Any]:
    """Return the `ModelConfig` fields of rotary positions, from old and new config.json files.

    Args:
      hf: the content of config.json. New files nest everything in `rope_parameters`; old ones have
        `theta_key`, `fraction_key` and, for scaled frequencies, `rope_scaling`.
      head_dim: the size of a head.
      theta: the default rotary base.
      theta_key: the key of the base in old files.
      fraction: the default rotated share of a head.
      fraction_key: the key of the share in old files ('': the share must be 1).

    Raises:
      InputError: for an option that is not supported, and for an unknown key in a section, such as
        the layer types by which other families divide it.
    """
    nested = _rope_section(hf)
    theta = number(nested, "rope_theta", number(hf, theta_key, theta))
    if theta <= 0:
        raise refusal(theta_key, theta, "a positive number")
    if not fraction_key:
        require(nested, partial_rotary_factor=1.0)
    share = number(nested, "partial_rotary_factor", number(hf, fraction_key, fraction))
    if not 0 < share <= 1 or int(head_dim * share) % 2 or int(head_dim * share) < 2:
        raise refusal(
            fraction_key or "head_dim",
            share if fraction_key else head_dim,
            f"a value that rotates an even number of the head's {head_dim} dimensions",
        )
    fields = dict(positions="rope", rope_theta=theta, rope_fraction=share)
    return fields | _scaling(hf, nested)


def _rope_section(hf: HF) -> HF:
    """Return the section with the options of rotary positions; as in transformers, the old one."""
    old, new = section(hf, "rope_scaling"), section(hf, "rope_parameters")
    check_keys("rope_scaling", old, _ROPE_KEYS)
    check_keys("rope_parameters", new, _ROPE_KEYS)
    return old or new


def check_keys(name: str, found: HF, known: Sequence[str]) -> None:
    """Raise an `InputError` if a section of the config has an unknown key."""
    for key, value in found.items():
        if key not in known:
            # A section within the section is no misspelt option.
            hint = "" if isinstance(value, Mapping) else errors.did_you_mean(key, known)
            raise errors.InputError(
                f"config.json: {name}: unknown key {_short(key)}{hint}; allowed in this family: "
                f"{', '.join(known[:7])}"
            )


def rope_notes(hf: HF, config: ModelConfig) -> list[str]:
    """Return what a config.json says about rotary positions that, as in transformers, is not used.

    Args:
      hf: the content of config.json.
      config: the model read from it.
    """
    if config.positions != "rope":
        return []
    old, new = section(hf, "rope_scaling"), section(hf, "rope_parameters")
    by_layer_type = "full_attention" in new or "sliding_attention" in new
    nested = old or ({} if by_layer_type else new)
    kind = _rope_type(nested)
    notes = []
    if old and new and not by_layer_type and dict(old) != dict(new):
        notes.append("rope_parameters differs from rope_scaling and is not used")
    if nested.get("type", kind) != kind:
        notes.append(f"type {_short(nested['type'])} is not used; rope_type is {kind!r}")
    unused = [key for key in nested if key not in (*_USED_ROPE_KEYS[kind], "partial_rotary_factor")]
    if unused:
        notes.append(f"{', '.join(unused)} not used with rope_type {kind!r}")
    for value, keys in (
        (config.rope_theta, ("rope_theta", "rotary_emb_base")),
        (config.rope_fraction, ("partial_rotary_factor", "rotary_pct")),
        (config.rope_original_length or None, ("original_max_position_embeddings",)),
    ):
        for key in keys:
            if None not in (value, hf.get(key)) and hf[key] != value:
                notes.append(f"{key}: {_short(hf[key])} is not used; the model has {value:g}")
    return notes


def _rope_type(nested: HF) -> str:
    kind = nested.get("rope_type", nested.get("type", "default"))
    if not isinstance(kind, str) or kind not in _USED_ROPE_KEYS:
        raise errors.unknown("config.json: rope_parameters.rope_type", kind, _USED_ROPE_KEYS)
    return kind


def _scaling(hf: HF, nested: HF) -> dict[str, Any]:
    kind = _rope_type(nested)
    if kind == "default":
        return {}
    factor = number(nested, "factor", 0)
    if factor < 1:
        raise refusal("rope_parameters.factor", nested.get("factor"), "a number of at least 1")
    fields = dict(rope_scaling=kind, rope_factor=factor)
    if kind == "linear":
        return fields
    low, high = number(nested, "low_freq_factor", 1), number(nested, "high_freq_factor", 4)
    if not 0 < low < high:
        raise refusal("rope_parameters.low_freq_factor", low, f"below high_freq_factor = {high}")
    max_length = integer(hf, "max_position_embeddings", 2048)
    return fields | dict(
        rope_low_factor=low,
        rope_high_factor=high,
        rope_original_length=integer(nested, "original_max_position_embeddings", max_length),
    )


def local_layers(hf: HF, default: Sequence[bool]) -> tuple[bool, ...]:
    """Return which layers have the window, from `layer_types` or else `default`."""
    types = hf.get("layer_types")
    if types is None:
        return tuple(default)
    known = {"sliding_attention": True, "full_attention": False}
    if not isinstance(types, list) or not all(isinstance(kind, str) for kind in types):
        raise refusal("layer_types", types, f"a list of {', '.join(known)}")
    for kind in types:
        if kind not in known:
            raise errors.unknown("config.json: layer_types", kind, known)
    if len(types) != len(default):
        raise refusal("layer_types", f"{len(types)} entries", f"one per layer ({len(default)})")
    return tuple(known[kind] for kind in types)


def layer_types(local: Sequence[bool]) -> list[str]:
    """Return the `layer_types` of a config.json: the inverse of `local_layers`."""
    return ["sliding_attention" if one else "full_attention" for one in local]


def common_to_hf(config: ModelConfig, architecture: str, model_type: str) -> dict[str, Any]:
    """Return the keys that `sizes` reads, and those that identify the family."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_mlp,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied_embeddings,
    }


def rope_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Return what `rope` reads, with the old keys, which all versions of transformers accept."""
    hf: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.rope_scaling != "none":
        scaling: dict[str, Any] = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
        if config.rope_scaling == "llama3":
            scaling |= {
                "low_freq_factor": config.rope_low_factor,
                "high_freq_factor": config.rope_high_factor,
                "original_max_position_embeddings": config.rope_original_length,
            }
        hf["rope_scaling"] = scaling
    return hf
