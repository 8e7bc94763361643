"""`w2s labels`: the weak labels of a phase as a file that people and other tools read."""

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError
from w2s_jax.core.files import atomic_write, new_table, read_json
from w2s_jax.report.runs import phase_folder
from w2s_jax.store import artifacts, token_labels
from w2s_jax.store.artifacts import PhaseFolder

#: split -> (ids_N uint64, P(label 1) float32 [N], probabilities float32 [N, C], or texts).
Labels = Mapping[str, tuple[np.ndarray, Sequence[Any] | np.ndarray]]


def export(source: Path, to: Path) -> str:
    """Write the labels of a phase to a new file, and return a line on what was written.

    A row is a document: `id`, as uint64 in Parquet, else '0x' and 16 hexadecimal digits, because
    many tools round large numbers; `split`; `p`, the probability of label 1, or the `text` of its
    completion. Of more than two classes `p` is a list, in CSV the columns `p.<class>`.
    `weak.labels` accepts the file, and gives the same labels.

    Args:
      source: folder of a phase, or of a run with one weak model.
      to: the file; its suffix decides the format.

    Raises:
      InputError: no such phase, one without labels, several, an unknown format, or the file exists.
      StorageError: the labels are damaged.
    """
    suffix = new_table(to, "--to")
    folder = _phase(source)
    name, labels = _stored(folder)
    if suffix == ".parquet":
        data = _parquet(labels, name)
    elif suffix == ".csv":
        data = _csv(labels, name, read_json(folder.config).get("label_names", ()))
    else:
        data = _jsonl(labels, name)
        data = gzip.compress(data, mtime=0) if suffix.endswith(".gz") else data
    with atomic_write(to) as file:
        file.write(data)
    counts = ", ".join(f"{len(ids_N):,} {split}" for split, (ids_N, _) in labels.items())
    return f"{to}: labels of {folder.path.name}: {counts}"


def _stored(folder: PhaseFolder) -> tuple[str, Labels]:
    """Return the name of the column of labels, and the labels."""
    kind = token_labels.kind_of(folder)
    if kind == "pairs":
        raise InputError(f"PHASE: {folder.path} has pairs of completions, not a label a document")
    if kind == "tokens":
        splits = read_json(folder.result)["labels"]["splits"]
        found = {split: token_labels.stored(folder, split) for split in splits}
        return "text", {split: (labels.ids_N, labels.texts) for split, labels in found.items()}
    stored = artifacts.stored_labels(folder)
    return "p", {
        split: (ids_N, soft_NC[:, 1] if soft_NC.shape[1] == 2 else soft_NC)
        for split, (ids_N, soft_NC) in stored.items()
    }


def _phase(source: Path) -> PhaseFolder:
    """Return the phase that has the labels: `source`, or the weak model's of a run."""
    if not source.is_dir():
        raise InputError(f"PHASE: there is no folder {source}")
    folder = PhaseFolder(source)
    if not folder.complete:
        raise InputError(
            f"PHASE: {source} has no result.json: it is no phase or run, or not finished"
        )
    result = read_json(folder.result)
    if "stages" not in result:
        if "labels" not in result:
            others = sorted(path.name for path in source.resolve().parent.iterdir() if _has(path))
            raise InputError(
                f"PHASE: {source} has no labels; with labels here: {', '.join(others) or 'none'}"
            )
        return folder
    store = read_json(source / "config.json").get("store")
    names = dict.fromkeys(str(stage["phase"]) for stage in result["stages"])
    having = [p for name in names if (p := phase_folder(source, name, store)) and _has(p)]
    # Without a weak model, the supervisor's labels come from a file.
    weak = [path for path in having if path.name.startswith("weak-")] or having
    if len(weak) != 1:
        raise InputError(
            f"PHASE: {source} has {len(weak)} phases with labels; give one of them: "
            f"{', '.join(map(str, weak)) or 'none'}"
        )
    return PhaseFolder(weak[0])


def _has(path: Path) -> bool:
    folder = PhaseFolder(path)
    return path.is_dir() and folder.complete and "labels" in read_json(folder.result)


def _rows(labels: Labels) -> Iterator[tuple[str, str, Any]]:
    """Yield the rows of a text file; numbers are text, the shortest that gives the same float32."""
    for split, (ids_N, values_N) in labels.items():
        for id_, value in zip(ids_N.tolist(), values_N, strict=True):
            yield f"0x{id_:016x}", split, [*map(str, value)] if np.ndim(value) else str(value)


def _csv(labels: Labels, name: str, classes: Sequence[str] = ()) -> bytes:
    text = io.StringIO()
    # A carriage return in a text is kept only within quotes.
    writer = csv.writer(
        text,
        lineterminator="\n",
        quoting=csv.QUOTE_MINIMAL if name == "p" else csv.QUOTE_ALL,
    )
    several = any(np.ndim(values) > 1 for _, values in labels.values())
    columns = [f"{name}.{c}" for c in classes] if several else [name]
    writer.writerow(("id", "split", *columns))
    for id_, split, value in _rows(labels):
        writer.writerow((id_, split, *([value] if isinstance(value, str) else value)))
    return text.getvalue().encode()


def _jsonl(labels: Labels, name: str) -> bytes:
    lines = []
    for id_, split, value in _rows(labels):
        if name == "p":
            value = float(value) if isinstance(value, str) else [*map(float, value)]
        lines.append(json.dumps({"id": id_, "split": split, name: value}) + "\n")
    return "".join(lines).encode()


def _parquet(labels: Labels, name: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    splits = [split for split, (ids_N, _) in labels.items() for _ in range(len(ids_N))]
    values = [value for _, values_N in labels.values() for value in values_N]
    kind = pa.string()
    if name == "p":
        classes = np.size(values[0]) if values else 1
        kind = pa.float32() if classes == 1 else pa.list_(pa.float32(), classes)
    columns: dict[str, Any] = {
        "id": pa.array(np.concatenate([ids_N for ids_N, _ in labels.values()]), pa.uint64()),
        "split": pa.array(splits, pa.string()),
        name: pa.array(values, kind),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()
