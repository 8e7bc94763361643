"""Registration of methods, and refusals of those that a run does not allow."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from w2s_jax.config.declarations import METHODS, MethodSpec
from w2s_jax.config.options import declared
from w2s_jax.core import errors
from w2s_jax.planning.plan import MethodPlanner, PlanBuilder, Student

if TYPE_CHECKING:
    from w2s_jax.phases.labelling import LabelMaker

#: Key in result.json -> the student.
Students = dict[str, Student]
PlanFn = Callable[..., Students]


def register(
    name: str,
    *,
    label_makers: "Mapping[str, LabelMaker] | None" = None,
    middle_models: str = "",
    kinds: tuple[str, ...] = ("classification", "preference"),
    pairs: bool = False,
    two_classes: bool = False,
    students: str = "",
    summary: str = "",
    source: str = "",
    **options: Any,
) -> Callable[[PlanFn], PlanFn]:
    """Return a decorator that registers the planning function of a method under `name`.

    The function is called as `plan(planner, **options)` with a `MethodPlanner`, adds phases to it,
    and returns its students by their keys in result.json. It must import no JAX.

    Args:
      name: as `method.name` names it.
      label_makers: kind of a 'labels' phase -> function (work, **options) -> labels, where `work`
        is a `LabelWork` and the options are those given to `PlanBuilder.labels`. The kinds are part
        of fingerprints.
      middle_models: the option that lists models between the weak and the strong one, whose roles
        are then 'middle1', ...; there is one more slice for each. '': none.
      kinds: the kinds of tasks that it works with.
      pairs: whether its students learn from pairs of completions, by `dpo` or `orpo`.
      two_classes: whether it is defined for two classes only.
      students: the keys of its students, for the documentation.
      summary: what it does, for the documentation; '': the first line of the docstring.
      source: the paper that it is from.
      **options: an `Option`, or just the default, of each field of `config.method.<name>`.

    Raises:
      InputError: if the name, or the kind of a label maker, is taken.
    """
    makers = dict(label_makers or {})
    for kind in makers:
        if any(kind in spec.label_makers for spec in METHODS.values()):
            raise errors.InputError(f"methods.register: label maker {kind!r} is already registered")

    def wrap(plan: PlanFn) -> PlanFn:
        METHODS.add(
            MethodSpec(
                name=name,
                plan=plan,
                options=declared(options),
                label_makers=makers,
                middle_models=middle_models,
                kinds=kinds,
                pairs=pairs,
                two_classes=two_classes,
                students=students,
                summary=summary or (plan.__doc__ or "").partition("\n")[0],
                source=source,
            )
        )
        return plan

    return wrap


def require_network(builder: PlanBuilder, role: str, method: str) -> None:
    """Refuse a method where a role's model is features of documents.

    Raises:
      InputError: see above.
    """
    model = builder.resolved.roles[role].model
    if model.is_features:
        raise refused(
            method, f"a {role} model with a network", f"{role}.model={model.name} is features alone"
        )


def require_full(builder: PlanBuilder, role: str, method: str) -> None:
    """Refuse a method where a role's model is not finetuned in full.

    Raises:
      InputError: see above.
    """
    require_network(builder, role, method)
    adapt = builder.settings.roles[role].train.adapt
    if adapt != "full" or (role == "weak" and builder.settings.weak.labels is not None):
        found = f"{role}.train.adapt={adapt!r}" if adapt != "full" else "weak.labels is given"
        raise refused(method, f"a {role} model that is finetuned in full", found)


def require_slice1(builder: PlanBuilder, method: str) -> None:
    """Refuse a method that uses ground truth of slice 1 where there is no such slice.

    Raises:
      InputError: see above.
    """
    if "slice1" not in builder.settings.slices:
        raise refused(
            method, "ground truth of slice 1", "protocol.halves=none gives all to the student"
        )


def require_validation(builder: PlanBuilder, method: str) -> None:
    """Refuse a method where there is no validation set.

    Raises:
      InputError: see above.
    """
    if "validation" not in builder.evaluated:
        raise refused(method, "a validation set", "set task.validation_docs above 0")


def require_label_tokens(planner: MethodPlanner, method: str) -> None:
    """Refuse a method where label tokens cannot follow the strong model's documents.

    Raises:
      InputError: for an encoder, or pairs of texts.
    """
    require_network(planner.builder, "strong", method)
    data = planner.builder.resolved.roles["strong"]
    if data.model.bidirectional:
        raise refused(method, "a decoder", f"{data.model.name} has no label tokens")
    if not data.label_tokens:
        found = "names of classes begin with the same token of the strong model's tokenizer"
        raise refused(method, "a token for each class", found)
    if data.splits["test"].num_texts > 1:
        raise refused(method, "documents of one text", "these are pairs")


def refused(method: str, needed: str, found: str) -> errors.InputError:
    """Return the error for a method that the rest of the config does not allow."""
    return errors.InputError(f"method.name: {method!r} needs {needed}; {found}")
