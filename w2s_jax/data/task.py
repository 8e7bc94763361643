"""Declarations of tasks: how records become documents, and the sources of the records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from w2s_jax.data.documents import Document, ImageSpace
from w2s_jax.data.templates import Template


@dataclass(frozen=True, slots=True)
class TokenSpace:
    """The vocabulary of a task whose documents are tokens.

    Attributes:
      vocab_size: number of ids.
      pad_id, bos_id: ids of padding and of the beginning of a document.
      label_tokens: ids of the tokens for the labels 0 to C - 1 (a head may be initialised from
        their rows of the unembedding); () if there are none, as in images.
    """

    vocab_size: int
    pad_id: int
    bos_id: int
    label_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible item of a record; the protocol's item expansion chooses among them.

    Attributes:
      text: the content; in a preference task a pair of texts to be compared.
      label: as in the record: a number or the name of a class (the loader checks it and converts
        it to 0 ... C - 1). Of a pair: 1 if the second text is better. None if there is only a soft
        label, and in a generation task.
      group: as in `Document`.
      meta: as in `Document`.
      soft_label: from people or a judge, as in the record: P(label 1) of two classes; of C > 2 a
        list of probabilities, or a mapping from class to probability.
      target: the expected completion of the text, in a generation task.
      pixels: uint8 values of an image, the content of a document of an image task, whose `text` is
        ''.
    """

    text: str | tuple[str, str]
    label: Any
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    soft_label: Any = None
    target: str | None = None
    pixels: bytes | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The text, or both texts of a pair, as a tuple."""
        return (self.text,) if isinstance(self.text, str) else self.text


@dataclass(frozen=True, slots=True)
class Origin:
    """A task's dataset in a public catalogue, and how to convert it.

    Attributes:
      name: 'organisation/name' on the Hugging Face hub, 'name' or 'name/config' in TFDS.
      config: the hub's configuration; None if there is only one.
      folder: the hub's `data_dir`, for repositories with several datasets in folders.
      splits: our name -> the catalogue's name of all splits in use; empty: all, unchanged.
      convert: converts a record of the catalogue to one with the fields of `Task.fields`; None: it
        has them.
    """

    name: str
    config: str | None = None
    folder: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    convert: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


KINDS = ("classification", "preference", "generation")


@dataclass(frozen=True, slots=True)
class Task:
    """A task.

    Attributes:
      name: the value of `task.name`, and the folder of local data.
      description, licence: for people. The licence is that of the data.
      fields: fields that each record must have.
      expand: (record, where) -> candidates: one if the record is one item; several (at least one
        with label 1 and one with label 0) if, for example, a question has several answers; none if
        the task does not use the record (a third class, say). `where` names the record in errors.
      kind: 'classification' (a class of one text or token sequence), 'preference' (which
        of two texts is better; 1: the second) or 'generation' (a completion of a prompt).
      orders: the candidates of a record are one content in several orders; one is drawn by a hash
        of the record and `split_seed`, whatever the item expansion.
      folder: the folder of local files if it is shared with another task; None: the name.
      hub, tfds: the dataset on the Hugging Face hub and in the TFDS catalogue.
      load: for embedded data: load(split_seed=...) -> documents by split.
      token_space: for tasks whose documents are tokens.
      image: for tasks whose documents are images; they are tokens too.
      truncate: side at which over-long texts are cut: 'end', or 'start' if the most important part
        (a question, a reply) comes last. Default: 'start' for pairs, whose texts often begin alike;
        else 'end'.
      label_field: the field that unlabelled records lack, leave empty or set to -1; in a generation
        task that of the target, which `expand` then makes of a record without it as None.
      empty: what to do with records that have an empty text: 'skip' or 'error'.
      warning: printed by runs and `w2s data`, to prevent misreading results.
      train_split: 'validation' or 'test' if the dataset has no other split with labels to train
        on; runs take it where there is no 'train' (see `task.train_split`).
      optional_fields: fields that a record may have.
      classes: names of the classes, in the order of the labels 0, 1, ..., C - 1; (): two classes
        without names. Labels of records may be names, and exported classifiers have them.
      templates: words around the texts and for the classes, by name: `task.template` picks one, and
        prompting averages over all. Of tasks of texts with classes.
      answer: (text of a completion) -> the answer in it, '' if there is none. None: the text
        without spaces around it. Only of generation tasks, as all that follow.
      correct: (answer, document) -> whether it is right. None: it equals the answer in the
        document's target, and is not ''.
      scores: name -> (answer, document) -> a number or a boolean, or None where the score does not
        apply to the document; the means of the others are reported beside the accuracy.
      tokenizer: name of the tokenizer of embedded models, in place of the config's default: a task
        may bring its own.
      pretraining: (records, tokenizer, *, max_docs) -> documents to pretrain on, by the name of a
        `pretrain.source` whose records the task converts itself. `records` yields (where, record).
        The documents are tokens, with the tokenizer's special ones, or texts. If there would be
        more than `max_docs` (None: no limit), so many are drawn by a hash: by the function, where
        it need not make the others, else from what it returns.
    """

    name: str
    description: str
    licence: str
    fields: tuple[str, ...] = ()
    expand: Callable[[Mapping[str, Any], str], list[Candidate]] | None = None
    kind: str = "classification"
    orders: bool = False
    folder: str | None = None
    hub: Origin | None = None
    tfds: Origin | None = None
    load: Callable[..., dict[str, list[Document]]] | None = None
    token_space: TokenSpace | None = None
    image: ImageSpace | None = None
    truncate: str = ""
    warning: str | None = None
    train_split: str | None = None
    optional_fields: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    label_field: str = "label"
    empty: str = "error"
    answer: Callable[[str], str] | None = None
    correct: Callable[[str, Document], bool] | None = None
    scores: Mapping[str, Callable[[str, Document], float | None]] = field(default_factory=dict)
    tokenizer: str | None = None
    pretraining: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    templates: Mapping[str, Template] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.truncate:
            side = "end" if self.kind == "classification" else "start"
            object.__setattr__(self, "truncate", side)

    @property
    def generates(self) -> bool:
        """True if documents ask for a completion."""
        return self.kind == "generation"

    def answer_in(self, text: str) -> str:
        """Return the answer in a completion; '' if there is none."""
        return text.strip() if self.answer is None else self.answer(text)

    def is_correct(self, answer: str, document: Document) -> bool:
        """Return whether an answer to a document is right."""
        if self.correct is not None:
            return bool(self.correct(answer, document))
        return answer != "" and answer == self.answer_in(document.target or "")

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return len(self.classes) or 2

    @property
    def num_texts(self) -> int:
        """Number of texts, and so of read-outs, of a document."""
        return 2 if self.kind == "preference" else 1
