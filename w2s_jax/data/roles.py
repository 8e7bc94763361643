"""Choose the splits of a source that serve training, validation and test."""

from collections.abc import Iterable, Mapping, Sequence

from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import Document

#: Name of the unlabelled pool among the splits of documents (see `data.unlabelled`).
POOL = "unlabelled"


def training_split(
    splits: Iterable[str],
    *,
    wanted: str | None = None,
    declared: str | None = None,
    place: str,
    found: Iterable[str],
    field: str = "task.train_split",
    advice: str = "name the training file train",
    offered: bool = True,
) -> str:
    """Return the split to train on: `wanted`, else 'train', else `declared`.

    No other split is ever taken, because that would train on test documents without a word.

    Args:
      splits: those that can be used.
      wanted: `task.train_split`.
      declared: split of data that have no 'train'.
      place: folder or dataset, for errors.
      found: names of all files, or splits, that are there, for errors.
      field: what the error is about.
      advice: what to do about it, other than to choose a split.
      offered: whether `task.train_split` is named as a way out.

    Raises:
      InputError: there is no such split; names what was found, and how to choose.
    """
    splits = list(splits)
    names = ", ".join(sorted(found)) or "none"
    if wanted is not None:
        if wanted not in splits:
            raise InputError(f"{field}: {wanted!r}, but {place} has no such split; found: {names}")
        return wanted
    for split in ("train", declared):
        if split in splits and split is not None:
            return split
    others = [split for split in ("validation", "test") if split in splits]
    choice = ""
    if others and offered:
        choice = f", or choose --config.task.train_split={others[0]}"
    raise InputError(
        f"{field}: {place} has no split 'train' to train on; found: {names}; {advice}{choice}"
    )


def roles(
    documents: Mapping[str, Sequence[Document]], train_split: str | None = None
) -> tuple[str, str | None, str | None]:
    """Return the source splits of training, test and validation (None: from training).

    The training split is `train_split`, else 'train', and serves nothing else. Test documents come
    from 'test', else from 'validation'; validation documents from 'validation' if that is not the
    test set.

    Raises:
      InputError: there is no training split.
    """
    there = [name for name, docs in documents.items() if docs and name != "pretrain"]
    train = train_split
    if train is None or train not in documents:
        train = training_split(there, wanted=train, place="the source", found=there)
    free = [name for name in ("test", "validation") if name in there and name != train]
    test = free[0] if free else None
    validation = "validation" if "validation" in free and test != "validation" else None
    return train, test, validation
