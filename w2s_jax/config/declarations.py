"""Declarations of losses and methods, and the tables of them. Imports no JAX.

`losses.register` and `methods.register` add to the tables. The default config, validation,
planning, training and the tables of the documentation read these declarations.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from w2s_jax.config.options import Option, defaults
from w2s_jax.config.tables import Table
from w2s_jax.core import errors

if TYPE_CHECKING:
    from jax import Array

LossFn = Callable[..., "Array"]


@dataclass(frozen=True)
class LossSpec:
    """A registered loss; call it as the function that it wraps.

    A loss may have a state: a pytree of arrays of fixed shapes that training carries from step to
    step with the parameters.

    Attributes:
      name: its kind, as `loss.<label>.kind` names it.
      fn: (logits_BC, targets_BC, step_fraction, *, weights_B, **options) -> float32 scalar; with
        `init_state` also `state`.
      options: name -> `Option`.
      coupled: whether a document's term depends on the other documents of its batch. The training
        step then computes the loss over the whole batch at once, whatever the microbatch or the
        mesh.
      traced: options that may be arrays; programs are shared between their values.
      case_of: (kind, options) of another loss that gives the same numbers, or None.
      init_state: (targets_NC, **options) -> state before the first step, made once on the host from
        the soft labels of all training documents (NumPy). None: no state.
      update: (state, logits_BC, targets_BC, *, weights_B, **options) -> state after a step, from
        the logits that the loss itself was given. None: the state never changes. Options that are
        left out have their defaults, in `init_state` too.
      summary: the definition in one line of Markdown.
      source: the paper or code that it is from.
      on_tokens: the loss of completions, (logits_RQV, targets_RQ, step_fraction, **options) ->
        float32 [R, Q], the term of each target token; it takes those of `options` that apply to
        tokens, as keywords. None: not defined on tokens.
      top_k_labels: whether `on_tokens` also takes the supervisor's distributions, `top_ids_RQk`
        (int32) and `top_logprobs_RQk` (float32), as keywords.
      two_classes: whether it is defined on two classes only.
      balanced_by: what makes it give each class a share of the batch, for which more than two
        classes need larger batches: an option, unless its value is 'argmax'; 'kind' where it always
        does; '': never.
    """

    name: str
    fn: LossFn
    options: Mapping[str, Option] = field(default_factory=dict)
    coupled: bool = True
    traced: tuple[str, ...] = ()
    case_of: tuple[str, dict[str, Any]] | None = None
    init_state: Callable[..., Any] | None = None
    update: Callable[..., Any] | None = None
    summary: str = ""
    source: str = ""
    on_tokens: LossFn | None = None
    top_k_labels: bool = False
    two_classes: bool = False
    balanced_by: str = ""

    @property
    def defaults(self) -> dict[str, Any]:
        """Option -> default."""
        return defaults(self.options)

    @property
    def token_options(self) -> tuple[str, ...]:
        """The options that apply to completions."""
        if self.on_tokens is None:
            return ()
        taken = inspect.signature(self.on_tokens).parameters
        return tuple(option for option in self.options if option in taken)

    def require_on_tokens(self, label: str, options: Mapping[str, Any]) -> None:
        """Refuse completions as labels of this loss if it is not defined on tokens.

        Args:
          label: the label of the loss in the config.
          options: option -> value.

        Raises:
          InputError: if it is not, or for an option that does not apply to tokens and has another
            value than its default.
        """
        if self.on_tokens is None:
            raise errors.InputError(
                f"loss.{label}.kind: {self.name!r} is defined on classes only, and the task asks "
                f"for completions; allowed: {', '.join(token_losses())}"
            )
        for option, value in options.items():
            default = self.defaults[option]
            if option not in self.token_options and value != default:
                raise errors.InputError(
                    f"loss.{label}.{option}: {value!r} does not apply to a task that asks for "
                    f"completions; leave it at {default!r}"
                )

    def require_classes(
        self, label: str, options: Mapping[str, Any], classes: int, batch_size: int
    ) -> None:
        """Refuse a number of classes that this loss, or its batches, cannot have.

        See `losses.check_classes`.
        """
        if classes <= 2:
            return
        if self.two_classes:
            allowed = (kind for kind, spec in LOSSES.items() if not spec.two_classes)
            raise errors.InputError(
                f"loss.{label}.kind: {self.name!r} is defined on two classes only, and the task "
                f"has {classes}; allowed: {', '.join(allowed)}"
            )
        field = self.balanced_by
        value = self.name if field == "kind" else {**self.defaults, **options}.get(field)
        if field and value != "argmax" and batch_size < 4 * classes:
            of_loss = "kind='confidence' with " if field == "kind" else ""
            unbalanced = "threshold" if field == "kind" else field
            raise errors.InputError(
                f"loss.{label}.{field}: {value!r} gives each of {classes} classes a share of a "
                f"batch, which needs train.batch_size of at least {4 * classes} (it is "
                f"{batch_size}); or use {of_loss}{unbalanced}='argmax'"
            )

    def __call__(
        self,
        logits_BC: "Array",
        targets_BC: "Array",
        step_fraction: "Array | float",
        *,
        weights_B: "Array | None" = None,
        state: Any = None,
        **options: Any,
    ) -> "Array":
        """Return the loss of a batch.

        Args:
          logits_BC: logits of the classes.
          targets_BC: soft labels in [0, 1]; column c is P(label c).
          step_fraction: step / total steps, from 0.
          weights_B: non-negative weights of the documents; None: all 1. A document of weight 0
            takes no part in anything.
          state: of a loss with a state, from `init_state` or `update`; None: an empty memory, or a
            statistic of this batch.
          **options: instead of their defaults.

        Returns:
          The weighted mean of the documents' terms, a float32 scalar.

        Raises:
          InputError: for a state of a loss that has none.
        """
        options = self.defaults | options
        if self.init_state is not None:
            options["state"] = state
        elif state is not None:
            raise errors.InputError(f"loss {self.name!r} has no state; leave state=None")
        return self.fn(logits_BC, targets_BC, step_fraction, weights_B=weights_B, **options)


@dataclass(frozen=True)
class PreferenceSpec:
    """A registered loss of pairs of completions; call it as the function that it wraps.

    It is a mean over documents, each a pair of texts (a prompt and a completion each), whose terms
    do not depend on each other.

    Attributes:
      name: its kind, as `loss.<label>.kind` names it.
      fn: (logp_B2, reference_B2, lengths_B2, preference_B, *, weights_B, **options) -> float32
        scalar.
      margin: (logp_B2, reference_B2, lengths_B2) -> float32 [B]: positive where the model takes the
        first completion for the better one.
      options: name -> `Option`.
      traced: options that may be arrays; programs are shared between their values.
      uses_reference: whether it reads `reference_B2`.
      summary: the definition in one line of Markdown.
      source: the paper or code that it is from.
    """

    name: str
    fn: LossFn
    margin: LossFn
    options: Mapping[str, Option] = field(default_factory=dict)
    traced: tuple[str, ...] = ()
    uses_reference: bool = False
    summary: str = ""
    source: str = ""

    @property
    def defaults(self) -> dict[str, Any]:
        """Option -> default."""
        return defaults(self.options)

    def __call__(
        self,
        logp_B2: "Array",
        reference_B2: "Array | None",
        lengths_B2: "Array",
        preference_B: "Array",
        *,
        weights_B: "Array | None" = None,
        **options: Any,
    ) -> "Array":
        """Return the loss of a batch.

        Args:
          logp_B2: summed log-probabilities of the target tokens of each completion.
          reference_B2: the same under the reference model; None only if `uses_reference` is False.
          lengths_B2: number of target tokens of each completion.
          preference_B: w in [0, 1], P(the first completion is the better one).
          weights_B: non-negative weights of the documents; None: all 1.
          **options: instead of their defaults.

        Returns:
          The weighted mean of the documents' terms, a float32 scalar.

        Raises:
          InputError: for a missing reference.
        """
        if self.uses_reference and reference_B2 is None:
            raise errors.InputError(f"loss {self.name!r} needs reference_B2")
        options = self.defaults | options
        return self.fn(
            logp_B2, reference_B2, lengths_B2, preference_B, weights_B=weights_B, **options
        )


@dataclass(frozen=True)
class MethodSpec:
    """A registered method: what it adds to a run with a naive student for each loss.

    Attributes:
      name: as `method.name` names it.
      plan: (planner, **options) -> {key in result.json: `Student`}; adds phases to `planner`, a
        `planning.plan.MethodPlanner`. Imports no JAX.
      options: name -> `Option`; the fields of `config.method.<name>`.
      label_makers: kind of a 'labels' phase -> (work, **options) -> labels, where `work` is a
        `phases.labelling.LabelWork`. The kinds are part of fingerprints.
      middle_models: the option that lists models between the weak and the strong one; '': none.
      kinds: the kinds of tasks that it works with.
      pairs: whether its students learn from pairs of completions, by a loss of `PREFERENCES`.
      two_classes: whether it is defined for two classes only.
      truth_of: the documents whose ground truth it uses beyond slice 1, validation and test:
        'slice2', 'ceiling' (the ceiling's slice), or ''.
      students: the keys of its students, in Markdown.
      summary: what it does, in one line of Markdown.
      source: the paper that it is from.
    """

    name: str
    plan: Callable[..., Any]
    options: Mapping[str, Option] = field(default_factory=dict)
    label_makers: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    middle_models: str = ""
    kinds: tuple[str, ...] = ("classification", "preference")
    pairs: bool = False
    two_classes: bool = False
    truth_of: Literal["", "ceiling", "slice2"] = ""
    students: str = ""
    summary: str = ""
    source: str = ""

    @property
    def defaults(self) -> dict[str, Any]:
        """Option -> default."""
        return defaults(self.options)


LOSSES: Table[LossSpec] = Table("loss")
PREFERENCES: Table[PreferenceSpec] = Table("preference loss")
METHODS: Table[MethodSpec] = Table("method")


def loss_kinds() -> tuple[str, ...]:
    """Return the kinds that `loss.<label>.kind` may name: of `LOSSES` and of `PREFERENCES`."""
    return (*LOSSES, *PREFERENCES)


def loss_named(kind: str, field: str) -> LossSpec | PreferenceSpec:
    """Return the declaration of a kind of loss.

    Raises:
      InputError: if there is none; with `field`, the nearest name, and all names.
    """
    if not isinstance(kind, str) or kind not in loss_kinds():
        raise errors.unknown(field, kind, loss_kinds())
    return PREFERENCES[kind] if kind in PREFERENCES else LOSSES[kind]


def token_losses() -> tuple[str, ...]:
    """Return the kinds of losses that are defined on the tokens of completions."""
    return tuple(kind for kind, spec in LOSSES.items() if spec.on_tokens is not None)


class _Defaults(Mapping[str, dict[str, Any]]):
    """A view of `LOSSES`: kind -> {option: default}."""

    def __getitem__(self, kind: str) -> dict[str, Any]:
        return LOSSES[kind].defaults

    def __iter__(self) -> Iterator[str]:
        return iter(LOSSES)

    def __len__(self) -> int:
        return len(LOSSES)


#: Kind of a loss -> its options with their defaults; None is the default of an optional float.
LOSS_OPTIONS: Mapping[str, dict[str, Any]] = _Defaults()
