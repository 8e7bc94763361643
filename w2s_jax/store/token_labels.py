"""Labels that are completions, and pairs of completions, in a phase's folder.

labels/              Orbax: split -> ids, tokens, lengths, logprobs and, if stored, distributions
labels/texts.parquet the texts: id, split, text (pairs: first, second, preference)

Shapes in names: N documents, T most tokens of a completion, k tokens of a stored distribution.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core import errors, processes
from w2s_jax.core.files import atomic_write, read_json
from w2s_jax.store.artifacts import PhaseFolder, as_ids, as_pairs


@dataclass(frozen=True)
class TokenLabels:
    """A completion of each document.

    Attributes:
      ids_N: uint64 document ids.
      texts: the completions as texts.
      tokens_NT: int32 ids of the supervisor's tokens, without the end; 0 after the last.
      lengths_N: int32, number of tokens of each; below T if it ended by itself.
      logprobs_NT1: float32 [N, T + 1], log-probability of each token, and of the end behind the
        last one; 0 elsewhere. NaN where nobody knows, as of texts from a file.
      top_ids_NTk: int32 [N, T, k], the supervisor's most probable tokens at each position, that of
        the end included; None without.
      top_logprobs_NTk: float32, their log-probabilities.
    """

    ids_N: np.ndarray
    texts: Sequence[str]
    tokens_NT: np.ndarray
    lengths_N: np.ndarray
    logprobs_NT1: np.ndarray
    top_ids_NTk: np.ndarray | None = None
    top_logprobs_NTk: np.ndarray | None = None

    @property
    def ended_N(self) -> np.ndarray:
        """Whether each completion ended by itself, bool [N]; others were cut off."""
        return self.lengths_N < self.tokens_NT.shape[1]

    @property
    def total_logprobs_N(self) -> np.ndarray:
        """Log-probability of each completion with its end, float32 [N]."""
        return self.logprobs_NT1.sum(1, dtype=np.float64).astype(np.float32)

    def select(self, indices: Any) -> "TokenLabels":
        """Return the labels at `indices` (integers or a mask)."""
        rows = np.arange(len(self.ids_N))[indices]
        top = (self.top_ids_NTk, self.top_logprobs_NTk)
        return TokenLabels(
            self.ids_N[rows],
            [self.texts[n] for n in rows.tolist()],
            self.tokens_NT[rows],
            self.lengths_N[rows],
            self.logprobs_NT1[rows],
            *(None if values is None else values[rows] for values in top),
        )


@dataclass(frozen=True)
class Pairs:
    """Two completions of each document, to be compared.

    Attributes:
      ids_N: uint64 document ids; a document may occur several times.
      first, second: the completions as texts.
      preference_N: float32, P(the first is better).
      ended_N2: bool, whether each ended by itself; others were cut off.
    """

    ids_N: np.ndarray
    first: Sequence[str]
    second: Sequence[str]
    preference_N: np.ndarray
    ended_N2: np.ndarray


def chosen_of(members: Sequence[TokenLabels], chosen_N: np.ndarray) -> TokenLabels:
    """Return for each document the completion of one of m supervisors, by its index [N]."""
    rows_N = np.arange(len(chosen_N))

    def taken(name: str) -> np.ndarray:
        return np.stack([getattr(labels, name) for labels in members])[chosen_N, rows_N]

    texts = [members[m].texts[n] for n, m in enumerate(chosen_N.tolist())]
    names = ["tokens_NT", "lengths_N", "logprobs_NT1"]
    if all(labels.top_ids_NTk is not None for labels in members):
        names += ["top_ids_NTk", "top_logprobs_NTk"]
    return TokenLabels(members[0].ids_N, texts, *(taken(name) for name in names))


def save(folder: PhaseFolder, labels: Mapping[str, TokenLabels]) -> None:
    """Store completions by split."""
    columns: dict[str, list[Any]] = {"id": [], "split": [], "text": []}
    tree: dict[str, Any] = {}
    for split, found in labels.items():
        columns["id"] += found.ids_N.tolist()
        columns["split"] += [split] * len(found.ids_N)
        columns["text"] += list(found.texts)
        tree[split] = {
            "ids": as_pairs(found.ids_N),
            "tokens": found.tokens_NT.astype(np.int32),
            "lengths": found.lengths_N.astype(np.int32),
            "logprobs": found.logprobs_NT1.astype(np.float32),
        }
        if found.top_ids_NTk is not None and found.top_logprobs_NTk is not None:
            tree[split]["top_ids"] = found.top_ids_NTk.astype(np.int32)
            tree[split]["top_logprobs"] = found.top_logprobs_NTk.astype(np.float32)
    _save(folder, tree, columns)


def save_pairs(folder: PhaseFolder, pairs: Mapping[str, Pairs]) -> None:
    """Store pairs of completions by split."""
    names = ("id", "split", "first", "second", "preference")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    tree: dict[str, Any] = {}
    for split, found in pairs.items():
        columns["id"] += found.ids_N.tolist()
        columns["split"] += [split] * len(found.ids_N)
        columns["first"] += list(found.first)
        columns["second"] += list(found.second)
        columns["preference"] += found.preference_N.tolist()
        preference_N = found.preference_N.astype(np.float32)
        tree[split] = {
            "ids": as_pairs(found.ids_N),
            "preference": preference_N,
            "ended": found.ended_N2.astype(np.int32),
        }
    _save(folder, tree, columns)


def record(labels: Mapping[str, TokenLabels]) -> dict[str, Any]:
    """Return the field `labels` of a phase's result.json."""
    any_of = next(iter(labels.values()))
    top = any_of.top_ids_NTk
    return {
        "kind": "tokens",
        "splits": {split: len(found.ids_N) for split, found in labels.items()},
        "distinct": {split: len(set(found.ids_N.tolist())) for split, found in labels.items()},
        "max_new_tokens": int(any_of.tokens_NT.shape[1]),
        "top_k": 0 if top is None else int(top.shape[-1]),
    }


