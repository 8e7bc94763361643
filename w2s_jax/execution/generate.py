"""`w2s generate`: completions of prompts by a model or a phase, for people."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_jax.core.errors import InputError, shown
from w2s_jax.core.files import atomic_write, read_json
from w2s_jax.data.documents import stable_id
from w2s_jax.data.formats import read_json_lines
from w2s_jax.data.tokenized import offsets_of
from w2s_jax.data.tokenizers import Tokenizer, load_tokenizer
from w2s_jax.models.locations import split_layers

if TYPE_CHECKING:
    from w2s_jax.models.loading import Loaded

#: Tokens of a completion where neither the command nor the phase says.
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn; see `models.generate`. `max_new_tokens` None: as the phase's."""

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    num_samples: int = 1
    seed: int = 0


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file: `prompt`, and `id` where a row has it.

    Raises:
      InputError: it cannot be read, a row has no prompt, or there is none.
    """
    if not path.is_file():
        raise InputError(f"--prompts: there is no file {path}")
    rows = []
    for where, record in read_json_lines(path):
        prompt = record.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"{where}: field 'prompt': {shown(prompt)}; it must be a text")
        row = {"id": record["id"]} if record.get("id") is not None else {}
        rows.append(row | {"prompt": prompt})
    if not rows:
        raise InputError(f"--prompts: {path} has no rows")
    return rows


def generate(
    source: str, rows: Sequence[Mapping[str, Any]], sampling: Sampling, tokenizer: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield a row for each sample of each prompt: that of the prompt, and text, sample, logprob.

    Args:
      source: a phase folder, or what `models.load` takes.
      rows: with `prompt`.
      sampling: how completions are drawn.
      tokenizer: as `task.tokenizer`; None for the model's own.

    Raises:
      InputError: there is no such model, it has no tokenizer or generates no text, or an argument
        is out of range.
    """
    from w2s_jax import models
    from w2s_jax.models import loading

    loaded = loading.load_all(source, with_head=False)
    record = _record(source)
    _refuse_classifier(source, loaded)
    reader = _tokenizer(source, loaded, record, tokenizer)
    completion = record.get("spec", {}).get("completion") or {}
    most = sampling.max_new_tokens
    if most is None:
        most = completion.get("max_new_tokens", MAX_NEW_TOKENS)
    tokens, logprobs = models.generate(
        loaded.config,
        loaded.params,
        _encoded(reader, [row["prompt"] for row in rows]),
        max_new_tokens=most,
        eos=completion.get("end", reader.end_of_text),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        num_samples=sampling.num_samples,
        seed=sampling.seed,
        # A row with an id has the same samples wherever it stands.
        ids=[stable_id("prompt", str(row.get("id", n))) for n, row in enumerate(rows)],
        return_logprobs=True,
    )
    for row, samples, of_samples in zip(rows, tokens, logprobs, strict=True):
        for number, (ids, logp) in enumerate(zip(samples, of_samples, strict=True)):
            text = reader.decode(np.array(ids, np.int32))
            yield dict(row) | {"text": text, "sample": number, "logprob": float(np.sum(logp))}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows to a new JSON Lines file."""
    with atomic_write(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def refuse_target(path: Path) -> None:
    """Refuse a file that cannot be written, before any work.

    Raises:
      InputError: it exists, or its folder does not.
    """
    if path.exists():
        raise InputError(f"--to: {path} exists; remove it, or choose another name")
    if not path.parent.is_dir():
        raise InputError(f"--to: {path}: the folder {path.parent} does not exist")


def _record(source: str) -> dict[str, Any]:
    """Return config.json of a phase folder; {} for other models."""
    path = Path(split_layers(source)[0]).expanduser() / "config.json"
    found = read_json(path) if path.is_file() else {}
    return found if "spec" in found else {}


def _refuse_classifier(source: str, loaded: "Loaded") -> None:
    if loaded.head is not None:
        raise InputError(
            f"--from: {source} is a classifier, which generates no text; give a language model, or "
            "a phase of pretraining or of a task that asks for completions"
        )


def _tokenizer(
    source: str, loaded: "Loaded", record: Mapping[str, Any], given: str | None
) -> Tokenizer:
    if given is None and loaded.tokenizer is not None:
        given = str(loaded.tokenizer)
    given = given or record.get("tokenizer")
    if given is None:
        raise InputError(
            f"--from: {source} has no tokenizer; name one with --tokenizer: 'bytes', or a folder, "
            "file or hub id of a fast Hugging Face tokenizer"
        )
    try:
        return load_tokenizer(given)
    except InputError as error:
        reason = str(error).removeprefix("task.tokenizer: ")
        raise InputError(f"--tokenizer: {reason}") from error


def _encoded(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    try:
        tokens_T, lengths_N = tokenizer.encode_batch(list(prompts))
    except InputError as error:
        reason = str(error).removeprefix("task.tokenizer: ")
        raise InputError(f"--prompt: {reason}") from error
    pieces = np.split(tokens_T, offsets_of(lengths_N)[1:-1])
    return [[*tokenizer.prefix, *piece.tolist()] for piece in pieces]
