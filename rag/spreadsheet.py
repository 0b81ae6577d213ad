"""CSV and TSV as one section: every row says its columns' names, so that a row found alone still means something."""

from __future__ import annotations

import csv
import io

from rag.decoding import Unreadable
from rag.section import Block, Reading, Section

_SAMPLE = 16 * 1024


def read_csv(text: str) -> Reading:
    """Read a table whose first row names its columns; raises Unreadable where a row cannot be read."""
    try:
        dialect: type[csv.Dialect] = csv.Sniffer().sniff(text[:_SAMPLE], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), dialect) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise Unreadable(f"not a CSV file ({error}); save it anew, with quotes around cells of several lines") from error
    if len(rows) < 2:  # noqa: PLR2004  a header and a row
        raise Unreadable("no row below its header; name the columns in the first row")
    names = [" ".join(name.split()) or f"column {number}" for number, name in enumerate(rows[0], start=1)]
    told = [_row(names, row) for row in rows[1:]]
    return Reading((Section(blocks=[Block("table", "\n".join(told))]),))


def _row(names: list[str], row: list[str]) -> str:
    more = [f"column {number}" for number in range(len(names) + 1, len(row) + 1)]
    return "; ".join(
        f"{name}: {' '.join(cell.split())}" for name, cell in zip([*names, *more], row, strict=False) if cell.strip()
    )
