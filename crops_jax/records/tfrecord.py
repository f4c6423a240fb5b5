"""TFRecord files, written and read with both checksums, in any order.

A record is `length (uint64), masked crc32c of length (uint32), data, masked crc32c of data (uint32)`, little
endian. Beside each file lies an index, `<file>.index.npy`: uint64[n, 2], the byte offset of each record and the
length of its data. With the index, record i takes one read. The checksums of the record are checked all the same.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from tokenize import TokenError
from types import TracebackType

import google_crc32c
import numpy as np

from crops_jax.errors import InputError
from crops_jax.records.growing import GrowingArray

INDEX_SUFFIX = ".index.npy"
_HEADER = struct.Struct("<QI")  # length and its checksum
_FOOTER = struct.Struct("<I")  # checksum of the data
_FRAME = _HEADER.size + _FOOTER.size
_LENGTH = struct.Struct("<Q")
_ENTRY = struct.Struct("<QQ")  # of the index


def masked_crc(data: bytes) -> int:
    """crc32c of `data`, rotated and offset as the TFRecord format asks."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(data: bytes) -> bytes:
    """A record with its length and both checksums."""
    length = _LENGTH.pack(len(data))
    return length + _FOOTER.pack(masked_crc(length)) + data + _FOOTER.pack(masked_crc(data))


def index_path(path: Path) -> Path:
    """Where the index of a TFRecord file lies."""
    return path.with_name(path.name + INDEX_SUFFIX)


class TFRecordWriter:
    """Writes one TFRecord file and, on a clean close, its index. A context manager."""

    def __init__(self, path: Path):
        self.path = path
        self._stream = path.open("wb")
        self._index = GrowingArray(index_path(path), "<u8", (2,))
        self._count = self._offset = 0

    @property
    def count(self) -> int:
        """Records written so far."""
        return self._count

    @property
    def num_bytes(self) -> int:
        """Bytes written so far, frames included."""
        return self._offset

    def write(self, data: bytes) -> None:
        """Appends one record."""
        self.write_frame(frame(data))

    def write_frame(self, framed: bytes | memoryview) -> None:
        """Appends one record that `frame` made."""
        self._stream.write(framed)
        self._index.append(_ENTRY.pack(self._offset, len(framed) - _FRAME))
        self._offset += len(framed)
        self._count += 1

    def __enter__(self) -> TFRecordWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()
        if kind is None:
            self._index.close()
        else:
            self._index.remove()


