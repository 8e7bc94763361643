"""Optimisers, by optax, and learning rates."""

import numpy as np
import optax

from w2s_jax.config import MAX_LEARNING_RATE, TrainSettings
from w2s_jax.core import errors


def learning_rates(train: TrainSettings, total_steps: int) -> np.ndarray:
    """Learning rate of each step, float32 [S].

    A linear rise over the first `warmup` share of the steps (none by default), then cosine or
    linear decay that would reach 0 at `total_steps`, or a constant. With warm-up 0 the cosine form
    is torch's CosineAnnealingLR, which the released code uses.

    Raises:
      InputError: for a rate with which an update could overflow though the gradient does not.
    """
    rate = train.learning_rate
    assert rate is not None
    if not rate <= MAX_LEARNING_RATE:
        raise errors.InputError(
            f"train.learning_rate: {rate!r}; allowed: at most {MAX_LEARNING_RATE}"
        )
    warm = min(round(train.warmup * total_steps), total_steps - 1)
    rise_S = (np.arange(warm) + 1) / (warm + 1)
    done_S = np.arange(total_steps - warm) / (total_steps - warm)
    decay_S = {
        "cosine": (1 + np.cos(np.pi * done_S)) / 2,
        "linear": 1 - done_S,
        "constant": np.ones_like(done_S),
    }[train.schedule]
    return (rate * np.concatenate([rise_S, decay_S])).astype(np.float32)


def decoupled_weight_decay(train: TrainSettings) -> float:
    """Weight decay of AdamW; 0 for the other optimisers.

    Raises:
      InputError: if a step would decay a parameter beyond 0.
    """
    if train.optimizer != "adamw":
        return 0.0
    assert train.learning_rate is not None
    if not train.learning_rate * train.weight_decay <= 1:
        raise errors.InputError(
            f"train.weight_decay: {train.weight_decay!r} with learning rate "
            f"{train.learning_rate!r}; allowed: a product of at most 1"
        )
    return train.weight_decay


def make_optimizer(train: TrainSettings) -> optax.GradientTransformation:
    """Gradient -> direction of steepest ascent, as Adam (or AdamW) or Adafactor sees it.

    Clipped before by the global norm if asked for. The step multiplies it by the learning rate, and
    adds AdamW's weight decay. Where the gradient's norm is finite, so are the moments, and Adam's
    direction: its entries are below 1e8 times the largest that a gradient had, 1.8e19. So no
    rate up to `MAX_LEARNING_RATE` makes an update overflow.
    """
    if train.optimizer == "adafactor":
        # Without a rate it gives the update of rate 1, a descent.
        core = optax.chain(optax.adafactor(None), optax.scale(-1.0))
    else:
        core = optax.scale_by_adam(b1=train.beta1, b2=train.beta2)
    if train.clip_norm is None:
        return core
    return optax.chain(optax.clip_by_global_norm(train.clip_norm), core)
