"""Registration of losses."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from w2s_jax.config.declarations import (
    LOSSES,
    PREFERENCES,
    LossFn,
    LossSpec,
    PreferenceSpec,
    loss_named,
)
from w2s_jax.config.options import declared, defaults
from w2s_jax.core import errors


def register(
    name: str,
    *,
    coupled: bool = True,
    traced: tuple[str, ...] = (),
    case_of: tuple[str, dict[str, Any]] | None = None,
    init_state: Callable[..., Any] | None = None,
    update: Callable[..., Any] | None = None,
    summary: str = "",
    source: str = "",
    on_tokens: LossFn | None = None,
    top_k_labels: bool = False,
    two_classes: bool = False,
    balanced_by: str = "",
    **options: Any,
) -> Callable[[LossFn], LossSpec]:
    """Return a decorator that registers a loss function under `name`.

    Args:
      name: the kind, as `loss.<label>.kind` names it.
      coupled: False only if each document's term is independent of the others, given the state.
      traced: names of float options that may be float32 scalars of a JAX program (nothing in Python
        depends on them). Students that differ only in them share one compiled program.
      case_of: (kind, options) of another loss that gives exactly the same numbers. Their program is
        shared where the whole batch is one microbatch.
      init_state: makes the state (see `LossSpec`). The function then takes `state=`, and must
        accept None: an empty memory, or a statistic of this batch.
      update: the state after a step; None: it never changes.
      summary: the definition, for the documentation; '': the first line of the docstring.
      source: the paper or code that it is from.
      on_tokens: the loss of completions, the terms of target tokens (see `LossSpec`); the first
        line of its docstring is its definition in the documentation.
      top_k_labels: whether `on_tokens` takes the supervisor's distributions.
      two_classes: whether the loss is defined on two classes only.
      balanced_by: what makes it give each class a share of the batch (see `LossSpec`).
      **options: an `Option`, or just the default, of each keyword option. A default of None makes
        an optional float.

    Raises:
      InputError: if the name is taken, if `traced` or `balanced_by` names no option, or for
        `update` without `init_state`.
    """
    _check_options(name, "traced", traced, options)
    if balanced_by not in ("", "kind"):
        _check_options(name, "balanced_by", (balanced_by,), options)
    if update is not None and init_state is None:
        raise errors.InputError(
            f"losses.register: {name!r} has update but no init_state; give both, init_state alone, "
            "or neither"
        )

    declarations = declared(options)
    given = defaults(declarations)

    def wrap(fn: LossFn) -> LossSpec:
        return LOSSES.add(
            LossSpec(
                name=name,
                fn=fn,
                options=declarations,
                coupled=coupled,
                traced=traced,
                case_of=case_of,
                init_state=None if init_state is None else functools.partial(init_state, **given),
                update=None if update is None else functools.partial(update, **given),
                summary=summary or (fn.__doc__ or "").partition("\n")[0],
                source=source,
                on_tokens=on_tokens,
                top_k_labels=top_k_labels,
                two_classes=two_classes,
                balanced_by=balanced_by,
            )
        )

    return wrap


def register_preference(
    name: str,
    *,
    margin: LossFn,
    traced: tuple[str, ...] = (),
    uses_reference: bool = False,
    summary: str = "",
    source: str = "",
    **options: Any,
) -> Callable[[LossFn], PreferenceSpec]:
    """Return a decorator that registers a loss of pairs of completions under `name`.

    Args:
      name: the kind, as `loss.<label>.kind` names it; no other loss has it.
      margin: see `PreferenceSpec`.
      traced: as of `register`.
      uses_reference: whether the loss reads log-probabilities under a reference model.
      summary: the definition, for the documentation; '': the first line of the docstring.
      source: the paper or code that it is from.
      **options: an `Option`, or just the default, of each keyword option.

    Raises:
      InputError: if the name is taken, or if `traced` names no option.
    """
    _check_options(name, "traced", traced, options)

    def wrap(fn: LossFn) -> PreferenceSpec:
        return PREFERENCES.add(
            PreferenceSpec(
                name=name,
                fn=fn,
                margin=margin,
                options=declared(options),
                traced=traced,
                uses_reference=uses_reference,
                summary=summary or (fn.__doc__ or "").partition("\n")[0],
                source=source,
            )
        )

    return wrap


def check_classes(
    label: str, kind: str, options: Mapping[str, Any], *, classes: int, batch_size: int
) -> None:
    """Refuse a loss that is not defined on a number of classes, or needs larger batches for it.

    Two classes are always allowed. Losses of pairs of completions are not about classes, and pass.

    Args:
      label: the label of the loss in the config.
      kind: its kind.
      options: option -> value; an option that is left out has its default.
      classes: the number of classes, at least 2.
      batch_size: documents of a training step.

    Raises:
      InputError: if there is no such kind; for a loss of two classes only; and for one that gives
        each class a share of the batch, where a batch has fewer than 4 documents for each of more
        than two classes.
    """
    spec = loss_named(kind, f"loss.{label}.kind")
    if isinstance(spec, LossSpec):
        spec.require_classes(label, options, classes, batch_size)


def _check_options(
    name: str, argument: str, named: tuple[str, ...], options: dict[str, Any]
) -> None:
    """Refuse names in an argument that are no options."""
    for option in named:
        if option not in options:
            raise errors.unknown(f"losses.register: {name!r}: {argument}", option, options)
