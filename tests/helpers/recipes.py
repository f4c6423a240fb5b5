"""The recipes of data/, which are scripts and no package."""

import importlib.util
import sys
from types import ModuleType

from places import ROOT


def load_recipe(name: str) -> ModuleType:
    """data/NAME/recipe.py as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", ROOT / "data" / name / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
