"""The commands `w2s data show | check | prepare`; `listing` has `w2s data list`."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from w2s_jax.core.errors import InputError, listed, unknown
from w2s_jax.data import check
from w2s_jax.data.completions import tokenization
from w2s_jax.data.documents import Document, hash_order
from w2s_jax.data.loading import LoadedTask, load
from w2s_jax.data.roles import POOL
from w2s_jax.data.task import Task
from w2s_jax.data.templated import tokenize_inside
from w2s_jax.data.templates import find_template
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.data.tokenizers import Tokenizer, load_tokenizer

#: Most columns of a line between documents.
MAX_RULE = 100
#: Most classes that `w2s data check` lists.
MAX_CLASS_ROWS = 50


def _load(name: str, console: Console, **how: Any) -> LoadedTask:
    """Load a task (`how` is as of `loading.load`), and print where it is from, and its notes."""
    loaded = load(name, **how)
    console.print(f"{name}: from {loaded.source}, {loaded.location}", highlight=False, markup=False)
    files = [f"{split}: {name}" for split, name in loaded.names.items() if name != split]
    if loaded.unused:
        files.append(f"unused: {', '.join(loaded.unused)}")
    if files:
        console.print("; ".join(files), highlight=False, markup=False)
    console.print(loaded.task.description, highlight=False, markup=False)
    for note in (*loaded.notes, *_on_training(loaded, how.get("train_split"))):
        console.print(f"note: {note}", highlight=False, markup=False)
    return loaded


def _on_training(loaded: LoadedTask, wanted: str | None) -> list[str]:
    """Return a note where a run trains on another split than 'train', or on none."""
    try:
        chosen = loaded.training_split(wanted)
    except InputError as error:
        return [f"a run would be refused: {error}"]
    return [] if chosen == "train" else [f"runs train on {loaded.file_names[chosen]}"]


def _tokenizer(loaded: LoadedTask, name: str) -> Tokenizer | None:
    if loaded.task.token_space is None:
        own = loaded.task.tokenizer if name == "bytes" else None
        return load_tokenizer(own or name)
    if name != "bytes":
        raise InputError(f"--tokenizer: {name!r}, but the documents of this task are tokens")
    return None


def show_task(
    name: str,
    console: Console,
    *,
    n: int = 3,
    split: str | None = None,
    tokenizer_name: str = "bytes",
    max_length: int | None = None,
    overlong: str = "truncate",
    template: str | None = None,
    **how: Any,
) -> None:
    """Print `n` documents of a split (default: the first) as the model sees them.

    Args:
      name: of the task.
      console: to print on.
      n: number of documents.
      split: of the documents.
      tokenizer_name: of the tokenizer.
      max_length, overlong: as in `tokenize`.
      template: of the task, around the texts; None: the bare texts.
      **how: as of `loading.load`.

    Raises:
      InputError: an unknown task, split or template, or bad data.
    """
    if n < 1:
        raise InputError(f"--n: {n}; must be at least 1")
    loaded = _load(name, console, **how)
    split = next(iter(loaded.documents)) if split is None else split
    if split not in loaded.documents:
        raise unknown("--split", split, loaded.documents)
    documents = loaded.documents[split]
    order_N = hash_order(np.array([d.id for d in documents], np.uint64), "show")[:n]
    picked = [documents[i] for i in order_N]
    tokenizer = _tokenizer(loaded, tokenizer_name)
    convert = tokenization(loaded.task)
    if template is not None:
        chosen = find_template(loaded.task, template, "--template")
        convert = functools.partial(
            tokenize_inside, template=chosen, num_classes=loaded.task.num_classes
        )
    tokens, _ = convert(
        picked,
        tokenizer,
        max_length=max_length,
        overlong=overlong,
        truncate=loaded.task.truncate,
    )
    by_id = {int(i): number for number, i in enumerate(tokens.ids_N)}
    for document in picked:
        number = by_id.get(document.id)
        _rule(console, _title(document, split, loaded.task))
        if number is None:
            console.print("dropped: longer than --max_length", highlight=False)
            continue
        for line in _lines(tokens, number, tokenizer):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    _rule(console)


def _rule(console: Console, title: str = "") -> None:
    # Where the output is no terminal, the width of a console has no limit.
    rule = Rule(title, align="left", style="dim")
    console.print(rule, width=min(console.width, MAX_RULE))


def _title(document: Document, split: str, task: Task) -> str:
    parts = [split, f"id {document.id}"]
    if document.label is not None:
        means = f" ({task.classes[document.label]})" if task.classes else ""
        means = f" (text {document.label + 1} is better)" if document.texts else means
        parts.append(f"label {document.label}{means}")
    if isinstance(document.soft_label, tuple):
        named = zip(task.classes, document.soft_label, strict=True)
        parts.append(f"soft label {listed((f'{name} {p:g}' for name, p in named), limit=80)}")
    elif document.soft_label is not None:
        parts.append(f"soft label {document.soft_label}")
    if document.label is None and document.soft_label is None and not document.target:
        parts.append("no label" if document.target is None else "no target")
    if document.group is not None:
        group = " ".join(document.group.split())
        parts.append(f"group {group[:40]}{'...' if len(group) > 40 else ''}")
    return ", ".join(parts)


def _lines(tokens: TokenizedDocuments, number: int, tokenizer: Tokenizer | None) -> Iterator[str]:
    """Yield the texts of a document: its text, both of a pair, or the prompt and the target."""
    if tokens.prompt_lengths_P is not None:
        tokens_L, length = tokens.document(number), int(tokens.prompt_lengths_P[number])
        yield _words(tokens_L[:length], "prompt, ", tokenizer)
        if length + 1 == len(tokens_L):  # no target, just an end
            return
        yield _words(tokens_L[length:], "target, ", tokenizer)
        return
    for k in range(tokens.num_texts):
        which = f"text {k + 1}, " if tokens.num_texts > 1 else ""
        yield _words(tokens.document(number, k), which, tokenizer)


def _words(tokens_L: np.ndarray, which: str, tokenizer: Tokenizer | None) -> str:
    body = " ".join(map(str, tokens_L)) if tokenizer is None else tokenizer.decode(tokens_L)
    return f"({which}{len(tokens_L)} tokens) {body}"


def check_task(
    name: str,
    console: Console,
    *,
    tokenizer_name: str = "bytes",
    **how: Any,
) -> None:
    """Print counts, class balance, lengths, duplicates and leaks of a task's splits.

    Args:
      name: of the task.
      console: to print on.
      tokenizer_name: of the tokenizer.
      **how: as of `loading.load`.

    Raises:
      InputError: an unknown task, or bad data.
    """
    loaded = _load(name, console, **how)
    tokenizer = _tokenizer(loaded, tokenizer_name)
    facts = {}
    convert = tokenization(loaded.task)
    for split, documents in loaded.documents.items():
        tokens, _ = convert(
            documents, tokenizer, max_length=None, overlong="error", empty=loaded.empty
        )
        lengths_N, targets_N = tokens.lengths_N, None
        if tokens.prompt_lengths_P is not None and split != POOL:
            targets_N = lengths_N - tokens.prompt_lengths_P
        facts[split] = check.split_facts(documents, lengths_N, targets_N)
    console.print(_facts_table(facts, loaded.task))
    if loaded.task.num_classes > 2:
        _print_classes(facts, loaded.task.classes, console)
    unit = "tokens" if tokenizer is None else f"tokens ({tokenizer.name})"
    for split, found in facts.items():
        _print_histogram(f"{split}: {unit} per document", found.lengths_N, console)
        if found.targets_N is not None:
            _print_histogram(f"{split}: {unit} per target", found.targets_N, console)
    _print_overlaps(check.overlaps(loaded.documents), console)


def _print_classes(
    facts: dict[str, check.SplitFacts], classes: Sequence[str], console: Console
) -> None:
    """Print the number of documents of each class by split; of many classes the first."""
    table = Table(box=None, pad_edge=False)
    table.add_column("label", justify="right")
    table.add_column("class")
    for split in facts:
        table.add_column(split, justify="right")
        table.add_column("share", justify="right")
    for label, name in enumerate(classes[:MAX_CLASS_ROWS]):
        cells = []
        for found in facts.values():
            count = found.counts.get(label, 0)
            cells += [f"{count:,}", f"{count / found.documents:.3f}"]
        table.add_row(str(label), Text(name), *cells)
    console.print()
    console.print(table)
    rest = range(MAX_CLASS_ROWS, len(classes))
    if rest:
        counts = (
            f"{sum(found.counts.get(label, 0) for label in rest):,} documents of {split}"
            for split, found in facts.items()
        )
        console.print(f"and {len(rest):,} more: {', '.join(counts)}", highlight=False)
    everywhere = {label for found in facts.values() for label in found.counts}
    for split in [name for name in ("validation", "test") if name in facts]:
        missing = [classes[label] for label in sorted(everywhere - facts[split].counts.keys())]
        if missing:
            console.print(
                f"note: {split} has no document of {listed(missing)}; a run needs some, or "
                "protocol.balance_test=False",
                highlight=False,
                markup=False,
            )


def _facts_table(facts: dict[str, check.SplitFacts], task: Task) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("split")
    classes = () if task.generates or task.num_classes > 2 else ("label 1", "share")
    last = "prompts with different targets" if task.generates else "conflicting labels"
    for column in ("documents", *classes, "groups", "largest", "duplicates", last):
        table.add_column(column, justify="right")
    for split, found in facts.items():
        cells: tuple[str, ...] = ("-", "-")
        if found.positive is not None:
            cells = f"{found.positive:,}", f"{found.positive / found.documents:.3f}"
        table.add_row(
            split,
            f"{found.documents:,}",
            *(cells if classes else ()),
            f"{found.groups:,}",
            f"{found.largest_group:,}",
            f"{found.duplicates:,}",
            f"{found.conflicts:,}",
        )
    return table


def _print_histogram(title: str, lengths_N: np.ndarray, console: Console) -> None:
    mean, middle = lengths_N.mean(), np.median(lengths_N)
    console.print(
        f"\n{title}, mean {mean:.1f}, median {middle:.0f}, longest {lengths_N.max():,}",
        highlight=False,
    )
    rows = check.length_histogram(lengths_N)
    most = max(count for _, _, count in rows)
    digits = len(f"{rows[-1][1]:,}")
    for low, high, count in rows:
        bar = "█" * round(40 * count / most) or ("▏" if count else "")
        console.print(f"  {low:>{digits},} to {high:>{digits},} {count:>8,} {bar}", highlight=False)


def _print_overlaps(found: Sequence[check.Overlap], console: Console) -> None:
    console.print()
    if not any(o.texts or o.groups for o in found):
        console.print("no text or group appears in more than one split", highlight=False)
        return
    for o in found:
        if o.texts or o.groups:
            console.print(
                f"{o.first} vs {o.second}: {o.texts:,} duplicate texts; {o.groups:,} {o.first} "
                f"documents share a group with {o.second}",
                highlight=False,
            )
    console.print(
        "With protocol.grouping, a run drops such training and unlabelled documents; without it "
        "they are used.",
        highlight=False,
    )


def prepare_task(
    name: str, to: str, console: Console, *, source: str = "auto", data_dir: str | None = None
) -> None:
    """Write a task (or a folder of texts) as a TFDS ArrayRecord dataset in `to`.

    Raises:
      InputError: an unknown task, bad data, or an existing dataset.
    """
    from w2s_jax.data.prepare import prepare

    summary = prepare(name, to, source=source, data_dir=data_dir)
    console.print(str(summary), highlight=False, markup=False, soft_wrap=True)
