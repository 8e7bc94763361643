"""What phases leave on disk: folders, claims, labels, predictions, results. No JAX but in labels.

    DIR/phases/<kind>-<fingerprint>/  config.json checkpoints/ tokenizer/ labels/ features/
                                      predictions.parquet metrics.jsonl result.json

A phase is complete exactly when its result.json exists; it is written last, by a rename.
"""

import fcntl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from w2s_jax.core import errors, processes
from w2s_jax.core.files import read_json, sha256


@dataclass(frozen=True)
class PhaseFolder:
    """The files of one phase.

    `saves`: where its mid-phase checkpoints are, if not in `path` (`checkpoint.dir`).
    """

    path: Path
    saves: Path | None = None

    @property
    def config(self) -> Path:
        """What the phase computes, in full."""
        return self.path / "config.json"

    @property
    def result(self) -> Path:
        """Its outcome; its presence says that the phase is complete."""
        return self.path / "result.json"

    @property
    def metrics(self) -> Path:
        """A JSON row a step and an evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def predictions(self) -> Path:
        """P(label 1) of every validation and test document."""
        return self.path / "predictions.parquet"

    @property
    def labels(self) -> Path:
        """Weak labels (Orbax)."""
        return self.path / "labels"

    @property
    def features(self) -> Path:
        """What heads see of documents (Orbax)."""
        return self.path / "features"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's files of a pretrained model."""
        return self.path / "tokenizer"

    @property
    def steps(self) -> Path:
        """Mid-phase checkpoints (Orbax)."""
        return (self.saves or self.path / "checkpoints") / "steps"

    @property
    def population(self) -> Path:
        """Who is trained together from `steps`, and how; there as long as that is under way."""
        return (self.saves or self.path / "checkpoints") / "population.json"

    @property
    def final(self) -> Path:
        """The parameters that the phase ends with (Orbax)."""
        return self.path / "checkpoints" / "final"

    @property
    def trained(self) -> Path:
        """What training leaves besides parameters; present when `final` is."""
        return self.path / "checkpoints" / "trained.json"

    @property
    def complete(self) -> bool:
        """Whether the phase need not run."""
        return self.result.exists()


