"""Which files make a table: one Parquet file, or a folder of them as Spark writes it."""

from __future__ import annotations

from pathlib import Path

from crops_jax.errors import InputError

_FOREIGN = {"_delta_log": "Delta", ".hoodie": "Hudi", "metadata": "Iceberg"}  # a folder in it -> what it then is


def parts(path: Path) -> list[Path]:
    """The files of the table at `path`, sorted by name: `path` itself, or the visible files at or below the folder.

    Names that start with `_` or `.` are no data (`_SUCCESS`, checksums). The name of a folder on the way says nothing
    about the rows: `stage=exposed/part-0.parquet` holds the columns that the file holds.

    Raises:
      InputError: there is nothing, or a folder without data, an unfinished one, or one of a table format that keeps
        deleted rows beside the others.
    """
    if path.is_file():
        return [path]
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
    found = [p for p in path.rglob("*") if p.is_file() and not any(_hidden(n) for n in p.relative_to(path).parts)]
    if not found:
        raise InputError(str(path), "is a folder without any Parquet file")
    return sorted(found)


def _hidden(name: str) -> bool:
    return name.startswith(("_", ".")) or name.endswith(".crc")
