"""Declarations of losses and methods, and the tables of them. Imports no JAX.

`losses.register` and `methods.register` add to the tables. The default config, validation,
planning, training and the tables of the documentation read these declarations.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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

    @property
    def defaults(self) -> dict[str, Any]:
        """Option -> default."""
        return defaults(self.options)

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
          logits_BC: logits of two classes.
          targets_BC: soft labels in [0, 1]; column 1 is P(label 1).
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
    students: str = ""
    summary: str = ""
    source: str = ""

    @property
    def defaults(self) -> dict[str, Any]:
        """Option -> default."""
        return defaults(self.options)


LOSSES: Table[LossSpec] = Table("loss")
METHODS: Table[MethodSpec] = Table("method")


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
