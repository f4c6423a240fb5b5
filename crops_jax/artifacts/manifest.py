"""The manifest of an artefact: what makes a folder whole, and what tells a damaged file from a good one.

`manifest.json` lists each file's size, crc32c and sha256, what the folder was made from, the resolved config, the
counts and the code version; its last line is the sha256 of all lines before. `python -m crops_jax.verify DIR...` checks
everything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c

from crops_jax import __version__
from crops_jax.artifacts.walk import files_below, hidden, told, walk
from crops_jax.errors import InputError

MANIFEST = "manifest.json"
_KEYS = {"kind", "code_version", "config", "inputs", "counts", "files"}
_SEAL = "seal"  # sorts behind all of these
_CHUNK = 1 << 22
_NOTES = (".log", ".md", ".txt")
_MENDS = {  # kinds of folders that people fill, or take as their own, and what they do after a change
    "logs": "if they are your own and meant to change, seal them again: python -m crops_jax.check_logs DIR",
    "collection": "if it is meant to change, make it again with its recipe",
}


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and both checksums of one file; `path` is relative to the folder, with forward slashes."""

    path: str
    size: int
    crc32c: str
    sha256: str


def file_facts(path: Path, root: Path) -> FileFacts:
    """Reads a file once and returns its facts."""
    crc, sha, size = google_crc32c.Checksum(), hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            crc.update(chunk)
            sha.update(chunk)
            size += len(chunk)
    return FileFacts(path.relative_to(root).as_posix(), size, crc.hexdigest().decode(), sha.hexdigest())


def own_files(root: Path) -> list[Path]:
    """The files that a folder's manifest names, sorted, also those in linked folders; of a sealed folder within it,
    the manifest alone.

    Raises:
      InputError: as `walk.files_below`.
    """
    return files_below(root, stop_at=MANIFEST)


def data_files(root: Path) -> list[Path]:
    """Those of `own_files` that a reader of tables reads (`walk.hidden`)."""
    return files_below(root, hidden, MANIFEST)


def seal(
    root: Path,
    *,
    kind: str,
    config: Any,
    inputs: Mapping[str, str | Path],
    counts: Mapping[str, Any],
    facts: Sequence[FileFacts] | None = None,
    code_version: str = "",
) -> None:
    """Writes the manifest of a folder that is complete (arguments as `write_folder`), replacing an older one.

    A sealed folder within it, such as a checkpoint's step, is named by its own manifest, and not read again.

    Args:
      facts: of all files, where they are known.
      code_version: of the code that made what is in the folder; empty: this one.
    """
    (root / MANIFEST).unlink(missing_ok=True)
    files = [file_facts(p, root) for p in own_files(root)] if facts is None else sorted(facts, key=lambda f: f.path)
    manifest = {
        "kind": kind,
        "code_version": code_version or __version__,
        "config": config,
        "inputs": {name: {"path": str(path), "sha256": fingerprint(path)} for name, path in inputs.items()},
        "counts": counts,
        "files": [vars(f) for f in files],
    }
    write_manifest(root, manifest)


def write_manifest(root: Path, manifest: Mapping[str, Any]) -> None:
    """Writes a manifest, with its own checksum, in the place of an older one."""
    lines = json.dumps({name: manifest[name] for name in _KEYS}, indent=1, sort_keys=True).removesuffix("\n}") + ",\n"
    part = root / f".{MANIFEST}.part"
    part.write_bytes(_sealed(lines.encode()))
    part.rename(root / MANIFEST)


def _sealed(lines: bytes) -> bytes:
    """A manifest with its last line, of the lines before it."""
    return lines + f' "{_SEAL}": "{hashlib.sha256(lines).hexdigest()}"\n}}\n'.encode()


def read_manifest(path: str | Path, kind: str | None = None, made_by: str = "") -> dict[str, Any]:
    """The manifest of a complete artefact.

    Raises:
      InputError: the folder or its manifest is missing, unreadable or changed, or it is of another kind. `made_by`
        is the command that writes such a folder, named in the message.
    """
    path = Path(path)
    hint = f"; make it with `{made_by}`" if made_by else ""
    if not path.is_dir():
        raise InputError(str(path), f"no such folder{hint}")
    try:
        data = (path / MANIFEST).read_bytes()
        manifest = json.loads(data)
    except FileNotFoundError:
        raise InputError(str(path), f"has no {MANIFEST}: it is not a complete artefact{hint}") from None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise InputError(str(path / MANIFEST), f"is not JSON ({error}); the artefact is damaged{hint}") from None
    if not _is_whole(data, manifest):
        raise InputError(str(path / MANIFEST), f"has changed since it was written; the artefact is damaged{hint}")
    if kind is not None and manifest.get("kind") != kind:
        raise InputError(str(path), f"holds {manifest.get('kind')!r}, but {kind!r} is needed{hint}")
    return manifest


