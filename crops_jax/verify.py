"""`python -m crops_jax.verify DIR...`: checks artefact folders, byte for byte, against their manifests."""

from __future__ import annotations

import sys
from pathlib import Path

from crops_jax.artifacts.manifest import MANIFEST, verify
from crops_jax.artifacts.walk import walk
from crops_jax.command_line import wants_help
from crops_jax.errors import InputError, run_command


def main() -> None:
    """Verifies every artefact found at or below the given folders and prints one line for each."""
    usage = "python -m crops_jax.verify DIR... (every artefact at or below each DIR is checked)"
    if wants_help(sys.argv[1:]):
        print(f"usage: {usage}")
        return
    if len(sys.argv) < 2:
        raise InputError("usage", usage)
    files = (path for arg in sys.argv[1:] for path, wrong in walk(Path(arg)) if not wrong)
    found = {path.parent for path in files if path.name == MANIFEST}
    outer = sorted(f for f in found if found.isdisjoint(f.parents))  # those within one of them are checked with it
    folders = list({folder.resolve(): folder for folder in reversed(outer)}.values())[::-1]  # not again for each link
    if not folders:
        raise InputError(" ".join(sys.argv[1:]), f"no {MANIFEST} found: nothing here is an artefact")
    problems = []
    for folder in folders:
        try:
            manifest = verify(folder)
            print(f"ok   {folder}  ({manifest['kind']}, {len(manifest['files'])} files)")
        except InputError as error:
            print(f"BAD  {folder}")
            problems += [f"{folder}: {p}" for p in error.problems]
    if problems:
        raise InputError("verify", problems)


if __name__ == "__main__":
    run_command(main)
