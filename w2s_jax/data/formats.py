"""Read files of each format: lines of text, JSON Lines, JSON, CSV and TSV, Parquet.

All yield (where, record); `where` is the file and the line (Parquet: the row), from 1. Failures are
`InputError`s that begin with it. CSV is read as spreadsheets write it; see `read_csv`.
"""

import codecs
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from w2s_jax.core.errors import InputError

Records = Iterator[tuple[str, dict[str, Any]]]

# Byte-order marks and the encodings they stand for; that of UTF-32 begins like that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MARK = "\ufeff"  # a byte-order mark as a character
_BLANK = re.compile(r"[ \t\r\n]*")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


# --- lines ----------------------------------------------------------------------------------------


def encoding_of(start: bytes) -> tuple[int, str]:
    """Return the length of the byte-order mark at the start of a file, and the file's encoding."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return len(mark), encoding
    return 0, "utf-8"


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (where, line) for each line of a text file, plain or gzip, with its end.

    Text is UTF-8, or UTF-16 or UTF-32 with a byte-order mark. Lines end with LF, or with CR if the
    file has no LF.
    """
    number = 0
    try:
        with path.open("rb") as stored, _unzipped(stored, path.name) as file:
            for line in _decoded(file):
                number += 1
                yield f"{path}, line {number}", line
    except UnicodeDecodeError as error:
        where = f"{path}, line {number + 1}" if error.encoding == "utf-8" else path
        place = "of the line" if error.encoding == "utf-8" else "of the file"
        raise InputError(
            f"{where}: not {error.encoding[:6].rstrip('-').upper()} text ({error.reason} at byte "
            f"{error.start + 1} {place}); save the file as UTF-8"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path}, after line {number}: broken or truncated gzip data ({error})"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except _NoMarkError as error:
        raise InputError(
            f"{path}, line 1: UTF-16 text without a byte-order mark; save the file as UTF-8"
        ) from error


class _NoMarkError(Exception):
    """Text looks like UTF-16, but does not say so."""


def _unzipped(file: BinaryIO, name: str) -> AbstractContextManager[Any]:
    return gzip.open(file) if name.lower().endswith(".gz") else nullcontext(file)


def _decoded(file: Any) -> Iterator[str]:
    first = file.readline()
    skip, encoding = encoding_of(first)
    if encoding != "utf-8":
        text = (first[skip:] + file.read()).decode(encoding)
        yield from io.StringIO(text, newline="\n" if "\n" in text else "")
        return
    if len(first) > 1 and (first[0] == 0) != (first[1] == 0):
        raise _NoMarkError
    if first.endswith(b"\n"):
        lines: Iterable[bytes] = itertools.chain([first[skip:]], file)
    else:  # the only line, unless lines end with CR
        lines = first[skip:].splitlines(keepends=True)
    # Lines are decoded one by one so that an error names the right line.
    for line in lines:
        yield line.decode("utf-8")


# --- JSON -----------------------------------------------------------------------------------------


def read_json_lines(path: Path) -> Records:
    """Read a file of one JSON object per line; blank lines are skipped."""
    for where, line in read_lines(path):
        if line.strip():
            yield where, _object(json_line(line, where), where)


def json_line(line: str, where: str) -> Any:
    """Return the value of a line of JSON Lines, which may begin with a byte-order mark.

    Joining files leaves such marks inside of a file.

    Raises:
      InputError: it is malformed; begins with `where`, unless that is "".
    """
    try:
        return json.loads(line.lstrip(_MARK))
    except (ValueError, RecursionError) as error:
        raise _malformed(where, error) from error


def read_json(path: Path) -> Records:
    """Read a JSON array of objects, or objects one after another."""
    text = "".join(line for _, line in read_lines(path)).lstrip(_MARK)
    try:
        found = list(_values(text))
    except json.JSONDecodeError as error:
        raise _malformed(f"{path}, line {error.lineno}", error) from error
    except (ValueError, RecursionError) as error:
        raise _malformed(str(path), error) from error
    for line, value in found:
        where = f"{path}, line {line}"
        yield where, _object(value, where)