def _is_whole(data: bytes, manifest: Any) -> bool:
    """Whether a manifest is as it was written. Older ones have no checksum of their own, but the same form."""
    if isinstance(manifest, dict) and manifest.keys() == _KEYS:
        return _has_form(manifest)
    lines = data[: data.rfind(f' "{_SEAL}": '.encode())]
    return data == _sealed(lines)


def _has_form(manifest: Mapping[str, Any]) -> bool:
    try:
        files = all(FileFacts(**entry).size >= 0 for entry in manifest["files"])
        return (
            files and all(entry["sha256"] for entry in manifest["inputs"].values()) and manifest["counts"] is not None
        )
    except (TypeError, AttributeError, KeyError):
        return False


def fingerprint(path: str | Path) -> str:
    """sha256 of a folder's manifest, or of a plain file: the identity of an input."""
    path = Path(path)
    manifest = path / MANIFEST if path.is_dir() else path
    if not manifest.exists():
        raise InputError(str(path), "has no manifest.json: it is not a complete artefact; run the verb that writes it")
    with manifest.open("rb") as stream:  # a plain file may be larger than memory
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_tables(root: str | Path, names: Sequence[str]) -> str:
    """sha256 of what a folder's manifest says of these files and folders in it: the identity of their bytes, whoever
    wrote the manifest, and when.

    Raises:
      InputError: as `read_manifest`.
    """
    named = (entry for entry in read_manifest(root)["files"] if _belongs(entry["path"], names))
    found = [(entry["path"], entry["sha256"]) for entry in named
             if not any(map(hidden, Path(entry["path"]).parts))]  # fmt: skip
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _belongs(path: str, names: Sequence[str]) -> bool:
    """Whether the path in a manifest is one of these files, or lies in one of these folders."""
    return any(path == name or path.startswith(f"{name}/") for name in names)


def digest_of_files(root: Path, endings: Sequence[str]) -> str:
    """sha256 of the names and bytes of a folder's files with these endings: the identity of what has no manifest.

    Raises:
      InputError: one of them is a link to what is not there.
    """
    digest = hashlib.sha256()
    for path, wrong in sorted(found for found in walk(root) if found[0].suffix in endings):
        if wrong:
            raise InputError(str(path), told(wrong))
        of_file = _sha256(path, path.stat().st_size, path.stat().st_mtime_ns)
        digest.update(f"{path.relative_to(root).as_posix()} {of_file}\n".encode())
    return digest.hexdigest()


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """The sha256 of a file as it was when it had this size and time of change; weights are asked for many times."""
    return fingerprint(path)


def is_current(
    target: str | Path, *, kind: str, config: Any, inputs: Mapping[str, str | Path], any_version: bool = False
) -> bool:
    """Whether `target` is complete and was made from these inputs with this config: it need not be made again.

    Args:
      any_version: of the code; else it has to be this one.

    Raises:
      InputError: it was, but logs or a collection among the inputs are no longer what their manifest says.
    """
    try:
        manifest = verify(target, kind, deep=False)
    except InputError:
        return False
    wanted = {name: fingerprint(path) for name, path in inputs.items()}
    made_from = {name: entry["sha256"] for name, entry in manifest["inputs"].items()}
    same_code = any_version or manifest["code_version"] == __version__
    if not (same_code and same_config(manifest["config"], config) and made_from == wanted):
        return False
    for name, path in inputs.items():
        _require_kept(Path(path), wanted[name])
    return True


def require_unchanged(path: str | Path) -> dict[str, Any]:
    """`verify` by names and sizes alone; returns the manifest.

    Raises:
      InputError: as `verify`, and what mends it.
    """
    try:
        return verify(path, deep=False)
    except InputError as error:
        raise with_mend(path, error) from None


def with_mend(path: str | Path, error: InputError) -> InputError:
    """What `verify` said of a folder, and what to do where it is of a kind that people change."""
    mend = _MENDS.get(read_manifest(path)["kind"])
    return InputError(error.place, [*error.problems, mend] if mend else error.problems)


def _require_kept(path: Path, made: str) -> None:
    """`require_unchanged` of an input of a kind that people change, and that no command makes again by itself.

    A list of stages asks often, and on a network each size takes time: a process looks once, as long as no file comes
    to or goes from the folders of the input.

    Args:
      made: its fingerprint.
    """
    if path.is_dir():
        _look(path, made, tuple(_changed(folder) for folder in _folders(path, made)))


@cache
def _folders(root: Path, made: str) -> tuple[Path, ...]:
    """The folders that hold the files of an input; none where its kind is not looked at."""
    manifest = read_manifest(root)
    if manifest["kind"] not in _MENDS:
        return ()
    return tuple(sorted({root, *((root / entry["path"]).parent for entry in manifest["files"])}))


def _changed(folder: Path) -> int:
    return folder.stat().st_mtime_ns if folder.exists() else 0


