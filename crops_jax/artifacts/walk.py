"""Every file at or below a folder, through links: platforms link folders of big data instead of copying them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from crops_jax.errors import InputError

GONE, LOOP = "is a link to what is not there", "is a link to a folder that it lies in"
_ODD = "is neither a file nor a folder"
_NAME = "has a name that is not UTF-8"


def hidden(name: str) -> bool:
    """Whether a reader of tables leaves out what has this name: as in Spark, for a dot or an underscore in front."""
    return name.startswith((".", "_"))


def walk(root: Path, skip: Callable[[str], bool] = lambda name: False, stop_at: str = "") -> Iterator[tuple[Path, str]]:
    """(path, what is wrong with it) of everything that is no folder, in no order; "" where it is a sound file.

    A linked folder is entered, unless the link leads back to a folder in which it lies. Paths are those under `root`,
    whatever the links name.

    Args:
      skip: of a name, whether such files are left out and such folders not entered.
      stop_at: a folder below the root that holds a file of this name is told by that file alone.
    """
    yield from _walk(root, root, skip, stop_at, (root.resolve(),))


def files_below(root: Path, skip: Callable[[str], bool] = lambda name: False, stop_at: str = "") -> list[Path]:
    """The files that `walk` finds, sorted.

    Raises:
      InputError: lists the links to what is not there or to where they lie, and what is neither a file nor a folder.
    """
    found = list(walk(root, skip, stop_at))
    if wrong := sorted((path, why) for path, why in found if why):
        raise InputError(str(root), [f"{path.relative_to(root)}: {told(why)}" for path, why in wrong])
    return sorted(path for path, _ in found)


def told(why: str) -> str:
    """What is wrong with a path (`walk`), and the mend."""
    mends = {GONE: "put it there, or take the link away", _NAME: "rename it"}
    return f"{why}; {mends.get(why, 'take it away')}"


def require_utf8(path: Path) -> None:
    """Raises InputError where a path is not UTF-8: neither pyarrow nor a manifest takes it."""
    if not _is_utf8(str(path)):
        raise InputError(str(path), told(_NAME))


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Python keeps such bytes as surrogates
        return False
    return True


def _walk(
    folder: Path, root: Path, skip: Callable[[str], bool], stop_at: str, above: tuple[Path, ...]
) -> Iterator[tuple[Path, str]]:
    """As `walk`; `above` are the folders on the way to this one, as links were entered: resolved."""
    try:
        with os.scandir(folder) as listed:
            entries = [entry for entry in listed if not skip(entry.name)]
    except FileNotFoundError:  # it went away meanwhile, as the scratch folder of another process does
        return
    if stop_at and folder != root and any(entry.name == stop_at and Path(entry).is_file() for entry in entries):
        yield folder / stop_at, ""
        return
    for entry in entries:
        path = folder / entry.name
        if not _is_utf8(entry.name):
            yield path, _NAME
        elif entry.is_symlink() and not os.path.exists(path):  # an entry would raise where links name each other
            yield path, GONE
        elif entry.is_file():
            yield path, ""
        elif entry.is_dir() and not entry.is_symlink():
            yield from _walk(path, root, skip, stop_at, above)
        elif entry.is_dir():
            real, here = path.resolve(), folder.resolve()
            if any(one.is_relative_to(real) for one in (*above, here)):
                yield path, LOOP
            else:
                yield from _walk(path, root, skip, stop_at, (*above, here, real))
        elif os.path.lexists(path):
            yield path, _ODD
