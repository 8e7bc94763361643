"""The text that models are pretrained on: read whole, or opened as a stream. Imports no JAX."""

import hashlib
from collections.abc import Mapping

from w2s_jax.config import PretrainSettings, TaskSettings
from w2s_jax.core import errors
from w2s_jax.data.corpus import Corpus, open_corpus
from w2s_jax.data.documents import Document, stable_id
from w2s_jax.data.sources import CorpusFiles, corpus_texts, find_corpus
from w2s_jax.data.stream import check_stream
from w2s_jax.data.tokenize import TokenizedDocuments, tokenize
from w2s_jax.data.tokenizers import Tokenizer


def read_chunks(
    pretrain: PretrainSettings,
    raw: Mapping[str, list[Document]],
    tokenizer: Tokenizer | None,
    task: TaskSettings,
    notes: list[str],
) -> TokenizedDocuments:
    """Return the tokenised pretraining text of a role, in chunks of `pretrain.chunk_length` tokens.

    Args:
      pretrain: the settings; `pretrain.source` says what to read.
      raw: split -> documents of the task, possibly with a split 'pretrain'.
      tokenizer: the role's; None if the task's documents are tokens.
      task: the task settings; `task.data_dir` says where to look.
      notes: a line on the text is appended.

    Raises:
      InputError: there is no such text, or its documents cannot be cut.
    """
    if pretrain.source == "task":
        if "pretrain" not in raw:
            raise errors.InputError(
                f"pretrain.source: 'task', but task {task.name!r} has no pretraining documents; "
                "give a folder of task.data_dir, or a file"
            )
        documents, origin = raw["pretrain"], "task"
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
        documents = [
            Document(id=stable_id("corpus", i, text), text=text) for i, text in enumerate(texts)
        ]
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


def open_stream(
    pretrain: PretrainSettings,
    tokenizer: Tokenizer | None,
    task: TaskSettings,
    notes: list[str],
) -> Corpus:
    """Open text that is read while a role is pretrained, in rows of `pretrain.chunk_length`.

    Raises:
      InputError: there is no such text, or `pretrain.steps` is None.
    """
    source = pretrain.source
    assert source is not None
    if tokenizer is None or source == "task":
        raise errors.InputError(
            f"pretrain.streaming: True, but the pretraining documents of task "
            f"{task.name!r} are not a corpus of text; allowed: False"
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
