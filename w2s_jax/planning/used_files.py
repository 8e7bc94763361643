"""The split that a run trains on, and a line on the files that it uses and those it does not."""

from collections.abc import Mapping, Sequence

from w2s_jax.data.documents import Document
from w2s_jax.data.loading import LoadedTask, refuse_one_class
from w2s_jax.data.roles import POOL, roles


def choose_training(loaded: LoadedTask, wanted: str | None, notes: list[str]) -> str:
    """Return the split to train on; a note says so if the task declares it.

    Args:
      loaded: the task.
      wanted: `task.train_split`.
      notes: gets the note.

    Raises:
      InputError: there is no such split, or all of its documents have one label.
    """
    chosen = loaded.training_split(wanted)
    refuse_one_class(loaded.documents[chosen], loaded.task.classes)
    if wanted is None and chosen != "train":
        notes.append(
            f"task {loaded.task.name} has no split 'train': training on {loaded.file_names[chosen]}"
        )
    return chosen


def describe_files(
    loaded: LoadedTask,
    train_split: str,
    splits: Mapping[str, Sequence[Document]],
    removed: Mapping[str, int],
    *,
    pretraining: bool,
) -> str:
    """Return a line on the files, or splits of another source, behind a run's documents.

    Args:
      loaded: the task.
      train_split: the split to train on.
      splits: what `make_splits` returned.
      removed: split -> number of documents that grouping removed.
      pretraining: whether a model is pretrained on the task's split 'pretrain'.
    """
    names = loaded.file_names
    train, test, validation = roles(loaded.documents, train_split)
    used = {train, "pretrain"} if pretraining else {train}
    parts = [f"training: {names[train]}"]
    if POOL in loaded.documents:
        used.add(POOL)
        parts.append(f"unlabelled: {names[POOL]}")
    for role, split in (("validation", validation), ("test", test)):
        if not splits[role]:
            parts.append(f"{role}: none")
        elif split is None:
            parts.append(f"{role}: taken from {names[train]}")
        else:
            used.add(split)
            parts.append(f"{role}: {names[split]}")
    unused = {name for split, name in names.items() if split not in used}
    parts.append(f"unused: {', '.join(sorted(unused | {*loaded.unused})) or 'none'}")
    counts = [f"{count:,} of {names[split]}" for split, count in removed.items() if count]
    parts.append(f"removed by grouping: {', '.join(counts) or 'none'}")
    return "; ".join(parts)
