"""The examples in docstrings."""

import doctest
import importlib

import pytest
from places import ROOT

FILES = [p for p in sorted((ROOT / "crops_jax").rglob("*.py")) if ">>> " in p.read_text()]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_examples_of_a_module_hold(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
