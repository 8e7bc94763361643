"""The templates of a run: the one of all models, and those that methods average over. No JAX."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from w2s_jax.config import METHODS, MethodSettings, Settings
from w2s_jax.config.options import Option
from w2s_jax.core import errors
from w2s_jax.data.documents import Document
from w2s_jax.data.task import Task
from w2s_jax.data.templated import NoRoom, class_tokens, separator, swapped, tokenize_inside
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models.config import ModelConfig
from w2s_jax.planning import classes
from w2s_jax.planning.tokenized_splits import Reader

#: The option of methods that can average over templates.
TEMPLATES = Option(
    "all",
    choices=("all", "task"),
    meaning="Read the documents inside each template of the task, and average; or (task) as all "
    "models do, by `task.template`",
)


@dataclass(frozen=True)
class Prompts:
    """The documents of a run inside a template.

    Attributes:
      splits: by name, with the documents and the ids of the run's own splits.
      label_tokens: the token that stands for each class after a prompt; () if there are none.
      answers: the tokens after a solved example, for each class.
      swapped: whether pairs are shown in the other order, so that label 1 is the first one.
    """

    splits: Mapping[str, TokenizedDocuments]
    label_tokens: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    swapped: bool = False


def names_of(choice: str, task: Task, settings: Settings) -> tuple[str, ...]:
    """Return the templates over which a method averages; () if it reads documents as all models do.

    Args:
      choice: a value of the option `TEMPLATES`.
      task: the task.
      settings: of the run.
    """
    if choice == "all" and task.templates:
        return tuple(task.templates)
    return () if settings.task.template is None else (settings.task.template,)


def averaging(settings: Settings) -> tuple[MethodSettings, ...]:
    """Return the methods of a run that can average over templates, with that option alone."""
    return tuple(
        MethodSettings(method.kind, (("templates", dict(method.options)["templates"]),))
        for method in settings.methods
        if METHODS[method.kind].options.get("templates") is TEMPLATES
    )


def prompts_of(
    reader: Reader,
    model: ModelConfig,
    splits: Mapping[str, TokenizedDocuments],
    raw: Mapping[str, Sequence[Document]],
    settings: Settings,
    notes: list[str],
) -> dict[str, tuple[Prompts, ...]]:
    """Return the documents inside each template that a method of the run reads.

    Texts are cut where the template's words leave too little room: within `task.max_length`, and
    within the positions of a model that has learned them, one of which a label's token takes.

    Args:
      reader: of the strong model.
      model: the strong model.
      splits: its documents.
      raw: the same as texts.
      settings: of the run.
      notes: what is averaged over, and how many texts are cut, is appended.

    Returns:
      Name of a template -> the prompts; of pairs twice, the second with swapped texts.

    Raises:
      InputError: a template leaves no room for a text.
    """
    task = reader.task
    readers: dict[str, list[str]] = {}
    for method in averaging(settings):
        for name in names_of(dict(method.options)["templates"], task, settings):
            readers.setdefault(name, []).append(method.kind)
    if model.bidirectional or reader.tokenizer is None:
        return {}
    limits = [] if settings.task.max_length is None else [settings.task.max_length]
    spare = int(model.positions == "learned")
    if spare:
        limits.append(model.max_positions - spare)
    limit = min(limits, default=None)
    found = {}
    for name in readers:
        try:
            found[name] = _prompts(replace(reader, limit=limit), name, splits, raw, notes)
        except NoRoom as error:
            raise errors.InputError(
                f"task.max_length: the template {name!r} of task {task.name!r} leaves no room for "
                f"a text within {error.limit} tokens; allowed: at least {error.least + spare}, or "
                + ", ".join(f"method.{kind}.templates='task'" for kind in readers[name])
            ) from error
    kinds: dict[str, list[str]] = {}
    for name, own in readers.items():
        for kind in own:
            kinds.setdefault(kind, []).append(name)
    both = ", in both orders" if task.num_texts == 2 else ""
    notes += [
        f"{kind}: documents inside {'the template' if len(own) == 1 else 'the templates'} "
        f"{', '.join(own)}{both}{', averaged' if len(own) > 1 or both else ''}"
        for kind, own in kinds.items()
    ]
    return found


def _prompts(
    reader: Reader,
    name: str,
    splits: Mapping[str, TokenizedDocuments],
    raw: Mapping[str, Sequence[Document]],
    notes: list[str],
) -> tuple[Prompts, ...]:
    tokenizer, task, template = reader.tokenizer, reader.task, reader.task.templates[name]
    assert tokenizer is not None
    if template.classes:
        tokens = class_tokens(template, tokenizer)
        label_tokens, answers = tokens.label_tokens, tokens.answers
    else:
        label_tokens = classes.label_tokens("strong", task, tokenizer, [])
        answers = tuple((token,) for token in label_tokens)
    after = separator(tokenizer)
    answers = tuple((*answer, *after) for answer in answers)
    found, cut = [], []
    for in_other_order in (False, True) if task.num_texts == 2 else (False,):
        made = {}
        for split, documents in splits.items():
            if split == "pretrain":
                continue
            made[split], counts = tokenize_inside(
                swapped(raw[split]) if in_other_order else raw[split],
                tokenizer,
                template=template,
                max_length=reader.limit,
                overlong="truncate",
                truncate=reader.truncate,
                num_classes=task.num_classes,
            )
            assert (made[split].ids_N == documents.ids_N).all()
            if counts["truncated"] and not in_other_order:
                cut.append(f"{counts['truncated']:,} of {counts['documents']:,} of {split}")
        found.append(Prompts(made, label_tokens, answers, in_other_order))
    if cut:
        notes.append(
            f"template {name!r}: texts are cut to fit within {reader.limit} tokens (by "
            f"task.max_length or the model's positions) in {', '.join(cut)}"
        )
    return tuple(found)


def digest(prompts: Sequence[Prompts]) -> str:
    """Return the SHA-256 (hexadecimal) of everything of a template that can change a result."""
    sha = hashlib.sha256()
    for own in prompts:
        digests = {name: documents.digest() for name, documents in sorted(own.splits.items())}
        sha.update(repr((digests, own.label_tokens, own.answers, own.swapped)).encode())
    return sha.hexdigest()
