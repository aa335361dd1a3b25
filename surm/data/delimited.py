"""Tables as text: .csv with quoting, and .tsv with quoting if a CSV writer wrote it.

In GLUE's own .tsv files a tab ends a column, a line ends a row, and quotation marks are text. But pandas and `datasets`
quote in a .tsv, too. So a file that Python's csv module would write identically, with its quotation marks, is read by
it.
"""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence

from etils import epath

from surm.data.table import BrokenRow, Row, Table
from surm.errors import InputError
from surm.machine.notes import say

SUFFIXES = (".tsv", ".csv")
_LONGEST_FIELD = 2**31 - 1  # in characters; Python's own limit is 131,072
_QUOTINGS = (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)


def open_table(file: epath.Path, header: Sequence[str] = (), named_by: Sequence[str] = ()) -> Table:
    """Opens a table.

    Args:
      file: a .csv or .tsv file.
      header: the names of the columns, for a file without a header line; the first line is then read as a header only
        if it holds all of `named_by`.
      named_by: see `header`.

    Returns:
      The table; a row is broken if its number of columns differs from the first line's.

    Raises:
      InputError: if the file cannot be read as a table.
    """
    where = repr(str(file))
    lines = list(_lines(file))
    if lines and (not header or set(named_by) <= {*lines[0][1]}):
        header, lines = lines[0][1], lines[1:]
    header = tuple(header)

    def rows(_: Sequence[str]) -> Iterator[Row | BrokenRow]:
        for number, values in lines:
            place = f"{where}, line {number}"
            if len(values) == len(header):
                yield place, dict(zip(header, values, strict=True))
            else:
                plural = "s" * (len(values) != 1)
                yield BrokenRow(f"{place}: {len(values)} column{plural}, expected {len(header)}")

    return Table(where, header, rows)


def _lines(file: epath.Path) -> Iterator[tuple[int, list[str]]]:
    """The nonempty lines of a table with their numbers, split into columns, without a byte-order mark."""
    text = read_text(file)
    if file.suffix.lower() == ".csv":
        yield from _quoted(text, ",", file)
    elif '"' in text and _is_quoted(text):
        say(f"{file}: its quotation marks are those of a CSV writer, so it is read as quoted")
        yield from _quoted(text, "\t", file)
    else:
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        yield from ((number, line.split("\t")) for number, line in enumerate(lines, 1) if line)


def _quoted(text: str, delimiter: str, file: epath.Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(_LONGEST_FIELD)
    reader, number = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter), 1
    try:
        for values in reader:
            if values:
                yield number, values
            number = reader.line_num + 1  # where the next row begins; it may hold line breaks
    except csv.Error as error:
        raise InputError(f"{str(file)!r}, in the row that begins in line {number}: {error}") from error


def _is_quoted(text: str) -> bool:
    """Whether a CSV writer would write these rows as the same text."""
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True, delimiter="\t"))
    except csv.Error:
        return False
    end = "\r\n" if "\r\n" in text else "\n"
    return any(_written(rows, quoting, end).rstrip("\r\n") == text.rstrip("\r\n") for quoting in _QUOTINGS)


def _written(rows: list[list[str]], quoting: int, end: str) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter="\t", quoting=quoting, lineterminator=end).writerows(rows)
    return out.getvalue()


def read_text(file: epath.Path) -> str:
    """A file's text, without a byte-order mark; InputError if it cannot be read or is not UTF-8."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(_not_utf8(file, error)) from error
    except OSError as error:
        raise InputError(f"{str(file)!r} cannot be read ({error.strerror or error})") from error


def _not_utf8(file: epath.Path, error: UnicodeDecodeError) -> str:
    """The place where a text stops being UTF-8, and a remedy."""
    save = "save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
    if error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"{str(file)!r} is not UTF-8 text but UTF-16; {save}"
    line = error.object.count(b"\n", 0, error.start) + 1
    return f"{str(file)!r} is not UTF-8 text: line {line} holds the byte {error.object[error.start]:#04x}; {save}"
