"""Artefact folders: written beside their final place, sealed with a manifest, renamed into it last.

Every verb reads folders and writes a folder. So a reader can tell a whole artefact from half of one.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from crops_jax import __version__
from crops_jax.artifacts.manifest import MANIFEST, FileFacts, file_facts, fingerprint, own_files, same_config, seal
from crops_jax.errors import InputError

_KEY = "made_from.json"  # in a folder of unfinished work
_UNCHECKED = "unchecked "  # begins the kind of a folder that a later command checks and seals
# After which a scratch folder of another machine, in which nothing changes, is left from a kill.
_ABANDONED_S = 86_400.0


@contextmanager
def write_folder(
    target: str | Path,
    *,
    kind: str,
    config: Any = None,
    inputs: Mapping[str, str | Path] | None = None,
    shared: bool = False,
) -> Iterator[Folder]:
    """Gives a scratch folder to fill; on success seals it with a manifest and renames it to `target`.

    Args:
      kind: what the artefact is ("logs", "mined", "records", ...); readers check it.
      config: the resolved config of the verb, JSON-able.
      inputs: name -> artefact folder this one was made from; each one's manifest hash is recorded.
      shared: several tasks may make it at a time, of the same bytes; the last one's stays.

    An exception inside the block removes the scratch folder and leaves an existing `target` as it was.

    Raises:
      InputError: something is at `target` that is no such artefact (`require_replaceable`), or another command makes
        it now.
    """
    target = Path(target)
    require_replaceable(target, kind)
    with nullcontext() if shared else alone(target):
        _after_a_kill(target)
        scratch = _scratch(target)
        folder = Folder(scratch)
        try:
            yield folder
            known = {fact.path: fact for fact in folder.facts}
            names = {file: file.relative_to(scratch).as_posix() for file in own_files(scratch)}
            facts = [known[name] if name in known else file_facts(file, scratch) for file, name in names.items()]
            seal(scratch, kind=kind, config=config, inputs=inputs or {}, counts=folder.counts, facts=facts)
            _replace(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _scratch(target: Path) -> Path:
    """An empty folder of this process beside `target`; those above it are made."""
    scratch = target.with_name(f".{target.name}.tmp-{_host()}-{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    with _writing(target.parent):
        scratch.mkdir(parents=True)
    return scratch


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = f"cannot be made, or nothing can be written there ({error.strerror}); mend that, or give another place"
        raise InputError(str(place), said) from None


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Keeps the making of a folder to one command of this machine: two would take each other's unfinished work for what
    a kill left. A kill lets it go.

    Raises:
      InputError: another command makes it.
    """
    path = target.with_name(f".{target.name}.lock")
    while True:
        with _writing(target.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            place = os.open(path, os.O_RDWR | os.O_CREAT)
        if not lock(place):
            os.close(place)
            raise InputError(str(target), "another command makes it now; wait for its end, or give another --workdir")
        if path.exists() and path.stat().st_ino == os.fstat(place).st_ino:
            break
        os.close(place)  # whoever had it has just removed it
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(place)


def lock(place: int) -> bool:
    """Takes the lock of an open file or folder until it is closed; whether no other process has it.

    Not every network file system has locks, or has them for folders: there it is nobody's.
    """
    try:
        flock(place, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF):
            raise
    return True


def _after_a_kill(target: Path) -> None:
    """Removes what killed commands left beside `target`, and puts back what one of them was replacing."""
    for left in target.parent.glob(f".{target.name}.tmp-*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    for old in target.parent.glob(f".{target.name}.old-*"):
        if _is_abandoned(old):
            shutil.rmtree(old, ignore_errors=True) if target.exists() else old.rename(target)


def require_replaceable(target: Path, kind: str) -> None:
    """Raises InputError unless an artefact of this kind may be written to `target`.

    Nothing may be there, or an empty folder, or an artefact of the same kind, whole or damaged, which is replaced.
    Whatever else is there belongs to somebody. A link is not followed, and a mount cannot be renamed.
    """
    mend = "give another place, or move it away"
    if target.resolve() == Path.cwd():
        raise InputError(str(target), f"is the folder that the command runs in; {mend}")
    if target.is_symlink():  # others may read what it names: arms share shards by links
        raise InputError(str(target), f"is a link to {target.resolve()}; name that folder itself, or remove the link")
    if target.is_mount():
        raise InputError(str(target), "is a mount, which no folder can be put in the place of; give a folder below it")
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(str(target), f"is a file, and a folder is to be written there; {mend}")
    if not any(target.iterdir()):
        return
    found = _kind_of(target)
    if found is None:
        raise InputError(str(target), f"holds files that are no folder of {kind}; {mend}")
    if found and found.removeprefix(_UNCHECKED) != kind.removeprefix(_UNCHECKED):
        raise InputError(str(target), f"holds {found}, and {kind} is to be written there; {mend}")


def require_place(target: Path, kind: str) -> None:
    """As `require_replaceable`, and tries whether a folder can be written there. Long work asks before it begins."""
    require_replaceable(target, kind)
    _scratch(target).rmdir()


def _kind_of(folder: Path) -> str | None:
    """The kind of an artefact, "" where its manifest is damaged; None for a folder that is none."""
    path = folder / MANIFEST
    data = path.read_bytes() if path.is_file() else b""
    if b'"code_version"' not in data:
        return None
    try:
        return str(json.loads(data)["kind"])
    except (ValueError, KeyError, TypeError):
        return ""


def _host() -> str:
    """This machine's name, without what would end a word of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())


def _is_abandoned(scratch: Path) -> bool:
    """Whether nobody fills this folder any more. Another machine's processes cannot be asked: there its age decides."""
    _, *named = scratch.name.rsplit("-", 2)
    if len(named) != 2 or not named[1].isdecimal():
        return False  # no name of ours
    if named[0] == _host():
        return not _alive(int(named[1]))
    try:
        newest = max(path.stat().st_mtime for path in (scratch, *scratch.rglob("*")))
    except FileNotFoundError:  # it is being renamed or removed just now
        return False
    return time.time() - newest > _ABANDONED_S


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


class Folder:
    """A folder being written: join paths with `/`, note counts in `counts`.

    `facts` may have those of some of its files: these are not read again when the folder is sealed.
    """

    def __init__(self, path: Path):
        self.path = path
        self.counts: dict[str, Any] = {}
        self.facts: list[FileFacts] = []

    def __truediv__(self, name: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def folder(self, name: str) -> Path:
        """The folder of this name within it, made if it is not there."""
        path = self.path / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def _replace(scratch: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.rename(target)
        return
    old = target.with_name(f".{target.name}.old-{_host()}-{os.getpid()}")
    target.rename(old)
    scratch.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def kept_for(root: Path, made_from: Mapping[str, Any]) -> Path:
    """The folder `root` of unfinished work, with what an earlier run left in it if it was made from the same; else
    emptied."""
    key = root / _KEY
    if not _same_origin(key, made_from):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        key.write_text(json.dumps(made_from, sort_keys=True))
    return root


def _same_origin(key: Path, made_from: Mapping[str, Any]) -> bool:
    try:
        before = read_json(key)
    except (FileNotFoundError, ValueError):  # none, or what a kill left of it
        return False
    return before.keys() == made_from.keys() and all(same_config(before[name], made_from[name]) for name in made_from)


@contextmanager
def unfinished(target: Path, inputs: Mapping[str, str | Path], config: Any) -> Iterator[Path]:
    """The folder of what is finished of `target`, beside it; it goes away when the block has ended well: `write_folder`
    of the target is to be entered within it, and left, sealed and in its place, before.

    What an earlier run left is kept if it had the same inputs, config and version (`kept_for`).

    Raises:
      InputError: another command makes the target now.
    """
    told = {name: fingerprint(path) for name, path in inputs.items()}
    root = target.with_name(f"{target.name}.work")
    with alone(root):
        yield kept_for(root, told | {"config": config, "code_version": __version__})
        shutil.rmtree(root)


def made_from(root: Path) -> dict[str, Any]:
    """What `kept_for` was told of a folder."""
    return json.loads((root / _KEY).read_text())


def write_json(path: Path, value: Any, sort_keys: bool = False) -> None:
    """Writes a value as JSON with one space of indent, in UTF-8 whatever the machine's locale (`read_json`)."""
    text = json.dumps(value, indent=1, sort_keys=sort_keys, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def link_file(source: Path, target: Path) -> None:
    """Puts a file at `target` too, in the place of what is there: as a hard link, or a copy where there can be none.

    Of a link the file that it names: a relative one would name nothing from there.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def nearest(folder: Path, name: str) -> Path:
    """What has this name in a folder, or else in the nearest one above it; where it would be in the folder, if nowhere:
    data sets below a folder that has it share it.
    """
    return next((at / name for at in (folder, *folder.parents) if (at / name).exists()), folder / name)


def link_folder(link: Path, target: Path) -> None:
    """Makes `link` a link to the folder `target`, in whose place it is read.

    Raises:
      InputError: something else than a link is there.
    """
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() == target.resolve():
        return
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise InputError(str(link), f"is no link to {target}, which is to be read in its place; move it away")
    link.symlink_to(target.resolve(), target_is_directory=True)