def record_of_pairs(pairs: Mapping[str, Pairs]) -> dict[str, Any]:
    """Return the field `labels` of a phase's result.json, for pairs."""
    return {
        "kind": "pairs",
        "splits": {split: len(found.ids_N) for split, found in pairs.items()},
        "distinct": {split: len(set(found.ids_N.tolist())) for split, found in pairs.items()},
    }


def stored(folder: PhaseFolder, split: str) -> TokenLabels:
    """Return the completions of a split as `save` took them.

    Raises:
      StorageError: they are damaged.
      InputError: the phase stored none for the split.
    """
    from w2s_jax.store.trees import load_part

    facts = _facts(folder, split, "tokens")
    n, length, top_k = facts["splits"][split], facts["max_new_tokens"], facts["top_k"]
    target: dict[str, np.ndarray] = {
        "ids": np.zeros((n, 2), np.uint32),
        "tokens": np.zeros((n, length), np.int32),
        "lengths": np.zeros(n, np.int32),
        "logprobs": np.zeros((n, length + 1), np.float32),
    }
    if top_k:
        target["top_ids"] = np.zeros((n, length, top_k), np.int32)
        target["top_logprobs"] = np.zeros((n, length, top_k), np.float32)
    tree = load_part(folder.labels, {split: target})[split]
    table = _texts(folder, split)
    return TokenLabels(
        as_ids(tree["ids"]),
        table["text"],
        *(np.asarray(tree[name]) for name in ("tokens", "lengths", "logprobs")),
        *(np.asarray(tree[name]) if top_k else None for name in ("top_ids", "top_logprobs")),
    )


def load(folder: PhaseFolder, split: str, ids_N: np.ndarray) -> TokenLabels:
    """Return the completions of the documents `ids_N`, joined by id.

    Raises:
      StorageError: the stored ones are damaged.
      InputError: a document has none.
    """
    found = stored(folder, split)
    row_of = {int(id_): n for n, id_ in enumerate(found.ids_N)}
    missing = [int(id_) for id_ in ids_N if int(id_) not in row_of]
    if missing:
        raise errors.InputError(
            f"{folder.labels}: {len(missing)} of {len(ids_N)} documents of {split!r} are missing "
            f"(the first: id {missing[0]}); the labels belong to another run"
        )
    return found.select(np.array([row_of[int(id_)] for id_ in ids_N], np.int64))


def load_pairs(folder: PhaseFolder, split: str) -> Pairs:
    """Return the pairs of a split as stored.

    Raises:
      StorageError: they are damaged.
      InputError: the phase stored none for the split.
    """
    from w2s_jax.store.trees import load_part

    n = _facts(folder, split, "pairs")["splits"][split]
    target = {
        "ids": np.zeros((n, 2), np.uint32),
        "preference": np.zeros(n, np.float32),
        "ended": np.zeros((n, 2), np.int32),
    }
    tree = load_part(folder.labels, {split: target})[split]
    table = _texts(folder, split)
    return Pairs(
        as_ids(tree["ids"]),
        table["first"],
        table["second"],
        np.asarray(tree["preference"]),
        np.asarray(tree["ended"]) > 0,
    )


def kind_of(folder: PhaseFolder) -> str:
    """Return the kind of a phase's labels: 'class', 'tokens', 'pairs', or '' if it has none."""
    return str(read_json(folder.result).get("labels", {}).get("kind", ""))


def _facts(folder: PhaseFolder, split: str, kind: str) -> dict[str, Any]:
    facts = read_json(folder.result).get("labels", {})
    if facts.get("kind") != kind or split not in facts["splits"]:
        raise errors.InputError(f"{folder.labels}: no labels of kind {kind!r} for {split!r}")
    return dict(facts)


def _save(folder: PhaseFolder, tree: Any, columns: Mapping[str, list[Any]]) -> None:
    from w2s_jax.store.checksums import write_manifest
    from w2s_jax.store.trees import save_tree

    save_tree(folder.labels, tree)

    def write() -> None:
        _write_texts(folder.labels / "texts.parquet", columns)
        # Once more, so that the texts are checked as the arrays are.
        write_manifest(folder.labels)

    processes.on_first("texts", write)


def _write_texts(path: Path, columns: Mapping[str, list[Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"id": pa.uint64(), "preference": pa.float32()}
    arrays = {
        name: pa.array(values, type=types.get(name, pa.string()))
        for name, values in columns.items()
    }
    with atomic_write(path) as file:
        pq.write_table(pa.table(arrays), file)


def _texts(folder: PhaseFolder, split: str) -> dict[str, list[Any]]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(folder.labels / "texts.parquet")
    columns: dict[str, list[Any]] = table.filter(pc.equal(table["split"], split)).to_pydict()
    return columns
