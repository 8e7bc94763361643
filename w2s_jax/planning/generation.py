"""Runs of generation tasks: what completions need, and what such tasks do not allow. No JAX."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from w2s_jax.config import LOSSES, METHODS, PREFERENCES, LossSettings, Settings
from w2s_jax.core import errors
from w2s_jax.data import judging
from w2s_jax.data.documents import Document
from w2s_jax.data.task import Task
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.data.tokenizers import Tokenizer
from w2s_jax.models.config import ModelConfig
from w2s_jax.planning.phase import Completion

#: What of a model that generates can be trained.
ADAPTS = ("full", "lora", "last_layers")


def compares_distributions(loss: LossSettings) -> bool:
    """Return whether a loss on completions takes the supervisor's distributions."""
    return loss.kind not in PREFERENCES and LOSSES[loss.kind].top_k_labels


def completion_of(
    tokenizer: Tokenizer, splits: Mapping[str, TokenizedDocuments], max_new_tokens: int | None
) -> Completion:
    """Return how a role completes prompts.

    Args:
      tokenizer: the role's.
      splits: its documents, prompts with their targets.
      max_new_tokens: the setting; None: those of the longest target of a slice, and its end.
    """
    assert tokenizer.end_of_text is not None  # or the documents could not have been tokenised
    if max_new_tokens is None:
        slices = [documents for name, documents in splits.items() if name.startswith("slice")]
        max_new_tokens = max(int(completion_lengths(documents).max()) for documents in slices)
    return Completion(tokenizer.end_of_text, max_new_tokens)


def completion_lengths(documents: TokenizedDocuments) -> np.ndarray:
    """Return the number of tokens of each completion, its end included, int64 [N * K]."""
    assert documents.prompt_lengths_P is not None
    return documents.piece_lengths_P - documents.prompt_lengths_P


def longest_completed(splits: Mapping[str, TokenizedDocuments], completion: Completion) -> int:
    """Return the most tokens that a prompt and its completion may have together."""
    prompts = [documents.prompt_lengths_P for documents in splits.values()]
    return completion.max_new_tokens + max(int(p.max()) for p in prompts if p is not None)


def check_room(
    role: str,
    model: ModelConfig,
    splits: Mapping[str, TokenizedDocuments],
    completion: Completion,
) -> None:
    """Check that a model with learned positions has room for all prompts and completions.

    Raises:
      InputError: it has not.
    """
    needed = longest_completed(splits, completion)
    if model.positions == "learned" and needed > model.max_positions:
        new = completion.max_new_tokens
        room = model.max_positions - new
        advice = f"set task.max_length to at most {room}, or " if room >= 3 else ""
        raise errors.InputError(
            f"task.max_new_tokens: {new} after a prompt of {needed - new} tokens exceed the "
            f"{model.max_positions} positions of {role}.model={model.name}; {advice}lower "
            "task.max_new_tokens"
        )


def check(task: Task, settings: Settings, models: Mapping[str, ModelConfig]) -> None:
    """Check that models, losses and methods of a run suit a generation task.

    Args:
      task: the task.
      settings: of the run.
      models: role -> model.

    Raises:
      InputError: for an encoder, a probe, a loss that is about classes, or settings of
        distributions that do not go together.
    """
    for role, model in models.items():
        own = settings.roles[role]
        if model.bidirectional:
            raise errors.InputError(
                f"{role}.model: {model.name} is an encoder, which generates no text; task "
                f"{task.name!r} needs a decoder"
            )
        if own.train.adapt not in ADAPTS:
            raise errors.InputError(
                f"{role}.train.adapt: {own.train.adapt!r} trains a class head, which task "
                f"{task.name!r} does not have; allowed: {', '.join(ADAPTS)}"
            )
        if own.train.label_smoothing:
            raise errors.InputError(
                f"{role}.train.label_smoothing: {own.train.label_smoothing!r}; allowed for task "
                f"{task.name!r}: 0, as it smooths classes"
            )
        if own.train.head_bias:
            raise errors.InputError(
                f"{role}.train.head_bias: True; allowed for task {task.name!r}: False, as it has "
                "no class head"
            )
    for loss in settings.losses:
        _check_loss(loss, settings)


