"""resolve(settings): read all input of a run before any work starts. Imports no JAX.

It loads the task and cuts it into splits, finds the models, tokenises the splits for each of them,
reads pretraining text, and digests everything. So `plan` is pure, and bad input is refused before
anything is written or compiled.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from w2s_jax.config import Role, Settings, validation
from w2s_jax.core import errors
from w2s_jax.data.corpus import Corpus
from w2s_jax.data.documents import Document
from w2s_jax.data.feature_sources import FeatureSource, SplitFeatures, find_features
from w2s_jax.data.loading import load
from w2s_jax.data.records import OFFICIAL_SPLITS
from w2s_jax.data.task import Task
from w2s_jax.data.templates import find_template
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.data.tokenizers import Tokenizer
from w2s_jax.models import sources
from w2s_jax.models.config import (
    EMBEDDED_MODELS,
    ModelConfig,
    embedded_model,
    features_model,
)
from w2s_jax.models.image_models import IMAGE_MODELS, check_documents, image_model
from w2s_jax.models.sources import ModelSource
from w2s_jax.planning import classes, features, generation, pool, templates, transfer
from w2s_jax.planning.external import bound_labels, check_external, digest_of, is_array
from w2s_jax.planning.phase import Completion
from w2s_jax.planning.pretraining_text import open_stream, read_chunks, stream_digest
from w2s_jax.planning.readers import reader_of
from w2s_jax.planning.role_settings import check_model, with_defaults, with_read_out_layers
from w2s_jax.planning.tokenized_splits import Reader, tokenized_splits, without_overlong
from w2s_jax.planning.used_files import choose_training, describe_files


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


@dataclass(frozen=True)
class Resolved:
    """The input of a run.

    Attributes:
      settings: the validated config, with defaults that depend on the models filled in.
      roles: 'weak', 'strong' -> model and data.
      notes: facts about data and models for the user: counts, over-long documents.
      outside: sha256 of the supervisor's labels, or of their file, if these are external.
      task: the task.
      documents: split -> its documents, of generation tasks: answers are compared with them.
      test_tasks: split -> the task, of the test sets of other tasks (`task.test_tasks`).
      labels: the supervisor's labels, if these are external arrays; float32 [N, 1, C].
    """

    settings: Settings
    roles: Mapping[str, RoleInput]
    notes: tuple[str, ...]
    outside: str | None = None
    task: Task | None = None
    documents: Mapping[str, list[Document]] = field(default_factory=dict)
    test_tasks: Mapping[str, Task] = field(default_factory=dict)
    labels: SplitFeatures | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, where there are more than two; else ()."""
        return self.task.classes if self.task is not None and self.task.num_classes > 2 else ()

    @property
    def digests(self) -> dict[str, str]:
        """Digests of splits and models; a role's own entries are marked where roles differ."""
        flat: dict[str, str] = {} if self.outside is None else {"labels": self.outside}
        for role, data in self.roles.items():
            found = dict(data.digests)
            if data.source is not None:
                found["model"] = data.source.digest
            for name, digest in found.items():
                own = name in ("pretrain", "model") or flat.get(name, digest) != digest
                flat[f"{name}:{role}" if own else name] = digest
        return flat


