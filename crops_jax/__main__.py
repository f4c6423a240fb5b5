"""`python -m crops_jax` lists the commands in the order of the work; `python -m crops_jax VERB ...` runs one."""

from __future__ import annotations

import runpy
import sys

from crops_jax.command_line import VERBS
from crops_jax.errors import InputError, run_command


def main() -> None:
    """Prints the commands, or runs the one that is named."""
    if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help"):
        print("usage: python -m crops_jax.VERB --config FILE [--section.field=value ...]\n")
        print("\n".join(f"  {name:<16}{verb.does}" for name, verb in VERBS.items()))
        print("\n`python -m crops_jax.VERB --help` lists the fields that a verb reads, `--help-all` every one.")
        return
    verb = sys.argv.pop(1)
    if verb not in VERBS:
        raise InputError(verb, f"is no command; they are {', '.join(VERBS)}")
    runpy.run_module(f"crops_jax.{verb}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run_command(main)
