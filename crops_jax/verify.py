"""`python -m crops_jax.verify DIR...`: checks artefact folders, byte for byte, against their manifests."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import get_args

from crops_jax.artifacts.manifest import MANIFEST, verify
from crops_jax.artifacts.walk import hidden, walk
from crops_jax.command_line import wants_help
from crops_jax.config import ArmFolder, SharedFolder
from crops_jax.errors import InputError, run_command

# Folders of artefacts. A run has no manifest until it is finished.
_NAMES = {*get_args(SharedFolder), *get_args(ArmFolder)} - {"train"}
_PARTS = {"index", "semantic_index"}  # which lie in a bundle or an exported writer too


def main() -> None:
    """Verifies every artefact found at or below the given folders and prints one line for each, and on stderr what
    lies beside them.

    Raises:
      InputError: lists what is wrong with every artefact, those that lost their manifest, and the given folders without
        any.
    """
    usage = "python -m crops_jax.verify DIR... (every artefact at or below each DIR is checked)"
    if wants_help(sys.argv[1:]):
        print(f"usage: {usage}")
        return
    if len(sys.argv) < 2:
        raise InputError("usage", usage)
    found, problems = [], []
    for root in map(Path, sys.argv[1:]):
        files = [path for path, wrong in walk(root) if not wrong]
        folders = {path.parent for path in files if path.name == MANIFEST}
        # Those within one of them are checked with it.
        outer = sorted(folder for folder in folders if folders.isdisjoint(folder.parents))
        found += outer
        if outer:
            problems += _unnamed(root, files, outer)
        else:
            problems.append(f"{root}: no {MANIFEST} found: nothing there is an artefact")
    once = {folder.resolve(): folder for folder in reversed(found)}  # not again for each link
    for folder in [*once.values()][::-1]:
        try:
            manifest = verify(folder)
            print(f"ok   {folder}  ({manifest['kind']}, {len(manifest['files'])} files)")
        except InputError as error:
            print(f"BAD  {folder}")
            problems += [f"{folder}: {p}" for p in error.problems]
    if problems:
        raise InputError("verify", problems)


def _unnamed(root: Path, files: Sequence[Path], artefacts: Collection[Path]) -> list[str]:
    """The folders below `root` that should have a manifest and have none, though files lie in them: those with the name
    of an artefact, and `root` itself where it holds parts of one alone. What else belongs to no artefact is told on
    stderr, a line for a folder.
    """
    whole, above = {*artefacts}, {above for folder in artefacts for above in folder.parents}
    parts = {folder.name for folder in artefacts if folder.parent == root}
    beside, problems = Counter(), []
    for path in files:
        place = path.relative_to(root)
        if not whole.isdisjoint(path.parents) or any(map(hidden, place.parts)):
            continue
        within = list(path.parents)[: len(place.parts)]  # root is the last of them
        named = [folder for folder in within if folder.name in _NAMES]
        around = [folder for folder in within if folder not in above]
        beside[(named or around or within[:1])[-1]] += 1  # the largest is the last
    for folder, count in sorted(beside.items()):
        said = f"{folder}: files that no manifest names ({count})"
        if folder.name in _NAMES or (folder == root and parts and parts <= _PARTS):
            problems.append(f"{said}: its {MANIFEST} is lost or not yet made, or they lie there by mistake")
        else:
            print(f"not checked: {said}", file=sys.stderr)
    return problems


if __name__ == "__main__":
    run_command(main)
