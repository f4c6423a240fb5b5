"""Arrays on disk that grow row by row: indexes of shards, which are too long to be held while shards are written."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

_HELD = 1 << 16  # bytes


class GrowingArray:
    """A .npy file of rows; its bytes are those that `np.save` writes for all of them."""

    def __init__(self, path: Path, dtype: str, columns: tuple[int, ...] = ()):
        """Begins the file, with no rows, in place of an older one."""
        self._path, self._columns = path, columns
        self._dtype = np.dtype(dtype)
        self._held = bytearray()
        self._bytes = 0
        with path.open("wb") as stream:
            self._write_header(stream)

    def append(self, rows: bytes) -> None:
        """Takes rows as the bytes of the array."""
        self._held += rows
        if len(self._held) >= _HELD:
            self._flush()

    def close(self) -> None:
        """Writes what is held, and how many rows there are."""
        self._flush()
        with self._path.open("r+b") as stream:
            self._write_header(stream)

    def remove(self) -> None:
        """Removes the file: what it belongs to was not written to its end."""
        self._path.unlink(missing_ok=True)

    def _flush(self) -> None:
        with self._path.open("ab") as stream:  # open no longer than needed: there may be thousands of shards
            stream.write(self._held)
        self._bytes += len(self._held)
        self._held.clear()

    def _write_header(self, stream: BinaryIO) -> None:
        rows = self._bytes // (self._dtype.itemsize * int(np.prod(self._columns, dtype=int)))
        # numpy leaves room in the header for the number of rows to grow.
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (rows, *self._columns)}
        np.lib.format.write_array_header_1_0(stream, header)
