# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Records of a list of images, whatever its form: tables with or without a head, JSON lines, JSON, or parquet.

The form is told from the contents, and never from the name. Memory does not grow with a list, but for a JSON object,
which is read whole.
"""

import codecs
import csv
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage import RepeatedKeyError, is_utf8, parse_json, shown
from .files import is_address, read_file

logger = logging.getLogger(__name__)

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2")
UNREAD_ENDINGS = (".heic", ".heif", ".jxl")  # of photos that have to be converted
Record = Mapping[str, Any]
Numbered = tuple[int, Record | str]  # number of the line or record, and a reason where it is not one

_HEAD = 2**16  # bytes by which a form is told
_MOST_LINE = 2**24  # letters of a line, or of an element of a JSON array
_MOST_WHOLE = 2**29  # bytes of a JSON object
# A field of more lines is taken for one whose quote does not close; captions of several paragraphs have a dozen.
_MOST_LINES = 50
# A field of CSV with the comma behind it. Nothing is tried twice, so that long fields take linear time.
_FIELD = r'(?:"[^"]*+(?:""[^"]*+)*+"|[^"{0}\r\n][^{0}\r\n]*+)?+{0}'
_NO_RECORD = "no record in JSON"
_TWICE = "a key stands twice in its JSON"
NOT_UTF8 = "not in UTF-8; name the encoding of the list, with `--encoding latin-1`"
_DELIMITERS = ("\t", "|", ";", ",")
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class TextForm:
    """Facts about the text of a list that its contents do not tell.

    Args:
        encoding: Encoding of the text. A list that begins with a byte order mark is read by that.
        quotes: Double quotes enclose cells. Otherwise they are letters like any other.

    Raises:
        ValueError: Python knows no such encoding.
    """

    encoding: str = "utf-8"
    quotes: bool = True

    def __post_init__(self) -> None:
        try:
            codecs.lookup(self.encoding)
        except LookupError as error:
            raise ValueError(
                f"`encoding` is {self.encoding!r}; expected one that Python knows, such as utf-8, latin-1, cp1252 or "
                "utf-16. Correct it."
            ) from error


PLAIN = TextForm()


def read_records(path: Path, form: TextForm = PLAIN) -> Iterator[Numbered]:
    """Yield the records of a list by the number of their line or their position; a reason for what is not one.

    Raises:
        ValueError: the list is compressed, not text, not in the encoding, or not well-formed.
    """
    head = first_bytes(path)
    if head.startswith(b"PAR1"):
        yield from _read_parquet(path)
        return
    encoding = _encoding(path, head, form)
    begin = head.decode(encoding, errors="ignore").lstrip()
    with _decoding(path, encoding):
        if begin.startswith("[") and path.suffix.casefold() != ".jsonl":
            yield from _read_array(path, encoding)
        elif begin.startswith(("{", "[")):
            yield from _read_lines(path, encoding) if _has_lines(path, encoding) else _read_object(path, encoding)
        else:
            yield from _read_table(path, encoding, form.quotes)


def first_line(path: Path, most: int = 80) -> str:
    """Return how a list begins, for a message."""
    head = first_bytes(path)
    if head.startswith(b"PAR1"):
        return "PAR1"
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")
    line = head.decode(encoding, errors="replace").strip().partition("\n")[0].strip()
    return line if len(line) <= most else f"{line[:most]}..."


def first_bytes(path: Path) -> bytes:
    """Return the beginning of a list.

    Raises:
        ValueError: the list is not a regular file.
    """
    if not path.is_file():
        raise ValueError(f"`listing` is {path}, which is not a file; expected a list of images. Correct the path.")
    with open(path, "rb") as file:
        return file.read(_HEAD)


def _encoding(path: Path, head: bytes, form: TextForm) -> str:
    if packed := next((name for mark, name in _PACKED.items() if head.startswith(mark)), None):
        raise ValueError(f"{path} is compressed with {packed}; expected a list that can be read. Unpack it.")
    if marked := next((name for mark, name in _MARKS.items() if head.startswith(mark)), None):
        return marked
    if b"\0" in head and not form.encoding.casefold().startswith("utf-16"):
        raise ValueError(
            f"{path} has zero bytes; expected text in {form.encoding}. Correct the path, or name the encoding, with "
            "`--encoding utf-16-le`."
        )
    return "utf-8-sig" if codecs.lookup(form.encoding).name == "utf-8" else form.encoding


@contextmanager
def _decoding(path: Path, encoding: str) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        raise ValueError(
            f"{path} is not {encoding} ({error}); expected its encoding. Name it, with `--encoding latin-1`."
        ) from error


def _open(path: Path, encoding: str, newline: str) -> IO[str]:
    # In UTF-8, a line with other bytes costs itself alone. Other encodings have no such lines, or cannot go on.
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    return open(path, encoding=encoding, errors=errors, newline=newline)


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    while line := file.readline(_MOST_LINE):
        if len(line) == _MOST_LINE and not line.endswith("\n"):
            raise ValueError(
                f"{path} has a line of over {_MOST_LINE:,} letters; expected one for each image. Check it."
            )
        yield line


# JSON


def _read_lines(path: Path, encoding: str) -> Iterator[Numbered]:
    with _open(path, encoding, "\n") as file:  # no other sign ends a line: a caption may hold U+2028
        for number, line in enumerate(_lines(file, path), start=1):
            if line.strip():
                yield number, _parse(line)


def _parse(line: str) -> Record | str:
    if not is_utf8(line):
        return NOT_UTF8
    try:
        record = parse_json(line)
    except RepeatedKeyError as error:
        return f"{_TWICE}: {shown(error.key)}"
    except (json.JSONDecodeError, RecursionError):
        return _NO_RECORD
    return record if isinstance(record, dict) else _NO_RECORD


def _has_lines(path: Path, encoding: str) -> bool:
    """Tell JSON lines from one object, which may stand on a single line, too."""
    if path.suffix.casefold() in (".jsonl", ".jsonlines", ".ndjson"):
        return True
    with _open(path, encoding, "\n") as file:
        line = next((line for line in iter(lambda: file.readline(_MOST_LINE), "") if line.strip()), "")
        is_whole = not file.read(_HEAD).strip()
    if is_whole:  # one record, or one object that holds them
        return False
    first = _parse(line)
    return first.startswith(_TWICE) if isinstance(first, str) else True


def _read_array(path: Path, encoding: str) -> Iterator[Numbered]:
    """Read the elements one by one. What is pending is at most doubled, so that the time is linear."""
    decoder, number = json.JSONDecoder(), 1
    with _open(path, encoding, "\n") as file:
        pending = file.read(_HEAD)
        place = pending.index("[") + 1
        while True:
            place = _skip(pending, place)
            if pending[place : place + 1] == "]":
                return
            try:
                _, end = decoder.raw_decode(pending, place)
            except (json.JSONDecodeError, RecursionError) as error:
                more = file.read(max(_HEAD, len(pending) - place)) if len(pending) - place < _MOST_LINE else ""
                if not more:
                    raise ValueError(
                        f"{path}: element {number} of the JSON array does not parse ({error}); expected an object, "
                        "and a bracket at the end. Correct it."
                    ) from error
                pending, place = pending[place:] + more, 0
                continue
            yield number, _parse(pending[place:end])
            number, place = number + 1, end
            if place > _HEAD:
                pending, place = pending[place:], 0


_BETWEEN = re.compile(r"[\s,]*+")


def _skip(text: str, place: int) -> int:
    found = _BETWEEN.match(text, place)
    return found.end() if found else place


def _read_object(path: Path, encoding: str) -> Iterator[Numbered]:
    """Read records that lie in an object, under a key, or each under its image."""
    try:
        whole = parse_json(read_file(path, _MOST_WHOLE).decode(encoding))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); expected an object, an array, or an object on each line. Correct it."
        ) from error
    except OSError as error:
        raise ValueError(
            f"{path} is a JSON object that cannot be read whole ({error}); expected at most {_MOST_WHOLE:,} bytes. "
            "Write a line for each image."
        ) from error
    yield from enumerate(_records_of(whole, path), start=1)


def _records_of(whole: Mapping[str, Any], path: Path) -> Iterable[Record | str]:
    lists = {
        key: value for key, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    if "images" in lists and isinstance(whole.get("annotations"), list):
        return _join_annotations(lists["images"], whole["annotations"], path)
    found = next((lists[key] for key in ("images", "annotations", "data", *lists) if key in lists), None)
    if found is not None:
        return [each if isinstance(each, dict) else _NO_RECORD for each in found]
    if whole and all(isinstance(value, str | list) for value in whole.values()) and _is_image_name(next(iter(whole))):
        return [{"image": name, "caption": value} for name, value in whole.items()]
    return [whole]


def _join_annotations(images: list[Any], annotations: list[Any], path: Path) -> Iterator[Record | str]:
    """Join COCO's two lists: every image with its captions."""
    captions: dict[str, list[Any]] = {}
    for each in annotations:
        if isinstance(each, dict) and "caption" in each:
            captions.setdefault(str(each.get("image_id")), []).append(each["caption"])
    if not captions:
        raise ValueError(
            f"{path} has no captions in its annotations; expected those of COCO's captions, with image_id and "
            "caption. Name the file that has them, such as captions_val2017.json."
        )
    for image in images:
        yield {**image, "captions": captions.get(str(image.get("id")), [])} if isinstance(image, dict) else _NO_RECORD


