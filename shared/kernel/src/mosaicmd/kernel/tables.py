"""Small tables of measured values: CSV or JSON whose column names carry the unit."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mosaicmd.kernel._suggest import suggest
from mosaicmd.kernel.quantities import convert, unit_of_name


class TableError(ValueError):
    """A table that cannot be read; the message names file, row and column."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns by the name that the file gives them, for example ``r_nm`` and ``g``."""

    columns: dict[str, np.ndarray]  # each [n_rows], float64, or text where asked for
    source: str  # what the file says about where its values come from

    def __getitem__(self, name: str) -> np.ndarray:
        """A column as the file has it.

        Raises:
            TableError: for an unknown name.
        """
        if name not in self.columns:
            near = suggest(name, self.columns)
            raise TableError(f"no column `{name}`{near}; there are {', '.join(self.columns)}")
        return self.columns[name]

    def quantity(self, name: str, dimension: str) -> np.ndarray:
        """A column in internal units, whatever unit the file has it in.

        ``table.quantity("r", "length")`` is in Å, from a column ``r_nm`` as from ``r_A``.

        Raises:
            TableError: unless one column has this name and ends in a unit of ``dimension``.
        """
        for column, values in self.columns.items():
            unit = unit_of_name(column, dimension)
            if unit is not None and column.lower() == f"{name}_{unit}".lower():
                return values * convert(f"1 {unit}", dimension)
        raise TableError(
            f"no column `{name}_UNIT` with a unit of {dimension}; "
            f"there are {', '.join(self.columns)}"
        )


def read_table(source: str | os.PathLike[str], *, text: Sequence[str] = ()) -> Table:
    """A table from a CSV or JSON file, or from CSV text.

    In CSV the first line that does not begin with ``#`` names the columns; the lines
    with ``#`` say where the values come from. JSON is ``{"source": ..., "columns":
    {name: [...]}}``.

    Args:
        source: a path, or text with line breaks.
        text: columns that hold text; all others must hold finite numbers.

    Raises:
        TableError: naming the row and column of what is missing, no number, or not finite.
    """
    if isinstance(source, str) and "\n" in source:
        return _from_csv(source, "the table", text)
    path = Path(source)
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"table {path} cannot be read: {error}") from error
    read = _from_json if path.suffix == ".json" else _from_csv
    return read(content, f"table {path}", text)


def _from_csv(content: str, origin: str, text: Sequence[str]) -> Table:
    numbered = list(enumerate(content.splitlines(), start=1))
    comments = [line.lstrip("# ") for _, line in numbered if line.startswith("#")]
    numbered = [(n, line) for n, line in numbered if line.strip() and not line.startswith("#")]
    rows = list(csv.reader(line for _, line in numbered))
    if len(rows) < 2:
        raise TableError(f"{origin} has no rows below a line with column names")
    names, *rows = [[cell.strip() for cell in row] for row in rows]
    places = [f"line {number}" for number, _ in numbered[1:]]
    for place, row in zip(places, rows, strict=True):
        if len(row) != len(names):
            raise TableError(f"{origin}, {place}: {len(row)} values for {len(names)} columns")
    values = {name: [row[k] for row in rows] for k, name in enumerate(names)}
    if len(values) != len(names):
        raise TableError(f"{origin} has two columns of one name: {', '.join(names)}")
    return _checked(values, places, " ".join(comments), origin, text)


def _from_json(content: str, origin: str, text: Sequence[str]) -> Table:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{origin} is no valid JSON: {error}") from error
    columns = record.get("columns") if isinstance(record, dict) else None
    if not isinstance(columns, dict) or not all(isinstance(c, list) for c in columns.values()):
        raise TableError(f'{origin} must be {{"source": ..., "columns": {{name: [values]}}}}')
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise TableError(f"{origin} must have columns of one length, got {lengths}")
    places = [f"row {row}" for row in range(1, max(lengths.values()) + 1)]
    return _checked(columns, places, str(record.get("source", "")), origin, text)


def _checked(
    columns: dict[str, list], places: list[str], source: str, origin: str, text: Sequence[str]
) -> Table:
    if missing := sorted(set(text) - set(columns)):
        raise TableError(f"{origin} has no column {missing}; it has {', '.join(columns)}")
    arrays = {}
    for name, cells in columns.items():
        if name in text:
            arrays[name] = np.array([str(cell) for cell in cells])
            continue
        numbers = []
        for place, cell in zip(places, cells, strict=True):
            try:
                numbers.append(float(cell))
            except (TypeError, ValueError):
                what = repr(cell) if cell != "" else "empty"
                raise TableError(
                    f"{origin}, {place}: column `{name}` is {what}, which is no number; correct "
                    f"it, or list `{name}` among the `text` columns"
                ) from None
            if not np.isfinite(numbers[-1]):
                raise TableError(
                    f"{origin}, {place}: column `{name}` is {cell}; remove the row or give a value"
                )
        arrays[name] = np.array(numbers)
    return Table(arrays, source)
