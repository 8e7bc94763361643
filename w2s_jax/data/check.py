"""Statistics of a task's data: counts, balance, duplicates, leaks between splits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from w2s_jax.data.documents import Document
from w2s_jax.data.roles import POOL
from w2s_jax.data.splits import normalised_text


@dataclass(frozen=True)
class SplitFacts:
    """Statistics of one split of the source.

    Attributes:
      documents: number of documents.
      positive: documents with label 1 (soft labels: above 1/2); None if none has a label. Ties
        have none.
      counts: label -> documents, likewise.
      groups: distinct groups; documents without a group count as one each.
      largest_group: documents of the largest group.
      duplicates: documents whose words occurred before (see `splits.normalised_text`).
      conflicts: distinct texts that occur with different labels or targets.
      lengths_N: tokens of each document (of pairs: both texts together), int64 [N].
      targets_N: tokens of each target with its end, int64 [N]; None without targets.
    """

    documents: int
    positive: int | None
    groups: int
    largest_group: int
    duplicates: int
    conflicts: int
    lengths_N: np.ndarray
    targets_N: np.ndarray | None = None
    counts: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Overlap:
    """Overlap of two splits.

    Attributes:
      first, second: names of the splits.
      texts: documents of `first` whose text is also in `second`.
      groups: documents of `first` whose group is also in `second`.
    """

    first: str
    second: str
    texts: int
    groups: int


def split_facts(
    documents: Sequence[Document], lengths_N: np.ndarray, targets_N: np.ndarray | None = None
) -> SplitFacts:
    """Return the statistics of one split; `lengths_N` is the number of tokens of each document."""
    labels: dict[str, set[int | str]] = {}
    duplicates = 0
    for document in documents:
        text = _content(document)
        duplicates += text in labels
        target = document.target
        label = document.hard_label if target is None else target.strip()
        labels.setdefault(text, set()).update(() if label is None else (label,))
    known = Counter(d.hard_label for d in documents if d.hard_label is not None)
    groups = Counter(d.group if d.group is not None else d.id for d in documents)
    return SplitFacts(
        documents=len(documents),
        positive=known[1] if known else None,
        groups=len(groups),
        largest_group=max(groups.values(), default=0),
        duplicates=duplicates,
        conflicts=sum(len(found) > 1 for found in labels.values()),
        lengths_N=lengths_N,
        targets_N=targets_N,
        counts=known,
    )


def overlaps(documents: Mapping[str, Sequence[Document]]) -> list[Overlap]:
    """Return the overlap of each pair of splits, except pretraining documents.

    The first of a pair is the one that loses documents by grouping.
    """
    names = [name for name in documents if name not in ("pretrain", POOL)]
    names = [*([POOL] if POOL in documents else []), *names]
    texts = {name: {_content(d) for d in documents[name]} for name in names}
    groups = {name: {d.group for d in documents[name]} - {None} for name in names}
    return [
        Overlap(
            first,
            second,
            sum(_content(d) in texts[second] for d in documents[first]),
            sum(d.group in groups[second] for d in documents[first]),
        )
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    ]


def length_histogram(lengths_N: np.ndarray, bins: int = 12) -> list[tuple[int, int, int]]:
    """Return (least, most, documents) of bins of equal width up to the 99th percentile.

    The last bin also has all longer documents.
    """
    low, high = int(lengths_N.min()), int(np.percentile(lengths_N, 99, method="higher"))
    width = max(1, -(-(high - low + 1) // bins))
    edges = list(range(low, high + 1, width))
    counts, _ = np.histogram(lengths_N, [*edges, lengths_N.max() + 1])
    tops = [edge - 1 for edge in edges[1:]] + [int(lengths_N.max())]
    return list(zip(edges, tops, counts.tolist(), strict=True))


def _content(document: Document) -> str:
    return normalised_text(document) or repr(document.tokens)
