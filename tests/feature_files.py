"""Files of features in every format, and a task that they belong to."""

import json

import numpy as np


def write_task(folder, *, train, test, classes=("cat", "dog", "emu"), width=12, seed=0):
    """Write a folder task `images` of records with ids; return (ids, features, labels)."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(train + test, width)).astype(np.float32)
    scores = features @ rng.normal(size=(width, len(classes))) / 2
    labels = (scores + rng.gumbel(size=scores.shape)).argmax(1)
    ids = [f"img-{n:05d}" for n in range(train + test)]
    (folder / "images").mkdir(parents=True)
    for split, rows in (("train", range(train)), ("test", range(train, train + test))):
        with open(folder / "images" / f"{split}.jsonl", "w") as file:
            for n in rows:
                record = {"id": ids[n], "text": f"{ids[n]}.png", "label": classes[labels[n]]}
                file.write(json.dumps(record) + "\n")
    return np.array(ids), features, labels


def write(path, ids, values, name="features"):
    """Write ids and an array in the format of the path's ending."""
    ids = np.asarray(ids)
    if path.suffix == ".npz":
        np.savez(path, ids=ids, **{name: values})
    elif path.suffix == ".npy":
        np.save(path, values)
        np.save(path.with_name(f"{path.stem}.ids.npy"), ids)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({"ids": ids, name: np.ascontiguousarray(values)}, path)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        ids = pa.array(ids.tolist() if ids.dtype.kind == "U" else ids)
        table = pa.table({"id": ids, name: values.tolist()})
        pq.write_table(table, path, row_group_size=100)
    return path


def softmax(logits):
    """Softmax over the last axis, in float64."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)
