"""`w2s data ids`: the ids of a task's documents, with the records that they are made of."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from w2s_jax.core.files import atomic_write, new_table
from w2s_jax.data.loading import load


def write_ids(name: str, to: str, console: Console, **how: Any) -> None:
    """Write the ids of a task's documents to a new file.

    A row is a document: `id`, as uint64 in Parquet, else '0x' and 16 hexadecimal digits; `split`,
    the official one; `record`, the field `id` of its record as text, if it has one; `file` and
    `place` (line or row) of the record, if there is a file. The ids are those of runs on the same
    data with the same choice among several candidates of a record.

    Args:
      name: the task.
      to: the file; its ending decides the format.
      console: where to print the number of rows.
      **how: keyword arguments of `load`.

    Raises:
      InputError: an unknown task, bad data, another ending, or the file exists.
    """
    target = Path(to)
    suffix = new_table(target, "--to")
    loaded = load(name, keep=("id",), **how)
    rows = []
    for split, documents in loaded.documents.items():
        for document in documents:
            file, _, place = document.where.rpartition(", ")
            own = document.meta.get("id")
            rows.append(
                {
                    "id": document.id,
                    "split": split,
                    "record": None if own is None else str(own),
                    "file": file or None,
                    "place": place or None,
                }
            )
    with atomic_write(target) as opened:
        opened.write(_encoded(rows, suffix))
    counts = ", ".join(f"{len(docs):,} {split}" for split, docs in loaded.documents.items())
    console.print(f"{target}: ids of {counts}", highlight=False, markup=False, soft_wrap=True)


def _encoded(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """Return rows as the contents of a file."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    buffer = io.BytesIO()
    if suffix == ".parquet":
        texts = dict.fromkeys(("split", "record", "file", "place"), pa.string())
        table = pa.Table.from_pylist(rows, pa.schema({"id": pa.uint64()} | texts))
        pa.parquet.write_table(table, buffer)
        return buffer.getvalue()
    # Many tools round large numbers.
    rows = [row | {"id": f"0x{row['id']:016x}"} for row in rows]
    if suffix == ".csv":
        pa.csv.write_csv(pa.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(data, mtime=0) if suffix.endswith(".gz") else data
