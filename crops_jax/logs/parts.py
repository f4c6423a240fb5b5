"""Which files make a table: one Parquet file, or a folder of them as Spark writes it."""

from __future__ import annotations

from pathlib import Path

from crops_jax.artifacts.walk import GONE, files_below, hidden, require_utf8, told
from crops_jax.errors import InputError

_FOREIGN = {"_delta_log": "Delta", ".hoodie": "Hudi", "metadata": "Iceberg"}  # a folder in it -> what it then is


def parts(path: Path) -> list[Path]:
    """The files of the table at `path`, sorted by name: `path` itself, or the visible files at or below the folder,
    also those in linked folders.

    Names that start with `_` or `.` are no data (`_SUCCESS`, checksums). The name of a folder on the way says nothing
    about the rows: `stage=exposed/part-0.parquet` holds the columns that the file holds.

    Raises:
      InputError: there is nothing, or a folder without data, an unfinished one, one with a link to what is not there,
        or one of a table format that keeps deleted rows beside the others.
    """
    require_utf8(path)
    if path.is_file():
        return [path]
    if path.is_symlink() and not path.exists():
        raise InputError(str(path), told(GONE))
    if not path.is_dir():
        near = path.with_suffix("")
        hint = f"; there is a folder {near.name}: name it {path.name}" if path.suffix and near.is_dir() else ""
        raise InputError(str(path), "no such file" + hint)
    for name, kind in _FOREIGN.items():
        if (path / name).is_dir() and (name != "metadata" or any((path / name).glob("*.metadata.json"))):
            raise InputError(
                str(path), f"is a {kind} table, whose files hold deleted rows too: write it as plain Parquet"
            )
    if (path / "_temporary").exists() and not (path / "_SUCCESS").exists():
        raise InputError(str(path), "was not written to its end (there is _temporary and no _SUCCESS): write it again")
    found = files_below(path, lambda name: hidden(name) or name.endswith(".crc"))
    if not found:
        raise InputError(str(path), "is a folder without any Parquet file")
    return found