# Tables


@dataclass(frozen=True)
class _Dialect:
    delimiter: str
    head: tuple[str, ...] | None  # the names of the columns, where the table does not have them
    has_quotes: bool
    is_numbered: bool = False  # the image is `name.jpg#3`

    def reader(self, lines: Iterable[str]) -> Any:
        # Without `strict`, a field goes on to the end of the file where its quote does not close.
        if self.has_quotes:
            return csv.reader(lines, delimiter=self.delimiter, strict=True)
        return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)


def _read_table(path: Path, encoding: str, has_quotes: bool) -> Iterator[Numbered]:
    """Yield records by the number of their last line; a reason for one that has not a cell for each column.

    Raises:
        ValueError: a quote that does not close, or closes within a field; it would swallow the lines behind it.
    """
    with _open(path, encoding, "") as file:
        first = next((line for line in _lines(file, path) if line.strip()), None)
    if first is None:
        return
    dialect = _dialect(first, path, has_quotes)
    head, broken = dialect.head, list[int]()
    for number, cells, begin in _rows(path, encoding, dialect):
        if begin < number:
            broken.append(begin)
        if isinstance(cells, str):
            yield number, cells
        elif cells and head is None:
            head = tuple(cell.strip() for cell in cells)
            if twice := [name for name, count in Counter(head).items() if name and count > 1]:
                raise ValueError(
                    f"The head of {path} names {twice[0]!r} twice; expected each column once. Rename one."
                )
        elif cells and head is not None:
            yield number, _record(head, cells, dialect.is_numbered)
    if broken:
        logger.warning(
            "%s: %d records go over several lines, inside double quotes; the first begins at line %d.",
            path,
            len(broken),
            broken[0],
        )