@cache
def _look(root: Path, made: str, times: tuple[int, ...]) -> None:
    if times:
        require_unchanged(root)


def same_config(made: Any, wanted: Any) -> bool:
    """Whether two configs are equal, but for a hash of files that one of the two hosts does not have (`*_sha256`)."""
    made, wanted = json.loads(json.dumps([made, wanted]))
    if isinstance(made, dict) and isinstance(wanted, dict):
        unseen = {name for name in made.keys() ^ wanted.keys() if name.endswith("_sha256")}
        made, wanted = ({k: v for k, v in one.items() if k not in unseen} for one in (made, wanted))
    return made == wanted


def was_made_from(folder: str | Path, name: str, source: str | Path) -> bool:
    """Whether the input `name` of a folder was `source` as it is now."""
    return read_manifest(folder)["inputs"].get(name, {}).get("sha256") == fingerprint(source)


def require_made_from(folder: str | Path, name: str, source: str | Path, made_by: str) -> None:
    """Raises InputError unless `folder` was made from `source` as it is now; `made_by` makes it again."""
    if not was_made_from(folder, name, source):
        raise InputError(str(folder), f"was made from another {source}; make it again with `{made_by}`")


def verify(
    path: str | Path,
    kind: str | None = None,
    *,
    deep: bool = True,
    share: tuple[int, int] = (0, 1),
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Checks every file of an artefact, and of sealed folders within it, against its manifest; returns the manifest.

    Args:
      kind: what the artefact has to be; none for any.
      deep: also read the bytes and compare crc32c and sha256; otherwise names and sizes only.
      share: (i, n): read the bytes of this one of n about equal parts of the files, the i-th from 0.
      only: read the bytes of these files and folders alone.

    Raises:
      InputError: as `read_manifest`; or lists every missing, cut, changed or unnamed file, and every manifest path that
        leaves the folder.
    """
    root = Path(path)
    manifest = read_manifest(root, kind)
    read = [entry for entry in manifest["files"] if only is None or _belongs(entry["path"], only)]
    problems, here = _unnamed(root, manifest), _share(read, *share)
    for entry in manifest["files"]:
        file = root / entry["path"]
        if Path(entry["path"]).is_absolute() or ".." in Path(entry["path"]).parts:
            problems.append(f"{entry['path']}: a manifest path must stay inside its folder")
        elif not file.is_file():
            problems.append(f"{entry['path']}: missing")
        elif file.stat().st_size != entry["size"]:
            problems.append(f"{entry['path']}: {file.stat().st_size} bytes, the manifest says {entry['size']}")
        elif deep and entry["path"] in here and vars(file_facts(file, root)) != entry:
            problems.append(f"{entry['path']}: its bytes have changed since it was written (checksum differs)")
        elif file.name == MANIFEST:
            problems += _problems_within(file.parent, root, deep, share)
    if problems:
        raise InputError(str(root), problems)
    return manifest


def _unnamed(root: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What came in after the folder was sealed: who reads a folder of parts would read it too. A note that somebody
    left beside the manifest is none of these.
    """
    named = {MANIFEST, *(entry["path"] for entry in manifest["files"])}
    late = "came in after the folder was sealed, and the manifest does not name it: take it away"
    found = {path.relative_to(root): wrong for path, wrong in walk(root, hidden, MANIFEST)}
    return [
        f"{name}: {told(wrong) if wrong else late}"
        for name, wrong in sorted(found.items())
        if name.as_posix() not in named and (name.suffix not in _NOTES or len(name.parts) > 1)
    ]


def checked_file(path: str | Path, name: str) -> Path:
    """A file of an artefact, whose bytes are those that its manifest tells of; the other files are not looked at.

    Raises:
      InputError: the manifest is not whole or does not name the file, or the file is missing or has changed.
    """
    root = Path(path)
    entries = [entry for entry in read_manifest(root)["files"] if entry["path"] == name]
    if not entries or not (root / name).is_file() or vars(file_facts(root / name, root)) != entries[0]:
        raise InputError(str(root), f"{name}: is missing, or its bytes have changed since it was written")
    return root / name


def _share(entries: Sequence[Mapping[str, Any]], index: int, count: int) -> set[str]:
    """Paths of one of `count` parts of the files, of about equal bytes: the largest go first, to the emptiest part."""
    taken, bytes_of = set(), [0] * count
    for entry in sorted(entries, key=lambda e: (-e["size"], e["path"])):
        part = bytes_of.index(min(bytes_of))
        bytes_of[part] += entry["size"]
        if part == index:
            taken.add(entry["path"])
    return taken


def _problems_within(folder: Path, root: Path, deep: bool, share: tuple[int, int]) -> list[str]:
    try:
        verify(folder, deep=deep, share=share)
    except InputError as error:
        return [f"{folder.relative_to(root)}/{problem}" for problem in error.problems]
    return []
