"""Losses of weak-to-strong finetuning: pure functions of a batch of logits and soft targets.

Every loss has the signature

    loss(logits_BC, targets_BC, step_fraction, *, weights_B=None, state=None, **options)

and returns a float32 scalar, with `targets_BC` the soft labels (column 1 is P(label 1)),
`step_fraction` = step / total steps from 0, `weights_B` a non-negative weight for each document
(None: all 1), and `state` what a loss with a memory keeps (those here have none). All compute in
float32. A loss is *coupled* when one document's term depends on the others of its batch (a
threshold, say): the training step then computes it over the whole batch at once, whatever the
microbatch or the mesh. `register` adds a loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from w2s_jax import config as config_lib
from w2s_jax import errors

Array = jax.Array
LossFn = Callable[..., Array]


@dataclass(frozen=True)
class Loss:
    """A registered loss: call it as the function it wraps.

    Attributes:
      name: its kind.
      fn: the function.
      coupled: whether a document's term depends on the others of its batch.
      traced: options that may be arrays; programs are shared between their values.
      case_of: (kind, options) of a registered loss that gives the same numbers, or None.
      init_state: (targets_NC, **options) -> pytree of arrays that it keeps, from the soft labels of
        all training documents; None: it keeps nothing.
      update: (state, logits_BC, targets_BC, *, weights_B, **options) -> the state behind a batch;
        None: the state never changes.
    """

    name: str
    fn: LossFn
    coupled: bool
    traced: tuple[str, ...] = ()
    case_of: tuple[str, dict[str, Any]] | None = None
    init_state: Callable[..., Any] | None = None
    update: Callable[..., Any] | None = None

    def __call__(
        self,
        logits_BC: Array,
        targets_BC: Array,
        step_fraction: Array | float,
        *,
        weights_B: Array | None = None,
        state: Any = None,
        **options: Any,
    ) -> Array:
        if self.init_state is not None:
            options = options | {"state": state}
        elif state is not None:
            raise errors.InputError(f"loss {self.name}: has no state; allowed: state=None")
        options = config_lib.LOSS_OPTIONS[self.name] | options
        return self.fn(logits_BC, targets_BC, step_fraction, weights_B=weights_B, **options)


#: name -> Loss
LOSSES: dict[str, Loss] = {}


def register(
    name: str,
    *,
    coupled: bool = True,
    traced: tuple[str, ...] = (),
    case_of: tuple[str, dict[str, Any]] | None = None,
    init_state: Callable[..., Any] | None = None,
    update: Callable[..., Any] | None = None,
    **options: Any,
) -> Callable[[LossFn], Loss]:
    """Decorator: registers a loss function under `name`, with its options and their defaults.

    Args:
      name: the kind, as `loss.<label>.kind` names it.
      coupled: False only if each document's term is independent of the others.
      traced: names of float options that may be float32 scalars of a JAX program (nothing in Python
        depends on them): students that differ in them share one compiled program.
      case_of: (kind, options) of another loss that gives exactly the same, whose program is shared
        where the whole batch is one microbatch.
      init_state, update: of a loss with a state (see `Loss`).
      **options: keyword options and their defaults.

    Raises:
      InputError: if the name is taken.
    """

    def wrap(fn: LossFn) -> Loss:
        if name in LOSSES:
            raise errors.InputError(f"losses.register: the name {name!r} is taken")
        config_lib.LOSS_OPTIONS.setdefault(name, dict(options))
        LOSSES[name] = Loss(name, fn, coupled, traced, case_of, init_state, update)
        return LOSSES[name]

    return wrap


def soft_cross_entropy(logits_BC: Array, targets_BC: Array, weights_B: Array | None) -> Array:
    """Weighted mean over documents of -sum_c targets_bc log softmax(logits_b)_c, float32."""
    log_p_BC = jax.nn.log_softmax(logits_BC.astype(jnp.float32), axis=-1)
    loss_B = -jnp.sum(targets_BC.astype(jnp.float32) * log_p_BC, axis=-1)
    if weights_B is None:
        return jnp.mean(loss_B)
    weights_B = weights_B.astype(jnp.float32)
    return jnp.sum(weights_B * loss_B) / jnp.maximum(jnp.sum(weights_B), 1e-9)


@register("xent", coupled=False, case_of=("confidence", {"alpha_max": 0.0}))
def xent(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
) -> Array:
    """Cross-entropy to the soft labels: naive finetuning (Burns et al. 2023, section 4.1)."""
    del step_fraction
    return soft_cross_entropy(logits_BC, targets_BC, weights_B)


def hardened_share(scores_B: Array, share: Array | float, weights_B: Array) -> Array:
    """Marks the top `share` of the batch's weight: 1 above the threshold, 0 below, float32 [B].

    The mass marked is exactly share * sum(weights). Documents that tie at the threshold share what
    is left of it equally, so the result does not depend on their order; with an odd batch and a
    share of one half, the median document gets 1/2.
    """
    mass = share * jnp.sum(weights_B)
    above_B = jnp.sum(weights_B[None, :] * (scores_B[None, :] > scores_B[:, None]), axis=1)
    tied_B = jnp.sum(weights_B[None, :] * (scores_B[None, :] == scores_B[:, None]), axis=1)
    return jnp.clip((mass - above_B) / jnp.maximum(tied_B, 1e-9), 0.0, 1.0)


@register("confidence", traced=("alpha_max", "warmup_fraction"))
def confidence(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    alpha_max: Array | float = 0.5,
    warmup_fraction: Array | float = 0.2,
    threshold: str = "half",
) -> Array:
    """The paper's auxiliary confidence loss (Burns et al. 2023, section 4.3.1 and appendix A.4).

    L = (1 - a) CE(f, w) + a CE(f, f_t) with f_t = 1[f > t] without gradient, which is the
    cross-entropy to (1 - a) w + a f_t. The threshold t is chosen in each batch so that exactly half
    of it is positive ('half'), or the share that the mean weak label gives ('prior'); ties and odd
    batches as in `hardened_share`. a rises linearly from 0 to `alpha_max` over the first
    `warmup_fraction` of training. With alpha_max = 0 it is `xent`.
    """
    logits_BC = logits_BC.astype(jnp.float32)
    targets_BC = targets_BC.astype(jnp.float32)
    mass_B = jnp.ones(logits_BC.shape[0]) if weights_B is None else weights_B.astype(jnp.float32)
    share: Array | float = 0.5
    if threshold == "prior":
        share = jnp.sum(mass_B * targets_BC[:, 1]) / jnp.maximum(jnp.sum(mass_B), 1e-9)
    margin_B = jax.lax.stop_gradient(logits_BC[:, 1] - logits_BC[:, 0])
    positive_B = hardened_share(margin_B, share, mass_B)
    hardened_BC = jnp.stack([1.0 - positive_B, positive_B], axis=1)
    ramp = jnp.asarray(step_fraction, jnp.float32) / jnp.maximum(warmup_fraction, 1e-9)
    alpha = alpha_max * jnp.where(warmup_fraction > 0, jnp.minimum(ramp, 1.0), 1.0)
    mixed_BC = (1.0 - alpha) * targets_BC + alpha * hardened_BC
    return soft_cross_entropy(logits_BC, mixed_BC, weights_B)


@register("logconf", traced=("aux_coef", "warmup_fraction"))
def logconf(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
    aux_coef: Array | float = 0.5,
    warmup_fraction: Array | float = 0.1,
) -> Array:
    """The confidence loss of the code released with the paper, its jump included.

    The coefficient is aux_coef * step_fraction up to `warmup_fraction` and aux_coef after it (with
    the defaults it jumps from 0.05 to 0.5). The threshold is the quantile (linear interpolation) of
    P(label 0) at the mean weak label; a document at or above it is hardened to 0, one below to 1.
    Documents of weight 0 take no part in either.
    """
    logits_BC = logits_BC.astype(jnp.float32)
    targets_BC = targets_BC.astype(jnp.float32)
    step_fraction = jnp.asarray(step_fraction, jnp.float32)
    coef = aux_coef * jnp.where(step_fraction > warmup_fraction, 1.0, step_fraction)
    p0_B = jax.lax.stop_gradient(jax.nn.softmax(logits_BC, axis=-1)[:, 0])
    if weights_B is None:
        level = jnp.mean(targets_BC[:, 1])
        taken_B = jnp.ones(p0_B.shape, bool)
    else:
        mass_B = weights_B.astype(jnp.float32)
        level = jnp.sum(mass_B * targets_BC[:, 1]) / jnp.maximum(jnp.sum(mass_B), 1e-9)
        taken_B = mass_B > 0
    positive_B = (p0_B < _quantile(p0_B, taken_B, level)).astype(jnp.float32)
    hardened_BC = jnp.stack([1.0 - positive_B, positive_B], axis=1)
    mixed_BC = (1.0 - coef) * targets_BC + coef * hardened_BC
    return soft_cross_entropy(logits_BC, mixed_BC, weights_B)


def _quantile(values_B: Array, taken_B: Array, level: Array) -> Array:
    """Linearly interpolated quantile of the values where `taken_B`, float32.

    Interpolates as a + t (b - a) below the middle of two neighbours and b - (1 - t) (b - a) above,
    which returns a value itself where the position is exact.
    """
    ordered_B = jnp.sort(jnp.where(taken_B, values_B, jnp.inf))
    last = jnp.maximum(jnp.sum(taken_B) - 1, 0)
    position = jnp.clip(level, 0.0, 1.0) * last.astype(jnp.float32)
    low = jnp.floor(position).astype(jnp.int32)
    high = jnp.minimum(low + 1, last)
    t = position - low
    a, b = ordered_B[low], ordered_B[high]
    return jnp.where(t < 0.5, a + t * (b - a), b - (1.0 - t) * (b - a))