@contextmanager
def claim(
    folder: PhaseFolder,
    waiting: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Holds a phase's folder for this process; waits while another process holds it.

    A `flock`: the kernel releases it when its process ends, however it ends. Of the processes of
    one run the first holds it for all; all call this, and agree on `should_stop`.

    Raises:
      Interrupted: if `should_stop` says so while waiting.
    """
    with _lock_file(folder) as lock:
        told = False
        while not processes.on_first("claim", lambda: _locked(lock)):
            if not told:
                waiting()
                told = True
            if should_stop():
                raise errors.Interrupted(
                    "stopped by a signal while waiting; the same command resumes"
                )
            time.sleep(0.2)
        yield


@contextmanager
def claim_if_free(folder: PhaseFolder) -> Iterator[bool]:
    """As `claim`, but says whether this process holds the folder now, instead of waiting."""
    with _lock_file(folder) as lock:
        yield _locked(lock)


def _lock_file(folder: PhaseFolder) -> TextIO:
    folder.path.mkdir(parents=True, exist_ok=True)
    return (folder.path / ".lock").open("w")


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_result(folder: PhaseFolder) -> dict[str, Any]:
    """A complete phase's result.json, after checking the files that it vouches for.

    Raises:
      StorageError: if it is damaged, or predictions.parquet differs from its sha256.
    """
    remedy = f"delete {folder.path} and run again to remake it"
    try:
        result = read_json(folder.result)
        sums = dict(result["sha256"])
        float(result["seconds"]), result["kind"], result["execution"]["versions"]
    except (errors.InputError, KeyError, TypeError, ValueError) as error:
        raise errors.StorageError(f"{folder.result}: damaged ({error}); {remedy}") from error
    for name, wanted in sums.items():
        path = folder.path / name
        if not path.exists() or sha256(path) != wanted:
            raise errors.StorageError(f"{path}: differs from its sha256; {remedy}")
    return result


def save_labels(folder: PhaseFolder, labels: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Stores class labels by Orbax: split -> (ids_N uint64, soft float32 [N, C])."""
    _save_by_id(folder.labels, "soft", labels, {})


def load_labels(folder: PhaseFolder, split: str, ids_N: np.ndarray) -> np.ndarray:
    """The soft labels of the documents `ids_N`, float32 [N, C], joined by id.

    Raises:
      StorageError: if the stored labels are damaged.
      InputError: if a document has no label, or the phase stored none for the split.
    """
    record = read_json(folder.result)["labels"]
    if split not in record["splits"]:
        raise errors.InputError(f"{folder.labels}: no labels for {split!r}")
    return _load_by_id(folder.labels, "soft", record["splits"], (2,), split, ids_N)


def labelled_ids(folder: PhaseFolder, split: str) -> np.ndarray:
    """The documents of a split that a phase has stored labels of, in its order, uint64 [N]."""
    n = read_json(folder.result)["labels"]["splits"][split]
    return _stored_by_id(folder.labels, "soft", n, (2,), split)[0]


def read_parents(folder: PhaseFolder) -> dict[str, str]:
    """The phases that a phase was made from, by what they are to it."""
    return dict(read_json(folder.config)["spec"].get("parents", {}))


def save_features(
    folder: PhaseFolder,
    features: Mapping[str, tuple[np.ndarray, np.ndarray]],
    head: Mapping[str, np.ndarray],
) -> None:
    """Stores split -> (ids_N uint64, features float32 [N, K, D]), and a head to start from."""
    _save_by_id(folder.features, "features", features, {"head": dict(head)})


def load_features(folder: PhaseFolder, split: str, ids_N: np.ndarray) -> np.ndarray:
    """The features of the documents `ids_N`, float32 [N, K, D], joined by id.

    Raises:
      StorageError: if they are damaged.
      InputError: if there are none of a document.
    """
    record = read_json(folder.result)["features"]
    shape = tuple(record["shape"])
    return _load_by_id(folder.features, "features", record["splits"], shape, split, ids_N)


def load_features_head(folder: PhaseFolder) -> dict[str, np.ndarray]:
    """The head that is stored with features: {'kernel': float32 [D, 2 / K]}."""
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
    """Ids are stored as pairs of uint32: JAX, through which Orbax may pass them, cuts 64 bits."""
    from w2s_jax.store.trees import save_tree

    tree = {
        split: {"ids": ids_N.view(np.uint32).reshape(-1, 2), name: value.astype(np.float32)}
        for split, (ids_N, value) in values.items()
    }
    save_tree(path, tree | more)


def _load_by_id(
    path: Path,
    name: str,
    sizes: Mapping[str, int],
    shape: tuple[int, ...],
    split: str,
    ids_N: np.ndarray,
) -> np.ndarray:
    stored_ids_N, values_N = _stored_by_id(path, name, sizes[split], shape, split)
    place = {int(i): k for k, i in enumerate(stored_ids_N)}
    missing = [int(i) for i in ids_N if int(i) not in place]
    if missing:
        raise errors.InputError(
            f"{path}: {len(missing)} of {len(ids_N)} documents of {split!r} are not there (the "
            f"first: id {missing[0]}); they and the documents are of different runs"
        )
    return values_N[[place[int(i)] for i in ids_N]]


def _stored_by_id(
    path: Path, name: str, n: int, shape: tuple[int, ...], split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Ids, uint64 [n], and values, float32 [n, *shape], as they were stored."""
    from w2s_jax.store.trees import load_part

    target = {"ids": np.zeros((n, 2), np.uint32), name: np.zeros((n, *shape), np.float32)}
    stored = load_part(path, {split: target})[split]
    ids_N = np.ascontiguousarray(stored["ids"], np.uint32).view(np.uint64).reshape(-1)
    return ids_N, np.asarray(stored[name])


def write_predictions(path: Path, columns: Mapping[str, np.ndarray | list[str]]) -> None:
    """Writes predictions.parquet: id (uint64), split, p, label, ground_truth (float32)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "id": pa.uint64(),
        "split": pa.string(),
        "p": pa.float32(),
        "label": pa.float32(),
        "ground_truth": pa.float32(),
    }
    arrays = {name: pa.array(columns[name], type=kind) for name, kind in types.items()}
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(pa.table(arrays), temporary)
    temporary.replace(path)


def read_predictions(path: Path, split: str) -> dict[str, np.ndarray]:
    """The columns of one split of predictions.parquet, as numpy arrays, in document order."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    table = table.filter(pc.equal(table["split"], split))
    return {name: table[name].to_numpy() for name in ("id", "p", "label", "ground_truth")}