def resolve(settings: Settings) -> Resolved:
    """Read and check all input of a run.

    Raises:
      InputError: a model, a tokenizer or the data are bad or do not fit together, or there are too
        few documents for the config.
    """
    task_settings, protocol = settings.task, settings.protocol
    if protocol.halves == "none" and settings.weak.labels is None:
        raise errors.InputError(
            "protocol.halves: 'none', but the weak model is trained on a slice of its own; give "
            "weak.labels, or use shared or separate"
        )
    given = features.find(settings)
    arrays = settings.weak.labels is not None and is_array(settings.weak.labels)
    loaded = load(
        task_settings.name,
        task_settings.source,
        task_settings.data_dir,
        protocol.item_expansion,
        seed=settings.seed,
        split_seed=task_settings.split_seed,
        empty=task_settings.empty,
        used=(*OFFICIAL_SPLITS, "pretrain"),
        where=task_settings.where,
        test_where=task_settings.test_where,
        train_split=task_settings.train_split,
        classes=task_settings.classes,
        unlabelled=task_settings.unlabelled,
        keep=("id",) if given or arrays else (),
        image_size=task_settings.image_size,
    )
    settings = pool.with_pool(settings, loaded)
    task = loaded.task
    notes = [*loaded.notes]
    train_split = choose_training(loaded, task_settings.train_split, notes)
    others = [transfer.load_set(name, task, settings) for name in task_settings.test_tasks]
    features.check_task(task, given)
    found = {role: _source(role, settings) for role in settings.roles}
    for role in (role for role in settings.roles if role not in given):
        check_model(role, found[role], settings)
        if settings.roles[role].model in IMAGE_MODELS:
            check_documents(role, settings.roles[role].model, task, task_settings.max_length)
    generation.check_methods(task, settings)
    if task_settings.template is not None:
        find_template(task, task_settings.template)
    if not task.generates:
        generation.check_unused(task, settings)
        classes.check(task, settings)
    else:
        generation.check(
            task, settings, {role: _config(role, found[role], settings) for role in found}
        )
    readers = {
        role: reader_of(role, loaded, found[role], settings, notes) for role in settings.roles
    }
    different = {reader.key: reader for reader in readers.values()}
    documents: Mapping[str, list[Document]] = loaded.documents
    for reader in different.values():
        documents = without_overlong(documents, reader, notes)
    removed: dict[str, int] = {}
    raw, tokenized = tokenized_splits(
        documents, list(different.values()), settings, notes, train_split, removed
    )
    pretraining = any(role.pretrain.source == "task" for role in settings.roles.values())
    files = describe_files(loaded, train_split, raw, removed, pretraining=pretraining)
    notes.insert(0, files)
    sizes = ", ".join(f"{k} {len(v)}" for k, v in raw.items())
    notes.insert(0, f"task {task.name} from {loaded.source} ({loaded.location}): {sizes}")
    chunks: dict[Any, TokenizedDocuments] = {}
    roles = {
        role: _features_input(role, given[role], reader, tokenized[reader.key], raw, settings)
        if role in given
        else _role_input(
            role, found[role], reader, tokenized[reader.key], raw, settings, notes, chunks
        )
        for role, reader in readers.items()
    }
    weak, *middle, strong = (
        with_defaults(settings.roles[role], data.model) for role, data in roles.items()
    )
    settings = dataclasses.replace(settings, weak=weak, strong=strong, middle=tuple(middle))
    for role, data in roles.items():
        _check(role, data, settings)
        known = pool.labelled(settings, data.splits)
        classes.note_missing({name: data.splits[name] for name in known}, task, notes)
    kept = {name: docs for name, docs in raw.items() if task.generates and name != "pretrain"}
    if task.generates:
        known = pool.labelled(settings, kept)
        generation.check_functions(task, {name: kept[name] for name in known})
        generation.check_tokenizers(settings, {role: d.tokenizer for role, d in roles.items()})
    outside, rows = None, None
    if settings.weak.labels is not None and arrays:
        labelled = roles["weak"].splits.keys() - {"slice1", "pretrain"}
        needed = {name: docs for name, docs in raw.items() if name in labelled}
        rows = bound_labels(settings.weak.labels, needed, task, notes)
        outside = digest_of(rows)
    elif settings.weak.labels is not None:
        outside = check_external(
            settings.weak.labels,
            roles["weak"].splits,
            notes,
            tokenizers=[d.tokenizer for d in roles.values()] if task.generates else None,
            classes=task.classes,
        )
    for other in others:
        chosen, roles = transfer.with_set(other, roles, readers, raw, settings, notes, given)
        kept |= chosen
    tasks = {other.split: other.task for other in others}
    return Resolved(settings, roles, tuple(dict.fromkeys(notes)), outside, task, kept, tasks, rows)


def _config(role: str, source: ModelSource | None, settings: Settings) -> ModelConfig:
    """Return a role's model, before its vocabulary and its positions are known."""
    if source is not None:
        return source.config
    name = settings.roles[role].model
    if name in IMAGE_MODELS:
        return image_model(name)
    return embedded_model(name, vocab_size=1, max_positions=1)


def _source(role: str, settings: Settings) -> ModelSource | None:
    """Return the pretrained model of a role; None for an embedded one."""
    model = settings.roles[role].model
    if model in EMBEDDED_MODELS or model in IMAGE_MODELS or find_features(model) is not None:
        return None
    try:
        return sources.find(model)
    except errors.InputError as error:
        raise errors.InputError(f"{role}.model: {error}") from error


def _role_input(
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
        # A tokenizer may spell them with several tokens, which is an error if they are needed.
        needed = head_init == "unembedding"
        with contextlib.suppress(*([] if needed else [errors.InputError])):
            # What they are not needed for is not worth a note.
            told = notes if needed else []
            label_tokens = classes.label_tokens(
                role, reader.task, tokenizer, told, reader.template
            )
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


def _features_input(
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


def _check(role: str, data: RoleInput, settings: Settings) -> None:
    """Check that documents fill a batch, have both classes, and that validation ones exist."""
    own = settings.roles[role]
    for part in ("train", "pretrain", "probe"):
        validation.check_weight_decay(f"{role}.{part}", getattr(own, part))
    splits = data.splits
    for name in (*settings.slices, "test"):
        if name not in splits:
            raise errors.InputError(f"task.{name}_docs: there are no documents in {name}")
        if data.completion is not None or pool.lacks_truth(settings, name):
            continue
        classes.check_present(name, splits[name].truth_N, data.num_classes)
    used = [f"slice{1 + list(settings.roles).index(role)}"]
    if role == "strong":
        used.append("slice2")
    if role == "strong" and settings.protocol.halves == "separate":
        used.append("slice1")
    parts = {
        "full": ["train"],
        "probe": ["probe"],
        "probe_then_full": ["probe", "train"],
    }.get(own.train.adapt, ["train"])
    wanted = [(name, part) for name in used if name in settings.slices for part in parts]
    wanted += [("pretrain", "pretrain")] if "pretrain" in splits else []
    for name, part in wanted:
        batch, available = getattr(own, part).batch_size, len(splits[name])
        if available < batch:
            unlabelled = pool.lacks_truth(settings, name)
            raise errors.InputError(
                f"{role}.{part}.batch_size: {batch} exceeds the {available} documents of "
                f"{'pretrain:' + role if name == 'pretrain' else name}; allowed: at most "
                f"{available} (or raise task.{'unlabelled' if unlabelled else 'train'}_docs)"
            )
    if settings.protocol.early_stopping != "none" and "validation" not in splits:
        raise errors.InputError(
            f"task.validation_docs: {settings.task.validation_docs} leaves no validation set, but "
            f"protocol.early_stopping={settings.protocol.early_stopping!r} needs one; "
            "allowed: at least 2 (or set protocol.early_stopping=none)"
        )
