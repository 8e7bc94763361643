"""What a run would work on, as far as its programs depend on it, without having it. No JAX.

Models that are known by name are taken as their ladder describes them, and documents are made up:
all of one length. Nothing is downloaded, and no weights are read.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from w2s_jax.config import Settings
from w2s_jax.core import errors
from w2s_jax.data.tasks import get_task
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.data.tokenizers import load_tokenizer
from w2s_jax.models import ladders
from w2s_jax.models.config import EMBEDDED_MODELS, ModelConfig, embedded_model
from w2s_jax.models.sources import ModelSource
from w2s_jax.perf.workloads import VOCABULARY
from w2s_jax.planning.resolve import Resolved, RoleInput, resolve
from w2s_jax.planning.role_settings import check_model, with_defaults

#: Documents of a task that is not there, and of its test and validation splits.
DOCUMENTS, TEST_DOCUMENTS, VALIDATION_DOCUMENTS = 20_000, 1_000, 500
#: Tokens of each of them, where neither the command nor `task.max_length` says.
TOKENS = 256
#: Chunks of pretraining text that is not there.
CHUNKS = 10_000


def find_inputs(settings: Settings, documents: int | None, tokens: int | None) -> Resolved:
    """What the run of a config works on, real or made up.

    It is read as a run reads it if nothing is asked to be made up and all models are there, or are
    made by the run itself.

    Args:
      settings: the config.
      documents: how many to make up; None: the task's own, or `DOCUMENTS`.
      tokens: of each of them.

    Raises:
      InputError: a model is neither known, embedded nor there; data are bad; a document is longer
        than the model takes.
    """
    made_up = documents is not None or tokens is not None
    if not made_up and all(_is_here(role.model) for role in settings.roles.values()):
        try:
            return resolve(settings)
        except errors.InputError as error:
            raise errors.InputError(
                f"{error}; w2s compile needs no data with --documents=N --tokens=L"
            ) from error
    tokens = tokens or settings.task.max_length or TOKENS
    documents = documents or settings.task.train_docs or DOCUMENTS
    sources = {name: _source(name, role.model) for name, role in settings.roles.items()}
    for name, source in sources.items():
        check_model(name, source, settings)
    roles = {
        name: _role_input(name, sources[name], settings, documents, tokens) for name in sources
    }
    weak, *middle, strong = (
        with_defaults(settings.roles[name], data.model) for name, data in roles.items()
    )
    settings = dataclasses.replace(settings, weak=weak, strong=strong, middle=tuple(middle))
    note = f"documents made up: {documents:,} of {tokens} tokens each; all tokens of a vocabulary"
    return Resolved(settings, roles, (note,))


def is_made_up(resolved: Resolved) -> bool:
    """Whether the documents are."""
    return resolved.notes[0].startswith("documents made up")


def _is_here(model: str) -> bool:
    return model in EMBEDDED_MODELS or Path(model).expanduser().is_dir()


def _source(role: str, model: str) -> ModelSource | None:
    """What is known of a model; None for an embedded one."""
    if model in EMBEDDED_MODELS:
        return None
    if _is_here(model):
        from w2s_jax.models import sources

        return sources.find(model)
    known = ladders.find(model)
    if known is None:
        every = [*EMBEDDED_MODELS, *(name.rpartition("/")[2] for name in ladders.KNOWN)]
        match = errors.nearest(model.rpartition("/")[2], every)
        hint = f" (did you mean {match!r}?)" if match else ""
        raise errors.InputError(
            f"{role}.model: {model!r}{hint}; allowed in w2s compile: a folder, or a name that "
            "w2s models lists"
        )
    digest = hashlib.sha256(known.name.encode()).hexdigest()
    name = known.name.rpartition("/")[2]
    return ModelSource(model, name, Path(model), known.config(), digest, None, None)


def _role_input(
    role: str, source: ModelSource | None, settings: Settings, documents: int, tokens: int
) -> RoleInput:
    own, task = settings.roles[role], get_task(settings.task.name, settings.task.data_dir)
    vocabulary = VOCABULARY
    if task.token_space is not None:
        vocabulary = task.token_space.vocab_size
    elif (own.tokenizer or settings.task.tokenizer) == "bytes":
        vocabulary = load_tokenizer("bytes").vocab_size
    if source is None:
        longest = max(tokens, own.pretrain.chunk_length if own.pretrain.source else 0)
        model = embedded_model(own.model, vocab_size=vocabulary, max_positions=longest)
    else:
        model = dataclasses.replace(source.config, name=source.name)
    if own.read_out is not None:
        model = dataclasses.replace(model, read_out=own.read_out)
    if model.positions == "learned" and tokens > model.max_positions:
        raise errors.InputError(
            f"--tokens: {tokens}; allowed with {model.name}: at most its {model.max_positions} "
            "positions"
        )
    sizes = {
        f"slice{number}": documents // settings.num_slices
        for number in range(1, settings.num_slices + 1)
    }
    validation = settings.task.validation_docs
    sizes["validation"] = VALIDATION_DOCUMENTS if validation is None else validation
    sizes["test"] = settings.task.test_docs or TEST_DOCUMENTS
    splits = {
        name: made_up_documents(model, count, tokens, task.num_texts)
        for name, count in sizes.items()
        if count
    }
    if own.pretrain.source is not None:
        splits["pretrain"] = made_up_documents(model, CHUNKS, own.pretrain.chunk_length)
    for name, part in splits.items():
        settings_of = own.pretrain if name == "pretrain" else own.train
        if name.startswith(("slice", "pretrain")) and len(part) < settings_of.batch_size:
            raise errors.InputError(
                f"--documents: {documents}, {len(part)} of them in {name}; allowed: enough for a "
                f"batch of {settings_of.batch_size} in each"
            )
    # What the digests are of does not matter, only that splits differ.
    digests = {name: f"{name}:{len(part)}:{tokens}" for name, part in splits.items()}
    head_init = "zeros" if model.bidirectional else settings.protocol.head_init
    label_tokens = () if model.bidirectional else (0, 1)
    return RoleInput(
        model, source, None, label_tokens, head_init, (), (), splits, {}, digests
    )  # fmt: skip


def made_up_documents(
    model: ModelConfig, count: int, tokens: int, num_texts: int = 1
) -> TokenizedDocuments:
    """`count` documents of `num_texts` texts of so many tokens, half of them with label 1.

    The tokens run through the whole vocabulary.
    """
    total = count * num_texts * tokens
    return TokenizedDocuments(
        ids_N=np.arange(count, dtype=np.uint64),
        tokens_T=np.arange(total, dtype=np.int32) % model.vocab_size,
        offsets=np.arange(0, total + 1, tokens, dtype=np.int64),
        labels_N=(np.arange(count) % 2).astype(np.float32),
        num_texts=num_texts,
    )
