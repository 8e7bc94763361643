"""Refuse what cannot be generated, in one line each."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2s_jax.core import errors
from w2s_jax.core.errors import InputError
from w2s_jax.models.config import ModelConfig


def check_settings(
    config: ModelConfig,
    *,
    max_new_tokens: Any,
    eos: Any,
    temperature: Any,
    top_p: Any,
    num_samples: Any,
    seed: Any,
    top_k: Any = 0,
) -> None:
    """Check the arguments of `generate` and `Generator` that do not depend on prompts.

    Raises:
      InputError: if the model is an encoder, or a number is outside of what is allowed.
    """
    if config.bidirectional:
        raise InputError(f"{config.name}: is an encoder, which cannot generate; use a decoder")
    last = config.vocab_size - 1
    _check_integer("max_new_tokens", max_new_tokens, 1)
    _check_integer("num_samples", num_samples, 1)
    _check_integer("seed", seed, 0, 2**32 - 1)
    _check_integer("top_k", top_k, 0, config.vocab_size)
    if eos is not None:
        _check_integer("eos", eos, 0, last)
    if not _is_number(temperature) or not 0 <= temperature < math.inf:
        raise InputError(
            f"temperature: {errors.shown(temperature)}; allowed: 0 (the most probable token) or a "
            "positive number"
        )
    if not _is_number(top_p) or not 0 < top_p <= 1:
        raise InputError(f"top_p: {errors.shown(top_p)}; allowed: a number above 0, up to 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if integer and value >= least and (most is None or value <= most):
        return
    allowed = f"at least {least}" if most is None else f"{least} to {most}"
    raise InputError(f"{name}: {errors.shown(value)}; allowed: an integer, {allowed}")


def as_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int] | np.ndarray], max_new_tokens: int
) -> list[np.ndarray]:
    """Return prompts as int32 arrays [L].

    Raises:
      InputError: if one is not a list of token ids, is empty, has an id outside of the vocabulary,
        or leaves no room for `max_new_tokens` within learned positions.
    """
    room = config.max_positions if config.positions == "learned" else math.inf
    checked = []
    for number, prompt in enumerate(prompts):
        # An empty list would be an array of floats.
        array = np.asarray(prompt) if len(prompt) else np.zeros(0, np.int32)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"prompts[{number}]: {errors.shown(prompt)}; must be a list of token ids"
            )
        if not len(array):
            raise InputError(f"prompts[{number}]: is empty; it needs at least one token")
        least, most = array.min(), array.max()
        if least < 0 or most >= config.vocab_size:
            raise InputError(
                f"prompts[{number}]: token {most if most >= config.vocab_size else least}; allowed "
                f"for {config.name}: 0 to {config.vocab_size - 1}"
            )
        if len(array) + max_new_tokens > room:
            raise InputError(
                f"prompts[{number}]: {len(array)} tokens and max_new_tokens={max_new_tokens} "
                f"exceed the context of {config.name}, {config.max_positions}; shorten one of them"
            )
        checked.append(array.astype(np.int32))
    return checked


def as_ids(ids: Sequence[int] | np.ndarray | None, count: int) -> np.ndarray:
    """Return the prompts' ids, uint64 [N]; None: their positions.

    Raises:
      InputError: if there is not one 64-bit unsigned integer per prompt.
    """
    if ids is None:
        return np.arange(count, dtype=np.uint64)
    try:
        # numpy would make floats of a list with numbers on both sides of 2**63.
        array = ids if isinstance(ids, np.ndarray) else np.array(ids, object)
        whole = all(isinstance(x, int | np.integer) and 0 <= x < 2**64 for x in array.flat)
    except (TypeError, ValueError):
        whole = False
    if not whole:
        raise InputError(f"ids: {errors.shown(ids)}; must be unsigned 64-bit integers")
    if array.shape != (count,):
        raise InputError(f"ids: shape {array.shape}; must be ({count},), one for each prompt")
    return array.astype(np.uint64)
