"""Optimisers (optax) and learning-rate schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from w2s_jax.config import MAX_LEARNING_RATE, TrainSettings, validation
from w2s_jax.core import errors


def learning_rates(train: TrainSettings, total_steps: int) -> np.ndarray:
    """Return the learning rate of each step, float32 [S].

    A linear rise over the first `warmup` share of the steps (none by default), then cosine or
    linear decay that would reach 0 at `total_steps`, or a constant. With warm-up 0 the cosine form
    is torch's CosineAnnealingLR, which the released code uses. With `cosine_steps` it reaches 0
    after so many steps (`T_max`), and has twice their period, as torch's has.

    Raises:
      InputError: if updates could overflow at this rate although the gradient is finite.
    """
    rate = train.learning_rate
    assert rate is not None
    if not rate <= MAX_LEARNING_RATE:
        raise errors.InputError(
            f"train.learning_rate: {rate!r}; allowed: at most {MAX_LEARNING_RATE}"
        )
    warm = min(round(train.warmup * total_steps), total_steps - 1)
    rise_S = (np.arange(warm) + 1) / (warm + 1)
    done_S = np.arange(total_steps - warm) / (train.cosine_steps or total_steps - warm)
    decay_S = {
        "cosine": (1 + np.cos(np.pi * done_S)) / 2,
        "linear": 1 - done_S,
        "constant": np.ones_like(done_S),
    }[train.schedule]
    return (rate * np.concatenate([rise_S, decay_S])).astype(np.float32)


def decoupled_weight_decay(train: TrainSettings) -> float:
    """Return the weight decay of AdamW; 0 for other optimisers.

    Raises:
      InputError: if a step would change the sign of a parameter.
    """
    validation.check_weight_decay("train", train)
    return train.weight_decay if train.optimizer == "adamw" else 0.0


def make_optimizer(train: TrainSettings) -> optax.GradientTransformation:
    """Return a transformation of gradients to ascent directions, by Adam(W) or Adafactor.

    With `clip_norm`, gradients are clipped by their global norm first. The step multiplies the
    direction by the learning rate and adds AdamW's weight decay. A gradient with a finite norm has
    entries of at most 1.8e19, so the moments are finite, and entries of Adam's direction are below
    1e8 times that. No rate up to `MAX_LEARNING_RATE` makes an update overflow.
    """
    if train.optimizer == "adafactor":
        # Without a rate, Adafactor returns the update of rate 1, a descent.
        core = optax.chain(optax.adafactor(None), optax.scale(-1.0))
    else:
        core = optax.scale_by_adam(b1=train.beta1, b2=train.beta2)
    if train.clip_norm is None:
        return core
    return optax.chain(optax.clip_by_global_norm(train.clip_norm), core)


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """Round float32 to bfloat16, up or down at random, so that the expectation is `x`.

    Rounding to nearest would lose all updates below 1/512 of a parameter.
    """
    dice = jax.random.bits(key, x.shape, jnp.uint16)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + dice.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
