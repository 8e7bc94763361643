"""The models of a run's roles, each with the documents as it reads them. Imports no JAX."""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from w2s_jax.config import Role, Settings
from w2s_jax.core import errors
from w2s_jax.data.corpus import Corpus
from w2s_jax.data.documents import Document
from w2s_jax.data.feature_sources import FeatureSource, SplitFeatures, find_features
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.data.tokenizers import Tokenizer
from w2s_jax.models import sources
from w2s_jax.models.config import (
    EMBEDDED_MODELS,
    ModelConfig,
    embedded_model,
    features_model,
)
from w2s_jax.models.image_models import IMAGE_MODELS, image_model
from w2s_jax.models.sources import ModelSource
from w2s_jax.planning import classes, features, generation, pool, templates
from w2s_jax.planning.phase import Completion
from w2s_jax.planning.pretraining_text import open_stream, read_chunks, stream_digest
from w2s_jax.planning.role_settings import with_read_out_layers
from w2s_jax.planning.tokenized_splits import Reader


@dataclass(frozen=True)
class RoleInput:
    """The model of a role and its data.

    Attributes:
      model: its config, without adapters.
      source: the pretrained model; None for an embedded one, whose parameters the run makes.
      tokenizer: of the task's texts; None if its documents are tokens.
      label_tokens: ids of the tokens that stand for the classes, which are rows of the model's
        unembedding; () if there are none.
      head_init: 'unembedding' (a head starts from the rows of these tokens), 'zeros' or 'uniform'.
      prefix, suffix: the tokens that begin and end each text.
      splits: 'slice1', 'slice2', ..., 'validation', 'test' and 'pretrain' -> documents.
      streams: 'pretrain' -> text that is read while it is used.
      digests: split or stream -> sha256 of its tokenised contents.
      completion: how it completes prompts; None of tasks with classes.
      num_classes: of the task.
      prompts: template -> the documents inside it, as methods of the strong model read them.
      features: of its documents, if these are its model; they are part of `digests`.
    """

    model: ModelConfig
    source: ModelSource | None
    tokenizer: Tokenizer | None
    label_tokens: tuple[int, ...]
    head_init: str
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    splits: Mapping[str, TokenizedDocuments]
    streams: Mapping[str, Corpus]
    digests: Mapping[str, str]
    completion: Completion | None = None
    num_classes: int = 2
    prompts: Mapping[str, tuple[templates.Prompts, ...]] = field(default_factory=dict)
    features: SplitFeatures | None = None


def config_of(role: str, source: ModelSource | None, settings: Settings) -> ModelConfig:
    """Return a role's model, before its vocabulary and its positions are known."""
    if source is not None:
        return source.config
    name = settings.roles[role].model
    if name in IMAGE_MODELS:
        return image_model(name)
    return embedded_model(name, vocab_size=1, max_positions=1)


def source_of(role: str, settings: Settings) -> ModelSource | None:
    """Return the pretrained model of a role; None for an embedded one."""
    model = settings.roles[role].model
    if model in EMBEDDED_MODELS or model in IMAGE_MODELS or find_features(model) is not None:
        return None
    with errors.of_field(f"{role}.model"):
        return sources.find(model)


