"""What functions that plan methods have: builder, naive plan, and how students are made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from w2s_jax.config import LossSettings
from w2s_jax.core import errors
from w2s_jax.planning.plan import Plan, PlanBuilder, Student


@dataclass(frozen=True)
class Making:
    """What a method adds to: the builder, and the naive plan that it has made."""

    builder: PlanBuilder
    plan: Plan

    @property
    def losses(self) -> tuple[LossSettings, ...]:
        """Those for each of which a method trains its students."""
        return self.builder.settings.method_losses

    @property
    def label_splits(self) -> tuple[str, ...]:
        """What a supervisor labels: the student's slice, validation and test."""
        return ("slice2", *self.builder.evaluated)

    def size(self, split: str) -> int:
        """Documents of a split."""
        return len(self.builder.resolved.roles["strong"].splits[split])

    def student(
        self, method: str, labels: str, loss: LossSettings, *, supervisor: str = "", **more: Any
    ) -> Student:
        """A student of the strong model on the labels of slice 2 that a phase has made.

        `supervisor`: whose test labels it is held against, if that phase has none.
        """
        ceiling = more.pop("ceiling", self.plan.ceiling)
        phase = self.builder.trained(
            more.pop("kind", "student"),
            "strong",
            more.pop("split", "slice2"),
            loss=loss,
            parents={"labels": labels},
            label=f"{loss.label}+{method}",
            **more,
        )
        return Student(phase, loss.label, method, supervisor or labels, ceiling)

    def students(self, method: str, labels: str, **more: Any) -> dict[str, Student]:
        """One for each loss."""
        return {
            f"{loss.label}+{method}": self.student(method, labels, loss, **more)
            for loss in self.losses
        }


Students = dict[str, Student]
Method = Callable[[Making, dict[str, Any]], Students]


def require_full(builder: PlanBuilder, role: str, method: str) -> None:
    """Refuses a method where a role's model is not finetuned in full.

    Raises:
      InputError: see above.
    """
    adapt = builder.settings.roles[role].train.adapt
    if adapt != "full" or (role == "weak" and builder.settings.weak.labels is not None):
        found = f"{role}.train.adapt={adapt!r}" if adapt != "full" else "weak.labels is given"
        raise refused(method, found, f"a {role} model that is finetuned in full")


def require_label_tokens(making: Making, method: str) -> None:
    """Refuses a method where label tokens cannot follow the strong model's documents.

    Raises:
      InputError: for an encoder, or pairs of texts.
    """
    data = making.builder.resolved.roles["strong"]
    if not data.label_tokens:
        raise refused(method, f"{data.model.name} has no label tokens", "a decoder")
    if data.splits["test"].num_texts > 1:
        raise refused(method, "the documents are pairs of texts", "documents of one text")


def refused(method: str, found: str, allowed: str) -> errors.InputError:
    """The error for a method that something does not allow."""
    return errors.InputError(f"method.name: {method!r}, but {found}; allowed: {allowed}")
