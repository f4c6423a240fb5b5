"""Checksums of large tables, made and checked where the engine runs: one machine would read a large log for hours."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from crops_jax.artifacts.manifest import MANIFEST, FileFacts, data_files, file_facts, read_manifest, verify, with_mend
from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import open_engine
from crops_jax.errors import InputError
from crops_jax.logs.folder import LogFolder
from crops_jax.logs.parts import parts

_SHARES = 64  # of the bytes, at most


def verify_tables(folder: Path, config: EngineConfig, only: Sequence[str] | None = None) -> None:
    """`artifacts.manifest.verify` of a log folder, or of one that was mined, its bytes read by the tasks of an engine.

    Args:
      only: as there.

    Raises:
      InputError: as there.
    """
    shares = max(min(len(read_manifest(folder)["files"]), _SHARES), 1)
    with open_engine(config, []) as engine:
        found = engine.each(partial(_problems, folder, shares, only), range(shares))
    if problems := list(dict.fromkeys(problem for of_share in found for problem in of_share)):
        raise with_mend(folder, InputError(str(folder), problems))


def _problems(folder: Path, shares: int, only: Sequence[str] | None, share: int) -> list[str]:
    try:
        verify(folder, share=(share, shares), only=only)
    except InputError as error:
        return error.problems
    return []


def facts_of_logs(logs: LogFolder, config: EngineConfig) -> list[FileFacts]:
    """Sizes and checksums of all files of a log folder that is about to be sealed; `_SUCCESS` and its like may go.

    Raises:
      InputError: as `walk.files_below`; or a file of a table, which is read, would not be among them.
    """
    data = data_files(logs.root)
    read = {part for _, place in logs.stored() for part in parts(place)}
    if unsealed := sorted(read.difference(data)):
        hides = f"cannot be sealed, for a {MANIFEST} above it hides it: take that away"
        raise InputError(str(logs.root), [f"{part.relative_to(logs.root)}: {hides}" for part in unsealed])
    with open_engine(config, []) as engine:
        return engine.each(partial(file_facts, root=logs.root), data)