class TFRecordReader:
    """Reads any record of one file by its number, checking both checksums on every read.

    Positional reads rather than a memory map: a file cut while a job runs is then an error with a place, where a
    mapped page would kill the process. Safe to use from several threads.
    """

    def __init__(self, path: Path):
        """Opens the file and its index.

        Raises:
          InputError: file or index is missing, or the index does not describe this file (a cut file, another
            file's index); the byte offset where they part is named.
        """
        self.path = path
        self._name = str(path)
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise InputError(self._name, f"cannot be opened: {error.strerror}") from None
        self._index = _load_index(path, os.fstat(self._fd).st_size)

    def __len__(self) -> int:
        return len(self._index)

    def read(self, number: int) -> bytes:
        """The data of record `number`.

        Raises:
          IndexError: there is no such record.
          InputError: a checksum differs, the index does not fit, or the file ends early; names file and byte offset.
        """
        if not 0 <= number < len(self._index):
            raise IndexError(f"{self._name}: record {number} of {len(self._index)}")
        offset, length = (int(value) for value in self._index[number])
        frame = os.pread(self._fd, _FRAME + length, offset)
        return _checked(frame, length, offset, number, self._name)

    def close(self) -> None:
        """Closes the file; the reader must not be used afterwards."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


def build_index(path: Path) -> int:
    """Writes the index of a TFRecord file by reading it through, checking every record; returns their count.

    Raises:
      InputError: a record is damaged or cut; names file and byte offset. No index is written then.
    """
    size, index, offset = path.stat().st_size, [], 0
    with path.open("rb") as stream:
        while offset < size:
            header = stream.read(_HEADER.size)
            length = _checked_length(header, offset, len(index), str(path))
            if offset + _FRAME + length > size:
                raise InputError(str(path), _cut(offset, len(index), offset + _FRAME + length, size))
            frame = header + stream.read(length + _FOOTER.size)
            _checked(frame, length, offset, len(index), str(path))
            index.append((offset, length))
            offset += _FRAME + length
    _save_index(path, index)
    return len(index)


def _checked(frame: bytes, length: int, offset: int, number: int, name: str) -> bytes:
    found = _checked_length(frame[: _HEADER.size], offset, number, name)
    if found != length:
        place = f"record {number} at byte {offset}"
        raise InputError(name, f"{place} is {found} bytes long, its index says {length}; {_MEND_INDEX}")
    if len(frame) != _FRAME + length:
        raise InputError(name, _cut(offset, number, offset + _FRAME + length, offset + len(frame)))
    data = frame[_HEADER.size : -_FOOTER.size]
    if masked_crc(data) != _FOOTER.unpack(frame[-_FOOTER.size :])[0]:
        start = offset + _HEADER.size
        place = f"record {number} at byte {offset}"
        raise InputError(
            name, f"{place}: the checksum of its data (bytes {start} to {start + length}) differs; {_MEND_FILE}"
        )
    return data


def _checked_length(header: bytes, offset: int, number: int, name: str) -> int:
    if len(header) < _HEADER.size:
        raise InputError(name, _cut(offset, number, offset + _HEADER.size, offset + len(header)))
    length, crc = _HEADER.unpack(header)
    if masked_crc(header[: _LENGTH.size]) != crc:
        raise InputError(name, f"record {number} at byte {offset}: the checksum of its length differs; {_MEND_FILE}")
    return length


_MEND_FILE = "the file was damaged after it was written: copy it again or write the records again"
_MEND_INDEX = "if the records are sound, rebuild the index with crops_jax.records.tfrecord.build_index"


def _cut(offset: int, number: int, needed: int, size: int) -> str:
    place = f"record {number} at byte {offset}"
    return f"{place} should end at byte {needed}, but the file ends at byte {size}; {_MEND_FILE}"


def _save_index(path: Path, index: list[tuple[int, int]]) -> None:
    np.save(index_path(path), np.array(index, np.uint64).reshape(-1, 2), allow_pickle=False)


def _load_index(path: Path, size: int) -> np.ndarray:
    place = index_path(path)
    try:
        index = np.load(place, mmap_mode=None, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(str(place), f"is missing; {_MEND_INDEX}") from None
    except (ValueError, EOFError, OSError, SyntaxError, TokenError) as error:  # the last two of a header
        raise InputError(str(place), f"is not a readable index ({error}); {_MEND_INDEX}") from None
    if index.dtype != np.uint64 or index.ndim != 2 or index.shape[1] != 2:
        raise InputError(str(place), f"holds {index.dtype}{list(index.shape)}, not uint64[n, 2]; {_MEND_INDEX}")
    ends = index[:, 0] + index[:, 1] + np.uint64(_FRAME)
    starts = np.concatenate([index[:, 0], np.array([size], np.uint64)])
    wrong = np.flatnonzero(starts != np.concatenate([np.zeros(1, np.uint64), ends]))
    if len(wrong) == 0:
        return index
    first = int(wrong[0])
    if first == len(index):
        end = int(ends[-1]) if len(index) else 0
        cause = "the file was cut or grew, or the index is another file's"
        raise InputError(str(path), f"ends at byte {size}, its index says byte {end}: {cause}; {_MEND_FILE}")
    broken = f"entry {first} points to byte {int(starts[first])}, but the record before ends elsewhere"
    raise InputError(str(place), f"{broken}; {_MEND_INDEX}")
