"""resolve(settings): read all input of a run before any work starts. Imports no JAX.

It loads the task and cuts it into splits, finds the models, tokenises the splits for each of them,
reads pretraining text, and digests everything. So `plan` is pure, and bad input is refused before
anything is written or compiled.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from w2s_jax.config import Settings, validation
from w2s_jax.core import errors
from w2s_jax.data.documents import Document
from w2s_jax.data.feature_sources import FeatureSource, SplitFeatures
from w2s_jax.data.loading import load
from w2s_jax.data.records import OFFICIAL_SPLITS
from w2s_jax.data.task import Task
from w2s_jax.data.templates import find_template
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.image_models import IMAGE_MODELS, check_documents
from w2s_jax.models.sources import ModelSource
from w2s_jax.planning import classes, features, generation, pool, test_sets
from w2s_jax.planning.external import bound_labels, check_external, digest_of, is_array
from w2s_jax.planning.readers import reader_of
from w2s_jax.planning.role_inputs import (
    RoleInput,
    config_of,
    features_input,
    role_input,
    source_of,
)
from w2s_jax.planning.role_settings import check_model, with_defaults
from w2s_jax.planning.tokenized_splits import tokenized_splits, without_overlong
from w2s_jax.planning.used_files import choose_training, describe_files


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
    others = [test_sets.load_set(name, task, settings) for name in task_settings.test_tasks]
    found = {role: source_of(role, settings) for role in settings.roles}
    _check_models(task, found, given, settings)
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
        role: features_input(role, given[role], reader, tokenized[reader.key], raw, settings)
        if role in given
        else role_input(
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
    outside, rows = _outside(task, roles, raw, settings, notes)
    for other in others:
        chosen, roles = test_sets.with_set(other, roles, readers, raw, settings, notes, given)
        kept |= chosen
    tasks = {other.split: other.task for other in others}
    return Resolved(settings, roles, tuple(dict.fromkeys(notes)), outside, task, kept, tasks, rows)


def _check_models(
    task: Task,
    found: Mapping[str, ModelSource | None],
    given: Mapping[str, FeatureSource],
    settings: Settings,
) -> None:
    """Check that models, methods and settings fit the task, before its texts are tokenised."""
    features.check_task(task, given)
    for role in (role for role in settings.roles if role not in given):
        check_model(role, found[role], settings)
        if settings.roles[role].model in IMAGE_MODELS:
            check_documents(role, settings.roles[role].model, task, settings.task.max_length)
    if settings.task.template is not None:
        find_template(task, settings.task.template)
    configs = {}
    if task.generates:
        configs = {role: config_of(role, found[role], settings) for role in found}
    else:
        generation.check_unused(task, settings)
    check_training(task, settings, configs)


def check_training(task: Task, settings: Settings, models: Mapping[str, ModelConfig]) -> None:
    """Check that methods and losses of a run suit its task.

    Args:
      task: the task.
      settings: of the run.
      models: role -> model; of generation tasks.

    Raises:
      InputError: one does not.
    """
    generation.check_methods(task, settings)
    if task.generates:
        generation.check(task, settings, models)
    else:
        classes.check(task, settings)


def _outside(
    task: Task,
    roles: Mapping[str, RoleInput],
    raw: Mapping[str, list[Document]],
    settings: Settings,
    notes: list[str],
) -> tuple[str | None, SplitFeatures | None]:
    """Check a supervisor's labels in a file; return their digest, and the labels of an array."""
    given = settings.weak.labels
    if given is None:
        return None, None
    splits = roles["weak"].splits
    if is_array(given):
        needed = {name: docs for name, docs in raw.items() if name in splits}
        needed = {name: needed[name] for name in needed.keys() - {"slice1", "pretrain"}}
        rows = bound_labels(given, needed, task, notes)
        return digest_of(rows), rows
    tokenizers = [data.tokenizer for data in roles.values()] if task.generates else None
    return check_external(given, splits, notes, tokenizers=tokenizers, classes=task.classes), None


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
