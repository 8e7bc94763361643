"""Optimisers and learning-rate schedules, by optax."""

import optax

from w2s_jax.config import TrainSettings


def make_schedule(train: TrainSettings, total_steps: int) -> optax.Schedule:
    """Learning rate of each step (0, 1, ...).

    A linear rise over the first `warmup` share of the steps (none by default), then cosine or
    linear decay that would reach 0 at `total_steps`, or a constant. With warm-up 0 the cosine form
    is torch's CosineAnnealingLR, which the released code uses.
    """
    warm = min(round(train.warmup * total_steps), total_steps - 1)
    assert train.learning_rate is not None
    rate, rest = train.learning_rate, total_steps - warm
    decay = {
        "cosine": optax.cosine_decay_schedule(rate, rest),
        "linear": optax.linear_schedule(rate, 0.0, rest),
        "constant": optax.constant_schedule(rate),
    }[train.schedule]
    if not warm:
        return decay
    rise = optax.linear_schedule(rate / (warm + 1), rate, warm)
    return optax.join_schedules([rise, decay], [warm])


def make_optimizer(train: TrainSettings, total_steps: int) -> optax.GradientTransformation:
    """Adam, AdamW or Adafactor with the schedule, and clipping by the global norm if asked for."""
    schedule = make_schedule(train, total_steps)
    if train.optimizer == "adafactor":
        core = optax.adafactor(schedule)
    elif train.optimizer == "adamw":
        core = optax.adamw(
            schedule, b1=train.beta1, b2=train.beta2, weight_decay=train.weight_decay
        )
    else:
        core = optax.adam(schedule, b1=train.beta1, b2=train.beta2)
    if train.clip_norm is None:
        return core
    return optax.chain(optax.clip_by_global_norm(train.clip_norm), core)
