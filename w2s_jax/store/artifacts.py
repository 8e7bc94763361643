"""Phase folders: paths, labels, features, predictions, results.

    DIR/phases/<kind>-<fingerprint>/  config.json checkpoints/ tokenizer/ labels/ features/
                                      predictions.parquet metrics.jsonl result.json

A phase is complete exactly when its result.json exists; it is written last, by a rename. JAX is
imported only to read and write labels and features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core import errors
from w2s_jax.core.files import atomic_write, checkpoint_location, read_json, sha256
from w2s_jax.store.claims import claim as claim
from w2s_jax.store.claims import claim_if_free as claim_if_free


@dataclass(frozen=True)
class PhaseFolder:
    """The files of one phase.

    Attributes:
      path: the folder.
      saves: folder of the mid-phase checkpoints if they are not in `path` (`checkpoint.dir`).
    """

    path: Path
    saves: Path | None = None

    @property
    def config(self) -> Path:
        """Everything that can change the phase's result, and how it was executed."""
        return self.path / "config.json"

    @property
    def result(self) -> Path:
        """The phase's result; it exists exactly when the phase is complete."""
        return self.path / "result.json"

    @property
    def metrics(self) -> Path:
        """One JSON record per step and per evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def predictions(self) -> Path:
        """Predictions of all validation and test documents (columns: `write_predictions`)."""
        return self.path / "predictions.parquet"

    @property
    def labels(self) -> Path:
        """Weak labels (Orbax)."""
        return self.path / "labels"

    @property
    def features(self) -> Path:
        """Features of documents at the read-outs (Orbax)."""
        return self.path / "features"

    @property
    def tokenizer(self) -> Path:
        """Tokenizer files of a pretrained model."""
        return self.path / "tokenizer"

    @property
    def steps(self) -> Path:
        """Mid-phase checkpoints (Orbax)."""
        return (self.saves or self.path / "checkpoints") / "steps"

    @property
    def population(self) -> Path:
        """Members that train together from `steps`; exists while they train."""
        return (self.saves or self.path / "checkpoints") / "population.json"

    @property
    def final(self) -> Path:
        """Final parameters (Orbax)."""
        return self.path / "checkpoints" / "final"

    @property
    def trained(self) -> Path:
        """Results of training besides the parameters; exists when `final` does."""
        return self.path / "checkpoints" / "trained.json"

    @property
    def complete(self) -> bool:
        """True if the phase is complete."""
        return self.result.exists()


def phase_folder(store: Path, name: str, saves: str | None) -> PhaseFolder:
    """Return the folder of a phase in a store; `saves` is the run's `checkpoint.dir`."""
    return PhaseFolder(
        store / name, saves=None if saves is None else checkpoint_location(saves) / name
    )


def read_result(folder: PhaseFolder) -> dict[str, Any]:
    """Return the result.json of a complete phase, after checking the files it has checksums of.

    Raises:
      StorageError: it is damaged, or predictions.parquet does not match its checksum.
    """
    remedy = f"move {folder.path} elsewhere, then run the same command again"
    try:
        result = read_json(folder.result)
        sums = dict(result["sha256"])
        float(result["seconds"]), result["kind"], result["execution"]["versions"]
    except (errors.InputError, KeyError, TypeError, ValueError) as error:
        raise errors.StorageError(f"{folder.result}: damaged ({error}); {remedy}") from error
    for name, wanted in sums.items():
        path = folder.path / name
        if not path.exists() or sha256(path) != wanted:
            raise errors.StorageError(
                f"{path}: does not match its recorded SHA-256 checksum; {remedy}"
            )
    return result