def _rows(path: Path, encoding: str, dialect: _Dialect) -> Iterator[tuple[int, list[str] | str, int]]:
    """Yield the cells of each row, or a reason, with the numbers of its last and its first line."""
    lines: list[str] = []  # of the row that is being read

    def noted(file: IO[str]) -> Iterator[str]:
        for line in _lines(file, path):
            if len(lines) == _MOST_LINES:
                raise csv.Error(f"it goes on over more than {_MOST_LINES} lines")
            lines.append(line)
            yield line

    with _open(path, encoding, "") as file:
        reader = dialect.reader(noted(file))
        while True:
            begin = reader.line_num + 1
            lines.clear()
            try:
                cells = next(reader, None)
            except csv.Error as error:
                if len(lines) == 1 and str(error).startswith("field larger"):  # the next line is read again
                    yield begin, f"a cell of more than {csv.field_size_limit():,} letters", begin
                    continue
                place = begin + _lines_of_whole_fields(lines, dialect.delimiter)
                raise ValueError(
                    f"{path}, line {place}: a double quote does not close as it should ({error}); expected each to be "
                    "closed before the next separator or the end of the line. Close it, or write it twice inside "
                    "quotes, or say that quotes are letters (`--no-quotes`)."
                ) from error
            if cells is None:
                return
            yield reader.line_num, cells, begin


