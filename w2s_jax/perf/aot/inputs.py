"""Inputs of a run for `w2s compile`, real or synthetic. No JAX.

Known models have the architecture of their ladder, and synthetic documents all have one length.
Nothing is downloaded, and no weights are read.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from w2s_jax.config import Settings
from w2s_jax.core import errors
from w2s_jax.data.classes import refuse_classes
from w2s_jax.data.feature_sources import PREFIX
from w2s_jax.data.task import Task
from w2s_jax.data.tasks import TASKS, get_task
from w2s_jax.data.templates import find_template
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.data.tokenizers import load_tokenizer
from w2s_jax.models import ladders
from w2s_jax.models.config import EMBEDDED_MODELS, ModelConfig, embedded_model
from w2s_jax.models.image_models import IMAGE_MODELS
from w2s_jax.models.locations import split_layers, truncated, with_layers
from w2s_jax.models.sources import ModelSource
from w2s_jax.perf.workloads import VOCABULARY
from w2s_jax.planning import classes, generation
from w2s_jax.planning.phase import Completion
from w2s_jax.planning.resolve import Resolved, resolve
from w2s_jax.planning.role_inputs import RoleInput
from w2s_jax.planning.role_settings import check_model, with_defaults, with_read_out_layers
from w2s_jax.planning.templates import Prompts

#: Synthetic documents of a task's training, test and validation splits.
DOCUMENTS, TEST_DOCUMENTS, VALIDATION_DOCUMENTS = 20_000, 1_000, 500
#: Their length in tokens if neither the command nor `task.max_length` sets it.
TOKENS = 256
#: Share of a synthetic document of a generation task that is its completion, unless
#: `task.max_new_tokens` sets its tokens.
COMPLETION_SHARE = 0.5
#: Chunks of synthetic pretraining text.
CHUNKS = 10_000

_SYNTHETIC = "synthetic documents: "


def find_inputs(settings: Settings, documents: int | None, tokens: int | None) -> Resolved:
    """Return the inputs of a run.

    They are real if neither `documents` nor `tokens` is given and all models are folders or
    embedded ones; otherwise synthetic.

    Args:
      settings: the config.
      documents: number of synthetic training documents; None: `task.train_docs` or `DOCUMENTS`.
      tokens: their length; None: `task.max_length` or `TOKENS`.

    Raises:
      InputError: a model is unknown, the data are invalid, the documents are longer than the
        model's positions or too few for a batch.
    """
    synthetic = documents is not None or tokens is not None
    if not synthetic and all(_is_local(role.model) for role in settings.roles.values()):
        try:
            return resolve(settings)
        except errors.InputError as error:
            raise errors.InputError(
                f"{error}; with --documents=N --tokens=L, w2s compile needs no data"
            ) from error
    tokens = tokens or settings.task.max_length or TOKENS
    documents = documents or settings.task.train_docs or DOCUMENTS
    sources = {name: _source(name, role.model) for name, role in settings.roles.items()}
    for name, source in sources.items():
        check_model(name, source, settings)
    task = _task(settings)
    if settings.task.template is not None:
        find_template(task, settings.task.template)
    generation.check_methods(task, settings)
    classes.check(task, settings)
    roles = {
        name: _role_input(name, sources[name], task, settings, documents, tokens)
        for name in sources
    }
    if task.generates:
        generation.check(task, settings, {name: data.model for name, data in roles.items()})
    weak, *middle, strong = (
        with_defaults(settings.roles[name], data.model) for name, data in roles.items()
    )
    settings = dataclasses.replace(settings, weak=weak, strong=strong, middle=tuple(middle))
    note = f"{_SYNTHETIC}{documents:,} of {tokens} tokens each; trains the whole vocabulary"
    if task.name not in TASKS and not task.classes and task.kind == "classification":
        note += "; two classes, as task.classes lists no others"
    completion = roles["strong"].completion
    if completion is not None:
        prompt, new = tokens - completion.max_new_tokens, completion.max_new_tokens
        note = f"{_SYNTHETIC}{documents:,} of {prompt} tokens each, completed with {new}"
    return Resolved(settings, roles, (note,), task=task)


def _task(settings: Settings) -> Task:
    """Return the task. The classes of a folder are `task.classes`: its labels are not read.

    Raises:
      InputError: there is no such task, or it cannot have these classes.
    """
    name, names = settings.task.name, settings.task.classes
    task = get_task(name, settings.task.data_dir)
    refuse_classes(task, names, own_code=name in TASKS)
    return dataclasses.replace(task, classes=names) if names else task


def is_synthetic(resolved: Resolved) -> bool:
    """Return whether the documents are synthetic."""
    return resolved.notes[0].startswith(_SYNTHETIC)


def _is_local(model: str) -> bool:
    if model.startswith(PREFIX) or model in IMAGE_MODELS:
        return True
    return model in EMBEDDED_MODELS or Path(split_layers(model)[0]).expanduser().exists()


def _source(role: str, model: str) -> ModelSource | None:
    """Return a model's source; None for an embedded model."""
    if model in EMBEDDED_MODELS:
        return None
    if model.startswith(PREFIX) or model in IMAGE_MODELS:
        what = "is features of" if model.startswith(PREFIX) else "reads the pixels of"
        raise errors.InputError(
            f"{role}.model: {model!r} {what} real documents; leave out --documents and "
            "--tokens, and give a folder or an embedded model for the other role"
        )
    if _is_local(model):
        from w2s_jax.models import sources

        return sources.find(model)
    known = ladders.find(model)
    if known is None:
        every = [*EMBEDDED_MODELS, *(name.rpartition("/")[2] for name in ladders.KNOWN)]
        hint = errors.did_you_mean(model.rpartition("/")[2], every)
        raise errors.InputError(
            f"{role}.model: unknown model {model!r}{hint}; use a folder or a name that w2s models "
            "lists"
        )
    whole, layers = split_layers(model)
    digest = hashlib.sha256(with_layers(known.name, layers).encode()).hexdigest()
    name = with_layers(known.name.rpartition("/")[2], layers)
    config = truncated(known.config(), layers, whole)
    return ModelSource(model, name, Path(model), config, digest, None, None)


