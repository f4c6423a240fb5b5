"""Compares the installed packages with the ranges that crops-jax and jax declare."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from crops_jax.errors import InputError

_PLUGIN = re.compile(r"libtpu|jax-cuda\d+-plugin")
_MEND = "pip install -c constraints.txt -e ."


def check_versions() -> str:
    """Python, jax, the libraries around it and its plugins, as `name version, ...`.

    Raises:
      InputError: lists every package of training that is missing or outside its range, and every installed plugin of
        jax that belongs to another jax.
    """
    try:
        declared = [Requirement(line) for line in requires("crops-jax") or []]
    except PackageNotFoundError:
        raise InputError("crops-jax", f"is not installed here: {_MEND}") from None
    needed = [r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]
    # jax names the version of every plugin in some extra; the one that is installed has to be that version.
    plugins = [r for r in map(Requirement, requires("jax") or []) if _PLUGIN.fullmatch(r.name) and installed(r.name)]
    have = {r.name: installed(r.name) for r in needed + plugins}
    problems = [
        f"{r.name}{r.specifier} is needed, {have[r.name] or 'none'} is installed: {_MEND}"
        for r in needed + plugins
        if have[r.name] is None or not r.specifier.contains(have[r.name], prereleases=True)
    ]
    if problems:
        raise InputError("versions", list(dict.fromkeys(problems)))
    shown = ["jax", "flax", "orbax-checkpoint", *sorted({r.name for r in plugins})]
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {have[name]}" for name in shown)])


def installed(name: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
