"""What a registered loss is, and the table of them.

A loss may have a state: a pytree of arrays of fixed shapes that training carries from step to step
with the parameters. `init_state(targets_NC, **options)` makes it, once, on the host, of the soft
labels of all training documents (numpy); `update(state, logits_BC, targets_BC, *, weights_B,
**options)` returns that of the next step, from the logits that the loss itself was given. Both get
every option of the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from w2s_jax import config as config_lib
from w2s_jax.core import errors

Array = jax.Array
LossFn = Callable[..., Array]


@dataclass(frozen=True)
class Loss:
    """A registered loss: call it as the function it wraps.

    Attributes:
      name: its kind.
      fn: the function.
      coupled: whether a document's term depends on the others of its batch: the training step then
        computes it over the whole batch at once, whatever the microbatch or the mesh.
      traced: options that may be arrays; programs are shared between their values.
      case_of: (kind, options) of a registered loss that gives the same numbers, or None.
      init_state: (targets_NC, **options) -> state before the first step; None: it has no state.
      update: (state, logits_BC, targets_BC, *, weights_B, **options) -> state after a step; None:
        the state never changes.
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
        options = config_lib.LOSS_OPTIONS[self.name] | options
        if self.init_state is not None:
            options["state"] = state
        elif state is not None:
            raise errors.InputError(f"loss {self.name}: has no state; allowed: state=None")
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
      coupled: False only if each document's term is independent of the others, given the state.
      traced: names of float options that may be float32 scalars of a JAX program (nothing in Python
        depends on them): students that differ in them share one compiled program.
      case_of: (kind, options) of another loss that gives exactly the same, whose program is shared
        where the whole batch is one microbatch.
      init_state: makes the state (see the module); the function then takes `state=`, and must do
        with None: an empty memory, or a statistic of this batch.
      update: the state after a step; None: it stays as it is.
      **options: keyword options and their defaults. None stands for an optional float.

    Raises:
      InputError: if the name is taken, or there is an `update` of no state.
    """

    def wrap(fn: LossFn) -> Loss:
        if name in LOSSES:
            raise errors.InputError(f"losses.register: the name {name!r} is taken")
        if update is not None and init_state is None:
            raise errors.InputError(
                f"losses.register: {name!r} has update={update!r} and no init_state; allowed: "
                "both, init_state alone, or neither"
            )
        config_lib.LOSS_OPTIONS.setdefault(name, dict(options))
        LOSSES[name] = Loss(name, fn, coupled, traced, case_of, init_state, update)
        return LOSSES[name]

    return wrap
