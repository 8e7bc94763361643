"""How each role reads the texts of a task: its tokenizer, and the most tokens. No JAX."""

from w2s_jax.config import Settings, TaskSettings
from w2s_jax.core import errors
from w2s_jax.data.feature_sources import PREFIX
from w2s_jax.data.loading import LoadedTask
from w2s_jax.data.task import Task
from w2s_jax.data.tokenizers import Tokenizer, load_tokenizer
from w2s_jax.models import sources
from w2s_jax.models.sources import ModelSource
from w2s_jax.planning.tokenized_splits import Reader


def reader_of(
    role: str, loaded: LoadedTask, source: ModelSource | None, settings: Settings, notes: list[str]
) -> Reader:
    task = loaded.task
    limit, overlong = settings.task.max_length, settings.task.overlong
    if settings.roles[role].model.startswith(PREFIX):
        return Reader(task, None, None, overlong, task.truncate, loaded.empty, tokenizes=False)
    tokenizer = _tokenizer(role, task, source, settings)
    if source is not None:
        if tokenizer is None:
            _check_vocabulary(role, task, source)
        else:
            ends = task.generates or settings.roles[role].pretrain.source is not None
            end = tokenizer.end_of_text if ends else None
            needed = max(tokenizer.text_vocab_size, 0 if end is None else end + 1)
            sources.check_fits(source, needed, tokenizer.name)
            if tokenizer.vocab_size > source.config.vocab_size:
                notes.append(
                    f"{role}: {tokenizer.name} has special tokens for which {source.name} has no "
                    "row; no text has them"
                )
        longest = source.config.max_positions
        if source.config.positions == "learned" and (limit is None or limit > longest):
            notes.append(f"{role}: documents are limited to the {longest} tokens of {source.name}")
            limit = longest
    truncate = settings.task.truncate or task.truncate
    return Reader(task, tokenizer, limit, overlong, truncate, loaded.empty)


def _tokenizer(
    role: str, task: Task, source: ModelSource | None, settings: Settings
) -> Tokenizer | None:
    """Return the tokenizer of a role's texts; None if the task's documents are tokens."""
    given = settings.roles[role].tokenizer
    if task.token_space is not None:
        field = "task.tokenizer" if given is None else f"{role}.tokenizer"
        if (given or settings.task.tokenizer) != TaskSettings.tokenizer:
            raise errors.InputError(
                f"{field}: {given or settings.task.tokenizer!r}, but the documents of task "
                f"{task.name!r} are tokens already; leave it at {TaskSettings.tokenizer!r}"
            )
        return None
    if given is None and source is None:
        name = settings.task.tokenizer
        own = task.tokenizer if name == TaskSettings.tokenizer else None
        return load_tokenizer(own or name)
    if given is None and source is not None and source.tokenizer is not None:
        given = str(source.tokenizer)
    if given is None:
        raise errors.InputError(
            f"{role}.tokenizer: None, but {settings.roles[role].model} has no tokenizer.json; give "
            "'bytes', or a folder, file or hub id of a fast Hugging Face tokenizer"
        )
    try:
        return load_tokenizer(given)
    except errors.InputError as error:
        reason = str(error).removeprefix("task.tokenizer: ")
        raise errors.InputError(f"{role}.tokenizer: {reason}") from error


def _check_vocabulary(role: str, task: Task, source: ModelSource) -> None:
    """Check that a model has all tokens of a task whose documents are tokens."""
    assert task.token_space is not None
    if source.config.vocab_size < task.token_space.vocab_size:
        raise errors.InputError(
            f"{role}.model: {source.given} has a vocabulary of {source.config.vocab_size} tokens; "
            f"task {task.name!r} needs at least {task.token_space.vocab_size}"
        )
