"""Cut the unlabelled pool into the slices of the student and of the models in between."""

from collections.abc import Mapping, Sequence

from w2s_jax.core.errors import InputError
from w2s_jax.data import splits
from w2s_jax.data.documents import Document
from w2s_jax.data.roles import POOL, roles

_FIELD = "task.unlabelled_docs"


def pool_slices(
    documents: Mapping[str, Sequence[Document]],
    *,
    count: int | None,
    num_slices: int,
    validation: bool = True,
    grouping: bool = True,
    split_seed: int = 0,
    train_split: str | None = None,
    removed: dict[str, int] | None = None,
) -> dict[str, list[Document]]:
    """Return the slices of the pool, 'slice2' and so on, in an order by hashes of ids.

    With `grouping`, documents are left out whose group, or text, occurs in the training, test or
    validation split, and groups of the pool are not split. All documents of these splits count, so
    that a run's pool does not depend on how many of them it takes. Nothing is balanced.

    Args:
      documents: by split, with 'unlabelled'.
      count: documents to take; None: all.
      num_slices: number of slices of the pool.
      validation: whether there are validation documents.
      grouping, split_seed, train_split: as of `splits.make_splits`.
      removed: gets the number of documents that grouping leaves out.

    Raises:
      InputError: there are too few documents, or one group is too large for even slices.
    """
    pool = documents[POOL]
    train, test, held = roles(documents, train_split)
    used = [name for name in (train, test, held if validation else None) if name]
    labelled = [document for name in used for document in documents[name]]
    keys = splits.group_keys([*labelled, *pool], grouping)
    groups = splits.without(
        splits.grouped(pool, keys, split_seed), [[document] for document in labelled], keys
    )
    kept = [document for group in groups for document in group]
    left_out = len(pool) - len(kept)
    if removed is not None:
        removed[POOL] = left_out
    wanted = len(kept) if count is None else count
    if wanted > len(kept) or not kept:
        why = f" ({left_out:,} have a group or text of labelled ones)" if left_out else ""
        raise InputError(
            f"{_FIELD}: {'all' if count is None else count} documents were asked for, but "
            f"task.unlabelled has only {len(kept)}{why}"
        )
    taken = kept[:wanted]
    if grouping:
        slices = splits.sliced(taken, num_slices, keys, field=_FIELD)
    else:
        slices = splits.cut(taken, num_slices, field=_FIELD)
    return {f"slice{number}": own for number, own in enumerate(slices, 2)}