def check_unused(task: Task, settings: Settings) -> None:
    """Refuse settings of completions for a task with classes.

    Raises:
      InputError: one is set.
    """
    given = settings.task
    fields: dict[str, tuple[Any, Any]] = {
        "task.max_new_tokens": (given.max_new_tokens, None),
        "task.label_top_k": (given.label_top_k, 0),
    }
    fields |= {
        f"{role}.train.token_weighting": (own.train.token_weighting, "token")
        for role, own in settings.roles.items()
    }
    for field, (value, default) in fields.items():
        if value != default:
            raise errors.InputError(
                f"{field}: {value!r}, but task {task.name!r} asks for classes, not completions; "
                f"leave it at {default!r}"
            )


def check_functions(task: Task, documents: Mapping[str, Sequence[Document]]) -> None:
    """Call a task's functions on documents, before any work: with their targets as completions.

    All targets must have an answer. `correct` and `scores` are tried on the first document of each
    split.

    Raises:
      InputError: one has none, a function raises an exception, or returns something else than it
        should.
    """
    for own in documents.values():
        for number, document in enumerate(own):
            answer = judging.answer_of(task, document.target or "")
            if not answer:
                raise errors.InputError(
                    f"{document.name}: task {task.name!r} finds no answer in the target "
                    f"{errors.shown(document.target)}"
                )
            if number == 0:
                judging.is_right(task, answer, document)
                judging.scores_of(task, answer, document)


def with_judged(task: Task, digest: str, documents: Sequence[Document]) -> str:
    """Return the digest of a split, with what else of its documents functions of the task read.

    Args:
      task: the task.
      digest: that of the tokenised documents.
      documents: the split's.
    """
    if task.correct is None and not task.scores:
        return digest
    sha = hashlib.sha256(digest.encode())
    for document in documents:
        meta = sorted((str(name), repr(value)) for name, value in document.meta.items())
        sha.update(repr((document.id, document.text, document.target, meta)).encode())
    return sha.hexdigest()


def check_methods(task: Task, settings: Settings) -> None:
    """Check that the methods of a run work with the kind of its task.

    Raises:
      InputError: one does not.
    """
    for method in settings.methods:
        if task.kind not in METHODS[method.kind].kinds:
            able = [name for name, spec in METHODS.items() if task.kind in spec.kinds]
            about = "classes" if task.generates else "completions"
            raise errors.InputError(
                f"method.name: {method.kind!r} is about {about}; allowed for task {task.name!r}: "
                f"{', '.join(able)}"
            )


def _check_loss(loss: LossSettings, settings: Settings) -> None:
    if loss.kind in PREFERENCES:
        return
    LOSSES[loss.kind].require_on_tokens(loss.label, dict(loss.options))
    if compares_distributions(loss):
        if not settings.task.label_top_k:
            raise errors.InputError(
                f"task.label_top_k: 0, but the loss {loss.label!r} compares with the supervisor's "
                "distributions; give the number of tokens to store, such as 20"
            )
        if loss.kind == "reverse_kl" and settings.task.label_top_k < 2:
            raise errors.InputError(
                f"task.label_top_k: 1, but the loss {loss.label!r} compares shares of the stored "
                "tokens, of which there must be at least 2"
            )
        if settings.weak.labels is not None:
            raise errors.InputError(
                f"losses: {loss.label!r} needs the supervisor's distributions, which the file "
                "weak.labels does not have"
            )


def check_tokenizers(settings: Settings, tokenizers: Mapping[str, Tokenizer | None]) -> None:
    """Check that all roles have one tokenizer where losses compare distributions over its tokens.

    Raises:
      InputError: they have not, or it has fewer tokens than a distribution is to have.
    """
    stored, tokenizer = settings.task.label_top_k, tokenizers["weak"]
    if tokenizer is not None and stored > tokenizer.vocab_size:
        raise errors.InputError(
            f"task.label_top_k: {stored}; allowed: at most {tokenizer.vocab_size}, the tokens of "
            f"{tokenizer.name}"
        )
    of_weak = tokenizers["weak"]
    for loss in settings.losses:
        for role, tokenizer in tokenizers.items():
            assert tokenizer is not None and of_weak is not None
            if compares_distributions(loss) and tokenizer.digest != of_weak.digest:
                raise errors.InputError(
                    f"losses: {loss.label!r} compares distributions over the tokens of one "
                    f"tokenizer, but {role} has {tokenizer.name} and weak has {of_weak.name}"
                )