def save_labels(
    folder: PhaseFolder, labels: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    """Store class labels by Orbax: split -> (ids_N uint64, soft float32 [N, C]).

    Returns:
      What result.json has to say of them: the field `labels`.
    """
    _save_by_id(folder.labels, "soft", labels, {})
    sizes = {split: len(ids_N) for split, (ids_N, _) in labels.items()}
    classes = max((soft_NC.shape[1] for _, soft_NC in labels.values()), default=2)
    record: dict[str, Any] = {"kind": "class", "splits": sizes}
    return record | ({"classes": classes} if classes > 2 else {})


def load_labels(folder: PhaseFolder, split: str, ids_N: np.ndarray) -> np.ndarray:
    """Return the soft labels of the documents `ids_N`, float32 [N, C], joined by id.

    Raises:
      StorageError: the stored labels are damaged.
      InputError: a document has no label, or the phase stored none for the split.
    """
    record = read_json(folder.result)["labels"]
    if split not in record["splits"]:
        raise errors.InputError(f"{folder.labels}: no labels for {split!r}")
    return _load_by_id(folder.labels, "soft", record["splits"], _classes(record), split, ids_N)


def stored_labels(folder: PhaseFolder) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the class labels of a complete phase as `save_labels` takes them; {} if it has none.

    Raises:
      StorageError: they are damaged.
    """
    record = read_json(folder.result).get("labels", {})
    return {
        split: _stored_by_id(folder.labels, "soft", n, _classes(record), split)
        for split, n in record.get("splits", {}).items()
    }


def _classes(record: Mapping[str, Any]) -> tuple[int]:
    """Return the shape of a document's soft label, as `save_labels` has recorded it."""
    return (record.get("classes", 2),)


def labelled_ids(folder: PhaseFolder, split: str) -> np.ndarray:
    """Return the ids of the labelled documents of a split as stored, uint64 [N]."""
    record = read_json(folder.result)["labels"]
    n = record["splits"][split]
    if record["kind"] != "class":
        from w2s_jax.store.trees import load_part

        target = {split: {"ids": np.zeros((n, 2), np.uint32)}}
        return as_ids(load_part(folder.labels, target)[split]["ids"])
    return _stored_by_id(folder.labels, "soft", n, _classes(record), split)[0]


def read_parents(folder: PhaseFolder) -> dict[str, str]:
    """Return the names of a phase's parents by their role."""
    return dict(read_json(folder.config)["spec"].get("parents", {}))


def save_features(
    folder: PhaseFolder,
    features: Mapping[str, tuple[np.ndarray, np.ndarray]],
    head: Mapping[str, np.ndarray],
) -> None:
    """Store split -> (ids_N uint64, features float32 [N, K, D]), and an initial head.

    Features of J layers, float32 [N, J, K, D], are stored layer by layer, so that some can be read.
    """
    tree: dict[str, Any] = {}
    for split, (ids_N, values) in features.items():
        by_layer = values.ndim == 4
        parts = (
            {f"layer{j + 1}": values[:, j] for j in range(values.shape[1])}
            if by_layer
            else {"features": values}
        )
        tree[split] = {"ids": as_pairs(ids_N)} | {
            name: np.ascontiguousarray(part, np.float32) for name, part in parts.items()
        }
    _save(folder.features, tree | {"head": dict(head)})


def load_features(
    folder: PhaseFolder, split: str, ids_N: np.ndarray, layers: Sequence[int] = ()
) -> np.ndarray:
    """Return the features of the documents `ids_N`, float32 [N, K, D], joined by id.

    Args:
      folder: of the phase that stored them.
      split: the split.
      ids_N: ids of documents.
      layers: numbers, from 1, of the layers to average, where features are stored by layer.

    Raises:
      StorageError: they are damaged.
      InputError: a document has none.
    """
    record = read_json(folder.result)["features"]
    shape, path, sizes = tuple(record["shape"]), folder.features, record["splits"]
    if not layers:
        return _load_by_id(path, "features", sizes, shape, split, ids_N)
    total_NKD = np.zeros((len(ids_N), *shape), np.float32)
    for number in layers:
        total_NKD += _load_by_id(path, f"layer{number}", sizes, shape, split, ids_N)
    return total_NKD / np.float32(len(layers))


def load_features_head(folder: PhaseFolder) -> dict[str, np.ndarray]:
    """Return the head stored with features: {'kernel': float32 [D, 2 / K]}."""
    from w2s_jax.store.trees import load_part

    texts, width = read_json(folder.result)["features"]["shape"]
    return load_part(
        folder.features, {"head": {"kernel": np.zeros((width, 2 // texts), np.float32)}}
    )["head"]


def _save_by_id(
    path: Path,
    name: str,
    values: Mapping[str, tuple[np.ndarray, np.ndarray]],
    more: dict[str, Any],
) -> None:
    tree = {
        split: {"ids": as_pairs(ids_N), name: value.astype(np.float32)}
        for split, (ids_N, value) in values.items()
    }
    _save(path, tree | more)


def _save(path: Path, tree: Mapping[str, Any]) -> None:
    from w2s_jax.store.trees import save_tree

    save_tree(path, dict(tree))


def _load_by_id(
    path: Path,
    name: str,
    sizes: Mapping[str, int],
    shape: tuple[int, ...],
    split: str,
    ids_N: np.ndarray,
) -> np.ndarray:
    stored_ids_N, values_N = _stored_by_id(path, name, sizes[split], shape, split)
    row_of = {int(i): n for n, i in enumerate(stored_ids_N)}
    missing = [int(i) for i in ids_N if int(i) not in row_of]
    if missing:
        raise errors.InputError(
            f"{path}: {len(missing)} of {len(ids_N)} documents of {split!r} are missing (the "
            f"first: id {missing[0]}); the labels or features belong to another run"
        )
    return values_N[[row_of[int(i)] for i in ids_N]]


def _stored_by_id(
    path: Path, name: str, n: int, shape: tuple[int, ...], split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids, uint64 [n], and values, float32 [n, *shape], as stored."""
    from w2s_jax.store.trees import load_part

    target = {"ids": np.zeros((n, 2), np.uint32), name: np.zeros((n, *shape), np.float32)}
    stored = load_part(path, {split: target})[split]
    return as_ids(stored["ids"]), np.asarray(stored[name])


def as_pairs(ids_N: np.ndarray) -> np.ndarray:
    """Return ids as uint32 [N, 2]: Orbax may pass arrays through JAX, which truncates 64 bits."""
    return np.ascontiguousarray(ids_N, np.uint64).view(np.uint32).reshape(-1, 2)


def as_ids(pairs_N2: Any) -> np.ndarray:
    """Return the ids of `as_pairs`, uint64 [N]."""
    return np.ascontiguousarray(pairs_N2, np.uint32).view(np.uint64).reshape(-1)


def write_predictions(path: Path, columns: Mapping[str, np.ndarray | list[str]]) -> None:
    """Write predictions.parquet, one row per document.

    Args:
      path: the file.
      columns: `id` (uint64), `split`, and as float32 `p`, the model's P(label 1); `label`, the
        supervisor's P(label 1) in a student's file and ground truth in others; `ground_truth`, 0
        or 1. With C > 2 classes `p` is float32 [N, C], a fixed-size list in the file, and `label`
        (the most probable class of the supervisor) and `ground_truth` are class indices, int32.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    p = np.asarray(columns["p"], np.float32)
    label_type = pa.float32() if p.ndim == 1 else pa.int32()
    types = {
        "id": pa.uint64(),
        "split": pa.string(),
        "p": pa.float32(),
        "label": label_type,
        "ground_truth": label_type,
    }
    values = {**columns, "p": p.reshape(-1)}
    arrays = {name: pa.array(values[name], type=kind) for name, kind in types.items()}
    if p.ndim == 2:
        arrays["p"] = pa.FixedSizeListArray.from_arrays(arrays["p"], p.shape[1])
    with atomic_write(path) as file:
        pq.write_table(pa.table(arrays), file)


#: Columns of predictions.parquet in generation tasks.
ANSWER_COLUMNS = ("id", "split", "text", "answer", "target", "correct", "logprob")


def write_answers(path: Path, columns: Mapping[str, list[Any]]) -> None:
    """Write predictions.parquet of a generation task, one row per document.

    Args:
      path: the file.
      columns: `ANSWER_COLUMNS`: `text`, the completion; the `answer` in it; the document's
        `target`; `correct`, whether the answer is right; `logprob`, that of the completion.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"id": pa.uint64(), "correct": pa.bool_(), "logprob": pa.float32()}
    arrays = {
        name: pa.array(columns[name], type=types.get(name, pa.string())) for name in ANSWER_COLUMNS
    }
    with atomic_write(path) as file:
        pq.write_table(pa.table(arrays), file)


def read_predictions(path: Path, split: str) -> dict[str, np.ndarray]:
    """Return the columns of one split of predictions.parquet, in document order.

    `p` is float32 [N], or [N, C] with C > 2 classes (`write_predictions`).
    Answers also have `p`, 1 for a right one and 0 for others, and `ground_truth`, always 1, so that
    whether a prediction is right is read alike in all tasks.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    table = table.filter(pc.equal(table["split"], split))
    if "answer" not in table.column_names:
        return {name: _values(table[name]) for name in ("id", "p", "label", "ground_truth")}
    columns = {name: table[name].to_numpy() for name in ANSWER_COLUMNS if name != "split"}
    right_N = columns["correct"].astype(np.float32)
    return columns | {"p": right_N, "ground_truth": np.ones_like(right_N)}


def _values(column: Any) -> np.ndarray:
    """Return the values of a pyarrow column, [N]; of lists of a fixed size C, [N, C]."""
    size = getattr(column.type, "list_size", None)
    if size is None:
        return column.to_numpy()
    return column.combine_chunks().flatten().to_numpy().reshape(-1, size)
