"""The text that models are pretrained on: read whole, or opened as a stream. Imports no JAX."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Mapping

import numpy as np

from w2s_jax.config import PretrainSettings, TaskSettings
from w2s_jax.core import errors
from w2s_jax.data.corpus import Corpus, open_corpus
from w2s_jax.data.documents import Document, hash_order, stable_id
from w2s_jax.data.sources import CorpusFiles, corpus_records, corpus_texts, find_corpus
from w2s_jax.data.stream import check_stream
from w2s_jax.data.tokenize import TokenizedDocuments, tokenize
from w2s_jax.data.tokenizers import Tokenizer
from w2s_jax.planning.tokenized_splits import Reader


def read_chunks(
    pretrain: PretrainSettings,
    raw: Mapping[str, list[Document]],
    reader: Reader,
    task: TaskSettings,
    notes: list[str],
) -> TokenizedDocuments:
    """Return the tokenised pretraining text of a role, in chunks of `pretrain.chunk_length` tokens.

    Args:
      pretrain: the settings; `pretrain.source` says what to read.
      raw: split -> documents of the task, possibly with a split 'pretrain'.
      reader: the role's; it has the task, which may read `pretrain.source` itself.
      task: the task settings; `task.data_dir` says where to look.
      notes: a line on the text is appended.

    Raises:
      InputError: there is no such text, or its documents cannot be cut.
    """
    tokenizer = reader.tokenizer
    if pretrain.source == "task":
        if "pretrain" not in raw:
            raise errors.InputError(
                f"pretrain.source: 'task', but task {task.name!r} has no pretraining documents; "
                "give a folder of task.data_dir, or a file"
            )
        origin = "task"
        documents = _drawn(map(_as_text, raw["pretrain"]), pretrain.max_docs, task.split_seed)
    elif pretrain.source in reader.task.pretraining:
        documents, origin = _documents_of_task(pretrain, reader, task)
    else:
        assert pretrain.source is not None
        if tokenizer is None:
            raise errors.InputError(
                f"pretrain.source: {pretrain.source!r}, but the documents of task "
                f"{task.name!r} are tokens, not text; allowed: 'task', None"
            )
        corpus = find_corpus(pretrain.source, task.data_dir, train_split=task.train_split)
        origin = f"{pretrain.source} ({corpus.name}{_unused(corpus)})"
        texts = corpus_texts(corpus)
        found = (
            Document(id=stable_id("corpus", i, text), text=text) for i, text in enumerate(texts)
        )
        documents = _drawn(found, pretrain.max_docs, task.split_seed)
    longest = max((len(d.tokens) for d in documents if d.tokens is not None), default=0)
    if longest > pretrain.chunk_length:
        raise errors.InputError(
            f"pretrain.chunk_length: {pretrain.chunk_length} is less than the {longest} tokens of "
            f"a document of task {task.name!r}, which cannot be cut; allowed: at least "
            f"{longest}"
        )
    tokenized, counts = tokenize(
        documents, tokenizer, max_length=pretrain.chunk_length, overlong="chunk"
    )
    notes.append(
        f"pretraining on {origin}: {counts['documents']} documents, "
        f"{len(tokenized)} chunks of at most {pretrain.chunk_length} tokens, "
        f"{counts['tokens']:,} tokens"
    )
    return tokenized


def _as_text(document: Document) -> Document:
    """Return a document with its target, if it has one, at the end of its text."""
    if document.text is None or document.target is None:
        return document
    return dataclasses.replace(document, text=document.text + document.target, target=None)


def _documents_of_task(
    pretrain: PretrainSettings, reader: Reader, task: TaskSettings
) -> tuple[list[Document], str]:
    """Return the documents that a task makes of the records of a source, and the source's name.

    Raises:
      InputError: there is no such source, the task's function fails, or what it returns are neither
        texts nor documents of tokens of the role's tokenizer.
    """
    source = pretrain.source
    assert source is not None
    corpus = find_corpus(source, task.data_dir, train_split=task.train_split)
    start = f"pretrain.source: {source!r}"
    try:
        function = reader.task.pretraining[source]
        # It may draw documents itself, to make no others; if it does not, they are drawn here.
        made = function(corpus_records(corpus), reader.tokenizer, max_docs=pretrain.max_docs)
        documents = _drawn(made, pretrain.max_docs, task.split_seed)
    except errors.InputError as error:
        raise errors.InputError(f"{start}: {error}") from error
    except Exception as error:  # the function may be the user's
        raise errors.InputError(
            f"{start}: the function of task {reader.task.name!r} fails ({errors.first_line(error)})"
        ) from error
    if not documents:
        raise errors.InputError(f"{start}: task {reader.task.name!r} makes no document of it")
    vocabulary = reader.tokenizer or reader.task.token_space
    assert vocabulary is not None
    for document in documents:
        if document.text is not None:
            continue
        if not document.tokens:
            raise errors.InputError(
                f"{start}: task {reader.task.name!r} made a document without text or tokens "
                f"({document.name})"
            )
        least, largest = min(document.tokens), max(document.tokens)
        if least < 0 or largest >= vocabulary.vocab_size:
            raise errors.InputError(
                f"{start}: {document.name} has the token {least if least < 0 else largest}; "
                f"allowed: 0 to {vocabulary.vocab_size - 1}"
            )
    return documents, f"{source} ({corpus.name}{_unused(corpus)})"


# Documents that are compared at a time when some are drawn.
_DRAWN_AT_ONCE = 2**16


def _drawn(documents: Iterable[Document], count: int | None, seed: int) -> list[Document]:
    """Return `count` documents (None: all), the first by a hash of their ids, in their order.

    Documents may be made while they are drawn: no more than `count` are kept.
    """
    if count is None:
        return list(documents)
    kept: list[Document] = []
    rest = iter(documents)
    while more := list(itertools.islice(rest, _DRAWN_AT_ONCE)):
        kept += more
        ids_N = np.array([document.id for document in kept], np.uint64)
        first = hash_order(ids_N, "pretraining documents", seed)[:count]
        kept = [kept[n] for n in np.sort(first).tolist()]
    return kept


def open_stream(
    pretrain: PretrainSettings,
    reader: Reader,
    task: TaskSettings,
    notes: list[str],
) -> Corpus:
    """Open text that is read while a role is pretrained, in rows of `pretrain.chunk_length`.

    Raises:
      InputError: there is no such text, or `pretrain.steps` is None.
    """
    source = pretrain.source
    assert source is not None
    tokenizer = reader.tokenizer
    if tokenizer is None or source == "task" or source in reader.task.pretraining:
        raise errors.InputError(
            f"pretrain.streaming: True, but the pretraining documents of task "
            f"{task.name!r} are not a corpus of text; allowed: False"
        )
    if pretrain.max_docs is not None:
        raise errors.InputError(
            f"pretrain.max_docs: {pretrain.max_docs}, but a stream reads all texts; allowed with "
            "pretrain.streaming: None"
        )
    if pretrain.steps is None:
        raise errors.InputError(
            "pretrain.steps: None, but a stream has no end; pretrain.streaming needs a number of "
            "steps"
        )
    found = find_corpus(source, task.data_dir, train_split=task.train_split)
    corpus = open_corpus(found.path, found.split or "train")
    check_stream(corpus, tokenizer, row_length=pretrain.chunk_length)
    notes.append(f"pretraining streams {len(corpus):,} texts from {corpus.name}{_unused(found)}")
    return corpus


def _unused(corpus: CorpusFiles) -> str:
    return f"; unused: {', '.join(corpus.unused)}" if corpus.unused else ""


def stream_digest(corpus: Corpus, tokenizer: Tokenizer) -> str:
    """Return a digest of everything that decides the tokens, except seed and row length."""
    parts = f"stream 1;{corpus.digest};{tokenizer.digest}"
    return hashlib.sha256(parts.encode()).hexdigest()