def _role_input(
    role: str,
    source: ModelSource | None,
    task: Task,
    settings: Settings,
    documents: int,
    tokens: int,
) -> RoleInput:
    own = settings.roles[role]
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
    model = with_read_out_layers(role, model, own.read_out_layers, [])
    if model.positions == "learned" and tokens > model.max_positions:
        raise errors.InputError(
            f"--tokens: {tokens}; allowed: at most {model.max_positions}, the positions of "
            f"{model.name}"
        )
    sizes = dict.fromkeys(settings.slices, documents // len(settings.slices))
    if settings.task.unlabelled is not None:
        pool = (settings.task.unlabelled_docs or documents) // (settings.num_slices - 1)
        sizes = dict.fromkeys(sizes, pool) | {"slice1": documents}
    validation = settings.task.validation_docs
    sizes["validation"] = VALIDATION_DOCUMENTS if validation is None else validation
    sizes["test"] = settings.task.test_docs or TEST_DOCUMENTS
    completion = None
    if task.generates:
        completion = _completion(model, settings, tokens)
    # A pair inside a template is one text.
    texts = task.num_texts if settings.task.template is None else 1
    splits = {
        name: synthetic_documents(model, count, tokens, texts, completion, task.num_classes)
        for name, count in sizes.items()
        if count
    }
    if own.pretrain.source is not None:
        splits["pretrain"] = synthetic_documents(model, CHUNKS, own.pretrain.chunk_length)
    for name, part in splits.items():
        train = own.pretrain if name == "pretrain" else own.train
        if name.startswith(("slice", "pretrain")) and len(part) < train.batch_size:
            raise errors.InputError(
                f"--documents: {documents} leaves {len(part)} for {name}; each slice needs at "
                f"least one batch ({train.batch_size})"
            )
    # Digests need only differ between splits.
    digests = {name: f"{name}:{len(part)}:{tokens}" for name, part in splits.items()}
    head_init = "zeros" if model.bidirectional else settings.protocol.head_init
    label_tokens = () if model.bidirectional else tuple(range(task.num_classes))
    if completion is not None:
        head_init, label_tokens = "", ()
    prompts = {name: (Prompts(splits, label_tokens, ()),) for name in task.templates}
    digests |= {f"template {name}": f"{name}:{tokens}" for name in prompts}
    return RoleInput(
        model,
        source,
        None,
        label_tokens,
        head_init,
        (),
        (),
        splits,
        {},
        digests,
        completion,
        task.num_classes,
        prompts,
    )


def _completion(model: ModelConfig, settings: Settings, tokens: int) -> Completion:
    """Return how synthetic prompts are completed.

    Raises:
      InputError: the completions leave no token for a prompt.
    """
    new = settings.task.max_new_tokens
    if new is None:
        new = max(1, int(tokens * COMPLETION_SHARE))
    if new >= tokens:
        raise errors.InputError(
            f"--tokens: {tokens}, for a prompt and its completion; allowed: more than "
            f"task.max_new_tokens={new}"
        )
    return Completion(model.vocab_size - 1, new)


def synthetic_documents(
    model: ModelConfig,
    count: int,
    tokens: int,
    num_texts: int = 1,
    completion: Completion | None = None,
    num_classes: int = 2,
) -> TokenizedDocuments:
    """Return `count` documents of `num_texts` texts with `tokens` tokens each.

    The documents cycle through the classes, the tokens through the vocabulary. With a completion,
    the last `max_new_tokens` of them are the target of a prompt.
    """
    total = count * num_texts * tokens
    documents = TokenizedDocuments(
        ids_N=np.arange(count, dtype=np.uint64),
        tokens_T=np.arange(total, dtype=np.int32) % model.vocab_size,
        offsets=np.arange(0, total + 1, tokens, dtype=np.int64),
        labels_N=(np.arange(count) % num_classes).astype(np.float32),
        num_texts=num_texts,
        soft_NC=(
            None
            if num_classes == 2
            else np.eye(num_classes, dtype=np.float32)[np.arange(count) % num_classes]
        ),
    )
    if completion is None:
        return documents
    prompt = tokens - completion.max_new_tokens
    return dataclasses.replace(
        documents,
        labels_N=np.full(count, np.nan, np.float32),
        loss_weights_T=(np.arange(total) % tokens >= prompt).astype(np.float32),
        prompt_lengths_P=np.full(count * num_texts, prompt, np.int64),
    )