def _record(head: Sequence[str], cells: Sequence[str], is_numbered: bool) -> Record | str:
    if len(cells) != len(head):
        return f"{len(cells)} cells, not {len(head)} as in the head"
    if not all(map(is_utf8, cells)):
        return NOT_UTF8
    record = dict(zip(head, map(str.strip, cells), strict=True))
    if is_numbered:
        record[head[0]] = record[head[0]].rpartition("#")[0] or record[head[0]]
    return record


def _dialect(line: str, path: Path, has_quotes: bool) -> _Dialect:
    """Tell by the first line what separates cells, and whether it is the head."""
    if not is_utf8(line):
        raise ValueError(
            f"The first line of {path} is not in UTF-8; expected its encoding. Name it, with `--encoding latin-1`."
        )
    name, tab, _ = line.partition("\t")
    stem, mark, number = name.rpartition("#")
    if tab and stem and mark and number.isdecimal():
        return _Dialect("\t", ("image", "caption"), has_quotes=False, is_numbered=True)
    if tab and _is_image_name(name):
        cells, delimiter, has_quotes = line.rstrip("\r\n").split("\t"), "\t", False
    else:
        cells, delimiter = max(
            ((_cells(line, each, has_quotes), each) for each in _DELIMITERS), key=lambda found: len(found[0])
        )
    if any(is_address(cell.strip()) for cell in cells):
        raise ValueError(
            f"{path} has addresses and no head: it begins with {first_line(path)!r}. Expected names of columns in the "
            "first line, which img2dataset needs, too. Put them there, e.g. with `sed -i '1i caption\\turl'`."
        )
    if not _is_image_name(cells[0].strip()):
        return _Dialect(delimiter, None, has_quotes)
    if len(cells) > 2:
        raise ValueError(
            f"{path} has no head: it begins with {first_line(path)!r}. Expected names of columns in the first line, "
            "such as image,caption. Put them there."
        )
    return _Dialect(delimiter, ("image", "caption")[: len(cells)], has_quotes)


def _cells(line: str, delimiter: str, has_quotes: bool) -> list[str]:
    try:
        return next(_Dialect(delimiter, None, has_quotes).reader([line]), [line])
    except csv.Error:  # told with its line when the table is read
        return line.split(delimiter)


def _is_image_name(text: str) -> bool:
    return os.path.splitext(text)[1].casefold() in (*IMAGE_ENDINGS, *UNREAD_ENDINGS)


def _lines_of_whole_fields(lines: Sequence[str], delimiter: str) -> int:
    """Return how many lines of a record end before the field that is broken; the fields before it are whole."""
    text, place, field = "".join(lines), 0, re.compile(_FIELD.format(re.escape(delimiter)))
    while whole := field.match(text, place):
        place = whole.end()
    return sum(end <= place for end in accumulate(map(len, lines)))


# Parquet


def _read_parquet(path: Path) -> Iterator[Numbered]:
    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not valid parquet ({error}); expected a whole file. Fetch it again.") from error
    names = [field.name for field in table.schema_arrow if not _holds_bytes(field.type)]
    number = 0
    for batch in table.iter_batches(batch_size=1_000, columns=names):
        for record in batch.to_pylist():
            number += 1
            yield number, record


def _holds_bytes(kind: pa.DataType) -> bool:
    """Tell columns of images, which are not to be read for their records."""
    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
