"""Rows to Parquet; the only module that needs ``pyarrow``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import MissingExtra
from .columns import Kind, Row
from .output import to_json

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise MissingExtra("pyarrow", "parquet") from error

ROW_GROUP = 1024
"""Rows per row group: at 20,000 token ids and log-probabilities a row, about 300 MB in memory."""

TYPES: Mapping[Kind, Any] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "integers": pa.list_(pa.int64()),
    "numbers": pa.list_(pa.float64()),
    "json": pa.string(),
}


class ParquetWriter:
    """Writes rows to one file, a row group at a time."""

    def __init__(self, path: Path, columns: Mapping[str, Kind]) -> None:
        self._columns = columns
        self._schema = pa.schema([(name, TYPES[kind]) for name, kind in columns.items()])
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        """Add one row."""
        self._rows.append({name: _cell(row[name], kind) for name, kind in self._columns.items()})
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self._flush()
        # Also after an error: the file behind it has to be closed before it can be removed.
        self._writer.close()


def _cell(value: Any, kind: Kind) -> Any:
    if value is None:
        return None
    if kind == "json":
        return to_json(value)
    if kind == "text":  # Parquet takes valid UTF-8 only; a lone surrogate becomes \\udxxx
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return value
