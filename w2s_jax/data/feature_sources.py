"""Features of documents that were computed elsewhere, or by a function, in place of a model.

A role's model is then 'features:' and a file, a folder of files, or a name of `register_features`.
Imports no JAX.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from w2s_jax.config.tables import Table
from w2s_jax.core.errors import InputError, first_line, shown
from w2s_jax.data.documents import Document, ImageSpace, pixel_arrays

#: What the models of such roles begin with.
PREFIX = "features:"

#: Split -> its documents.
Splits = Mapping[str, Sequence[Document]]


@dataclass(frozen=True)
class SplitFeatures:
    """Features of the documents of a run.

    Attributes:
      name: for results and tables.
      width: D, numbers per text.
      digests: split -> sha256 of its features; of a function, of its name and version.
      read: split -> its features, float32 [N, K, D].
      records: record -> its document, where the documents were found by their records' own `id`.
    """

    name: str
    width: int
    digests: Mapping[str, str]
    read: Callable[[str], np.ndarray]
    records: Mapping[str, Document] = field(default_factory=dict)

    def with_splits(self, other: "SplitFeatures") -> "SplitFeatures":
        """Return the features of the splits of both, which are from one source.

        Raises:
          InputError: they have other widths, or other documents with one `id` of a record, which
            therefore have the features of one row.
        """
        if other.width != self.width:
            raise InputError(
                f"{self.name}: {other.width} numbers per text, but {self.width} for the run's own "
                "documents"
            )
        shared = [id_ for id_ in other.records if id_ in self.records]
        shared = [i for i in shared if _content(other.records[i]) != _content(self.records[i])]
        if shared:
            first = other.records[shared[0]]
            raise InputError(
                f"{self.name}: its ids are the records' own `id`s, but {len(shared):,} of "
                f"{len(other.records):,} documents share theirs with another document of the run "
                f"(the first: {first.name}, id {shown(shared[0])}); use document ids: w2s data ids "
                "TASK --to=FILE"
            )
        digests = {**self.digests, **other.digests}

        def read(split: str) -> np.ndarray:
            return (other if split in other.digests else self).read(split)

        records = {**self.records, **other.records}
        return SplitFeatures(self.name, self.width, digests, read, records)


def _content(document: Document) -> tuple[object, ...]:
    return document.text, document.texts, document.tokens


class FeatureSource(ABC):
    """Where features come from.

    Attributes:
      given: what the user wrote: 'features:...'.
      name: for results and tables.
    """

    given: str
    name: str

    def reading(self, image: ImageSpace | None) -> "FeatureSource":
        """Return the source that reads documents which are images, or not (None).

        Raises:
          InputError: it reads images alone.
        """
        del image
        return self

    @abstractmethod
    def bind(self, splits: Splits, num_texts: int = 1) -> SplitFeatures:
        """Return the features of the documents of a run, after checking that all have some.

        Args:
          splits: the documents, in the order of the features.
          num_texts: K, the texts of a document; 2 for pairs to be compared.

        Raises:
          InputError: documents without features, or features that are not finite numbers of one
            shape.
        """


@dataclass(frozen=True)
class FeatureFunction:
    """A function that computes features of documents (see `register_features`)."""

    name: str
    function: Callable[[Any], Any]
    version: str | int
    images: bool = False


#: Functions that compute features, by name.
FEATURES: Table[FeatureFunction] = Table("feature function")


def register_features(
    name: str, function: Callable[[Any], Any], *, version: str | int, images: bool = False
) -> FeatureFunction:
    """Register a function that computes features, so that a role's model may be 'features:<name>'.

    Args:
      name: as in `strong.model=features:<name>`.
      function: (documents) -> numbers [N, D], or [N, 2, D] where documents are pairs of texts. The
        row of a document must depend on the document alone, as a run computes each split at once,
        and one document on its own to find out D.
      version: part of the fingerprint of every phase that uses the features. Change it whenever the
        function, or a file that it reads, changes what it returns.
      images: whether the function takes images, uint8 [N, H, W, channels], in place of documents.

    Raises:
      InputError: the name is taken, or has a '/' or a '.', by which files are recognised.
    """
    if not name or set("/.\\") & set(name):
        raise InputError(f"register_features: {shown(name)} is not a name; use no '/' and no '.'")
    return FEATURES.add(FeatureFunction(name, function, version, images))


def find_features(model: str) -> FeatureSource | None:
    """Return the source of the features that `weak.model` or `strong.model` names.

    Args:
      model: 'features:' and a file, a folder, or the name of a registered function.

    Returns:
      The source; None if `model` does not begin with 'features:'.

    Raises:
      InputError: there is no such file or function, or the file cannot be read.
    """
    if not model.startswith(PREFIX):
        return None
    rest = model.removeprefix(PREFIX)
    if rest in FEATURES:
        return FunctionSource(FEATURES[rest])
    from w2s_jax.data.feature_files import FeatureFiles

    return FeatureFiles.find(rest, registered=tuple(FEATURES))


class FunctionSource(FeatureSource):
    """Features that a registered function computes, when a phase needs them."""

    def __init__(self, declared: FeatureFunction, image: ImageSpace | None = None):
        self.declared, self.image = declared, image
        self.given = self.name = f"{PREFIX}{declared.name}"

    def reading(self, image: ImageSpace | None) -> "FunctionSource":
        """See `FeatureSource.reading`."""
        if not self.declared.images:
            return self
        if image is None:
            raise InputError(f"{self.given} reads images")
        return FunctionSource(self.declared, image)

    def bind(self, splits: Splits, num_texts: int = 1) -> SplitFeatures:
        """See `FeatureSource.bind`; only one document of each split is tried."""
        widths = {
            split: self._rows(documents[:1], split, num_texts).shape[2]
            for split, documents in splits.items()
            if documents
        }
        width = next(iter(widths.values()))
        text = repr((self.declared.name, str(self.declared.version)))

        def read(split: str) -> np.ndarray:
            return self._rows(splits[split], split, num_texts, width)

        digest = hashlib.sha256(text.encode()).hexdigest()
        return SplitFeatures(self.name, width, dict.fromkeys(splits, digest), read)

    def _rows(
        self, documents: Sequence[Document], split: str, num_texts: int, width: int | None = None
    ) -> np.ndarray:
        where = f"{self.given}: {split}"
        try:
            read = documents if self.image is None else pixel_arrays(documents, self.image)
            found = np.asarray(self.declared.function(read))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        except Exception as error:
            raise InputError(f"{where}: the function failed: {first_line(error)}") from error
        if len(found) != len(documents) if found.ndim else True:
            raise InputError(
                f"{where}: the function returned an array of shape {list(found.shape)} for "
                f"{len(documents)} documents; it must return a row for each"
            )
        rows_NKD = as_rows(found, num_texts, where)
        if width is not None and rows_NKD.shape[2] != width:
            raise InputError(
                f"{where}: the function returned {rows_NKD.shape[2]} numbers per text; for a "
                f"single document it returned {width}"
            )
        refuse_not_finite(rows_NKD, documents, where)
        return rows_NKD


def as_rows(values: np.ndarray, num_texts: int, where: str, what: str = "features") -> np.ndarray:
    """Return features as float32 [N, K, D].

    Args:
      values: numbers [N, D], or [N, K, D].
      num_texts: K.
      where: what an error begins with.
      what: the numbers, in errors.

    Raises:
      InputError: another shape, or values that are not real numbers.
    """
    check_shape(values.shape, num_texts, where, what)
    if values.dtype.kind not in "fiub" and values.dtype.name != "bfloat16":
        raise InputError(f"{where}: {what} of dtype {values.dtype}; they must be real numbers")
    with np.errstate(over="ignore"):  # `refuse_not_finite` reports what float32 cannot hold
        rows = values.astype(np.float32)
    return np.ascontiguousarray(rows.reshape(len(values), num_texts, values.shape[-1]))


def check_shape(shape: Sequence[int], num_texts: int, where: str, what: str = "features") -> None:
    """Check that features have the shape [N, D], or [N, K, D] of documents of K texts.

    Raises:
      InputError: they have not.
    """
    wanted = "[N, D]" if num_texts == 1 else f"[N, {num_texts}, D], as documents are pairs of texts"
    shape = list(shape)
    fits = len(shape) == 3 and shape[1] == num_texts
    fits |= len(shape) == 2 and num_texts == 1
    if not fits or shape[-1] == 0:
        raise InputError(f"{where}: {what} of shape {shape}; allowed: {wanted}")


def refuse_not_finite(
    rows_NKD: np.ndarray, documents: Sequence[Document], where: str, what: str = "features"
) -> None:
    """Refuse features with a NaN, or with numbers beyond float32.

    Raises:
      InputError: says how many documents have them, and the first.
    """
    bad_N = ~np.isfinite(rows_NKD).all(axis=(1, 2))
    if bad_N.any():
        first = documents[int(bad_N.argmax())]
        raise InputError(
            f"{where}: the {what} of {int(bad_N.sum()):,} of {len(bad_N):,} documents are not "
            f"finite in float32 (the first: {first.name}, id {first.id:#018x})"
        )
