"""The splits of a run, tokenised for each model. Imports no JAX."""

from collections.abc import Mapping
from dataclasses import dataclass

from w2s_jax.config import Settings
from w2s_jax.data.completions import tokenization
from w2s_jax.data.documents import Document
from w2s_jax.data.splits import make_splits
from w2s_jax.data.task import Task
from w2s_jax.data.tokenize import TokenizedDocuments, without_tokens
from w2s_jax.data.tokenizers import Tokenizer

#: What documents look like to a role: its tokenizer, and the most tokens of a text.
Key = tuple[str, int | None]


@dataclass(frozen=True)
class Reader:
    """The conversion of a role's texts to tokens; roles with the same `key` share documents.

    Attributes:
      task: the task.
      tokenizer: of its texts; None if its documents are tokens.
      limit: most tokens of a document; None for no limit.
      overlong: what to do with longer ones: 'truncate', 'drop' or 'error'.
      truncate: side at which they are cut.
      empty: what to do with texts that give no token: 'skip' or 'error'.
      tokenizes: False if the role's model is features of documents, which have no tokens.
    """

    task: Task
    tokenizer: Tokenizer | None
    limit: int | None
    overlong: str
    truncate: str
    empty: str
    tokenizes: bool = True

    @property
    def key(self) -> Key:
        if not self.tokenizes:
            return "no tokens", None
        return "" if self.tokenizer is None else self.tokenizer.digest, self.limit


def without_overlong(
    documents: Mapping[str, list[Document]], reader: Reader, notes: list[str]
) -> Mapping[str, list[Document]]:
    """Return the documents; with task.overlong='drop' only those that are short enough.

    Others are dropped before the documents are balanced, counted and halved.
    """
    if reader.overlong != "drop" or reader.limit is None:
        return documents
    kept = dict(documents)
    for name, docs in documents.items():
        if name != "pretrain":
            short = _tokenize_split(name, docs, reader, notes)
            ids = set(short.ids_N.tolist())
            kept[name] = [document for document in docs if document.id in ids]
    return kept


def tokenized_splits(
    documents: Mapping[str, list[Document]],
    readers: list[Reader],
    settings: Settings,
    notes: list[str],
    train_split: str,
    removed: dict[str, int],
) -> tuple[dict[str, list[Document]], dict[Key, dict[str, TokenizedDocuments]]]:
    """Return the slices, validation and test as documents, and tokenised by each reader.

    Where a text gives no token and such are left out, the splits are made again without it.

    Args:
      documents: by split.
      readers: of the roles, with different keys.
      settings: of the run.
      notes: lines for the user are appended.
      train_split: the split to train on.
      removed: gets the number of documents, by split, that grouping removes.
    """
    task, protocol = settings.task, settings.protocol
    ties: dict[str, int] = {}
    balanced: list[str] = []
    # Documents with targets have no classes to balance.
    classes = not readers[0].task.generates
    raw = make_splits(
        documents,
        train_docs=task.train_docs,
        test_docs=task.test_docs,
        validation_docs=task.validation_docs,
        num_slices=len(settings.slices),
        balance=protocol.balance and classes,
        balance_test=protocol.balance_test and classes,
        grouping=protocol.grouping,
        split_seed=task.split_seed,
        train_split=train_split,
        removed=removed,
        ties=ties,
        notes=balanced,
    )
    names = [name for name in raw if name.startswith("slice")]
    renamed = dict(zip(names, settings.slices, strict=True))
    raw = {renamed.get(name, name): docs for name, docs in raw.items()}
    found = [*balanced]
    undecided = "soft_label 0.5" if readers[0].task.num_classes == 2 else "undecided soft labels"
    found += [
        f"{split}: {count:,} ties ({undecided}), which are never evaluated"
        for split, count in ties.items()
    ]
    tokenized = {
        reader.key: {
            name: _tokenize_split(name, docs, reader, found)
            for name, docs in raw.items()
            if name != "pretrain" and docs
        }
        for reader in readers
    }
    empty: set[int] = set()
    for splits in tokenized.values():
        for name, kept in splits.items():
            empty |= {document.id for document in raw[name]} - set(kept.ids_N.tolist())
    if not empty:
        notes += found
        return raw, tokenized
    rest = {name: [d for d in docs if d.id not in empty] for name, docs in documents.items()}
    notes += [
        _skipped(name, len(docs) - len(rest[name]))
        for name, docs in documents.items()
        if len(docs) > len(rest[name])
    ]
    return tokenized_splits(rest, readers, settings, notes, train_split, removed)


def _tokenize_split(
    name: str, documents: list[Document], reader: Reader, notes: list[str]
) -> TokenizedDocuments:
    if not reader.tokenizes:
        return without_tokens(documents, reader.task.num_classes)
    convert = tokenization(reader.task)
    tokenized, counts = convert(
        documents,
        reader.tokenizer,
        max_length=reader.limit,
        overlong=reader.overlong,
        truncate=reader.truncate,
        empty=reader.empty,
    )
    if counts["empty"]:
        notes.append(_skipped(name, counts["empty"]))
    if counts["overlong"]:
        notes.append(
            f"{name}: {counts['overlong']} of {counts['documents']} documents exceed "
            f"task.max_length={reader.limit} tokens; policy: {reader.overlong}"
        )
    if counts["same"]:
        notes.append(
            f"{name}: {counts['same']} of {counts['documents']} pairs are the same text twice, cut "
            f"at the {reader.truncate} (task.truncate) to {reader.limit} tokens (task.max_length)"
        )
    return tokenized


def _skipped(name: str, count: int) -> str:
    documents = "document" if count == 1 else "documents"
    return f"{name}: skipped {count:,} {documents} with a text that gives no token (task.empty)"
