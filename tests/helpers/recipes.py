"""The recipes of data/, which are scripts and no package, and what they write."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from places import ROOT

from crops_jax.logs.folder import open_logs


def load_recipe(name: str) -> ModuleType:
    """data/NAME/recipe.py as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", ROOT / "data" / name / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows(logs: Path, table: str, day: str = "") -> list[dict]:
    """A table of a log folder, row by row."""
    return open_logs(logs).read(table, day).to_pylist()
