"""Files of features: their ids, and the rows that a run uses. Imports no JAX.

A file has `ids` [N] and `features` [N, D]: .npz, .safetensors, .npy with the ids in
`<stem>.ids.npy` beside it, and .parquet with the columns `id` and `features`.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, did_you_mean, shown
from w2s_jax.core.files import contents, location
from w2s_jax.data import feature_formats as formats
from w2s_jax.data.documents import Document
from w2s_jax.data.feature_sources import (
    PREFIX,
    FeatureSource,
    SplitFeatures,
    Splits,
    as_rows,
    check_shape,
    refuse_not_finite,
)

_DECIMAL, _HEX = re.compile(r"-?[0-9]{1,20}"), re.compile(r"0[xX][0-9a-fA-F]{1,16}")
_OWN = "the records' own `id`"


#: The place of a row: its file, as an index, and its number in there.
Place = tuple[int, int]


class FeatureFiles(FeatureSource):
    """A file of features, or a folder of such files, which are read in the order of their names.

    Attributes:
      files: their paths.
      array: the array that is read, in files of several.
      what: its numbers, in errors.
    """

    def __init__(
        self,
        given: str,
        name: str,
        files: Sequence[Path],
        *,
        array: str = "features",
        what: str = "features",
    ):
        self.given, self.name = given, name
        self.files, self.array, self.what = tuple(files), array, what

    @classmethod
    def find(cls, given: str, registered: Sequence[str] = ()) -> "FeatureFiles":
        """Return the file or the folder `given`.

        Args:
          given: a path.
          registered: names that 'features:' also takes, for errors.

        Raises:
          InputError: there is no such file, or it is not one of features.
        """
        subject = f"{PREFIX}{given}"
        if not given or "://" in given:
            raise InputError(f"{subject}: give a local file or folder, or a registered name")
        path = location(given)
        if path.is_dir():
            files = sorted(p for p in contents(path) if p.suffix in formats.SUFFIXES)
            files = [p for p in files if not formats.has_ids_of(p)]
            if not files:
                found = ", ".join(p.name for p in contents(path)[:3]) or "nothing"
                raise InputError(
                    f"{subject}: no files of features in this folder (it has: {found}); allowed: "
                    f"{', '.join(formats.SUFFIXES)}"
                )
            return cls(subject, f"{PREFIX}{path.absolute().name}", files)
        if not path.exists():
            raise InputError(f"{subject}: no such file{_similar(path, registered)}")
        formats.check_suffix(path, subject)
        return cls(subject, f"{PREFIX}{path.name}", [path])

    def bind(self, splits: Splits, num_texts: int = 1) -> SplitFeatures:
        """See `FeatureSource.bind`; all rows are read once, and checked."""
        ids = [formats.read_ids(path) for path in self.files]
        shapes = [formats.shape_of(path, self.array) for path in self.files]
        for path, own_ids, shape in zip(self.files, ids, shapes, strict=True):
            if len(own_ids) != (shape[0] if shape else 0):
                raise InputError(
                    f"{path}: {len(own_ids):,} ids and {shape[0] if shape else 0:,} rows of "
                    f"{self.what}; there must be one id per row"
                )
            check_shape(shape, num_texts, str(path), self.what)
            if shape[-1] != shapes[0][-1]:
                raise InputError(
                    f"{path}: {shape[-1]} numbers per row, but {self.files[0].name} has "
                    f"{shapes[0][-1]}"
                )
        places, records = self._places(ids, splits)
        digests: dict[str, str] = {}

        def checked(split: str, rows_NKD: np.ndarray) -> np.ndarray:
            refuse_not_finite(rows_NKD, splits[split], f"{self.given}: {split}", self.what)
            digest = hashlib.sha256(rows_NKD.tobytes()).hexdigest()
            if digests.setdefault(split, digest) != digest:
                raise InputError(f"{self.given}: has changed since the run began; run it again")
            return rows_NKD

        # At once, as some formats are read as a whole.
        every = self._rows([place for own in places.values() for place in own], num_texts)
        bounds = np.cumsum([len(own) for own in places.values()])[:-1]
        for split, rows_NKD in zip(places, np.split(every, bounds), strict=True):
            checked(split, rows_NKD)

        def read(split: str) -> np.ndarray:
            return checked(split, self._rows(places[split], num_texts))

        return SplitFeatures(self.name, shapes[0][-1], digests, read, records)

    def _rows(self, places: Sequence[Place], num_texts: int) -> np.ndarray:
        """Return the rows at some places, float32 [N, K, D]."""
        files_N, rows_N = np.array(places, np.int64).reshape(-1, 2).T
        out: np.ndarray | None = None
        for number, path in enumerate(self.files):
            here_N = files_N == number
            if not here_N.any():
                continue
            read = formats.read_rows(path, self.array, rows_N[here_N])
            found = as_rows(read, num_texts, str(path), self.what)
            if out is None:
                out = np.zeros((len(places), *found.shape[1:]), np.float32)
            out[here_N] = found
        assert out is not None
        return out

    def _places(
        self, ids: Sequence[Sequence[int | str]], splits: Splits
    ) -> tuple[dict[str, list[Place]], dict[str, Document]]:
        """Return the place of each document's row: by document ids, else by the records' own.

        The second value is `SplitFeatures.records`.
        """
        rows = [
            (id_, (file, row))
            for file, own_ids in enumerate(ids)
            for row, id_ in enumerate(own_ids)
        ]
        self._by_id(rows)
        numbers = [(n, place) for id_, place in rows if (n := _number(id_)) is not None]
        of_document = dict(numbers)
        documents = [document for own in splits.values() for document in own]
        missing = [d for d in documents if d.id not in of_document]
        if not missing:
            of_document = self._by_id(numbers)
            return {s: [of_document[d.id] for d in own] for s, own in splits.items()}, {}
        texts = [(str(id_), place) for id_, place in rows]
        of_own = dict(texts)
        own_missing = [d for d in documents if _own(d) not in of_own]
        if not own_missing:
            of_own = self._by_id(texts)
            self._refuse_shared(documents)
            by_own = {str(_own(d)): d for d in documents}
            return {s: [of_own[str(_own(d))] for d in own] for s, own in splits.items()}, by_own
        raise self._missing(documents, missing, own_missing)

    def _by_id(self, rows: Sequence[tuple[Any, Place]]) -> dict[Any, Place]:
        """Return places by id.

        Raises:
          InputError: an id occurs twice, maybe spelt in two ways.
        """
        found: dict[Any, Place] = {}
        for id_, place in rows:
            if found.setdefault(id_, place) is not place:
                a, b = (f"{self.files[f].name}, row {row}" for f, row in (found[id_], place))
                raise InputError(f"{self.given}: id {shown(id_)} occurs twice ({a}; {b})")
        return found

    def _refuse_shared(self, documents: Sequence[Document]) -> None:
        """Refuse ids of records of which several documents have one."""
        counts = Counter(_own(d) for d in documents)
        shared = [d for d in documents if counts[_own(d)] > 1]
        if shared:
            raise InputError(
                f"{self.given}: its ids are {_OWN}s, but {len(shared):,} of {len(documents):,} "
                f"documents share theirs with another one (the first: {shared[0].name}, id "
                f"{shown(_own(shared[0]))}); use document ids: w2s data ids TASK --to=FILE"
            )

    def _missing(
        self,
        documents: Sequence[Document],
        missing: Sequence[Document],
        own_missing: Sequence[Document],
    ) -> InputError:
        total = len(documents)
        by_own = len(own_missing) < len(missing)
        first = (own_missing if by_own else missing)[0]
        count = len(own_missing if by_own else missing)
        found = f"{total - len(missing):,} are found by document id"
        found += f" and {total - len(own_missing):,} by {_OWN}"
        id_ = shown(_own(first)) if by_own else f"{first.id:#018x}"
        return InputError(
            f"{self.given}: no {self.what} for {count:,} of {total:,} documents (the first: "
            f"{first.name}, id {id_}); {found}; w2s data ids TASK --to=FILE lists both"
        )


def _own(document: Document) -> str | None:
    """Return the `id` of a document's record as text; None if it has none."""
    own = document.meta.get("id")
    return None if own is None else str(own)


def _number(id_: int | str) -> int | None:
    """Return a 64-bit document id; None if `id_` cannot be one."""
    if isinstance(id_, str):
        text = id_.strip()
        if _HEX.fullmatch(text):
            id_ = int(text, 16)
        elif _DECIMAL.fullmatch(text):
            id_ = int(text)
        else:
            return None
    return id_ % 2**64 if -(2**63) <= id_ < 2**64 else None


def _similar(path: Path, registered: Sequence[str]) -> str:
    """Return the end of an error about a missing file: the nearest name, and where was looked."""
    if not path.parent.is_dir():
        return f", as there is no folder {path.parent}"
    names = [p.name for p in contents(path.parent) if p.suffix in formats.SUFFIXES]
    hint = did_you_mean(path.name, [*names, *registered])
    return hint or f" in {path.parent.absolute()}"
