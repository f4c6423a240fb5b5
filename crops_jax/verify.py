"""`python -m crops_jax.verify DIR...`: checks artefact folders, byte for byte, against their manifests."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from crops_jax.artifacts.manifest import MANIFEST, verify
from crops_jax.artifacts.walk import hidden, walk
from crops_jax.command_line import wants_help
from crops_jax.errors import InputError, run_command


def main() -> None:
    """Verifies every artefact found at or below the given folders and prints one line for each, and on stderr what
    lies beside them: an artefact that lost its manifest does.

    Raises:
      InputError: lists what is wrong with every artefact, and the given folders without any.
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
            _tell_unnamed(root, files, outer)
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


def _tell_unnamed(root: Path, files: Sequence[Path], artefacts: Collection[Path]) -> None:
    """Says on stderr where below `root` files lie that belong to no artefact, a line for a folder without any."""
    whole, above = {*artefacts}, {above for folder in artefacts for above in folder.parents}
    beside = Counter()
    for path in files:
        if whole.isdisjoint(path.parents) and not any(map(hidden, path.relative_to(root).parts)):
            around = [folder for folder in path.parents if folder not in above]  # the largest is the last
            beside[around[-1] if around else path.parent] += 1
    for folder, count in sorted(beside.items()):
        print(f"not checked: {folder}: files that no manifest names ({count})", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