def _values(text: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) for each item of a JSON array, or for each of several JSON values."""
    decoder = json.JSONDecoder()
    line, counted, at = 1, 0, _after_blank(text, 0)
    array = text.startswith("[", at)
    if array:
        at = _after_blank(text, at + 1)
    more = at < len(text) and not (array and text[at] == "]")
    while more:
        line, counted = line + text.count("\n", counted, at), at
        value, at = decoder.raw_decode(text, at)
        yield line, value
        at = _after_blank(text, at)
        more = text.startswith(",", at) if array else at < len(text)
        if array and more:
            at = _after_blank(text, at + 1)
    if array:
        if not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
        at = _after_blank(text, at + 1)
        if at < len(text):
            raise json.JSONDecodeError("Extra data", text, at)


def _after_blank(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    assert found is not None
    return found.end()


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: a record must be a JSON object, found a {type(value).__name__}")
    return value


def _malformed(where: str, error: Exception) -> InputError:
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg} at column {error.colno}"
    elif isinstance(error, RecursionError):
        reason = "nested too deeply"
    return InputError(f"{where and f'{where}: '}malformed JSON ({reason})")


# --- CSV ------------------------------------------------------------------------------------------


def read_csv(path: Path, fields: Sequence[str] = ()) -> Records:
    """Read a CSV or TSV file with a header. All values are strings.

    The delimiter is that of a line `sep=...` before the header, else a tab for TSV, else the first
    of comma, semicolon and tab that the header has. Tab-separated values with quotes that are not
    CSV's are read literally. Empty rows, and empty columns at the end, are left out.

    Args:
      path: the file.
      fields: known names of columns; the header's are compared with them without case.
    """
    # Quoted fields may span lines, so a record is named by its first line. The limit of the csv
    # module on the length of a field (131,072) is global to the interpreter, so it is raised only
    # while this file is read.
    limit = csv.field_size_limit(2**31 - 1)
    line = 1
    try:
        lines: Iterator[str] = (text for _, text in read_lines(path))
        first = next(lines, "").lstrip(_MARK)
        declared = re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE)
        skipped = 0 if declared is None else 1
        if declared is not None:
            first = next(lines, "").lstrip(_MARK)
        is_tsv = path.name.lower().removesuffix(".gz").endswith(".tsv")
        delimiter = declared[1] if declared else _delimiter(first, is_tsv)
        lines = itertools.chain([first], lines)
        literal = False
        if delimiter == "\t":
            kept = list(lines)
            lines, literal = iter(kept), _is_literal(kept)
        quoting: Any = csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL
        rows = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        raw_header = next((row for row in rows if any(map(str.strip, row))), None)
        if raw_header is None:
            return
        line = skipped + rows.line_num
        header = _header(raw_header, fields, f"{path}, line {line}")
        found = []
        line += 1
        for row in rows:
            where = f"{path}, line {line}"
            line = skipped + rows.line_num + 1
            if not any(row):
                continue
            _refuse_joined(row, raw_header, where)
            while len(row) > len(header) and not row[-1]:
                row.pop()
            if len(row) != len(header):
                raise InputError(f"{where}: {len(row)} values for {len(header)} columns")
            found.append((where, dict(zip(header, row, strict=True))))
    except csv.Error as error:
        reason = str(error)
        if "new-line character" in reason:
            reason = "a CR outside quotes: the file mixes line ends"
        raise InputError(f"{path}, line {line}: malformed CSV ({reason})") from error
    finally:
        csv.field_size_limit(limit)
    yield from found


def _delimiter(header: str, is_tsv: bool) -> str:
    outside = re.sub(_QUOTED, "", header)
    order = "\t,;" if is_tsv else ",;\t"
    return next((delimiter for delimiter in order if delimiter in outside), order[0])


def _is_literal(lines: Sequence[str]) -> bool:
    """Return whether quotes are part of the values: some are not CSV's, and all lines are rows."""
    rows = [line.rstrip("\r\n").split("\t") for line in lines if line.strip()]
    strange = any(
        value.startswith('"') and not _QUOTED.fullmatch(value) for row in rows for value in row
    )
    return strange and len({len(row) for row in rows}) == 1


def _header(raw: Sequence[str], fields: Sequence[str], where: str) -> list[str]:
    names = [name.strip() for name in raw]
    while not names[-1]:
        names.pop()
    known = {field.casefold(): field for field in fields}
    for n, name in enumerate(names):
        field = known.get(name.casefold(), name)
        if field not in names:
            names[n] = field
    if len(set(names)) != len(names):
        raise InputError(f"{where}: a column name occurs twice in the header")
    return names


def _refuse_joined(row: Sequence[str], header: Sequence[str], where: str) -> None:
    """Refuse a byte-order mark inside of a file; one in a text of the data is not CSV's."""
    start = row[0].lstrip(_MARK)
    if start != row[0] and (start.startswith('"') or [start, *row[1:]] == list(header)):
        raise InputError(
            f"{where}: a byte-order mark inside of the file, which was joined from several; remove "
            "the mark and the repeated header"
        )


# --- Parquet --------------------------------------------------------------------------------------


def read_parquet(path: Path) -> Records:
    """Read a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with path.open("rb") as stored, pyarrow.parquet.ParquetFile(stored) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", record
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}, after row {number}: cannot be read as Parquet ({reason})"
        ) from error