def role_input(
    role: str,
    source: ModelSource | None,
    reader: Reader,
    splits: Mapping[str, TokenizedDocuments],
    raw: Mapping[str, list[Document]],
    settings: Settings,
    notes: list[str],
    chunks: dict[Any, TokenizedDocuments],
) -> RoleInput:
    """Return a role's model and its documents, with those for pretraining.

    `chunks` has the pretraining documents of the roles before, which roles share.
    """
    own = settings.roles[role]
    splits, streams, tokenizer = dict(splits), {}, reader.tokenizer
    if own.pretrain.source is not None and own.pretrain.streaming:
        streams["pretrain"] = open_stream(own.pretrain, reader, settings.task, notes)
    elif own.pretrain.source is not None:
        key = (reader.key, own.pretrain.source, own.pretrain.max_docs, own.pretrain.chunk_length)
        if key not in chunks:
            chunks[key] = read_chunks(own.pretrain, raw, reader, settings.task, notes)
        splits["pretrain"] = chunks[key]
    vocabulary = reader.task.token_space or tokenizer
    assert vocabulary is not None
    completion = None
    if reader.task.generates:
        assert tokenizer is not None
        completion = generation.completion_of(tokenizer, splits, settings.task.max_new_tokens)
    model: ModelConfig
    if own.model in IMAGE_MODELS:
        assert reader.task.image is not None
        model = image_model(own.model, reader.task.image)
    elif source is None:
        model = embedded_model(
            own.model,
            vocab_size=vocabulary.vocab_size,
            max_positions=_longest(own, settings, splits, completion),
        )
    else:
        model = dataclasses.replace(source.config, name=source.name)
    if own.read_out is not None:
        model = dataclasses.replace(model, read_out=own.read_out)
    model = with_read_out_layers(role, model, own.read_out_layers, notes)
    head_init = settings.protocol.head_init if completion is None else ""
    if completion is not None:
        generation.check_room(role, model, splits, completion)
    elif model.bidirectional and head_init == "unembedding":
        notes.append(f"{role}: {model.name} has no unembedding: its head starts from zeros")
        head_init = "zeros"
    label_tokens: tuple[int, ...] = ()
    if completion is None and not model.bidirectional:
        needed = head_init == "unembedding"
        label_tokens = _label_tokens(role, reader, notes, needed=needed)
        head_init = head_init if label_tokens or not needed else "zeros"
    digests = {name: documents.digest() for name, documents in splits.items()}
    if completion is not None:
        for name in pool.labelled(settings, digests.keys() - {"pretrain"}):
            digests[name] = generation.with_judged(reader.task, digests[name], raw[name])
    prompts = {}
    if role == "strong":
        prompts = templates.prompts_of(reader, model, splits, raw, settings, notes)
    digests |= {f"template {name}": templates.digest(own) for name, own in prompts.items()}
    for name, corpus in streams.items():
        assert tokenizer is not None
        digests[name] = stream_digest(corpus, tokenizer)
    if tokenizer is not None:
        prefix, suffix = tokenizer.prefix, tokenizer.suffix
    else:
        assert reader.task.token_space is not None
        prefix, suffix = (reader.task.token_space.bos_id,), ()
    return RoleInput(
        model,
        source,
        tokenizer,
        label_tokens,
        head_init,
        tuple(prefix),
        tuple(suffix),
        splits,
        streams,
        digests,
        completion,
        reader.task.num_classes,
        prompts,
    )


def _label_tokens(role: str, reader: Reader, notes: list[str], *, needed: bool) -> tuple[int, ...]:
    """Return the ids of the tokens that stand for the classes; () if there are none.

    Raises:
      InputError: the tokenizer spells one with several tokens, and they are needed.
    """
    if needed:
        return classes.label_tokens(role, reader.task, reader.tokenizer, notes, reader.template)
    with contextlib.suppress(errors.InputError):
        # What they are not needed for is not worth a note.
        return classes.label_tokens(role, reader.task, reader.tokenizer, [], reader.template)
    return ()


def features_input(
    role: str,
    source: FeatureSource,
    reader: Reader,
    splits: Mapping[str, TokenizedDocuments],
    raw: Mapping[str, list[Document]],
    settings: Settings,
) -> RoleInput:
    """Return the documents of a role whose model is features, with these."""
    documents = {name: raw[name] for name in splits}
    source = features.reading(role, source, reader.task)
    bound = features.bound(role, source, documents, reader.task.num_texts)
    digests = {
        name: features.digest(tokenized, bound.digests[name]) for name, tokenized in splits.items()
    }
    return RoleInput(
        model=features_model(bound.name, bound.width),
        source=None,
        tokenizer=None,
        label_tokens=(),
        head_init="uniform" if settings.protocol.head_init == "uniform" else "zeros",
        prefix=(),
        suffix=(),
        splits=splits,
        streams={},
        digests=digests,
        num_classes=reader.task.num_classes,
        features=bound,
    )


def _longest(
    own: Role,
    settings: Settings,
    splits: Mapping[str, TokenizedDocuments],
    completion: Completion | None,
) -> int:
    """Return the number of positions of an embedded model, enough for documents and chunks.

    With `task.max_length` it does not depend on which documents were drawn, so that runs can share
    pretrained models with learned positions.
    """
    longest = settings.task.max_length or 0
    if completion is not None:
        longest += completion.max_new_tokens if settings.task.max_length else 0
        longest = max(longest, generation.longest_completed(splits, completion))
    if own.pretrain.source is not None and own.pretrain.streaming:
        longest = max(longest, own.pretrain.chunk_length)
    for name, documents in splits.items():
        if name == "pretrain" or settings.task.max_length is None:
            longest = max(longest, documents.longest)
    return longest
