"""Prompts as files: what is said to a language model, with the names of what is put in.

A file has two parts, each under a line of its own, `[system]` and `[user]`. `$name` stands for what is put in, and `$$`
for a dollar.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template

from crops_jax.errors import InputError

_FOLDER = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Prompt:
    """A prompt before anything is put in."""

    system: str
    user: str

    def messages(self, **values: str) -> list[dict[str, str]]:
        """The chat with these values in it."""
        parts = {"system": self.system, "user": self.user}
        return [{"role": role, "content": Template(text).substitute(values)} for role, text in parts.items() if text]

    @property
    def own_words(self) -> str:
        """What it says, whatever is put in."""
        text = Template(f"{self.system} {self.user}")
        return text.safe_substitute(dict.fromkeys(text.get_identifiers(), " "))


@cache
def read_prompt(path: str, shipped: str, names: tuple[str, ...], needed: tuple[str, ...]) -> Prompt:
    """The prompt in the file `path`; where that is empty, the one of the package that is called `shipped`.

    Args:
      names: what may be put in.
      needed: what has to be.

    Raises:
      InputError: the file is missing, is not text, has no such parts, or puts in something else.
    """
    file = Path(path) if path else _FOLDER / f"{shipped}.txt"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(file), f"is no prompt that can be read ({error})") from None
    parts: dict[str, list[str]] = {}
    for line in lines:
        if line.strip() in ("[system]", "[user]"):
            parts[line.strip()] = here = []
        elif parts:
            here.append(line)
        elif line.strip():
            raise InputError(str(file), "has text before its first part; begin with a line [system] or [user]")
    prompt = Prompt("\n".join(parts.get("[system]", [])).strip("\n"), "\n".join(parts.get("[user]", [])).strip("\n"))
    if problems := _problems(prompt, names, needed):
        raise InputError(str(file), problems)
    return prompt


def _problems(prompt: Prompt, names: Collection[str], needed: Collection[str]) -> list[str]:
    problems = [] if prompt.user else ["has no part [user]"]
    text = Template(f"{prompt.system}\n{prompt.user}")
    if not text.is_valid():
        return [*problems, "holds a single $, which is none of the names that are put in; write $$ for a dollar"]
    found = set(text.get_identifiers())
    problems += [f"puts in ${name}, which is none of {', '.join(names)}" for name in sorted(found - set(names))]
    return problems + [f"never puts in ${name}" for name in needed if name not in found]
