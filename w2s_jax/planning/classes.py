"""Checks of a task with classes, and the tokens that stand for them. Imports no JAX."""

from collections.abc import Mapping

import numpy as np

from w2s_jax.config import METHODS, Settings
from w2s_jax.core import errors
from w2s_jax.data.task import Task, TokenSpace
from w2s_jax.data.templated import class_tokens
from w2s_jax.data.templates import Template
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.data.tokenizers import Tokenizer
from w2s_jax.losses import check_classes


def check(task: Task, settings: Settings) -> None:
    """Check that losses and methods of a run work with a task's number of classes.

    Raises:
      InputError: one of them needs two classes, or larger batches.
    """
    if task.generates or task.num_classes == 2:
        return
    batch_size = min(own.train.batch_size for role, own in settings.roles.items() if role != "weak")
    for loss in settings.losses:
        check_classes(
            loss.label,
            loss.kind,
            dict(loss.options),
            classes=task.num_classes,
            batch_size=batch_size,
        )
    for method in settings.methods:
        if METHODS[method.kind].two_classes:
            able = [name for name, spec in METHODS.items() if not spec.two_classes]
            raise errors.InputError(
                f"method.name: {method.kind!r} works with two classes, and task {task.name!r} has "
                f"{task.num_classes}; allowed: {', '.join(able)}"
            )


def check_present(name: str, truth_N: np.ndarray, num_classes: int) -> None:
    """Check that the documents of a split do not all have the same class.

    Args:
      name: of the split.
      truth_N: the class of each document, NaN for ties and without a label.
      num_classes: of the task.

    Raises:
      InputError: they do, or are all ties.
    """
    found = np.unique(truth_N[~np.isnan(truth_N)]).tolist()
    if len(found) < 2:
        those = f"have label {found[0]:g}" if found else "are ties"
        needed = "labels 0 and 1 are both needed" if num_classes == 2 else "several are needed"
        raise errors.InputError(f"task.name: all documents of {name} {those}; {needed}")


def note_missing(splits: Mapping[str, TokenizedDocuments], task: Task, notes: list[str]) -> None:
    """Note, of more than two classes, which no document has, and which a slice lacks but test has.

    Args:
      splits: the documents of a role.
      task: the task.
      notes: lines for the user, to which the notes are added.
    """
    if task.generates or task.num_classes == 2:
        return
    slices = {name: docs.truth_N for name, docs in splits.items() if name.startswith("slice")}
    test_N = splits["test"].truth_N
    test = set(test_N[~np.isnan(test_N)].astype(int).tolist())
    unused = set(range(task.num_classes)) - test
    for name, truth_N in slices.items():
        unused -= set(truth_N[~np.isnan(truth_N)].astype(int).tolist())
        missing = sorted(test.difference(truth_N.tolist()))
        if missing:
            names = ", ".join(task.classes[c] for c in missing)
            notes.append(f"{name}: no document of classes that test has: {names}")
    if unused:
        names = ", ".join(task.classes[c] for c in sorted(unused))
        notes.append(f"no document of slices and test has the classes {names}")


def label_tokens(
    role: str,
    task: Task,
    tokenizer: Tokenizer | None,
    notes: list[str],
    template: Template | None = None,
) -> tuple[int, ...]:
    """Return the token that stands for each class.

    They are those of the words of a template with words. Without, of two classes they are those of
    '0' and '1', of more the first token of each class's name.

    Returns:
      () if two names or words begin with the same token, which is noted.

    Raises:
      InputError: a tokenizer has no single token for '0' or '1'.
    """
    vocabulary: TokenSpace | Tokenizer | None = task.token_space or tokenizer
    assert vocabulary is not None
    if template is not None and template.classes:
        assert tokenizer is not None
        found = class_tokens(template, tokenizer).label_tokens
        if not found:
            notes.append(f"{role}: {_alike('words of the template')}")
        return found
    if task.num_classes == 2 or tokenizer is None:
        return tuple(vocabulary.label_tokens)
    tokens_T, lengths_C = tokenizer.encode_batch(task.classes)
    starts_C = np.cumsum(lengths_C) - lengths_C
    if (lengths_C == 0).any():
        tokens: list[int] = []
    else:
        tokens = tokens_T[starts_C].tolist()
    if len(set(tokens)) == task.num_classes:
        return tuple(tokens)
    notes.append(f"{role}: {_alike('names of classes')}")
    return ()


def _alike(what: str) -> str:
    return (
        f"{what} begin with the same token, so that none stands for a class: its head starts from "
        "zeros"
    )
